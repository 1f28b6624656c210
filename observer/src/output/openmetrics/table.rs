//! The table of metrics, each with the function that fills it.

use std::fmt;

use observer_ebpf::wire::{Counter, FD_ERRNOS, FdSyscall, LossKind, RecordKind, Series};

use super::{Family, Kind, LIFETIME, Metric, Rows, STALL};
use crate::aggregate::Snapshot;
use crate::model::ProbeState;

const WAITS: Rows =
    &[(Series::RunqueueWakeup, &["wakeup"]), (Series::RunqueuePreempt, &["preempted"])];

const FAULTS: Rows = &[
    (Series::FaultMinorUser, &["minor", "user"]),
    (Series::FaultMinorKernel, &["minor", "kernel"]),
    (Series::FaultMajorUser, &["major", "user"]),
    (Series::FaultMajorKernel, &["major", "kernel"]),
];

const RECLAIM: Rows = &[(Series::ReclaimDirect, &["direct"]), (Series::ReclaimMemcg, &["memcg"])];

const COMPACTION: Rows = &[(Series::Compaction, &[])];

const MM_CALLS: Rows = &[
    (Series::Mmap, &["mmap"]),
    (Series::Munmap, &["munmap"]),
    (Series::Mremap, &["mremap"]),
    (Series::Brk, &["brk"]),
    (Series::Mprotect, &["mprotect"]),
    (Series::Madvise, &["madvise"]),
];

const LIFETIMES: Rows = &[(Series::SocketLifetime, &[])];

fn fd_failures(snapshot: &Snapshot, family: &mut Family<'_>, target: bool) -> fmt::Result {
    for call in FdSyscall::ALL {
        for (position, (_, errno)) in FD_ERRNOS.iter().enumerate() {
            let count = snapshot.fd_failures(target, call, position);
            family.counter([call.name(), errno], count)?;
        }
    }
    Ok(())
}

fn sockets(family: &mut Family<'_>, counts: [u64; 3]) -> fmt::Result {
    for (event, count) in ["created", "accepted", "released"].into_iter().zip(counts) {
        family.counter([event], count)?;
    }
    Ok(())
}

/// The kinds of record that are sent and have a floor, with it.
fn floors(snapshot: &Snapshot) -> impl Iterator<Item = (RecordKind, u64)> {
    crate::probe::with_floor()
        .map(|(kind, _)| (kind, snapshot.floors_ns[kind as usize]))
        .filter(|(_, floor_ns)| *floor_ns != u64::MAX)
}

