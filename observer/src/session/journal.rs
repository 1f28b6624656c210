//! run.json during a run: the clock anchors, the time up to which the streams are complete, and the
//! losses until then, so that the files can be read if this process dies.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use observer_ebpf::wire::RecordKind;

use super::capture::{BEYOND_CAP, FIRST_TICK, FIRST_TIME, TICK_INTERVAL, sinks};
use super::loss_watch::Losses;
use super::sink::Birth;
use super::stacks::StackSink;
use super::trace_sink::TraceSink;
use super::{Capture, CaptureCounts, Floors, unexpected};
use crate::aggregate::Snapshot;
use crate::clock::{Anchor, MonoNanos};
use crate::error::Result;
use crate::kernel::{Kernel, Ring};
use crate::loadgen::kept::Kept;
use crate::model::{LossSummary, RunInfo};
use crate::output::event_files::EventWriter;
use crate::output::rundir::RunDir;
use crate::pace::rest;

/// Pause between two clock anchors.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(1);
/// Most time between two checkpoints.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Clock anchors kept; then every other one is dropped and they are taken half as often.
pub(super) const ANCHORS_MAX: usize = 8_192;

/// A run directory that is being written, and the contents of its run.json.
pub(super) struct Journal {
    pub(super) directory: RunDir,
    pub(super) info: RunInfo,
    /// The files that keep the generator's output, by name.
    pub(super) kept: BTreeMap<&'static str, Arc<Kept>>,
    /// Losses as of the start.
    before: Snapshot,
    begun: Instant,
    anchored: Instant,
    anchor_interval: Duration,
    /// When run.json was last written, and how long until it is written again.
    checked: Instant,
    check_interval: Duration,
}

/// A new run directory and its trace; nothing is left behind where one of them cannot be made.
pub(super) fn create_directory(
    out: Option<&Path>,
    begin: impl FnOnce(&RunDir) -> Result<EventWriter>,
) -> Result<(RunDir, EventWriter)> {
    let directory = RunDir::create(out)?;
    match begin(&directory) {
        Ok(trace) => Ok((directory, trace)),
        Err(error) => {
            directory.discard();
            Err(error)
        }
    }
}

impl Journal {
    /// Writes run.json for the first time.
    ///
    /// # Errors
    /// When it cannot be written. The directory is removed then.
    pub(super) fn start(directory: RunDir, mut info: RunInfo, kernel: &Kernel) -> Result<Self> {
        info.run_id = directory.run_id();
        if let Err(error) = directory.write_run(&info) {
            directory.discard();
            return Err(error);
        }
        let now = Instant::now();
        Ok(Self {
            directory,
            info,
            kept: BTreeMap::new(),
            before: kernel.losses(),
            begun: now,
            anchored: now,
            anchor_interval: ANCHOR_INTERVAL,
            checked: now,
            check_interval: FIRST_TICK,
        })
    }

    /// Whether the next tick writes run.json.
    pub(super) fn is_due(&self) -> bool {
        self.checked.elapsed() >= self.check_interval
    }

    /// Starts to keep what comes through the ring.
    ///
    /// # Errors
    /// When the system cannot start another thread. The directory is removed then.
    pub(super) fn capture(
        self,
        ring: Ring,
        trace: TraceSink,
        stacks: Option<StackSink>,
        counts: Arc<CaptureCounts>,
        floors: Floors,
    ) -> Result<(Self, Capture, Receiver<Birth>)> {
        let (sinks, births) = sinks(trace, stacks);
        match Capture::start(ring, sinks, counts, floors) {
            Ok(capture) => Ok((self, capture, births)),
            Err(error) => {
                self.directory.discard();
                Err(unexpected(&error))
            }
        }
    }

    /// Call it in every iteration of a loop: takes a clock anchor and writes run.json when they are
    /// due.
    pub(super) fn tick(&mut self, kernel: &Kernel, losses: &Losses<'_>, counts: &CaptureCounts) {
        counts.lost.store(kernel.records_lost(), Ordering::Relaxed);
        if self.anchored.elapsed() >= self.anchor_interval {
            self.anchored = Instant::now();
            self.info.anchors.0.push(Anchor::take());
            if self.info.anchors.0.len() >= ANCHORS_MAX {
                self.info.anchors.thin_out();
                self.anchor_interval *= 2;
            }
        }
        if self.is_due() {
            self.checked = Instant::now();
            let until = counts.written_until_ns.load(Ordering::Relaxed);
            self.info.end_ns = MonoNanos(until.max(self.info.start_ns.0));
            self.info.loss = self.loss(losses);
            rest();
            self.note_removed(counts);
            self.note_kept();
            self.info.streams.clone_from(&counts.streams());
            self.info.coverage = kernel.coverage();
            let beyond_cap = counts.stalls_beyond_cap();
            if beyond_cap > 0 {
                self.info.loss.total += beyond_cap;
                self.info.loss.add_of_target(BEYOND_CAP, beyond_cap);
            }
            rest();
            let begun = Instant::now();
            // What was written before stays readable, and a full disk is reported at the end.
            if let Err(error) = self.directory.write_run(&self.info) {
                tracing::warn!("cannot update run.json: {error}");
            }
            let is_young = self.begun.elapsed() < FIRST_TIME;
            self.check_interval = checkpoint_pause(begun.elapsed(), is_young);
        }
    }

    /// What a trace of bounded size has removed: it begins later then.
    pub(super) fn note_removed(&mut self, counts: &CaptureCounts) {
        let until = counts.removed_until_ns.load(Ordering::Relaxed);
        self.info.start_ns = self.info.start_ns.max(MonoNanos(until));
        for kind in RecordKind::ALL {
            let removed = counts.removed[kind as usize].load(Ordering::Relaxed);
            if removed > 0 {
                self.info.removed.insert(kind.name().to_owned(), removed);
            }
        }
    }

    /// What is kept of the generator's output so far, and how much is not.
    pub(super) fn note_kept(&mut self) {
        for (name, kept) in &self.kept {
            self.info.kept.insert((*name).to_owned(), kept.part());
            match kept.cut() {
                0 => self.info.cut_bytes.remove(*name),
                cut => self.info.cut_bytes.insert((*name).to_owned(), cut),
            };
        }
    }

    /// What was lost since the start.
    pub(super) fn loss(&self, losses: &Losses<'_>) -> LossSummary {
        losses.read().delta(&self.before).loss_summary()
    }
}

/// Pause until the next checkpoint, from how long it took to write the last one, most of which is a wait
/// for the disk: checkpoints take a fifth of a percent of the time (5 % in the first seconds), and a run
/// that is killed lacks half a minute at most.
fn checkpoint_pause(took: Duration, is_young: bool) -> Duration {
    if is_young {
        (took * 20).clamp(FIRST_TICK, LONGEST_PAUSE)
    } else {
        (took * 500).clamp(TICK_INTERVAL, LONGEST_PAUSE)
    }
}
