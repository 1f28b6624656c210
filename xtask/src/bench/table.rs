//! The table of the benchmark, as Markdown.

use std::{collections::BTreeMap, fmt::Write, fs};

use super::{Operation, observers::OURS};

/// The goal: this part of the best peer's cost, or less.
const GOAL: f64 = 0.5;

/// Everything measured, in nanoseconds per operation.
#[derive(Default)]
pub(crate) struct Results {
    bare: BTreeMap<Operation, Vec<f64>>,
    added: BTreeMap<(Operation, &'static str), Vec<f64>>,
    /// Columns, in the order of their first measurement.
    observers: Vec<&'static str>,
    left_out: Vec<(&'static str, String)>,
}

impl Results {
    pub(crate) fn add(
        &mut self,
        operation: Operation,
        observer: &'static str,
        bare: f64,
        added: f64,
    ) {
        self.bare.entry(operation).or_default().push(bare);
        self.added.entry((operation, observer)).or_default().push(added);
        if !self.observers.contains(&observer) {
            self.observers.push(observer);
        }
    }

    pub(crate) fn left_out(&mut self, observer: &'static str, reason: &str) {
        self.left_out.push((observer, reason.to_owned()));
    }

    /// Whether every session went through.
    pub(crate) fn is_complete(&self) -> bool {
        self.left_out.is_empty()
    }

    fn median(&self, operation: Operation, observer: &'static str) -> Option<f64> {
        self.added.get(&(operation, observer)).map(|values| median(&mut values.clone()))
    }

    /// The peer that costs least on `operation`.
    fn best_peer(&self, operation: Operation) -> Option<(&'static str, f64)> {
        let peers = self.observers.iter().filter(|name| **name != OURS);
        let costs = peers.filter_map(|name| Some((*name, self.median(operation, name)?)));
        costs.min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    /// The table and what it was measured on.
    pub(crate) fn markdown(&self, host: &str) -> String {
        let mut page = format!("{host}\n\n| operation | bare, ns |");
        let mut order = self.observers.clone();
        order.sort_by_key(|name| *name != OURS);
        for name in &order {
            let _ = write!(page, " {name}, ns added |");
        }
        page.push_str(" observer / best peer | goal met |\n| --- | ---: |");
        page.push_str(&" ---: |".repeat(order.len() + 2));
        page.push('\n');
        for (operation, bare) in &self.bare {
            let _ = write!(page, "| {} | {:.0} |", operation.title(), median(&mut bare.clone()));
            for name in &order {
                page.push_str(&self.cell(*operation, name));
            }
            page.push_str(&self.judgement(*operation));
            page.push('\n');
        }
        for (observer, reason) in &self.left_out {
            let _ = writeln!(page, "\nLeft out once, {observer}: {reason}");
        }
        page
    }

    fn cell(&self, operation: Operation, observer: &'static str) -> String {
        let Some(values) = self.added.get(&(operation, observer)) else {
            return " – |".to_owned();
        };
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!(" {:+.0} ({low:.0}..{high:.0}) |", median(&mut values.clone()))
    }

    fn judgement(&self, operation: Operation) -> String {
        let (Some(own), Some((peer, best))) =
            (self.median(operation, OURS), self.best_peer(operation))
        else {
            return " – | – |".to_owned();
        };
        // A peer that seems to cost nothing was drowned in noise: no ratio can be had from it.
        if best <= 0.0 {
            return format!(" – ({peer} is within the noise) | – |");
        }
        if own <= 0.0 {
            return format!(" within the noise ({peer}) | yes |");
        }
        let ratio = own / best;
        format!(" {ratio:.2} ({peer}) | {} |", if ratio <= GOAL { "yes" } else { "no" })
    }
}

/// The middle value; the mean of the middle two of an even number. Sorts `values`.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
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
    format!("Linux {}, {} × {model}.", kernel.trim(), models.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&mut []).is_nan());
    }

    #[test]
    fn table_judges_against_the_best_peer() {
        let mut results = Results::default();
        for (observer, added) in [("bpftrace", 400.0), (OURS, 150.0), ("runqlat", 300.0)] {
            results.add(Operation::Switch, observer, 1000.0, added);
        }
        results.add(Operation::Fault, OURS, 900.0, 200.0);
        results.add(Operation::Fault, "bpftrace", 900.0, 300.0);
        results.add(Operation::Socket, OURS, 900.0, 200.0);
        let page = results.markdown("host");
        let rows: Vec<_> = page.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| operation | bare, ns | observer, ns added | bpftrace, ns added | runqlat, ns added | observer / best peer | goal met |",
                "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
                "| context switch (wake-up and switch) | 1000 | +150 (150..150) | +400 (400..400) | +300 (300..300) | 0.50 (runqlat) | yes |",
                "| minor page fault | 900 | +200 (200..200) | +300 (300..300) | – | 0.67 (bpftrace) | no |",
                "| socket and close | 900 | +200 (200..200) | – | – | – | – |",
            ]
        );
        assert!(results.is_complete());
        results.left_out("perf", "ended with 1");
        assert!(!results.is_complete());
    }

    #[test]
    fn what_is_within_the_noise_gives_no_ratio() {
        let mut results = Results::default();
        results.add(Operation::Madvise, OURS, 180.0, 20.0);
        results.add(Operation::Madvise, "bpftrace", 180.0, -3.0);
        assert_eq!(
            results.judgement(Operation::Madvise),
            " – (bpftrace is within the noise) | – |"
        );
        results.add(Operation::Mmap, OURS, 700.0, -5.0);
        results.add(Operation::Mmap, "bpftrace", 700.0, 300.0);
        assert_eq!(results.judgement(Operation::Mmap), " within the noise (bpftrace) | yes |");
    }
}
