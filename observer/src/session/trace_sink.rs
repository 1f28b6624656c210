//! The sink that writes the trace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use observer_ebpf::wire::{KIND_SLOTS, RecordKind};

use super::drain::Reach;
use super::quota::{Caps, Sampling};
use super::sink::Sink;
use super::{CaptureCounts, Captured};
use crate::clock::MonoNanos;
use crate::model::{Event, FloorChange, Stall, StreamComplete, TraceRow};
use crate::output::event_files::EventWriter;
use crate::output::trace::TraceError;

/// Events and stalls kept and written, of the kinds that stall; later ones are counted. About
/// 0.8 GiB of memory while the answer is worked out, and 0.3 GiB of disk, at the cap. The floors
/// rise so that it is not reached.
pub const EVENTS_MAX: u64 = 4_000_000;
/// The limit for events that are not stalls. Requests are read back for the answer, the others are only
/// on disk.
pub(super) const OTHERS_MAX: u64 = 1_000_000;
/// Of each sampled kind, about this many records a second are kept.
const SAMPLED_HZ: u64 = 1_000;

/// Writes the trace; where that fails, keeps the stalls in memory.
pub(super) struct TraceSink {
    /// `None` after a write failed.
    file: Option<EventWriter>,
    counts: Arc<CaptureCounts>,
    caps: Caps,
    sampling: Sampling,
    /// Since the last flush: at most a second's worth, and none of it is in the file for sure. Each
    /// with the row it has if it is there.
    unwritten: Vec<Stall>,
    /// Stalls that came after the file failed, or were not in it for sure when it did.
    kept: Vec<Stall>,
    /// An answer will be worked out from the stalls. A daemon gives none, and runs for weeks.
    keeps: bool,
    error: Option<String>,
    disk_full: bool,
    /// Last change of each floor, for a trace that removes its oldest part.
    floors: BTreeMap<RecordKind, FloorChange>,
    /// Up to when the streams are complete, by their last note of it.
    complete_until: MonoNanos,
}

impl TraceSink {
    /// Keeps up to so many stalls, at most [`EVENTS_MAX`].
    pub(super) fn new(file: EventWriter, counts: &Arc<CaptureCounts>, stalls: u64) -> Self {
        Self::with(file, counts, Caps::new(stalls.min(EVENTS_MAX), OTHERS_MAX), SAMPLED_HZ)
    }

    /// Keeps all: the file removes its oldest part by itself.
    pub(super) fn of_ring(file: EventWriter, counts: &Arc<CaptureCounts>) -> Self {
        Self { keeps: false, ..Self::with(file, counts, Caps::unlimited(), SAMPLED_HZ) }
    }

    fn with(file: EventWriter, counts: &Arc<CaptureCounts>, caps: Caps, sampled_hz: u64) -> Self {
        counts.room.store(caps.room(), Ordering::Relaxed);
        Self {
            file: Some(file),
            counts: Arc::clone(counts),
            caps,
            sampling: Sampling::new(sampled_hz, MonoNanos::now()),
            unwritten: Vec::new(),
            kept: Vec::new(),
            keeps: true,
            error: None,
            disk_full: false,
            floors: BTreeMap::new(),
            complete_until: MonoNanos(0),
        }
    }

    /// Appends to the file, or keeps the stall.
    fn append(&mut self, event: &Event) {
        let stalls = Stall::of_event(event);
        let Some(file) = &mut self.file else {
            self.counts.after_trace.fetch_add(1, Ordering::Relaxed);
            if self.keeps {
                self.kept.extend(stalls);
            }
            return;
        };
        match file.append(event) {
            Ok(row) => {
                let row = TraceRow::new(event.row().kind, row);
                self.unwritten.extend(stalls.map(|stall| Stall { row, ..stall }));
            }
            Err(error) => {
                self.counts.after_trace.fetch_add(1, Ordering::Relaxed);
                self.kept.extend(stalls);
                self.give_up(&error);
            }
        }
    }

