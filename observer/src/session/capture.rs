//! From the ring to the sinks: one thread drains and decodes, another one passes the events to the
//! sinks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use observer_ebpf::wire::KIND_SLOTS;

use super::drain::{CaptureCounts, Drain, Drained, Floors};
use super::floor_log::FloorLog;
use super::holders::Holders;
use super::sink::{Birth, Births, Names, Sink, Stalls};
use super::stacks::StackSink;
use super::trace_sink::TraceSink;
use crate::aggregate::CauseRecorder;
use crate::clock::MonoNanos;
use crate::kernel::Ring;
use crate::model::{Event, Stacks, Stall};
use crate::output::event_files::StreamRows;
use crate::pace::{Pieces, rest};

/// Maximum number of batches in flight between the threads; above it, the drain waits and the ring
/// fills up.
pub(super) const BATCHES: usize = 16;
/// Pause between two ticks of the sinks.
pub(super) const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause during [`FIRST_TIME`]: a run that is killed early leaves most of what it saw.
pub(super) const FIRST_TICK: Duration = Duration::from_millis(200);
/// How long a run is young.
pub(super) const FIRST_TIME: Duration = Duration::from_secs(4);

/// Up to so many events at once, they are passed on in pieces.
const FEW_EVENTS: usize = 1_024;
/// Events of one piece.
const PIECE_EVENTS: usize = 32;

/// Why a stall that was delivered is not kept.
pub(super) const BEYOND_CAP: &str = "beyond_event_cap";

/// The result of the capture.
#[derive(Default)]
pub struct Captured {
    /// Stalls of the target that may not be in the trace, because it could not be written, in the
    /// order they came; with a row, those that may be there as that row. The others are there, and
    /// not in memory.
    pub(super) unwritten: Vec<Stall>,
    /// Command names by thread, as forks, execs and exits told them.
    pub thread_names: BTreeMap<u32, String>,
    /// Names that were dropped because there were too many.
    pub names_dropped: u64,
    /// Names of the cgroups of those who had what the target waited for, by id.
    pub(super) holder_cgroups: BTreeMap<u64, String>,
    /// Records whose cgroup has no name because there were too many.
    pub(super) holder_cgroups_beyond: u64,
    /// Lengths by cause.
    pub recorder: CauseRecorder,
    /// Records that could not be used, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Records delivered, by kind.
    pub delivered: [u64; KIND_SLOTS],
    /// Of these, those that the trace had no room for.
    pub beyond_cap: [u64; KIND_SLOTS],
    /// Of these, those left out because only every n-th is kept.
    pub sampled_out: [u64; KIND_SLOTS],
    /// Of these, those removed from a trace of bounded size.
    pub removed: [u64; KIND_SLOTS],
    /// Rows by stream of the trace.
    pub(super) streams: StreamRows,
    /// Times the drain thread woke up.
    pub wakeups: u64,
    /// Which floors applied when; `None` when the drain thread died.
    pub(super) floors: Option<FloorLog>,
    /// The stacks that events name, with their functions; `None` where the kernel side keeps none.
    pub(super) stacks: Option<Stacks>,
    /// Why the trace is incomplete, if it is.
    pub trace_error: Option<String>,
    /// Why stalls that were written cannot be read back, if so.
    pub stalls_missing: Option<String>,
    /// The disk was full.
    pub disk_full: bool,
}

/// The sinks of a run or of a daemon that keeps a trace, and the list where the first of them
/// enters the target's new processes.
pub(super) fn sinks(
    trace: TraceSink,
    stacks: Option<StackSink>,
) -> (Vec<Box<dyn Sink>>, Receiver<Birth>) {
    let (told, births) = Births::new();
    let mut sinks: Vec<Box<dyn Sink>> = vec![
        Box::new(told),
        Box::new(Stalls::default()),
        Box::new(Names::default()),
        Box::new(Holders::default()),
        Box::new(trace),
    ];
    if let Some(stacks) = stacks {
        sinks.push(Box::new(stacks));
    }
    (sinks, births)
}

