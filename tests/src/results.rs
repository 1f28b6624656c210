//! Every number of observer that is compared with a kernel counter: asserted here, and recorded, so
//! that docs/EXACTNESS.md can be generated from a run.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::OnceLock;

use observer::model::Summary;
use serde_json::{Map, Value, json};

use crate::{Result, disturbance, trial, watch};

/// Names the file that results are appended to, one JSON object a line.
pub const RESULTS_FILE: &str = "OBSERVER_TEST_RESULTS";

/// Losses of the target that say what the kernel left out.
const LEFT_OUT: [&str; 2] = ["switch_missed", "program_missed"];

/// The relation that must hold between observer's number and the kernel counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both are equal.
    Equal,
    /// The kernel counter is an upper bound of the number.
    AtMost,
    /// The kernel counter is a lower bound of the number.
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

    /// How far `observed` is from its allowed range, relative to the kernel counter.
    fn error(self, observed: u64, expected: u64) -> f64 {
        let off = observed as f64 - expected as f64;
        let off = match self {
            Self::Equal => off,
            Self::AtMost => off.max(0.0),
            Self::AtLeast => off.min(0.0),
        };
        if off == 0.0 { 0.0 } else { off / (expected as f64).max(1.0) }
    }
}

/// One number of observer and the kernel counter it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// What is compared: `minor`, `sum_ns`, ...
    pub metric: &'a str,
    /// The name of the kernel counter: `/proc/PID/stat minflt`.
    pub against: &'a str,
    /// What must hold.
    pub relation: Relation,
    /// observer's number.
    pub observed: u64,
    /// The kernel counter's value.
    pub expected: u64,
    /// Allowed difference, relative to the kernel counter.
    pub tolerance: f64,
    /// Additional allowed difference, if the kernel counter itself lags by a fixed amount.
    pub slack: u64,
}

/// The numbers of one probe in one run, for comparison with the kernel counters.
#[derive(Clone, Debug)]
pub struct Held {
    test: String,
    probe: String,
    tier: String,
    /// What the kernel left out in this run and chance decides: switches without an event, and skipped programs.
    left_out: u64,
    /// With PREEMPT_RT, how many events may be missing because a program was preempted, as observer says.
    skipped: u64,
}

