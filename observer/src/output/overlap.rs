//! The slowest requests and what overlapped them: evidence a person can check by eye.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::{Sample, Stall};

/// Stalls kept for one request; the rest is counted. A request of seconds under reclaim overlaps
/// tens of thousands of stalls, and nobody reads those.
pub(super) const OVERLAPS_KEPT: usize = 50;

/// A slow request and the stalls that overlap it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorstRequest {
    /// Index into the samples.
    pub(super) sample: usize,
    /// The longest overlaps, longest first, at most [`OVERLAPS_KEPT`].
    pub(super) overlaps: Vec<StallOverlap>,
    /// Overlapping stalls that were not kept.
    pub(super) omitted: u64,
}

/// A stall that overlaps a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StallOverlap {
    /// Index into the stalls.
    pub(super) stall: usize,
    /// Length of the part inside the request, nanoseconds.
    pub overlap_ns: u64,
}

/// The `n` requests with the longest response time, longest first, each with the stalls that
/// overlap it between its begin (the intended start where known) and its end.
#[must_use]
pub(super) fn worst_requests(samples: &[Sample], stalls: &[Stall], n: usize) -> Vec<WorstRequest> {
    worst_of(samples, 0..samples.len(), stalls, n)
}

/// The same among the samples with the given indices.
fn worst_of(
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
