//! docs/PROBES.md and docs/CAUSES.md, from the tables.

use std::fmt::Write;

use super::{PROBES, Probe};
use crate::model::{CAUSES, CauseKind};

/// The page, as Markdown.
#[must_use]
pub fn probes_markdown() -> String {
    let mut page = String::from(
        "# Probes\n\n<!-- Generated from the table in observer/src/probe; `cargo xtask docs` rewrites \
         it. -->\n\nEvery probe feeds in-kernel histograms with all events of all tasks, by cgroup \
         (docs/METRICS.md). Stalls of the target that are longer than the floor are also sent as \
         records, for the attribution and the trace (docs/TRACE_FORMAT.md). Of a probe's tiers the \
         first that the running kernel offers is taken; `observer doctor` shows which, and `--tier \
         PROBE=NAME` forces one. A program \
         that several probes name exists once. A tier's cost is `low` (rare events, or events that \
         take far longer than a program), `medium` (frequent events, tens of nanoseconds each) or \
         `high` (a hundred nanoseconds and more each, or a tax on every system call of the host); \
         docs/OVERHEAD.md has the measurements, and `--budget` bounds the sum.\n\n| probe | what it watches | causes | floor |\n| \
         --- | --- | --- | --- |\n",
    );
    for probe in PROBES {
        let causes: Vec<String> =
            probe.causes().map(|cause| format!("`{}`", cause.name())).collect();
        let causes = if causes.is_empty() { "–".to_owned() } else { causes.join(", ") };
        let _ = writeln!(
            page,
            "| [`{0}`](#{0}) | {1} | {causes} | {2} |",
            probe.name,
            probe.about,
            floors(probe)
        );
    }
    for probe in PROBES {
        describe(&mut page, probe);
    }
    page
}

/// The page about causes, as Markdown.
#[must_use]
pub fn causes_markdown() -> String {
    let mut page = String::from(
        "# Causes\n\n<!-- Generated from the table in observer/src/model/cause.rs; `cargo xtask \
         docs` rewrites it. -->\n\nThe latency of the slow requests is split into these causes. \
         A *stall* is an interval in which a thread of the target had work and could not continue; \
         where stalls of one thread overlap, each instant belongs to the one that began last, so \
         that nothing is counted twice.\n",
    );
    for info in CAUSES {
        let kind = match info.kind {
            CauseKind::Stall => "stall",
            CauseKind::OwnWork => "the service's own work",
            CauseKind::Outside => "outside the service",
            CauseKind::Rest => "the rest",
        };
        let probe = info.probe.map_or_else(String::new, |probe| {
            format!(", seen by the probe [`{probe}`](PROBES.md#{probe})")
        });
        let _ = write!(
            page,
            "\n## {}\n\n{} ({kind}{probe}). Requests were slow because {}.\n\nWhat to do: {}\n",
            info.id, info.title, info.sentence, info.advice
        );
    }
    page
}

/// Floors of the kinds of record that have a length, and are not sums of what is below the floor of
/// another one; all of the others are sent.
fn floors(probe: &Probe) -> String {
    let single = probe.records.iter().filter(|row| row.sums.is_none());
    let mut floors: Vec<u64> = single.filter_map(|row| row.floor_ns).collect();
    floors.dedup();
    let words = |floor_ns: &u64| match floor_ns {
        0 => "none".to_owned(),
        floor_ns => format!("{} µs", floor_ns / 1000),
    };
    if floors.is_empty() {
        return words(&0);
    }
    floors.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn describe(page: &mut String, probe: &Probe) {
    let _ = write!(page, "\n## {}\n\n{}\n\n{}\n", probe.name, probe.about, probe.notes);
    if let Some(why) = probe.off_by_default {
        let _ = write!(
            page,
            "\nIt is off by default, because {why}. `--probes all` turns it on, or `--probes \
             default,{}`.\n",
            probe.name
        );
    }
    for (index, tier) in probe.tiers.iter().enumerate() {
        let _ = write!(
            page,
            "\n{}. `{}` ({} cost, at every {}): {}\n\n| program | kind | hook | gives |\n| --- | --- | --- | --- |\n",
            index + 1,
            tier.name,
            probe.cost_class(tier).name(),
            probe.runs_at(tier),
            tier.about
        );
        for program in tier.programs {
            let _ = writeln!(
                page,
                "| `{}` | {} | `{}` | {} |",
                program.name,
                program.attach.kind(),
                program.attach.hook(),
                program.gives
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn docs_probes_is_current() {
        current(
            concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROBES.md"),
            &super::probes_markdown(),
        );
    }

    #[test]
    fn docs_causes_is_current() {
        current(
            concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CAUSES.md"),
            &super::causes_markdown(),
        );
    }

    fn current(path: &str, page: &str) {
        if std::env::var_os("OBSERVER_UPDATE_DOCS").is_some() {
            std::fs::write(path, page).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, page, "run `cargo xtask docs` to rewrite it");
    }
}
