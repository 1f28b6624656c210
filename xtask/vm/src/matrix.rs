//! The results of all kernels by probe and tier, from the lines that the tests wrote.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;
use xtask_common::counts::Counts;

/// The results of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Its name on the command line: `6.1-rt`, `host`.
    pub(crate) name: String,
    pub(crate) state: State,
}

#[derive(Clone, Debug)]
pub(crate) enum State {
    /// Its tests ran.
    Ran {
        /// From uname.
        release: String,
        counts: Counts,
        /// Errors other than failed tests.
        faults: Vec<String>,
        results: Vec<Value>,
        seconds: f64,
    },
    /// Why the kernel is not available.
    NotAvailable(String),
}

/// Comparisons of one probe by one tier on one kernel.
#[derive(Debug, Default, PartialEq)]
struct Cell {
    checks: u64,
    passed: u64,
    /// The error that is the largest part of its tolerance, and that tolerance.
    worst: Option<(f64, f64)>,
}

impl Cell {
    fn add(&mut self, result: &Value) {
        self.checks += 1;
        self.passed += u64::from(result["passed"] == true);
        let number = |key: &str| result[key].as_f64();
        let (Some(error), Some(tolerance)) = (number("error"), number("tolerance")) else {
            return;
        };
        // The part of the tolerance in events or nanoseconds, relative to the kernel's number.
        let slack = number("slack").unwrap_or(0.0) / number("book").unwrap_or(0.0).max(1.0);
        let tolerance = tolerance + slack;
        let part = |(error, tolerance): (f64, f64)| error.abs() / tolerance.max(1e-9);
        if self.worst.is_none_or(|worst| part((error, tolerance)) > part(worst)) {
            self.worst = Some((error, tolerance));
        }
    }
}

/// Keyed by probe and tier.
fn cells(results: &[Value]) -> BTreeMap<(String, String), Cell> {
    let mut cells: BTreeMap<_, Cell> = BTreeMap::new();
    // A line about something that was not compared has no tier.
    for result in results.iter().filter(|result| result["tier"].is_string()) {
        let text = |key: &str| result[key].as_str().unwrap_or("?").to_owned();
        cells.entry((text("probe"), text("tier"))).or_default().add(result);
    }
    cells
}

/// Whether nothing failed and every kernel was available, or may be missing.
pub(crate) fn good(columns: &[Column], allow_missing: bool) -> bool {
    columns.iter().all(|column| match &column.state {
        State::Ran { counts, faults, .. } => counts.failed == 0 && faults.is_empty(),
        State::NotAvailable(_) => allow_missing,
    })
}

/// The sum of all kernels' tests; a kernel that is not available counts as a failure, and so does
/// each fault.
pub(crate) fn counts(columns: &[Column], allow_missing: bool) -> Counts {
    let mut sum = Counts::default();
    for column in columns {
        match &column.state {
            State::Ran { counts, faults, .. } => {
                sum.passed += counts.passed;
                sum.failed += counts.failed + faults.len() as u64;
            }
            State::NotAvailable(_) => sum.failed += u64::from(!allow_missing),
        }
    }
    sum
}

/// Prints two tables: the comparisons, and the tests of each kernel.
pub(crate) fn print(columns: &[Column]) {
    println!("\n{}\n\n{}", comparisons(columns), kernels(columns));
}

/// Prints errors other than failed tests.
pub(crate) fn print_faults(columns: &[Column]) {
    for column in columns {
        if let State::Ran { faults, .. } = &column.state {
            for fault in faults {
                println!("{}: {fault}", column.name);
            }
        }
    }
}

