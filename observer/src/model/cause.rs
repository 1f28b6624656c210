//! Causes: why a thread, or a request, could not go on.

use serde::{Deserialize, Serialize};

use super::{Event, EventKind, ReclaimScope, Tgid, Tid};
use crate::clock::MonoNanos;

/// The fixed names used in every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Runnable, but another thread had the CPU.
    Runqueue,
    /// Reclaiming memory because the whole host was short of it.
    ReclaimDirect,
    /// Reclaiming memory because a memory cgroup was at its limit.
    ReclaimMemcg,
    /// Compacting memory to find a large page.
    Compaction,
    /// A minor page fault.
    FaultMinor,
    /// A major page fault: the page came from a device.
    FaultMajor,
    /// Inside mmap, munmap, mremap, brk, mprotect or madvise.
    MmSyscall,
    /// The load generator sent the request late.
    LoadGenerator,
    /// No watched cause carries this part.
    Unexplained,
}

impl Cause {
    /// Causes that come from stalls of the target's threads, innermost last: where two overlap on
    /// one thread, the later one in this list wins. A thread that waits for a CPU inside a
    /// reclaim is waiting for the CPU; a reclaim inside a fault inside a system call is reclaim.
    pub const STALLS: [Self; 7] = [
        Self::MmSyscall,
        Self::FaultMinor,
        Self::FaultMajor,
        Self::ReclaimDirect,
        Self::ReclaimMemcg,
        Self::Compaction,
        Self::Runqueue,
    ];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runqueue => "runqueue",
            Self::ReclaimDirect => "reclaim_direct",
            Self::ReclaimMemcg => "reclaim_memcg",
            Self::Compaction => "compaction",
            Self::FaultMinor => "fault_minor",
            Self::FaultMajor => "fault_major",
            Self::MmSyscall => "mm_syscall",
            Self::LoadGenerator => "load_generator",
            Self::Unexplained => "unexplained",
        }
    }

    /// One sentence for people: what it means when a request was slow because of this.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Runqueue => "threads were ready to run but another thread had the CPU",
            Self::ReclaimDirect => {
                "threads had to free memory themselves: the host was short of it"
            }
            Self::ReclaimMemcg => {
                "threads had to free memory themselves: their memory cgroup was at its limit"
            }
            Self::Compaction => "threads had to compact memory to find a large free block",
            Self::FaultMinor => "threads mapped pages that were not mapped yet",
            Self::FaultMajor => "threads waited for pages to be read from a device",
            Self::MmSyscall => "threads were inside mmap, munmap, mremap, brk, mprotect or madvise",
            Self::LoadGenerator => "the load generator itself sent late",
            Self::Unexplained => "no watched cause carries this part",
        }
    }
}

/// An interval `[start, end)` in which a thread that had work could not go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Stall {
    /// First instant of the stall.
    pub start: MonoNanos,
    /// First instant after it.
    pub end: MonoNanos,
    /// The stalled thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Why.
    pub cause: Cause,
}

impl Stall {
    /// The stall an event stands for; `None` for events that stall nobody (sockets, forks).
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let cause = match event.kind {
            EventKind::Runqueue { .. } => Cause::Runqueue,
            EventKind::Fault { major: false, .. } => Cause::FaultMinor,
            EventKind::Fault { major: true, .. } => Cause::FaultMajor,
            EventKind::Reclaim { scope: ReclaimScope::Direct, .. } => Cause::ReclaimDirect,
            EventKind::Reclaim { scope: ReclaimScope::Memcg, .. } => Cause::ReclaimMemcg,
            EventKind::Compaction { .. } => Cause::Compaction,
            EventKind::MmSyscall { .. } => Cause::MmSyscall,
            EventKind::SocketReleased { .. }
            | EventKind::FdFailure { .. }
            | EventKind::Fork { .. }
            | EventKind::Exec { .. }
            | EventKind::Exit { .. }
            | EventKind::Floor(_) => return None,
        };
        Some(Self { start: event.start(), end: event.end, tid: event.tid, tgid: event.tgid, cause })
    }

    /// Length in nanoseconds.
    #[must_use]
    pub const fn duration_ns(&self) -> u64 {
        self.end.since(self.start)
    }
}
