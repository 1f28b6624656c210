//! Scheduler delay: from wake-up (or preemption) to running.

use observer_ebpf::wire::{
    Counter, HAS_SWITCHED, LossKind, RAN_ALWAYS_NS, RUNQUEUE_PREEMPTED, RUNQUEUE_UNSEEN,
    RecordKind, RunqueueState, Series, wait_seal,
};

use super::{sleep, throttle, turns};
use crate::{
    config, emit, histogram,
    kernel::{Arguments, Task, now_ns},
    task,
};

tracepoint_programs! {
    /// `sched_switch(preempt, prev, next, prev_state)`
    sched_switch, sched_switch_raw => switched;
    /// `sched_migrate_task(p, dest_cpu)`
    sched_migrate_task, sched_migrate_task_raw => moved;
    /// `sched_wakeup(p)`, for kernels without run-delay accounting.
    sched_wakeup, sched_wakeup_raw => woken;
    /// `sched_wakeup_new(p)`, for kernels without run-delay accounting.
    sched_wakeup_new, sched_wakeup_new_raw => woken;
    /// `sched_switch(preempt, prev, next, prev_state)`, for kernels without run-delay accounting.
    sched_switch_timed, sched_switch_timed_raw => switched_timed;
}

/// `prev` and `next` of `sched_switch`. Linux 5.18 had `prev_state` before them for a while.
#[inline(always)]
pub(super) fn switching(arguments: Arguments) -> (Task, Task) {
    if config::switch_prev() == 1 {
        (arguments.task::<1>(), arguments.task::<2>())
    } else {
        (arguments.task::<2>(), arguments.task::<3>())
    }
}

/// Whether the programs whose tasks are typed, or the other ones, measure waits for a CPU.
#[inline(always)]
fn measures_waits(are_typed: bool) -> bool {
    (if are_typed { config::switch_runqueue() } else { config::switch_runqueue_raw() }) != 0
}

/// As [`measures_waits`], for sleeps.
#[inline(always)]
fn measures_sleeps(are_typed: bool) -> bool {
    (if are_typed { config::switch_sleep() } else { config::switch_sleep_raw() }) != 0
}

/// A context switch: runs each part that is switched on.
#[inline(always)]
fn switched(arguments: Arguments) {
    let (prev, next) = switching(arguments);
    let (preempted, prev_state) = (was_preempted(arguments), state_of(prev, arguments));
    if arrived_unseen(prev, next, usize::from(arguments.are_typed())) {
        let lost_cpu = u64::from(preempted || prev_state == 0);
        if arguments.are_typed() {
            complete_arrival(lost_cpu);
        } else {
            emit::leave_waiting(prev);
            complete_arrival_raw(lost_cpu);
        }
    }
    if measures_sleeps(arguments.are_typed()) {
        sleep::switched(prev, next, preempted, prev_state);
    }
    if measures_waits(arguments.are_typed()) {
        waited(prev, next);
    }
}

/// Whether `prev` was preempted, and did not give up the CPU by itself.
#[inline(always)]
pub(super) fn was_preempted(arguments: Arguments) -> bool {
    arguments.word::<0>() & 1 != 0
}

/// The state of `prev` when it was switched out. The argument if there is one: a waker may already have
/// changed the state itself.
#[inline(always)]
pub(super) fn state_of(prev: Task, arguments: Arguments) -> u32 {
    if config::switch_has_state() != 0 { arguments.word::<3>() as u32 } else { prev.state() }
}

/// Whether `prev` is a thread of the target that got the CPU without an event.
///
/// The kernels of some virtual machines switch between threads without the tracepoint now and then, most of
/// all from the idle task: this was seen in several switches of a thousand, by ftrace and perf as well.
#[inline(always)]
fn arrived_unseen(prev: Task, next: Task, program: usize) -> bool {
    if config::has_target() == 0 {
        return false;
    }
    let Some(cpu) = emit::counts() else { return false };
    // SAFETY: a map value whose word only this program writes, on its own CPU.
    let switched_to = unsafe { &mut (*cpu).switched_to[program & 1] };
    let before = *switched_to;
    *switched_to = u64::from(next.tid()) | HAS_SWITCHED;
    before != 0 && before as u32 != prev.tid() && emit::is_target(prev.tgid())
}

/// Completes the wait and the sleep before the last arrival of a thread that got the CPU without an event, from
/// what the scheduler noted of it, when the thread leaves the CPU. `lost_cpu` is 1 if that is not of its own will.
///
/// A function of its own, because few switches need it; and with a name and a result, because the verifier examines such
/// a function once, and not with all that can be around it, if its arguments are numbers. Otherwise Linux 6.1 refuses the
/// program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn complete_arrival(lost_cpu: u64) -> u64 {
    // The switch is still to come. What is known of a thread may be in its own storage, to which leads a typed task only.
    complete(Task::current(), lost_cpu, true);
    0
}

/// As [`complete_arrival`], for the program that does not know the type of tasks, of the thread that is left for it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn complete_arrival_raw(lost_cpu: u64) -> u64 {
    complete(emit::waiting(), lost_cpu, false);
    0
}

