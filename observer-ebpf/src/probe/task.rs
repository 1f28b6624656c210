//! Fork, exec, exit and change of name: following the target.

use observer_ebpf::wire::{
    COMM_LEN, FaultState, IrqState, MmSyscallState, Owner, RecordKind, RunqueueState, TASK_EXEC,
    TASK_EXIT, TASK_FORK, TASK_JOIN, TaskRecord,
};

use crate::{
    atomic, burst, emit,
    kernel::{Arguments, Task, now_ns},
    maps::TARGETS,
    task,
};

use super::generator;

tracepoint_programs! {
    /// `sched_process_fork(parent, child)`
    sched_process_fork, sched_process_fork_raw => forked;
    /// `sched_process_exec(p, old_pid, bprm)`
    sched_process_exec, sched_process_exec_raw => executed;
    /// `sched_process_exit(p, ..)`
    sched_process_exit, sched_process_exit_raw => exiting;
    /// `task_rename(task, comm)`, before the task has its new name
    task_rename, task_rename_raw => renamed;
}

/// Generations above a task in which observer is looked for.
const GENERATIONS: u32 = 16;

#[inline(always)]
fn report(flags: u16, task: Task, comm: [u8; COMM_LEN], parent_tid: u32) {
    let ids = (task.tgid(), task.tid());
    emit::emit(
        RecordKind::Task,
        TaskRecord {
            header: emit::header(RecordKind::Task, flags, ids, now_ns(), 0),
            parent_tid,
            reserved: 0,
            comm,
        },
    );
}

#[inline(always)]
fn mark(tgid: u32) {
    if let Some(word) = TARGETS.get_ptr_mut(tgid >> 6) {
        atomic::or(word, 1 << (tgid & 63));
    }
}

/// Children and threads of the target belong to it.
#[inline(always)]
fn forked(arguments: Arguments) {
    let (parent, child) = (arguments.task::<0>(), arguments.task::<1>());
    if !emit::is_target(parent.tgid()) {
        return;
    }
    mark(child.tgid());
    report(TASK_FORK, child, child.comm(), parent.tid());
}

/// Whether the task is observer, or was started by it or by what it started: COMMAND is no target.
#[inline(always)]
pub(super) fn is_of_observer(task: Task, observer_tgid: u64) -> bool {
    let mut ancestor = task;
    let mut generation = 0;
    while generation < GENERATIONS {
        let tgid = u64::from(ancestor.tgid());
        if tgid == observer_tgid {
            return true;
        }
        if tgid <= 1 {
            return false;
        }
        ancestor = ancestor.parent();
        generation += 1;
    }
    false
}

/// The process matches what the target was named by.
#[inline(always)]
fn join(task: Task, comm: [u8; COMM_LEN], observer_tgid: u64) {
    let tgid = task.tgid();
    if emit::is_target(tgid) || task.is_kernel_thread() || is_of_observer(task, observer_tgid) {
        return;
    }
    mark(tgid);
    report(TASK_JOIN, task, comm, 0);
}

/// A process has the name of its first thread. Execution changes it as well.
#[inline(always)]
fn renamed(arguments: Arguments) {
    let Some(settings) = emit::settings() else { return };
    if settings.target_comm[0] == 0 {
        return;
    }
    let task = arguments.task::<0>();
    let comm = arguments.comm::<1>();
    if comm == settings.target_comm && task.tid() == task.tgid() {
        join(task, comm, settings.observer_tgid);
    }
}

#[inline(always)]
fn executed(arguments: Arguments) {
    let task = arguments.task::<0>();
    // If the thread is not the first of its process, it takes over the id of the first one, and the
    // state stored under that id belongs to another thread.
    task::forget::<RunqueueState>(task);
    task::forget::<FaultState>(task);
    task::forget::<MmSyscallState>(task);
    if let Some(settings) = emit::settings()
        && settings.target_inode != 0
    {
        let program = arguments.executable::<2>();
        if program.inode() == settings.target_inode && program.device() == settings.target_device {
            join(task, task.comm(), settings.observer_tgid);
        }
    }
    if emit::is_target(task.tgid()) {
        report(TASK_EXEC, task, task.comm(), 0);
    }
    generator::executed(task);
}

/// Nothing ends the last burst of a thread that exits.
#[inline(always)]
fn send_burst<S: task::State>(task: Task) {
    if let Some(state) = task::find::<S>(task) {
        burst::send(state, Owner { tid: task.tid(), tgid: task.tgid() });
    }
}

/// A process leaves the target when its last thread exits, before its id can be used again.
#[inline(always)]
fn exiting(arguments: Arguments) {
    let task = arguments.task::<0>();
    let tgid = task.tgid();
    if !emit::is_target(tgid) {
        if task.live_threads() == 0 {
            generator::exiting(task);
        }
        return;
    }
    send_burst::<FaultState>(task);
    send_burst::<MmSyscallState>(task);
    send_burst::<IrqState>(task);
    report(TASK_EXIT, task, task.comm(), 0);
    if task.live_threads() == 0
        && let Some(word) = TARGETS.get_ptr_mut(tgid >> 6)
    {
        atomic::and(word, !(1 << (tgid & 63)));
    }
}