/// With PREEMPT_RT, no more than this part of the events may be missing.
const SKIPPED_MAX: f64 = 0.02;

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
        let lost = summary.loss.of_target();
        let left_out = LEFT_OUT.iter().filter_map(|kind| lost.get(*kind)).sum();
        let skipped = watch::left_out_by_real_time(&lost);
        Self { left_out, skipped, ..Self::of_tier(test, probe, &tier) }
    }

    /// Of numbers that are compared with those of another run, in which something may be missing as well.
    #[must_use]
    pub(crate) fn beside(self, other: &Self) -> Self {
        let left_out = self.left_out + other.left_out;
        Self { left_out, skipped: self.skipped + other.skipped, ..self }
    }

    /// For runs that leave no summary.
    #[must_use]
    pub fn of_tier(test: &str, probe: &str, tier: &str) -> Self {
        let [test, probe, tier] = [test, probe, tier].map(str::to_owned);
        Self { test, probe, tier, left_out: 0, skipped: 0 }
    }

    /// Observer's number and the kernel counter have this relation within the tolerance, relative to
    /// the kernel counter, and an additional allowed difference.
    ///
    /// # Panics
    /// When they have not, or the kernel counter is 0.
    #[track_caller]
    pub fn compare(
        &self,
        relation: Relation,
        metric: &str,
        against: &str,
        (observed, expected): (u64, u64),
        (tolerance, slack): (f64, u64),
    ) {
        self.check(&Comparison { metric, against, relation, observed, expected, tolerance, slack });
    }

    /// Both are equal within `tolerance`, relative to the kernel counter.
    ///
    /// # Panics
    /// When they are not, or the kernel counter is 0.
    #[track_caller]
    pub fn equal(&self, metric: &str, against: &str, observed: u64, expected: u64, tolerance: f64) {
        self.compare(Relation::Equal, metric, against, (observed, expected), (tolerance, 0));
    }

    /// The kernel counter is an upper bound of the number.
    ///
    /// # Panics
    /// When it is not, or the kernel counter is 0.
    #[track_caller]
    pub fn at_most(
        &self,
        metric: &str,
        against: &str,
        observed: u64,
        expected: u64,
        tolerance: f64,
    ) {
        self.compare(Relation::AtMost, metric, against, (observed, expected), (tolerance, 0));
    }

    /// The kernel counter is a lower bound of the number.
    ///
    /// # Panics
    /// When it is not, or the kernel counter is 0.
    #[track_caller]
    pub fn at_least(
        &self,
        metric: &str,
        against: &str,
        observed: u64,
        expected: u64,
        tolerance: f64,
    ) {
        self.compare(Relation::AtLeast, metric, against, (observed, expected), (tolerance, 0));
    }

    /// Both are equal, where the kernel counter is (in part) that of threads that ended: the kernel
    /// reads it before a thread leaves its last CPU, and waits after that are only in observer's
    /// number. In a guest, whose CPUs stand still for up to 100 ms at a time, and with PREEMPT_RT,
    /// where many locks sleep that an exit takes, these waits may be as long as all earlier ones.
    ///
    /// # Panics
    /// When they are not, or the kernel counter is 0.
    #[track_caller]
    pub fn equal_to_ended(&self, metric: &str, against: &str, observed: u64, expected: u64) {
        const TOLERANCE: f64 = 0.03;
        if trial::in_guest() {
            let tolerance = trial::between_clocks(TOLERANCE);
            self.at_least(metric, against, observed, expected, tolerance);
        } else {
            self.equal(metric, against, observed, expected, TOLERANCE);
        }
    }

    /// Records the comparison, then asserts it.
    ///
    /// # Panics
    /// When it does not hold, or the kernel counter is 0: then nothing was tested.
    #[track_caller]
    pub fn check(&self, comparison: &Comparison<'_>) {
        let mut comparison = *comparison;
        if !is_time(comparison.metric) {
            let most = (comparison.expected as f64 * SKIPPED_MAX) as u64;
            comparison.slack += self.skipped.min(most);
        }
        let (passed, error) = comparison.judge();
        let Comparison { metric, against, relation, observed, expected, tolerance, slack } =
            comparison;
        let Self { test, probe, tier, left_out, .. } = self;
        // Counts are exact, whatever the host does.
        let is_repeated = is_time(metric) || *left_out > 0;
        let repeats = if is_repeated { disturbance::repeats() } else { 0 };
        if !passed {
            let failed =
                format!("{test}: {probe} ({tier}), {metric}: {observed}, {against} {expected}");
            if is_time(metric) {
                disturbance::repeat_if_disturbed(&failed);
            }
            if *left_out > 0 {
                disturbance::repeat(&format!("{failed}; the kernel left out {left_out}"));
            }
        }
        println!(
            "{probe} ({tier}) {metric}: observer {observed}, {against} {expected} ({:+.3} %, {}, \
             allowed {:.1} % + {slack})",
            error * 100.0,
            relation.name(),
            tolerance * 100.0
        );
        write_down(&json!({
            "kernel": kernel(), "test": test, "probe": probe, "tier": tier, "metric": metric,
            "against": against, "relation": relation.name(), "observed": observed, "book": expected,
            "error": error, "tolerance": tolerance, "slack": slack, "passed": passed,
            "repeated": repeats,
        }));
        assert!(
            passed,
            "{test}: {probe} ({tier}), {metric}: observer has {observed}, {against} {expected}: {:+.2} %, \
             allowed are {:.1} % + {slack} ({})",
            error * 100.0,
            tolerance * 100.0,
            relation.name()
        );
    }
}

impl Comparison<'_> {
    /// Whether it holds, and the error relative to the kernel counter.
    fn judge(&self) -> (bool, f64) {
        let error = self.relation.error(self.observed, self.expected);
        let allowed = self.tolerance * self.expected as f64 + self.slack as f64;
        let off = (error * (self.expected as f64).max(1.0)).abs();
        (self.expected > 0 && off <= allowed, error)
    }
}

/// Records that a test, or one of its comparisons, cannot run here, and why.
pub fn not_applicable(test: &str, probe: &str, metric: &str, reason: &str) {
    println!("{test}: {probe} {metric}: not here: {reason}");
    write_down(&json!({
        "kernel": kernel(), "test": test, "probe": probe, "metric": metric,
        "not_applicable": reason,
    }));
}

/// Records what a test checked without comparing numbers (the test asserts it itself).
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

/// Whether a metric is a time, which a busy host changes, and not a count.
fn is_time(metric: &str) -> bool {
    metric.contains("_ns") || metric.starts_with("all time") || metric.starts_with("ran_instead")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(relation: Relation, observed: u64, expected: u64, tolerance: f64, slack: u64) -> bool {
        let comparison = Comparison {
            metric: "m",
            against: "b",
            relation,
            observed,
            expected,
            tolerance,
            slack,
        };
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
    fn times_are_told_from_counts() {
        let times =
            ["sum_ns", "block_io sum_ns", "other_ns, and unknown", "ran_instead, own", "all time"];
        assert!(times.into_iter().all(is_time));
        let counts = ["count", "timer", "lifetimes + losses", "mmap", "live", "bytes_in"];
        assert!(!counts.into_iter().any(is_time));
    }

    #[test]
    fn nothing_agrees_with_empty_counters() {
        assert!(!judge(Relation::Equal, 0, 0, 0.5, 10));
        assert!(!judge(Relation::AtLeast, 5, 0, 0.5, 0));
    }
}
