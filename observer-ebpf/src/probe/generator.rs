//! The log of what the load generator's processes do. Programs of the `task` probe write to it,
//! and one of its own, which is attached when observer starts a generator.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use observer_ebpf::wire::{
    COMM_LEN, GENERATOR_CONNECT, GENERATOR_CONNECTS, GENERATOR_EVENTS, GENERATOR_EXEC,
    GENERATOR_EXIT, GENERATOR_PROCESSES,
};

use super::task::is_of_observer;
use crate::{
    atomic, emit,
    kernel::{Arguments, Task, now_ns},
    maps::{CONFIG, GENERATOR, GENERATOR_CONNECTIONS},
};

/// Whether the task is observer's, and observer runs a generator.
#[inline(always)]
fn is_generator(task: Task) -> bool {
    emit::settings().is_some_and(|settings| {
        settings.generator_watched != 0 && is_of_observer(task, settings.observer_tgid)
    })
}

#[inline(always)]
fn log(tgid: u32, what: u16, port: u16, comm: [u8; COMM_LEN]) {
    let Some(config) = CONFIG.get_ptr_mut(0) else { return };
    // SAFETY: a map value, changed by an atomic instruction only.
    let place = atomic::fetch_add(unsafe { &raw mut (*config).generator_events }, 1);
    if place >= u64::from(GENERATOR_EVENTS) {
        return;
    }
    let Some(event) = GENERATOR.get_ptr_mut(place as u32) else { return };
    // SAFETY: a map value; nobody else got this place.
    let event = unsafe { &mut *event };
    event.tgid = tgid;
    event.what = what;
    event.port = port;
    event.comm = comm;
    // Last, for it says that the rest is there.
    atomic::store(&raw mut event.at_ns, now_ns());
}

/// Connections of that process that are in the log: the entry, if it is the process's.
#[inline(always)]
fn connections(tgid: u32) -> Option<*mut u64> {
    GENERATOR_CONNECTIONS.get_ptr_mut(tgid & (GENERATOR_PROCESSES - 1))
}

/// The process executes another program.
#[inline(always)]
pub(super) fn executed(task: Task) {
    if !is_generator(task) {
        return;
    }
    let tgid = task.tgid();
    if let Some(number) = connections(tgid) {
        atomic::store(number, u64::from(tgid) << 32);
    }
    log(tgid, GENERATOR_EXEC, 0, task.comm());
}

/// The last thread of the process exits.
#[inline(always)]
pub(super) fn exiting(task: Task) {
    if is_generator(task) {
        log(task.tgid(), GENERATOR_EXIT, 0, [0; COMM_LEN]);
    }
}

/// `inet_sock_set_state(sk, oldstate, newstate)`: a socket changes its state, and the current task
/// connects it when that is from closed to waiting for an answer (include/net/tcp_states.h).
#[raw_tracepoint]
fn generator_connects(ctx: RawTracePointContext) {
    const TCP_SYN_SENT: u32 = 2;
    let arguments = Arguments::raw(&ctx);
    if arguments.word::<2>() as u32 != TCP_SYN_SENT {
        return;
    }
    let current = Task::current();
    if !is_generator(current) {
        return;
    }
    let tgid = current.tgid();
    let Some(number) = connections(tgid) else { return };
    if atomic::load(number) >> 32 == u64::from(tgid) {
        if atomic::fetch_add(number, 1) & 0xffff_ffff >= GENERATOR_CONNECTS {
            return;
        }
    } else {
        atomic::store(number, u64::from(tgid) << 32 | 1);
    }
    log(tgid, GENERATOR_CONNECT, arguments.port::<0>(), [0; COMM_LEN]);
}
