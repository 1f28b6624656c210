//! Stacks of the target's threads that were away from the CPU for long.

use aya_ebpf::{bindings::BPF_F_USER_STACK, macros::map, maps::StackTrace};
use observer_ebpf::wire::{
    Counter, LossKind, RecordKind, STACK_PREEMPTED, STACKS_MAX, StackRecord, StackState, TASK_DEAD,
};

use super::runqueue::{state_of, switching, was_preempted};
use super::turns::above_zero;
use crate::{
    emit,
    kernel::{Arguments, Task, now_ns},
    task,
};

/// The stacks by id (loader).
#[map]
static STACKS: StackTrace = StackTrace::with_max_entries(STACKS_MAX, 0);

tracepoint_programs! {
    /// `sched_switch(preempt, prev, next, prev_state)`
    sched_switch_stack, sched_switch_stack_raw => switched;
}

/// A context switch. How long a thread will be away is not known when it leaves, and it is itself only
/// then: so its stack is noted each time.
#[inline(always)]
fn switched(arguments: Arguments) {
    let (prev, next) = switching(arguments);
    let prev_state = state_of(prev, arguments);
    if emit::is_target(prev.tgid()) && prev_state & TASK_DEAD == 0 {
        left(prev, arguments, was_preempted(arguments) || prev_state == 0);
    }
    if emit::is_target(next.tgid()) {
        returned(next);
    }
}

#[inline(always)]
fn left(prev: Task, arguments: Arguments, lost_cpu: bool) {
    let Some(state) = task::claim::<StackState>(prev) else { return };
    if state.begin_ns != 0 {
        // It got the CPU without an event.
        match prev.arrival() {
            Some((_, ago_ns)) => ended(prev, state, now_ns().wrapping_sub(ago_ns)),
            None => emit::lose_of(LossKind::SwitchMissed, prev),
        }
    }
    state.kernel_stack = arguments.stack_id(&STACKS, 0);
    state.user_stack = arguments.stack_id(&STACKS, BPF_F_USER_STACK.into());
    state.preempted = u64::from(lost_cpu);
    state.begin_ns = now_ns();
}

#[inline(always)]
fn returned(next: Task) {
    let Some(state) = task::find::<StackState>(next) else { return };
    if state.begin_ns != 0 {
        ended(next, state, now_ns());
    }
}

/// An absence of the thread has ended.
#[inline(always)]
fn ended(task: Task, state: &mut StackState, end_ns: u64) {
    // What the scheduler noted may be earlier by the difference of two clocks.
    let away_ns = above_zero(end_ns.wrapping_sub(state.begin_ns));
    state.begin_ns = 0;
    emit::count(Counter::TargetAbsences);
    if !emit::past_floor(RecordKind::Stack, away_ns) {
        return;
    }
    let flags = if state.preempted != 0 { STACK_PREEMPTED } else { 0 };
    let header = emit::header(RecordKind::Stack, flags, (task.tgid(), task.tid()), end_ns, away_ns);
    let StackState { kernel_stack, user_stack, .. } = *state;
    emit::emit(RecordKind::Stack, StackRecord { header, kernel_stack, user_stack });
}
