//! The tiers of each probe, side by side on one kernel or several.

use std::{collections::BTreeMap, path::Path, process::Command};

use super::{
    rows::{Row, Rows},
    statistics::{estimate, median},
    table::{self, Table},
};

/// Measures every tier on this host.
pub(crate) fn measure(
    program: &Path,
    cpu: usize,
    rounds: u32,
    rows: &mut Rows,
) -> Result<(), String> {
    let output = Command::new(program)
        .args(["--cpu", &cpu.to_string(), "--rounds", &rounds.to_string()])
        .output()
        .map_err(|error| format!("bench-tiers: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        rows.push(serde_json::from_str(line).map_err(|error| format!("bench-tiers: {error}"))?)?;
    }
    Ok(())
}

/// Kernel, probe and operation.
type Place<'rows> = (&'rows str, &'rows str, &'rows str);

/// The table, or nothing if no tier was measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut added: BTreeMap<Place<'_>, Vec<(&str, Vec<f64>)>> = BTreeMap::new();
    let mut bare: BTreeMap<Place<'_>, Vec<f64>> = BTreeMap::new();
    let mut missing: BTreeMap<(&str, &str, &str), &str> = BTreeMap::new();
    for row in rows.iter() {
        match row {
            Row::Tier { kernel, probe, tier, operation, bare_ns, with_ns } => {
                let place = (kernel.as_str(), probe.as_str(), operation.as_str());
                bare.entry(place).or_default().push(*bare_ns);
                let tiers = added.entry(place).or_default();
                let index = tiers.iter().position(|(name, _)| name == tier).unwrap_or_else(|| {
                    tiers.push((tier, Vec::new()));
                    tiers.len() - 1
                });
                tiers[index].1.push(with_ns - bare_ns);
            }
            Row::NoTier { kernel, probe, tier, reason } => {
                missing.insert((kernel, probe, tier), reason);
            }
            _ => {}
        }
    }
    if added.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "kernel",
        "probe",
        "operation",
        "bare, ns",
        "tier",
        "added, ns",
        "% of bare",
        "of the probe's best",
    ]);
    for (place @ (kernel, probe, operation), tiers) in &added {
        let best = tiers.iter().map(|(_, added)| median(added)).fold(f64::INFINITY, f64::min);
        for (tier, added) in tiers {
            let added = estimate(added);
            let bare = median(&bare[place]);
            table.row(&[
                (*kernel).to_owned(),
                (*probe).to_owned(),
                (*operation).to_owned(),
                format!("{bare:.0}"),
                format!("`{tier}`"),
                table::added(added),
                format!("{:+.0}", added.value / bare * 100.0),
                if best > bare / 100.0 {
                    format!("{:.1}", added.value / best)
                } else {
                    // Almost nothing: a ratio to it means nothing.
                    table::NONE.to_owned()
                },
            ]);
        }
    }
    let mut page = format!(
        "\n### Tiers\n\nIn guests a nanosecond is an instruction: their clocks count them.\n\n{}",
        table.finish()
    );
    if !missing.is_empty() {
        page.push_str("\nNot available:\n\n");
    }
    for ((kernel, probe, tier), reason) in missing {
        page.push_str(&format!("- {kernel}: `{probe}` by `{tier}`: {reason}\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_compared_with_the_best_of_their_kernel() {
        let mut rows = Rows::default();
        for (tier, with_ns) in [("tp_btf", 1100.0), ("raw_tracepoint", 1150.0)] {
            rows.push(Row::Tier {
                kernel: "6.1".to_owned(),
                probe: "runqueue".to_owned(),
                tier: tier.to_owned(),
                operation: "switch".to_owned(),
                bare_ns: 1000.0,
                with_ns,
            })
            .unwrap();
        }
        rows.push(Row::NoTier {
            kernel: "6.1".to_owned(),
            probe: "fault".to_owned(),
            tier: "fentry".to_owned(),
            reason: "refused".to_owned(),
        })
        .unwrap();
        let page = markdown(&rows);
        let row =
            "| 6.1 | runqueue | switch | 1000 | `raw_tracepoint` | +150 (150..150) | +15 | 1.5 |";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("- 6.1: `fault` by `fentry`: refused"), "{page}");
        assert_eq!(markdown(&Rows::default()), "");
    }
}
