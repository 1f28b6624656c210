//! OpenMetrics text from a [`Snapshot`], by the table [`METRICS`].

use std::fmt::{self, Debug, Write};

use observer_ebpf::wire::{
    BUCKETS, BUCKETS_PER_OCTAVE, Counter, FD_ERRNOS, FdSyscall, LossKind, RecordKind, Series,
    native_index,
};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::aggregate::{Distribution, Snapshot};
use crate::model::ProbeState;

/// Content type of the OpenMetrics text format.
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the Prometheus text format.
pub const PROMETHEUS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A histogram with buckets at powers of two of a second.
    Histogram,
    /// Labels about the program; its sample ends in `_info`.
    Info,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }

    const fn metric_type(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }

    /// What the name of a sample has that the name of the family has not.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }
}

/// One metric family: its documentation and how it is filled.
pub struct Metric {
    /// Name without unit and suffix.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Base unit, part of the full name.
    pub unit: Option<&'static str>,
    /// Label names, in order.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
    fill: fn(&Snapshot, &mut Family<'_>) -> fmt::Result,
}

impl Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Metric {
    /// Name of the family: with its unit, without `_total`.
    #[must_use]
    pub fn family(&self) -> String {
        match self.unit {
            Some(unit) => format!("{}_{unit}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// The family being written.
struct Family<'a> {
    encoder: MetricEncoder<'a>,
    labels: &'static [&'static str],
}

impl Family<'_> {
    fn labelled<const N: usize>(&self, values: [&str; N]) -> Vec<(&'static str, String)> {
        debug_assert_eq!(N, self.labels.len());
        self.labels.iter().copied().zip(values.map(str::to_owned)).collect()
    }

    /// Runs `write` with the labels, or without any: an empty set would be written as `{}`.
    fn with<const N: usize>(
        &mut self,
        values: [&str; N],
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        if N == 0 {
            return write(&mut self.encoder);
        }
        let labels = self.labelled(values);
        write(&mut self.encoder.encode_family(&labels)?)
    }

    fn counter<const N: usize>(&mut self, values: [&str; N], count: u64) -> fmt::Result {
        self.with(values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&count, None))
    }

    fn counter_f64<const N: usize>(&mut self, values: [&str; N], count: f64) -> fmt::Result {
        self.with(values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&count, None))
    }

    fn gauge<const N: usize>(&mut self, values: [&str; N], value: i64) -> fmt::Result {
        self.with(values, |encoder| encoder.encode_gauge(&value))
    }

    fn info<const N: usize>(&mut self, values: [&str; N]) -> fmt::Result {
        let labels = self.labelled(values);
        self.encoder.encode_info(&labels)
    }

