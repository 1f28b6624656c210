//! Metrics of the conditions under which the target runs.

use super::{Fill, Kind, Metric};
use crate::aggregate::Snapshot;
use crate::model::{DescriptorSummary, DiskBytesSummary, DiskRequestsSummary, PressureSummary};

/// In the order of the document.
pub(super) static METRICS: &[Metric] = &[
    Metric {
        name: "observer_target_cpu_limit_cpus",
        kind: Kind::Gauge,
        unit: None,
        labels: &["cgroup"],
        help: "CPUs whose time all threads of the cgroup together may use: quota by period of each limit on a \
               cgroup of the target or one above it",
        fill: Fill::Own(|snapshot, family| {
            snapshot
                .conditions
                .cpu_limits
                .iter()
                .try_for_each(|limit| family.gauge_f64([&limit.cgroup], limit.limit.cpus()))
        }),
    },
    Metric {
        name: "observer_target_cpu_limit_periods",
        kind: Kind::Counter,
        unit: None,
        labels: &["cgroup"],
        help: "Periods of the limit in which threads of the cgroup ran or wanted to run",
        fill: Fill::Own(|snapshot, family| {
            snapshot
                .conditions
                .cpu_limits
                .iter()
                .try_for_each(|limit| family.counter([&limit.cgroup], limit.periods))
        }),
    },
    Metric {
        name: "observer_target_cpu_limit_throttled_periods",
        kind: Kind::Counter,
        unit: None,
        labels: &["cgroup"],
        help: "Periods of the limit in which it was used up and threads were held",
        fill: Fill::Own(|snapshot, family| {
            snapshot
                .conditions
                .cpu_limits
                .iter()
                .try_for_each(|limit| family.counter([&limit.cgroup], limit.throttled_periods))
        }),
    },
    Metric {
        name: "observer_target_cpu_limit_throttled",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["cgroup"],
        help: "Time for which the limit held threads of the cgroup, summed over the CPUs",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.cpu_limits.iter().try_for_each(|limit| {
                family.counter_f64([&limit.cgroup], limit.throttled_ns as f64 / 1e9)
            })
        }),
    },
    Metric {
        name: "observer_target_descriptors",
        kind: Kind::Gauge,
        unit: None,
        labels: &["pid", "comm"],
        help: "Open descriptors of the process: of the 16 of the target that are nearest to their limit",
        fill: Fill::Own(|snapshot, family| {
            descriptors(snapshot).try_for_each(|(pid, process)| {
                family.gauge([&pid, &process.name], signed(process.last))
            })
        }),
    },
    Metric {
        name: "observer_target_descriptors_limit",
        kind: Kind::Gauge,
        unit: None,
        labels: &["pid", "comm"],
        help: "Descriptors that the process may have open (RLIMIT_NOFILE, the soft limit)",
        fill: Fill::Own(|snapshot, family| {
            let mut limited = descriptors(snapshot)
                .filter_map(|(pid, process)| Some((pid, process, process.limit?)));
            limited.try_for_each(|(pid, process, limit)| {
                family.gauge([&pid, &process.name], signed(limit))
            })
        }),
    },
    Metric {
        name: "observer_target_memory_limit",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &["cgroup"],
        help: "Memory that all processes of the cgroup together may use (memory.max, memory.limit_in_bytes): each \
               limit on a cgroup of the target or one above it",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.memory_limits.iter().try_for_each(|limit| match limit.max_bytes {
                Some(bytes) => family.gauge([&limit.cgroup], signed(bytes)),
                None => Ok(()),
            })
        }),
    },
    Metric {
        name: "observer_target_memory_limit_hits",
        kind: Kind::Counter,
        unit: None,
        labels: &["cgroup"],
        help: "Times that memory was asked for beyond the limit",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.memory_limits.iter().try_for_each(|limit| match limit.limit_hits {
                Some(hits) => family.counter([&limit.cgroup], hits),
                None => Ok(()),
            })
        }),
    },
    Metric {
        name: "observer_target_oom_kills",
        kind: Kind::Counter,
        unit: None,
        labels: &["cgroup"],
        help: "Processes of the cgroup that the out-of-memory killer ended",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.memory_limits.iter().try_for_each(|limit| match limit.oom_kills {
                Some(kills) => family.counter([&limit.cgroup], kills),
                None => Ok(()),
            })
        }),
    },
    Metric {
        name: "observer_target_pressure",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["cgroup", "resource", "stalled"],
        help: "Time in which threads of a cgroup of the target (version 2) waited for the resource: some (at least \
               one of them), full (all that had work to do)",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.pressure.iter().try_for_each(|pressure| {
                let Some(cgroup) = &pressure.cgroup else { return Ok(()) };
                stalled(pressure).try_for_each(|(stalled, seconds)| {
                    family.counter_f64([cgroup, &pressure.resource, stalled], seconds)
                })
            })
        }),
    },
    Metric {
        name: "observer_host_pressure",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["resource", "stalled"],
        help: "The same of all threads of the host; missing without a target",
        fill: Fill::Own(|snapshot, family| {
            let mut of_host =
                snapshot.conditions.pressure.iter().filter(|pressure| pressure.cgroup.is_none());
            of_host.try_for_each(|pressure| {
                stalled(pressure).try_for_each(|(stalled, seconds)| {
                    family.counter_f64([&*pressure.resource, stalled], seconds)
                })
            })
        }),
    },
    Metric {
        name: "observer_host_disk_requests",
        kind: Kind::Counter,
        unit: None,
        labels: &["disk", "kind"],
        help: "Requests that a disk of the host completed, of all programs: read, write, flush; of the 16 disks that \
               were busy for longest; missing without a target",
        fill: Fill::Own(|snapshot, family| {
            disk_requests(snapshot)
                .try_for_each(|(disk, kind, requests)| family.counter([disk, kind], requests.count))
        }),
    },
    Metric {
        name: "observer_host_disk",
        kind: Kind::Counter,
        unit: Some("bytes"),
        labels: &["disk", "kind"],
        help: "Bytes of these requests",
        fill: Fill::Own(|snapshot, family| {
            disk_requests(snapshot)
                .filter(|(_, kind, _)| *kind != FLUSH)
                .try_for_each(|(disk, kind, requests)| family.counter([disk, kind], requests.bytes))
        }),
    },
    Metric {
        name: "observer_host_disk_request",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["disk", "kind"],
        help: "Time of these requests from the begin to the end, in the queue and in the disk, added up",
        fill: Fill::Own(|snapshot, family| {
            disk_requests(snapshot).try_for_each(|(disk, kind, requests)| {
                family.counter_f64([disk, kind], requests.time_ms as f64 / 1e3)
            })
        }),
    },
    Metric {
        name: "observer_host_disk_busy",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["disk"],
        help: "Time in which a disk had at least one request",
        fill: Fill::Own(|snapshot, family| {
            snapshot
                .conditions
                .disks
                .iter()
                .try_for_each(|disk| family.counter_f64([&disk.disk], disk.busy_ms as f64 / 1e3))
        }),
    },
    Metric {
        name: "observer_target_disk",
        kind: Kind::Counter,
        unit: Some("bytes"),
        labels: &["kind"],
        help: "Bytes that processes of the target read from disks, and that they wrote for them, to the page cache or \
               directly; missing where observer may not read it",
        fill: Fill::Own(|snapshot, family| match snapshot.conditions.disk_bytes {
            Some(DiskBytesSummary { read, written }) => {
                family.counter(["read"], read)?;
                family.counter(["write"], written)
            }
            None => Ok(()),
        }),
    },
    Metric {
        name: "observer_target_cpu_stolen",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["cpu"],
        help: "Time that the hypervisor took of a CPU that the target may use (steal)",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.cpu_times.iter().try_for_each(|cpu| {
                family.counter_f64([&cpu.cpu.to_string()], cpu.stolen_ns as f64 / 1e9)
            })
        }),
    },
    Metric {
        name: "observer_target_perf_events",
        kind: Kind::Counter,
        unit: None,
        labels: &["counter"],
        help: "What a counter of the target's threads counted (context_switches, cpu_migrations, minor_faults, \
               cache_misses and so on), with --counters",
        fill: Fill::Own(|snapshot, family| {
            let Some(counters) = &snapshot.conditions.counters else { return Ok(()) };
            counters
                .by
                .iter()
                .try_for_each(|counter| family.counter([&counter.name], counter.count))
        }),
    },
    Metric {
        name: "observer_target_counted_cpu",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &[],
        help: "CPU time of the threads that these counters count",
        fill: Fill::Own(|snapshot, family| match &snapshot.conditions.counters {
            Some(counters) => family.counter_f64([""; 0], counters.cpu_ns() as f64 / 1e9),
            None => Ok(()),
        }),
    },
    Metric {
        name: "observer_target_ran_instead",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["process", "cgroup", "kind"],
        help: "Time for which processes of this name and cgroup had a CPU while threads of the target waited for \
               it, added up over the waits: of the 32 of which it is longest (kind: own, other, kernel_thread)",
        fill: Fill::Own(|snapshot, family| {
            let ran = snapshot.conditions.ran_instead.iter().flat_map(|ran| &ran.by);
            ran.into_iter().try_for_each(|row| {
                let cgroup = row.cgroup.as_deref().unwrap_or_default();
                let labels = [&*row.name, cgroup, row.kind.name()];
                family.counter_f64(labels, row.time_ns as f64 / 1e9)
            })
        }),
    },
    Metric {
        name: "observer_target_ran_instead_known",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["who"],
        help: "Time of the waits of the target for a CPU by who had it meanwhile: process (all of them), nobody, \
               cpu_limit (a CPU limit held the thread); of the rest of observer_runqueue_latency_seconds it is not known",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.ran_instead.iter().try_for_each(|ran| {
                let times = [
                    ("process", ran.ran_ns),
                    ("nobody", ran.idle_ns),
                    ("cpu_limit", ran.throttled_ns),
                ];
                times
                    .into_iter()
                    .try_for_each(|(who, time_ns)| family.counter_f64([who], time_ns as f64 / 1e9))
            })
        }),
    },
];

/// The processes that are there, with their ids as text.
fn descriptors(snapshot: &Snapshot) -> impl Iterator<Item = (String, &DescriptorSummary)> {
    let there = snapshot.conditions.descriptors.iter().filter(|process| !process.ended);
    there.map(|process| (process.tgid.to_string(), process))
}

/// Flushes have no bytes.
const FLUSH: &str = "flush";

/// Each disk with the kinds of its requests.
fn disk_requests(
    snapshot: &Snapshot,
) -> impl Iterator<Item = (&str, &'static str, DiskRequestsSummary)> {
    snapshot.conditions.disks.iter().flat_map(|disk| {
        let kinds = [("read", disk.reads), ("write", disk.writes), (FLUSH, disk.flushes)];
        kinds.map(|(kind, requests)| (disk.disk.as_str(), kind, requests))
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The times of a resource, seconds.
fn stalled(pressure: &PressureSummary) -> impl Iterator<Item = (&'static str, f64)> {
    let all = [("some", Some(pressure.some_us)), ("full", pressure.full_us)];
    all.into_iter().filter_map(|(stalled, us)| Some((stalled, us? as f64 / 1e6)))
}
