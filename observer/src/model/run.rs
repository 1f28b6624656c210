//! `run.json`: how the run was made, enough to read its other files later.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Conditions, Detached, LossSummary, ProbeState, RelAnchor};
use crate::clock::{Anchors, MonoNanos};

/// Version of the `run.json` schema.
pub const RUN_SCHEMA: u32 = 1;

/// Names of the files in a run directory.
pub mod files {
    /// How the run was made.
    pub const RUN: &str = "run.json";
    /// The answer.
    pub const SUMMARY: &str = "summary.json";
    /// The answer as a web page.
    pub const REPORT: &str = "report.html";
    /// End of the names of the streams of events, one a kind.
    pub const STREAM_SUFFIX: &str = ".arrows";
    /// Samples, Arrow IPC stream.
    pub const SAMPLES: &str = "samples.arrows";
    /// COMMAND's standard output, or the samples from standard input, unchanged.
    pub const LOADGEN_OUT: &str = "loadgen.out";
    /// The part of the samples file that was read, unchanged.
    pub const LOADGEN_SAMPLES: &str = "loadgen.samples";
    /// The generator's standard error.
    pub const LOADGEN_ERR: &str = "loadgen.err";
    /// The frames of the stacks, with their symbols.
    pub const STACKS: &str = "stacks.json";
}

/// Coverage of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Whether it works.
    pub state: ProbeState,
    /// How it is attached.
    pub tier: Option<String>,
    /// Why it is not (completely) attached, or why a better tier that the kernel seemed to offer is
    /// not used.
    pub reason: Option<String>,
    /// When it was detached while the run went on; `None` when it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached: Option<Detached>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// COMMAND exited.
    CommandExit,
    /// The asked-for duration was over.
    Duration,
    /// The target exited.
    TargetExit,
    /// The samples ended, and there was no COMMAND.
    SamplesEnd,
    /// SIGINT or SIGTERM.
    Interrupted,
    /// The run has not ended (or ended without saying so: a crash).
    Running,
    /// What a newer version of observer wrote, which this one does not know.
    #[serde(other)]
    Unknown,
}

/// The first bytes of a file, as they were written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPart {
    /// How many.
    pub bytes: u64,
    /// Their CRC-32, eight hexadecimal digits.
    pub crc32: String,
}

impl KeptPart {
    /// So many bytes, with their checksum.
    #[must_use]
    pub fn new(bytes: u64, sum: crc32fast::Hasher) -> Self {
        Self { bytes, crc32: format!("{:08x}", sum.finalize()) }
    }
}

/// Whose a process is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The effective user: its name in `/etc/passwd` of the host, or its id.
    pub user: String,
    /// The network namespace: `host` for that of the host, otherwise what the kernel calls it (`net:[4026532281]`), or `unknown`.
    pub network: String,
}

impl Owner {
    /// The network namespace of the host.
    pub const HOST: &str = "host";
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}, ", self.user)?;
        if self.network == Self::HOST {
            f.write_str("in the host's network")
        } else {
            write!(f, "in another network than the host's, {}", self.network)
        }
    }
}

/// Processes with their owners, for users: of each owner a few, and the number of the others. Of a
/// process that is gone, the owner is not known.
#[must_use]
pub fn by_owner<'a>(
    processes: impl IntoIterator<Item = (u32, &'a str)>,
    owners: &BTreeMap<u32, Owner>,
) -> String {
    const NAMED: usize = 4;
    let mut groups: BTreeMap<Option<&Owner>, Vec<(u32, &str)>> = BTreeMap::new();
    for (tgid, comm) in processes {
        groups.entry(owners.get(&tgid)).or_default().push((tgid, comm));
    }
    let of_group = |(owner, processes): (Option<&Owner>, Vec<(u32, &str)>)| {
        let named = processes.iter().take(NAMED).map(|(tgid, comm)| format!("{tgid} {comm}"));
        let mut text = named.collect::<Vec<_>>().join(", ");
        if processes.len() > NAMED {
            text += &format!(" and {} more", processes.len() - NAMED);
        }
        if let Some(owner) = owner {
            text += &format!(" ({owner})");
        }
        text
    };
    groups.into_iter().map(of_group).collect::<Vec<_>>().join("; ")
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// [`RUN_SCHEMA`].
    pub schema: u32,
    /// Version of observer.
    pub observer_version: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// `/proc/sys/kernel/random/boot_id`: all times of `CLOCK_MONOTONIC` are of this boot. Runs of
    /// 0.1.0 do not have it.
    #[serde(default)]
    pub boot_id: Option<String>,
    /// In the metadata of its streams too. Runs of 0.1.0 do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// `uname -m`.
    pub machine: String,
    /// CPUs online.
    pub cpus: u32,
    /// CPUs that threads of the target could use at the start; `None` where no thread was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_cpus: Option<u32>,
    /// How the target was named (`--pid 12`).
    pub target: String,
    /// Processes of the target at the start, or the first one if the target was waited for: id and
    /// command name.
    pub target_processes: BTreeMap<u32, String>,
    /// Whose each of them is; those that were gone at once are not here. Runs of 0.1.0 do not have it.
    #[serde(default)]
    pub target_owners: BTreeMap<u32, Owner>,
    /// Cgroup of the target's first process, as the histograms are kept.
    pub target_cgroup: Option<String>,
    /// The conditions under which the target ran.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// COMMAND, if any.
    pub command: Vec<String>,
    /// The user COMMAND runs as, where that is not observer's own.
    #[serde(default)]
    pub command_user: Option<String>,
    /// COMMAND's exit code, if it ran to its end.
    pub command_exit: Option<i32>,
    /// Bytes of the generator's output that were not kept, by file; those of which all was kept are
    /// not here.
    #[serde(default)]
    pub cut_bytes: BTreeMap<String, u64>,
    /// The files that keep the generator's output: what had been written to each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept: BTreeMap<String, KeptPart>,
    /// What was seen of COMMAND's processes, where the samples' times count from its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<RelAnchor>,
    /// `--samples`, if any.
    pub samples_format: Option<String>,
    /// `--clock-error`, nanoseconds, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_error_ns: Option<u64>,
    /// `--slow`.
    pub slow_rule: String,
    /// First instant of the run: every probe was attached.
    pub start_ns: MonoNanos,
    /// Last instant.
    pub end_ns: MonoNanos,
    /// How it ended.
    pub end_reason: EndReason,
    /// Clock readings over the run.
    pub anchors: Anchors,
    /// Probes by name.
    pub coverage: BTreeMap<String, Coverage>,
    /// Records shorter than this were counted, not sent; nanoseconds by record kind.
    pub floors_ns: BTreeMap<String, u64>,
    /// Losses.
    pub loss: LossSummary,
    /// Events that a daemon's trace of bounded size has removed, by kind; `start_ns` is the first
    /// instant that is still there.
    #[serde(default)]
    pub removed: BTreeMap<String, u64>,
    /// Rows in each stream, by the name of its file: as many at least are there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub streams: BTreeMap<String, u64>,
    /// Command names of the target's threads, for the report.
    pub thread_names: BTreeMap<u32, String>,
    /// Cgroups of the threads that had what the target's threads waited for: paths by id.
    #[serde(default)]
    pub holder_cgroups: BTreeMap<u64, String>,
}
