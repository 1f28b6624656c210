//! How likely coincidence alone gives the overlap that was seen.
//!
//! Two null hypotheses, because each detects what the other misses:
//! - **placed**: every episode of slow samples is moved to a random time of its own. Sharp with a
//!   handful of episodes, and a strictly periodic schedule does not help it by aligning all of them
//!   again. But it assumes that episodes are independent.
//! - **shifted**: the whole stall timeline is moved against all samples at once, slow and typical.
//!   It keeps what both have in common over the run (a warm-up, a common period), so an innocent
//!   cause that recurs with the period of the slow requests is caught unless it is also in phase.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::exposure::{Served, draw};
use super::timeline::Timeline;

/// Random shifts of each null.
pub(super) const SHIFTS: usize = 1_000;
/// Slow samples that are shifted; of more, this many are drawn.
const SHIFTED: usize = 1_000;

/// Both p-values, `(1 + shifts at least as extreme) / (1 + shifts)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coincidence {
    /// Each episode moved on its own.
    pub(super) placed: f64,
    /// The whole timeline moved at once.
    pub(super) shifted: f64,
}

/// Begins of the independent units that slow samples come in: samples closer than a hundredth of
/// the window (at most 1 s) belong together, but no unit is longer than `longest_ns`, because slow
/// samples scattered over the whole run must not join into one.
pub(super) fn episodes(slow_spans: &[(u64, u64)], window_ns: u64, longest_ns: u64) -> Vec<u64> {
    let gap_ns = (window_ns / 100).min(1_000_000_000);
    let mut begins: Vec<u64> = Vec::new();
    let mut until = 0u64;
    for (begin, end) in slow_spans {
        let new = begins.last().is_none_or(|first| {
            *begin > until.saturating_add(gap_ns) || begin - first > longest_ns
        });
        if new {
            begins.push(*begin);
        }
        until = until.max(*end);
    }
    begins
}

/// The samples that take part in the shifts, the slow ones by episode.
pub(super) struct Shifted {
    episodes: Vec<Vec<Served>>,
    typical: Vec<Served>,
    window_ns: u64,
}

impl Shifted {
    /// Draws the samples; `begins` are the begins of the episodes.
    pub(super) fn new(
        slow: &[Served],
        typical: &[Served],
        begins: &[u64],
        window_ns: u64,
        rng: &mut Xoshiro256PlusPlus,
    ) -> Self {
        let mut episodes = vec![Vec::new(); begins.len()];
        let mut drawn = draw(slow, SHIFTED, rng);
        drawn.sort_unstable_by_key(|one| (one.start, one.end));
        for one in drawn {
            let begin = one.start.saturating_sub(one.lateness_ns);
            let episode = begins.partition_point(|first| *first <= begin).saturating_sub(1);
            if let Some(members) = episodes.get_mut(episode) {
                members.push(one);
            }
        }
        let mut typical = draw(typical, SHIFTED / 2, rng);
        typical.sort_unstable_by_key(|one| (one.start, one.end));
        Self { episodes, typical, window_ns }
    }

    /// Tests one cause.
    pub(super) fn test(&self, timeline: &Timeline, rng: &mut Xoshiro256PlusPlus) -> Coincidence {
        if timeline.is_empty() || self.window_ns == 0 || self.episodes.is_empty() {
            return Coincidence { placed: 1.0, shifted: 1.0 };
        }
        let slow_ns: u64 = self.episodes.iter().flatten().map(|one| one.end - one.start).sum();
        let typical_ns: u64 = self.typical.iter().map(|one| one.end - one.start).sum();
        let sum = |samples: &[Served], shift: u64| -> f64 {
            samples.iter().map(|one| timeline.shifted_exposure(one.start, one.end, shift)).sum()
        };
        let contrast = |shift: u64| {
            let slow: f64 = self.episodes.iter().map(|members| sum(members, shift)).sum();
            let typical = sum(&self.typical, shift);
            slow / slow_ns.max(1) as f64 - typical / typical_ns.max(1) as f64
        };
        let observed: f64 = self.episodes.iter().map(|members| sum(members, 0)).sum();
        let observed_contrast = contrast(0);
        // Sums of the same terms in another order may differ in the last bits.
        let slack = slow_ns as f64 * 1e-12;
        let mut placed = 0u32;
        let mut shifted = 0u32;
        for _ in 0..SHIFTS {
            let elsewhere: f64 = self
                .episodes
                .iter()
                .map(|members| sum(members, rng.random_range(0..self.window_ns)))
                .sum();
            placed += u32::from(elsewhere >= observed - slack);
            let shift = rng.random_range(0..self.window_ns);
            shifted += u32::from(contrast(shift) >= observed_contrast - 1e-12);
        }
        let p = |count: u32| f64::from(1 + count) / (1 + SHIFTS) as f64;
        Coincidence { placed: p(placed), shifted: p(shifted) }
    }
}

