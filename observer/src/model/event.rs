//! Events: decoded, owned records.

use observer_ebpf::wire::RecordKind;
use serde::{Deserialize, Serialize};

use crate::clock::MonoNanos;

/// Thread id in the initial pid namespace.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tid(pub u32);

/// Process id (thread-group id) in the initial pid namespace.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tgid(pub u32);

/// What happened to a thread of the target.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// End of the stall, or the instant.
    pub end: MonoNanos,
    /// Length; 0 for instants.
    pub duration_ns: u64,
    /// The thread it happened to.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// CPU it ended on.
    pub cpu: u32,
    /// What happened.
    pub kind: EventKind,
}

impl Event {
    /// First instant.
    #[must_use]
    pub const fn start(&self) -> MonoNanos {
        MonoNanos(self.end.0.saturating_sub(self.duration_ns))
    }
}

/// Which memory was short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimScope {
    /// The host.
    Direct,
    /// A memory cgroup.
    Memcg,
}

/// The watched memory-management system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MmCall {
    /// mmap(2)
    Mmap,
    /// munmap(2)
    Munmap,
    /// mremap(2)
    Mremap,
    /// brk(2)
    Brk,
    /// mprotect(2)
    Mprotect,
    /// madvise(2)
    Madvise,
}

impl MmCall {
    /// All calls.
    pub const ALL: [Self; 6] =
        [Self::Mmap, Self::Munmap, Self::Mremap, Self::Brk, Self::Mprotect, Self::Madvise];

    /// The system call's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::Brk => "brk",
            Self::Mprotect => "mprotect",
            Self::Madvise => "madvise",
        }
    }
}

/// What an [`Event`] is about. Command names are lossy UTF-8 of the kernel's 16 bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// The thread waited for a CPU.
    Runqueue {
        /// It was preempted while running; otherwise it was woken.
        preempted: bool,
        /// Thread that ran instead until the wait ended; `Tid(0)` when the CPU was idle.
        ran_tid: Tid,
        /// Its process.
        ran_tgid: Tgid,
        /// Its command name.
        ran_comm: String,
    },
    /// A page fault.
    Fault {
        /// The page came from a device.
        major: bool,
        /// Taken in kernel mode.
        kernel_mode: bool,
        /// Faulting virtual address.
        address: u64,
    },
    /// Direct or memcg reclaim.
    Reclaim {
        /// Which memory was short.
        scope: ReclaimScope,
        /// Pages reclaimed.
        reclaimed_pages: u64,
        /// Allocation order.
        order: u32,
        /// Allocation flags (`gfp_t`).
        gfp_flags: u32,
    },
    /// A compaction run.
    Compaction {
        /// `enum compact_result`.
        status: i32,
    },
    /// A memory-management system call.
    MmSyscall {
        /// Which.
        call: MmCall,
        /// First argument.
        address: u64,
        /// Bytes asked for (0 for brk).
        length_bytes: u64,
        /// Return value, negative errno on failure.
        result: i64,
        /// Protection (mmap, mprotect) or advice (madvise); 0 otherwise.
        argument: u32,
    },
    /// A socket of the target was released; the event's duration is its lifetime.
    SocketReleased {
        /// Accepted rather than created.
        accepted: bool,
        /// Existed before the probe was attached: the lifetime is unknown.
        preexisting: bool,
        /// `AF_INET` or `AF_INET6`.
        family: u32,
        /// `SOCK_STREAM`, ...; 0 when unknown.
        socket_type: u32,
    },
    /// A socket, accept, connect or open failed for want of a resource.
    FdFailure {
        /// System call.
        call: &'static str,
        /// Positive errno.
        errno: u32,
    },
    /// A thread or process of the target was born; the event's thread is the child.
    Fork {
        /// Parent thread.
        parent_tid: Tid,
        /// Child's command name.
        comm: String,
    },
    /// The target executed another program.
    Exec {
        /// New command name.
        comm: String,
    },
    /// A thread of the target exited.
    Exit {
        /// Command name.
        comm: String,
    },
    /// observer changed the length from which on stalls of a kind are sent. It happened to nobody:
    /// thread, process and CPU are 0.
    Floor(FloorChange),
}

/// A change of the length from which on stalls of a kind are sent as records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorChange {
    /// The kind of record.
    pub record: RecordKind,
    /// Floor until now, nanoseconds.
    pub old_ns: u64,
    /// Floor from now on.
    pub new_ns: u64,
    /// Why.
    pub reason: FloorReason,
}

/// Why a floor was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloorReason {
    /// Raised: records were lost.
    Loss,
    /// Raised: the ring filled up faster than it is drained.
    Ring,
    /// Raised: more records a second than the budget.
    Rate,
    /// Raised: at this rate the memory for stalls would soon be used up.
    Room,
    /// Lowered: the load has been low for a while.
    Calm,
}

impl FloorReason {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::Loss, Self::Ring, Self::Rate, Self::Room, Self::Calm];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Ring => "ring",
            Self::Rate => "rate",
            Self::Room => "room",
            Self::Calm => "calm",
        }
    }
}

impl EventKind {
    /// The kind of record it came as; `None` for what observer itself adds.
    #[must_use]
    pub const fn record(&self) -> Option<RecordKind> {
        Some(match self {
            Self::Runqueue { .. } => RecordKind::Runqueue,
            Self::Fault { .. } => RecordKind::Fault,
            Self::Reclaim { .. } => RecordKind::Reclaim,
            Self::Compaction { .. } => RecordKind::Compaction,
            Self::MmSyscall { .. } => RecordKind::MmSyscall,
            Self::SocketReleased { .. } => RecordKind::Socket,
            Self::FdFailure { .. } => RecordKind::FdFailure,
            Self::Fork { .. } | Self::Exec { .. } | Self::Exit { .. } => RecordKind::Task,
            Self::Floor(_) => return None,
        })
    }

    /// Name of the kind: the record's (`RecordKind::name`), or `floor`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.record() {
            Some(record) => record.name(),
            None => "floor",
        }
    }
}
