//! The CPUs that the target may use: what the hypervisor took of their time, and their frequency, watched
//! through a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Watch;
use crate::host::cpu_time::{self, CpuTime};
use crate::host::process;
use crate::model::{Conditions, CpuTimeSummary, HostCpuTimeSummary, Tgid};
use crate::pace::rest;
use crate::target::Membership;

/// The affinity of a process may change, which is looked for after this time.
const SEARCH_INTERVAL: Duration = Duration::from_secs(10);
/// Processes whose affinity is read.
const PROCESSES_MAX: usize = 64;
/// CPUs whose frequency is read each time.
const FREQUENCIES_MAX: usize = 64;
/// CPUs that are kept.
const KEPT_MAX: usize = 64;

/// All CPUs of the host, of which some are the target's.
pub(super) struct CpuTimeWatch {
    watched: BTreeMap<u32, Watched>,
    /// Those that the target could use at any time.
    allowed: BTreeSet<u32>,
    members: BTreeSet<Tgid>,
    next_search: Instant,
    ticks_hz: u64,
}

impl CpuTimeWatch {
    pub(super) fn start() -> Self {
        let mut watch = Self::with(rustix::param::clock_ticks_per_second());
        watch.read(&cpu_time::cpu_times().unwrap_or_default());
        watch
    }

    fn with(ticks_hz: u64) -> Self {
        Self {
            watched: BTreeMap::new(),
            allowed: BTreeSet::new(),
            members: BTreeSet::new(),
            next_search: Instant::now(),
            ticks_hz: ticks_hz.max(1),
        }
    }

    fn read(&mut self, times: &[(u32, CpuTime)]) {
        for (cpu, now) in times {
            let watched = self
                .watched
                .entry(*cpu)
                .or_insert_with(|| Watched { last: *now, ..Watched::default() });
            watched.read(*now);
        }
    }

    /// Takes in the frequencies of the target's CPUs.
    fn read_frequencies(
        &mut self,
        of: impl Fn(u32) -> Option<u64>,
        max_of: impl Fn(u32) -> Option<u64>,
    ) {
        for cpu in self.allowed.iter().take(FREQUENCIES_MAX) {
            let Some(watched) = self.watched.get_mut(cpu) else { continue };
            // Without a highest one, the host tells none at all.
            watched.max_khz = watched.max_khz.or_else(|| max_of(*cpu));
            let Some(khz) = watched.max_khz.and_then(|_| of(*cpu)) else { continue };
            watched.lowest_khz = Some(watched.lowest_khz.map_or(khz, |lowest| lowest.min(khz)));
            watched.highest_khz = watched.highest_khz.max(Some(khz));
            rest();
        }
    }

    fn search(&mut self, membership: &Membership) {
        let members = membership.tgids();
        let now = Instant::now();
        if members == self.members && now < self.next_search {
            return;
        }
        for tgid in members.iter().take(PROCESSES_MAX) {
            rest();
            self.allowed
                .extend(process::status(*tgid).into_iter().flat_map(|status| status.allowed_cpus));
        }
        self.members = members;
        self.next_search = now + SEARCH_INTERVAL;
    }

    /// The target's CPUs, of many those of which most was taken, and all of the host.
    fn so_far(&self) -> (Vec<CpuTimeSummary>, Option<HostCpuTimeSummary>) {
        let ns = |ticks: u64| {
            u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_hz))
                .unwrap_or(u64::MAX)
        };
        let of_target = self.watched.iter().filter(|(cpu, _)| self.allowed.contains(cpu));
        let mut kept: Vec<CpuTimeSummary> = of_target
            .map(|(cpu, watched)| CpuTimeSummary {
                cpu: *cpu,
                total_ns: ns(watched.sum.total_ticks),
                busy_ns: ns(watched.sum.busy_ticks),
                stolen_ns: ns(watched.sum.stolen_ticks),
                lowest_khz: watched.lowest_khz,
                highest_khz: watched.highest_khz,
                max_khz: watched.max_khz,
            })
            .collect();
        if kept.len() > KEPT_MAX {
            kept.sort_by_key(|cpu| std::cmp::Reverse(cpu.stolen_ns));
            kept.truncate(KEPT_MAX);
            kept.sort_by_key(|cpu| cpu.cpu);
        }
        let host = self.watched.values().fold(HostCpuTimeSummary::default(), |sum, watched| {
            HostCpuTimeSummary {
                total_ns: sum.total_ns.saturating_add(ns(watched.sum.total_ticks)),
                stolen_ns: sum.stolen_ns.saturating_add(ns(watched.sum.stolen_ticks)),
            }
        });
        (kept, (!self.watched.is_empty()).then_some(host))
    }
}

