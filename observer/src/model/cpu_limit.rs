//! Limits of CPU time on the cgroups of the target (CFS bandwidth), and how often they held it.

use serde::{Deserialize, Serialize};

/// CPU time that all threads of a cgroup together may use in each period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLimit {
    /// The CPU time, microseconds.
    pub quota_us: u64,
    /// The period, microseconds.
    pub period_us: u64,
    /// Unused time of earlier periods that may be added to a period, microseconds; `None` on a kernel
    /// without bursts (before Linux 5.14).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_us: Option<u64>,
}

impl CpuLimit {
    /// The limit as a number of CPUs.
    #[must_use]
    pub fn cpus(&self) -> f64 {
        self.quota_us as f64 / self.period_us.max(1) as f64
    }
}

/// A limit on a cgroup of the target, or on one above it, and what the kernel counted about it while it
/// was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLimitSummary {
    /// The cgroup, as in `/proc/PID/cgroup`.
    pub cgroup: String,
    /// Version of its hierarchy, 1 or 2.
    pub version: u32,
    /// The limit; the last one, if it changed.
    #[serde(flatten)]
    pub limit: CpuLimit,
    /// Periods in which its threads ran or wanted to run.
    pub periods: u64,
    /// Periods in which the limit was used up and threads were held.
    pub throttled_periods: u64,
    /// Time for which threads were held, nanoseconds, summed over the CPUs.
    pub throttled_ns: u64,
    /// CPU time that the cgroup used, nanoseconds; `None` where the host does not count it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_ns: Option<u64>,
    /// Time between the first and the last reading of these counts, nanoseconds.
    pub observed_ns: u64,
    /// The limit was set, changed or lifted meanwhile.
    pub changed: bool,
}

impl CpuLimitSummary {
    /// The CPU time that was used, as a part of what the limit allowed; `None` where it is not known, or
    /// the limit was not the same all the time.
    #[must_use]
    pub fn used_share(&self) -> Option<f64> {
        let allowed_ns = self.observed_ns as f64 * self.limit.cpus();
        let share = self.usage_ns? as f64 / allowed_ns;
        (!self.changed && allowed_ns > 0.0).then_some(share)
    }
}
