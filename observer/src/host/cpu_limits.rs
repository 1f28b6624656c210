//! Limits of CPU time on cgroups, and what the kernel counts about them, from the files of the `cpu`
//! controller.

use std::path::{Path, PathBuf};

use super::cgroups::{Cgroups, Hierarchy, with_those_above};
use super::read_start;
use crate::model::{CpuLimit, Tgid};

/// Most bytes that are read of a file. The kernel's have a few hundred.
const FILE_BYTES: u64 = 4_096;

/// The cgroups whose CPU time can be limited.
#[derive(Clone, Debug)]
pub struct CpuCgroups {
    cpu: Hierarchy,
    /// Version 1 counts the CPU time by another controller, which may be mounted elsewhere.
    cpuacct: Option<Hierarchy>,
}

/// What the kernel has counted about a cgroup since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuCounts {
    /// Which cgroup: one that was removed and made again has another id, and new counts.
    pub cgroup_id: u64,
    /// Periods of its limit in which threads ran or wanted to run.
    pub periods: u64,
    /// Periods in which the limit was used up.
    pub throttled_periods: u64,
    /// Time for which threads were held, nanoseconds, summed over the CPUs.
    pub throttled_ns: u64,
    /// CPU time used, nanoseconds; `None` where it is not counted.
    pub usage_ns: Option<u64>,
}

impl CpuCgroups {
    /// Those of this host; `None` where no cgroup file system is mounted.
    #[must_use]
    pub fn of(cgroups: &Cgroups) -> Option<Self> {
        let cpu = cgroups.with_controller("cpu")?.clone();
        Some(Self { cpu, cpuacct: cgroups.version_1("cpuacct").cloned() })
    }

    /// Version of the hierarchy, 1 or 2.
    #[must_use]
    pub const fn version(&self) -> u32 {
        if self.cpu.unified { 2 } else { 1 }
    }

    /// The cgroup of a process (of its first thread, or of another one if that has exited). `None` for one
    /// that is gone, or whose cgroup lies outside of what is mounted here.
    #[must_use]
    pub fn cgroup_of(&self, tgid: Tgid) -> Option<String> {
        self.cpu.live_cgroup_of(tgid, "cpu")
    }

    /// The limit of a cgroup itself; `None` where it has none, or is gone.
    #[must_use]
    pub fn limit(&self, cgroup: &str) -> Option<CpuLimit> {
        let directory = self.cpu.directory(cgroup)?;
        let read = |name: &str| start_of(&directory.join(name));
        let (quota, period, burst) = if self.cpu.unified {
            let limit = read("cpu.max")?;
            let (quota, period) = limit.trim().split_once(' ')?;
            (quota.to_owned(), period.to_owned(), read("cpu.max.burst"))
        } else {
            (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?, read("cpu.cfs_burst_us"))
        };
        // No limit is "max" or "-1", which are no such numbers.
        let positive = |text: &str| number(text).filter(|number| *number > 0);
        let (quota_us, period_us) = (positive(&quota)?, positive(&period)?);
        Some(CpuLimit { quota_us, period_us, burst_us: burst.as_deref().and_then(number) })
    }

    /// The kernel's file with the limit of a cgroup.
    fn limit_file(&self, cgroup: &str) -> Option<PathBuf> {
        let name = if self.cpu.unified { "cpu.max" } else { "cpu.cfs_quota_us" };
        Some(self.cpu.directory(cgroup)?.join(name))
    }

    /// What the kernel has counted about a cgroup; `None` where its CPU time cannot be limited, or it is
    /// gone.
    #[must_use]
    pub fn counts(&self, cgroup: &str) -> Option<CpuCounts> {
        let stat = start_of(&self.cpu.directory(cgroup)?.join("cpu.stat"))?;
        let of = |key: &str| {
            number(stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?)
        };
        let (throttled_ns, usage_ns) = if self.cpu.unified {
            let ns = |us: u64| us.saturating_mul(1_000);
            (of("throttled_usec").map(ns), of("usage_usec").map(ns))
        } else {
            let accounted = self.cpuacct.as_ref().and_then(|cpuacct| cpuacct.directory(cgroup));
            let usage = accounted.and_then(|directory| start_of(&directory.join("cpuacct.usage")));
            (of("throttled_time"), usage.as_deref().and_then(number))
        };
        Some(CpuCounts {
            periods: of("nr_periods")?,
            throttled_periods: of("nr_throttled")?,
            throttled_ns: throttled_ns?,
            usage_ns,
            // The last, so that the cgroup was there while all of it was read.
            cgroup_id: self.cpu.id_of(cgroup)?,
        })
    }

    /// The tightest limit that applies to a process, with the kernel's file for it.
    #[must_use]
    pub fn tightest(&self, tgid: Tgid) -> Option<(PathBuf, CpuLimit)> {
        let cgroup = self.cgroup_of(tgid)?;
        let limits = with_those_above(&cgroup)
            .filter_map(|cgroup| Some((self.limit_file(cgroup)?, self.limit(cgroup)?)));
        limits.min_by(|(_, one), (_, other)| one.cpus().total_cmp(&other.cpus()))
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The beginning of a file, as text.
fn start_of(path: &Path) -> Option<String> {
    String::from_utf8(read_start(path, FILE_BYTES).ok()?).ok()
}

#[cfg(test)]
#[path = "cpu_limits_tests.rs"]
pub(crate) mod tests;
