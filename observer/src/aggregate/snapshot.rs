//! The contents of the kernel maps at one instant.

use std::collections::BTreeMap;

use observer_ebpf::wire::{
    COUNTER_SLOTS, Counter, EMITTED_SLOTS, KIND_SLOTS, LOSS_SLOTS, LossKind, RecordKind, SERIES,
    Series,
};

use super::{Distribution, Octaves};
use crate::clock::MonoNanos;
use crate::model::{Conditions, Coverage, LossSummary, SelfSummary};
use crate::probe::Gauge;

/// The distributions of one cgroup, without the target's part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupDistributions {
    /// Path of the cgroup below its mount, or `other` for all cgroups without a row of their own.
    pub name: String,
    /// The series in which something was counted.
    pub series: BTreeMap<Series, Octaves>,
}

/// How many cgroups there are in the histograms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CgroupCounts {
    /// Cgroups with histograms of their own.
    pub with_row: u64,
    /// Cgroups that are counted in the row of the others, since there is no room for more.
    pub without_row: u64,
    /// Cgroups that were removed, and their rows taken back.
    pub removed: u64,
}

/// What the kernel maps hold at an instant, counted since the programs were loaded; or, from
/// [`Snapshot::delta`], what was counted between two instants.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub taken: MonoNanos,
    /// Everything but the target, one distribution a series, indexed by the [`Series`]
    /// discriminant.
    pub rest: Box<[Distribution; SERIES]>,
    /// The target, in the same form.
    pub target: Box<[Distribution; SERIES]>,
    /// Name of the target's row, where there is a target.
    pub target_name: Option<String>,
    /// [`Self::rest`] by cgroup, for the cgroups that still exist.
    pub cgroups: Vec<CgroupDistributions>,
    /// How many cgroups there are in it.
    pub cgroup_counts: CgroupCounts,
    /// Indexed by [`Counter`].
    pub counters: [u64; COUNTER_SLOTS],
    /// Losses of the whole host, indexed as [`LossKind`] describes: ring losses by record kind,
    /// then the rest.
    pub lost: [u64; LOSS_SLOTS],
    /// The target's part of them: at most this much where the programs cannot know
    /// ([`LossKind::owner_is_known`]).
    pub lost_target: [u64; LOSS_SLOTS],
    /// Records submitted, by record kind.
    pub emitted: [u64; EMITTED_SLOTS],
    /// Floors in force, nanoseconds by record kind; `u64::MAX` where no record is sent.
    pub floors_ns: [u64; KIND_SLOTS],
    /// How often they were changed.
    pub floor_changes: [u64; KIND_SLOTS],
    /// The state of the trace file, where one is written.
    pub trace: Option<TraceState>,
    /// IP sockets the target holds now, where known.
    pub target_live_sockets: Option<i64>,
    /// The conditions under which the target runs.
    pub conditions: Conditions,
    /// Probes by name.
    pub coverage: BTreeMap<String, Coverage>,
    /// Own cost.
    pub self_usage: SelfSummary,
}

/// The state of the trace file of a daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceState {
    /// It could not be written any more.
    pub ended: bool,
    /// Events that came after that.
    pub missing: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            taken: MonoNanos::default(),
            rest: empty(),
            target: empty(),
            target_name: None,
            cgroups: Vec::new(),
            cgroup_counts: CgroupCounts::default(),
            counters: [0; COUNTER_SLOTS],
            lost: [0; LOSS_SLOTS],
            lost_target: [0; LOSS_SLOTS],
            emitted: [0; EMITTED_SLOTS],
            floors_ns: [u64::MAX; KIND_SLOTS],
            floor_changes: [0; KIND_SLOTS],
            trace: None,
            target_live_sockets: None,
            conditions: Conditions::default(),
            coverage: BTreeMap::new(),
            self_usage: SelfSummary::default(),
        }
    }
}

/// Distributions in which nothing was counted.
fn empty() -> Box<[Distribution; SERIES]> {
    Box::new(std::array::from_fn(|_| Distribution::default()))
}

fn subtract<const N: usize>(later: &[u64; N], earlier: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|index| later[index].saturating_sub(earlier[index]))
}

fn delta_of_scope(
    later: &[Distribution; SERIES],
    earlier: &[Distribution; SERIES],
) -> Box<[Distribution; SERIES]> {
    Box::new(std::array::from_fn(|series| later[series].delta(&earlier[series])))
}

