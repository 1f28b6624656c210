//! A daemon that keeps the target's stalls: a run directory without an end, in the making.

use std::path::Path;
use std::sync::atomic::Ordering;

use observer_ebpf::wire::KIND_SLOTS;

use super::finish::{loss, records};
use super::journal::Journal;
use super::{Capture, Floors, create_directory, describe, unexpected};
use crate::clock::{Anchor, MonoNanos};
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, RING_BYTES};
use crate::model::EndReason;
use crate::target::{Membership, TargetSpec};

/// The trace of a daemon.
pub(super) struct Recording {
    journal: Journal,
    capture: Capture,
}

impl Recording {
    /// Starts writing into a new directory.
    ///
    /// # Errors
    /// When the directory or a thread cannot be had.
    pub(super) fn start(
        out: &Path,
        target: &TargetSpec,
        membership: &Membership,
        kernel: &mut Kernel,
    ) -> Result<Self> {
        let (directory, trace) = create_directory(Some(out))?;
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let floors = Floors { set: kernel.floors(), fixed: Vec::new(), ring_bytes: RING_BYTES };
        let capture = Capture::start(ring, trace, floors).map_err(|error| unexpected(&error))?;
        let info = describe(target, membership, kernel);
        Ok(Self { journal: Journal::start(directory, info, kernel)?, capture })
    }

    /// Call it a few times a second.
    pub(super) fn tick(&mut self, membership: &mut Membership, kernel: &Kernel) {
        for child in self.capture.births() {
            membership.on_fork(child);
        }
        self.journal.tick(kernel, self.capture.counts());
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
    pub(super) fn finish(self, kernel: &Kernel) -> Result<()> {
        kernel.forget_targets();
        let end = MonoNanos::now();
        let lost = self.journal.loss(kernel);
        let captured = self.capture.finish();
        let Journal { directory, mut info, .. } = self.journal;
        info.loss = loss(lost, &records(&kernel.counts(), &captured), &captured);
        info.anchors.0.push(Anchor::take());
        info.end_ns = end;
        info.end_reason = EndReason::Interrupted;
        info.thread_names.extend(captured.thread_names);
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
