//! The table of metrics, each with how it is filled: those of the probes' rows, and observer's own.

use std::sync::LazyLock;

use observer_ebpf::wire::{LossKind, RecordKind};

use super::{Fill, Kind, Metric};
use crate::aggregate::Snapshot;
use crate::model::ProbeState;
use crate::probe::{HistogramFamily, NumberFamily, Numbers, PROBES};

/// The kinds of record that are sent and have a floor, with it.
fn floors(snapshot: &Snapshot) -> impl Iterator<Item = (RecordKind, u64)> {
    crate::probe::with_floor()
        .map(|(kind, _)| (kind, snapshot.floors_ns[kind as usize]))
        .filter(|(_, floor_ns)| *floor_ns != u64::MAX)
}

/// All metrics, in the order they are written and documented.
pub static METRICS: LazyLock<Vec<Metric>> = LazyLock::new(|| {
    let mut metrics = ABOUT_PROBES.to_vec();
    metrics.extend(PROBES.into_iter().flat_map(|probe| probe.histograms).flat_map(histograms));
    metrics.extend_from_slice(ABOUT_CGROUPS);
    metrics.extend_from_slice(super::conditions::METRICS);
    metrics.extend_from_slice(super::network::METRICS);
    // The last probes first, as in all earlier versions.
    metrics.extend(PROBES.into_iter().rev().flat_map(|probe| probe.numbers).map(numbers));
    metrics.extend_from_slice(ABOUT_OBSERVER);
    metrics
});

/// The metrics of a family of histograms of a probe: by cgroup, and of the whole host; or of the target.
fn histograms(family: &'static HistogramFamily) -> Vec<Metric> {
    let metric = |before: &str, whose: &str, labels, fill| Metric {
        name: format!("observer_{before}{}", family.name).leak(),
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels,
        help: format!("{}{whose}", family.help).leak(),
        fill,
    };
    if family.of_target {
        return vec![metric("", "", family.labels, Fill::Target(family))];
    }
    let by_cgroup = [&["cgroup", "target"], family.labels].concat().leak();
    let whole = ", all tasks of the host together";
    vec![
        metric("", ", all tasks by cgroup", by_cgroup, Fill::ByCgroup(family)),
        metric("host_", whole, family.labels, Fill::Host(family)),
    ]
}

/// The metric of a family of numbers of a probe.
fn numbers(family: &'static NumberFamily) -> Metric {
    let (kind, unit) = match family.numbers {
        Numbers::Counters(_) => (Kind::Counter, None),
        Numbers::Time(_) => (Kind::Counter, Some("seconds")),
        Numbers::Gauge(_) => (Kind::Gauge, None),
    };
    Metric {
        name: format!("observer_{}", family.name).leak(),
        kind,
        unit,
        labels: family.labels,
        help: family.help,
        fill: Fill::Numbers(family.numbers),
    }
}

/// How the probes are attached, and what they cost.
static ABOUT_PROBES: &[Metric] = &[
    Metric {
        name: "observer_build",
        kind: Kind::Info,
        unit: None,
        labels: &["version"],
        help: "The running observer",
        fill: Fill::Own(|_, family| family.info([env!("CARGO_PKG_VERSION")])),
    },
    Metric {
        name: "observer_probe_attached",
        kind: Kind::Gauge,
        unit: None,
        labels: &["probe", "tier", "state"],
        help: "1 if the probe works, completely or in part; 0 if it does not",
        fill: Fill::Own(|snapshot, family| {
            for (probe, coverage) in &snapshot.coverage {
                let works = matches!(coverage.state, ProbeState::Attached | ProbeState::Partial);
                let tier = coverage.tier.as_deref().unwrap_or("none");
                family.gauge([probe, tier, coverage.state.name()], works.into())?;
            }
            Ok(())
        }),
    },
    Metric {
        name: "observer_probe_detached",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &["probe"],
        help: "Time for which the probe was detached to keep the budget, or did not watch a CPU that had \
               come online: what it did not see is in none of its numbers",
        fill: Fill::Own(|snapshot, family| {
            for (probe, coverage) in &snapshot.coverage {
                let detached_ns = coverage.detached.as_ref().map_or(0, |pauses| pauses.total_ns);
                family.counter_f64([probe], detached_ns as f64 / 1e9)?;
            }
            Ok(())
        }),
    },
    Metric {
        name: "observer_added_cpu",
        kind: Kind::Gauge,
        unit: Some("ratio"),
        labels: &["bound"],
        help: "CPU time that observer adds to the host, as a share of that of all CPUs: its own \
               threads, its BPF programs and their hooks; the mean since the start and its 95 % \
               interval",
        fill: Fill::Own(|snapshot, family| {
            let Some(added) = snapshot.self_usage.added_cpu_share else { return Ok(()) };
            family.gauge_f64(["mean"], added.share)?;
            family.gauge_f64(["lower"], added.ci95[0])?;
            family.gauge_f64(["upper"], added.ci95[1])
        }),
    },
];

