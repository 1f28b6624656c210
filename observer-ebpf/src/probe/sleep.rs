//! Sleeps of the target's threads: from giving up the CPU to the wake-up, and what in.

use observer_ebpf::wire::{
    Address, JOBCTL_TRAP_FREEZE, LossKind, NO_SYSCALL, RecordKind, SLEEP_FROZEN, SLEEP_IO,
    SLEEP_LOCK, SLEEP_REMOTE, SLEEP_STOPPED, SLEEP_UNINTERRUPTIBLE, SLEEPS_FOR_IO, Series,
    SleepRecord, SleepState, TASK_DEAD, TASK_FROZEN, TASK_INTERRUPTIBLE, TASK_STOPPED_OR_TRACED,
    TASK_UNINTERRUPTIBLE, is_lock,
};

use super::turns::above_zero;
use crate::{
    config, emit, histogram,
    kernel::{Arguments, Task, now_ns},
    task,
};

tracepoint_programs! {
    /// `sched_waking(p)`, in the context of the one who wakes it.
    sched_waking, sched_waking_raw => waking;
}

/// A context switch. The rule of what is a sleep is that of the kernel's count of voluntary context
/// switches (`__schedule`, kernel/sched/core.c).
#[inline(always)]
pub(super) fn switched(prev: Task, next: Task, preempted: bool, prev_state: u32) {
    // A thread that executes a program may have taken over the id of one that ends.
    let sleeps = prev_state != 0 && prev_state & TASK_DEAD == 0;
    if !preempted && sleeps && emit::is_target(prev.tgid()) {
        begin(prev, prev_state);
    }
    if emit::is_target(next.tgid()) {
        end(next, now_ns, next.waited_ns(), true);
    }
}

/// A thread that leaves its CPU got it without an event, so long ago.
#[inline(always)]
pub(super) fn ended_unseen(prev: Task, ago_ns: u64) {
    end(prev, || now_ns().wrapping_sub(ago_ns), prev.run_delay_ns(), false);
}

#[inline(always)]
fn begin(prev: Task, prev_state: u32) {
    let Some(state) = task::claim::<SleepState>(prev) else { return };
    if state.begin_ns != 0 && state.serves != 0 {
        emit::lose_of(LossKind::SwitchMissed, prev);
    }
    state.begin_ns = now_ns();
    state.run_delay_ns = prev.run_delay_ns();
    state.state = prev_state;
    // The v2 freezer has no state of its own: a thread that it holds sleeps like one that a signal could
    // wake, and a pending freeze is like a signal, so that nothing else can be such a sleep.
    if prev_state & TASK_INTERRUPTIBLE != 0 && prev.job_control() & JOBCTL_TRAP_FREEZE != 0 {
        state.state |= TASK_FROZEN;
    }
    if prev_state & TASK_UNINTERRUPTIBLE != 0 && prev.in_iowait() {
        state.state |= SLEEPS_FOR_IO;
    }
    state.moved_asleep = 0;
    state.waker_tid = 0;
    state.waker_tgid = 0;
}

/// A thread is about to be woken. Where a thread of the target does that by a system call of its own, it may
/// hand over a request.
#[inline(always)]
fn waking(arguments: Arguments) {
    let woken = arguments.task::<0>();
    if !emit::is_target(woken.tgid()) {
        return;
    }
    let Some(state) = task::find::<SleepState>(woken) else { return };
    if state.serves == 0 {
        return;
    }
    let waker = Task::current();
    let is_handed = emit::is_target(waker.tgid())
        && waker.saved_registers().is_some_and(|registers| wakes_others(registers.number()));
    if !is_handed {
        return;
    }
    state.waker_tid = waker.tid();
    state.waker_tgid = waker.tgid();
    serves(waker);
}

