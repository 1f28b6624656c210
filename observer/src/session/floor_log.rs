//! Which floor applied when, and how much stall time went unrecorded because of it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use observer_ebpf::wire::{KIND_SLOTS, RecordKind, Series};

use super::CaptureCounts;
use crate::clock::MonoNanos;
use crate::kernel::{FloorSet, Kernel};
use crate::model::{FloorChange, FloorSummary};
use crate::probe;

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
    kinds: Vec<HiddenKind>,
}

struct HiddenKind {
    kind: RecordKind,
    base_ns: u64,
    series: Vec<Series>,
    unrecorded_ns: i64,
    hidden_ns: i64,
}

impl HiddenWatch {
    /// Starts with the floors in force now.
    pub(super) fn new(kernel: &Kernel) -> Self {
        let floors = kernel.floors();
        let kinds = kinds_with_floor()
            .filter_map(|kind| {
                let probe = probe::of_kind(kind).filter(|probe| probe.kinds().eq([kind]))?;
                let series = probe.parts().into_iter().flat_map(|(_, series)| series).collect();
                let base_ns = floors.get(kind);
                Some(HiddenKind { kind, base_ns, series, unrecorded_ns: 0, hidden_ns: 0 })
            })
            .collect();
        Self { floors, kinds }
    }

    /// Call it often: stall time that went unrecorded since the last call is counted for the
    /// current floor.
    pub(super) fn tick(&mut self, kernel: &Kernel, counts: &CaptureCounts) {
        for kind in &mut self.kinds {
            let all: u64 = kind.series.iter().map(|series| kernel.target_sum_ns(*series)).sum();
            let recorded = counts.recorded_ns[kind.kind as usize].load(Ordering::Relaxed);
            let unrecorded_ns = all.wrapping_sub(recorded) as i64;
            if self.floors.get(kind.kind) > kind.base_ns {
                // Can be negative: records that were in transit at the last call have arrived.
                kind.hidden_ns += unrecorded_ns - kind.unrecorded_ns;
            }
            kind.unrecorded_ns = unrecorded_ns;
        }
    }

    /// Nanoseconds by kind.
    pub(super) fn hidden_ns(&self) -> [u64; KIND_SLOTS] {
        let mut hidden = [0; KIND_SLOTS];
        for kind in &self.kinds {
            hidden[kind.kind as usize] = u64::try_from(kind.hidden_ns).unwrap_or(0);
        }
        hidden
    }
}