    /// A full disk ends the trace, not the run: from here on stalls are kept in memory, or, in a
    /// daemon, only counted.
    fn give_up(&mut self, error: &TraceError) {
        self.counts.trace_ended.store(true, Ordering::Relaxed);
        self.disk_full |= error.is_disk_full();
        self.error = Some(error.to_string());
        self.file = None;
        self.unwritten.append(&mut self.kept);
        self.kept = std::mem::take(&mut self.unwritten);
        if !self.keeps {
            self.kept = Vec::new();
            // A run says it with its answer.
            tracing::warn!("the trace ends here, later events are not in it: {error}");
        }
    }

    /// Notes up to when the streams are complete once they are flushed, should the run be killed
    /// before run.json says so.
    fn note_complete(&mut self, now: MonoNanos, reach: Reach) {
        let until = reach.events.min(reach.losses);
        let Some(file) = self.file.as_ref().filter(|_| self.keeps) else { return };
        if until <= self.complete_until || self.counts.stalls_beyond_cap() > 0 {
            return;
        }
        self.complete_until = until;
        let mut rows = file.rows().clone();
        rows.entry(StreamComplete::KIND).or_insert(0);
        let note = |(kind, rows)| StreamComplete { until, kind, rows }.event(now);
        let notes: Vec<Event> = rows.into_iter().map(note).collect();
        notes.iter().for_each(|note| self.append(note));
    }

    /// A trace that lost its beginning repeats the floors in force.
    fn repeat(&mut self, now: MonoNanos) {
        let floors = self.floors.values().map(|change| change.event(now));
        let sampling = self.sampling.in_force().into_iter().map(|change| change.event(now));
        let notes: Vec<Event> = floors.chain(sampling).collect();
        notes.iter().for_each(|note| self.append(note));
    }
}

impl Sink for TraceSink {
    fn event(&mut self, event: &Event) {
        let row = event.row();
        let kind = usize::from(row.kind);
        // Observer's own records are rare, and they explain the others.
        if kind >= KIND_SLOTS {
            if let Some(change) = FloorChange::from_event(event) {
                self.floors.insert(change.record, change);
            }
            self.append(event);
            return;
        }
        if row.sampled
            && let Some(record) = RecordKind::from_raw(row.kind)
        {
            let (keep, change) = self.sampling.keep(record);
            if let Some(change) = change {
                self.append(&change.event(event.end));
            }
            if !keep {
                self.counts.sampled_out[kind].fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        if !self.caps.take(kind, (event.causes().count() as u64).max(1)) {
            self.counts.beyond_cap[kind].fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.append(event);
    }

    fn tick(&mut self, now: MonoNanos, reach: Reach) {
        self.counts.room.store(self.caps.room(), Ordering::Relaxed);
        for change in self.sampling.tick(now) {
            self.append(&change.event(now));
        }
        self.note_complete(now, reach);
        let Some(file) = &mut self.file else { return };
        match file.flush(now) {
            Ok(new_segment) => {
                self.unwritten.clear();
                *self.counts.streams() = file.streams();
                self.counts.written_until_ns.store(reach.events.0, Ordering::Relaxed);
                let removed = file.removed();
                self.counts.removed_until_ns.store(removed.until.0, Ordering::Relaxed);
                for kind in RecordKind::ALL {
                    let rows = removed.rows.get(kind.name()).copied().unwrap_or(0);
                    self.counts.removed[kind as usize].store(rows, Ordering::Relaxed);
                }
                if new_segment {
                    self.repeat(now);
                }
            }
            Err(error) => self.give_up(&error),
        }
    }

    fn finish(mut self: Box<Self>, captured: &mut Captured) {
        if let Some(file) = self.file.take() {
            let streams = file.streams();
            match file.finish() {
                Ok(()) => *self.counts.streams() = streams,
                Err(error) => self.give_up(&error),
            }
        }
        captured.unwritten = self.kept;
        captured.trace_error = self.error;
        captured.disk_full = self.disk_full;
    }
}

#[cfg(test)]
#[path = "trace_sink_tests.rs"]
mod tests;