#[inline(always)]
fn complete(prev: Task, lost_cpu: u64, are_typed: bool) {
    let Some((arrival_ns, ago_ns)) = prev.arrival() else { return };
    let Some(cpu) = emit::counts() else { return };
    // SAFETY: a map value whose word only this program writes, on its own CPU.
    let arrived_ago_ns = unsafe { &mut (*cpu).arrived_ago_ns };
    *arrived_ago_ns = ago_ns;
    emit::count(Counter::TargetUnseenArrivals);
    if measures_sleeps(are_typed) {
        sleep::ended_unseen(prev, ago_ns);
    }
    if measures_waits(are_typed) {
        arrive(
            prev,
            Arrival {
                clock_ns: arrival_ns,
                queued_ns: None,
                run_delay_ns: prev.run_delay_ns(),
                // It counted this switch before the tracepoint.
                involuntary_switches: prev.involuntary_switches().wrapping_sub(lost_cpu),
            },
        );
    }
    *arrived_ago_ns = 0;
}

/// What the scheduler says of a thread that gets a CPU.
#[derive(Clone, Copy)]
struct Arrival {
    clock_ns: u64,
    /// When the last part of its wait began; 0 where there was none, and nothing where the run delay has all of
    /// the wait.
    queued_ns: Option<u64>,
    run_delay_ns: u64,
    involuntary_switches: u64,
}

/// The wait of `next`, with the kernel's own run delay.
///
/// The scheduler adds the wait of `next` to its run delay (`sched_info_arrive`,
/// kernel/sched/stats.h) just after this tracepoint, from the same two numbers that are read here: no
/// second program at wake-up, no clock to read, and the sums are the kernel's own to the nanosecond.
/// A wait that was moved to another CPU was added in parts; what was added to the run delay since the
/// thread's last arrival is the other parts.
#[inline(always)]
fn waited(prev: Task, next: Task) {
    let clock_ns = next.run_queue_clock_ns();
    turns::switched(prev, next, clock_ns);
    throttle::left(prev, clock_ns);
    // The idle task is always runnable, and its waits are no stalls.
    if next.tid() == 0 {
        return;
    }
    arrive(
        next,
        Arrival {
            clock_ns,
            queued_ns: Some(next.last_queued_ns()),
            run_delay_ns: next.run_delay_ns(),
            involuntary_switches: next.involuntary_switches(),
        },
    );
}

/// The address of a thread as a number: the verifier lets nothing be calculated with that of a typed task.
#[inline(always)]
fn address_number(task: Task) -> u64 {
    emit::leave_waiting(task);
    emit::waiting().address()
}

/// Whose the stored counts are. Not by the thread's id: one that executes a program takes over that of the first
/// one, and may run with it before the event.
#[inline(always)]
fn seal_of(task: Task, number: u64, state: &RunqueueState) -> u64 {
    if config::tasks_share() == 0 {
        task.address()
    } else {
        wait_seal(number, state.run_delay_ns, state.involuntary_switches)
    }
}

/// The wait of a thread that gets the CPU, or got it without an event.
#[inline(always)]
fn arrive(next: Task, arrival: Arrival) {
    let Arrival { clock_ns, queued_ns, run_delay_ns: total_delay_ns, involuntary_switches } =
        arrival;
    let Some((state, replaced)) = task::claim_entry::<RunqueueState>(next) else { return };
    let moved_asleep = config::off_task_sched_delayed() != 0 && state.moved_asleep != 0;
    if moved_asleep {
        state.moved_asleep = 0;
    }
    let has_stored = (state.run_delay_ns | state.involuntary_switches) != 0;
    // Another thread had the entry since this one's last arrival, or used it at the same instant. If
    // both counts are 0, there is nothing that could be lost.
    let number = if config::tasks_share() == 0 { 0 } else { address_number(next) };
    let is_foreign = has_stored && state.seal != seal_of(next, number, state);
    let is_lost = config::tasks_share() != 0
        && (replaced || is_foreign)
        && (total_delay_ns | involuntary_switches) != 0;
    // The stored values belong to this thread only if its counters have not gone back since: an id
    // can be used again, at the same address. (The count of arrivals is unsuitable: the kernel counts
    // some arrivals without a context switch.)
    let known = has_stored
        && !is_foreign
        && total_delay_ns >= state.run_delay_ns
        && involuntary_switches >= state.involuntary_switches;
    let earlier_parts_ns = if known { total_delay_ns.wrapping_sub(state.run_delay_ns) } else { 0 };
    let preempted = known && involuntary_switches != state.involuntary_switches;
    let last_part_ns = match queued_ns {
        None | Some(0) => 0,
        Some(queued_ns) => clock_ns.wrapping_sub(queued_ns),
    };
    state.run_delay_ns = total_delay_ns.wrapping_add(last_part_ns);
    state.involuntary_switches = involuntary_switches;
    state.seal = seal_of(next, number, state);
    // Whether the wait began by preemption, and its earlier parts, are unknown then.
    if is_lost && !moved_asleep {
        emit::lose_of(LossKind::TaskSlot, next);
    }
    if queued_ns.unwrap_or_default() == 0 && earlier_parts_ns == 0 {
        return;
    }
    // The clocks of two CPUs may differ slightly, and the kernel then counts a wait of zero length.
    let duration_ns = match earlier_parts_ns.wrapping_add(last_part_ns) {
        duration_ns if duration_ns as i64 >= 0 => duration_ns,
        _ => 0,
    };
    if moved_asleep {
        emit::lose_of(LossKind::SleepBookedAsWait, next);
        if emit::is_target(next.tgid()) {
            emit::count_by(Counter::TargetSleepBookedNs, duration_ns);
        }
        return;
    }
    arrived(next, state, preempted, duration_ns, (queued_ns, clock_ns));
}

