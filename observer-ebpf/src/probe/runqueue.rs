//! Scheduler delay: from wake-up (or preemption) to running.
//!
//! The rule mirrors the kernel's own run delay (`sched_info_enqueue`, `sched_info_arrive`,
//! kernel/sched/stats.h): the wait begins when a thread becomes runnable without running, and ends
//! when it is switched to. A wake-up of a thread that already waits (or runs) does not restart it:
//! what such a wake-up leaves behind is overwritten when the thread is switched out.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::wire::{RUNQUEUE_PREEMPTED, RecordKind, RunqueueRecord, Series};

use crate::{
    emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// `sched_wakeup(p)`
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) {
    woken(Task::new(ctx.arg(0)));
}

/// `sched_wakeup_new(p)`
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) {
    woken(Task::new(ctx.arg(0)));
}

#[inline(always)]
fn woken(woken: Task) {
    let Some(state) = task::claim(woken.tid()) else { return };
    if state.runnable_ns == 0 {
        state.runnable_ns = now_ns();
        state.preempted = 0;
    }
}

/// `sched_switch(preempt, prev, next, prev_state)`
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) {
    let preempted = ctx.arg::<u64>(0) & 1 != 0;
    let prev = Task::new(ctx.arg(1));
    let next = Task::new(ctx.arg(2));
    let prev_state: u32 = ctx.arg(3);
    let now = now_ns();

    let prev_tid = prev.tid();
    // The idle task is always runnable and waits for nobody.
    if prev_tid != 0
        && let Some(state) = task::claim(prev_tid)
    {
        state.runnable_ns = if preempted || prev_state == 0 { now } else { 0 };
        state.preempted = 1;
    }

    let next_tid = next.tid();
    if next_tid == 0 {
        return;
    }
    // Without a slot of its own, the begin of this wait is unknown (before attach, or counted as
    // lost when the slot was taken over).
    let Some(state) = task::find(next_tid) else { return };
    let since = state.runnable_ns;
    if since == 0 {
        return;
    }
    state.runnable_ns = 0;
    let was_preempted = state.preempted != 0;
    let duration_ns = now.wrapping_sub(since);
    let tgid = next.tgid();
    let is_target = emit::is_target(tgid);
    let series = if was_preempted { Series::RunqueuePreempt } else { Series::RunqueueWakeup };
    histogram::observe(next, is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Runqueue, duration_ns) {
        let flags = if was_preempted { RUNQUEUE_PREEMPTED } else { 0 };
        emit::emit(
            RecordKind::Runqueue,
            RunqueueRecord {
                header: emit::header(
                    RecordKind::Runqueue,
                    flags,
                    (tgid, next_tid),
                    now,
                    duration_ns,
                ),
                ran_tid: prev_tid,
                ran_tgid: prev.tgid(),
                ran_comm: prev.comm(),
            },
        );
    }
}
