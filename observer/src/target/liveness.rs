//! Whether a process still lives, without confusing it with a later process that has the same id.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::host::Process;

/// A process with a handle (pidfd).
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) process: Process,
    /// The process itself matches the target, rather than being a child of one that does.
    pub(super) seed: bool,
    /// A process of the target forked it, as far as that was seen.
    pub(super) forked: bool,
    /// `None` on kernels before 5.3, or with too many of them: the start time decides then.
    pidfd: Option<OwnedFd>,
}

impl Watched {
    /// Takes a handle; `None` when the process is gone already.
    pub(super) fn new(process: Process, seed: bool, with_pidfd: bool) -> Option<Self> {
        let pidfd = with_pidfd
            .then(|| i32::try_from(process.tgid.0).ok().and_then(Pid::from_raw))
            .flatten()
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // After the handle is taken: if the start time is still the expected one, the handle refers
        // to the right process.
        process.is_alive().then_some(Self { process, seed, forked: false, pidfd })
    }
}

/// Which of `watched` are gone: one poll(2) for all that have a handle.
pub(super) fn gone<'a>(watched: impl Iterator<Item = &'a Watched>) -> Vec<Process> {
    let (with, without): (Vec<&Watched>, Vec<&Watched>) =
        watched.partition(|watched| watched.pidfd.is_some());
    let mut gone: Vec<Process> = without
        .into_iter()
        .filter(|watched| !watched.process.is_alive())
        .map(|watched| watched.process.clone())
        .collect();

    // A pidfd becomes readable when the process's last thread has exited.
    let mut polled: Vec<PollFd<'_>> = with
        .iter()
        .filter_map(|watched| watched.pidfd.as_ref())
        .map(|pidfd| PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN))
        .collect();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if rustix::event::poll(&mut polled, Some(&now)).is_ok() {
        gone.extend(
            with.iter()
                .zip(&polled)
                .filter(|(_, polled)| !polled.revents().is_empty())
                .map(|(watched, _)| watched.process.clone()),
        );
    }
    gone
}
