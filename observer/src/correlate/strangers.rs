//! Whether a request that was unusually long on its way may be one of another client.

use super::matching::{NONE, PairQuality, Sides, ns};
use super::multiplexed::Connections;

/// If one more request of another client, at any time of the run, would lie within the time of a sample
/// with at most this probability, it is taken for none of these.
const MOST_LIKELY: f64 = 0.05;

/// Requests without a sample and samples without a request, in order of time.
pub(super) struct Left {
    /// Begins of the requests.
    requests: Vec<i64>,
    starts: Vec<i64>,
    ends: Vec<i64>,
    /// From the first begin of a sample to the last end.
    all: (i64, i64),
}

impl Left {
    /// `free` are the requests without a sample.
    pub(super) fn new(
        sides: &Sides<'_>,
        free: impl Iterator<Item = u32>,
        request_of: &[u32],
    ) -> Self {
        let starts = || sides.samples.iter().map(|sample| ns(sample.start));
        let ends = || sides.samples.iter().map(|sample| ns(sample.end));
        let all = (starts().min().unwrap_or(0), ends().max().unwrap_or(0));
        let begins = free.map(|request| sides.begin(request));
        let mut requests: Vec<i64> =
            begins.filter(|begin| (all.0..=all.1).contains(begin)).collect();
        let is_open = |(_, request): &(i64, &u32)| **request == NONE;
        let time = |(time, _): (i64, &u32)| time;
        let mut starts: Vec<i64> = starts().zip(request_of).filter(is_open).map(time).collect();
        let mut ends: Vec<i64> = ends().zip(request_of).filter(is_open).map(time).collect();
        [&mut requests, &mut starts, &mut ends].into_iter().for_each(|times| times.sort_unstable());
        Self { requests, starts, ends, all }
    }

    /// Whether a request within these times may be none of the samples'.
    fn may_be_strange(&self, first: i64, last: i64) -> bool {
        let length_ns = last.saturating_sub(first);
        let from = first.saturating_sub(length_ns);
        let until = last.saturating_add(length_ns);
        let count = |times: &[i64], limit: i64| times.partition_point(|time| *time < limit);
        let requests = count(&self.requests, until) - count(&self.requests, from);
        let samples = count(&self.starts, until).saturating_sub(count(&self.ends, from));
        let all_ns = self.all.1.saturating_sub(self.all.0).max(1);
        let rate = (self.requests.len() + self.starts.len() + 1) as f64 / all_ns as f64;
        requests > 0 || samples > 0 || rate * length_ns as f64 > MOST_LIKELY
    }
}

/// Decides about the samples whose request was unusually long on its way, and that no other request and no
/// other sample comes near. Where all requests around have a sample, and all samples a request, it is the right one;
/// unless its connection carried on before the sample had its answer.
pub(super) fn settle(
    sides: &Sides<'_>,
    left: &Left,
    connections: &Connections<'_>,
    request_of: &[u32],
    quality: &mut [PairQuality],
) {
    for (sample, (quality, request)) in quality.iter_mut().zip(request_of).enumerate() {
        if *quality != PairQuality::Unusual {
            continue;
        }
        let (first, last) = sides.arrivals(sample as u32);
        let carries_on = || {
            let slack_ns = sides.slack_ns(sample as u32);
            connections.goes_on(*request, last - 2 * slack_ns)
        };
        *quality = match left.may_be_strange(first, last) || carries_on() {
            true => PairQuality::Ambiguous,
            false => PairQuality::Matched,
        };
    }
}
