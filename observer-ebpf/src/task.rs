//! What each probe knows about a thread between two events: in the thread's task-local storage, or in
//! a table indexed by thread id. The loader chooses for each probe, since storage costs more than a
//! table, and in a table two threads can share an entry.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_LOCAL_STORAGE_GET_F_CREATE, helpers::bpf_task_storage_get, maps::Array,
};
use observer_ebpf::wire::{
    Burst, FaultState, IrqState, KernelLockState, LossKind, MmSyscallState, Owner, ReclaimState,
    RecordKind, RunqueueState, SleepState, Slot, StackState, Stored, ThreadCgroup,
};

use crate::{
    atomic, burst, config, emit,
    kernel::{Task, now_ns},
    maps::{self, TaskStorage},
};

/// What one probe knows about a thread.
pub(crate) trait State: Copy + Default + 'static {
    /// The kind of record whose epoch it follows.
    const KIND: RecordKind;
    /// The probe's table.
    fn table() -> &'static Array<Slot<Self>>;
    /// The probe's map for task-local storage.
    fn storage() -> &'static TaskStorage<Stored<Self>>;
    /// Whether it is in task-local storage.
    fn is_stored() -> bool;
    /// Whether a stall has begun, which is lost if another thread takes over the entry.
    fn has_begun(&self) -> bool;
    /// The kind of record that its bursts are sent as, where short stalls are summed up.
    const BURST: Option<RecordKind>;
    /// The thread's burst.
    fn burst(&mut self) -> Option<&mut Burst>;
}

macro_rules! states {
    ($($state:ident, $kind:ident $(and $burst:ident)? in $table:ident, $storage:ident
        if $stored:ident: |$this:ident| $has_begun:expr;)*) => {$(
        impl State for $state {
            const KIND: RecordKind = RecordKind::$kind;

            #[inline(always)]
            fn table() -> &'static Array<Slot<Self>> {
                &maps::$table
            }

            #[inline(always)]
            fn storage() -> &'static TaskStorage<Stored<Self>> {
                &maps::$storage
            }

            #[inline(always)]
            fn is_stored() -> bool {
                config::$stored() != 0
            }

            #[inline(always)]
            fn has_begun(&self) -> bool {
                let $this = self;
                $has_begun
            }

            const BURST: Option<RecordKind> = states!(@kind $($burst)?);

            #[inline(always)]
            fn burst(&mut self) -> Option<&mut Burst> {
                states!(@burst self $($burst)?)
            }
        }
    )*};
    (@kind) => { None };
    (@kind $burst:ident) => { Some(RecordKind::$burst) };
    (@burst $this:ident) => { None };
    (@burst $this:ident $burst:ident) => { Some(&mut $this.burst) };
}

states! {
    RunqueueState, Runqueue in RUNQUEUE, RUNQUEUE_STORAGE if runqueue_stored:
        |state| state.runnable_ns != 0;
    FaultState, Fault and FaultBurst in FAULTS, FAULTS_STORAGE if faults_stored: |state| state.begin_ns != 0;
    MmSyscallState, MmSyscall and MmSyscallBurst in MM_SYSCALLS, MM_SYSCALLS_STORAGE if mm_syscalls_stored:
        |state| state.begin_ns != 0;
    ReclaimState, Reclaim in RECLAIMS, RECLAIMS_STORAGE if reclaims_stored:
        |state| state.reclaim_ns | state.compaction_ns != 0;
    KernelLockState, KernelLock in KERNEL_LOCKS, KERNEL_LOCKS_STORAGE if kernel_locks_stored:
        |state| state.begin_ns != 0;
    SleepState, Sleep in SLEEPS, SLEEPS_STORAGE if sleeps_stored: |state| state.begin_ns != 0;
    StackState, Stack in STACK_STATES, STACK_STATES_STORAGE if stack_states_stored:
        |state| state.begin_ns != 0;
    IrqState, Irq and IrqBurst in IRQ_BURSTS, IRQ_BURSTS_STORAGE if irq_bursts_stored: |_state| false;
}

