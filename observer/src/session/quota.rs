//! How many events the trace keeps: limits by kind, and every n-th event of frequent kinds that are
//! not stalls. Pure; called by the sink that writes the trace.

use observer_ebpf::wire::{KIND_SLOTS, RecordKind};

use crate::clock::MonoNanos;
use crate::model::SamplingChange;
use crate::probe;

/// A quarter of the room is divided among the kinds; the rest is open to all of them.
const RESERVED_PART: u64 = 4;

/// How many events of each kind are kept: no kind can take the room that is reserved for another.
pub(super) struct Caps {
    /// Room that any kind may use: of stalls, and of the other kinds.
    pools: [u64; 2],
    /// Room that a kind has for itself.
    reserved: [u64; KIND_SLOTS],
}

/// Which pool a kind uses.
fn pool(kind: usize) -> usize {
    let stalls = probe::with_floor().any(|(stall, _)| stall as usize == kind);
    usize::from(!stalls)
}

impl Caps {
    /// Room for this many stalls and this many other events.
    pub(super) fn new(stalls: u64, others: u64) -> Self {
        let totals = [stalls, others];
        let mut kinds = [0; 2];
        RecordKind::ALL.iter().for_each(|kind| kinds[pool(*kind as usize)] += 1);
        let share = |pool: usize| totals[pool] / RESERVED_PART / kinds[pool].max(1);
        let mut reserved = [0; KIND_SLOTS];
        for kind in RecordKind::ALL {
            reserved[kind as usize] = share(pool(kind as usize));
        }
        let pools = [0, 1].map(|pool| totals[pool] - share(pool) * kinds[pool]);
        Self { pools, reserved }
    }

    /// Room without an end, for a trace that removes its oldest part.
    pub(super) const fn unlimited() -> Self {
        Self { pools: [u64::MAX / 2; 2], reserved: [0; KIND_SLOTS] }
    }

    /// Whether one more of a kind is kept, which stands for this many stalls, or is one other event.
    pub(super) fn take(&mut self, kind: usize, stalls: u64) -> bool {
        let pool = &mut self.pools[pool(kind)];
        let room = if *pool >= stalls { pool } else { &mut self.reserved[kind] };
        let fits = *room >= stalls;
        *room -= if fits { stalls } else { 0 };
        fits
    }

    /// Stalls that any kind may still have.
    pub(super) const fn room(&self) -> u64 {
        self.pools[0]
    }
}

/// Keeps every n-th event of a kind, by how many come.
#[derive(Clone, Copy, Debug)]
struct Sampler {
    one_in: u32,
    /// Events of the current second.
    seen: u64,
    kept: u64,
    /// Since one was kept.
    skipped: u32,
}

/// The samplers of all kinds.
pub(super) struct Sampling {
    per_second: u64,
    samplers: [Sampler; KIND_SLOTS],
    second: MonoNanos,
}

impl Sampling {
    /// About this many events a second of each kind are kept.
    pub(super) const fn new(per_second: u64, now: MonoNanos) -> Self {
        let sampler = Sampler { one_in: 1, seen: 0, kept: 0, skipped: 0 };
        Self { per_second, samplers: [sampler; KIND_SLOTS], second: now }
    }

    /// Whether this event is kept; with the change that it made.
    pub(super) fn keep(&mut self, kind: RecordKind) -> (bool, Option<SamplingChange>) {
        let sampler = &mut self.samplers[kind as usize];
        sampler.seen += 1;
        sampler.skipped += 1;
        if sampler.skipped < sampler.one_in {
            return (false, None);
        }
        sampler.skipped = 0;
        sampler.kept += 1;
        // Reacts within the second, so that a burst cannot fill the trace first.
        let full = sampler.kept >= 2 * self.per_second;
        let change = full.then(|| {
            sampler.kept = 0;
            sampler.change(kind, sampler.one_in.saturating_mul(2))
        });
        (true, change)
    }

