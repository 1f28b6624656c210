//! A probe's summary from a [`Snapshot`], by the probe's row.

use std::collections::BTreeMap;

use super::{Distribution, Snapshot};
use crate::model::{ProbeState, ProbeSummary};
use crate::probe::{Labels, Numbers, PROBES, Probe};

impl Snapshot {
    /// One [`ProbeSummary`] for each probe that counts something: the target's stalls, and what was
    /// counted besides. Call it on the delta over a run.
    #[must_use]
    pub fn probe_summaries(&self) -> BTreeMap<String, ProbeSummary> {
        let counts = |probe: &&Probe| !(probe.histograms.is_empty() && probe.in_summary.is_empty());
        let probes = PROBES.into_iter().filter(counts);
        probes.map(|probe| (probe.name.to_owned(), self.probe_summary(probe))).collect()
    }

    fn probe_summary(&self, probe: &Probe) -> ProbeSummary {
        let mut whole = Distribution::default();
        let mut parts = BTreeMap::new();
        let of_probe = probe.parts();
        for (name, series) in &of_probe {
            let mut part = Distribution::default();
            for series in series {
                part.merge(self.target_distribution(*series));
            }
            if of_probe.len() > 1 && part.count() > 0 {
                parts.insert((*name).to_owned(), part.summary());
            }
            whole.merge(&part);
        }
        let coverage = self.coverage.get(probe.name);
        let five = whole.summary();
        ProbeSummary {
            state: coverage.map_or(ProbeState::Unsupported, |coverage| coverage.state),
            tier: coverage.and_then(|coverage| coverage.tier.clone()),
            reason: coverage.map_or_else(
                || Some("no coverage was reported for it".to_owned()),
                |coverage| coverage.reason.clone(),
            ),
            count: five.count,
            sum_ns: five.sum_ns,
            p50_ns: five.p50_ns,
            p99_ns: five.p99_ns,
            max_ns: five.max_ns,
            parts,
            records: probe.kinds().map(|kind| self.emitted(kind)).sum(),
            // Only the code that has the records knows these.
            unrecorded_ns: 0,
            counters: self.probe_counters(probe),
        }
    }

    fn probe_counters(&self, probe: &Probe) -> BTreeMap<String, i64> {
        let mut counters = BTreeMap::new();
        for row in probe.in_summary {
            let mut add = |place: usize, labels: Labels| {
                let count = self.counters[place];
                if count > 0 || row.zeros {
                    let words = std::iter::once(&row.name).chain(labels).copied();
                    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
                    counters.insert(words.join("_"), i64::try_from(count).unwrap_or(i64::MAX));
                }
            };
            match row.numbers {
                Numbers::Counters(places) => {
                    places.iter().for_each(|(place, labels)| add(*place, labels));
                }
                Numbers::Time(place) => add(place, &[]),
                Numbers::Gauge(gauge) => {
                    counters.extend(self.gauge(gauge).map(|value| (row.name.to_owned(), value)));
                }
            }
        }
        counters
    }
}
