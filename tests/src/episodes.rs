//! When harm is done: episodes of irregular length and spacing, the same in every run.

use std::time::Duration;

use observer::clock::MonoNanos;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// One planned episode, from the start of the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it begins.
    pub begin: Duration,
    /// How long it lasts.
    pub length: Duration,
}

/// One episode as it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode {
    /// Before the harm began.
    pub begin: MonoNanos,
    /// After it was undone.
    pub end: MonoNanos,
}

impl Episode {
    /// Whether it has an instant in common with `[begin, end]`.
    #[must_use]
    pub fn overlaps(&self, begin: MonoNanos, end: MonoNanos) -> bool {
        begin <= self.end && self.begin <= end
    }
}

/// The seed of all schedules: every run does the same harm.
const SEED: u64 = 0x0b5e_77e7;

/// Time without harm at the start (the typical request is seen, caches fill) and at the end (the
/// last episode's requests are answered).
const HEAD: Duration = Duration::from_secs(2);
const TAIL: Duration = Duration::from_millis(1200);

/// Episodes of 300 to 600 ms, 1.2 to 2.6 s apart. Irregular, so that no shift of the whole schedule
/// matches itself: attribution uses such shifts to distinguish coincidence from cause.
#[must_use]
pub fn plan(load: Duration) -> Vec<Planned> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let mut episodes = Vec::new();
    let mut begin = HEAD;
    loop {
        let length = Duration::from_millis(random.random_range(300..=600));
        if begin + length + TAIL > load {
            return episodes;
        }
        episodes.push(Planned { begin, length });
        begin += length + Duration::from_millis(random.random_range(1200..=2600));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_enough_irregular_episodes_and_ends_in_time() {
        let load = Duration::from_secs(20);
        let plan = plan(load);
        assert!((6..=9).contains(&plan.len()), "{plan:?}");
        let mut gaps: Vec<_> = plan.windows(2).map(|pair| pair[1].begin - pair[0].begin).collect();
        gaps.sort();
        gaps.dedup();
        assert_eq!(gaps.len(), plan.len() - 1, "no two gaps are alike");
        let last = plan.last().expect("not empty");
        assert!(last.begin + last.length + TAIL <= load);
        assert_eq!(plan, super::plan(load), "the same in every run");
    }

    #[test]
    fn an_episode_overlaps_what_touches_it() {
        let episode = Episode { begin: MonoNanos(10), end: MonoNanos(20) };
        assert!(episode.overlaps(MonoNanos(0), MonoNanos(10)));
        assert!(episode.overlaps(MonoNanos(12), MonoNanos(13)));
        assert!(!episode.overlaps(MonoNanos(0), MonoNanos(9)));
        assert!(!episode.overlaps(MonoNanos(21), MonoNanos(30)));
    }
}
