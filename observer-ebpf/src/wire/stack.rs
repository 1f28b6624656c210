//! Stacks of threads that were away from the CPU.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Frames of a stack that are kept, of each of its two parts: `PERF_MAX_STACK_DEPTH` (include/uapi/linux/perf_event.h).
pub const STACK_FRAMES: usize = 127;

/// Stacks that the table has room for: its size.
pub const STACKS_MAX: u32 = 1 << 14;

/// `TASK_DEAD` (include/linux/sched.h): the thread does not come back.
pub const TASK_DEAD: u32 = 0x80;

/// Header flag: the thread was preempted. It could have run all the time that it was away.
pub const STACK_PREEMPTED: u16 = 1;

/// A thread was away from the CPU: it slept, or waited for a CPU, or both. The header's end is when it runs
/// again.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct StackRecord {
    /// Common part.
    pub header: Header,
    /// Id of the kernel's part of its stack; negative where there is none: the number of an error.
    pub kernel_stack: i32,
    /// Id of the part in user space.
    pub user_stack: i32,
}

impl Record for StackRecord {
    const KIND: u16 = RecordKind::Stack as u16;
}

/// What the `stack` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct StackState {
    /// When the thread left the CPU; 0 while it has one.
    pub begin_ns: u64,
    /// As in [`StackRecord`].
    pub kernel_stack: i32,
    /// As in [`StackRecord`].
    pub user_stack: i32,
    /// 1 when it was preempted.
    pub preempted: u64,
}