/// The two threads.
pub struct Capture {
    notes: SyncSender<Vec<Event>>,
    stop: Arc<AtomicBool>,
    counts: Arc<CaptureCounts>,
    drain: JoinHandle<Drained>,
    keep: JoinHandle<Captured>,
}

impl Capture {
    /// Starts draining `ring` into `sinks`, adapting `floors`.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(super) fn start(
        ring: Ring,
        sinks: Vec<Box<dyn Sink>>,
        counts: Arc<CaptureCounts>,
        floors: Floors,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = sync_channel(BATCHES);
        let keep = {
            let counts = Arc::clone(&counts);
            std::thread::Builder::new()
                .name("observer-keep".into())
                .spawn(move || keep(&receiver, sinks, &counts))?
        };
        let notes = sender.clone();
        let drain = {
            let stop = Arc::clone(&stop);
            let drain = Drain::new(ring, Arc::clone(&counts), sender, floors)?;
            std::thread::Builder::new()
                .name("observer-drain".into())
                .spawn(move || drain.run(&stop))?
        };
        Ok(Self { notes, stop, counts, drain, keep })
    }

    /// Progress so far.
    #[must_use]
    pub fn counts(&self) -> &CaptureCounts {
        &self.counts
    }

    /// Passes observer's own events to the sinks; returns them while there is no room.
    pub(super) fn note(&self, events: Vec<Event>) -> Vec<Event> {
        match self.notes.try_send(events) {
            Ok(()) => Vec::new(),
            Err(TrySendError::Full(events) | TrySendError::Disconnected(events)) => events,
        }
    }

    /// Passes on the last of them, however long it takes.
    pub(super) fn note_last(&self, events: Vec<Event>) {
        // Fails when the thread behind died, which its join reports.
        let _ = self.notes.send(events);
    }

    /// Drains what is left and ends both threads.
    #[must_use]
    pub fn finish(self) -> Captured {
        self.stop.store(true, Ordering::Relaxed);
        // While it lives, more events may come.
        drop(self.notes);
        let drained = self.drain.join();
        let mut captured = self.keep.join().unwrap_or_else(|_| Captured {
            trace_error: Some("the thread that writes the trace failed".into()),
            ..Captured::default()
        });
        let read = |counts: &[AtomicU64; KIND_SLOTS]| {
            std::array::from_fn(|kind| counts[kind].load(Ordering::Relaxed))
        };
        captured.delivered = read(&self.counts.delivered);
        captured.beyond_cap = read(&self.counts.beyond_cap);
        captured.sampled_out = read(&self.counts.sampled_out);
        captured.removed = read(&self.counts.removed);
        captured.streams = std::mem::take(&mut *self.counts.streams());
        let stalls = self.counts.stalls_beyond_cap();
        if stalls > 0 {
            captured.skipped.insert(BEYOND_CAP, stalls);
        }
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
    mut sinks: Vec<Box<dyn Sink>>,
    counts: &CaptureCounts,
) -> Captured {
    let begun = Instant::now();
    let (mut ticked, mut pause) = (begun, FIRST_TICK);
    loop {
        let batch = match receiver.recv_timeout(pause) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let mut pass = |batch: Vec<Event>| {
            // Many events are not kept waiting.
            let _pieces = (batch.len() <= FEW_EVENTS).then(Pieces::begin);
            for events in batch.chunks(PIECE_EVENTS) {
                for sink in &mut sinks {
                    events.iter().for_each(|event| sink.event(event));
                }
                rest();
            }
        };
        pass(batch);
        if ticked.elapsed() >= pause {
            ticked = Instant::now();
            pause = if begun.elapsed() < FIRST_TIME { FIRST_TICK } else { TICK_INTERVAL };
            // What was handed over by now is among these: the channel holds no more.
            let reach = counts.reach();
            receiver.try_iter().take(BATCHES).for_each(&mut pass);
            let now = MonoNanos::now();
            let _pieces = Pieces::begin();
            sinks.iter_mut().for_each(|sink| sink.tick(now, reach));
        }
    }
    let mut captured = Captured::default();
    sinks.into_iter().for_each(|sink| sink.finish(&mut captured));
    captured
}
