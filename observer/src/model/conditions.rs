//! The conditions under which the target ran, as the kernel's files tell them.

use serde::{Deserialize, Serialize};

use super::{ConnectionsSummary, CpuLimitSummary, NetworkSummary};

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
}
