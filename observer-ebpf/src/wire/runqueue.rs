//! Scheduler delay: a thread that could run and did not.

use bytemuck::{Pod, Zeroable};

use super::{COMM_LEN, Header, Record, RecordKind};

/// Header flag: the thread was preempted (or yielded) while runnable; otherwise it was woken.
pub const RUNQUEUE_PREEMPTED: u16 = 1;

/// A thread waited for a CPU. The header's thread is the one that waited.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RunqueueRecord {
    /// Common part.
    pub header: Header,
    /// Thread that ran on that CPU until the wait ended; 0 when the CPU was idle.
    pub ran_tid: u32,
    /// Its process.
    pub ran_tgid: u32,
    /// Its command name, NUL padded.
    pub ran_comm: [u8; COMM_LEN],
    /// Id of its cgroup, in the hierarchy that the histograms go by; 0 when the CPU was idle.
    pub ran_cgroup: u64,
}

impl Record for RunqueueRecord {
    const KIND: u16 = RecordKind::Runqueue as u16;
}