/// The cgroups in the histograms.
static ABOUT_CGROUPS: &[Metric] = &[
    Metric {
        name: "observer_cgroups",
        kind: Kind::Gauge,
        unit: None,
        labels: &["histograms"],
        help: "Cgroups in which something was counted and that exist: with histograms of their own, \
               or counted as cgroup=\"other\" since there is no room for more",
        fill: Fill::Own(|snapshot, family| {
            let counts = snapshot.cgroup_counts;
            family.gauge(["own"], signed(counts.with_row))?;
            family.gauge(["other"], signed(counts.without_row))
        }),
    },
    Metric {
        name: "observer_cgroups_removed",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Cgroups in which something was counted and that were removed since",
        fill: Fill::Own(|snapshot, family| family.counter([], snapshot.cgroup_counts.removed)),
    },
];

/// Records, losses, and observer itself.
static ABOUT_OBSERVER: &[Metric] = &[
    Metric {
        name: "observer_records_emitted",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Records of the target put into the ring",
        fill: Fill::Own(|snapshot, family| {
            RecordKind::ALL
                .into_iter()
                .try_for_each(|kind| family.counter([kind.name()], snapshot.emitted(kind)))
        }),
    },
    Metric {
        name: "observer_records_lost",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Records of the target that found the ring full",
        fill: Fill::Own(|snapshot, family| {
            RecordKind::ALL
                .into_iter()
                .try_for_each(|kind| family.counter([kind.name()], snapshot.ring_lost(kind)))
        }),
    },
    Metric {
        name: "observer_losses",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind", "scope"],
        help: "Events dropped or misattributed, by reason: of the target, of all other tasks (host), or of an unknown task (unknown)",
        fill: Fill::Own(|snapshot, family| {
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
        }),
    },
    Metric {
        name: "observer_record_floor",
        kind: Kind::Gauge,
        unit: Some("seconds"),
        labels: &["kind"],
        help: "Stalls of the target shorter than this are counted and not recorded now; missing where none is recorded",
        fill: Fill::Own(|snapshot, family| {
            floors(snapshot).try_for_each(|(kind, floor_ns)| {
                family.gauge_f64([kind.name()], floor_ns as f64 / 1e9)
            })
        }),
    },
    Metric {
        name: "observer_record_floor_changes",
        kind: Kind::Counter,
        unit: None,
        labels: &["kind"],
        help: "Times the floor was raised for too many records, or lowered again",
        fill: Fill::Own(|snapshot, family| {
            floors(snapshot).try_for_each(|(kind, _)| {
                family.counter([kind.name()], snapshot.floor_changes[kind as usize])
            })
        }),
    },
    Metric {
        name: "observer_trace_ended",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "1 after the trace of daemon --trace could not be written any more, 0 while it can; missing without --trace",
        fill: Fill::Own(|snapshot, family| {
            snapshot.trace.map_or(Ok(()), |trace| family.gauge([], i64::from(trace.ended)))
        }),
    },
    Metric {
        name: "observer_trace_missing_events",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Events that are not in the trace because it had ended; missing without --trace",
        fill: Fill::Own(|snapshot, family| {
            snapshot.trace.map_or(Ok(()), |trace| family.counter([], trace.missing))
        }),
    },
    Metric {
        name: "observer_cpu",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &[],
        help: "User and system time of the observer process",
        fill: Fill::Own(|snapshot, family| family.counter_f64([], snapshot.self_usage.cpu_seconds)),
    },
    Metric {
        name: "observer_resident_memory_max",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Largest resident set of the observer process so far",
        fill: Fill::Own(|snapshot, family| {
            family.gauge([], signed(snapshot.self_usage.max_rss_bytes))
        }),
    },
    Metric {
        name: "observer_resident_memory",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Resident set of the observer process now",
        fill: Fill::Own(|snapshot, family| family.gauge([], signed(snapshot.self_usage.rss_bytes))),
    },
    Metric {
        name: "observer_resident_memory_bound",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Most that the resident set of a run can come to, by what observer keeps at most",
        fill: Fill::Own(|snapshot, family| {
            family.gauge([], signed(snapshot.self_usage.rss_bound_bytes))
        }),
    },
    Metric {
        name: "observer_bpf_map_memory",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: &[],
        help: "Kernel memory of the BPF maps",
        fill: Fill::Own(|snapshot, family| {
            family.gauge([], signed(snapshot.self_usage.bpf_map_bytes))
        }),
    },
    Metric {
        name: "observer_bpf_run_time",
        kind: Kind::Counter,
        unit: Some("seconds"),
        labels: &[],
        help: "Time inside the BPF programs; 0 where the kernel's BPF statistics are off",
        fill: Fill::Own(|snapshot, family| {
            family.counter_f64([], snapshot.self_usage.bpf_run_time_ns as f64 / 1e9)
        }),
    },
    Metric {
        name: "observer_bpf_runs",
        kind: Kind::Counter,
        unit: None,
        labels: &[],
        help: "Runs of the BPF programs; 0 where the kernel's BPF statistics are off",
        fill: Fill::Own(|snapshot, family| family.counter([], snapshot.self_usage.bpf_run_count)),
    },
];

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
