//! Sleeps of the target's threads: from giving up the CPU to the wake-up, and what in.

use observer_ebpf::wire::{
    Address, LossKind, NO_SYSCALL, RecordKind, SLEEP_REMOTE, SLEEP_STOPPED, SLEEP_UNINTERRUPTIBLE,
    Series, SleepRecord, SleepState, TASK_STOPPED_OR_TRACED, TASK_UNINTERRUPTIBLE,
};

use crate::{
    config, emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// A context switch. The rule of what is a sleep is that of the kernel's count of voluntary context
/// switches (`__schedule`, kernel/sched/core.c).
#[inline(always)]
pub(super) fn switched(prev: Task, next: Task, preempted: bool, prev_state: u32) {
    if !preempted && prev_state != 0 && emit::is_target(prev.tgid()) {
        begin(prev, prev_state);
    }
    if emit::is_target(next.tgid()) {
        end(next);
    }
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
    state.moved_asleep = 0;
}

/// The thread runs again. It was woken before that, by as much as it waited for a CPU since then, which
/// the kernel counts.
#[inline(always)]
fn end(next: Task) {
    let Some(state) = task::find::<SleepState>(next) else { return };
    let since = state.begin_ns;
    if since == 0 {
        return;
    }
    state.begin_ns = 0;
    let now = now_ns();
    let away_ns = now.wrapping_sub(since);
    let waited_ns = match next.waited_ns().wrapping_sub(state.run_delay_ns) {
        // Not known, and short.
        _ if state.moved_asleep != 0 => 0,
        // The kernel has two clocks, which differ a little.
        waited_ns if waited_ns > away_ns => away_ns,
        waited_ns => waited_ns,
    };
    let slept_ns = away_ns.wrapping_sub(waited_ns);
    let (series, flags) = if state.state & TASK_STOPPED_OR_TRACED != 0 {
        (Series::SleepStopped, SLEEP_STOPPED)
    } else if state.state & TASK_UNINTERRUPTIBLE != 0 {
        (Series::SleepUninterruptible, SLEEP_UNINTERRUPTIBLE)
    } else {
        (Series::SleepInterruptible, 0)
    };
    histogram::observe(next, None, true, series, slept_ns);
    if state.serves != 0 && emit::past_floor(RecordKind::Sleep, slept_ns) {
        send(next.address(), flags, now.wrapping_sub(waited_ns), slept_ns);
    }
}

/// A function of its own, because the kernel limits the stack of a program together with the functions
/// that it calls.
#[inline(never)]
fn send(task: u64, flags: u16, end_ns: u64, slept_ns: u64) {
    let next = Task::at(task);
    let (mut syscall, mut arguments) = (NO_SYSCALL, [0; 3]);
    let mut remote = None;
    if let Some(registers) = next.saved_registers() {
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
    let header = emit::header(RecordKind::Sleep, flags | has_remote, ids, end_ns, slept_ns);
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
        },
    );
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

/// The current thread reads or answers a request.
#[inline(always)]
pub(super) fn serves(current: Task) {
    if config::switch_sleep() != 0
        && let Some(state) = task::claim::<SleepState>(current)
    {
        state.serves = 1;
    }
}
