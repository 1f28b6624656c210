//! Confidence intervals: blocks of time drawn again with the samples in them.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::exposure::Served;
use super::share::{Shares, Sums, shares};

/// Resamples.
const RESAMPLES: usize = 1_000;

/// Length of a block: a fiftieth of the window, and several times the longest slow response so that
/// samples that belong together are drawn together, but at most a tenth of the window, so that there
/// are enough blocks to draw from. A longer episode is not cut, unless it takes a third of the window.
pub(super) fn block_ns(window_ns: u64, longest_ns: u64, episode_ns: u64) -> u64 {
    let usual_ns = (window_ns / 50).max(longest_ns.saturating_mul(4)).min(window_ns / 10);
    usual_ns.max(episode_ns.min(window_ns / 3)).max(1)
}

/// Sums of slow and of typical samples, per block of time.
pub(super) struct Blocks(Vec<(Sums, Sums)>);

impl Blocks {
    /// `exposures` are one vector a cause, in the order of the samples.
    pub(super) fn new(
        (slow, slow_exposures): (&[Served], &[Vec<f64>]),
        (typical, typical_exposures): (&[Served], &[Vec<f64>]),
        window_ns: u64,
        block_ns: u64,
    ) -> Self {
        let causes = slow_exposures.len();
        let count = (window_ns / block_ns + 1) as usize;
        let mut blocks = vec![(Sums::new(causes), Sums::new(causes)); count];
        let block = |sample: &Served| {
            let begin = sample.start.saturating_sub(sample.lateness_ns);
            ((begin / block_ns) as usize).min(count - 1)
        };
        for (index, sample) in slow.iter().enumerate() {
            let exposures = slow_exposures.iter().map(|cause| cause[index]);
            blocks[block(sample)].0.add(sample, exposures);
        }
        for (index, sample) in typical.iter().enumerate() {
            let exposures = typical_exposures.iter().map(|cause| cause[index]);
            blocks[block(sample)].1.add(sample, exposures);
        }
        blocks.retain(|(slow, typical)| slow.count + typical.count > 0.0);
        Self(blocks)
    }

    /// The shares as measured.
    pub(super) fn shares(&self, duties: &[f64]) -> Option<Shares> {
        let (slow, typical) = self.sum(duties.len(), 0..self.0.len());
        shares(&slow, &typical, duties)
    }

    fn sum(&self, causes: usize, blocks: impl Iterator<Item = usize>) -> (Sums, Sums) {
        let mut sums = (Sums::new(causes), Sums::new(causes));
        for block in blocks {
            sums.0.merge(&self.0[block].0);
            sums.1.merge(&self.0[block].1);
        }
        sums
    }

    /// The shares of each resample that has extra latency.
    pub(super) fn resample(&self, duties: &[f64], rng: &mut Xoshiro256PlusPlus) -> Vec<Shares> {
        let count = self.0.len();
        if count == 0 {
            return Vec::new();
        }
        (0..RESAMPLES)
            .filter_map(|_| {
                let drawn = (0..count).map(|_| rng.random_range(0..count));
                let (slow, typical) = self.sum(duties.len(), drawn);
                shares(&slow, &typical, duties)
            })
            .collect()
    }
}

/// The middle 95 % of the values; the whole range 0 to 1 when there are none.
pub(super) fn interval95(mut values: Vec<f64>) -> [f64; 2] {
    if values.is_empty() {
        return [0.0, 1.0];
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |quantile: f64| values[((values.len() - 1) as f64 * quantile).round() as usize];
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::lines::whole;
    use super::*;

    #[test]
    fn block_length_follows_window_and_responses() {
        assert_eq!(block_ns(60_000, 100, 100), 1_200);
        assert_eq!(block_ns(60_000, 1_000, 3_000), 4_000);
        assert_eq!(block_ns(60_000, 50_000, 0), 6_000);
        assert_eq!(block_ns(60_000, 100, 9_000), 9_000);
        assert_eq!(block_ns(60_000, 100, 50_000), 20_000);
        assert_eq!(block_ns(0, 0, 0), 1);
    }

    #[test]
    fn the_interval_is_the_middle_of_the_values() {
        assert_eq!(interval95((0..=1_000).map(f64::from).collect()), [25.0, 975.0]);
        assert_eq!(interval95(Vec::new()), [0.0, 1.0]);
    }

    #[test]
    fn one_block_out_of_ten_leaves_zero_in_the_interval() {
        let one = |start: u64, ns: u64| {
            let end = start + ns;
            Served { start, end, lateness_ns: 0, request: None, parts: whole(start, end) }
        };
        let slow: Vec<Served> = (0..10).map(|i| one(i * 100, 50)).collect();
        let typical: Vec<Served> = (0..10).map(|i| one(i * 100 + 60, 10)).collect();
        let everywhere = vec![40.0; 10];
        let mut once = vec![0.0; 10];
        once[3] = 40.0;
        let blocks = Blocks::new(
            (&slow, &[everywhere, once]),
            (&typical, &[vec![0.0; 10], vec![0.0; 10]]),
            1_000,
            100,
        );
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let resamples = blocks.resample(&[0.0, 0.0], &mut rng);
        assert!(resamples.len() > 900);
        let of = |cause: usize| interval95(resamples.iter().map(|s| s.stalls[cause]).collect());
        assert!(of(0)[0] > 0.5, "{:?}", of(0));
        assert_eq!(of(1)[0], 0.0, "{:?}", of(1));
        assert!(of(1)[1] > 0.1);
    }
}