    /// A second may have passed: fits the sampling to what came.
    pub(super) fn tick(&mut self, now: MonoNanos) -> Vec<SamplingChange> {
        let elapsed_ns = now.since(self.second);
        if elapsed_ns < 1_000_000_000 {
            return Vec::new();
        }
        self.second = now;
        let per_second = self.per_second.max(1);
        let mut changes = Vec::new();
        for kind in RecordKind::ALL {
            let sampler = &mut self.samplers[kind as usize];
            let rate = u128::from(sampler.seen) * 1_000_000_000 / u128::from(elapsed_ns);
            let wanted = u32::try_from(rate.div_ceil(u128::from(per_second))).unwrap_or(u32::MAX);
            // Falls by halves, so that a short pause does not open it for the next burst.
            let one_in = wanted.max(1).max(sampler.one_in / 2);
            (sampler.seen, sampler.kept) = (0, 0);
            if one_in != sampler.one_in {
                changes.push(sampler.change(kind, one_in));
            }
        }
        changes
    }

    /// What is in force, where that is not to keep all.
    pub(super) fn in_force(&self) -> Vec<SamplingChange> {
        let sampled = RecordKind::ALL.into_iter().filter_map(|record| {
            let one_in = self.samplers[record as usize].one_in;
            let change = SamplingChange { record, old_one_in: one_in, new_one_in: one_in };
            (one_in > 1).then_some(change)
        });
        sampled.collect()
    }
}

impl Sampler {
    fn change(&mut self, record: RecordKind, one_in: u32) -> SamplingChange {
        let change = SamplingChange { record, old_one_in: self.one_in, new_one_in: one_in };
        self.one_in = one_in;
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_kind_takes_the_room_of_another() {
        let mut caps = Caps::new(1_000, 100);
        let mut fill =
            |kind: RecordKind| (0..5_000).filter(|_| caps.take(kind as usize, 1)).count();
        let faults = fill(RecordKind::Fault);
        let reserved = 250 / probe::with_floor().count();
        let pool = 1_000 - reserved * probe::with_floor().count();
        assert_eq!(faults, pool + reserved, "the pool, and its part of the quarter");
        assert_eq!(fill(RecordKind::Runqueue), reserved);
        let sockets = fill(RecordKind::Socket);
        assert!(sockets < 100, "{sockets}");
        let rest: usize = RecordKind::ALL.into_iter().map(&mut fill).sum();
        assert!(fill(RecordKind::Task) == 0 && rest > 0);
        assert!(faults + reserved + sockets + rest <= 1_100);
        assert_eq!(caps.room(), 0);
    }

    /// Sends events at a rate for some seconds; returns how many are kept, and the changes.
    fn flood(sampling: &mut Sampling, from: u64, seconds: u64, rate: u64) -> (u64, Vec<u32>) {
        let (mut kept, mut changes) = (0, Vec::new());
        for second in from..from + seconds {
            for _ in 0..rate {
                let (keep, change) = sampling.keep(RecordKind::Socket);
                kept += u64::from(keep);
                changes.extend(change);
            }
            changes.extend(sampling.tick(MonoNanos((second + 1) * 1_000_000_000)));
        }
        (kept, changes.into_iter().map(|change| change.new_one_in).collect())
    }

    #[test]
    fn what_is_below_the_rate_is_kept_whole() {
        let mut sampling = Sampling::new(100, MonoNanos(0));
        assert_eq!(flood(&mut sampling, 0, 10, 100), (1_000, Vec::new()));
        assert!(sampling.in_force().is_empty());
    }

    #[test]
    fn above_the_rate_every_nth_is_kept_and_all_again_when_it_is_over() {
        let mut sampling = Sampling::new(100, MonoNanos(0));
        let (kept, changes) = flood(&mut sampling, 0, 1, 10_000);
        assert!(kept < 1_500, "a burst doubles n as it comes: {kept}");
        assert_eq!(changes.last(), Some(&100));
        assert_eq!(flood(&mut sampling, 1, 10, 10_000), (1_000, Vec::new()), "one in a hundred");
        assert_eq!(sampling.in_force()[0].new_one_in, 100);
        let (_, changes) = flood(&mut sampling, 11, 10, 50);
        assert_eq!(changes, [50, 25, 12, 6, 3, 1]);
        assert_eq!(flood(&mut sampling, 21, 3, 50), (150, Vec::new()));
    }
}
