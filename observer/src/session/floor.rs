//! The adaptive floor: the minimum length of stalls that are sent as records, for the frequent
//! kinds, depending on their rate. A pure state machine; the thread that drains the ring feeds it.
//!
//! Under pressure the floors of the kinds that make up most of the records rise: at once when
//! records are lost or the ring fills up faster than it is drained, after a moment when there are
//! more records a second than the budget. They fall again, step by step, after the load has been
//! low for a while. A step down that had to be taken back makes the next one wait twice as long.

use observer_ebpf::wire::{KIND_SLOTS, RecordKind};

use crate::model::{FloorChange, FloorReason};
use crate::probe;

/// Records a second that are always accepted. A record costs about a microsecond from the ring to
/// the trace: this is some two percent of a CPU.
const BUDGET_HZ: f64 = 20_000.0;
/// At the current rate, the memory for stalls must last at least this long. Since the budget
/// shrinks with the room that is left, it is never used up.
const ROOM_LASTS_SECONDS: f64 = 120.0;
/// Rates are taken over this time.
const WINDOW_NS: u64 = 250_000_000;
/// After a raise: what was sent under the old floor is still on its way, and so is the news of
/// what was lost.
const SETTLE_NS: u64 = 100_000_000;
/// The ring must not fill up this far between two drains.
const RING_SHARE: f64 = 0.5;
/// A step down may make four times the records: it is taken below this part of the budget.
const CALM_SHARE: f64 = 0.2;
/// Raised by these factors, lowered by the last one.
const LOSS_FACTOR: u64 = 8;
const RING_FACTOR: u64 = 4;
const RATE_FACTOR: u64 = 2;
const CALM_FACTOR: u64 = 4;
/// How long the load must have been low before a step down; doubled by each that was taken back.
const HOLD_NS: u64 = 1_000_000_000;
const HOLD_MAX_NS: u64 = 64_000_000_000;
/// A kind with less than this part of the records is not raised.
const BLAME_SHARE: f64 = 0.2;
/// Smallest floor a raise leads to: below, the clock alone decides.
const RAISED_MIN_NS: u64 = 1_000;
/// Largest: a thread cannot have more than a hundred such stalls a second.
const RAISED_MAX_NS: u64 = 10_000_000;

/// What happened since the last step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Now.
    pub(super) now_ns: u64,
    /// Records that came, by kind.
    pub(super) records: [u64; KIND_SLOTS],
    /// Records that were lost, all kinds.
    pub(super) lost: u64,
    /// Part of the ring that fills up between two drains.
    pub(super) ring_share: f64,
    /// Stalls there is still memory for.
    pub(super) room: u64,
}

/// One kind whose floor may be changed.
#[derive(Clone, Debug)]
struct Kind {
    record: RecordKind,
    base_ns: u64,
    floor_ns: u64,
    /// When it was last lowered.
    lowered_ns: Option<u64>,
    hold_ns: u64,
}

/// The state machine.
#[derive(Clone, Debug)]
pub(super) struct FloorControl {
    kinds: Vec<Kind>,
    window_start_ns: u64,
    window: [u64; KIND_SLOTS],
    /// Loss or a full ring within the window.
    window_pressed: bool,
    settled_ns: u64,
    /// Since when the load has been low; `None` while it is not.
    calm_since_ns: Option<u64>,
}

impl FloorControl {
    /// Kinds with a floor in their probe's table adapt, except those fixed by hand.
    #[must_use]
    pub(super) fn new(now_ns: u64, fixed: &[RecordKind]) -> Self {
        let kinds = probe::with_floor()
            .filter(|(record, base_ns)| *base_ns > 0 && !fixed.contains(record))
            .map(|(record, base_ns)| Kind {
                record,
                base_ns,
                floor_ns: base_ns,
                lowered_ns: None,
                hold_ns: HOLD_NS,
            })
            .collect();
        Self {
            kinds,
            window_start_ns: now_ns,
            window: [0; KIND_SLOTS],
            window_pressed: false,
            settled_ns: now_ns,
            calm_since_ns: None,
        }
    }

