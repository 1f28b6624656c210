//! The thread that drains the ring: decodes records, and adapts the floors to how many there are.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use observer_ebpf::wire::{KIND_SLOTS, RecordKind};

use super::floor::{FloorControl, Load};
use super::floor_log::FloorLog;
use super::grace::GracePeriods;
use super::settling::{SETTLED_AFTER, Settling, Taken};
use crate::clock::MonoNanos;
use crate::kernel::{FloorSet, Ring};
use crate::model::Event;
use crate::output::event_files::StreamRows;
use crate::probe::{self, DecodeError};

/// Time between two checks of the ring. The kernel side wakes the thread early past half a ring.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// After checks that found little, the pause doubles up to this.
const QUIET_INTERVAL: Duration = Duration::from_millis(320);
/// After checks that found nothing, the pause doubles up to this. Waking up costs more than
/// checking, and is most of what an idle run does.
const IDLE_INTERVAL: Duration = Duration::from_millis(480);
/// A fill of the ring below this part counts as little.
const LITTLE_PART: usize = 64;
/// Events handed over at once.
pub(super) const BATCH_EVENTS: usize = 8_192;
/// Bytes that a record takes in the ring besides its own (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEADER_BYTES: usize = 8;

/// Progress, readable from any thread.
#[derive(Debug, Default)]
pub struct CaptureCounts {
    /// Records delivered so far, by kind.
    pub delivered: [AtomicU64; KIND_SLOTS],
    /// Total length of the stalls among them.
    pub recorded_ns: [AtomicU64; KIND_SLOTS],
    /// Changes of floors, by kind.
    pub floor_changes: [AtomicU64; KIND_SLOTS],
    /// Times the drain thread went to sleep and woke up again.
    pub wakeups: AtomicU64,
    /// Everything that ended before this instant was handed over by the drain.
    pub drained_until_ns: AtomicU64,
    /// What was lost before this instant was handed over, too, as events.
    pub losses_until_ns: AtomicU64,
    /// Everything that ended before this instant is in the trace file.
    pub written_until_ns: AtomicU64,
    /// Rows by stream of the trace, as of the last time that all of them were written.
    pub streams: Mutex<StreamRows>,
    /// Records lost so far, set by the thread that reads the kernel's counters.
    pub lost: AtomicU64,
    /// Records delivered that the trace had no room for, by kind.
    pub beyond_cap: [AtomicU64; KIND_SLOTS],
    /// Records delivered that the trace does not keep because only every n-th is, by kind.
    pub sampled_out: [AtomicU64; KIND_SLOTS],
    /// Stalls there is still room for.
    pub room: AtomicU64,
    /// Events that came after the trace file had failed: what is in it ends before them.
    pub after_trace: AtomicU64,
    /// The trace file has failed.
    pub trace_ended: AtomicBool,
    /// Records that a trace of bounded size has removed, by kind.
    pub removed: [AtomicU64; KIND_SLOTS],
    /// Everything that ended before this instant may have been removed; 0 when nothing was.
    pub removed_until_ns: AtomicU64,
}

/// How far what was handed over is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Everything that ended before this instant.
    pub(super) events: MonoNanos,
    /// What was lost before this instant.
    pub(super) losses: MonoNanos,
}

impl CaptureCounts {
    /// What was handed over by now, and may still be on its way.
    pub(super) fn reach(&self) -> Reach {
        let read = |until_ns: &AtomicU64| MonoNanos(until_ns.load(Ordering::Acquire));
        Reach { events: read(&self.drained_until_ns), losses: read(&self.losses_until_ns) }
    }

    /// What was lost before this instant has been handed over.
    pub(super) fn note_losses_until(&self, until: MonoNanos) {
        self.losses_until_ns.fetch_max(until.0, Ordering::Release);
    }

    /// Rows by stream of the trace.
    pub(super) fn streams(&self) -> MutexGuard<'_, StreamRows> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stalls that the trace had no room for.
    #[must_use]
    pub fn stalls_beyond_cap(&self) -> u64 {
        probe::with_floor()
            .map(|(kind, _)| self.beyond_cap[kind as usize].load(Ordering::Relaxed))
            .sum()
    }

