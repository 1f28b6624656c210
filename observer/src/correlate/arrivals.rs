//! Where the zero of the samples' clock lies, by when requests arrived at the target.
//!
//! A clock that counts from the generator's start has a zero that is known only within bounds. Each request arrives
//! while its sample lasts, whichever request that is. So the k-th arrival at the target is not later than the k-th end
//! of the samples; and if M more requests arrived than there are samples, those of other clients, then the
//! (k + M)-th arrival is not earlier than the k-th begin. Both hold for every k, and need no pairs.

use super::matching::{MOST_NS, asked, ns};
use crate::model::{Sample, ServerRequest};

/// The samples are not those of the requests if so many of them, 1 of this number, have no arrival.
const LEAST_WITHOUT: usize = 100;
/// Times that the bounds are made better.
const ROUNDS: usize = 16;

/// Moves samples whose times may all be off by the same time, at most `uncertainty_ns`, to where the arrivals
/// of their requests say that they belong. Returns by how much they may be off then; `None` where the
/// requests say nothing that was not known, and the samples stay as they are.
///
/// `requests` are all requests that the target saw while the generator ran.
pub fn place_by_arrivals(
    samples: &mut [Sample],
    requests: &[ServerRequest],
    uncertainty_ns: u64,
) -> Option<u64> {
    let most = uncertainty_ns.min(MOST_NS) as i64;
    let spans: Vec<(i64, i64)> = samples
        .iter()
        .filter(|sample| sample.start <= sample.end && sample.is_answered())
        .map(|sample| {
            let precision = sample.precision_ns.min(MOST_NS) as i64;
            (ns(sample.start) - precision, ns(sample.end) + precision)
        })
        .collect();
    let sorted = |of: fn(&(i64, i64)) -> i64| {
        let mut times: Vec<i64> = spans.iter().map(of).collect();
        times.sort_unstable();
        times
    };
    let (begins, ends) = (sorted(|span| span.0), sorted(|span| span.1));
    let asked = asked(samples, requests).into_iter();
    let mut arrivals: Vec<i64> =
        asked.map(|request| ns(requests[request as usize].begin())).collect();
    arrivals.sort_unstable();
    let (mut low, mut high) = (-most, most);
    // The better the bounds, the fewer requests of others lie within them.
    for _ in 0..ROUNDS {
        let within = (begins.first()? + low, ends.last()? + high);
        let bounds = bounds(within_of(&arrivals, within), &begins, &ends)?;
        let better = (low.max(bounds.0), high.min(bounds.1));
        if better.0 > better.1 {
            return None;
        }
        if better == (low, high) {
            break;
        }
        (low, high) = better;
    }
    let by_ns = low + (high - low) / 2;
    let left_ns = high.abs_diff(low).div_ceil(2);
    let has_arrival = |(begin, end): &(i64, i64)| {
        let next = arrivals.partition_point(|at| *at < begin + low);
        arrivals.get(next).is_some_and(|at| *at <= end + high)
    };
    let without = spans.iter().filter(|span| !has_arrival(span)).count();
    if left_ns >= uncertainty_ns || without > spans.len() / LEAST_WITHOUT {
        return None;
    }
    for sample in samples {
        sample.move_by(by_ns);
    }
    Some(left_ns)
}

/// The least and the most that can be added to all samples, if each of them has one of these arrivals. `None` where
/// there are fewer: some were not seen, or not recorded.
fn bounds(arrivals: &[i64], begins: &[i64], ends: &[i64]) -> Option<(i64, i64)> {
    let others = arrivals.len().checked_sub(begins.len())?;
    let least = arrivals.iter().zip(ends).map(|(arrival, end)| arrival - end).max()?;
    let most =
        arrivals[others..].iter().zip(begins).map(|(arrival, begin)| arrival - begin).min()?;
    Some((least, most))
}

/// Those of the sorted times that lie between two, which belong to them.
fn within_of(times: &[i64], (first, last): (i64, i64)) -> &[i64] {
    let from = times.partition_point(|time| *time < first);
    let length = times[from..].partition_point(|time| *time <= last);
    &times[from..from + length]
}

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;
