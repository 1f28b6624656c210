//! What a series of drills adds up to: tables for the terminal, and JSON for programs.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::judge::{Drill, Finding, Status};
use super::rows::INJECTIONS;

/// Version of the JSON. Keys may be added within a version, never renamed.
pub const DRILL_SCHEMA: u32 = 1;

/// All drills of a series.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`DRILL_SCHEMA`].
    pub schema: u32,
    /// The first seed.
    pub seed: u64,
    /// How many drills ended in which way.
    pub counts: BTreeMap<&'static str, u64>,
    /// How many drills named what, by injection. Only drills that were judged.
    pub confusion: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// The drills, in the order in which they were played.
    pub drills: Vec<Drill>,
}

impl Report {
    /// Adds them up.
    #[must_use]
    pub fn new(seed: u64, drills: Vec<Drill>) -> Self {
        let mut counts = BTreeMap::new();
        let all = [Status::Right, Status::Missed, Status::TooWeak, Status::Skipped, Status::Failed];
        for status in all {
            let of = drills.iter().filter(|drill| drill.status == status).count();
            counts.insert(key(status), of as u64);
        }
        let mut confusion: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
        for (drill, finding) in judged(&drills) {
            let named = confusion.entry(drill.injection).or_default();
            *named.entry(finding.named).or_default() += 1;
        }
        Self { schema: DRILL_SCHEMA, seed, counts, confusion, drills }
    }

    /// Drills of this status.
    #[must_use]
    pub fn count(&self, status: Status) -> u64 {
        self.counts.get(key(status)).copied().unwrap_or(0)
    }

    /// Every drill that counts was right, and at least one counts.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.count(Status::Right) > 0
            && self.count(Status::Missed) == 0
            && self.count(Status::Failed) == 0
    }

    /// One line with the counts.
    #[must_use]
    pub fn headline(&self) -> String {
        let mut parts = vec![format!("{} right", self.count(Status::Right))];
        for status in [Status::Missed, Status::TooWeak, Status::Failed, Status::Skipped] {
            if self.count(status) > 0 {
                parts.push(format!("{} {}", self.count(status), status.name()));
            }
        }
        parts.join(", ")
    }

    /// The tables for the terminal.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut text = String::new();
        if !self.confusion.is_empty() {
            text += "What was injected, and what observer named (drills that count)\n\n";
            text += &self.confusion_table();
            text += "\nErrors (drills that count)\n\n";
            text += &self.error_table();
            text.push('\n');
        }
        for drill in &self.drills {
            if let Some(reason) = &drill.reason {
                text += &format!("{}: {}: {reason}\n", drill.status.name(), title(drill));
            }
        }
        text += &format!("{}\n", self.headline());
        text
    }

    fn confusion_table(&self) -> String {
        let columns: BTreeSet<&str> =
            self.confusion.values().flat_map(|named| named.keys().copied()).collect();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let first = ["injected", "right"].into_iter();
        table.set_header(first.chain(columns.iter().copied()));
        for (injection, named) in self.rows() {
            let of = || judged(&self.drills).filter(|(drill, _)| drill.injection == injection);
            let right = of().filter(|(drill, _)| drill.status == Status::Right).count();
            let mut cells = vec![injection.to_owned(), format!("{right}/{}", of().count())];
            cells.extend(columns.iter().map(|column| {
                named.get(column).map_or_else(|| ".".to_owned(), ToString::to_string)
            }));
            table.add_row(cells);
        }
        lines(table)
    }

    fn error_table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "injected",
            "truth",
            "share error",
            "worst",
            "covered",
            "p99 error",
            "worst",
            "covered",
            "false alarms",
            "seconds",
        ]);
        for (injection, _) in self.rows() {
            let of = || judged(&self.drills).filter(|(drill, _)| drill.injection == injection);
            let findings: Vec<&Finding> = of().map(|(_, finding)| finding).collect();
            let truth: Vec<f64> = findings.iter().filter_map(|one| one.truth_share).collect();
            let shares: Vec<f64> = findings.iter().filter_map(|one| one.share_error()).collect();
            let share_covered: Vec<bool> =
                findings.iter().filter_map(|one| one.share_is_covered()).collect();
            let p99: Vec<f64> = findings.iter().filter_map(|one| one.p99_error()).collect();
            let p99_covered: Vec<bool> =
                findings.iter().filter_map(|one| one.p99_is_covered()).collect();
            let alarms: usize = findings.iter().map(|one| one.false_alarms.len()).sum();
            let seconds: Vec<f64> = of().map(|(drill, _)| drill.seconds).collect();
            table.add_row([
                injection.to_owned(),
                mean(&truth).map_or_else(none, |share| format!("{:.0} %", share * 100.0)),
                mean_error(&shares),
                worst(&shares),
                covered(&share_covered),
                mean_error(&p99),
                worst(&p99),
                covered(&p99_covered),
                alarms.to_string(),
                mean(&seconds).map_or_else(none, |seconds| format!("{seconds:.0}")),
            ]);
        }
        lines(table)
    }

    /// The injections that have a drill that counts, in their order.
    fn rows(&self) -> impl Iterator<Item = (&'static str, &BTreeMap<&'static str, u64>)> {
        INJECTIONS.iter().filter_map(|row| Some((row.name, self.confusion.get(row.name)?)))
    }
}

