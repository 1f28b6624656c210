//! A daemon that keeps the target's stalls: a run directory without an end, in the making.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use observer_ebpf::wire::{KIND_SLOTS, LOSS_SLOTS};

use super::{
    ANCHOR_INTERVAL, ANCHORS_MAX, CHECKPOINT_INTERVAL, Capture, Floors, RunOptions,
    checkpoint_pause, describe, unexpected,
};
use crate::aggregate::Snapshot;
use crate::clock::{Anchor, Anchors, MonoNanos};
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, RING_BYTES};
use crate::model::{EndReason, RunInfo, SlowSpec};
use crate::output::rundir::RunDir;
use crate::probe::ProbeOptions;
use crate::target::{Membership, TargetSpec};

/// The trace of a daemon.
pub(super) struct Recording {
    directory: RunDir,
    capture: Capture,
    info: RunInfo,
    lost_before: [u64; LOSS_SLOTS],
    anchored: Instant,
    anchor_interval: Duration,
    checked: Instant,
    check_interval: Duration,
}

impl Recording {
    /// Starts writing into a new directory.
    ///
    /// # Errors
    /// When the directory or a thread cannot be had.
    pub(super) fn start(
        out: PathBuf,
        target: &TargetSpec,
        probes: &ProbeOptions,
        membership: &Membership,
        kernel: &mut Kernel,
    ) -> Result<Self> {
        let directory = RunDir::create(Some(&out))?;
        let trace = directory.create_events()?;
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let floors = Floors { set: kernel.floors(), fixed: Vec::new(), ring_bytes: RING_BYTES };
        let capture = Capture::start(ring, trace, floors).map_err(|error| unexpected(&error))?;
        let options = RunOptions {
            target: target.clone(),
            wait: false,
            probes: probes.clone(),
            samples: None,
            duration: None,
            slow: SlowSpec::default(),
            out: Some(out),
            command: Vec::new(),
            ring_bytes: RING_BYTES,
            floors_ns: Vec::new(),
        };
        let anchors = Anchors(vec![Anchor::take()]);
        let info = describe(&options, membership, kernel, MonoNanos::now(), &anchors);
        directory.write_run(&info)?;
        let now = Instant::now();
        Ok(Self {
            directory,
            capture,
            info,
            lost_before: kernel.losses(),
            anchored: now,
            anchor_interval: ANCHOR_INTERVAL,
            checked: now,
            check_interval: CHECKPOINT_INTERVAL,
        })
    }

    /// Call it a few times a second.
    pub(super) fn tick(&mut self, membership: &mut Membership, kernel: &Kernel) {
        for child in self.capture.births() {
            membership.on_fork(child);
        }
        if self.anchored.elapsed() >= self.anchor_interval {
            self.anchored = Instant::now();
            self.info.anchors.0.push(Anchor::take());
            if self.info.anchors.0.len() >= ANCHORS_MAX {
                self.info.anchors.thin_out();
                self.anchor_interval *= 2;
            }
        }
        self.capture.counts().lost.store(kernel.records_lost(), Ordering::Relaxed);
        if self.checked.elapsed() >= self.check_interval {
            self.checked = Instant::now();
            self.note_loss(kernel);
            let until = self.capture.counts().written_until_ns.load(Ordering::Relaxed);
            self.info.end_ns = MonoNanos(until.max(self.info.start_ns.0));
            // A full disk is told at the end; what was written before stays readable.
            let _ = self.directory.write_run(&self.info);
            self.check_interval = checkpoint_pause(self.checked.elapsed());
        }
    }

    fn note_loss(&mut self, kernel: &Kernel) {
        let lost = kernel.losses();
        let before = Snapshot { lost: self.lost_before, ..Snapshot::default() };
        let now = Snapshot { lost, ..Snapshot::default() };
        self.info.loss = now.delta(&before).loss_summary();
    }

    /// Changes of floors so far, by kind.
    pub(super) fn floor_changes(&self) -> [u64; KIND_SLOTS] {
        let changes = &self.capture.counts().floor_changes;
        std::array::from_fn(|kind| changes[kind].load(Ordering::Relaxed))
    }

    /// Drains what is left and ends the trace.
    ///
    /// # Errors
    /// When it could not be written to its end.
    pub(super) fn finish(mut self, kernel: &Kernel) -> Result<()> {
        kernel.forget_targets();
        let end = MonoNanos::now();
        self.note_loss(kernel);
        let captured = self.capture.finish();
        self.info.anchors.0.push(Anchor::take());
        self.info.end_ns = end;
        self.info.end_reason = EndReason::Interrupted;
        self.info.thread_names.extend(captured.thread_names);
        for (reason, count) in captured.skipped {
            self.info.loss.total += count;
            self.info.loss.by_kind.insert(reason.to_owned(), count);
        }
        self.directory.release_reserve();
        let written = self.directory.write_run(&self.info);
        match captured.trace_error {
            None => written,
            Some(error) => {
                let exit = if captured.disk_full { Exit::DiskFull } else { Exit::Output };
                let path = self.directory.path().display();
                Err(Error::new(exit, format!("the trace in {path} ends early: {error}")))
            }
        }
    }
}
