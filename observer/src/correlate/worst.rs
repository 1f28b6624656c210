//! The slowest requests, and the longest of what streams by.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::MonoNanos;
use crate::model::Sample;

/// Whether a request was watched from begin to end.
pub(super) fn is_inside(sample: &Sample, (start, end): (MonoNanos, MonoNanos)) -> bool {
    sample.begin() >= start && sample.end <= end
}

/// The `n` requests with the longest response time among those wholly within `window`, longest
/// first.
#[must_use]
pub fn slowest(samples: &[Sample], window: (MonoNanos, MonoNanos), n: usize) -> Vec<&Sample> {
    places_of_slowest(samples, window, n, |_| true)
        .into_iter()
        .map(|place| &samples[place])
        .collect()
}

/// The places of the `n` slowest that `fits` takes, slowest first. No more than these are kept.
pub(super) fn places_of_slowest(
    samples: &[Sample],
    window: (MonoNanos, MonoNanos),
    n: usize,
    fits: impl Fn(&Sample) -> bool,
) -> Vec<usize> {
    // The shortest of the kept is on top; among equals the earlier sample is kept.
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    for (index, sample) in samples.iter().enumerate() {
        if !is_inside(sample, window) || !fits(sample) {
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
    use super::*;

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
}