/// The thread runs again. It was woken before that, by as much as it waited for a CPU since then, which
/// the kernel counts. If it is not in the call any more in which it slept, that call is not known.
#[inline(always)]
fn end(next: Task, now_ns: impl Fn() -> u64, run_delay_ns: u64, is_in_call: bool) {
    let Some(state) = task::find::<SleepState>(next) else { return };
    let since = state.begin_ns;
    if since == 0 {
        return;
    }
    state.begin_ns = 0;
    let now = now_ns();
    // What the scheduler noted may be earlier by the difference of two clocks.
    let away_ns = above_zero(now.wrapping_sub(since));
    let waited_ns = match run_delay_ns.wrapping_sub(state.run_delay_ns) {
        // Not known, and short.
        _ if state.moved_asleep != 0 => 0,
        // The kernel has two clocks, which differ a little.
        waited_ns if waited_ns > away_ns => away_ns,
        waited_ns => waited_ns,
    };
    let slept_ns = away_ns.wrapping_sub(waited_ns);
    let (series, flags) = if state.state & TASK_FROZEN != 0 {
        (Series::SleepStopped, SLEEP_FROZEN)
    } else if state.state & TASK_STOPPED_OR_TRACED != 0 {
        (Series::SleepStopped, SLEEP_STOPPED)
    } else if state.state & SLEEPS_FOR_IO != 0 {
        (Series::SleepIo, SLEEP_UNINTERRUPTIBLE | SLEEP_IO)
    } else if state.state & TASK_UNINTERRUPTIBLE != 0 {
        (Series::SleepUninterruptible, SLEEP_UNINTERRUPTIBLE)
    } else if is_in_call && waits_for_lock(next) {
        (Series::SleepLock, SLEEP_LOCK)
    } else {
        (Series::SleepInterruptible, 0)
    };
    histogram::observe(next, None, true, series, slept_ns);
    if state.serves != 0 && emit::past_floor(RecordKind::Sleep, slept_ns) {
        let waker = u64::from(state.waker_tgid) << 32 | u64::from(state.waker_tid);
        let flags = u32::from(flags) | if is_in_call { 0 } else { CALL_UNKNOWN };
        send(next.address(), flags, now.wrapping_sub(waited_ns), slept_ns, waker);
    }
}

/// Whether the thread is in a call that waits for a lock.
#[inline(always)]
fn waits_for_lock(task: Task) -> bool {
    const FUTEX: u64 = 202;
    task.saved_registers().is_some_and(|registers| {
        registers.number() == FUTEX && {
            let [_, operation, value] = registers.arguments();
            is_lock(operation, value)
        }
    })
}

/// With the flags of a record: the thread is not in the call any more in which it slept.
const CALL_UNKNOWN: u32 = 1 << 16;

/// A function of its own, because the kernel limits the stack of a program together with the functions
/// that it calls.
#[inline(never)]
fn send(task: u64, flags: u32, end_ns: u64, slept_ns: u64, waker: u64) {
    let next = Task::at(task);
    let (mut syscall, mut arguments) = (NO_SYSCALL, [0; 3]);
    let mut remote = None;
    if flags & CALL_UNKNOWN == 0
        && let Some(registers) = next.saved_registers()
    {
        let number = registers.number();
        // -1 in an exception, and more than 32 bits are no system call.
        if number < 1 << 31 {
            syscall = number as u32;
            arguments = registers.arguments();
            if uses_connection(number) {
                remote = next.connection(arguments[0] as u32);
            }
        }
    }
    let has_remote = if remote.is_some() { SLEEP_REMOTE } else { 0 };
    let (remote_port, remote_address) = match remote {
        Some(sock) => (u32::from(sock.remote_port()), sock.remote_address()),
        None => (0, Address([0; 16])),
    };
    let ids = (next.tgid(), next.tid());
    let header = emit::header(RecordKind::Sleep, flags as u16 | has_remote, ids, end_ns, slept_ns);
    emit::emit(
        RecordKind::Sleep,
        SleepRecord {
            header,
            syscall,
            remote_port,
            argument_1: arguments[0],
            argument_2: arguments[1],
            argument_3: arguments[2],
            remote_address,
            waker_tid: waker as u32,
            waker_tgid: (waker >> 32) as u32,
        },
    );
}

/// Calls by which a thread hands work to another one: write, writev, sendto, sendmsg, futex, sendmmsg,
/// futex_wake, futex_requeue (numbers of x86-64). In an interrupt, the number is that of none.
#[inline(always)]
const fn wakes_others(number: u64) -> bool {
    matches!(number, 1 | 20 | 44 | 46 | 202 | 307 | 454 | 456)
}

/// Calls that wait at the descriptor in their first argument: read, write, readv, writev, connect,
/// sendto, recvfrom, sendmsg, recvmsg, recvmmsg, sendmmsg (numbers of x86-64).
#[inline(always)]
const fn uses_connection(number: u64) -> bool {
    const LOW: u64 =
        1 | 1 << 1 | 1 << 19 | 1 << 20 | 1 << 42 | 1 << 44 | 1 << 45 | 1 << 46 | 1 << 47;
    number < 64 && LOW >> number & 1 != 0 || number == 299 || number == 307
}

/// A thread is moved to another run queue while it sleeps.
#[inline(always)]
pub(super) fn moved_asleep(task: Task) {
    if emit::is_target(task.tgid())
        && let Some(state) = task::find::<SleepState>(task)
    {
        state.moved_asleep = 1;
    }
}

/// The current thread reads or answers a request, or hands one over.
#[inline(always)]
pub(super) fn serves(current: Task) {
    if (config::switch_sleep() | config::switch_sleep_raw()) != 0
        && let Some(state) = task::claim::<SleepState>(current)
    {
        state.serves = 1;
    }
}
