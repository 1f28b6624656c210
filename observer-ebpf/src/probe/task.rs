//! Fork, exec and exit: following the target.

use observer_ebpf::wire::{
    FaultState, MmSyscallState, RecordKind, RunqueueState, TASK_EXEC, TASK_EXIT, TASK_FORK,
    TaskRecord,
};

use crate::{
    atomic, emit,
    kernel::{Arguments, Task, now_ns},
    maps::TARGETS,
    task,
};

tracepoint_programs! {
    /// `sched_process_fork(parent, child)`
    sched_process_fork, sched_process_fork_raw => forked;
    /// `sched_process_exec(p, old_pid, bprm)`
    sched_process_exec, sched_process_exec_raw => executed;
    /// `sched_process_exit(p, ..)`
    sched_process_exit, sched_process_exit_raw => exiting;
}

#[inline(always)]
fn report(flags: u16, task: Task, parent_tid: u32) {
    let ids = (task.tgid(), task.tid());
    emit::emit(
        RecordKind::Task,
        TaskRecord {
            header: emit::header(RecordKind::Task, flags, ids, now_ns(), 0),
            parent_tid,
            reserved: 0,
            comm: task.comm(),
        },
    );
}

/// Children and threads of the target belong to it.
#[inline(always)]
fn forked(arguments: Arguments) {
    let (parent, child) = (arguments.task::<0>(), arguments.task::<1>());
    if !emit::is_target(parent.tgid()) {
        return;
    }
    let tgid = child.tgid();
    if let Some(word) = TARGETS.get_ptr_mut(tgid >> 6) {
        atomic::or(word, 1 << (tgid & 63));
    }
    report(TASK_FORK, child, parent.tid());
}

#[inline(always)]
fn executed(arguments: Arguments) {
    let task = arguments.task::<0>();
    // If the thread is not the first of its process, it takes over the id of the first one, and the
    // state stored under that id belongs to another thread.
    task::forget::<RunqueueState>(task);
    task::forget::<FaultState>(task);
    task::forget::<MmSyscallState>(task);
    if emit::is_target(task.tgid()) {
        report(TASK_EXEC, task, 0);
    }
}

/// A process leaves the target when its last thread exits, before its id can be used again.
#[inline(always)]
fn exiting(arguments: Arguments) {
    let task = arguments.task::<0>();
    let tgid = task.tgid();
    if !emit::is_target(tgid) {
        return;
    }
    report(TASK_EXIT, task, 0);
    if task.live_threads() == 0
        && let Some(word) = TARGETS.get_ptr_mut(tgid >> 6)
    {
        atomic::and(word, !(1 << (tgid & 63)));
    }
}