fn table(header: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    for column in table.column_iter_mut().skip(numbers_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn percent(part: f64, signed: bool) -> String {
    let value = part * 100.0;
    if signed { format!("{value:+.2} %") } else { format!("{value:.1} %") }
}

fn comparisons(columns: &[Column]) -> Table {
    let header = ["kernel", "probe", "tier", "compared", "passed", "worst error", "allowed"];
    let mut table = table(&header, 3);
    for column in columns {
        let State::Ran { results, .. } = &column.state else {
            table.add_row([column.name.as_str(), "not available"]);
            continue;
        };
        let cells = cells(results);
        if cells.is_empty() {
            table.add_row([column.name.as_str(), "nothing compared"]);
        }
        for ((probe, tier), cell) in cells {
            let (error, allowed) = cell.worst.map_or_else(Default::default, |worst| {
                (percent(worst.0, true), percent(worst.1, false))
            });
            let (checks, passed) = (cell.checks.to_string(), cell.passed.to_string());
            table.add_row([column.name.clone(), probe, tier, checks, passed, error, allowed]);
        }
    }
    table
}

fn kernels(columns: &[Column]) -> Table {
    let mut table = table(&["kernel", "release", "tests passed", "failed", "seconds"], 2);
    for column in columns {
        match &column.state {
            State::Ran { release, counts, faults, seconds, .. } => {
                let failed = (counts.failed + faults.len() as u64).to_string();
                let seconds = format!("{seconds:.0}");
                let passed = counts.passed.to_string();
                table.add_row([column.name.clone(), release.clone(), passed, failed, seconds]);
            }
            State::NotAvailable(reason) => {
                table.add_row([column.name.clone(), format!("not available: {reason}")]);
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(probe: &str, tier: &str, error: f64, passed: bool) -> Value {
        json!({"kernel": "6.1.0", "test": "t", "probe": probe, "tier": tier, "metric": "count",
            "observed": 1, "book": 1, "error": error, "tolerance": 0.02, "passed": passed})
    }

    fn ran(failed: u64, faults: &[&str], results: Vec<Value>) -> Column {
        let state = State::Ran {
            release: "6.1.0-56-cloud-amd64".into(),
            counts: Counts { passed: 7, failed },
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
            results,
            seconds: 61.4,
        };
        Column { name: "6.1".into(), state }
    }

    #[test]
    fn comparisons_are_grouped_by_probe_and_tier_with_the_worst_of_each() {
        let results = vec![
            result("runqueue", "tp_btf", 0.001, true),
            result("runqueue", "tp_btf", -0.015, true),
            result("runqueue", "fentry", 0.03, false),
            result("fault", "perf_event", 0.0, true),
        ];
        let column = ran(1, &[], results);
        let lines: Vec<_> = comparisons(&[column])
            .to_string()
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
            .skip(2)
            .collect();
        assert_eq!(
            lines,
            [
                "|6.1|fault|perf_event|1|1|+0.00 %|2.0 %|",
                "|6.1|runqueue|fentry|1|0|+3.00 %|2.0 %|",
                "|6.1|runqueue|tp_btf|2|2|-1.50 %|2.0 %|",
            ]
        );
    }

    #[test]
    fn a_kernel_that_is_not_available_is_shown_and_fails_unless_allowed() {
        let missing =
            || Column { name: "6.1-rt".into(), state: State::NotAvailable("no network".into()) };
        let columns = [ran(0, &[], Vec::new()), missing()];
        assert!(!good(&columns, false) && good(&columns, true));
        assert_eq!(counts(&columns, false), Counts { passed: 7, failed: 1 });
        assert_eq!(counts(&columns, true), Counts { passed: 7, failed: 0 });
        let text = kernels(&columns).to_string();
        assert!(text.contains("not available: no network"), "{text}");
        assert!(comparisons(&columns).to_string().contains("6.1-rt"));
    }

    #[test]
    fn a_fault_is_a_failure() {
        assert!(good(&[ran(0, &[], Vec::new())], false));
        assert!(!good(&[ran(1, &[], Vec::new())], false));
        let faulty = [ran(0, &["the kernel reports"], Vec::new())];
        assert!(!good(&faulty, true));
        assert_eq!(counts(&faulty, true), Counts { passed: 7, failed: 1 });
    }
}
