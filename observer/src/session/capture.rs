//! From the ring to stalls: one thread drains and decodes, one writes the trace and keeps the
//! stalls for the correlation.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::aggregate::CauseRecorder;
use crate::kernel::Ring;
use crate::model::{Event, EventKind, Stall, Tgid};
use crate::output::trace::TraceWriter;
use crate::probe::{self, DecodeError};

/// Time between two looks at the ring. The kernel side wakes the thread early past half a ring.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// Events handed over at once.
const BATCH_EVENTS: usize = 8_192;
/// Batches under way between the threads; beyond, the drain waits and the ring fills up.
const BATCHES: usize = 64;
/// How often appended events are put into the file.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Events kept and written; later ones are counted. About 1 GiB of memory and twice that of disk
/// at the cap.
pub const EVENTS_MAX: u64 = 20_000_000;

/// Progress, readable from any thread.
#[derive(Debug, Default)]
pub struct CaptureCounts {
    /// Events decoded so far.
    pub events: AtomicU64,
}

/// What the capture gathered.
#[derive(Default)]
pub struct Captured {
    /// Stalls of the target, in the order they ended.
    pub stalls: Vec<Stall>,
    /// Command names by thread, as forks, execs and exits told them.
    pub thread_names: BTreeMap<u32, String>,
    /// Lengths by cause.
    pub recorder: CauseRecorder,
    /// Records that could not be used, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Why the trace is incomplete, if it is.
    pub trace_error: Option<String>,
}

/// The two threads.
pub struct Capture {
    births: Receiver<Tgid>,
    stop: Arc<AtomicBool>,
    counts: Arc<CaptureCounts>,
    drain: JoinHandle<BTreeMap<&'static str, u64>>,
    keep: JoinHandle<Captured>,
}

impl Capture {
    /// Starts draining `ring` into `trace`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(ring: Ring, trace: TraceWriter<Event, File>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(CaptureCounts::default());
        let (sender, receiver) = sync_channel(BATCHES);
        let (born, births) = channel();
        let keep = std::thread::Builder::new()
            .name("observer-keep".into())
            .spawn(move || keep(&receiver, trace, &born))?;
        let drain = {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            std::thread::Builder::new()
                .name("observer-drain".into())
                .spawn(move || drain(ring, &stop, &counts, &sender))?
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
        let undecoded = self.drain.join();
        let mut captured = self.keep.join().unwrap_or_else(|_| Captured {
            trace_error: Some("the thread that writes the trace failed".into()),
            ..Captured::default()
        });
        match undecoded {
            Ok(undecoded) => captured.skipped.extend(undecoded),
            Err(_) => captured.trace_error = Some("the thread that drains the ring failed".into()),
        }
        captured
    }
}

fn drain(
    mut ring: Ring,
    stop: &AtomicBool,
    counts: &CaptureCounts,
    sender: &SyncSender<Vec<Event>>,
) -> BTreeMap<&'static str, u64> {
    let mut skipped = BTreeMap::new();
    loop {
        // Read before draining: what was submitted before the stop is then drained for sure.
        let last = stop.load(Ordering::Relaxed);
        loop {
            let mut batch = Vec::with_capacity(BATCH_EVENTS);
            let drained = ring.drain(BATCH_EVENTS, |record| match probe::decode(record) {
                Ok(event) => batch.push(event),
                Err(error) => {
                    let reason = match error {
                        DecodeError::Short => "record_short",
                        DecodeError::UnknownKind => "record_unknown_kind",
                        DecodeError::BadField => "record_bad_field",
                    };
                    *skipped.entry(reason).or_insert(0) += 1;
                }
            });
            counts.events.fetch_add(batch.len() as u64, Ordering::Relaxed);
            // Only fails when the other thread died; its join reports that.
            if !batch.is_empty() && sender.send(batch).is_err() {
                return skipped;
            }
            if drained < BATCH_EVENTS {
                break;
            }
        }
        if last {
            return skipped;
        }
        ring.wait(DRAIN_INTERVAL);
    }
}

fn keep(
    receiver: &Receiver<Vec<Event>>,
    trace: TraceWriter<Event, File>,
    born: &Sender<Tgid>,
) -> Captured {
    let mut captured = Captured::default();
    let mut trace = Some(trace);
    let mut kept = 0;
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
                // Nobody listens any more once the run is over.
                let _ = born.send(event.tgid);
            }
            if kept >= EVENTS_MAX {
                *captured.skipped.entry("beyond_event_cap").or_insert(0) += 1;
                continue;
            }
            kept += 1;
            captured.stalls.extend(Stall::from_event(event));
            let appended = trace.as_mut().map(|trace| trace.append(event));
            captured.check(&mut trace, appended);
        }
        if flushed.elapsed() >= FLUSH_INTERVAL {
            flushed = Instant::now();
            let done = trace.as_mut().map(TraceWriter::flush);
            captured.check(&mut trace, done);
        }
    }
    if let Some(trace) = trace
        && let Err(error) = trace.finish()
    {
        captured.trace_error = Some(error.to_string());
    }
    captured
}

impl Captured {
    /// A full disk ends the trace, not the run.
    fn check<E: ToString>(
        &mut self,
        trace: &mut Option<TraceWriter<Event, File>>,
        result: Option<Result<(), E>>,
    ) {
        if let Some(Err(error)) = result {
            self.trace_error = Some(error.to_string());
            *trace = None;
        }
    }

    fn note_name(&mut self, event: &Event) {
        if let EventKind::Fork { comm, .. } | EventKind::Exec { comm } | EventKind::Exit { comm } =
            &event.kind
        {
            self.thread_names.insert(event.tid.0, comm.clone());
        }
    }
}
