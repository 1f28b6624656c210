//! Scheduler delay: from wake-up (or preemption) to running.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::wire::{RUNQUEUE_PREEMPTED, RecordKind, RunqueueRecord, Series, TaskState};

use crate::{
    emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// `sched_switch(preempt, prev, next, prev_state)`, with the kernel's own run delay.
///
/// The scheduler books the wait of `next` (`sched_info_arrive`, kernel/sched/stats.h) just after
/// this tracepoint, from the same two numbers that are read here: no second program at wake-up,
/// no clock to read, and the sums are the kernel's own to the nanosecond. A wait that was moved to
/// another CPU was booked in parts; what was added to the run delay since the thread's last
/// arrival is the other parts.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) {
    let next = Task::new(ctx.arg(2));
    let tid = next.tid();
    // The idle task is always runnable and waits for nobody.
    if tid == 0 {
        return;
    }
    let Some(state) = task::claim(tid) else { return };
    let booked_ns = next.run_delay_ns();
    let involuntary_switches = next.involuntary_switches();
    let known = state.run_delay_ns != 0 || state.involuntary_switches != 0;
    let earlier_parts_ns = if known { booked_ns.wrapping_sub(state.run_delay_ns) } else { 0 };
    let preempted = known && involuntary_switches != state.involuntary_switches;
    let queued_ns = next.last_queued_ns();
    let last_part_ns =
        if queued_ns == 0 { 0 } else { next.run_queue_clock_ns().wrapping_sub(queued_ns) };
    state.run_delay_ns = booked_ns.wrapping_add(last_part_ns);
    state.involuntary_switches = involuntary_switches;
    if queued_ns == 0 && earlier_parts_ns == 0 {
        return;
    }
    // The clocks of two CPUs may differ by a little, and the kernel then books a wait of no time.
    let duration_ns = match earlier_parts_ns.wrapping_add(last_part_ns) {
        duration_ns if duration_ns as i64 >= 0 => duration_ns,
        _ => 0,
    };
    arrived(Task::new(ctx.arg(1)), next, state, preempted, duration_ns);
}

/// Books a wait that has just ended.
#[inline(always)]
fn arrived(prev: Task, next: Task, state: &mut TaskState, preempted: bool, duration_ns: u64) {
    let tgid = next.tgid();
    let is_target = emit::is_target(tgid);
    let series = if preempted { Series::RunqueuePreempt } else { Series::RunqueueWakeup };
    let tid = state.tid;
    histogram::observe(next, Some(state), is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Runqueue, duration_ns) {
        let flags = if preempted { RUNQUEUE_PREEMPTED } else { 0 };
        let header = emit::header(RecordKind::Runqueue, flags, (tgid, tid), now_ns(), duration_ns);
        emit::emit(
            RecordKind::Runqueue,
            RunqueueRecord {
                header,
                ran_tid: prev.tid(),
                ran_tgid: prev.tgid(),
                ran_comm: prev.comm(),
            },
        );
    }
}

/// `sched_wakeup(p)`, for kernels without run-delay accounting.
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) {
    woken(Task::new(ctx.arg(0)));
}

/// `sched_wakeup_new(p)`, for kernels without run-delay accounting.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) {
    woken(Task::new(ctx.arg(0)));
}

/// A wake-up of a thread that already waits (or runs) does not restart its wait: what such a
/// wake-up leaves behind is overwritten when the thread is switched out.
#[inline(always)]
fn woken(woken: Task) {
    let Some(state) = task::claim(woken.tid()) else { return };
    if state.run_delay_ns == 0 {
        state.run_delay_ns = now_ns();
        state.involuntary_switches = 0;
    }
}

/// `sched_switch(preempt, prev, next, prev_state)`, for kernels without run-delay accounting: the
/// same rule, with begin times kept here.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch_timed(ctx: BtfTracePointContext) {
    let preempted = ctx.arg::<u64>(0) & 1 != 0;
    let prev = Task::new(ctx.arg(1));
    let next = Task::new(ctx.arg(2));
    let prev_state: u32 = ctx.arg(3);
    let now = now_ns();

    let prev_tid = prev.tid();
    if prev_tid != 0
        && let Some(state) = task::claim(prev_tid)
    {
        state.run_delay_ns = if preempted || prev_state == 0 { now } else { 0 };
        state.involuntary_switches = 1;
    }

    let next_tid = next.tid();
    if next_tid == 0 {
        return;
    }
    // Without a slot of its own, the begin of this wait is unknown (before attach, or counted as
    // lost when the slot was taken over).
    let Some(state) = task::find(next_tid) else { return };
    let since = state.run_delay_ns;
    if since == 0 {
        return;
    }
    state.run_delay_ns = 0;
    let was_preempted = state.involuntary_switches != 0;
    arrived(prev, next, state, was_preempted, now.wrapping_sub(since));
}
