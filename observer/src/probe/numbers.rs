//! What a probe counts, as data: its histograms and counters, and the names under which the metrics
//! and the summary show them.

use observer_ebpf::wire::Series;

/// Values of a family's labels, in the order of their names.
pub type Labels = &'static [&'static str];

/// A family of histograms, shown by cgroup as `observer_NAME_seconds` and for the whole host as
/// `observer_host_NAME_seconds`, or as `observer_NAME_seconds` alone.
#[derive(Clone, Copy, Debug)]
pub struct HistogramFamily {
    /// Its name.
    pub name: &'static str,
    /// What it means; the outputs add whose it is.
    pub help: &'static str,
    /// Names of the labels by which its series differ.
    pub labels: Labels,
    /// Its buckets in the metrics.
    pub bounds: Bounds,
    /// Only what the target does is counted.
    pub of_target: bool,
    /// Its series, with the part of the probe's distribution that each belongs to, and its labels.
    pub series: &'static [(Series, &'static str, Labels)],
}

impl HistogramFamily {
    /// A family without series, of all tasks, from which the rows begin.
    pub(super) const BASE: Self = Self {
        name: "",
        help: "",
        labels: &[],
        bounds: Bounds::STALL,
        of_target: false,
        series: &[],
    };
}

/// A series of durations that were first counted in another series, to which they turned out not to
/// belong.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// The series in which the programs count them.
    pub counted_in: Series,
    /// Where they were counted as well.
    pub from: Series,
    /// Where they belong.
    pub to: Series,
}

/// Exponents of the first and the last finite bound of the buckets, which are 2^exponent seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of the first bound.
    pub first: i32,
    /// Of the last one.
    pub last: i32,
}

impl Bounds {
    /// From 0.95 µs to 4 s.
    pub const STALL: Self = Self { first: -20, last: 2 };
    /// From 0.98 ms to 128 s.
    pub const LIFETIME: Self = Self { first: -10, last: 7 };
}

/// Numbers that are no distributions.
#[derive(Clone, Copy, Debug)]
pub enum Numbers {
    /// They only rise: places in the kernel's counters, each with its labels.
    Counters(&'static [(usize, Labels)]),
    /// Nanoseconds, which only rise: a place in the kernel's counters. The metric is in seconds.
    Time(usize),
    /// It goes up and down.
    Gauge(Gauge),
}

/// A number that user space works out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gauge {
    /// IP sockets the target holds now.
    TargetLiveSockets,
}

/// A family of numbers in the metrics: `observer_NAME`.
#[derive(Clone, Copy, Debug)]
pub struct NumberFamily {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: Labels,
    /// Its numbers.
    pub numbers: Numbers,
}

/// Numbers in `counters` of a probe's summary. Their names are `name` and the labels, with `_` between
/// them.
#[derive(Clone, Copy, Debug)]
pub struct SummaryNumbers {
    /// Begin of the names; may be empty where there are labels.
    pub name: &'static str,
    /// The numbers.
    pub numbers: Numbers,
    /// Counters that are 0 are shown as well.
    pub zeros: bool,
}