    /// Records delivered so far, all kinds.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.delivered.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// The result of the drain.
pub(super) struct Drained {
    /// Records that could not be decoded or used, by reason.
    pub(super) undecoded: BTreeMap<&'static str, u64>,
    /// The floors.
    pub(super) floors: FloorLog,
}

/// How long a record that is being written is waited for after the stop. Its program has been told to
/// send nothing more; it may stand still with the CPU of a virtual machine.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// How the floors of a run are set.
pub struct Floors {
    /// Where they are set.
    pub set: FloorSet,
    /// Kinds whose floor is fixed.
    pub fixed: Vec<RecordKind>,
    /// Size of the ring.
    pub ring_bytes: u32,
}

pub(super) struct Drain {
    ring: Ring,
    counts: Arc<CaptureCounts>,
    sender: SyncSender<Vec<Event>>,
    floors: Floors,
    control: FloorControl,
    drained: Drained,
    settling: Settling,
    grace: GracePeriods,
    /// Since the last step of the control.
    stepped: Instant,
    records: [u64; KIND_SLOTS],
    bytes: usize,
    lost: u64,
}

/// A place in the ring, and an instant: records of what ended before it are in front of the place.
struct Goal {
    at: MonoNanos,
    place: u64,
}

impl Drain {
    /// # Errors
    /// When the system cannot start another thread.
    pub(super) fn new(
        ring: Ring,
        counts: Arc<CaptureCounts>,
        sender: SyncSender<Vec<Event>>,
        floors: Floors,
    ) -> std::io::Result<Self> {
        let now = MonoNanos::now();
        Ok(Self {
            ring,
            counts,
            sender,
            control: FloorControl::new(now.0, &floors.fixed),
            drained: Drained {
                undecoded: BTreeMap::new(),
                floors: FloorLog::new(now, &floors.set),
            },
            floors,
            settling: Settling::new(),
            grace: GracePeriods::start()?,
            stepped: Instant::now(),
            records: [0; KIND_SLOTS],
            bytes: 0,
            lost: 0,
        })
    }

