//! docs/PROBES.md, from the table.

use std::fmt::Write;

use super::{PROBES, Probe};

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
         that several probes name exists once.\n\n| probe | what it watches | causes | floor |\n| \
         --- | --- | --- | --- |\n",
    );
    for probe in PROBES {
        let causes: Vec<String> =
            probe.causes.iter().map(|cause| format!("`{}`", cause.name())).collect();
        let causes = if causes.is_empty() { "–".to_owned() } else { causes.join(", ") };
        let _ = writeln!(
            page,
            "| [`{0}`](#{0}) | {1} | {causes} | {2} |",
            probe.name,
            probe.about,
            floor(probe.floor_ns)
        );
    }
    for probe in PROBES {
        describe(&mut page, probe);
    }
    page
}

fn floor(floor_ns: u64) -> String {
    if floor_ns == 0 { "none".to_owned() } else { format!("{} µs", floor_ns / 1000) }
}

fn describe(page: &mut String, probe: &Probe) {
    let _ = write!(page, "\n## {}\n\n{}\n\n{}\n", probe.name, probe.about, probe.notes);
    for (index, tier) in probe.tiers.iter().enumerate() {
        let _ = write!(
            page,
            "\n{}. `{}`: {}\n\n| program | kind | hook | gives |\n| --- | --- | --- | --- |\n",
            index + 1,
            tier.name,
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
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROBES.md");
        let page = super::probes_markdown();
        if std::env::var_os("OBSERVER_UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(committed, page, "run `cargo xtask docs` to rewrite it");
    }
}
