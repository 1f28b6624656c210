//! Life and death of the target's tasks, and what each probe knows about a thread.

use bytemuck::{Pod, Zeroable};

use super::{COMM_LEN, Header, Record, RecordKind};

/// Header flag: fork or clone; the header's thread is the child.
pub const TASK_FORK: u16 = 1;
/// Header flag: execve succeeded.
pub const TASK_EXEC: u16 = 2;
/// Header flag: the thread exits.
pub const TASK_EXIT: u16 = 4;
/// Header flag: the process got the name of the target, or executes its program, and belongs to the
/// target from now on.
pub const TASK_JOIN: u16 = 8;

/// A thread of the target was born, executed another program, or died, or a process joined the
/// target.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TaskRecord {
    /// Common part.
    pub header: Header,
    /// The parent thread for a fork; 0 otherwise.
    pub parent_tid: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Command name, NUL padded.
    pub comm: [u8; COMM_LEN],
}

impl Record for TaskRecord {
    const KIND: u16 = RecordKind::Task as u16;
}

/// Whose an entry of a table of threads is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Owner {
    /// The thread; 0 where the entry is free.
    pub tid: u32,
    /// The process of that thread.
    pub tgid: u32,
}

/// An entry of a table of threads, found at `tid & (entries - 1)`.
///
/// A direct-mapped table instead of a hash map: a hash look-up costs more than the rest of the
/// context-switch program together. If the state of a live thread is overwritten because the id of
/// another thread belongs to the same entry, that is counted as
/// [`LossKind::TaskSlot`](super::LossKind::TaskSlot); with `pid_max` at or below the table size it
/// cannot happen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot<S> {
    /// Whose entry it is.
    pub owner: Owner,
    /// What a probe knows about that thread.
    pub state: S,
}

/// A value in a thread's task-local storage, where a probe's state is there.
///
/// User space cannot clear the storage of all threads. Instead it changes
/// [`Config::epoch`](super::Config::epoch), and a state of another epoch is empty.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored<S> {
    /// The epoch that `state` belongs to.
    pub epoch: u64,
    /// What a probe knows about the thread.
    pub state: S,
}

/// The row of a thread's cgroup, as last looked up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ThreadCgroup {
    /// The thread's `css_set` at the look-up; 0 when there was none.
    pub css_set: u64,
    /// Ticket of the histogram row of the cgroup behind `css_set`.
    pub ticket: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// What the `runqueue` probe knows about a thread. With its owner it fills one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RunqueueState {
    /// The thread's `sched_info.run_delay` as of its last arrival on a CPU.
    pub run_delay_ns: u64,
    /// The thread's involuntary context switches as of its last arrival.
    pub involuntary_switches: u64,
    /// When the thread became able to run; 0 when it does not wait. Only in the tiers that keep
    /// their own clock.
    pub runnable_ns: u64,
    /// 1 when the wait since `runnable_ns` began by preemption.
    pub preempted: u32,
    /// 1 when the thread was moved to another run queue in its sleep, so that what the kernel counts
    /// as its next wait is not a wait.
    pub moved_asleep: u32,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
    /// Explicit padding.
    pub reserved: u64,
}

/// What the `fault` probe knows about a thread. With its owner it fills one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FaultState {
    /// When the current page fault began; 0 outside one.
    pub begin_ns: u64,
    /// Address of the current page fault.
    pub address: u64,
    /// Length of the last fault, while it may still turn out to be major; 0 otherwise.
    pub minor_ns: u64,
    /// 1 when the current fault is known to be major.
    pub is_major: u32,
    /// 1 when it was taken in kernel mode.
    pub in_kernel: u32,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
    /// Explicit padding.
    pub reserved: u64,
}

/// What the `mm_syscall` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MmSyscallState {
    /// When the current memory-management system call began; 0 outside one.
    pub begin_ns: u64,
    /// Address of its registers, for the end that does not get them (kretprobe).
    pub registers: u64,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
}

/// What the `reclaim` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReclaimState {
    /// When the current reclaim began; 0 outside one.
    pub reclaim_ns: u64,
    /// When the current compaction run began; 0 outside one.
    pub compaction_ns: u64,
    /// Order of the allocation that reclaims.
    pub order: u32,
    /// Its flags (`gfp_t`).
    pub gfp_flags: u32,
}

const _: () = assert!(size_of::<Slot<RunqueueState>>() == 64);
const _: () = assert!(size_of::<Slot<FaultState>>() == 64);

/// Largest size of a table of threads. A power of two; the loader uses the next power of two
/// above `pid_max` where that is smaller.
pub const TASK_SLOTS_MAX: u32 = 1 << 17;

/// Largest `pid_max` of the kernel (`PID_MAX_LIMIT`, include/linux/threads.h): sizes the bitmap of
/// target processes, 512 KiB.
pub const PID_MAX_LIMIT: u32 = 1 << 22;
