//! The conditions under which the target ran, as the kernel's files tell them.

use serde::{Deserialize, Serialize};

use super::{CpuLimitSummary, DescriptorSummary, HostFilesSummary};

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
    /// The open descriptors of the target's processes, those nearest to their limit first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<DescriptorSummary>,
    /// Further processes of the target.
    #[serde(default)]
    pub descriptors_beyond: u64,
    /// The open files of the whole host; `None` where they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_files: Option<HostFilesSummary>,
}