/// All metrics, in the order they are written and documented.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "observer_build",
        kind: Kind::Info,
        unit: None,
        labels: &["version"],
        help: "The running observer",
        fill: |_, family| family.info([env!("CARGO_PKG_VERSION")]),
    },
    Metric {
        name: "observer_probe_attached",
        kind: Kind::Gauge,
        unit: None,
        labels: &["probe", "tier", "state"],
        help: "1 if the probe works, completely or in part; 0 if it does not",
        fill: |snapshot, family| {
            for (probe, coverage) in &snapshot.coverage {
                let works = matches!(coverage.state, ProbeState::Attached | ProbeState::Partial);
                let tier = coverage.tier.as_deref().unwrap_or("none");
                family.gauge([probe, tier, coverage.state.name()], works.into())?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_probe_detached",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["probe"],
        help: "Time for which the probe was detached to keep the budget: what happened meanwhile is \
               in none of its numbers",
        fill: |snapshot, family| {
            for (probe, coverage) in &snapshot.coverage {
                let detached_ns = coverage.detached.as_ref().map_or(0, |pauses| pauses.total_ns);
                family.counter_f64([probe], detached_ns as f64 / 1e9)?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_added_cpu",
        kind: Kind::Gauge,
        unit: Some("ratio"),
        labels: &["bound"],
        help: "CPU time that observer adds to the host, as a share of that of all CPUs: its own \
               threads, its BPF programs and their hooks; the mean since the start and its 95 % \
               interval",
        fill: |snapshot, family| {
            let Some(added) = snapshot.self_usage.added_cpu_share else { return Ok(()) };
            family.gauge_f64(["mean"], added.share)?;
            family.gauge_f64(["lower"], added.ci95[0])?;
            family.gauge_f64(["upper"], added.ci95[1])
        },
    },
    Metric {
        name: "observer_runqueue_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target", "reason"],
        help: "Time from being able to run to running, by how the wait began, all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, WAITS, STALL),
    },
    Metric {
        name: "observer_host_runqueue_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["reason"],
        help: "Time from being able to run to running, by how the wait began, all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, WAITS, STALL),
    },
    Metric {
        name: "observer_fault_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target", "kind", "mode"],
        help: "Time inside a page fault, minor or major, taken in user or kernel mode, all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, FAULTS, STALL),
    },
    Metric {
        name: "observer_host_fault_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["kind", "mode"],
        help: "Time inside a page fault, minor or major, taken in user or kernel mode, all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, FAULTS, STALL),
    },
    Metric {
        name: "observer_reclaim_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target", "scope"],
        help: "Time in memory reclaim, for the host (direct) or a cgroup limit (memcg), all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, RECLAIM, STALL),
    },
    Metric {
        name: "observer_host_reclaim_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["scope"],
        help: "Time in memory reclaim, for the host (direct) or a cgroup limit (memcg), all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, RECLAIM, STALL),
    },
    Metric {
        name: "observer_compaction_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target"],
        help: "Time in a memory compaction run, all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, COMPACTION, STALL),
    },
    Metric {
        name: "observer_host_compaction_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &[],
        help: "Time in a memory compaction run, all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, COMPACTION, STALL),
    },
    Metric {
        name: "observer_mm_syscall_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target", "call"],
        help: "Time inside memory-management system calls, all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, MM_CALLS, STALL),
    },
    Metric {
        name: "observer_host_mm_syscall_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["call"],
        help: "Time inside memory-management system calls, all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, MM_CALLS, STALL),
    },
    Metric {
        name: "observer_socket_lifetime",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "target"],
        help: "Time from creation or acceptance of an IP socket to its release, all tasks by cgroup",
        fill: |snapshot, family| family.per_cgroup(snapshot, LIFETIMES, LIFETIME),
    },
    Metric {
        name: "observer_host_socket_lifetime",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &[],
        help: "Time from creation or acceptance of an IP socket to its release, all tasks of the host together",
        fill: |snapshot, family| family.host(snapshot, LIFETIMES, LIFETIME),
    },
    Metric {
        name: "observer_cgroups",
        kind: Kind::Gauge,
        unit: None,
        labels: &["histograms"],
        help: "Cgroups in which something was counted and that exist: with histograms of their own, \
               or counted as cgroup=\"other\" since there is no room for more",
        fill: |snapshot, family| {
            let counts = snapshot.cgroup_counts;
            family.gauge(["own"], signed(counts.with_row))?;
            family.gauge(["other"], signed(counts.without_row))
        },
    },
    Metric {
        name: "observer_cgroups_removed",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Cgroups in which something was counted and that were removed since",
        fill: |snapshot, family| family.counter([], snapshot.cgroup_counts.removed),
    },
    Metric {
        name: "observer_sockets",
        kind: Kind::Counter,
        unit: None,
        labels: &["event"],
        help: "IP sockets created, accepted and released, all tasks",
        fill: |snapshot, family| {
            let count = |counter| snapshot.counter(counter);
            sockets(
                family,
                [
                    count(Counter::SocketsCreated),
                    count(Counter::SocketsAccepted),
                    count(Counter::SocketsReleased),
                ],
            )
        },
    },
    Metric {
        name: "observer_target_sockets",
        kind: Kind::Counter,
        unit: None,
        labels: &["event"],
        help: "IP sockets created, accepted and released by the target",
        fill: |snapshot, family| {
            let count = |counter| snapshot.counter(counter);
            sockets(
                family,
                [
                    count(Counter::TargetSocketsCreated),
                    count(Counter::TargetSocketsAccepted),
                    count(Counter::TargetSocketsReleased),
                ],
            )
        },
    },
    Metric {
        name: "observer_target_live_sockets",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "IP sockets the target holds now; missing without a target",
        fill: |snapshot, family| {
            snapshot.target_live_sockets.map_or(Ok(()), |live| family.gauge([], live))
        },
    },
    Metric {
        name: "observer_fd_failures",
        kind: Kind::Counter,
        unit: None,
        labels: &["call", "errno"],
        help: "Calls that failed because descriptors, buffers or memory were exhausted, all tasks",
        fill: |snapshot, family| fd_failures(snapshot, family, false),
    },
    Metric {
        name: "observer_target_fd_failures",
        kind: Kind::Counter,
        unit: None,
        labels: &["call", "errno"],
        help: "The same, of the target alone",
        fill: |snapshot, family| fd_failures(snapshot, family, true),
    },
    Metric {
        name: "observer_kswapd_wakeups",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Times kswapd was woken to reclaim memory in the background",
        fill: |snapshot, family| family.counter([], snapshot.counter(Counter::KswapdWakeups)),
    },
    Metric {
        name: "observer_faults_without_exception",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Pages the kernel brought for a task by itself (mmap with MAP_POPULATE, direct I/O), \
               which have no latency of their own; counted by the tiers that end a fault where the \
               memory cgroup counts it",
        fill: |snapshot, family| {
            family.counter([], snapshot.counter(Counter::FaultsWithoutException))
        },
    },
    Metric {
        name: "observer_records_emitted",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Records of the target put into the ring",
        fill: |snapshot, family| {
            RecordKind::ALL
                .into_iter()
                .try_for_each(|kind| family.counter([kind.name()], snapshot.emitted(kind)))
        },
    },
    Metric {
        name: "observer_records_lost",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Records of the target that found the ring full",
        fill: |snapshot, family| {
            RecordKind::ALL
                .into_iter()
                .try_for_each(|kind| family.counter([kind.name()], snapshot.ring_lost(kind)))
        },
    },
    Metric {
        name: "observer_losses",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind", "scope"],
        help: "Events dropped or misattributed, by reason: of the target, of all other tasks (host), or of an unknown task (unknown)",
        fill: |snapshot, family| {
            for kind in LossKind::ALL {
                let (lost, target) = (snapshot.other_lost(kind), snapshot.target_lost(kind));
                if kind.owner_is_known() {
                    family.counter([kind.name(), "target"], target)?;
                    family.counter([kind.name(), "host"], lost.saturating_sub(target))?;
                } else {
                    family.counter([kind.name(), "unknown"], lost)?;
                }
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_record_floor",
        kind: Kind::Gauge,
        unit: Some("seconds"),
        labels: &["kind"],
        help: "Stalls of the target shorter than this are counted and not recorded now; missing where none is recorded",
        fill: |snapshot, family| {
            floors(snapshot).try_for_each(|(kind, floor_ns)| {
                family.gauge_f64([kind.name()], floor_ns as f64 / 1e9)
            })
        },
    },
    Metric {
        name: "observer_record_floor_changes",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Times the floor was raised for too many records, or lowered again",
        fill: |snapshot, family| {
            floors(snapshot).try_for_each(|(kind, _)| {
                family.counter([kind.name()], snapshot.floor_changes[kind as usize])
            })
        },
    },
    Metric {
        name: "observer_cpu",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &[],
        help: "User and system time of the observer process",
        fill: |snapshot, family| family.counter_f64([], snapshot.self_usage.cpu_seconds),
    },
    Metric {
        name: "observer_resident_memory_max",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Largest resident set of the observer process so far",
        fill: |snapshot, family| family.gauge([], signed(snapshot.self_usage.max_rss_bytes)),
    },
    Metric {
        name: "observer_resident_memory",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Resident set of the observer process now",
        fill: |snapshot, family| family.gauge([], signed(snapshot.self_usage.rss_bytes)),
    },
    Metric {
        name: "observer_resident_memory_bound",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Most that the resident set of a run can come to, by what observer keeps at most",
        fill: |snapshot, family| family.gauge([], signed(snapshot.self_usage.rss_bound_bytes)),
    },
    Metric {
        name: "observer_bpf_map_memory",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Kernel memory of the BPF maps",
        fill: |snapshot, family| family.gauge([], signed(snapshot.self_usage.bpf_map_bytes)),
    },
    Metric {
        name: "observer_bpf_run_time",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &[],
        help: "Time inside the BPF programs; 0 where the kernel's BPF statistics are off",
        fill: |snapshot, family| {
            family.counter_f64([], snapshot.self_usage.bpf_run_time_ns as f64 / 1e9)
        },
    },
    Metric {
        name: "observer_bpf_runs",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Runs of the BPF programs; 0 where the kernel's BPF statistics are off",
        fill: |snapshot, family| family.counter([], snapshot.self_usage.bpf_run_count),
    },
];

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
