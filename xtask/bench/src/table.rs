//! Pieces of the benchmark's tables, as Markdown.

use std::{fmt::Write, fs};

use super::statistics::Estimate;

/// A table under construction.
pub(crate) struct Table {
    text: String,
}

impl Table {
    /// Numbers stand to the right; the first column does not.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut text = format!("| {} |\n| --- |", columns.join(" | "));
        text.push_str(&" ---: |".repeat(columns.len() - 1));
        text.push('\n');
        Self { text }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// A cell without a measurement.
pub(crate) const NONE: &str = "–";

/// Nanoseconds more, with the interval.
pub(crate) fn added(estimate: Estimate) -> String {
    format!("{:+.0} ({:.0}..{:.0})", estimate.value, estimate.low, estimate.high)
}

/// A number with so many digits behind the point, and the interval.
pub(crate) fn with_interval(estimate: Estimate, digits: usize) -> String {
    let Estimate { value, low, high } = estimate;
    format!("{value:.digits$} ({low:.digits$}..{high:.digits$})")
}

/// A ratio, with the interval.
pub(crate) fn ratio(estimate: Estimate) -> String {
    with_interval(estimate, 2)
}

/// A change relative to 1, in percent, with the interval.
pub(crate) fn percent_change(estimate: Estimate) -> String {
    let percent = |value: f64| (value - 1.0) * 100.0;
    format!(
        "{:+.1} % ({:+.1}..{:+.1})",
        percent(estimate.value),
        percent(estimate.low),
        percent(estimate.high)
    )
}

/// Whether a goal was met: an interval that holds the limit decides nothing.
pub(crate) fn judge(low: f64, high: f64, limit: f64) -> &'static str {
    if high <= limit {
        "yes"
    } else if low > limit {
        "no"
    } else {
        "not sure"
    }
}

/// One line about this machine.
pub(crate) fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model = models
        .first()
        .map_or("unknown processor", |line| line.trim_start_matches([' ', '\t', ':']));
    format!("Linux {}, {} × {model}", kernel.trim(), models.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_missed_or_undecided() {
        assert_eq!(judge(80.0, 100.0, 100.0), "yes");
        assert_eq!(judge(80.0, 120.0, 100.0), "not sure");
        assert_eq!(judge(101.0, 120.0, 100.0), "no");
    }

    #[test]
    fn cells() {
        let mut table = Table::new(&["a", "b"]);
        let estimate = Estimate { value: 1.25, low: 0.996, high: 1.5 };
        table.row(&[ratio(estimate), percent_change(estimate)]);
        assert_eq!(
            table.finish(),
            "| a | b |\n| --- | ---: |\n| 1.25 (1.00..1.50) | +25.0 % (-0.4..+50.0) |\n"
        );
    }
}
