//! Which floor applied when, and how much stall time went unrecorded because of it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use observer_ebpf::wire::{KIND_SLOTS, RecordKind, Series};

use super::{CaptureCounts, Captured};
use crate::aggregate::{Distribution, Snapshot};
use crate::clock::MonoNanos;
use crate::correlate::Short;
use crate::kernel::{FloorSet, Kernel};
use crate::model::{Cause, FloorChange, FloorSummary, ProbeSummary};
use crate::probe::{self, PROBES, Probe};

/// Kinds of record that may have a floor: those with a length.
pub(super) fn kinds_with_floor() -> impl Iterator<Item = RecordKind> {
    probe::with_floor().map(|(kind, _)| kind)
}

/// The floors of a run.
pub(super) struct FloorLog(BTreeMap<RecordKind, FloorSummary>);

impl FloorLog {
    /// The floors in force at the start.
    pub(super) fn new(start: MonoNanos, floors: &FloorSet) -> Self {
        let kinds = kinds_with_floor();
        Self(kinds.map(|kind| (kind, FloorSummary::new(start, floors.get(kind)))).collect())
    }

    /// Notes a change.
    pub(super) fn note(&mut self, at: MonoNanos, change: &FloorChange) {
        if let Some(floor) = self.0.get_mut(&change.record) {
            floor.note(at, change);
        }
    }

    /// The run is over. `hidden_ns` is by kind.
    pub(super) fn finish(
        mut self,
        end: MonoNanos,
        hidden_ns: &[u64; KIND_SLOTS],
    ) -> BTreeMap<String, FloorSummary> {
        for (kind, floor) in &mut self.0 {
            floor.pass(end);
            floor.hidden_ns = hidden_ns[*kind as usize];
        }
        self.0.into_iter().map(|(kind, floor)| (kind.name().to_owned(), floor)).collect()
    }
}

/// Watches how much stall time goes unrecorded while a floor is raised: the stall time that is in
/// the kernel's histograms but not in the records.
pub(super) struct HiddenWatch {
    floors: FloorSet,
    probes: Vec<HiddenProbe>,
}

/// The kinds of record of one probe: of single stalls, and of those below its floor, summed up.
struct HiddenProbe {
    /// Each with its first floor and what was hidden by its floor.
    kinds: Vec<(RecordKind, u64, i64)>,
    series: Vec<Series>,
    unrecorded_ns: i64,
    period: Period,
}

/// A time in which the floor of one kind, or none, is raised.
#[derive(Clone, Copy, Default)]
struct Period {
    raised: Option<RecordKind>,
    /// What was hidden by this floor before.
    before_ns: i64,
    /// What was unrecorded when it began: the least since then, because records that were in transit then
    /// have arrived.
    begin_ns: i64,
}

impl HiddenWatch {
    /// Starts with the floors in force now.
    pub(super) fn new(kernel: &Kernel) -> Self {
        let floors = kernel.floors();
        let probes = PROBES.into_iter().filter_map(|probe| {
            // Otherwise it is not known which of its series belongs to which kind.
            let single = probe.records.iter().filter(|row| row.sums.is_none()).count();
            let kinds: Vec<RecordKind> =
                probe.kinds().filter(|kind| kinds_with_floor().any(|one| one == *kind)).collect();
            if single != 1 || kinds.is_empty() {
                return None;
            }
            let series = probe.parts().into_iter().flat_map(|(_, series)| series).collect();
            let kinds = kinds.into_iter().map(|kind| (kind, floors.get(kind), 0)).collect();
            Some(HiddenProbe { kinds, series, unrecorded_ns: 0, period: Period::default() })
        });
        let probes = probes.collect();
        Self { floors, probes }
    }

    /// Call it often: stall time that went unrecorded since the last call is counted for the
    /// current floor. Where stalls are summed up, the floor of the sums is the one that hides them.
    pub(super) fn tick(&mut self, kernel: &Kernel, counts: &CaptureCounts) {
        for probe in &mut self.probes {
            let all: u64 = probe.series.iter().map(|series| kernel.target_sum_ns(*series)).sum();
            let of_kind =
                |kind: RecordKind| counts.recorded_ns[kind as usize].load(Ordering::Relaxed);
            let recorded: u64 = probe.kinds.iter().map(|(kind, ..)| of_kind(*kind)).sum();
            let unrecorded_ns = all.wrapping_sub(recorded) as i64;
            let is_raised = |(kind, base_ns, _): &&mut (RecordKind, u64, i64)| {
                self.floors.get(*kind) > *base_ns
            };
            let raised = probe.kinds.iter_mut().rev().find(is_raised);
            let kind = raised.as_ref().map(|(kind, ..)| *kind);
            if kind != probe.period.raised {
                let before_ns = raised.as_ref().map_or(0, |(.., hidden_ns)| *hidden_ns);
                probe.period = Period { raised: kind, before_ns, begin_ns: probe.unrecorded_ns };
            }
            let period = &mut probe.period;
            period.begin_ns = period.begin_ns.min(unrecorded_ns);
            if let Some((.., hidden_ns)) = raised {
                *hidden_ns = period.before_ns + unrecorded_ns - period.begin_ns;
            }
            probe.unrecorded_ns = unrecorded_ns;
        }
    }

    /// Nanoseconds by kind.
    pub(super) fn hidden_ns(&self) -> [u64; KIND_SLOTS] {
        let mut hidden = [0; KIND_SLOTS];
        for (kind, _, hidden_ns) in self.probes.iter().flat_map(|probe| &probe.kinds) {
            hidden[*kind as usize] = u64::try_from(*hidden_ns).unwrap_or(0);
        }
        hidden
    }
}