/// The thread's state, and whether it replaced the state of another thread: then it is new, although
/// the thread may have had one before.
///
/// If the former owner was in a stall, that stall is lost, and counted. Its burst is sent.
#[inline(always)]
pub(crate) fn claim_entry<S: State>(task: Task) -> Option<(&'static mut S, bool)> {
    if is_stored::<S>(task) {
        let Some(stored) = stored::<S>(task, BPF_LOCAL_STORAGE_GET_F_CREATE.into()) else {
            emit::lose_of(LossKind::ThreadStorage, task);
            return None;
        };
        let epoch = epoch::<S>();
        if stored.epoch != epoch {
            *stored = Stored { epoch, state: S::default() };
        }
        return Some((&mut stored.state, false));
    }
    let tid = task.tid();
    let slot = slot::<S>(tid)?;
    if slot.owner.tid == tid {
        return Some((&mut slot.state, false));
    }
    if slot.state.has_begun() {
        emit::lose(LossKind::TaskSlot, emit::is_target(slot.owner.tgid));
    }
    burst::send(&mut slot.state, slot.owner);
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

/// Whether another live thread may have the entry of this one for its memory-management calls.
#[inline(always)]
pub(crate) fn shares_calls(task: Task) -> bool {
    config::tasks_share() != 0 && !is_stored::<MmSyscallState>(task)
}

/// Begins a memory-management call of the thread, now. Returns its state, and whether an earlier call
/// of its own has not ended; nothing if another thread took over the entry meanwhile.
///
/// Where threads share entries, two can take over one at the same instant, or one takes it over while
/// its owner begins. So each writes first whose the entry is, and then exchanges the begin: whoever
/// comes second finds the begin of the other, and counts what is lost.
#[inline(always)]
pub(crate) fn begin_call(task: Task) -> Option<(&'static mut MmSyscallState, bool)> {
    if !shares_calls(task) {
        let state = claim::<MmSyscallState>(task)?;
        let is_open = state.begin_ns != 0;
        state.begin_ns = now_ns();
        return Some((state, is_open));
    }
    let tid = task.tid();
    let slot = slot::<MmSyscallState>(tid)?;
    let former = slot.owner;
    if former.tid != tid {
        burst::send(&mut slot.state, former);
        slot.owner = Owner { tid, tgid: task.tgid() };
        slot.state.cgroup = ThreadCgroup::default();
    }
    let now = now_ns();
    let found = atomic::exchange(&raw mut slot.state.begin_ns, now);
    // SAFETY: a map value, read once more because another CPU may have written it.
    let is_own = unsafe { ptr::read_volatile(&raw const slot.owner.tid) } == tid;
    if found == 0 {
        if is_own {
            return Some((&mut slot.state, false));
        }
        // Another thread took the entry before this begin. Whoever removes the begin counts the loss: this thread
        // now, or the other one, which found it at a begin of its own.
        if atomic::compare_exchange(&raw mut slot.state.begin_ns, now, 0) {
            emit::lose(LossKind::TaskSlot, emit::is_target(task.tgid()));
        }
        return None;
    }
    if is_own && former.tid == tid {
        return Some((&mut slot.state, true));
    }
    let loser = if is_own { former.tgid } else { task.tgid() };
    emit::lose(LossKind::TaskSlot, emit::is_target(loser));
    is_own.then_some((&mut slot.state, false))
}

/// Ends a memory-management call of the thread. Returns its state and when the call began; nothing if it began
/// unseen, or if another thread took over the entry meanwhile.
///
/// The other one writes first whose the entry is, and then exchanges the begin. So the begin that is taken here
/// may be that of the other one, if the entry is not the thread's own any more. Which of the two it is, is not known:
/// one call is lost, and counted.
#[inline(always)]
pub(crate) fn end_call(task: Task) -> Option<(&'static mut MmSyscallState, u64)> {
    let state = find::<MmSyscallState>(task)?;
    if !shares_calls(task) {
        let since = state.begin_ns;
        state.begin_ns = 0;
        return (since != 0).then_some((state, since));
    }
    let since = atomic::exchange(&raw mut state.begin_ns, 0);
    if since == 0 {
        return None;
    }
    let tid = task.tid();
    let slot = slot::<MmSyscallState>(tid)?;
    // SAFETY: a map value, read once more because another CPU may have written it.
    let owner = unsafe { ptr::read_volatile(&raw const slot.owner) };
    if owner.tid == tid {
        return Some((state, since));
    }
    let is_target = emit::is_target(task.tgid()) || emit::is_target(owner.tgid);
    emit::lose(LossKind::TaskSlot, is_target);
    None
}

/// The thread's state, if there is one.
#[inline(always)]
pub(crate) fn find<S: State>(task: Task) -> Option<&'static mut S> {
    if is_stored::<S>(task) {
        let stored = stored::<S>(task, 0)?;
        return (stored.epoch == epoch::<S>()).then_some(&mut stored.state);
    }
    let tid = task.tid();
    let slot = slot::<S>(tid)?;
    (slot.owner.tid == tid).then_some(&mut slot.state)
}

/// Frees the entry of the thread's id for another thread. Task-local storage belongs to the task and
/// not to its id.
#[inline(always)]
pub(crate) fn forget<S: State>(task: Task) {
    if S::is_stored() {
        return;
    }
    let tid = task.tid();
    if let Some(slot) = slot::<S>(tid)
        && slot.owner.tid == tid
    {
        burst::send(&mut slot.state, slot.owner);
        slot.owner = Owner::default();
        slot.state = S::default();
    }
}

#[inline(always)]
fn is_stored<S: State>(task: Task) -> bool {
    task.is_typed() && S::is_stored()
}

#[inline(always)]
fn epoch<S: State>() -> u64 {
    emit::settings().map_or(0, |settings| settings.epoch[S::KIND as usize])
}

#[inline(always)]
fn stored<S: State>(task: Task, flags: u64) -> Option<&'static mut Stored<S>> {
    // SAFETY: the verifier knows the task, and checks the map and what is read of the value. Only
    // the thread's own events touch it, and those of the scheduler that its lock orders. A thread
    // that is preempted in a program goes on with the same value, on the same CPU.
    unsafe {
        bpf_task_storage_get(S::storage().as_ptr(), task.as_ptr(), ptr::null_mut(), flags)
            .cast::<Stored<S>>()
            .as_mut()
    }
}

#[inline(always)]
fn slot<S: State>(tid: u32) -> Option<&'static mut Slot<S>> {
    let slot = S::table().get_ptr_mut(tid & config::task_mask())?;
    // SAFETY: an array value; only this thread's own events touch it, apart from a wake-up or a
    // move on another CPU, which is ordered before the switch by the run-queue lock. Preemption
    // changes nothing about that. Where threads share entries, another thread may write it at any
    // instant: the words are plain numbers, and `wait_seal` tells a mixture of two threads.
    Some(unsafe { &mut *slot })
}
