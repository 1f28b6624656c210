//! Fork, exec and exit: following the target.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::wire::{RecordKind, TASK_EXEC, TASK_EXIT, TASK_FORK, TaskRecord};

use crate::{
    atomic, emit,
    kernel::{Task, now_ns},
    maps::TARGETS,
};

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

/// `sched_process_fork(parent, child)`: children and threads of the target belong to it.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) {
    let parent = Task::new(ctx.arg(0));
    let child = Task::new(ctx.arg(1));
    if !emit::is_target(parent.tgid()) {
        return;
    }
    let tgid = child.tgid();
    if let Some(word) = TARGETS.get_ptr_mut(tgid >> 6) {
        atomic::or(word, 1 << (tgid & 63));
    }
    report(TASK_FORK, child, parent.tid());
}

/// `sched_process_exec(p, old_pid, bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) {
    let task = Task::new(ctx.arg(0));
    if emit::is_target(task.tgid()) {
        report(TASK_EXEC, task, 0);
    }
}

/// `sched_process_exit(p, ..)`: with its last thread a process leaves the target, before its id
/// can be used again.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) {
    let task = Task::new(ctx.arg(0));
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
