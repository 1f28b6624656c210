//! The per-thread state tables.

use observer_ebpf::wire::{LossKind, MOVED_ASLEEP, MemoryState, TaskState, WAITS};

use crate::{
    config, emit,
    maps::{MEMORY, TASKS},
};

/// The thread's slot. If another thread had it, this thread takes it over.
///
/// Taking over a slot while its owner was in a stall loses that stall; the loss is counted.
#[inline(always)]
pub(crate) fn claim(tid: u32) -> Option<&'static mut TaskState> {
    let state = TASKS.get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: an array value; only this thread's own events touch it, apart from a wake-up or a
    // move on another CPU, which is ordered before the switch by the run-queue lock.
    let state = unsafe { &mut *state };
    if state.tid != tid {
        let waits = state.involuntary_switches & (WAITS | MOVED_ASLEEP);
        if state.fault_ns | state.syscall_ns | waits != 0 {
            // The process of the former owner is not kept: it may have been the target.
            emit::lose(LossKind::TaskSlot, config::has_target() != 0);
        }
        state.tid = tid;
        state.css_set = 0;
        state.run_delay_ns = 0;
        state.involuntary_switches = 0;
        state.fault_ns = 0;
        state.syscall_ns = 0;
    }
    Some(state)
}

/// The thread's slot, if it is still its own.
#[inline(always)]
pub(crate) fn find(tid: u32) -> Option<&'static mut TaskState> {
    let state = TASKS.get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: as in `claim`.
    let state = unsafe { &mut *state };
    (state.tid == tid).then_some(state)
}

/// Frees the thread's slot for another thread.
#[inline(always)]
pub(crate) fn forget(tid: u32) {
    if let Some(state) = find(tid) {
        state.fault_ns = 0;
        state.syscall_ns = 0;
        state.involuntary_switches = 0;
        state.tid = 0;
    }
}

/// [`claim`] for reclaim and compaction.
#[inline(always)]
pub(crate) fn claim_memory(tid: u32) -> Option<&'static mut MemoryState> {
    let state = MEMORY.get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: an array value; only this thread's own events touch it.
    let state = unsafe { &mut *state };
    if state.tid != tid {
        if state.reclaim_ns | state.compaction_ns != 0 {
            // The process of the former owner is not kept: it may have been the target.
            emit::lose(LossKind::TaskSlot, config::has_target() != 0);
        }
        state.tid = tid;
        state.reclaim_ns = 0;
        state.compaction_ns = 0;
    }
    Some(state)
}

/// [`find`] for reclaim and compaction.
#[inline(always)]
pub(crate) fn find_memory(tid: u32) -> Option<&'static mut MemoryState> {
    let state = MEMORY.get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: as in `claim_memory`.
    let state = unsafe { &mut *state };
    (state.tid == tid).then_some(state)
}
