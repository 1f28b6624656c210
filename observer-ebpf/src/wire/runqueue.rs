//! Scheduler delay: a thread that could run and did not.

use bytemuck::{Pod, Zeroable};

use super::{COMM_LEN, Header, Record, RecordKind};

/// Header flag: the thread was preempted (or yielded) while runnable; otherwise it was woken.
pub const RUNQUEUE_PREEMPTED: u16 = 1;
/// Header flag: the kernel gave the CPU to the thread without an event, so that it is not known who had the CPU
/// meanwhile: what a record says about that is 0.
pub const RUNQUEUE_UNSEEN: u16 = 2;

/// A thread waited for a CPU. The header's thread is the one that waited.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RunqueueRecord {
    /// Common part.
    pub header: Header,
    /// A thread that had the CPU meanwhile: of the process that had it for more than half of
    /// [`other_ns`](Self::other_ns), if there is one, otherwise of one of the others; of the waiting process
    /// itself if its threads had it for longer. Where neither had it, the thread that ran until the wait
    /// ended: 0 when the CPU was idle.
    pub ran_tid: u32,
    /// Its process.
    pub ran_tgid: u32,
    /// Its command name, NUL padded.
    pub ran_comm: [u8; COMM_LEN],
    /// Id of its cgroup, in the hierarchy that the histograms go by; 0 when the CPU was idle, or the
    /// thread has gone.
    pub ran_cgroup: u64,
    /// For how long threads of other processes had the CPU during the wait, nanoseconds. What the three
    /// times leave of the wait is not known: the thread waited on another CPU before, or more than
    /// [`SWITCHES_KEPT`] switches came in between, or the kernel showed not all of them.
    pub other_ns: u64,
    /// For how long other threads of the waiting process had it.
    pub own_ns: u64,
    /// For how long it was idle.
    pub idle_ns: u64,
    /// For how long the CPU limit of a cgroup (CFS bandwidth) held the thread, nanoseconds. It is in none of
    /// the three times above.
    pub throttled_ns: u64,
}

impl Record for RunqueueRecord {
    const KIND: u16 = RecordKind::Runqueue as u16;
}

/// How many of the last context switches of a CPU are kept.
pub const SWITCHES_KEPT: usize = 64;

/// A thread that had the CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Turn {
    /// When it left the CPU, on the clock that the waits are measured with.
    pub until_ns: u64,
    /// Address of its `task_struct`.
    pub task: u64,
    /// The thread; 0 when the CPU was idle.
    pub tid: u32,
    /// Its process.
    pub tgid: u32,
    /// Whether it had the CPU since the switch before this one; otherwise a switch was not seen, and
    /// it is not known who had the CPU.
    pub known: u64,
}

/// Which threads had one CPU lately.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuTurns {
    /// Context switches so far.
    pub switches: u64,
    /// The thread that has the CPU since the last one.
    pub running: u64,
    /// The last ones, each at its number modulo the length.
    pub kept: [Turn; SWITCHES_KEPT],
}

/// How many intervals of throttling are kept of a cgroup.
pub const INTERVALS_KEPT: usize = 8;

/// How many cgroups are kept of a CPU whose threads were throttled there.
pub const THROTTLED_KEPT: usize = 64;

/// An interval of throttling, on the clock that the waits are measured with, nanoseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Interval {
    /// Its begin.
    pub from_ns: u64,
    /// Its end.
    pub until_ns: u64,
}

/// When the threads of one cgroup on one CPU were throttled lately.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Throttled {
    /// Address of the run queue of the cgroup on this CPU (`struct cfs_rq`); 0 for a free place.
    pub queue: u64,
    /// How long the kernel had throttled it so far, when that was last read, nanoseconds.
    pub total_ns: u64,
    /// What the kernel notes when an interval begins, of the one under way: no other one has it.
    pub begun: u64,
    /// When that one was first seen; 0 when none is under way, or its begin was not seen.
    pub begun_ns: u64,
    /// Intervals that have ended.
    pub intervals: u64,
    /// The last ones, each at its number modulo the length.
    pub kept: [Interval; INTERVALS_KEPT],
}

/// Which cgroups were throttled lately on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuThrottled {
    /// Of the wait that has just ended: for how long the thread was throttled, nanoseconds.
    pub wait_ns: u64,
    /// And the place of its cgroup.
    pub place: u64,
    /// The cgroups.
    pub cgroups: [Throttled; THROTTLED_KEPT],
}
