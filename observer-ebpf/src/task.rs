//! What each probe knows about a thread between two events: one table for each probe, indexed by
//! thread id.

use aya_ebpf::maps::Array;
use observer_ebpf::wire::{
    FaultState, LossKind, MmSyscallState, Owner, ReclaimState, RunqueueState, Slot,
};

use crate::{
    config, emit,
    kernel::Task,
    maps::{FAULTS, MM_SYSCALLS, RECLAIMS, RUNQUEUE},
};

/// What one probe knows about a thread.
pub(crate) trait State: Copy + Default + 'static {
    /// The probe's table.
    fn table() -> &'static Array<Slot<Self>>;
    /// Whether a stall has begun, which is lost if another thread takes over the entry.
    fn has_begun(&self) -> bool;
}

macro_rules! states {
    ($($state:ident in $table:ident: |$this:ident| $has_begun:expr;)*) => {$(
        impl State for $state {
            #[inline(always)]
            fn table() -> &'static Array<Slot<Self>> {
                &$table
            }

            #[inline(always)]
            fn has_begun(&self) -> bool {
                let $this = self;
                $has_begun
            }
        }
    )*};
}

states! {
    RunqueueState in RUNQUEUE: |state| state.runnable_ns != 0;
    FaultState in FAULTS: |state| state.begin_ns != 0;
    MmSyscallState in MM_SYSCALLS: |state| state.begin_ns != 0;
    ReclaimState in RECLAIMS: |state| state.reclaim_ns | state.compaction_ns != 0;
}

/// The thread's state, and whether it replaced the state of another thread: then it is new, although
/// the thread may have had one before.
///
/// If the former owner was in a stall, that stall is lost, and counted.
#[inline(always)]
pub(crate) fn claim_entry<S: State>(task: Task) -> Option<(&'static mut S, bool)> {
    let tid = task.tid();
    let slot = slot::<S>(tid)?;
    if slot.owner.tid == tid {
        return Some((&mut slot.state, false));
    }
    if slot.state.has_begun() {
        emit::lose(LossKind::TaskSlot, emit::is_target(slot.owner.tgid));
    }
    let replaced = slot.owner.tid != 0;
    slot.owner = Owner { tid, tgid: task.tgid() };
    slot.state = S::default();
    Some((&mut slot.state, replaced))
}

/// The thread's state; it is new if there was none.
#[inline(always)]
pub(crate) fn claim<S: State>(task: Task) -> Option<&'static mut S> {
    claim_entry(task).map(|(state, _)| state)
}

/// The thread's state, if there is one.
#[inline(always)]
pub(crate) fn find<S: State>(task: Task) -> Option<&'static mut S> {
    let tid = task.tid();
    let slot = slot::<S>(tid)?;
    (slot.owner.tid == tid).then_some(&mut slot.state)
}

/// Frees the thread's entry for another thread.
#[inline(always)]
pub(crate) fn forget<S: State>(task: Task) {
    let tid = task.tid();
    if let Some(slot) = slot::<S>(tid)
        && slot.owner.tid == tid
    {
        slot.owner = Owner::default();
        slot.state = S::default();
    }
}

#[inline(always)]
fn slot<S: State>(tid: u32) -> Option<&'static mut Slot<S>> {
    let slot = S::table().get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: an array value; only this thread's own events touch it, apart from a wake-up or a
    // move on another CPU, which is ordered before the switch by the run-queue lock.
    Some(unsafe { &mut *slot })
}
