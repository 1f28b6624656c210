//! One distribution of durations in the buckets of the kernel side.

use observer_ebpf::wire::{self, BUCKETS, BUCKETS_PER_OCTAVE, OCTAVES, octave_of_bucket};

use crate::model::DistributionSummary;

/// Upper bound of a bucket, nanoseconds, inclusive; infinity for the overflow bucket.
#[must_use]
pub fn bucket_upper_ns(bucket: usize) -> f64 {
    wire::native_index(bucket).map_or(f64::INFINITY, |index| {
        (f64::from(index) / f64::from(BUCKETS_PER_OCTAVE)).exp2() * 1e9
    })
}

/// Lower bound of a bucket, nanoseconds, exclusive (bucket 0 begins at 0).
fn bucket_lower_ns(bucket: usize) -> f64 {
    if bucket == 0 { 0.0 } else { bucket_upper_ns(bucket - 1) }
}

/// Durations counted in the buckets of [`wire::Histogram`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Sum of all durations, nanoseconds.
    pub sum_ns: u64,
    /// Longest duration, nanoseconds.
    pub max_ns: u64,
    /// Durations per bucket; bounds from [`bucket_upper_ns`].
    pub buckets: [u64; BUCKETS],
}

impl Default for Distribution {
    fn default() -> Self {
        Self { sum_ns: 0, max_ns: 0, buckets: [0; BUCKETS] }
    }
}

