//! Life and death of the target's tasks, and the per-thread state table.

use bytemuck::{Pod, Zeroable};

use super::{COMM_LEN, Header};

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

/// Begin times of one thread, one cache line, found at `tid & (entries - 1)`.
///
/// A direct-mapped table instead of a hash map: a hash look-up costs more than the rest of the
/// context-switch programs together. Two threads whose ids collide while both wait are counted as
/// [`LossKind::TaskSlot`](super::LossKind::TaskSlot); with `pid_max` at or below the table size
/// that cannot happen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TaskState {
    /// Owner of the slot.
    pub tid: u32,
    /// How the wait began: 1 = preempted, 0 = woken.
    pub preempted: u32,
    /// When the thread became runnable without running; 0 when it does not wait.
    pub runnable_ns: u64,
    /// When the current page fault began; 0 outside one.
    pub fault_ns: u64,
    /// When the current memory-management system call began; 0 outside one.
    pub syscall_ns: u64,
    /// When the current reclaim began; 0 outside one.
    pub reclaim_ns: u64,
    /// Order (high 32 bits) and gfp flags (low 32 bits) of the current reclaim.
    pub reclaim_arguments: u64,
    /// When the current compaction run began; 0 outside one.
    pub compaction_ns: u64,
    /// Explicit padding to one cache line.
    pub reserved: u64,
}

/// Largest size of the per-thread table. A power of two; the loader uses the next power of two
/// above `pid_max` where that is smaller.
pub const TASK_SLOTS_MAX: u32 = 1 << 17;

/// Largest `pid_max` of the kernel (`PID_MAX_LIMIT`, include/linux/threads.h): sizes the bitmap of
/// target processes, 512 KiB.
pub const PID_MAX_LIMIT: u32 = 1 << 22;
