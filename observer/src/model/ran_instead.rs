//! Who had the CPUs while threads of the target waited for them.

use serde::{Deserialize, Serialize};

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RanKind {
    /// The target's.
    Own,
    /// Another one.
    Other,
    /// A thread of the kernel.
    KernelThread,
}

impl RanKind {
    /// As in `summary.json` and in the metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Other => "other",
            Self::KernelThread => "kernel_thread",
        }
    }
}

/// Processes of one name and one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanInsteadRow {
    /// The command name, with `*` for the number at its end, in brackets for a thread of the kernel. Empty
    /// for processes that ended before their name was known.
    pub name: String,
    /// Path of the cgroup, as for [`CgroupNames`](crate::host::CgroupNames); `None` where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Whose they are.
    pub kind: RanKind,
    /// For how long they had a CPU while threads of the target waited for it, added up over the waits,
    /// nanoseconds.
    pub time_ns: u64,
    /// Waits in which they had it, added up over the processes.
    pub waits: u64,
    /// The time by parts of the run, each [`RanInsteadSummary::part_ns`] long; those behind the last one are 0.
    pub by_part_ns: Vec<u64>,
}

/// Who had the CPUs while threads of the target waited for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanInsteadSummary {
    /// When the first reading was, on the clock of all times of a run, nanoseconds.
    pub began_ns: u64,
    /// Time from the first to the last reading, nanoseconds.
    pub observed_ns: u64,
    /// All waits of the target for a CPU, added up, nanoseconds: the sum of its histogram.
    pub wait_ns: u64,
    /// Of it, time in which a process had the CPU, nanoseconds: all rows and the others together.
    pub ran_ns: u64,
    /// Of it, time in which nobody had the CPU, nanoseconds.
    pub idle_ns: u64,
    /// Of it, time in which a CPU limit held the thread, nanoseconds.
    pub throttled_ns: u64,
    /// What is left of it, nanoseconds: waits that were too short to look at, and parts of waits of which the
    /// context switches are not known.
    pub not_known_ns: u64,
    /// Length of a part of the run, nanoseconds.
    pub part_ns: u64,
    /// Those that had the CPU for longest, the longest time first.
    pub by: Vec<RanInsteadRow>,
    /// The time of all others, nanoseconds.
    pub others_ns: u64,
    /// The same by parts of the run.
    pub others_by_part_ns: Vec<u64>,
    /// Names that are summed up in the others.
    pub beyond: u64,
    /// Of the others, the time of processes for which the kernel side had no place, nanoseconds. Their names
    /// are not known.
    pub no_place_ns: u64,
}