impl Distribution {
    /// Adds what one CPU counted.
    pub fn add(&mut self, part: &wire::Histogram) {
        self.sum_ns = self.sum_ns.saturating_add(part.sum_ns);
        self.max_ns = self.max_ns.max(part.max_ns);
        for (mine, theirs) in self.buckets.iter_mut().zip(&part.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// Counts one duration, as the kernel side would.
    pub fn record(&mut self, duration_ns: u64) {
        self.sum_ns = self.sum_ns.saturating_add(duration_ns);
        self.max_ns = self.max_ns.max(duration_ns);
        self.buckets[wire::bucket_index(duration_ns)] += 1;
    }

    /// Adds another distribution.
    pub fn merge(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// What was counted since `earlier`.
    ///
    /// A maximum cannot be subtracted: when it did not rise, the longest of the interval is known
    /// only to lie in the highest bucket that was counted in, whose upper bound (capped by the
    /// maximum of all time) is given.
    #[must_use]
    pub fn delta(&self, earlier: &Self) -> Self {
        let mut delta = Self { sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns), ..self.clone() };
        for (mine, theirs) in delta.buckets.iter_mut().zip(&earlier.buckets) {
            *mine = mine.saturating_sub(*theirs);
        }
        if self.max_ns <= earlier.max_ns {
            delta.max_ns = delta
                .buckets
                .iter()
                .rposition(|count| *count > 0)
                .map_or(0, |top| (bucket_upper_ns(top) as u64).min(self.max_ns));
        }
        delta
    }

    /// Durations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The most that the durations below a limit can sum to: those of a bucket count as its upper bound.
    #[must_use]
    pub fn below_ns(&self, limit_ns: u64) -> u64 {
        let limit = limit_ns as f64;
        let below = (0..BUCKETS).take_while(|bucket| bucket_lower_ns(*bucket) < limit);
        let time = |bucket: usize| self.buckets[bucket] as f64 * bucket_upper_ns(bucket).min(limit);
        (below.map(time).sum::<f64>() as u64).min(self.sum_ns)
    }

    /// The duration below which a fraction `quantile` (0 to 1) lies, interpolated inside its
    /// bucket (9 % wide) and never above the longest duration; 0 when nothing was counted.
    #[must_use]
    pub fn quantile_ns(&self, quantile: f64) -> u64 {
        let count = self.count();
        if count == 0 {
            return 0;
        }
        let rank = quantile.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        for (bucket, &inside) in self.buckets.iter().enumerate() {
            let inside = inside as f64;
            if inside > 0.0 && below + inside >= rank {
                let lower = bucket_lower_ns(bucket);
                let upper = bucket_upper_ns(bucket).min((self.max_ns as f64).max(lower));
                let value = lower + (upper - lower) * ((rank - below) / inside);
                return (value.round() as u64).min(self.max_ns);
            }
            below += inside;
        }
        self.max_ns
    }

    /// The distribution in five numbers.
    #[must_use]
    pub fn summary(&self) -> DistributionSummary {
        DistributionSummary {
            count: self.count(),
            sum_ns: self.sum_ns,
            p50_ns: self.quantile_ns(0.5),
            p99_ns: self.quantile_ns(0.99),
            max_ns: self.max_ns,
        }
    }
}

/// Durations counted in the buckets of [`wire::CgroupHistogram`], one an octave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Octaves {
    /// Sum of all durations, nanoseconds.
    pub sum_ns: u64,
    /// Durations per octave; bounds from [`wire::octave_exponent`].
    pub counts: [u64; OCTAVES],
}

impl From<&Distribution> for Octaves {
    fn from(distribution: &Distribution) -> Self {
        let mut octaves = Self { sum_ns: distribution.sum_ns, ..Self::default() };
        for (bucket, &count) in distribution.buckets.iter().enumerate() {
            let sum = &mut octaves.counts[octave_of_bucket(bucket)];
            *sum = sum.saturating_add(count);
        }
        octaves
    }
}

impl Octaves {
    /// Durations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds others.
    pub fn merge(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.saturating_add(*theirs);
        }
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn delta(&self, earlier: &Self) -> Self {
        let mut delta = self.clone();
        delta.sum_ns = delta.sum_ns.saturating_sub(earlier.sum_ns);
        for (mine, theirs) in delta.counts.iter_mut().zip(&earlier.counts) {
            *mine = mine.saturating_sub(*theirs);
        }
        delta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;

    fn of(durations: impl IntoIterator<Item = u64>) -> Distribution {
        let mut distribution = Distribution::default();
        durations.into_iter().for_each(|ns| distribution.record(ns));
        distribution
    }

    #[test]
    fn bounds_agree_with_the_kernel_side() {
        for ns in [60u64, 500, 12_345, 1_000_000, 999_999_999] {
            let bucket = wire::bucket_index(ns);
            assert!(bucket_lower_ns(bucket) < ns as f64 + 1.0, "{ns}");
            assert!(bucket_upper_ns(bucket) > ns as f64 - 1.0, "{ns}");
        }
        assert_eq!(bucket_upper_ns(BUCKETS - 1), f64::INFINITY);
        assert_eq!(bucket_upper_ns(BUCKETS - 2), 128e9);
    }

    #[test]
    fn the_time_below_a_limit_is_bounded_within_a_bucket() {
        let distribution = of([30, 1_000, 2_000, 4_000, 8_000, 1_000_000]);
        let below_ns = distribution.below_ns(5_000);
        assert!((7_030..7_030 * 110 / 100).contains(&below_ns), "{below_ns}");
        assert_eq!(distribution.below_ns(0), 0);
        assert_eq!(distribution.below_ns(u64::MAX), distribution.sum_ns);
        assert_eq!(Distribution::default().below_ns(5_000), 0);
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let distribution = of((1..=10_000).map(|n| n * 1_000));
        for (quantile, truth) in [(0.5, 5_000_000.0), (0.9, 9_000_000.0), (0.99, 9_900_000.0)] {
            let got = distribution.quantile_ns(quantile) as f64;
            assert!((got / truth - 1.0).abs() < 0.02, "p{quantile}: {got} for {truth}");
        }
        assert_eq!(distribution.quantile_ns(1.0), 10_000_000);
        assert_eq!(distribution.count(), 10_000);
        assert_eq!(distribution.sum_ns, 10_000 * 10_001 / 2 * 1_000);
    }

    #[test]
    fn one_duration_is_never_exceeded() {
        let distribution = of([777]);
        assert_eq!(distribution.quantile_ns(0.99), distribution.quantile_ns(0.99).min(777));
        assert_eq!(distribution.quantile_ns(1.0), 777);
        let huge = of([u64::MAX / 2]);
        assert!(huge.quantile_ns(0.5) >= 128_000_000_000);
        assert_eq!(huge.quantile_ns(1.0), u64::MAX / 2);
        assert_eq!(Distribution::default().summary(), DistributionSummary::default());
    }

    #[test]
    fn a_delta_holds_only_what_came_later() {
        let earlier = of([1_000, 2_000_000]);
        let mut later = earlier.clone();
        later.record(50_000);
        let delta = later.delta(&earlier);
        assert_eq!((delta.count(), delta.sum_ns), (1, 50_000));
        // The longest of all time came earlier, so the bound of the bucket is used instead.
        assert!(delta.max_ns >= 50_000 && delta.max_ns < 55_000, "{}", delta.max_ns);
        later.record(3_000_000);
        assert_eq!(later.delta(&earlier).max_ns, 3_000_000);
        assert_eq!(earlier.delta(&earlier), Distribution::default());
    }

    #[test]
    fn octaves_hold_what_the_buckets_hold() {
        let distribution = of([1, 476, 478, 900, 5_000, 5_000, 1 << 40]);
        let mut octaves = Octaves::from(&distribution);
        assert_eq!((octaves.count(), octaves.sum_ns), (7, distribution.sum_ns));
        assert_eq!(octaves.counts[..2], [2, 2], "up to 477 ns, and up to 954 ns");
        assert_eq!(octaves.counts[OCTAVES - 1], 1, "above 128 s");
        let earlier = octaves.clone();
        octaves.merge(&Octaves::from(&of([5_000])));
        assert_eq!(octaves.delta(&earlier), Octaves::from(&of([5_000])));
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest_and_its_maximum() {
        // A duration that was counted on one CPU, and again on another as one to be moved.
        let all = of([1_000, 9_000, 9_000]);
        let rest = all.delta(&of([9_000]));
        assert_eq!((rest.count(), rest.sum_ns), (2, 10_000));
        assert_eq!(rest.max_ns, 9_000, "the other one is still there");
        assert_eq!(rest.delta(&of([9_000])).buckets, of([1_000]).buckets);
        assert!(rest.delta(&of([9_000])).max_ns < 1_100);
        // Not even a torn reading makes a count negative.
        assert_eq!(of([]).delta(&of([9_000])), Distribution::default());
    }

    #[test]
    fn parts_of_the_cpus_add_up() {
        let mut first = wire::Histogram::zeroed();
        let mut second = wire::Histogram::zeroed();
        for (part, ns) in [(&mut first, 1_000u64), (&mut second, 9_000)] {
            part.sum_ns += ns;
            part.max_ns = part.max_ns.max(ns);
            part.buckets[wire::bucket_index(ns)] += 1;
        }
        let mut whole = Distribution::default();
        [&first, &second].into_iter().for_each(|part| whole.add(part));
        assert_eq!(whole, of([1_000, 9_000]));
        let mut merged = of([1_000]);
        merged.merge(&of([9_000]));
        assert_eq!(merged, of([1_000, 9_000]));
    }
}