    /// Drains until `stop` is raised, and then the rest.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Drained {
        let mut pause = DRAIN_INTERVAL;
        let mut is_settling = false;
        let mut goal = None;
        let mut stopped = None;
        loop {
            // Read before draining: what was submitted before the stop is then drained for sure.
            let last = stop.load(Ordering::Relaxed);
            if goal.is_none() {
                let place = |at| Goal { at, place: self.ring.end() };
                goal = self.grace.next().map(place);
            }
            let mut found_bytes = 0;
            loop {
                let before = self.bytes;
                let (count, batch) = self.take_batch();
                found_bytes += self.bytes - before;
                // Only fails when the other thread died; its join reports that.
                if !batch.is_empty() && self.sender.send(batch).is_err() {
                    return self.drained;
                }
                self.note_reach(&mut goal);
                if self.stepped.elapsed() >= DRAIN_INTERVAL && !last && !self.adapt() {
                    return self.drained;
                }
                if count < BATCH_EVENTS {
                    break;
                }
            }
            if last && self.is_held_up(&mut stopped) {
                continue;
            }
            if last {
                let mut batch = Vec::new();
                self.settling.finish(&mut batch);
                // Only fails when the other thread died; its join reports that.
                let _ = self.sender.send(batch);
                return self.drained;
            }
            // A check only for what is kept back does not show how much there is.
            if !is_settling || found_bytes > 0 {
                pause = self.pause_after(pause, found_bytes);
            }
            is_settling = !self.settling.is_empty();
            self.ring.wait(if is_settling { SETTLED_AFTER } else { pause });
            self.counts.wakeups.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// After the stop: whether a record that is still being written keeps back what is behind it. Waits
    /// a little then, but not for ever.
    fn is_held_up(&self, stopped: &mut Option<Instant>) -> bool {
        if self.ring.is_drained_to(self.ring.end()) {
            return false;
        }
        let stopped = stopped.get_or_insert_with(Instant::now);
        std::thread::sleep(SETTLED_AFTER);
        stopped.elapsed() < LAST_RECORDS
    }

    /// Notes the goal as reached if everything in front of it is handed over, but for what is kept
    /// back.
    fn note_reach(&self, goal: &mut Option<Goal>) {
        if let Some(Goal { at, .. }) = goal.take_if(|goal| self.ring.is_drained_to(goal.place)) {
            let until = self.settling.earliest().map_or(at, |kept_back| at.min(kept_back));
            self.counts.drained_until_ns.fetch_max(until.0, Ordering::Release);
        }
    }

    /// The next pause, after this many records were found.
    fn pause_after(&self, pause: Duration, found_bytes: usize) -> Duration {
        let little = self.floors.ring_bytes as usize / LITTLE_PART;
        match found_bytes {
            0 => (pause * 2).min(IDLE_INTERVAL),
            bytes if bytes < little => (pause * 2).min(QUIET_INTERVAL),
            _ => DRAIN_INTERVAL,
        }
    }

    /// Decodes up to one batch of records; returns how many there were, and the events.
    fn take_batch(&mut self) -> (usize, Vec<Event>) {
        let Self { ring, drained, bytes, settling, .. } = self;
        let mut batch = Vec::new();
        let mut recorded = [(0, 0); KIND_SLOTS];
        let count = ring.drain(BATCH_EVENTS, |record| {
            *bytes += record.len().next_multiple_of(8) + RECORD_HEADER_BYTES;
            match probe::decode(record) {
                Ok(event) => {
                    let (kind, duration_ns) = (event.row().kind, event.duration_ns);
                    match settling.take(event, &mut batch) {
                        Taken::Record => {
                            let (count, sum_ns) = &mut recorded[usize::from(kind)];
                            *count += 1;
                            *sum_ns += duration_ns;
                        }
                        Taken::Correction => {}
                        Taken::TooLate => {
                            *drained.undecoded.entry("fault_kind_late").or_insert(0) += 1;
                        }
                    }
                }
                Err(error) => *drained.undecoded.entry(reason(error)).or_insert(0) += 1,
            }
        });
        settling.pass_on(Instant::now(), &mut batch);
        for (kind, (count, sum_ns)) in recorded.into_iter().enumerate() {
            if count > 0 {
                self.records[kind] += count;
                self.counts.delivered[kind].fetch_add(count, Ordering::Relaxed);
                self.counts.recorded_ns[kind].fetch_add(sum_ns, Ordering::Relaxed);
            }
        }
        (count, batch)
    }

    /// One step of the control; `false` when the receiver of the events has gone.
    fn adapt(&mut self) -> bool {
        let elapsed = self.stepped.elapsed();
        self.stepped = Instant::now();
        let lost = self.counts.lost.load(Ordering::Relaxed);
        // If the drain itself was delayed, its interval does not show how fast the ring fills.
        let intervals = elapsed.as_secs_f64() / DRAIN_INTERVAL.as_secs_f64();
        let load = Load {
            now_ns: MonoNanos::now().0,
            records: std::mem::take(&mut self.records),
            lost: lost - self.lost,
            ring_share: self.bytes as f64 / intervals / f64::from(self.floors.ring_bytes),
            room: self.counts.room.load(Ordering::Relaxed),
        };
        (self.lost, self.bytes) = (lost, 0);
        let changes = self.control.step(&load);
        if changes.is_empty() {
            return true;
        }
        let now = MonoNanos::now();
        for change in &changes {
            self.floors.set.set(change.record, change.new_ns);
            self.counts.floor_changes[change.record as usize].fetch_add(1, Ordering::Relaxed);
            self.drained.floors.note(now, change);
        }
        self.sender.send(changes.into_iter().map(|change| change.event(now)).collect()).is_ok()
    }
}

const fn reason(error: DecodeError) -> &'static str {
    match error {
        DecodeError::Short => "record_short",
        DecodeError::UnknownKind => "record_unknown_kind",
        DecodeError::BadField => "record_bad_field",
    }
}
