//! The slowest requests, and the stalls that overlap them most.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Evidence;
use super::matching::Matching;
use crate::clock::MonoNanos;
use crate::model::{Sample, ServedBy, SlowRequest, SlowStall, Stall, overlap_ns};

/// Slow requests in the results.
const REQUESTS: usize = 10;
/// Stalls of each.
const STALLS: usize = 10;

/// The `n` requests with the longest response time among those wholly within `window`, longest
/// first.
#[must_use]
pub fn slowest(samples: &[Sample], window: (MonoNanos, MonoNanos), n: usize) -> Vec<&Sample> {
    places_of_slowest(samples, window, n).into_iter().map(|place| &samples[place]).collect()
}

fn places_of_slowest(
    samples: &[Sample],
    (start, end): (MonoNanos, MonoNanos),
    n: usize,
) -> Vec<usize> {
    // The shortest of the kept is on top; among equals the earlier sample is kept.
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    for (index, sample) in samples.iter().enumerate() {
        if sample.begin() < start || sample.end > end {
            continue;
        }
        kept.push(Reverse((sample.response_ns(), Reverse(index))));
        if kept.len() > n {
            kept.pop();
        }
    }
    let places = kept.into_sorted_vec().into_iter();
    places.map(|Reverse((_, Reverse(place)))| place).collect()
}

/// The slowest requests wholly within the window, each with the stalls that overlap it most.
pub(super) fn slowest_requests(evidence: &Evidence<'_>, matching: &Matching) -> Vec<SlowRequest> {
    let places = places_of_slowest(evidence.samples, evidence.window, REQUESTS).into_iter();
    let mut requests: Vec<(&Sample, Option<ServedBy>, Longest<&Stall>)> = places
        .map(|place| {
            let request = matching.known(place).and_then(|at| evidence.requests.get(at));
            (&evidence.samples[place], request.map(ServedBy::new), Longest::new(STALLS))
        })
        .collect();
    for stall in evidence.stalls {
        for (sample, served, longest) in &mut requests {
            longest.add(stall, overlap_ns(sample, served.as_ref(), stall));
        }
    }
    let request = |(sample, served, longest): (&Sample, Option<ServedBy>, Longest<&Stall>)| {
        let (kept, more_stalls) = longest.finish();
        let stalls = kept.into_iter().map(|(stall, ns)| SlowStall::new(stall, ns)).collect();
        SlowRequest { served, stalls, more_stalls, ..SlowRequest::new(sample) }
    };
    requests.into_iter().map(request).collect()
}

/// The longest of what streams by; the rest is counted.
#[derive(Clone, Debug)]
pub struct Longest<T> {
    limit: usize,
    kept: Vec<(T, u64)>,
    /// What is not longer than this is not kept any more.
    least_ns: u64,
    omitted: u64,
}

