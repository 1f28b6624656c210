//! docs/EXACTNESS.md and docs/exactness.jsonl: what the exactness tests compared on each kernel, and how
//! well it agreed.

mod data;
mod page;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use xtask_common::{project::root, results};

use self::data::{Comparison, Data, Key};

/// The page, and the data that it is generated from.
const PAGE: &str = "docs/EXACTNESS.md";
const DATA: &str = "docs/exactness.jsonl";

/// The results of all kernels in a directory.
fn read(directory: &Path) -> Result<Vec<Value>, String> {
    let entries = fs::read_dir(directory).map_err(|error| {
        format!("cannot read {}: {error}; `cargo xtask test` makes it", directory.display())
    })?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        all.extend(results::read(&path)?);
    }
    Ok(all)
}

/// Puts the results in `directory` in the place of what the same tests left on the same kernels.
pub(crate) fn update(directory: &Path) -> Result<(), String> {
    let newer = Data::of_results(&read(directory)?);
    let failed: u64 =
        newer.0.values().flat_map(|cells| cells.values()).map(|cell| cell.failed).sum();
    if newer.0.is_empty() || failed > 0 {
        let count = newer.0.len();
        let why = format!("{count} results, {failed} failed comparisons");
        return Err(format!("{}: {why}: {DATA} stays as it is", directory.display()));
    }
    let mut data = Data::read(&root().join(DATA))?;
    data.update(newer);
    fs::write(root().join(DATA), data.lines())
        .map_err(|error| format!("cannot write {DATA}: {error}"))?;
    write_page()
}

/// Writes the page from the data.
pub(crate) fn write_page() -> Result<(), String> {
    let page = page::page(&Data::read(&root().join(DATA))?);
    fs::write(root().join(PAGE), page).map_err(|error| format!("cannot write {PAGE}: {error}"))
}

/// Whether the committed page is the one of the data, the data has every comparison in `directory` for
/// the kernels it knows, and these kernels still offer every tier. Errors differ from run to run; the
/// tests asserted that they are within the tolerances.
pub(crate) fn check(directory: &Path) -> Result<(), String> {
    let data = Data::read(&root().join(DATA))?;
    let committed = fs::read_to_string(root().join(PAGE))
        .map_err(|error| format!("cannot read {PAGE}: {error}"))?;
    let regenerate = "`cargo xtask docs --exactness` updates it";
    if committed != page::page(&data) {
        return Err(format!("{PAGE} was not generated from {DATA}; {regenerate}"));
    }
    let found = Data::of_results(&read(directory)?);
    if let [first, rest @ ..] = unknown(&data, &found).as_slice() {
        let count = rest.len() + 1;
        return Err(format!(
            "{DATA} lacks {count} comparisons, the first is {first}; {regenerate}"
        ));
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match idle_tiers(&data, &found, &data::kernel_name(release.trim())).as_slice() {
        [] => Ok(()),
        idle => Err(format!("these tiers did not attach any more: {}", idle.join(", "))),
    }
}

/// Comparisons in `found`, on kernels of the data, that the data has for no kernel. (Whether a kernel
/// has a reason for a comparison may differ from run to run: whether a fault was retried, for example.)
fn unknown(data: &Data, found: &Data) -> Vec<String> {
    let kernels = data.kernels();
    let mut unknown = Vec::new();
    for (key, cells) in &found.0 {
        if let Key::Comparison(Comparison { probe, metric, against, tier, .. }) = key
            && !data.0.contains_key(key)
            && cells.keys().any(|kernel| kernels.contains(kernel.as_str()))
        {
            unknown.push(format!("{probe} {metric} by {tier}, compared with {against}"));
        }
    }
    unknown
}

/// Tiers that a test compared on a kernel when the data was written, and that nothing was compared by
/// now although the test ran there: `KERNEL: PROBE=TIER`. Entries without tests are older than their
/// record; on the kernel of this host, where all tests ran, they count as well.
fn idle_tiers(data: &Data, found: &Data, host: &str) -> Vec<String> {
    let tiers_of = |data: &Data, ran: &dyn Fn(&str, &BTreeSet<String>) -> bool| {
        let mut tiers = BTreeSet::new();
        for (key, cells) in &data.0 {
            let Key::Comparison(Comparison { probe, tier, .. }) = key else { continue };
            for (kernel, _) in cells.iter().filter(|(kernel, cell)| ran(kernel, &cell.tests)) {
                tiers.insert(format!("{kernel}: {probe}={tier}"));
            }
        }
        tiers
    };
    let ran = found.ran();
    let expected = tiers_of(data, &|kernel, tests| {
        let again = tests.iter().any(|test| ran.contains(&(kernel, test.as_str())));
        again || (tests.is_empty() && kernel == host && !found.0.is_empty())
    });
    let seen = tiers_of(found, &|_, _| true);
    expected.difference(&seen).cloned().collect()
}

#[cfg(test)]
mod tests;
