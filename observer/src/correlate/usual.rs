//! How long requests usually are outside the server, on both ways, and so by how much the clocks
//! differ.

use std::collections::BTreeMap;

use super::matching::{NONE, Orders, Outside, Sides};
use super::pairing::{Pairs, pair};

/// Samples that are measured.
const MEASURED: usize = 4_000;
/// Requests that each of them is compared with: the nearest in time.
const COMPARED: usize = 512;
/// Runs of samples that are paired to refine the measurement, and samples in each.
const RUNS: usize = 16;
const RUN: usize = 512;
/// Differences of the clocks are told apart in steps of this length.
const STEP_NS: i64 = 20_000;
/// Smaller differences are found without a search.
const NEAR_NS: u64 = 100_000;
/// Of several differences that fit about as well, the smallest is taken.
const ABOUT: f64 = 0.8;
/// Times are not known better than this.
const LEAST_SCATTER_NS: i64 = 1_000;
/// A pairing that deviates more than another one by so many times the usual deviation is hardly ever
/// the right one.
const CLEAR: i64 = 3;
/// A request that deviates by so many times the usual deviation, and by this much more, may be one of
/// another client.
const UNUSUAL: i64 = 12;
const UNUSUAL_NS: i64 = 50_000;

/// The usual time outside the server, by medians. It contains the difference of the clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usual {
    /// From the begin of a sample to the arrival of its request.
    pub(super) there_ns: i64,
    /// From the last write to the end of the sample.
    pub(super) back_ns: i64,
    /// Deviation from both together.
    pub(super) scatter_ns: i64,
}

impl Usual {
    /// How unusual the times of a pair are.
    pub(super) fn deviation_ns(&self, outside: Outside) -> i64 {
        let back_ns = outside.back_ns.map_or(0, |back_ns| (back_ns - self.back_ns).abs());
        (outside.there_ns - self.there_ns).abs() + back_ns
    }

    /// A pairing whose deviation is larger by less than this is about as good.
    pub(super) fn clear_ns(&self) -> i64 {
        self.scatter_ns.saturating_mul(CLEAR)
    }

    /// A pair that deviates more may be an accident.
    pub(super) fn unusual_ns(&self) -> i64 {
        self.scatter_ns.saturating_mul(UNUSUAL).saturating_add(UNUSUAL_NS)
    }

    /// The kernel's clock minus that of the samples, if both ways take equally long.
    pub(super) fn offset_ns(&self) -> i64 {
        (self.there_ns - self.back_ns) / 2
    }
}

pub(super) fn median(values: &mut [i64]) -> Option<i64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}

/// What each measured sample could be.
type Choices = Vec<Vec<(i64, i64)>>;

/// The usual times; `None` where no sample can be a request.
pub(super) fn measure(sides: &Sides<'_>, orders: &Orders) -> Option<Usual> {
    let choices = choices(sides, orders);
    let difference_ns = difference_ns(sides, &choices)?;
    let mut usual =
        Usual { there_ns: difference_ns, back_ns: -difference_ns, scatter_ns: LEAST_SCATTER_NS };
    for _ in 0..2 {
        let nearest = choices.iter().filter_map(|choices| {
            let deviation = |(there_ns, back_ns): &&(i64, i64)| {
                usual.deviation_ns(Outside { there_ns: *there_ns, back_ns: Some(*back_ns) })
            };
            choices.iter().min_by_key(deviation).copied()
        });
        usual = of_pairs(&nearest.collect::<Vec<_>>())?;
    }
    if sides.by_port {
        return Some(usual);
    }
    for _ in 0..2 {
        usual = of_pairs(&paired(sides, orders, &usual)).unwrap_or(usual);
    }
    Some(usual)
}

fn of_pairs(pairs: &[(i64, i64)]) -> Option<Usual> {
    let there_ns = median(&mut pairs.iter().map(|pair| pair.0).collect::<Vec<_>>())?;
    let back_ns = median(&mut pairs.iter().map(|pair| pair.1).collect::<Vec<_>>())?;
    let usual = Usual { there_ns, back_ns, scatter_ns: 0 };
    let deviation = |(there_ns, back_ns): &(i64, i64)| {
        usual.deviation_ns(Outside { there_ns: *there_ns, back_ns: Some(*back_ns) })
    };
    let scatter_ns = median(&mut pairs.iter().map(deviation).collect::<Vec<_>>())?;
    Some(Usual { scatter_ns: scatter_ns.max(LEAST_SCATTER_NS), ..usual })
}

/// Times of answered requests that a part of the samples can be.
fn choices(sides: &Sides<'_>, orders: &Orders) -> Choices {
    let step = (orders.samples.len() / MEASURED).max(1);
    let mut all = Choices::new();
    for sample in orders.samples.iter().copied().step_by(step) {
        let requests = orders.requests_for(sides, sample);
        let (first, last) = sides.arrivals(sample);
        let near = requests.partition_point(|request| sides.begin(*request) < sides.start(sample));
        let from = requests[..near].partition_point(|request| sides.begin(*request) < first);
        let from = from.max(near.saturating_sub(COMPARED / 2));
        let candidates = requests[from..].iter().take(COMPARED);
        let candidates = candidates.take_while(|request| sides.begin(**request) <= last);
        let answered = candidates.filter_map(|request| {
            let outside = sides.outside(sample, *request)?;
            Some((outside.there_ns, outside.back_ns?))
        });
        let choices: Vec<(i64, i64)> = answered.collect();
        if !choices.is_empty() {
            all.push(choices);
        }
    }
    all
}

/// The difference of the clocks that most samples agree on. For a pair that is none, it may be
/// anything.
fn difference_ns(sides: &Sides<'_>, choices: &Choices) -> Option<i64> {
    let outside = |(there_ns, back_ns): &(i64, i64)| there_ns + back_ns;
    let mut least: Vec<i64> =
        choices.iter().filter_map(|choices| choices.iter().map(outside).min()).collect();
    let most_ns = median(&mut least)?.max(0) * 2 + STEP_NS;
    if sides.uncertainty_ns <= NEAR_NS {
        return Some(0);
    }
    let mut counts: BTreeMap<i64, u64> = BTreeMap::new();
    for choice in choices.iter().flatten().filter(|choice| outside(choice) <= most_ns) {
        *counts.entry(((choice.0 - choice.1) / 2).div_euclid(STEP_NS)).or_default() += 1;
    }
    let at = |step: i64| counts.get(&step).copied().unwrap_or(0);
    let around = |step: &i64| at(step - 1) + 2 * at(*step) + at(step + 1);
    let highest = counts.keys().map(around).max()?;
    let about = |step: &&i64| around(step) as f64 >= highest as f64 * ABOUT;
    let step = counts.keys().filter(about).min_by_key(|step| step.abs())?;
    Some(step * STEP_NS + STEP_NS / 2)
}

/// Times of samples that were paired one to one, in a few places.
fn paired(sides: &Sides<'_>, orders: &Orders, usual: &Usual) -> Vec<(i64, i64)> {
    let mut pairs = Pairs::new(sides.samples.len(), sides.requests.len());
    let runs = orders.samples.chunks(RUN);
    let step = (runs.len() / RUNS).max(1);
    let mut times = Vec::new();
    for run in runs.step_by(step) {
        pair(sides, usual, run, &orders.requests, &mut pairs);
        times.extend(run.iter().filter_map(|sample| {
            let request = Some(pairs.request_of(*sample)).filter(|request| *request != NONE)?;
            let outside = sides.outside(*sample, request)?;
            Some((outside.there_ns, outside.back_ns?))
        }));
    }
    times
}