impl<T> Longest<T> {
    /// Keeps so many.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, kept: Vec::new(), least_ns: 0, omitted: 0 }
    }

    /// Takes one; those of no length are none.
    pub fn add(&mut self, item: T, length_ns: u64) {
        if length_ns == 0 {
            return;
        }
        if self.kept.len() >= 2 * self.limit {
            self.cut();
        }
        if length_ns > self.least_ns {
            self.kept.push((item, length_ns));
        } else {
            self.omitted += 1;
        }
    }

    fn cut(&mut self) {
        // Stable: among equals the earlier stays.
        self.kept.sort_by_key(|(_, length_ns)| Reverse(*length_ns));
        self.omitted += self.kept.len().saturating_sub(self.limit) as u64;
        self.kept.truncate(self.limit);
        if self.kept.len() >= self.limit {
            self.least_ns = self.kept.last().map_or(0, |(_, length_ns)| *length_ns);
        }
    }

    /// The longest with their lengths, longest first, and how many there were beside them.
    #[must_use]
    pub fn finish(mut self) -> (Vec<(T, u64)>, u64) {
        self.cut();
        (self.kept, self.omitted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Quality;
    use super::*;
    use crate::model::{Cause, Extra, Holder, SlowSpec, StreamRow, Tgid, Tid, TraceRow};

    const ALWAYS: (MonoNanos, MonoNanos) = (MonoNanos(0), MonoNanos(u64::MAX));

    #[test]
    fn longest_first_and_of_equals_the_earlier() {
        let samples = [
            Sample::of_times(0, 10),
            Sample::of_times(100, 200),
            Sample::of_times(150, 400),
            Sample::of_times(0, 100),
            Sample::of_times(7, 17),
        ];
        let of = |indices: &[usize]| indices.iter().map(|at| &samples[*at]).collect::<Vec<_>>();
        assert_eq!(slowest(&samples, ALWAYS, 2), of(&[2, 1]));
        assert_eq!(slowest(&samples, ALWAYS, 9), of(&[2, 1, 3, 0, 4]));
        assert!(slowest(&samples, ALWAYS, 0).is_empty());
        let window = (MonoNanos(5), MonoNanos(399));
        assert_eq!(slowest(&samples, window, 9), of(&[1, 4]), "only what was watched to its end");
    }

    #[test]
    fn a_slow_request_has_its_longest_stalls_and_where_their_records_are() {
        let stall = |start: u64, end: u64, row: Option<u64>| Stall {
            start: MonoNanos(start),
            end: MonoNanos(end),
            tid: Tid(12),
            tgid: Tgid(10),
            cpu: 3,
            holder: Some(Holder { tid: Tid(7), tgid: Tgid(6), cgroup: None }),
            extra: Extra::None,
            row: row.and_then(|row| TraceRow::new(0, row)),
            cause: Cause::RUNQUEUE,
        };
        // Beside the two at the edges, thirty of the lengths 1 to 30 inside.
        let mut stalls: Vec<Stall> =
            (1..=30).map(|at| stall(1_000 + at * 100, 1_000 + at * 101, Some(at))).collect();
        stalls.push(stall(500, 1_050, None));
        stalls.push(stall(4_950, 9_000, Some(31)));
        stalls.push(stall(5_000, 6_000, Some(32)));
        let samples = [Sample::of_times(0, 10), Sample::of_times(1_000, 5_000)];
        let evidence = Evidence {
            window: ALWAYS,
            samples: &samples,
            requests: &[],
            stalls: &stalls,
            slow: SlowSpec::default(),
            quality: Quality::default(),
        };
        let found = slowest_requests(&evidence, &Matching::default());
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].stalls.len(), found[1].more_stalls), (0, 0));
        let request = &found[0];
        assert_eq!((request.begin_ns.0, request.response_ns), (1_000, 4_000));
        assert_eq!((request.stalls.len(), request.more_stalls), (STALLS, 22));
        let inside: Vec<u64> = request.stalls.iter().map(|stall| stall.inside_ns).collect();
        assert_eq!(inside, [50, 50, 30, 29, 28, 27, 26, 25, 24, 23]);
        let rows: Vec<Option<u32>> = request
            .stalls
            .iter()
            .map(|stall| stall.trace_row.as_ref().map(|place| place.row))
            .collect();
        assert_eq!(rows[..4], [None, Some(31), Some(30), Some(29)]);
        let first = &request.stalls[1];
        assert_eq!(first.trace_row, Some(StreamRow { kind: "runqueue".into(), row: 31 }));
        assert_eq!((first.cpu, first.holder.map(|holder| holder.tid)), (3, Some(Tid(7))));
        // Programs find them under these names.
        let json = serde_json::to_value(first).expect("JSON");
        assert_eq!(json["trace_row"], serde_json::json!({"kind": "runqueue", "row": 31}));
        assert_eq!(json["holder"], serde_json::json!({"tid": 7, "tgid": 6}));
        assert_eq!(serde_json::from_value::<SlowStall>(json).expect("a stall"), *first);
    }
}