/// The drills that count, with what was found.
fn judged(drills: &[Drill]) -> impl Iterator<Item = (&Drill, &Finding)> {
    drills
        .iter()
        .filter(|drill| matches!(drill.status, Status::Right | Status::Missed))
        .filter_map(|drill| Some((drill, drill.finding.as_ref()?)))
}

/// The key of a status in JSON.
const fn key(status: Status) -> &'static str {
    match status {
        Status::Right => "right",
        Status::Missed => "missed",
        Status::TooWeak => "too_weak",
        Status::Skipped => "skipped",
        Status::Failed => "failed",
    }
}

/// A drill in one word.
#[must_use]
pub fn title(drill: &Drill) -> String {
    format!("{}/{} seed {}", drill.service.name(), drill.injection, drill.seed)
}

/// A drill in one line.
#[must_use]
pub fn line(drill: &Drill) -> String {
    let mut line = format!("{:<10} {} ({:.0} s)", drill.status.name(), title(drill), drill.seconds);
    match (&drill.finding, &drill.reason) {
        (Some(found), _) => {
            line += &format!(": named {}", found.named);
            if let (Some(share), Some(truth)) = (found.share, found.truth_share) {
                line += &format!(", {:.0} % of {:.0} %", share * 100.0, truth * 100.0);
            }
            let ms = |ns: u64| ns as f64 / 1e6;
            line += &format!(", p99 {:.1} ms", ms(found.p99_ns));
            if let Some(without) = found.p99_without_ns {
                let (without, baseline) = (ms(without), ms(found.p99_baseline_ns));
                line += &format!(", without it {without:.1} of {baseline:.1} ms");
            }
        }
        (None, Some(reason)) => line += &format!(": {reason}"),
        (None, None) => {}
    }
    line
}

fn lines(mut table: Table) -> String {
    for index in 1..table.column_count() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!(" {}\n", line.trim_end())).collect()
}

fn none() -> String {
    "-".into()
}

fn mean(numbers: &[f64]) -> Option<f64> {
    (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
}

/// The mean size of errors.
fn mean_error(errors: &[f64]) -> String {
    let sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    mean(&sizes).map_or_else(none, |error| format!("{:.0} %", error * 100.0))
}

fn worst(errors: &[f64]) -> String {
    let worst = errors.iter().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    worst.map_or_else(none, |error| format!("{:+.0} %", error * 100.0))
}

fn covered(which: &[bool]) -> String {
    if which.is_empty() {
        return none();
    }
    format!("{}/{}", which.iter().filter(|covered| **covered).count(), which.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::rows::Form;
    use crate::drill::services::Service;

    fn drill(injection: &'static str, status: Status, named: Option<&'static str>) -> Drill {
        let finding = named.map(|named| Finding {
            named,
            all_named: vec![named],
            false_alarms: Vec::new(),
            truth_share: Some(0.9),
            share: Some(0.8),
            share_ci95: Some([0.7, 0.95]),
            object: None,
            p99_ns: 30_000_000,
            p99_baseline_ns: 2_000_000,
            p99_without_ns: Some(3_000_000),
            p99_without_ci95: None,
        });
        let reason = (status != Status::Right).then(|| "because".to_owned());
        let service = Service::Own(Form::EventLoop);
        Drill { service, injection, seed: 1, status, reason, seconds: 12.0, finding }
    }

    #[test]
    fn only_drills_that_count_are_in_the_tables_and_all_are_in_the_counts() {
        let report = Report::new(
            1,
            vec![
                drill("sleep", Status::Right, Some("service_wait")),
                drill("sleep", Status::Missed, Some("unexplained")),
                drill("hog", Status::TooWeak, Some("runqueue")),
                drill("quota", Status::Skipped, None),
            ],
        );
        assert!(!report.is_good());
        assert_eq!(report.headline(), "1 right, 1 missed, 1 too weak, 1 skipped");
        assert_eq!(report.counts.values().sum::<u64>(), 4);
        let text = report.tables();
        assert!(text.contains("1/2") && !text.contains("runqueue"), "{text}");
        assert!(text.contains("-10 %") && text.contains("+50 %"), "{text}");
        assert!(text.contains("skipped: event-loop/quota seed 1: because"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["confusion"]["sleep"]["service_wait"], 1);
        assert_eq!(json["drills"][0]["named"], "service_wait");
        assert!(json["drills"][3].get("named").is_none());
    }

    #[test]
    fn nothing_that_counts_is_not_good() {
        assert!(!Report::new(1, Vec::new()).is_good());
        assert!(!Report::new(1, vec![drill("hog", Status::Skipped, None)]).is_good());
        assert!(Report::new(1, vec![drill("hog", Status::Right, Some("runqueue"))]).is_good());
    }
}
