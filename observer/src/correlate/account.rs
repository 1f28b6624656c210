//! Where the time of requests went, part by part.

use std::collections::BTreeMap;

use super::exposure::{Band, Population, Served};
use super::timeline::StallLines;
use crate::model::{Accounts, BandAccount, Cause};

/// The mean account of the slow and of the typical requests; `None` where not all of their time is
/// known.
pub(super) fn means(population: &Population, stalls: &StallLines) -> Option<Accounts> {
    if !population.has_account() {
        return None;
    }
    let mean = |samples: &[Served]| mean(samples, stalls);
    let band = |band: &Band| BandAccount {
        from: band.from,
        to: band.to,
        requests: band.samples.len() as u64,
        parts_ns: mean(&band.samples),
    };
    let bands = population.bands.iter().filter(|band| !band.samples.is_empty()).map(band);
    Some(Accounts {
        slow: mean(&population.slow),
        typical: mean(&population.typical),
        bands: bands.collect(),
    })
}

/// The parts of one request, nanoseconds. They sum to its latency, from the moment when it should have
/// been sent.
pub(super) fn parts(sample: &Served, stalls: &StallLines) -> BTreeMap<Cause, u64> {
    let mut left = sample.end - sample.start;
    let mut parts = BTreeMap::new();
    let mut add = |cause: Cause, part_ns: u64| {
        if part_ns > 0 {
            parts.insert(cause, part_ns);
        }
    };
    for cause in Cause::all() {
        // Each instant is on one line, and there belongs to one cause: these are whole nanoseconds.
        let part_ns = (stalls.of(cause).exposure(&sample.parts).round() as u64).min(left);
        left -= part_ns;
        add(cause, part_ns);
    }
    add(Cause::LOAD_GENERATOR, sample.lateness_ns);
    add(Cause::UNEXPLAINED, left);
    parts
}

/// Means, rounded so that they sum to the rounded mean of the whole.
fn mean(samples: &[Served], stalls: &StallLines) -> BTreeMap<Cause, u64> {
    let mut sums: BTreeMap<Cause, u64> = BTreeMap::new();
    for sample in samples {
        for (cause, part_ns) in parts(sample, stalls) {
            *sums.entry(cause).or_default() += part_ns;
        }
    }
    let count = samples.len().max(1) as u64;
    let all: u64 = sums.values().sum();
    let mut means: BTreeMap<Cause, u64> =
        sums.into_iter().map(|(cause, sum)| (cause, sum / count)).collect();
    let rest = all / count - means.values().sum::<u64>();
    if let Some(largest) = means.values_mut().max() {
        *largest += rest;
    }
    means.retain(|_, mean| *mean > 0);
    means
}