/// The time of the stalls that were too short for records of their own. Where the kind of a probe's series is
/// not known, and where every stall has a record, there is none.
pub(super) fn short(
    delta: &Snapshot,
    floors: &BTreeMap<String, FloorSummary>,
    captured: &Captured,
) -> Vec<Short> {
    let of_probe = |probe: &Probe| {
        let mut single = probe.records.iter().filter(|row| row.sums.is_none());
        let (Some(row), None) = (single.next(), single.next()) else { return None };
        let kind = RecordKind::from_raw(row.kind)?;
        let floor = floors.get(kind.name())?;
        let mut all = Distribution::default();
        for series in probe.parts().into_iter().flat_map(|(_, series)| series) {
            all.merge(delta.target_distribution(series));
        }
        let is_summed_up = probe.records.iter().any(|row| row.sums.is_some());
        let below_ns = if is_summed_up { 0 } else { all.below_ns(floor.lowest_ns) };
        // Threads that serve no requests have no records of sleeps, however long these are.
        let is_whole = probe.causes().all(Cause::is_stall);
        let missing_ns = if is_whole { unrecorded_ns(probe, all.sum_ns, captured) } else { 0 };
        let short = all.count().saturating_sub(captured.delivered[kind as usize]);
        // What is longer was lost, and is weighed as a loss.
        let missing_ns = missing_ns.min(short.saturating_mul(floor.highest_ns));
        let total_ns = below_ns.max(missing_ns);
        let kind = kind.name().to_owned();
        (total_ns > 0).then_some(Short { kind, floor_ns: floor.highest_ns, total_ns })
    };
    PROBES.into_iter().filter_map(of_probe).collect()
}

/// How much of the time of a probe's stalls is in no record.
pub(super) fn unrecorded_ns(probe: &Probe, sum_ns: u64, captured: &Captured) -> u64 {
    let recorded = probe.causes().filter_map(|cause| captured.recorder.summary(cause));
    sum_ns.saturating_sub(recorded.map(|distribution| distribution.sum_ns).sum())
}

/// Floors hide no more than is in no record: what was in bursts that were still open when that was last
/// looked at has come since.
pub(super) fn bound_hidden(
    floors: &mut BTreeMap<String, FloorSummary>,
    summaries: &BTreeMap<String, ProbeSummary>,
    captured: &Captured,
) {
    for probe in PROBES {
        let sum_ns = summaries.get(probe.name).map_or(0, |summary| summary.sum_ns);
        let mut left_ns = unrecorded_ns(probe, sum_ns, captured);
        for kind in probe.kinds() {
            if let Some(floor) = floors.get_mut(kind.name()) {
                floor.hidden_ns = floor.hidden_ns.min(left_ns);
                left_ns -= floor.hidden_ns;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::CauseRecorder;

    const FLOORS_NS: [(RecordKind, u64); 4] = [
        (RecordKind::Runqueue, 5_000),
        (RecordKind::Fault, 3_000),
        (RecordKind::FaultBurst, 1_000),
        (RecordKind::Sleep, 20_000),
    ];

    #[test]
    fn the_time_of_short_stalls_is_what_has_no_record() {
        let mut delta = Snapshot::default();
        let mut captured = Captured::default();
        let mut recorder = CauseRecorder::default();
        let mut happened = |series: Series, ns: u64| delta.target[series as usize].record(ns);
        for _ in 0..1_000 {
            happened(Series::RunqueueWakeup, 2_000);
            happened(Series::FaultMinorUser, 2_000);
            happened(Series::SleepInterruptible, 10_000);
        }
        // Longer ones have records; sleeps only where the thread serves requests.
        happened(Series::RunqueueWakeup, 500_000);
        happened(Series::SleepInterruptible, 9_000_000);
        recorder.record(Cause::RUNQUEUE_OTHER, 500_000);
        captured.delivered[RecordKind::Runqueue as usize] = 1;
        // Most of the short faults came as bursts.
        recorder.record(Cause::FAULT_MINOR, 1_900_000);
        captured.delivered[RecordKind::FaultBurst as usize] = 20;
        captured.recorder = recorder;
        let floor = |(kind, floor_ns): (RecordKind, u64)| {
            (kind.name().to_owned(), FloorSummary::new(MonoNanos(0), floor_ns))
        };
        let floors = FLOORS_NS.into_iter().map(floor).collect();
        let of = |captured: &Captured, kind: &str| {
            let short = short(&delta, &floors, captured);
            short.into_iter().find(|one| one.kind == kind).expect("some are short")
        };

        let waits = of(&captured, "runqueue");
        assert_eq!(waits.floor_ns, 5_000);
        assert!((2_000_000..2_200_000).contains(&waits.total_ns), "{waits:?}");
        let sleeps = of(&captured, "sleep");
        assert!((10_000_000..11_000_000).contains(&sleeps.total_ns), "{sleeps:?}");
        let faults = of(&captured, "fault");
        assert_eq!((faults.floor_ns, faults.total_ns), (3_000, 100_000));
        // A record of a wait that was lost is no short wait, and one from before the run hides none.
        captured.recorder = CauseRecorder::default();
        assert!(of(&captured, "runqueue").total_ns < 2_500_001);
        captured.recorder.record(Cause::RUNQUEUE, 900_000_000);
        assert_eq!(of(&captured, "runqueue"), waits);
    }
}
