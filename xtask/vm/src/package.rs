//! Debian's kernel packages: which are available, which is the newest, and the files of one that a
//! guest needs, downloaded once and kept.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use xtask_common::{
    kernel::Kernel,
    project::{is_root, root, shown},
};

use crate::modules;

/// The files that a guest boots from.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The package it came from.
    pub(crate) package: String,
    /// The compressed kernel.
    pub(crate) kernel: PathBuf,
    /// Modules in the order in which they are loaded.
    pub(crate) modules: Vec<PathBuf>,
}

/// Packages are tried from the newest on. If this many fail, the lists of apt are out of date.
const ATTEMPTS: usize = 4;

/// The newest kernel of this kind, from the cache or from Debian.
pub(crate) fn obtain(kernel: Kernel) -> Result<Image, String> {
    let cache = cache_directory();
    let mut offered = offers(kernel)?;
    if offered.is_empty() {
        refresh();
        offered = offers(kernel)?;
    }
    let mut reasons = Vec::new();
    for package in offered.iter().take(ATTEMPTS) {
        match cached(&cache, package).map_or_else(|| fetch(&cache, package), Ok) {
            Ok(image) => return Ok(image),
            Err(reason) => reasons.push(reason),
        }
    }
    // Without a network, or with old lists, an older kernel is better than none.
    if let Some(image) = kept(&cache, kernel) {
        println!(
            "    {kernel}: no newer package is available; using {}, downloaded before",
            image.package
        );
        return Ok(image);
    }
    Err(reasons.into_iter().next().unwrap_or_else(|| {
        format!(
            "apt knows no package like linux-image-{}; add Debian's bookworm, bookworm-security and \
             bookworm-backports to its sources",
            kernel.pattern()
        )
    }))
}

/// Outside the build directory, because kernels take a while to download.
fn cache_directory() -> PathBuf {
    let from = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .map_or_else(|| root().join("target/vm/kernels"), |cache| cache.join("observer/kernels"))
}

/// Names of the packages that apt offers, the newest first.
fn offers(kernel: Kernel) -> Result<Vec<String>, String> {
    let mut command = Command::new("apt-cache");
    command.args(["search", "--names-only", &format!("^linux-image-{}\\.", kernel.version())]);
    let output = command.output().map_err(|error| {
        format!("could not start {}: {error}; kernels come from Debian's packages", shown(&command))
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} failed: {}", shown(&command), reason.trim()));
    }
    Ok(newest_first(kernel, &String::from_utf8_lossy(&output.stdout)))
}

/// Picks this kind of kernel out of what `apt-cache search` prints (`NAME - DESCRIPTION` lines). A
/// signed package goes before the unsigned one of the same version: it is the smaller.
fn newest_first(kernel: Kernel, list: &str) -> Vec<String> {
    let mut found: Vec<(Vec<u64>, bool, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(" - ").map(|(name, _)| name.trim()))
        .filter_map(|name| {
            let (release, signed) = release(kernel, name)?;
            Some((numbers(release), signed, name))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, _, name)| name.to_owned()).collect()
}

/// The release in a package's name and whether it is signed: `6.1.0-56` and true of
/// `linux-image-6.1.0-56-cloud-amd64`. `None`: it is a kernel of another kind.
fn release(kernel: Kernel, name: &str) -> Option<(&str, bool)> {
    let rest = name.strip_prefix("linux-image-")?;
    let (rest, signed) = rest.strip_suffix("-unsigned").map_or((rest, true), |rest| (rest, false));
    let release = rest.strip_suffix(&format!("-{}-amd64", kernel.flavour()))?;
    // "6.1" and a dot: neither the meta package of 6.1 nor a kernel of 6.12.
    release.strip_prefix(kernel.version())?.strip_prefix('.')?;
    Some((release, signed))
}

/// The numbers in a version, in their order: 6.1.0-9 is older than 6.1.0-10.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn refresh() {
    if is_root() {
        println!("    refreshing the lists of apt");
        // If it fails, no package is found afterwards, which is reported.
        let _ = Command::new("apt-get").args(["-q", "update"]).output();
    }
}

fn cached(cache: &Path, package: &str) -> Option<Image> {
    let directory = cache.join(package);
    let modules = modules::kept(&directory)?;
    let kernel = directory.join("vmlinuz");
    kernel.is_file().then(|| Image { package: package.to_owned(), kernel, modules })
}

fn kept(cache: &Path, kernel: Kernel) -> Option<Image> {
    let names: Vec<String> = fs::read_dir(cache)
        .ok()?
        .flatten()
        .map(|entry| format!("{} - ", entry.file_name().to_string_lossy()))
        .collect();
    newest_first(kernel, &names.join("\n")).iter().find_map(|package| cached(cache, package))
}

