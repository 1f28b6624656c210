//! Telling the kernel side which processes are the target.

use crate::host::Process;
use crate::kernel::{Kernel, TargetSet};
use crate::log::NOTICE;
use crate::target::Membership;

/// Marks the target for the first time: what forks between listing and marking is found by
/// looking again. New processes with the target's name or program are marked by the kernel side.
pub(super) fn mark_first(membership: &mut Membership, kernel: &Kernel) {
    watch_for_new(membership, kernel);
    let targets = kernel.targets();
    loop {
        membership.processes().for_each(|process| mark(&targets, process));
        if membership.rescan().is_empty() {
            return;
        }
    }
}

/// A program may be replaced by an upgrade, so this is to be called again and again.
fn watch_for_new(membership: &Membership, kernel: &Kernel) {
    if let Some(joining) = membership.joining() {
        kernel.watch_for(&joining);
    }
}

/// Marks the processes that have joined the target. The kernel side follows forks by itself; this
/// function is for processes that join in other ways. It does not remove marks: the kernel side
/// does that when the last thread exits, and here the mark might already belong to the next process
/// with the same id.
pub(super) fn mark_joined(membership: &mut Membership, kernel: &Kernel) {
    watch_for_new(membership, kernel);
    let targets = kernel.targets();
    let joined = membership.poll().joined;
    if let Some(listeners) = membership.describe_listeners(&joined) {
        tracing::info!(target: NOTICE, "joined the target {listeners}");
    }
    for process in &joined {
        tracing::debug!("process {} ({}) joined the target", process.tgid.0, process.comm);
        mark(&targets, process);
    }
}

/// Marks a process, unless the kernel side already did (user space cannot distinguish the mark from
/// that of a later process with the same id), or the process exited before it was marked.
fn mark(targets: &TargetSet, process: &Process) {
    if targets.contains(process.tgid.0) {
        return;
    }
    targets.set(process.tgid.0, true);
    if !process.is_alive() {
        targets.set(process.tgid.0, false);
    }
}