    /// Processes what happened and returns the floors to change now.
    pub(super) fn step(&mut self, load: &Load) -> Vec<FloorChange> {
        for (sum, count) in self.window.iter_mut().zip(load.records) {
            *sum += count;
        }
        let urgent = if load.lost > 0 {
            Some((FloorReason::Loss, LOSS_FACTOR))
        } else if load.ring_share > RING_SHARE {
            Some((FloorReason::Ring, RING_FACTOR))
        } else {
            None
        };
        self.window_pressed |= urgent.is_some();
        if load.now_ns < self.settled_ns {
            return Vec::new();
        }
        if let Some((reason, factor)) = urgent {
            return self.raise(load.now_ns, reason, factor);
        }
        let elapsed_ns = load.now_ns.saturating_sub(self.window_start_ns);
        if elapsed_ns < WINDOW_NS {
            return Vec::new();
        }
        let adapting: u64 = self.kinds.iter().map(|kind| self.window[kind.record as usize]).sum();
        let rate_hz = adapting as f64 * 1e9 / elapsed_ns as f64;
        let room_hz = load.room as f64 / ROOM_LASTS_SECONDS;
        let budget_hz = BUDGET_HZ.min(room_hz);
        if rate_hz > budget_hz {
            let reason = if room_hz < BUDGET_HZ { FloorReason::Room } else { FloorReason::Rate };
            return self.raise(load.now_ns, reason, RATE_FACTOR);
        }
        let calm = rate_hz < budget_hz * CALM_SHARE && !self.window_pressed;
        let window_start_ns = self.window_start_ns;
        self.begin_window(load.now_ns);
        if !calm {
            self.calm_since_ns = None;
            return Vec::new();
        }
        let since_ns = *self.calm_since_ns.get_or_insert(window_start_ns);
        self.lower(load.now_ns, load.now_ns.saturating_sub(since_ns)).into_iter().collect()
    }

    fn begin_window(&mut self, now_ns: u64) {
        self.window_start_ns = now_ns;
        self.window = [0; KIND_SLOTS];
        self.window_pressed = false;
    }

    /// Raises the kinds that make up most of the records of the window.
    fn raise(&mut self, now_ns: u64, reason: FloorReason, factor: u64) -> Vec<FloorChange> {
        let window = self.window;
        let count = |kind: &Kind| window[kind.record as usize];
        let all: u64 = window.iter().sum();
        let mut changes = Vec::new();
        for kind in &mut self.kinds {
            let blamed = count(kind) > 0 && count(kind) as f64 >= all as f64 * BLAME_SHARE;
            if !blamed || kind.floor_ns >= RAISED_MAX_NS {
                continue;
            }
            let new_ns = kind.floor_ns.saturating_mul(factor).clamp(RAISED_MIN_NS, RAISED_MAX_NS);
            // Taken back soon: the step down was too early.
            if let Some(lowered_ns) = kind.lowered_ns.take() {
                let soon = now_ns.saturating_sub(lowered_ns) < 2 * kind.hold_ns;
                kind.hold_ns = if soon { (2 * kind.hold_ns).min(HOLD_MAX_NS) } else { HOLD_NS };
            }
            changes.push(FloorChange {
                record: kind.record,
                old_ns: kind.floor_ns,
                new_ns,
                reason,
            });
            kind.floor_ns = new_ns;
        }
        self.begin_window(now_ns);
        self.settled_ns = now_ns + SETTLE_NS;
        self.calm_since_ns = None;
        changes
    }