impl Watch for CpuTimeWatch {
    fn look(&mut self, membership: &Membership) {
        self.search(membership);
        self.read(&cpu_time::cpu_times().unwrap_or_default());
        self.read_frequencies(cpu_time::frequency_khz, cpu_time::highest_frequency_khz);
    }

    fn note(&self, conditions: &mut Conditions) {
        (conditions.cpu_times, conditions.host_cpu_time) = self.so_far();
    }
}

/// A CPU. One that goes offline keeps what was read, and is read on when it comes back.
#[derive(Default)]
struct Watched {
    last: CpuTime,
    sum: CpuTime,
    lowest_khz: Option<u64>,
    highest_khz: Option<u64>,
    max_khz: Option<u64>,
}

impl Watched {
    fn read(&mut self, now: CpuTime) {
        // Some of the kernel's counters go back by a tick.
        let add = |sum: &mut u64, now: u64, last: u64| {
            *sum = sum.saturating_add(now.saturating_sub(last));
        };
        add(&mut self.sum.total_ticks, now.total_ticks, self.last.total_ticks);
        add(&mut self.sum.busy_ticks, now.busy_ticks, self.last.busy_ticks);
        add(&mut self.sum.stolen_ticks, now.stolen_ticks, self.last.stolen_ticks);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(total_ticks: u64, busy_ticks: u64, stolen_ticks: u64) -> CpuTime {
        CpuTime { total_ticks, busy_ticks, stolen_ticks }
    }

    #[test]
    fn what_was_stolen_of_the_targets_cpus_and_of_the_host_is_added_up() {
        let mut watch = CpuTimeWatch::with(100);
        assert_eq!(watch.so_far(), (Vec::new(), None), "nothing was read, which is not 0");
        watch.read(&[(0, time(1_000, 500, 40)), (1, time(1_000, 500, 0))]);
        watch.allowed = [1, 7].into();
        watch.read(&[(0, time(1_100, 550, 41)), (1, time(1_100, 510, 30))]);
        // CPU 1 is offline, and CPU 2 comes.
        watch.read(&[(0, time(1_200, 600, 41)), (2, time(9, 9, 9))]);
        watch.read(&[(1, time(1_099, 509, 33)), (2, time(9, 9, 9))]);
        let (cpus, host) = watch.so_far();
        let one = CpuTimeSummary {
            cpu: 1,
            total_ns: 1_000_000_000,
            busy_ns: 100_000_000,
            stolen_ns: 330_000_000,
            ..CpuTimeSummary::default()
        };
        assert_eq!(cpus, [one]);
        let wanted = HostCpuTimeSummary { total_ns: 3_000_000_000, stolen_ns: 340_000_000 };
        assert_eq!(host, Some(wanted));
    }

    #[test]
    fn the_lowest_and_the_highest_frequency_are_kept_where_there_are_any() {
        let mut watch = CpuTimeWatch::with(100);
        watch.allowed = [0, 1].into();
        watch.read(&[(0, time(1, 1, 1)), (1, time(1, 1, 1))]);
        for khz in [900, 700, 800] {
            watch.read_frequencies(
                |cpu| (cpu == 0).then_some(khz),
                |cpu| (cpu == 0).then_some(1_000),
            );
        }
        let (cpus, _) = watch.so_far();
        let of = |cpu: usize| (cpus[cpu].lowest_khz, cpus[cpu].highest_khz, cpus[cpu].max_khz);
        assert_eq!(of(0), (Some(700), Some(900), Some(1_000)));
        assert_eq!(of(1), (None, None, None));
    }

    #[test]
    fn of_many_cpus_those_of_which_most_was_taken_are_kept() {
        let mut watch = CpuTimeWatch::with(100);
        let all: Vec<u32> = (0..200).collect();
        watch.allowed = all.iter().copied().collect();
        watch.read(&all.iter().map(|cpu| (*cpu, time(0, 0, 0))).collect::<Vec<_>>());
        watch.read(
            &all.iter().map(|cpu| (*cpu, time(1_000, 0, u64::from(*cpu)))).collect::<Vec<_>>(),
        );
        let (cpus, _) = watch.so_far();
        let kept: Vec<u32> = cpus.iter().map(|cpu| cpu.cpu).collect();
        assert_eq!(kept, (136..200).collect::<Vec<_>>());
    }
}
