//! Limits of memory on the cgroups of the target, and the pressure under which it ran.

use serde::{Deserialize, Serialize};

/// A limit on a cgroup of the target, or on one above it, and what the kernel counted about it while it
/// was observed. What the kernel does not count is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLimitSummary {
    /// The cgroup, as in `/proc/PID/cgroup`.
    pub cgroup: String,
    /// Version of its hierarchy, 1 or 2.
    pub version: u32,
    /// The limit (`memory.max`, `memory.limit_in_bytes`), bytes; the last one, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Above this much memory, threads are held (`memory.high`), bytes; the last one, if it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_bytes: Option<u64>,
    /// Memory in use at the last reading, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// The most of all readings, bytes; what the kernel says where its own peak rose meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_bytes: Option<u64>,
    /// Times that memory was asked for beyond the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_hits: Option<u64>,
    /// Times that threads were held because `memory.high` was exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_hits: Option<u64>,
    /// Processes that the out-of-memory killer ended: in version 2 of this cgroup and of those below, in
    /// version 1 of this cgroup itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Time between the first and the last reading of these counts, nanoseconds.
    pub observed_ns: u64,
    /// A limit was set, changed or lifted meanwhile.
    pub changed: bool,
}

impl MemoryLimitSummary {
    /// Whether it has a limit.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.max_bytes.is_some() || self.high_bytes.is_some()
    }
}

/// Time in which threads waited for a resource (pressure stall information) while they were observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureSummary {
    /// The cgroup of version 2 whose threads these are; `None` for the whole host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// `cpu`, `memory` or `io`.
    pub resource: String,
    /// Time in which at least one thread waited, microseconds.
    pub some_us: u64,
    /// Time in which all threads that were not idle waited, microseconds; `None` where the kernel does not
    /// count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_us: Option<u64>,
    /// Time between the first and the last reading, nanoseconds.
    pub observed_ns: u64,
    /// Length of a part of the run, nanoseconds; 0 in older runs.
    #[serde(default)]
    pub part_ns: u64,
    /// [`PressureSummary::some_us`] by parts of the run; those behind the last one are 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub some_by_part_us: Vec<u64>,
}

impl PressureSummary {
    /// The part of the time in which at least one thread waited.
    #[must_use]
    pub fn some_share(&self) -> f64 {
        self.share(self.some_us)
    }

    /// The part of the time in which all of them waited.
    #[must_use]
    pub fn full_share(&self) -> Option<f64> {
        Some(self.share(self.full_us?))
    }

    fn share(&self, us: u64) -> f64 {
        us as f64 * 1e3 / self.observed_ns.max(1) as f64
    }
}