/// A sleeping thread is moved to another CPU's run queue.
///
/// A thread that goes to sleep before it used up its time slice stays on its run queue for a while
/// (delayed dequeue, `dequeue_entities` in kernel/sched/fair.c). If it is moved during that time,
/// the kernel treats it as queued to run (`sched_info_enqueue`) and never corrects this: the rest
/// of its sleep becomes run delay.
#[inline(always)]
fn moved(arguments: Arguments) {
    let task = arguments.task::<0>();
    if !task.leaves_later() {
        return;
    }
    if measures_sleeps(arguments.are_typed()) {
        sleep::moved_asleep(task);
    }
    if measures_waits(arguments.are_typed())
        && let Some(state) = task::claim::<RunqueueState>(task)
    {
        state.moved_asleep = 1;
    }
}

/// Counts and sends a wait that ended at `now_ns`. Its last part began at `queued_ns`; nothing if its parts are not
/// known.
#[inline(always)]
fn arrived(
    next: Task,
    state: &mut RunqueueState,
    preempted: bool,
    duration_ns: u64,
    (queued_ns, now_ns): (Option<u64>, u64),
) {
    let is_target = emit::is_target(next.tgid());
    let series = if preempted { Series::RunqueuePreempt } else { Series::RunqueueWakeup };
    histogram::observe(next, Some(&mut state.cgroup), is_target, series, duration_ns);
    if !is_target {
        return;
    }
    // Most waits have one part.
    let since_ns = queued_ns.unwrap_or_else(|| now_ns.wrapping_sub(duration_ns));
    let throttled_ns = throttle::arrived(next, since_ns, now_ns);
    let is_recorded = emit::past_floor(RecordKind::Runqueue, duration_ns);
    if !is_recorded && duration_ns < RAN_ALWAYS_NS {
        return;
    }
    match queued_ns {
        // Nor is it known then who had the CPU.
        None => {}
        Some(queued_ns) if throttled_ns == 0 => {
            turns::sum_up_wait(queued_ns);
        }
        Some(queued_ns) => {
            turns::sum_up_throttled_wait(queued_ns);
        }
    }
    if is_recorded {
        let began = if preempted { RUNQUEUE_PREEMPTED } else { 0 };
        let unseen = if queued_ns.is_none() { RUNQUEUE_UNSEEN } else { 0 };
        let flags = u64::from(began | unseen);
        emit::leave_waiting(next);
        match queued_ns {
            Some(queued_ns) if throttled_ns != 0 => {
                turns::send_throttled_wait(flags, duration_ns, queued_ns);
            }
            _ => {
                turns::send_wait(flags, duration_ns, queued_ns.unwrap_or_default(), throttled_ns);
            }
        }
    }
}

/// A wake-up of a thread that already waits (or runs) does not restart its wait: what such a
/// wake-up leaves behind is overwritten when the thread is switched out.
#[inline(always)]
fn woken(arguments: Arguments) {
    let woken = arguments.task::<0>();
    let Some(state) = task::claim::<RunqueueState>(woken) else { return };
    if state.runnable_ns == 0 {
        state.runnable_ns = now_ns();
        state.preempted = 0;
    }
}

/// A context switch by the same rule, with begin times that observer keeps.
#[inline(always)]
fn switched_timed(arguments: Arguments) {
    let preempted = was_preempted(arguments);
    let (prev, next) = switching(arguments);
    let prev_state = state_of(prev, arguments);
    let now = now_ns();
    let has_event = turns::switched(prev, next, now);
    throttle::left(prev, now);

    if prev.tid() != 0
        && let Some(state) = task::claim::<RunqueueState>(prev)
    {
        // It waited until a switch that had no event.
        if !has_event && state.runnable_ns != 0 {
            emit::lose_of(LossKind::SwitchMissed, prev);
        }
        state.runnable_ns = if preempted || prev_state == 0 { now } else { 0 };
        state.preempted = 1;
    }

    if next.tid() == 0 {
        return;
    }
    // Without a slot of its own, the begin of this wait is unknown (before attach, or counted as
    // lost when the slot was taken over).
    let Some(state) = task::find::<RunqueueState>(next) else { return };
    let since = state.runnable_ns;
    if since == 0 {
        return;
    }
    state.runnable_ns = 0;
    let was_preempted = state.preempted != 0;
    arrived(next, state, was_preempted, now.wrapping_sub(since), (Some(since), now));
}
