//! OpenMetrics text from a [`Snapshot`], by the table [`METRICS`].

mod conditions;
mod network;
mod table;

use std::fmt::{self, Debug, Write};

use observer_ebpf::wire::{OCTAVES, octave_exponent};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::aggregate::{Octaves, Snapshot};
use crate::probe::{Bounds, HistogramFamily, Numbers};

pub use table::METRICS;

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

    /// The suffix that the name of a sample has in addition to that of its family.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }
}

/// One metric family: its documentation and how it is filled.
#[derive(Clone)]
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
    fill: Fill,
}

/// How a family is filled.
#[derive(Clone, Copy)]
enum Fill {
    /// By a function of its own.
    Own(fn(&Snapshot, &mut Family<'_>) -> fmt::Result),
    /// From a probe's histograms, by cgroup.
    ByCgroup(&'static HistogramFamily),
    /// From a probe's histograms, for the whole host.
    Host(&'static HistogramFamily),
    /// From a probe's histograms, for the target; missing without one.
    Target(&'static HistogramFamily),
    /// From a probe's other numbers.
    Numbers(Numbers),
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
    fn labelled(&self, values: &[&str]) -> Vec<(&'static str, String)> {
        assert_eq!(values.len(), self.labels.len());
        self.labels.iter().copied().zip(values.iter().map(|&value| value.to_owned())).collect()
    }

    /// Runs `write` with the labels, or without any: an empty set would be written as `{}`.
    fn with(
        &mut self,
        values: &[&str],
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        if values.is_empty() {
            return write(&mut self.encoder);
        }
        let labels = self.labelled(values);
        write(&mut self.encoder.encode_family(&labels)?)
    }

    fn fill(&mut self, fill: Fill, snapshot: &Snapshot) -> fmt::Result {
        match fill {
            Fill::Own(fill) => fill(snapshot, self),
            Fill::ByCgroup(family) => self.by_cgroup(snapshot, family),
            Fill::Host(family) => self.host(snapshot, family),
            Fill::Target(family) => self.target(snapshot, family),
            Fill::Numbers(Numbers::Counters(places)) => places
                .iter()
                .try_for_each(|(place, labels)| self.count(labels, snapshot.counters[*place])),
            Fill::Numbers(Numbers::Time(place)) => {
                self.counter_f64([], snapshot.counters[place] as f64 / 1e9)
            }
            Fill::Numbers(Numbers::Gauge(gauge)) => {
                snapshot.gauge(gauge).map_or(Ok(()), |value| self.gauge([], value))
            }
        }
    }

    fn count(&mut self, values: &[&str], count: u64) -> fmt::Result {
        self.with(values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&count, None))
    }

    fn counter<const N: usize>(&mut self, values: [&str; N], count: u64) -> fmt::Result {
        self.count(&values, count)
    }

    fn counter_f64<const N: usize>(&mut self, values: [&str; N], count: f64) -> fmt::Result {
        self.with(&values, |encoder| encoder.encode_counter::<NoLabelSet, _, u64>(&count, None))
    }

    fn gauge<const N: usize>(&mut self, values: [&str; N], value: i64) -> fmt::Result {
        self.with(&values, |encoder| encoder.encode_gauge(&value))
    }

    fn gauge_f64<const N: usize>(&mut self, values: [&str; N], value: f64) -> fmt::Result {
        self.with(&values, |encoder| encoder.encode_gauge(&value))
    }

    fn info<const N: usize>(&mut self, values: [&str; N]) -> fmt::Result {
        let labels = self.labelled(&values);
        self.encoder.encode_info(&labels)
    }

    fn histogram(&mut self, values: &[&str], octaves: &Octaves, bounds: Bounds) -> fmt::Result {
        let (count, buckets) = classic_buckets(octaves, bounds);
        let sum = octaves.sum_ns as f64 / 1e9;
        self.with(values, |encoder| {
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    /// One histogram of each series for each cgroup in which anything was counted, and one for the
    /// target.
    fn by_cgroup(&mut self, snapshot: &Snapshot, family: &HistogramFamily) -> fmt::Result {
        for (series, _, labels) in family.series {
            let labelled = |cgroup, target| [&[cgroup, target][..], *labels].concat();
            if let Some(name) = &snapshot.target_name {
                let octaves = Octaves::from(snapshot.target_distribution(*series));
                if octaves.count() > 0 {
                    self.histogram(&labelled(name, "true"), &octaves, family.bounds)?;
                }
            }
            for cgroup in &snapshot.cgroups {
                if let Some(octaves) = cgroup.series.get(series) {
                    self.histogram(&labelled(&cgroup.name, "false"), octaves, family.bounds)?;
                }
            }
        }
        Ok(())
    }

    /// One histogram of the target for each series.
    fn target(&mut self, snapshot: &Snapshot, family: &HistogramFamily) -> fmt::Result {
        if snapshot.target_name.is_none() {
            return Ok(());
        }
        family.series.iter().try_for_each(|(series, _, labels)| {
            let octaves = Octaves::from(snapshot.target_distribution(*series));
            self.histogram(labels, &octaves, family.bounds)
        })
    }

    /// One histogram of the whole host for each series.
    fn host(&mut self, snapshot: &Snapshot, family: &HistogramFamily) -> fmt::Result {
        family.series.iter().try_for_each(|(series, _, labels)| {
            let octaves = Octaves::from(&snapshot.host_distribution(*series));
            self.histogram(labels, &octaves, family.bounds)
        })
    }
}

/// Counts between bounds one octave apart, and their total. The bounds are bounds of the kernel's
/// octaves as well, so that nothing is counted on the wrong side.
fn classic_buckets(octaves: &Octaves, bounds: Bounds) -> (u64, Vec<(f64, u64)>) {
    let Bounds { first, last } = bounds;
    let mut buckets: Vec<_> =
        (first..=last).map(|exponent| (f64::from(exponent).exp2(), 0)).collect();
    buckets.push((f64::INFINITY, 0));
    for octave in 0..OCTAVES {
        let bucket = match octave_exponent(octave) {
            Some(exponent) if exponent <= last => (exponent - first).max(0).unsigned_abs() as usize,
            _ => buckets.len() - 1,
        };
        buckets[bucket].1 += octaves.counts[octave];
    }
    (octaves.count(), buckets)
}

#[derive(Debug)]
struct FromSnapshot(Snapshot);

impl Collector for FromSnapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in METRICS.iter() {
            let unit = metric.unit.map(|unit| Unit::Other(unit.to_owned()));
            let encoder = encoder.encode_descriptor(
                metric.name,
                metric.help,
                unit.as_ref(),
                metric.kind.metric_type(),
            )?;
            Family { encoder, labels: metric.labels }.fill(metric.fill, &self.0)?;
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
         <!-- Generated from the rows in observer/src/probe and the table in \
         observer/src/output/openmetrics/table.rs; \
         `cargo xtask docs` rewrites it. -->\n\n\
         `observer daemon` serves these on `/metrics`, as OpenMetrics 1.0 text where the client's \
         `Accept` header asks for it, otherwise as Prometheus text 0.0.4. Counters and histograms \
         count from the start of the daemon.\n\n\
         Histograms come from the kernel: every event of every task is counted there, none is \
         lost. Buckets are powers of two of a second: stalls from 2⁻²⁰ s (0.95 µs) to 4 s, socket \
         lifetimes from 2⁻¹⁰ s to 128 s.\n\n\
         Families that begin with `observer_host_` count the whole host and never go back. The \
         others count by cgroup: a cgroup appears once something was counted in it and disappears \
         after it was removed. About 1,150 cgroups have histograms of their own (fewer on a host \
         with less than 300 MiB of memory); `cgroup=\"other\"` holds all the others together, and \
         `observer_cgroups` says how many there are. The target's processes are counted apart from \
         their cgroup, with `target=\"true\"`.\n\n\
         | metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
    );
    for metric in METRICS.iter() {
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
