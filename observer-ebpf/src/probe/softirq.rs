//! Soft interrupts. The kernel handles them on the way out of a hard interrupt or of a section in
//! which they were off, in the time of whichever thread is there; and in ksoftirqd, a thread of its
//! own, when there are too many. The state belongs to the CPU: it is not the thread that began.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{RecordKind, Series, SoftirqRecord, SoftirqState};

use crate::{
    emit, histogram,
    kernel::{Arguments, Task, now_ns},
};

/// What each CPU is handling (loader).
#[map]
static SOFTIRQS: Array<SoftirqState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

tracepoint_programs! {
    /// `softirq_entry(vec_nr)`
    softirq_entry, softirq_entry_raw => begun;
    /// `softirq_exit(vec_nr)`
    softirq_exit, softirq_exit_raw => done;
}

#[inline(always)]
fn begun(_arguments: Arguments) {
    if let Some(state) = SOFTIRQS.get_ptr_mut(emit::cpu()) {
        // SAFETY: a map value that only this CPU writes.
        unsafe { (*state).begin_ns = now_ns() };
    }
}

#[inline(always)]
fn done(arguments: Arguments) {
    let Some(state) = SOFTIRQS.get_ptr_mut(emit::cpu()) else { return };
    // SAFETY: as above.
    let since = unsafe { core::mem::replace(&mut (*state).begin_ns, 0) };
    // Zero for one that began before the probe was attached.
    if since == 0 {
        return;
    }
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let vector = arguments.word::<0>() as u32;
    let current = Task::current();
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    // The thread may be in the middle of a program that uses the thread's state.
    histogram::observe(current, None, is_target, series(vector), duration_ns);
    if is_target && emit::past_floor(RecordKind::Softirq, duration_ns) {
        let ids = (tgid, current.tid());
        let header = emit::header(RecordKind::Softirq, 0, ids, now, duration_ns);
        emit::emit(RecordKind::Softirq, SoftirqRecord { header, vector, reserved: 0 });
    }
}

/// The series of a vector: the second column of `SOFTIRQ_VECTORS`.
#[inline(always)]
const fn series(vector: u32) -> Series {
    match vector {
        1 | 8 => Series::SoftirqTimer,
        2 => Series::SoftirqNetTx,
        3 => Series::SoftirqNetRx,
        4 | 5 => Series::SoftirqBlock,
        7 => Series::SoftirqSched,
        9 => Series::SoftirqRcu,
        _ => Series::SoftirqOther,
    }
}
