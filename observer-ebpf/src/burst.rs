//! Short stalls of the target, summed up thread by thread.

use observer_ebpf::wire::{Burst, Owner};

use crate::{emit, task::State};

/// Adds a stall of the current thread that is below the floor of its kind to the thread's burst.
///
/// A few loads and stores, and four comparisons: a short stall costs hardly more than one that is only
/// counted.
#[inline(always)]
pub(crate) fn add<S: State>(state: &mut S, (tgid, tid): (u32, u32), begin_ns: u64, end_ns: u64) {
    let Some(burst) = state.burst() else { return };
    let thread = Owner { tid, tgid };
    if burst.is_over_at(begin_ns) {
        close::<S>(burst, thread);
    }
    burst.add(begin_ns, end_ns);
    if burst.has_lasted() {
        close::<S>(burst, thread);
    }
}

/// Sends the burst of a thread, if it has one.
#[inline(always)]
pub(crate) fn send<S: State>(state: &mut S, thread: Owner) {
    if let Some(burst) = state.burst()
        && burst.count != 0
    {
        close::<S>(burst, thread);
    }
}

#[inline(always)]
fn close<S: State>(burst: &mut Burst, thread: Owner) {
    submit::<S>(burst, thread.tid, thread.tgid);
    burst.count = 0;
}

/// A function of its own: the kernel limits the stack of a program together with the functions that it
/// calls, and most short stalls do not come here.
///
/// A burst below the floor of its kind is dropped. Its time is in the histogram and in no record, which
/// the summary shows (`unrecorded_ns`).
#[inline(never)]
fn submit<S: State>(burst: &Burst, tid: u32, tgid: u32) {
    if let Some(kind) = S::BURST
        && emit::past_floor(kind, burst.sum_ns)
    {
        emit::emit(kind, burst.record(kind as u16, Owner { tid, tgid }, emit::cpu()));
    }
}
