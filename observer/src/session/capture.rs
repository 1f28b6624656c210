//! From the ring to stalls: one thread drains and decodes, one writes the trace and keeps the
//! stalls for the correlation.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use observer_ebpf::wire::KIND_SLOTS;

use super::drain::{CaptureCounts, Drain, Drained, Floors};
use super::floor_log::FloorLog;
use crate::aggregate::CauseRecorder;
use crate::clock::MonoNanos;
use crate::kernel::Ring;
use crate::model::{Event, EventKind, Stall, Tgid};
use crate::output::trace::{TraceError, TraceWriter};

/// Batches under way between the threads; beyond, the drain waits and the ring fills up.
pub(super) const BATCHES: usize = 16;
/// Thread names kept for the report.
pub(super) const NAMES_MAX: usize = 50_000;
/// Forks told of and not yet heard.
const BIRTHS_MAX: usize = 65_536;
/// A record is in the trace writer's hands this long after the stall ended, at the latest, unless
/// observer itself was held up.
const ON_THE_WAY_NS: u64 = 500_000_000;
/// How often appended events are put into the file.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Events kept and written; later ones are counted. About 0.6 GiB of memory while the answer is
/// worked out, and as much disk, at the cap. The floors rise so that it is not reached.
pub const EVENTS_MAX: u64 = 4_000_000;

/// Why an event beyond [`EVENTS_MAX`] is not kept.
pub(super) const BEYOND_CAP: &str = "beyond_event_cap";

/// What the capture gathered.
#[derive(Default)]
pub struct Captured {
    /// Stalls of the target that could not be written to the trace, in the order they ended. The
    /// others are there, and not in memory.
    pub stalls: Vec<Stall>,
    /// Command names by thread, as forks, execs and exits told them.
    pub thread_names: BTreeMap<u32, String>,
    /// Names beyond those that are kept.
    pub names_dropped: u64,
    /// Lengths by cause.
    pub recorder: CauseRecorder,
    /// Records that could not be used, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Records delivered, by kind.
    pub delivered: [u64; KIND_SLOTS],
    /// Times the drain thread woke up.
    pub wakeups: u64,
    /// Which floors applied when; `None` when the thread that knew died.
    pub(super) floors: Option<FloorLog>,
    /// Why the trace is incomplete, if it is.
    pub trace_error: Option<String>,
    /// Why stalls that were written are not known any more, if that is so.
    pub stalls_missing: Option<String>,
    /// The disk was full.
    pub disk_full: bool,
}

/// The two threads.
pub struct Capture {
    births: Receiver<Tgid>,
    stop: Arc<AtomicBool>,
    counts: Arc<CaptureCounts>,
    drain: JoinHandle<Drained>,
    keep: JoinHandle<Captured>,
}

impl Capture {
    /// Starts draining `ring` into `trace`, adapting `floors`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(
        ring: Ring,
        trace: TraceWriter<Event, File>,
        floors: Floors,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(CaptureCounts::default());
        let (sender, receiver) = sync_channel(BATCHES);
        let (born, births) = sync_channel(BIRTHS_MAX);
        let keep = std::thread::Builder::new().name("observer-keep".into()).spawn({
            let counts = Arc::clone(&counts);
            move || keep(&receiver, trace, &born, &counts)
        })?;
        let drain = {
            let stop = Arc::clone(&stop);
            let drain = Drain::new(ring, Arc::clone(&counts), sender, floors);
            std::thread::Builder::new()
                .name("observer-drain".into())
                .spawn(move || drain.run(&stop))?
        };
        Ok(Self { births, stop, counts, drain, keep })
    }

    /// Progress so far.
    #[must_use]
    pub fn counts(&self) -> &CaptureCounts {
        &self.counts
    }

    /// Processes the target has forked since the last call.
    pub fn births(&self) -> impl Iterator<Item = Tgid> {
        self.births.try_iter()
    }

    /// Drains what is left and ends both threads.
    #[must_use]
    pub fn finish(self) -> Captured {
        self.stop.store(true, Ordering::Relaxed);
        let drained = self.drain.join();
        let mut captured = self.keep.join().unwrap_or_else(|_| Captured {
            trace_error: Some("the thread that writes the trace failed".into()),
            ..Captured::default()
        });
        captured.delivered =
            std::array::from_fn(|kind| self.counts.delivered[kind].load(Ordering::Relaxed));
        captured.wakeups = self.counts.wakeups.load(Ordering::Relaxed);
        match drained {
            Ok(drained) => {
                captured.skipped.extend(drained.undecoded);
                captured.floors = Some(drained.floors);
            }
            Err(_) => captured.trace_error = Some("the thread that drains the ring failed".into()),
        }
        captured
    }
}

fn keep(
    receiver: &Receiver<Vec<Event>>,
    trace: TraceWriter<Event, File>,
    born: &SyncSender<Tgid>,
    counts: &CaptureCounts,
) -> Captured {
    let mut captured = Captured::default();
    let mut trace = Some(trace);
    let mut kept = 0;
    // Since the last flush: at most a second's worth, and none of it is in the file for sure.
    let mut unwritten = Vec::new();
    let mut flushed = Instant::now();
    loop {
        let batch = match receiver.recv_timeout(FLUSH_INTERVAL) {
            Ok(batch) => batch,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Vec::new(),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        };
        for event in &batch {
            captured.recorder.record_event(event);
            captured.note_name(event);
            if matches!(event.kind, EventKind::Fork { .. }) && event.tid.0 == event.tgid.0 {
                // Nobody listens any more once the run is over. One that does not fit is found when
                // /proc is looked through.
                let _ = born.try_send(event.tgid);
            }
            if kept >= EVENTS_MAX {
                *captured.skipped.entry(BEYOND_CAP).or_insert(0) += 1;
                counts.beyond_cap.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            kept += 1;
            let Some(file) = &mut trace else {
                captured.stalls.extend(Stall::from_event(event));
                continue;
            };
            unwritten.extend(Stall::from_event(event));
            if let Err(error) = file.append(event) {
                captured.give_up(&mut trace, &mut unwritten, &error);
            }
        }
        if flushed.elapsed() >= FLUSH_INTERVAL {
            flushed = Instant::now();
            match trace.as_mut().map(TraceWriter::flush) {
                None => {}
                Some(Ok(())) => {
                    unwritten.clear();
                    let until = MonoNanos::now().0.saturating_sub(ON_THE_WAY_NS);
                    counts.written_until_ns.store(until, Ordering::Relaxed);
                }
                Some(Err(error)) => captured.give_up(&mut trace, &mut unwritten, &error),
            }
        }
    }
    if let Some(trace) = trace
        && let Err(error) = trace.finish()
    {
        captured.give_up(&mut None, &mut unwritten, &error);
    }
    captured
}

impl Captured {
    /// A full disk ends the trace, not the run: from here on stalls are kept in memory.
    fn give_up(
        &mut self,
        trace: &mut Option<TraceWriter<Event, File>>,
        unwritten: &mut Vec<Stall>,
        error: &TraceError,
    ) {
        self.disk_full |= error.is_disk_full();
        self.trace_error = Some(error.to_string());
        *trace = None;
        self.stalls.append(unwritten);
    }

    fn note_name(&mut self, event: &Event) {
        if let EventKind::Fork { comm, .. } | EventKind::Exec { comm } | EventKind::Exit { comm } =
            &event.kind
        {
            if self.thread_names.len() < NAMES_MAX || self.thread_names.contains_key(&event.tid.0) {
                self.thread_names.insert(event.tid.0, comm.clone());
            } else {
                self.names_dropped += 1;
            }
        }
    }
}
