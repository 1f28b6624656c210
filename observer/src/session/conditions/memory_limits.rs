//! The limits of memory on the cgroups of the target, watched through a run.

use std::collections::BTreeSet;

use super::Watch;
use super::cgroup_search::{CgroupSearch, LimitedCgroups};
use crate::clock::MonoNanos;
use crate::host::Cgroups;
use crate::host::memory_limits::{MemoryCgroups, MemoryCounts, MemoryLimits, host_oom_kills};
use crate::model::{Conditions, MemoryLimitSummary};
use crate::target::Membership;

/// Every cgroup on the paths from those of the target up to the root.
pub(super) struct MemoryLimitWatch {
    cgroups: Option<MemoryCgroups>,
    watched: LimitedCgroups<Watched>,
    search: CgroupSearch,
    /// Kills on the whole host at the begin, and now.
    host_oom_kills: Option<(u64, u64)>,
}

impl MemoryLimitWatch {
    pub(super) fn start() -> Self {
        Self::of(MemoryCgroups::of(&Cgroups::read()))
    }

    fn of(cgroups: Option<MemoryCgroups>) -> Self {
        Self {
            cgroups,
            watched: LimitedCgroups::new(),
            search: CgroupSearch::new(),
            host_oom_kills: host_oom_kills().map(|kills| (kills, kills)),
        }
    }

    /// Watches these cgroups from now on, and those above them.
    fn add(&mut self, found: &BTreeSet<String>) {
        let Some(cgroups) = &self.cgroups else { return };
        self.watched.add(found, |cgroup| Watched::new(cgroups, cgroup));
    }

    fn read(&mut self) {
        if let (Some((_, last)), Some(now)) = (&mut self.host_oom_kills, host_oom_kills()) {
            *last = now;
        }
        let Some(cgroups) = &self.cgroups else { return };
        self.watched.each(|cgroup, watched| watched.read(cgroups, cgroup));
    }

    /// The limits so far, and how many cgroups there are besides that have one or may have one. A cgroup
    /// without a limit in which a process was killed is among them.
    fn limits(&self) -> (Vec<MemoryLimitSummary>, u64) {
        let killed =
            |summary: &MemoryLimitSummary| summary.oom_kills.is_some_and(|kills| kills > 0);
        let is_told = |summary: &&MemoryLimitSummary| summary.is_limited() || killed(summary);
        self.watched.limits(
            |watched| Some(&watched.summary).filter(is_told),
            |limit| (limit.oom_kills, limit.limit_hits, limit.high_hits),
        )
    }
}

/// What a cgroup counts after the last reading before it is removed is not known.
impl Watch for MemoryLimitWatch {
    fn look(&mut self, membership: &Membership) {
        let cgroups = self.cgroups.as_ref();
        if let Some(found) = self.search.look(membership, |tgid| cgroups?.cgroup_of(tgid)) {
            self.add(&found);
        }
        self.read();
    }

    fn note(&self, conditions: &mut Conditions) {
        (conditions.memory_limits, conditions.memory_limits_beyond) = self.limits();
        conditions.host_oom_kills =
            self.host_oom_kills.map(|(first, last)| last.saturating_sub(first));
    }
}

struct Watched {
    /// As last read.
    limits: MemoryLimits,
    counts: MemoryCounts,
    read_at: MonoNanos,
    /// What it comes to so far.
    summary: MemoryLimitSummary,
}

impl Watched {
    /// `None` where the memory cannot be limited.
    fn new(cgroups: &MemoryCgroups, cgroup: &str) -> Option<Self> {
        let (limits, counts) = (cgroups.limits(cgroup)?, cgroups.counts(cgroup)?);
        let summary = MemoryLimitSummary {
            cgroup: cgroup.to_owned(),
            version: cgroups.version(),
            max_bytes: limits.max_bytes,
            high_bytes: limits.high_bytes,
            usage_bytes: counts.usage_bytes,
            highest_bytes: counts.usage_bytes,
            limit_hits: counts.limit_hits.map(|_| 0),
            high_hits: counts.high_hits.map(|_| 0),
            oom_kills: counts.oom_kills.map(|_| 0),
            ..MemoryLimitSummary::default()
        };
        Some(Self { limits, counts, read_at: MonoNanos::now(), summary })
    }

    /// Takes in what the kernel counted since the last reading. A cgroup that is gone keeps what was read
    /// before.
    fn read(&mut self, cgroups: &MemoryCgroups, cgroup: &str) {
        let (Some(limits), Some(now)) = (cgroups.limits(cgroup), cgroups.counts(cgroup)) else {
            return;
        };
        // One that was made again counts from 0.
        let same = now.cgroup_id == self.counts.cgroup_id;
        let before = if same { self.counts } else { MemoryCounts::default() };
        let add = |sum: &mut Option<u64>, now: Option<u64>, before: Option<u64>| {
            *sum = sum
                .zip(now)
                .map(|(sum, now)| sum.saturating_add(now.saturating_sub(before.unwrap_or(0))));
        };
        let summary = &mut self.summary;
        add(&mut summary.limit_hits, now.limit_hits, before.limit_hits);
        add(&mut summary.high_hits, now.high_hits, before.high_hits);
        add(&mut summary.oom_kills, now.oom_kills, before.oom_kills);
        summary.usage_bytes = now.usage_bytes;
        // A peak that rose did so since the last reading.
        let risen = now.peak_bytes.filter(|peak| *peak > before.peak_bytes.unwrap_or(0));
        summary.highest_bytes = summary.highest_bytes.max(now.usage_bytes).max(risen);
        let read_at = MonoNanos::now();
        summary.observed_ns += read_at.since(self.read_at);
        summary.changed |= limits != self.limits;
        if limits != MemoryLimits::default() {
            (summary.max_bytes, summary.high_bytes) = (limits.max_bytes, limits.high_bytes);
        }
        (self.limits, self.counts, self.read_at) = (limits, now, read_at);
    }
}

#[cfg(test)]
#[path = "memory_limits_tests.rs"]
mod tests;
