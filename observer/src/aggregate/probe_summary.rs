//! Which series and records belong to which probe, and a probe's summary from a [`Snapshot`].

use std::collections::BTreeMap;

use observer_ebpf::wire::{Counter, FD_ERRNOS, FdSyscall, RecordKind, Series};

use super::{Distribution, Snapshot};
use crate::model::{ProbeState, ProbeSummary};

/// One row: what a probe counts.
#[derive(Clone, Copy, Debug)]
pub struct ProbeSeries {
    /// The probe's name.
    pub probe: &'static str,
    /// Parts by name, with their series; together they are the probe's distribution.
    pub parts: &'static [(&'static str, &'static [Series])],
    /// Kinds of record it sends.
    pub records: &'static [RecordKind],
}

/// The table of all probes, in the order in which the outputs show them.
pub const PROBE_SERIES: &[ProbeSeries] = &[
    ProbeSeries {
        probe: "runqueue",
        parts: &[("wakeup", &[Series::RunqueueWakeup]), ("preempted", &[Series::RunqueuePreempt])],
        records: &[RecordKind::Runqueue],
    },
    ProbeSeries {
        probe: "fault",
        parts: &[
            ("minor", &[Series::FaultMinorUser, Series::FaultMinorKernel]),
            ("major", &[Series::FaultMajorUser, Series::FaultMajorKernel]),
        ],
        records: &[RecordKind::Fault],
    },
    ProbeSeries {
        probe: "reclaim",
        parts: &[
            ("direct", &[Series::ReclaimDirect]),
            ("memcg", &[Series::ReclaimMemcg]),
            ("compaction", &[Series::Compaction]),
        ],
        records: &[RecordKind::Reclaim, RecordKind::Compaction],
    },
    ProbeSeries {
        probe: "mm_syscall",
        parts: &[
            ("mmap", &[Series::Mmap]),
            ("munmap", &[Series::Munmap]),
            ("mremap", &[Series::Mremap]),
            ("brk", &[Series::Brk]),
            ("mprotect", &[Series::Mprotect]),
            ("madvise", &[Series::Madvise]),
        ],
        records: &[RecordKind::MmSyscall],
    },
    ProbeSeries {
        probe: "socket",
        parts: &[("lifetime", &[Series::SocketLifetime])],
        records: &[RecordKind::Socket, RecordKind::FdFailure],
    },
];

impl Snapshot {
    /// One [`ProbeSummary`] per probe of [`PROBE_SERIES`]: the target's stalls, and what was
    /// counted besides. Call it on the delta over a run.
    #[must_use]
    pub fn probe_summaries(&self) -> BTreeMap<String, ProbeSummary> {
        PROBE_SERIES.iter().map(|row| (row.probe.to_owned(), self.probe_summary(row))).collect()
    }

    fn probe_summary(&self, row: &ProbeSeries) -> ProbeSummary {
        let mut whole = Distribution::default();
        let mut parts = BTreeMap::new();
        for (name, series) in row.parts {
            let mut part = Distribution::default();
            for &series in *series {
                part.merge(self.target_distribution(series));
            }
            if row.parts.len() > 1 && part.count() > 0 {
                parts.insert((*name).to_owned(), part.summary());
            }
            whole.merge(&part);
        }
        let coverage = self.coverage.get(row.probe);
        let five = whole.summary();
        ProbeSummary {
            state: coverage.map_or(ProbeState::Unsupported, |coverage| coverage.state),
            tier: coverage.and_then(|coverage| coverage.tier.clone()),
            reason: coverage.map_or_else(
                || Some("no coverage was reported for it".to_owned()),
                |coverage| coverage.reason.clone(),
            ),
            count: five.count,
            sum_ns: five.sum_ns,
            p50_ns: five.p50_ns,
            p99_ns: five.p99_ns,
            max_ns: five.max_ns,
            parts,
            records: row.records.iter().map(|&kind| self.emitted(kind)).sum(),
            // Only the code that has the records knows these.
            unrecorded_ns: 0,
            counters: self.probe_counters(row.probe),
        }
    }

    fn probe_counters(&self, probe: &str) -> BTreeMap<String, i64> {
        let mut counters = BTreeMap::new();
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match probe {
            "reclaim" => {
                let count = self.counter(Counter::KswapdWakeups);
                counters.insert("kswapd_wakeups".to_owned(), signed(count));
            }
            "fault" => {
                let count = self.counter(Counter::FaultsWithoutException);
                if count > 0 {
                    counters.insert("without_exception_all_tasks".to_owned(), signed(count));
                }
            }
            "runqueue" => {
                let counted_ns = self.counter(Counter::TargetSleepBookedNs);
                if counted_ns > 0 {
                    counters.insert("sleep_booked_as_wait_ns".to_owned(), signed(counted_ns));
                }
            }
            "socket" => {
                for (name, counter) in [
                    ("created", Counter::TargetSocketsCreated),
                    ("accepted", Counter::TargetSocketsAccepted),
                    ("released", Counter::TargetSocketsReleased),
                ] {
                    counters.insert(name.to_owned(), signed(self.counter(counter)));
                }
                if let Some(live) = self.target_live_sockets {
                    counters.insert("live".to_owned(), live);
                }
                for call in FdSyscall::ALL {
                    for (position, (_, errno)) in FD_ERRNOS.iter().enumerate() {
                        let count = self.fd_failures(true, call, position);
                        if count > 0 {
                            let name = format!("failed_{}_{errno}", call.name());
                            counters.insert(name, signed(count));
                        }
                    }
                }
            }
            _ => {}
        }
        counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_and_stalling_record_belongs_to_one_probe() {
        for series in Series::ALL {
            let owners = PROBE_SERIES
                .iter()
                .flat_map(|row| row.parts)
                .filter(|(_, parts)| parts.contains(&series))
                .count();
            assert_eq!(owners, 1, "{series:?}");
        }
        for kind in RecordKind::ALL {
            let owners = PROBE_SERIES.iter().filter(|row| row.records.contains(&kind)).count();
            assert_eq!(owners, usize::from(kind != RecordKind::Task), "{kind:?}");
        }
    }
}
