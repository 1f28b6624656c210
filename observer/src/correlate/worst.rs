//! The slowest requests and what overlapped them: evidence a person can check by eye.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::{Sample, Stall};

/// Stalls kept for one request; the rest is counted. A request of seconds under reclaim overlaps
/// tens of thousands of stalls, and nobody reads those.
pub const OVERLAPS_KEPT: usize = 50;

/// A slow request and the stalls that overlap it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorstRequest {
    /// Index into the samples.
    pub sample: usize,
    /// The longest overlaps, longest first, at most [`OVERLAPS_KEPT`].
    pub overlaps: Vec<StallOverlap>,
    /// Overlapping stalls that were not kept.
    pub omitted: u64,
}

/// A stall that overlaps a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StallOverlap {
    /// Index into the stalls.
    pub stall: usize,
    /// Length of the part inside the request, nanoseconds.
    pub overlap_ns: u64,
}

/// The `n` requests with the longest response time, longest first, each with the stalls that
/// overlap it between its begin (the intended start where known) and its end.
#[must_use]
pub fn worst_requests(samples: &[Sample], stalls: &[Stall], n: usize) -> Vec<WorstRequest> {
    worst_of(samples, 0..samples.len(), stalls, n)
}

/// The same among the samples with the given indices.
pub(super) fn worst_of(
    samples: &[Sample],
    candidates: impl Iterator<Item = usize>,
    stalls: &[Stall],
    n: usize,
) -> Vec<WorstRequest> {
    // The shortest of the kept is on top; among equals the earlier sample is kept.
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    for index in candidates {
        kept.push(Reverse((samples[index].response_ns(), Reverse(index))));
        if kept.len() > n {
            kept.pop();
        }
    }
    kept.into_sorted_vec()
        .into_iter()
        .map(|Reverse((_, Reverse(index)))| overlapping(index, &samples[index], stalls))
        .collect()
}

fn overlapping(index: usize, sample: &Sample, stalls: &[Stall]) -> WorstRequest {
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    let mut omitted = 0;
    for (position, stall) in stalls.iter().enumerate() {
        let start = stall.start.max(sample.begin());
        let overlap_ns = stall.end.min(sample.end).since(start);
        if overlap_ns == 0 {
            continue;
        }
        kept.push(Reverse((overlap_ns, Reverse(position))));
        if kept.len() > OVERLAPS_KEPT {
            kept.pop();
            omitted += 1;
        }
    }
    let overlaps = kept
        .into_sorted_vec()
        .into_iter()
        .map(|Reverse((overlap_ns, Reverse(stall)))| StallOverlap { stall, overlap_ns })
        .collect();
    WorstRequest { sample: index, overlaps, omitted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;
    use crate::model::{Cause, Tgid, Tid};

    fn sample(start: u64, end: u64) -> Sample {
        Sample {
            intended_start: None,
            start: MonoNanos(start),
            end: MonoNanos(end),
            precision_ns: 1,
            status: Some(200),
            ok: true,
            error: None,
            seq: None,
        }
    }

    fn stall(start: u64, end: u64) -> Stall {
        Stall {
            start: MonoNanos(start),
            end: MonoNanos(end),
            tid: Tid(1),
            tgid: Tgid(1),
            cause: Cause::Runqueue,
        }
    }

    #[test]
    fn longest_first_with_clipped_overlaps() {
        let samples = [sample(0, 10), sample(100, 200), sample(150, 400)];
        let stalls = [stall(390, 500), stall(120, 160), stall(0, 100), stall(130, 120)];
        let worst = worst_requests(&samples, &stalls, 2);
        assert_eq!(worst.len(), 2);
        assert_eq!(worst[0].sample, 2);
        assert_eq!(
            worst[0].overlaps,
            [StallOverlap { stall: 0, overlap_ns: 10 }, StallOverlap { stall: 1, overlap_ns: 10 }]
        );
        assert_eq!(worst[1].sample, 1);
        assert_eq!(worst[1].overlaps, [StallOverlap { stall: 1, overlap_ns: 40 }]);
        assert!(worst_requests(&samples, &stalls, 0).is_empty());
        assert_eq!(worst_requests(&samples, &[], 10).len(), 3);
    }

    #[test]
    fn overlaps_past_the_limit_are_counted() {
        let stalls: Vec<Stall> = (0..200).map(|i| stall(i * 10, i * 10 + 1 + i % 5)).collect();
        let worst = worst_requests(&[sample(0, 10_000)], &stalls, 1);
        assert_eq!(worst[0].overlaps.len(), OVERLAPS_KEPT);
        assert_eq!(worst[0].omitted, 150);
        assert!(worst[0].overlaps.iter().take(40).all(|overlap| overlap.overlap_ns == 5));
    }
}
