//! Life and death of the target's tasks, and the per-thread state table.

use bytemuck::{Pod, Zeroable};

use super::{COMM_LEN, Header, Record, RecordKind};

/// Header flag: fork or clone; the header's thread is the child.
pub const TASK_FORK: u16 = 1;
/// Header flag: execve succeeded.
pub const TASK_EXEC: u16 = 2;
/// Header flag: the thread exits.
pub const TASK_EXIT: u16 = 4;

/// A thread of the target was born, executed another program, or died.
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

/// What the programs know about one thread between two events: one cache line, found at `tid &
/// (entries - 1)`.
///
/// A direct-mapped table instead of a hash map: a hash look-up costs more than the rest of the
/// context-switch program together. Two threads whose ids collide while both are in the middle of
/// something are counted as [`LossKind::TaskSlot`](super::LossKind::TaskSlot); with `pid_max` at
/// or below the table size that cannot happen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TaskState {
    /// Owner of the slot.
    pub tid: u32,
    /// Ticket of the histogram row of the cgroup behind `css_set`.
    pub cgroup_ticket: u32,
    /// The thread's `css_set` when `cgroup_ticket` was looked up; 0 when it was not.
    pub css_set: u64,
    /// The thread's `sched_info.run_delay` as of its last arrival on a CPU. In the tier that
    /// keeps its own clock: when the thread became runnable, 0 when it does not wait.
    pub run_delay_ns: u64,
    /// The thread's involuntary context switches as of its last arrival; [`MOVED_ASLEEP`] may be
    /// set. In the tier that keeps its own clock: [`WAITS`] while it waits, with 1 added when the wait
    /// began by preemption.
    pub involuntary_switches: u64,
    /// When the current page fault began, 0 outside one; [`FAULT_SEEN_MAJOR`] may be set.
    pub fault_ns: u64,
    /// Address of the current page fault; [`FAULT_IN_KERNEL`] may be set.
    pub fault_address: u64,
    /// When the current memory-management system call began; 0 outside one.
    pub syscall_ns: u64,
    /// Length of the last fault, while it may still turn out to be major; 0 otherwise.
    pub fault_counted_ns: u64,
}

/// Highest bit of [`TaskState::involuntary_switches`]: the thread was moved to another run queue in
/// its sleep, and what the kernel counts as its next wait is not a wait.
pub const MOVED_ASLEEP: u64 = 1 << 63;

/// Of [`TaskState::involuntary_switches`], in the tier that keeps its own clock: the thread is
/// waiting, and only this entry knows since when.
pub const WAITS: u64 = 1 << 62;

/// Lowest bit of [`TaskState::fault_ns`]: a major fault was counted since the begin.
pub const FAULT_SEEN_MAJOR: u64 = 1;

/// Highest bit of [`TaskState::fault_address`]: taken in kernel mode. User addresses do not have
/// it.
pub const FAULT_IN_KERNEL: u64 = 1 << 63;

/// State of rare events, in a table of its own, so that [`TaskState`] stays within its cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MemoryState {
    /// Owner of the slot.
    pub tid: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// When the current reclaim began; 0 outside one.
    pub reclaim_ns: u64,
    /// Order (high 32 bits) and gfp flags (low 32 bits) of the current reclaim.
    pub reclaim_arguments: u64,
    /// When the current compaction run began; 0 outside one.
    pub compaction_ns: u64,
    /// Address of the registers of the current memory-management system call, for the end that
    /// does not get them (kretprobe).
    pub registers: u64,
}

/// Largest size of the per-thread table. A power of two; the loader uses the next power of two
/// above `pid_max` where that is smaller.
pub const TASK_SLOTS_MAX: u32 = 1 << 17;

/// Largest `pid_max` of the kernel (`PID_MAX_LIMIT`, include/linux/threads.h): sizes the bitmap of
/// target processes, 512 KiB.
pub const PID_MAX_LIMIT: u32 = 1 << 22;