    fn histogram<const N: usize>(
        &mut self,
        values: [&str; N],
        distribution: &Distribution,
        octaves: Octaves,
    ) -> fmt::Result {
        let (count, buckets) = octave_buckets(distribution, octaves);
        let sum = distribution.sum_ns as f64 / 1e9;
        self.with(values, |encoder| {
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    /// One histogram for each cgroup in which anything was counted.
    fn per_cgroup<const N: usize>(
        &mut self,
        snapshot: &Snapshot,
        series: Series,
        octaves: Octaves,
        values: impl Fn(&'_ str) -> [&'_ str; N],
    ) -> fmt::Result {
        for cgroup in &snapshot.cgroups {
            let distribution = &cgroup.series[series as usize];
            if distribution.count() > 0 {
                self.histogram(values(&cgroup.name), distribution, octaves)?;
            }
        }
        Ok(())
    }
}

/// Exponents of the first and the last finite bound, 2^exponent seconds.
type Octaves = (i32, i32);
/// From 0.95 µs to 4 s.
const STALL: Octaves = (-20, 2);
/// From 0.98 ms to 128 s.
const LIFETIME: Octaves = (-10, 7);

/// Counts between bounds one octave apart, and their total. The bounds are bounds of the kernel's
/// buckets as well, so that nothing is counted on the wrong side.
fn octave_buckets(distribution: &Distribution, (first, last): Octaves) -> (u64, Vec<(f64, u64)>) {
    let zero = native_index(0).unwrap_or_default();
    let mut buckets = Vec::new();
    let mut from = 0;
    for exponent in first..=last {
        let to = usize::try_from(exponent * BUCKETS_PER_OCTAVE as i32 - zero).unwrap_or_default();
        let to = (to + 1).min(BUCKETS);
        buckets.push((f64::from(exponent).exp2(), distribution.buckets[from..to].iter().sum()));
        from = to;
    }
    buckets.push((f64::INFINITY, distribution.buckets[from..].iter().sum()));
    (buckets.iter().map(|(_, count)| count).sum(), buckets)
}

const FAULTS: [(Series, &str, &str); 4] = [
    (Series::FaultMinorUser, "minor", "user"),
    (Series::FaultMinorKernel, "minor", "kernel"),
    (Series::FaultMajorUser, "major", "user"),
    (Series::FaultMajorKernel, "major", "kernel"),
];

const MM_CALLS: [(Series, &str); 6] = [
    (Series::Mmap, "mmap"),
    (Series::Munmap, "munmap"),
    (Series::Mremap, "mremap"),
    (Series::Brk, "brk"),
    (Series::Mprotect, "mprotect"),
    (Series::Madvise, "madvise"),
];

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
        help: "1 where the probe works, wholly or in part; 0 where it does not",
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
        name: "observer_runqueue_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "reason"],
        help: "Time from being able to run to running, by how the wait began, all tasks",
        fill: |snapshot, family| {
            let rows = [(Series::RunqueueWakeup, "wakeup"), (Series::RunqueuePreempt, "preempted")];
            for (series, reason) in rows {
                family.per_cgroup(snapshot, series, STALL, |cgroup| [cgroup, reason])?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_fault_latency",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "kind", "mode"],
        help: "Time inside a page fault, minor or major, taken in user or kernel mode, all tasks",
        fill: |snapshot, family| {
            for (series, kind, mode) in FAULTS {
                family.per_cgroup(snapshot, series, STALL, |cgroup| [cgroup, kind, mode])?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_reclaim_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "scope"],
        help: "Time in memory reclaim, for the host (direct) or a cgroup limit (memcg), all tasks",
        fill: |snapshot, family| {
            for (series, scope) in
                [(Series::ReclaimDirect, "direct"), (Series::ReclaimMemcg, "memcg")]
            {
                family.per_cgroup(snapshot, series, STALL, |cgroup| [cgroup, scope])?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_compaction_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup"],
        help: "Time in a memory compaction run, all tasks",
        fill: |snapshot, family| {
            family.per_cgroup(snapshot, Series::Compaction, STALL, |cgroup| [cgroup])
        },
    },
    Metric {
        name: "observer_mm_syscall_duration",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup", "call"],
        help: "Time inside memory-management system calls, all tasks",
        fill: |snapshot, family| {
            for (series, call) in MM_CALLS {
                family.per_cgroup(snapshot, series, STALL, |cgroup| [cgroup, call])?;
            }
            Ok(())
        },
    },
    Metric {
        name: "observer_socket_lifetime",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: &["cgroup"],
        help: "Time from creation or acceptance of an IP socket to its release, all tasks",
        fill: |snapshot, family| {
            family.per_cgroup(snapshot, Series::SocketLifetime, LIFETIME, |cgroup| [cgroup])
        },
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
        help: "Calls that failed for want of descriptors, buffers or memory, all tasks",
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
        labels: &["kind"],
        help: "Stalls or sockets that could not be counted where they belong, by reason",
        fill: |snapshot, family| {
            LossKind::ALL
                .into_iter()
                .try_for_each(|kind| family.counter([kind.name()], snapshot.other_lost(kind)))
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

#[derive(Debug)]
struct FromSnapshot(Snapshot);

impl Collector for FromSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS {
            let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
            let encoder = encoder.encode_descriptor(
                metric.name,
                metric.help,
                unit.as_ref(),
                metric.kind.metric_type(),
            )?;
            (metric.fill)(&self.0, &mut Family { encoder, labels: metric.labels })?;
        }
        Ok(())
    }
}

/// The OpenMetrics text of a snapshot.
///
/// # Errors
/// Never: writing to a string cannot fail.
pub fn openmetrics(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(FromSnapshot(snapshot)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// OpenMetrics text as the older Prometheus text format: there, a family has the name of its
/// samples (`_total` included), and units, infos and the end mark are unknown.
#[must_use]
pub fn to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (Some(keyword), Some(family), Some(rest)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Some(metric) = METRICS.iter().find(|metric| metric.family() == family) else {
            continue;
        };
        let suffix = metric.kind.suffix();
        let rest = if keyword == "TYPE" && metric.kind == Kind::Info { "gauge" } else { rest };
        if keyword != "UNIT" {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# {keyword} {family}{suffix} {rest}");
        }
    }
    text
}

/// docs/METRICS.md.
#[must_use]
pub fn metrics_markdown() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         <!-- Generated from the METRICS table in observer/src/output/openmetrics.rs; \
         `cargo xtask docs` rewrites it. -->\n\n\
         `observer daemon` serves these on `/metrics`, as OpenMetrics 1.0 text where the client's \
         `Accept` header asks for it, otherwise as Prometheus text 0.0.4. Counters and histograms \
         count from the start of the daemon.\n\n\
         Histograms come from the kernel: every event of every task is counted there, none is \
         lost. Inside, a bucket is an eighth of an octave wide (a Prometheus native histogram of \
         schema 3); the classic buckets served here are whole octaves, powers of two of a second: \
         stalls from 2⁻²⁰ s (0.95 µs) to 4 s, socket lifetimes from 2⁻¹⁰ s to 128 s. A cgroup \
         appears once something was counted in it; `cgroup=\"other\"` holds what came after the \
         table of cgroups was full.\n\n\
         | metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for metric in METRICS {
        let labels = metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>();
        let name = metric.family() + metric.kind.suffix();
        let (kind, unit) = (metric.kind.name(), metric.unit.unwrap_or(""));
        let _ = writeln!(
            text,
            "| `{name}` | {kind} | {unit} | {} | {} |",
            labels.join(", "),
            metric.help
        );
    }
    text
}

#[cfg(test)]
#[path = "openmetrics_tests.rs"]
mod tests;
