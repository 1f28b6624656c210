//! The conditions under which the target ran, as the kernel's files tell them.

use serde::{Deserialize, Serialize};

use super::{
    ConnectionsSummary, CountersSummary, CpuLimitSummary, CpuTimeSummary, DescriptorSummary,
    DiskBytesSummary, DiskSummary, HostCpuTimeSummary, HostFilesSummary, MemoryLimitSummary,
    NetworkSummary, PressureSummary, RanInsteadSummary,
};

/// What was read beside the records, when a run began, through it and at its end. Its members stand in
/// `run.json` and in `summary.json` without a name around them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The limits of CPU time on the cgroups of the target and on those above them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_limits: Vec<CpuLimitSummary>,
    /// Further such cgroups that have a limit or may have one.
    #[serde(default)]
    pub cpu_limits_beyond: u64,
    /// The network namespaces of the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSummary>,
    /// The TCP connections in these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<ConnectionsSummary>,
    /// Further network namespaces of the target, about which nothing was read.
    #[serde(default)]
    pub networks_beyond: u64,
    /// The open descriptors of the target's processes, those nearest to their limit first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<DescriptorSummary>,
    /// Further processes of the target.
    #[serde(default)]
    pub descriptors_beyond: u64,
    /// The open files of the whole host; `None` where they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_files: Option<HostFilesSummary>,
    /// The limits of memory on the cgroups of the target and on those above them, and cgroups in which a
    /// process was killed because no memory was left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_limits: Vec<MemoryLimitSummary>,
    /// Further such cgroups that have a limit or may have one.
    #[serde(default)]
    pub memory_limits_beyond: u64,
    /// Processes that the out-of-memory killer ended on the whole host; `None` where that is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_oom_kills: Option<u64>,
    /// For how long threads of the target's cgroups, and of the whole host, waited for resources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pressure: Vec<PressureSummary>,
    /// The disks of the host that were used, those first that were busy for longest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSummary>,
    /// Further disks.
    #[serde(default)]
    pub disks_beyond: u64,
    /// What the target read from disks and wrote for them; `None` where that may not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<DiskBytesSummary>,
    /// The CPUs that the target may use: what the hypervisor took of their time, and their frequency.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_times: Vec<CpuTimeSummary>,
    /// The time of all CPUs of the host; `None` where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_cpu_time: Option<HostCpuTimeSummary>,
    /// What the kernel's and the processor's counters say of the target's threads; `None` where they were not asked
    /// for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<CountersSummary>,
    /// Who had the CPUs while threads of the target waited for them; `None` where waits were not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_instead: Option<RanInsteadSummary>,
}
