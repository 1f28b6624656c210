//! Every number of observer that is held against one of the kernel's books: asserted here, and
//! written down, so that docs/EXACTNESS.md can be made from a run.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::OnceLock;

use observer::model::Summary;
use serde_json::{Map, Value, json};

use crate::{Result, disturbance, trial};

/// Names the file that results are appended to, one JSON object a line.
pub const RESULTS_FILE: &str = "OBSERVER_TEST_RESULTS";

/// What must hold between observer's number and the book's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They are the same.
    Equal,
    /// The book bounds the number from above.
    AtMost,
    /// The book bounds the number from below.
    AtLeast,
}

impl Relation {
    const fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::AtMost => "at_most",
            Self::AtLeast => "at_least",
        }
    }

    /// How far `observed` is from where it may be, as a part of the book.
    fn error(self, observed: u64, book: u64) -> f64 {
        let off = observed as f64 - book as f64;
        let off = match self {
            Self::Equal => off,
            Self::AtMost => off.max(0.0),
            Self::AtLeast => off.min(0.0),
        };
        if off == 0.0 { 0.0 } else { off / (book as f64).max(1.0) }
    }
}

/// One number against one book.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// What is compared: `minor`, `sum_ns`, ...
    pub metric: &'a str,
    /// The book: `/proc/PID/stat minflt`.
    pub against: &'a str,
    /// What must hold.
    pub relation: Relation,
    /// observer's number.
    pub observed: u64,
    /// The book's.
    pub book: u64,
    /// Part of the book that they may be apart.
    pub tolerance: f64,
    /// And so much more, where the book itself is late by a fixed amount.
    pub slack: u64,
}

/// The numbers of one probe in one run, to be held against the books.
#[derive(Clone, Debug)]
pub struct Held {
    test: String,
    probe: String,
    tier: String,
}

impl Held {
    /// The tier is what the run's coverage says.
    ///
    /// # Panics
    /// When the run has no such probe, or could not attach it: nothing can be compared then.
    #[must_use]
    pub fn new(test: &str, probe: &str, summary: &Summary) -> Self {
        let found = summary.probes.get(probe);
        let found = found.unwrap_or_else(|| panic!("no probe {probe} in {:?}", summary.probes));
        let tier = found.tier.clone();
        let tier = tier.unwrap_or_else(|| panic!("{test}: {probe} is not attached: {found:?}"));
        Self::of_tier(test, probe, &tier)
    }

    /// For runs that leave no summary.
    #[must_use]
    pub fn of_tier(test: &str, probe: &str, tier: &str) -> Self {
        Self { test: test.to_owned(), probe: probe.to_owned(), tier: tier.to_owned() }
    }

    /// Both are the same within `tolerance` of the book.
    ///
    /// # Panics
    /// When they are not, or the book is empty.
    #[track_caller]
    pub fn equal(&self, metric: &str, against: &str, observed: u64, book: u64, tolerance: f64) {
        let relation = Relation::Equal;
        self.check(&Comparison { metric, against, relation, observed, book, tolerance, slack: 0 });
    }

    /// The book bounds the number from above.
    ///
    /// # Panics
    /// When it does not, or the book is empty.
    #[track_caller]
    pub fn at_most(&self, metric: &str, against: &str, observed: u64, book: u64, tolerance: f64) {
        let relation = Relation::AtMost;
        self.check(&Comparison { metric, against, relation, observed, book, tolerance, slack: 0 });
    }

    /// The book bounds the number from below.
    ///
    /// # Panics
    /// When it does not, or the book is empty.
    #[track_caller]
    pub fn at_least(&self, metric: &str, against: &str, observed: u64, book: u64, tolerance: f64) {
        let relation = Relation::AtLeast;
        self.check(&Comparison { metric, against, relation, observed, book, tolerance, slack: 0 });
    }

    /// Both are the same, where the book is (in part) that of threads that ended: the kernel closes
    /// it before a thread leaves its last CPU, and what it waits after that is in observer's number
    /// alone. In a guest, whose CPUs stand still for up to 100 ms at a time, and with PREEMPT_RT,
    /// where many locks sleep that an exit takes, that may be as much as all before.
    ///
    /// # Panics
    /// When they are not, or the book is empty.
    #[track_caller]
    pub fn equal_to_ended(&self, metric: &str, against: &str, observed: u64, book: u64) {
        const TOLERANCE: f64 = 0.03;
        if trial::in_guest() {
            let tolerance = trial::between_clocks(TOLERANCE);
            self.at_least(metric, against, observed, book, tolerance);
        } else {
            self.equal(metric, against, observed, book, TOLERANCE);
        }
    }

