//! The limits of CPU time on the cgroups of the target, watched through a run.

use std::collections::BTreeSet;

use super::Watch;
use super::cgroup_search::{CgroupSearch, LimitedCgroups};
use crate::clock::MonoNanos;
use crate::host::Cgroups;
use crate::host::cpu_limits::{CpuCgroups, CpuCounts};
use crate::model::{Conditions, CpuLimit, CpuLimitSummary};
use crate::target::Membership;

/// Every cgroup on the paths from those of the target up to the root.
pub(super) struct CpuLimitWatch {
    cgroups: Option<CpuCgroups>,
    watched: LimitedCgroups<Watched>,
    search: CgroupSearch,
}

impl CpuLimitWatch {
    pub(super) fn start() -> Self {
        Self::of(CpuCgroups::of(&Cgroups::read()))
    }

    fn of(cgroups: Option<CpuCgroups>) -> Self {
        Self { cgroups, watched: LimitedCgroups::new(), search: CgroupSearch::new() }
    }

    /// Watches these cgroups from now on, and those above them.
    fn add(&mut self, found: &BTreeSet<String>) {
        let Some(cgroups) = &self.cgroups else { return };
        self.watched.add(found, |cgroup| Watched::new(cgroups, cgroup));
    }

    fn read(&mut self) {
        let Some(cgroups) = &self.cgroups else { return };
        self.watched.each(|cgroup, watched| watched.read(cgroups, cgroup));
    }

    /// The limits so far, and how many cgroups there are besides that have one or may have one.
    fn limits(&self) -> (Vec<CpuLimitSummary>, u64) {
        self.watched.limits(
            |watched| Some(&watched.summary).filter(|summary| summary.limit.quota_us > 0),
            // Those that held threads for longest are kept.
            |summary| summary.throttled_ns,
        )
    }
}

/// What a cgroup counts after the last reading before it is removed is not known.
impl Watch for CpuLimitWatch {
    fn look(&mut self, membership: &Membership) {
        let cgroups = self.cgroups.as_ref();
        if let Some(found) = self.search.look(membership, |tgid| cgroups?.cgroup_of(tgid)) {
            self.add(&found);
        }
        self.read();
    }

    fn note(&self, conditions: &mut Conditions) {
        (conditions.cpu_limits, conditions.cpu_limits_beyond) = self.limits();
    }
}

struct Watched {
    /// As last read.
    limit: Option<CpuLimit>,
    counts: CpuCounts,
    read_at: MonoNanos,
    /// What it comes to so far. While there was no limit yet, its quota is 0, which no limit has.
    summary: CpuLimitSummary,
}

impl Watched {
    /// `None` where the CPU time cannot be limited.
    fn new(cgroups: &CpuCgroups, cgroup: &str) -> Option<Self> {
        let (limit, counts) = (cgroups.limit(cgroup), cgroups.counts(cgroup)?);
        let summary = CpuLimitSummary {
            cgroup: cgroup.to_owned(),
            version: cgroups.version(),
            limit: limit.unwrap_or_default(),
            usage_ns: counts.usage_ns.map(|_| 0),
            ..CpuLimitSummary::default()
        };
        Some(Self { limit, counts, read_at: MonoNanos::now(), summary })
    }

    /// Takes in what the kernel counted since the last reading. A cgroup that is gone keeps what was read
    /// before.
    fn read(&mut self, cgroups: &CpuCgroups, cgroup: &str) {
        let limit = cgroups.limit(cgroup);
        if limit.is_none() && self.limit.is_none() {
            return;
        }
        let Some(now) = cgroups.counts(cgroup) else { return };
        // One that was made again counts from 0.
        let same = now.cgroup_id == self.counts.cgroup_id;
        let before = if same { self.counts } else { CpuCounts::default() };
        let add = |sum: &mut u64, now: u64, before: u64| {
            *sum = sum.saturating_add(now.saturating_sub(before));
        };
        let summary = &mut self.summary;
        add(&mut summary.periods, now.periods, before.periods);
        add(&mut summary.throttled_periods, now.throttled_periods, before.throttled_periods);
        add(&mut summary.throttled_ns, now.throttled_ns, before.throttled_ns);
        match (&mut summary.usage_ns, now.usage_ns) {
            (Some(sum), Some(now)) => add(sum, now, before.usage_ns.unwrap_or(0)),
            (sum, _) => *sum = None,
        }
        let read_at = MonoNanos::now();
        summary.observed_ns += read_at.since(self.read_at);
        summary.changed |= limit != self.limit;
        summary.limit = limit.unwrap_or(summary.limit);
        (self.limit, self.counts, self.read_at) = (limit, now, read_at);
    }
}

#[cfg(test)]
#[path = "cpu_limits_tests.rs"]
mod tests;