/// Downloads a package, keeps the files that a guest needs, and deletes the rest: some packages unpack
/// to half a gigabyte.
fn fetch(cache: &Path, package: &str) -> Result<Image, String> {
    println!("    downloading {package}");
    let work = root().join("target/vm/unpack").join(package);
    let _ = fs::remove_dir_all(&work);
    let result = unpack(&work, package).and_then(|tree| keep(cache, package, &tree));
    let _ = fs::remove_dir_all(&work);
    result
}

fn unpack(work: &Path, package: &str) -> Result<PathBuf, String> {
    let tree = work.join("tree");
    fs::create_dir_all(&tree)
        .map_err(|error| format!("cannot make {}: {error}", tree.display()))?;
    let mut download = Command::new("apt-get");
    // The user that apt downloads as by default may not write into this directory.
    download.args(["-q", "-o", "APT::Sandbox::User=root", "download", package]);
    captured(download.current_dir(work))?;
    let archive = fs::read_dir(work)
        .map_err(|error| format!("cannot read {}: {error}", work.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| format!("apt-get downloaded no file for {package}"))?;
    captured(Command::new("dpkg").arg("-x").arg(archive).arg(&tree))?;
    Ok(tree)
}

/// Runs a command whose output only matters when it fails.
fn captured(command: &mut Command) -> Result<(), String> {
    let output =
        command.output().map_err(|error| format!("could not start {}: {error}", shown(command)))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    let reason = reason.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(format!("{} failed: {reason}", shown(command)))
}

/// Moves the kernel and its modules to the cache; the directory appears there only when complete.
fn keep(cache: &Path, package: &str, tree: &Path) -> Result<Image, String> {
    let told = |error: std::io::Error| format!("cannot keep {package}: {error}");
    let kernel = fs::read_dir(tree.join("boot"))
        .map_err(told)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .ok_or_else(|| format!("{package} has no kernel in /boot"))?;
    let part = cache.join(format!("{package}.part"));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).map_err(told)?;
    fs::copy(kernel, part.join("vmlinuz")).map_err(told)?;
    modules::keep(tree, &part).map_err(|error| format!("{package}: {error}"))?;
    let directory = cache.join(package);
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).map_err(told)?;
    cached(cache, package).ok_or_else(|| format!("{package} was not kept completely"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `apt-cache search` prints it.
    const LIST: &str = "\
linux-image-6.1.0-9-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.1.0-10-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-10-cloud-amd64-unsigned - Linux 6.1 for x86-64 cloud
linux-image-6.1.0-10-cloud-amd64-dbg - Debug symbols for linux-image-6.1.0-10-cloud-amd64
linux-image-6.1.0-11-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-11-rt-amd64 - Linux 6.1 for 64-bit PCs, PREEMPT_RT (signed)
linux-image-6.12-cloud-amd64-dbg - Debugging symbols for Linux cloud-amd64 configuration
linux-image-6.12.9+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.107+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.107+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.74+deb12+1-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
";

    #[test]
    fn the_newest_kernel_of_a_kind_comes_first() {
        assert_eq!(
            newest_first(Kernel::V6_1, LIST),
            [
                "linux-image-6.1.0-10-cloud-amd64",
                "linux-image-6.1.0-10-cloud-amd64-unsigned",
                "linux-image-6.1.0-9-cloud-amd64-unsigned",
            ]
        );
        assert_eq!(newest_first(Kernel::V6_1Rt, LIST), ["linux-image-6.1.0-11-rt-amd64"]);
        assert_eq!(
            newest_first(Kernel::V6_12, LIST),
            [
                "linux-image-6.12.107+deb12-cloud-amd64",
                "linux-image-6.12.107+deb12-cloud-amd64-unsigned",
                "linux-image-6.12.74+deb12+1-cloud-amd64",
                "linux-image-6.12.9+deb12-cloud-amd64",
            ]
        );
        assert!(newest_first(Kernel::V6_12Rt, LIST).is_empty(), "there is none");
        assert!(newest_first(Kernel::V6_1, "").is_empty());
    }

    #[test]
    fn a_kernel_in_the_cache_is_used_if_it_is_complete() {
        let cache = tempfile::tempdir().expect("a directory");
        let package = "linux-image-6.1.0-10-cloud-amd64";
        let directory = cache.path().join(package);
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join("vmlinuz"), "kernel").expect("written");
        assert!(kept(cache.path(), Kernel::V6_1).is_none(), "it has no list of modules");
        modules::keep_none(&directory);
        let image = kept(cache.path(), Kernel::V6_1).expect("complete");
        assert_eq!((image.package.as_str(), image.modules.len()), (package, 0));
        assert!(kept(cache.path(), Kernel::V6_12).is_none());
    }
}