impl Snapshot {
    /// What was counted since `earlier`. Gauges (live sockets, coverage, memory) are those of
    /// `self`. Cgroups are matched by name.
    #[must_use]
    pub fn delta(&self, earlier: &Self) -> Self {
        let cgroups = self
            .cgroups
            .iter()
            .map(|cgroup| {
                let mut delta = cgroup.clone();
                if let Some(before) = earlier.cgroups.iter().find(|old| old.name == cgroup.name) {
                    for (series, theirs) in &before.series {
                        if let Some(mine) = delta.series.get_mut(series) {
                            *mine = mine.delta(theirs);
                        }
                    }
                }
                delta
            })
            .collect();
        let (own, before) = (&self.self_usage, &earlier.self_usage);
        Self {
            taken: self.taken,
            rest: delta_of_scope(&self.rest, &earlier.rest),
            target: delta_of_scope(&self.target, &earlier.target),
            target_name: self.target_name.clone(),
            cgroups,
            cgroup_counts: self.cgroup_counts,
            counters: subtract(&self.counters, &earlier.counters),
            lost: subtract(&self.lost, &earlier.lost),
            lost_target: subtract(&self.lost_target, &earlier.lost_target),
            emitted: subtract(&self.emitted, &earlier.emitted),
            floors_ns: self.floors_ns,
            floor_changes: subtract(&self.floor_changes, &earlier.floor_changes),
            trace: self.trace,
            target_live_sockets: self.target_live_sockets,
            conditions: self.conditions.clone(),
            coverage: self.coverage.clone(),
            self_usage: SelfSummary {
                cpu_seconds: (own.cpu_seconds - before.cpu_seconds).max(0.0),
                max_rss_bytes: own.max_rss_bytes,
                rss_bytes: own.rss_bytes,
                rss_bound_bytes: own.rss_bound_bytes,
                bpf_run_time_ns: own.bpf_run_time_ns.saturating_sub(before.bpf_run_time_ns),
                bpf_run_count: own.bpf_run_count.saturating_sub(before.bpf_run_count),
                bpf_map_bytes: own.bpf_map_bytes,
                drain_wakeups: own.drain_wakeups.saturating_sub(before.drain_wakeups),
                added_cpu_share: own.added_cpu_share,
            },
        }
    }

    /// A series of the target.
    #[must_use]
    pub const fn target_distribution(&self, series: Series) -> &Distribution {
        &self.target[series as usize]
    }

    /// A series of the whole host.
    #[must_use]
    pub fn host_distribution(&self, series: Series) -> Distribution {
        let mut whole = self.rest[series as usize].clone();
        whole.merge(self.target_distribution(series));
        whole
    }

    /// A plain counter.
    #[must_use]
    pub const fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// A number that user space works out; `None` where it is not known.
    #[must_use]
    pub const fn gauge(&self, gauge: Gauge) -> Option<i64> {
        match gauge {
            Gauge::TargetLiveSockets => self.target_live_sockets,
        }
    }

    /// Records of a kind that were submitted.
    #[must_use]
    pub const fn emitted(&self, kind: RecordKind) -> u64 {
        self.emitted[kind as usize]
    }

    /// Records of a kind that found the ring full.
    #[must_use]
    pub const fn ring_lost(&self, kind: RecordKind) -> u64 {
        self.lost[kind as usize]
    }

    /// Other losses of a kind, whole host.
    #[must_use]
    pub const fn other_lost(&self, kind: LossKind) -> u64 {
        self.lost[KIND_SLOTS + kind as usize]
    }

    /// The target's part of the same, or what it is at most.
    #[must_use]
    pub const fn target_lost(&self, kind: LossKind) -> u64 {
        self.lost_target[KIND_SLOTS + kind as usize]
    }