    /// Lowers the kind that was raised most, if it has waited long enough.
    fn lower(&mut self, now_ns: u64, calm_ns: u64) -> Option<FloorChange> {
        let kind = self
            .kinds
            .iter_mut()
            .filter(|kind| kind.floor_ns > kind.base_ns && calm_ns >= kind.hold_ns)
            .max_by_key(|kind| kind.floor_ns / kind.base_ns.max(1))?;
        let old_ns = kind.floor_ns;
        let new_ns = (old_ns / CALM_FACTOR).max(kind.base_ns);
        kind.floor_ns = new_ns;
        kind.lowered_ns = Some(now_ns);
        self.calm_since_ns = Some(now_ns);
        Some(FloorChange { record: kind.record, old_ns, new_ns, reason: FloorReason::Calm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PLENTY: u64 = u64::MAX / 2;

    /// A control fed every 10 ms, whose target has stalls of these kinds and lengths.
    struct Drill {
        control: FloorControl,
        now_ns: u64,
        changes: Vec<(u64, FloorChange)>,
        room: u64,
    }

    impl Drill {
        fn new(fixed: &[RecordKind]) -> Self {
            let control = FloorControl::new(0, fixed);
            Self { control, now_ns: 0, changes: Vec::new(), room: PLENTY }
        }

        fn floor_ns(&self, record: RecordKind) -> u64 {
            let of_kind = |kind: &&Kind| kind.record == record;
            self.control.kinds.iter().find(of_kind).expect("adapts").floor_ns
        }

        /// `rates_hz` at a floor of 1 µs; a floor of n µs lets the n-th part through.
        fn run(&mut self, ms: u64, rates_hz: &[(RecordKind, f64)], lost_above_hz: f64) {
            for _ in 0..ms / 10 {
                self.now_ns += 10 * MS;
                let mut records = [0; KIND_SLOTS];
                for (kind, rate_hz) in rates_hz {
                    let share = 1_000.0 / self.floor_ns(*kind).max(1_000) as f64;
                    records[*kind as usize] = (rate_hz * share * 0.01) as u64;
                }
                let rate_hz = records.iter().sum::<u64>() as f64 * 100.0;
                let lost = if rate_hz > lost_above_hz { 1 } else { 0 };
                let load =
                    Load { now_ns: self.now_ns, records, lost, ring_share: 0.0, room: self.room };
                let changes = self.control.step(&load);
                self.changes.extend(changes.into_iter().map(|change| (self.now_ns, change)));
            }
        }
    }

    #[test]
    fn frequent_kinds_adapt_unless_they_are_fixed() {
        let names = |fixed: &[RecordKind]| -> Vec<&str> {
            FloorControl::new(0, fixed).kinds.iter().map(|kind| kind.record.name()).collect()
        };
        let mut adapt = names(&[]);
        assert!(["runqueue", "fault", "mm_syscall"].iter().all(|kind| adapt.contains(kind)));
        assert!(["reclaim", "compaction", "socket"].iter().all(|kind| !adapt.contains(kind)));
        adapt.retain(|kind| *kind != "fault");
        assert_eq!(names(&[RecordKind::Fault]), adapt);
    }

    #[test]
    fn a_load_within_the_budget_changes_nothing() {
        let mut drill = Drill::new(&[]);
        drill.run(60_000, &[(RecordKind::Runqueue, 5.0 * 19_000.0)], f64::MAX);
        assert_eq!(drill.changes, []);
    }

    #[test]
    fn the_kind_to_blame_rises_until_the_rate_fits_and_falls_when_it_is_over() {
        let mut drill = Drill::new(&[]);
        let storm = [(RecordKind::Runqueue, 1e6), (RecordKind::Fault, 3e3)];
        drill.run(5_000, &storm, f64::MAX);
        // A million at 1 us: 20,000 a second pass at 50 us, and doublings of 5 us reach 80 us.
        assert_eq!(drill.floor_ns(RecordKind::Runqueue), 80_000);
        assert_eq!(drill.floor_ns(RecordKind::Fault), 3_000, "it is not to blame");
        let raised = drill.changes.len();
        assert_eq!(raised, 4);
        for pair in drill.changes.windows(2) {
            assert_eq!(pair[0].1.new_ns, pair[1].1.old_ns, "no change is missing");
        }
        drill.run(60_000, &storm, f64::MAX);
        assert_eq!(drill.changes.len(), raised, "a steady storm: no flapping");
        drill.run(10_000, &[], f64::MAX);
        assert_eq!(drill.floor_ns(RecordKind::Runqueue), 5_000);
        let down = &drill.changes[raised..];
        assert!(down.iter().all(|(_, change)| change.reason == FloorReason::Calm));
        assert_eq!(down.last().expect("it fell").1.new_ns, 5_000, "exactly where it began");
    }

    #[test]
    fn loss_acts_at_once_and_by_more() {
        let mut drill = Drill::new(&[]);
        drill.run(2_000, &[(RecordKind::MmSyscall, 3e7)], 1e6);
        let (first_ns, first) = drill.changes[0];
        assert_eq!((first.reason, first.old_ns, first.new_ns), (FloorReason::Loss, 3_000, 24_000));
        assert!(first_ns <= 20 * MS, "{first_ns}");
        let second = drill.changes[1].0;
        assert!(second >= first_ns + SETTLE_NS, "the first raise is given its time");
        let last = drill.changes.last().expect("changes").1;
        assert!(last.new_ns <= RAISED_MAX_NS);
    }

    #[test]
    fn floors_end_at_the_largest() {
        let mut drill = Drill::new(&[]);
        drill.run(20_000, &[(RecordKind::Runqueue, 1e15)], 0.0);
        assert_eq!(drill.floor_ns(RecordKind::Runqueue), RAISED_MAX_NS);
        let count = drill.changes.len();
        drill.run(20_000, &[(RecordKind::Runqueue, 1e15)], 0.0);
        assert_eq!(drill.changes.len(), count);
    }

    #[test]
    fn a_load_that_comes_and_goes_is_tried_ever_more_rarely() {
        let mut drill = Drill::new(&[]);
        for _ in 0..100 {
            drill.run(1_000, &[(RecordKind::Runqueue, 1e6)], f64::MAX);
            drill.run(1_500, &[], f64::MAX);
        }
        let (half_ns, end_ns) = (125_000 * MS, 250_000 * MS);
        let changes = |from_ns: u64, to_ns: u64| {
            drill.changes.iter().filter(|(at, _)| (from_ns..to_ns).contains(at)).count()
        };
        let (early, late) = (changes(0, half_ns), changes(half_ns, end_ns));
        assert!(late <= early && late <= 25, "{early} changes, then {late}, in 50 bursts each");
    }

    #[test]
    fn the_memory_for_stalls_is_never_used_up() {
        let mut drill = Drill::new(&[]);
        drill.room = 2_000_000;
        let mut floors = Vec::new();
        for _ in 0..600 {
            drill.run(1_000, &[(RecordKind::Runqueue, 1e6)], f64::MAX);
            let floor_ns = drill.floor_ns(RecordKind::Runqueue);
            drill.room = drill.room.saturating_sub((1e6 * 1_000.0 / floor_ns as f64) as u64);
            floors.push(floor_ns);
        }
        assert!(drill.room > 0, "ten minutes of storm");
        assert!(floors.last() > floors.first());
        assert!(drill.changes.iter().any(|(_, change)| change.reason == FloorReason::Room));
    }

    #[test]
    fn pressure_of_kinds_without_a_floor_changes_nothing() {
        let mut drill = Drill::new(&[RecordKind::Runqueue, RecordKind::Fault]);
        let mut records = [0; KIND_SLOTS];
        records[RecordKind::Reclaim as usize] = 1_000_000;
        let load = Load { now_ns: 500 * MS, records, lost: 5, ring_share: 0.9, room: 0 };
        assert_eq!(drill.control.step(&load), []);
    }
}