/// Permutation test of lateness: how likely a random relabelling of slow and typical samples makes
/// the "slow" ones at least as late.
pub(super) fn lateness_p_value(
    slow: &[Served],
    typical: &[Served],
    rng: &mut Xoshiro256PlusPlus,
) -> f64 {
    let mut pool: Vec<u64> = draw(slow, SHIFTED, rng).iter().map(|one| one.lateness_ns).collect();
    let slow_count = pool.len();
    pool.extend(draw(typical, SHIFTED, rng).iter().map(|one| one.lateness_ns));
    let observed: u128 = pool[..slow_count].iter().map(|ns| u128::from(*ns)).sum();
    let mut at_least = 0u32;
    for _ in 0..SHIFTS {
        let mut sum = 0u128;
        for position in 0..slow_count {
            let other = rng.random_range(position..pool.len());
            pool.swap(position, other);
            sum += u128::from(pool[position]);
        }
        at_least += u32::from(sum >= observed);
    }
    f64::from(1 + at_least) / (1 + SHIFTS) as f64
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::timeline::Span;
    use super::*;

    #[test]
    fn episodes_join_neighbours_and_split_long_chains() {
        let window = 10_000;
        let spans = [(100, 150), (200, 900), (950, 960), (2_000, 2_010), (2_200, 2_300)];
        assert_eq!(episodes(&spans, window, 5_000), [100, 2_000, 2_200]);
        assert_eq!(episodes(&spans, window, 500), [100, 950, 2_000, 2_200]);
        assert!(episodes(&[], window, 500).is_empty());
        let chain: Vec<(u64, u64)> = (0..100).map(|i| (i * 100, i * 100 + 50)).collect();
        assert_eq!(episodes(&chain, window, 999).len(), 10);
    }

    #[test]
    fn periodic_stalls_in_phase_pass_and_out_of_phase_do_not() {
        let second = 1_000_000u64;
        let window = 20 * second;
        let slow: Vec<Served> = (0..20)
            .flat_map(|i| (0..10).map(move |k| i * second + 300_000 + k * 10_000))
            .map(|start| Served { start, end: start + 20_000, lateness_ns: 0 })
            .collect();
        let typical: Vec<Served> = (0..2_000)
            .map(|i| i * 10_000)
            .filter(|start| !(280_000..420_000).contains(&(start % second)))
            .map(|start| Served { start, end: start + 1_000, lateness_ns: 0 })
            .collect();
        let spans: Vec<(u64, u64)> = slow.iter().map(|one| (one.start, one.end)).collect();
        let begins = episodes(&spans, window, second);
        assert_eq!(begins.len(), 20);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let shifted = Shifted::new(&slow, &typical, &begins, window, &mut rng);
        let stalls = |phase: u64| {
            let spans = (0..20)
                .map(|i| Span { start: i * second + phase, end: i * second + phase + 120_000 })
                .collect();
            Timeline::union(spans, window)
        };
        let inside = shifted.test(&stalls(295_000), &mut rng);
        assert!(inside.placed < 0.01 && inside.shifted < 0.05, "{inside:?}");
        let beside = shifted.test(&stalls(500_000), &mut rng);
        assert_eq!(beside.placed, 1.0);
        let partly = shifted.test(&stalls(350_000), &mut rng);
        assert!(partly.shifted > 0.05, "{partly:?}");
    }

    #[test]
    fn late_samples_are_distinguished_from_equally_late_ones() {
        let with = |late: fn(u64) -> u64, count: u64| -> Vec<Served> {
            (0..count).map(|i| Served { start: i, end: i, lateness_ns: late(i) }).collect()
        };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let typical = with(|i| i % 7, 500);
        assert!(lateness_p_value(&with(|i| 10 + i % 7, 50), &typical, &mut rng) < 0.002);
        assert!(lateness_p_value(&with(|i| i % 7, 50), &typical, &mut rng) > 0.05);
        assert_eq!(lateness_p_value(&[], &[], &mut rng), 1.0);
    }
}
