//! The CPUs that the target may use: what the hypervisor took of their time, and their frequency.

use serde::{Deserialize, Serialize};

/// A CPU, while it was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuTimeSummary {
    /// Its number.
    pub cpu: u32,
    /// Time between the first and the last reading, as the kernel counts it for this CPU, nanoseconds.
    pub total_ns: u64,
    /// Of it, time in which something ran.
    pub busy_ns: u64,
    /// Time that the hypervisor gave to others although something wanted to run (steal), nanoseconds; 0 also
    /// where the hypervisor does not tell the kernel.
    pub stolen_ns: u64,
    /// The lowest frequency of all readings, kHz; `None` where the host does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lowest_khz: Option<u64>,
    /// The highest one, kHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_khz: Option<u64>,
    /// The highest that it can have, kHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_khz: Option<u64>,
}

/// The same of all CPUs of the host together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpuTimeSummary {
    /// Time of all CPUs, nanoseconds.
    pub total_ns: u64,
    /// Of it, time that the hypervisor gave to others, nanoseconds.
    pub stolen_ns: u64,
}

impl CpuTimeSummary {
    /// The part of the time that the hypervisor took.
    #[must_use]
    pub fn stolen_share(&self) -> f64 {
        self.stolen_ns as f64 / self.total_ns.max(1) as f64
    }

    /// The part of the time in which something ran.
    #[must_use]
    pub fn busy_share(&self) -> f64 {
        self.busy_ns as f64 / self.total_ns.max(1) as f64
    }
}

impl HostCpuTimeSummary {
    /// The part of the time that the hypervisor took.
    #[must_use]
    pub fn stolen_share(&self) -> f64 {
        self.stolen_ns as f64 / self.total_ns.max(1) as f64
    }
}
