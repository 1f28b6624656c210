//! Soft interrupts. The kernel handles them on the way out of a hard interrupt or of a section in
//! which they were off, in the time of whichever thread is there; and in ksoftirqd, a thread of its
//! own, when there are too many. The state belongs to the CPU: it is not the thread that began.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{LossKind, RecordKind, Series, SoftirqRecord, SoftirqState};

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
    let Some(state) = SOFTIRQS.get_ptr_mut(emit::cpu()) else { return };
    // SAFETY: a map value that only this program and the next one write on this CPU.
    let state = unsafe { &mut *state };
    let current = Task::current();
    if state.begin_ns != 0 {
        emit::lose(LossKind::BeginWithoutEnd, emit::is_target(state.tgid));
    }
    state.tid = current.tid();
    state.tgid = current.tgid();
    state.begin_ns = now_ns();
}

#[inline(always)]
fn done(arguments: Arguments) {
    let Some(state) = SOFTIRQS.get_ptr_mut(emit::cpu()) else { return };
    // SAFETY: as above.
    let state = unsafe { &mut *state };
    let current = Task::current();
    let since = state.begin_ns;
    // Zero for one that began before the probe was attached. One that another one preempted was
    // counted as a loss when that one began.
    if since == 0 || state.tid != current.tid() {
        return;
    }
    state.begin_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let vector = arguments.word::<0>() as u32;
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
