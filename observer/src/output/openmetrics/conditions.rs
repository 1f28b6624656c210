//! Metrics of the conditions under which the target runs.

use super::{Fill, Kind, Metric};
use crate::aggregate::Snapshot;
use crate::model::DescriptorSummary;

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
];

/// The processes that are there, with their ids as text.
fn descriptors(snapshot: &Snapshot) -> impl Iterator<Item = (String, &DescriptorSummary)> {
    let there = snapshot.conditions.descriptors.iter().filter(|process| !process.ended);
    there.map(|process| (process.tgid.to_string(), process))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
