//! A daemon that keeps the target's stalls: a run directory without an end, of which the oldest part
//! is removed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use observer_ebpf::wire::KIND_SLOTS;

use super::conditions::ConditionWatch;
use super::finish::{loss, records};
use super::journal::{Journal, create_directory};
use super::loss_watch::{LossWatch, Losses};
use super::request_rate::RequestRate;
use super::sink::Birth;
use super::trace_sink::TraceSink;
use super::{Capture, CaptureCounts, DaemonOptions, Floors, describe, unexpected};
use crate::aggregate::TraceState;
use crate::clock::{Anchor, MonoNanos};
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, RING_BYTES};
use crate::model::{EndReason, Event};
use crate::output::rundir::RunDir;
use crate::target::Membership;

/// A trace that is being written, in addition to the metrics.
pub(super) struct Recording {
    journal: Journal,
    capture: Capture,
    births: Receiver<Birth>,
    losses: LossWatch,
    requests: Option<RequestRate>,
}

impl Recording {
    /// Starts writing into a new directory.
    ///
    /// # Errors
    /// When the directory or a thread is not available.
    pub(super) fn start(
        options: &DaemonOptions,
        out: &Path,
        membership: &Membership,
        kernel: &mut Kernel,
    ) -> Result<Self> {
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let begin = |directory: &RunDir| directory.create_event_ring(options.trace_bytes);
        let (directory, trace) = create_directory(Some(out), begin)?;
        let target = options.target.as_ref().map(ToString::to_string).unwrap_or_default();
        // Before the first record is written: a directory that is discarded must not grow.
        let journal = Journal::start(directory, describe(target, membership, kernel), kernel)?;
        let floors = Floors { set: kernel.floors(), fixed: Vec::new(), ring_bytes: RING_BYTES };
        let counts = Arc::new(CaptureCounts::default());
        let trace = TraceSink::of_ring(trace, &counts);
        let (journal, capture, births) = journal.capture(ring, trace, None, counts, floors)?;
        let requests = kernel.watches_requests().then(|| RequestRate::start(kernel));
        Ok(Self { journal, capture, births, losses: LossWatch::new(kernel), requests })
    }

    /// Call it a few times a second.
    pub(super) fn tick(
        &mut self,
        membership: &mut Membership,
        conditions: &ConditionWatch,
        kernel: &Kernel,
    ) {
        for birth in self.births.try_iter() {
            membership.on_birth(birth.tgid, birth.forked);
        }
        if let Some(requests) = &mut self.requests {
            requests.tick(kernel);
        }
        self.journal.info.conditions = conditions.so_far();
        let losses = Losses::later(kernel);
        self.journal.tick(kernel, &losses, self.capture.counts());
        self.losses.tick(&losses, &self.capture);
    }

    /// Something else that observer has to note in the trace.
    pub(super) fn note(&mut self, events: Vec<Event>) {
        self.losses.note(events);
    }

    /// Changes of floors so far, by kind.
    pub(super) fn floor_changes(&self) -> [u64; KIND_SLOTS] {
        let changes = &self.capture.counts().floor_changes;
        std::array::from_fn(|kind| changes[kind].load(Ordering::Relaxed))
    }

    /// Whether the trace is still written.
    pub(super) fn trace(&self) -> TraceState {
        let counts = self.capture.counts();
        TraceState {
            ended: counts.trace_ended.load(Ordering::Relaxed),
            missing: counts.after_trace.load(Ordering::Relaxed),
        }
    }

    /// Drains what is left and ends the trace.
    ///
    /// # Errors
    /// When it could not be written to its end.
    pub(super) fn finish(mut self, kernel: &Kernel) -> Result<()> {
        kernel.forget_targets();
        let end = MonoNanos::now();
        let lost = self.journal.loss(&Losses::later(kernel));
        self.losses.finish(kernel, &self.capture);
        self.capture.note_last(kernel.open_bursts());
        self.journal.note_removed(self.capture.counts());
        let captured = self.capture.finish();
        let Journal { directory, mut info, .. } = self.journal;
        let records = records(&kernel.counts(), &captured);
        info.loss = loss(lost, kernel.skipped_runs(), &records, &captured);
        info.anchors.0.push(Anchor::take());
        info.end_ns = end;
        info.end_reason = EndReason::Interrupted;
        info.coverage = kernel.coverage();
        info.thread_names.extend(captured.thread_names);
        info.holder_cgroups = captured.holder_cgroups;
        info.streams = captured.streams;
        directory.release_reserve();
        let written = directory.write_run(&info);
        match captured.trace_error {
            None => written,
            Some(error) => {
                let exit = if captured.disk_full { Exit::DiskFull } else { Exit::Output };
                let path = directory.path().display();
                Err(Error::new(exit, format!("the trace in {path} ends early: {error}")))
            }
        }
    }
}
