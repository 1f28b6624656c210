//! The slowest requests.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::Sample;

/// Indices of the `n` requests with the longest response time, longest first.
#[must_use]
pub fn slowest(samples: &[Sample], n: usize) -> Vec<usize> {
    // The shortest of the kept is on top; among equals the earlier sample is kept.
    let mut kept: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
    for (index, sample) in samples.iter().enumerate() {
        kept.push(Reverse((sample.response_ns(), Reverse(index))));
        if kept.len() > n {
            kept.pop();
        }
    }
    kept.into_sorted_vec().into_iter().map(|Reverse((_, Reverse(index)))| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;

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

    #[test]
    fn longest_first_and_of_equals_the_earlier() {
        let samples =
            [sample(0, 10), sample(100, 200), sample(150, 400), sample(0, 100), sample(7, 17)];
        assert_eq!(slowest(&samples, 2), [2, 1]);
        assert_eq!(slowest(&samples, 9), [2, 1, 3, 0, 4]);
        assert!(slowest(&samples, 0).is_empty());
    }
}