    /// Writes the comparison down, then asserts it.
    ///
    /// # Panics
    /// When it does not hold, or the book is empty: then nothing was tested.
    #[track_caller]
    pub fn check(&self, comparison: &Comparison<'_>) {
        let (passed, error) = comparison.judge();
        let Comparison { metric, against, relation, observed, book, tolerance, slack } = comparison;
        let Self { test, probe, tier } = self;
        // Counts are exact, whatever the host does.
        let repeats = if metric.contains("sum_ns") { disturbance::repeats() } else { 0 };
        if !passed && metric.contains("sum_ns") {
            let failed =
                format!("{test}: {probe} ({tier}), {metric}: {observed}, {against} {book}");
            disturbance::repeat_if_disturbed(&failed);
        }
        println!(
            "{probe} ({tier}) {metric}: observer {observed}, {against} {book} ({:+.3} %, {}, \
             allowed {:.1} % + {slack})",
            error * 100.0,
            relation.name(),
            tolerance * 100.0
        );
        write_down(&json!({
            "kernel": kernel(), "test": test, "probe": probe, "tier": tier, "metric": metric,
            "against": against, "relation": relation.name(), "observed": observed, "book": book,
            "error": error, "tolerance": tolerance, "slack": slack, "passed": passed,
            "repeated": repeats,
        }));
        assert!(
            passed,
            "{test}: {probe} ({tier}), {metric}: observer has {observed}, {against} {book}: {:+.2} %, \
             allowed are {:.1} % + {slack} ({})",
            error * 100.0,
            tolerance * 100.0,
            relation.name()
        );
    }
}

impl Comparison<'_> {
    /// Whether it holds, and the error as a part of the book.
    fn judge(&self) -> (bool, f64) {
        let error = self.relation.error(self.observed, self.book);
        let allowed = self.tolerance * self.book as f64 + self.slack as f64;
        let off = (error * (self.book as f64).max(1.0)).abs();
        (self.book > 0 && off <= allowed, error)
    }
}

/// Writes down that a test, or one comparison of it, has nothing to run on here, and why.
pub fn not_applicable(test: &str, probe: &str, metric: &str, reason: &str) {
    println!("{test}: {probe} {metric}: not here: {reason}");
    write_down(&json!({
        "kernel": kernel(), "test": test, "probe": probe, "metric": metric,
        "not_applicable": reason,
    }));
}

/// Writes down what a trap did that is no comparison of numbers (it is asserted where it is seen).
pub fn case_held(test: &str, probe: &str, what: &str) {
    println!("{test}: {probe}: {what}");
    write_down(&json!({
        "kernel": kernel(), "test": test, "probe": probe, "case": what, "passed": true,
    }));
}

/// Release of the running kernel.
fn kernel() -> &'static str {
    static RELEASE: OnceLock<String> = OnceLock::new();
    RELEASE.get_or_init(|| rustix::system::uname().release().to_string_lossy().into_owned())
}

fn write_down(result: &Value) {
    let Some(path) = std::env::var_os(RESULTS_FILE) else { return };
    // One write of a whole line: test programs may append to the same file at once.
    let line = format!("{result}\n");
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        panic!("cannot write a result to {}: {error}", path.display());
    }
}

/// Reads a file of results; a line that is no object is an error.
///
/// # Errors
/// When the file is unreadable or damaged.
pub fn read(path: &std::path::Path) -> Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.lines()
        .map(|line| {
            serde_json::from_str(line)
                .map_err(|error| format!("{}: {error}: {line:?}", path.display()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(relation: Relation, observed: u64, book: u64, tolerance: f64, slack: u64) -> bool {
        let comparison =
            Comparison { metric: "m", against: "b", relation, observed, book, tolerance, slack };
        comparison.judge().0
    }

    #[test]
    fn relations_bound_the_side_they_say() {
        assert!(judge(Relation::Equal, 98, 100, 0.021, 0));
        assert!(!judge(Relation::Equal, 97, 100, 0.021, 0));
        assert!(!judge(Relation::Equal, 103, 100, 0.021, 0));
        assert!(judge(Relation::Equal, 103, 100, 0.021, 1));
        assert!(judge(Relation::AtMost, 3, 100, 0.0, 0));
        assert!(!judge(Relation::AtMost, 101, 100, 0.0, 0));
        assert!(judge(Relation::AtLeast, 500, 100, 0.0, 0));
        assert!(!judge(Relation::AtLeast, 98, 100, 0.01, 0));
    }

    #[test]
    fn nothing_agrees_with_empty_books() {
        assert!(!judge(Relation::Equal, 0, 0, 0.5, 10));
        assert!(!judge(Relation::AtLeast, 5, 0, 0.5, 0));
    }
}
