//! Stacks of the target's threads that were away from the CPU for long.

use aya_ebpf::{bindings::BPF_F_USER_STACK, macros::map, maps::StackTrace};
use observer_ebpf::wire::{
    RecordKind, STACK_PREEMPTED, STACKS_MAX, StackRecord, StackState, TASK_DEAD,
};

use super::runqueue::{state_of, switching, was_preempted};
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
    if emit::is_target(prev.tgid()) && state_of(prev, arguments) & TASK_DEAD == 0 {
        left(prev, arguments);
    }
    if emit::is_target(next.tgid()) {
        returned(next);
    }
}

#[inline(always)]
fn left(prev: Task, arguments: Arguments) {
    let Some(state) = task::claim::<StackState>(prev) else { return };
    state.kernel_stack = arguments.stack_id(&STACKS, 0);
    state.user_stack = arguments.stack_id(&STACKS, BPF_F_USER_STACK.into());
    state.preempted = u64::from(was_preempted(arguments));
    state.begin_ns = now_ns();
}

#[inline(always)]
fn returned(next: Task) {
    let Some(state) = task::find::<StackState>(next) else { return };
    let since = state.begin_ns;
    if since == 0 {
        return;
    }
    state.begin_ns = 0;
    let now = now_ns();
    let away_ns = now.wrapping_sub(since);
    if !emit::past_floor(RecordKind::Stack, away_ns) {
        return;
    }
    let flags = if state.preempted != 0 { STACK_PREEMPTED } else { 0 };
    let header = emit::header(RecordKind::Stack, flags, (next.tgid(), next.tid()), now, away_ns);
    let StackState { kernel_stack, user_stack, .. } = *state;
    emit::emit(RecordKind::Stack, StackRecord { header, kernel_stack, user_stack });
}
