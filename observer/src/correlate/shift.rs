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
use super::lines::Lines;

/// Most random shifts of each null: the smallest p-value has to pass the correction for many causes.
const SHIFTS: u32 = 5_000;
/// After so many shifts that are at least as extreme, the p-value is known well enough (J. Besag and
/// P. Clifford, Sequential Monte Carlo p-values, Biometrika 78, 1991).
const EXTREME: u32 = 100;
/// Slow samples that are shifted; of more, this many are drawn.
const SHIFTED: usize = 1_000;

/// Both p-values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Coincidence {
    /// Each episode moved on its own.
    pub(super) placed: f64,
    /// The whole timeline moved at once.
    pub(super) shifted: f64,
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
    pub(super) fn test(&self, lines: &Lines, rng: &mut Xoshiro256PlusPlus) -> Coincidence {
        if lines.is_empty() || self.window_ns == 0 || self.episodes.is_empty() {
            return Coincidence { placed: 1.0, shifted: 1.0 };
        }
        let slow_ns: u64 = self.episodes.iter().flatten().map(|one| one.end - one.start).sum();
        let typical_ns: u64 = self.typical.iter().map(|one| one.end - one.start).sum();
        let sum = |samples: &[Served], shift: u64| -> f64 {
            samples.iter().map(|one| lines.shifted_exposure(&one.parts, shift)).sum()
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
        let placed = p_value(|| {
            let elsewhere: f64 = self
                .episodes
                .iter()
                .map(|members| sum(members, rng.random_range(0..self.window_ns)))
                .sum();
            elsewhere >= observed - slack
        });
        let shifted =
            p_value(|| contrast(rng.random_range(0..self.window_ns)) >= observed_contrast - 1e-12);
        Coincidence { placed, shifted }
    }
}

/// How likely chance alone is as extreme as what was observed, by trials.
fn p_value(mut is_extreme: impl FnMut() -> bool) -> f64 {
    let mut extreme = 0;
    for trials in 1..=SHIFTS {
        extreme += u32::from(is_extreme());
        if extreme == EXTREME {
            return f64::from(EXTREME) / f64::from(trials);
        }
    }
    f64::from(1 + extreme) / f64::from(1 + SHIFTS)
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
    p_value(|| {
        let mut sum = 0u128;
        for position in 0..slow_count {
            let other = rng.random_range(position..pool.len());
            pool.swap(position, other);
            sum += u128::from(pool[position]);
        }
        sum >= observed
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::super::lines::whole;
    use super::super::timeline::{Span, Timeline};
    use super::*;

    fn served(start: u64, end: u64, lateness_ns: u64) -> Served {
        Served { start, end, lateness_ns, request: None, parts: whole(start, end) }
    }

    #[test]
    fn periodic_stalls_in_phase_pass_and_out_of_phase_do_not() {
        let second = 1_000_000u64;
        let window = 20 * second;
        let slow: Vec<Served> = (0..20)
            .flat_map(|i| (0..10).map(move |k| i * second + 300_000 + k * 10_000))
            .map(|start| served(start, start + 20_000, 0))
            .collect();
        let typical: Vec<Served> = (0..2_000)
            .map(|i| i * 10_000)
            .filter(|start| !(280_000..420_000).contains(&(start % second)))
            .map(|start| served(start, start + 1_000, 0))
            .collect();
        let begins: Vec<u64> = (0..20).map(|i| i * second + 300_000).collect();
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let shifted = Shifted::new(&slow, &typical, &begins, window, &mut rng);
        let stalls = |phase: u64| {
            let spans = (0..20)
                .map(|i| Span { start: i * second + phase, end: i * second + phase + 120_000 })
                .collect();
            Lines::united(Timeline::union(spans, window))
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
            (0..count).map(|i| served(i, i, late(i))).collect()
        };
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let typical = with(|i| i % 7, 500);
        assert!(lateness_p_value(&with(|i| 10 + i % 7, 50), &typical, &mut rng) < 0.002);
        assert!(lateness_p_value(&with(|i| i % 7, 50), &typical, &mut rng) > 0.05);
        assert_eq!(lateness_p_value(&[], &[], &mut rng), 1.0);
    }
}