    /// Everything lost. `total` is the records that could not be delivered; what was lost
    /// otherwise (a begin that was not seen, a full table) is in `by_kind` alone.
    #[must_use]
    pub fn loss_summary(&self) -> LossSummary {
        let records = RecordKind::ALL.map(|kind| (kind as usize, kind.name()));
        let others = LossKind::ALL.map(|kind| (KIND_SLOTS + kind as usize, kind.name()));
        let by_kind = |lost: &[u64; LOSS_SLOTS]| {
            let all = records.iter().chain(&others);
            all.filter(|(index, _)| lost[*index] > 0)
                .map(|(index, name)| ((*name).to_owned(), lost[*index]))
                .collect()
        };
        LossSummary {
            total: RecordKind::ALL
                .into_iter()
                .fold(0, |total, kind| total.saturating_add(self.ring_lost(kind))),
            by_kind: by_kind(&self.lost),
            target_by_kind: Some(by_kind(&self.lost_target)),
            ..LossSummary::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{FD_FAILURES, FdSyscall, TARGET_FD_FAILURES, fd_failure};

    use super::*;
    use crate::model::ProbeState;

    fn of(series: Series, durations: &[u64]) -> Box<[Distribution; SERIES]> {
        let mut scope = empty();
        durations.iter().for_each(|ns| scope[series as usize].record(*ns));
        scope
    }

    fn cgroup(name: &str, series: Series, durations: &[u64]) -> CgroupDistributions {
        let octaves = Octaves::from(&of(series, durations)[series as usize]);
        CgroupDistributions { name: name.into(), series: [(series, octaves)].into() }
    }

    #[test]
    fn a_delta_subtracts_counts_and_keeps_gauges() {
        let mut earlier = Snapshot {
            target: of(Series::Mmap, &[1_000]),
            cgroups: vec![cgroup("/a", Series::Mmap, &[7_000])],
            target_live_sockets: Some(3),
            ..Snapshot::default()
        };
        earlier.emitted[RecordKind::Fault as usize] = 10;
        earlier.self_usage.cpu_seconds = 1.0;
        let mut later = Snapshot {
            taken: MonoNanos(77),
            target: of(Series::Mmap, &[1_000, 9_000]),
            rest: of(Series::Mmap, &[5]),
            cgroups: vec![
                cgroup("/new", Series::Mmap, &[5]),
                cgroup("/a", Series::Mmap, &[7_000, 8_000]),
            ],
            target_live_sockets: Some(5),
            ..earlier.clone()
        };
        later.emitted[RecordKind::Fault as usize] = 25;
        later.self_usage.cpu_seconds = 1.5;
        later.self_usage.max_rss_bytes = 4_096;
        let delta = later.delta(&earlier);
        assert_eq!(delta.target_distribution(Series::Mmap).sum_ns, 9_000);
        assert_eq!(delta.host_distribution(Series::Mmap).count(), 2);
        let by_cgroup: Vec<_> =
            delta.cgroups.iter().map(|cgroup| cgroup.series[&Series::Mmap].sum_ns).collect();
        assert_eq!(by_cgroup, [5, 8_000]);
        assert_eq!(delta.emitted(RecordKind::Fault), 15);
        assert_eq!(delta.target_live_sockets, Some(5));
        assert_eq!(delta.self_usage.cpu_seconds, 0.5);
        assert_eq!(delta.self_usage.max_rss_bytes, 4_096);
    }

    #[test]
    fn losses_are_named_and_only_undelivered_records_add_up() {
        let mut snapshot = Snapshot::default();
        snapshot.lost[RecordKind::Runqueue as usize] = 2;
        snapshot.lost[RecordKind::Fault as usize] = 3;
        snapshot.lost[KIND_SLOTS + LossKind::EndWithoutBegin as usize] = 40;
        snapshot.lost_target[RecordKind::Fault as usize] = 3;
        snapshot.lost_target[KIND_SLOTS + LossKind::EndWithoutBegin as usize] = 1;
        let loss = snapshot.loss_summary();
        assert_eq!(loss.total, 5);
        let named: Vec<_> = loss.by_kind.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(named, [("end_without_begin", 40), ("fault", 3), ("runqueue", 2)]);
        let target: Vec<_> =
            loss.target_by_kind.iter().flatten().map(|(name, n)| (&**name, *n)).collect();
        assert_eq!(target, [("end_without_begin", 1), ("fault", 3)]);
    }

    #[test]
    fn a_probe_summary_joins_its_series() {
        let mut target = of(Series::FaultMinorUser, &[1_000, 2_000]);
        target[Series::FaultMinorKernel as usize].record(3_000);
        target[Series::FaultMajorUser as usize].record(9_000_000);
        let mut snapshot = Snapshot {
            target,
            rest: of(Series::FaultMinorUser, &[1]),
            target_live_sockets: Some(4),
            ..Snapshot::default()
        };
        let accept = fd_failure(FdSyscall::Accept, 0);
        snapshot.counters[TARGET_FD_FAILURES + accept] = 7;
        snapshot.counters[FD_FAILURES + accept] = 9;
        snapshot.emitted[RecordKind::Fault as usize] = 4;
        snapshot.coverage.insert(
            "fault".into(),
            Coverage {
                state: ProbeState::Attached,
                tier: Some("perf_event".into()),
                reason: None,
                detached: None,
            },
        );
        let probes = snapshot.probe_summaries();
        let fault = &probes["fault"];
        assert_eq!((fault.count, fault.sum_ns, fault.max_ns), (4, 9_006_000, 9_000_000));
        assert_eq!(fault.parts["minor"].count, 3);
        assert_eq!(fault.parts["major"].count, 1);
        assert_eq!((fault.state, fault.records), (ProbeState::Attached, 4));
        assert_eq!(probes["socket"].counters["failed_accept_EMFILE"], 7);
        assert_eq!(probes["socket"].counters["live"], 4);
        assert_eq!(probes["reclaim"].counters["kswapd_wakeups"], 0);
        assert_eq!(probes["reclaim"].state, ProbeState::Unsupported);
    }
}
