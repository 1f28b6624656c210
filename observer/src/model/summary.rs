//! `summary.json`: the answer, for programs. Schema 2; files of schema 1 can be read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cause, ClockDrift, Conditions, FloorChange, FloorReason, Reason, SlowRequest};
use crate::clock::MonoNanos;

/// Version of the `summary.json` schema. Keys may be added within a version, never renamed. Since 2,
/// reasons have a code and evidence, and causes may have any name.
pub const SUMMARY_SCHEMA: u32 = 2;

/// The kind of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// At least one cause is named; the largest is the top cause.
    Attributed,
    /// The evidence is good, and no watched cause accounts for the extra latency.
    Unexplained,
    /// Most of the extra latency is the load generator's own lateness: it limits what this run can
    /// tell about the service.
    GeneratorLimited,
    /// The evidence does not allow an answer; the reasons say why.
    Inconclusive,
    /// The slow samples are not slower than the rest in any way worth explaining, or there are
    /// no samples.
    NoSlowSamples,
    /// What a newer version of observer wrote, which this one does not know.
    #[serde(other)]
    Unknown,
}

impl Outcome {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attributed => "attributed",
            Self::Unexplained => "unexplained",
            Self::GeneratorLimited => "generator_limited",
            Self::Inconclusive => "inconclusive",
            Self::NoSlowSamples => "no_slow_samples",
            Self::Unknown => "unknown",
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Kind of answer.
    pub outcome: Outcome,
    /// Largest named cause; only with `attributed`.
    pub top_cause: Option<Cause>,
    /// Why the outcome is what it is.
    pub reasons: Vec<Reason>,
}

/// Response-time percentiles, nanoseconds (hdrhistogram, three significant digits).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

/// The generator's samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplesSummary {
    /// Samples used.
    pub count: u64,
    /// Of these, failed requests.
    pub errors: u64,
    /// The failed requests by kind: `status_503`, the kind or text of the generator's error, or
    /// `no_answer`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors_by_kind: BTreeMap<String, u64>,
    /// Samples per second, from the first to the last sample.
    pub rate_hz: f64,
    /// Response times from the intended start where known.
    pub latency_ns: LatencySummary,
    /// Every sample has an intended start; otherwise latencies are open to coordinated omission.
    pub intended_start_known: bool,
    /// Possible error of all samples' times on the kernel's clock, apart from their own resolution.
    #[serde(default)]
    pub clock_error_ns: u64,
    /// How late requests were sent (actual minus intended start); zeros when unknown.
    #[serde(default)]
    pub lateness_ns: LatencySummary,
    /// Rows of the generator's output that could not be used, by reason.
    #[serde(default)]
    pub skipped: BTreeMap<String, u64>,
    /// Which samples count as slow, as asked for (`p99`, `50ms`).
    #[serde(default)]
    pub slow_rule: String,
    /// Slow samples.
    #[serde(default)]
    pub slow_count: u64,
    /// Slow samples, without those that were left out because records that may matter were lost
    /// while they ran.
    #[serde(default)]
    pub slow_left_out: u64,
    /// Smallest response time that counts as slow.
    #[serde(default)]
    pub slow_threshold_ns: u64,
    /// Mean response time of the slow samples.
    #[serde(default)]
    pub slow_mean_ns: f64,
    /// Mean response time of the median half (25th to 75th percentile).
    #[serde(default)]
    pub typical_mean_ns: f64,
}

/// How the generator's samples were matched with the requests that the target's sockets saw; zeros
/// where none were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestsSummary {
    /// Samples whose request is known.
    pub matched: u64,
    /// Samples with a request, for which another one is about as likely.
    pub ambiguous: u64,
    /// Samples without a request.
    pub unmatched: u64,
    /// Samples over connections that carried several requests at a time (HTTP/2): their requests cannot be
    /// told apart.
    pub multiplexed: u64,
    /// How the samples' clock moved against the kernel's; missing where nothing says that it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_drift: Option<ClockDrift>,
}

impl RequestsSummary {
    /// Samples that were compared with requests.
    #[must_use]
    pub const fn samples(&self) -> u64 {
        self.matched + self.ambiguous + self.unmatched + self.multiplexed
    }
}

/// Where the time of the requests went: mean nanoseconds of each part per request. The parts of a group
/// sum to the mean latency of its requests that were matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Accounts {
    /// Of the slow requests.
    pub slow: BTreeMap<Cause, u64>,
    /// Of the typical requests.
    pub typical: BTreeMap<Cause, u64>,
    /// Of all requests, by latency, the fastest first.
    pub bands: Vec<BandAccount>,
}

/// Where the time of the requests went whose latency is between two quantiles of all latencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BandAccount {
    /// The lower quantile, 0 to 1.
    pub from: f64,
    /// The upper quantile, 0 to 1.
    pub to: f64,
    /// Requests in the account.
    pub requests: u64,
    /// Mean nanoseconds of each part.
    pub parts_ns: BTreeMap<Cause, u64>,
}

impl Eq for BandAccount {}

/// The part of the slow samples' extra latency that one cause accounts for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CauseSummary {
    /// Cause.
    pub cause: Cause,
    /// Share of the excess latency of the slow samples, 0 to 1.
    pub share: f64,
    /// 95 % interval of the share.
    pub ci95: [f64; 2],
    /// How likely coincidence alone gives this much overlap; `None` for the unexplained rest, for what is no
    /// stall, and where all of the time of the requests is accounted for.
    pub p_value: Option<f64>,
    /// Mean nanoseconds per slow sample.
    pub contribution_ns: f64,
    /// Stalls of this cause during the run.
    pub stalls: u64,
    /// Whether the evidence suffices to name it.
    #[serde(default)]
    pub named: bool,
    /// What the p99 of the requests would have been without it; `None` where that is not known.
    #[serde(flatten)]
    pub without: Option<P99Without>,
    /// In what its stalls waited, or for whom, with the time in slow and in typical requests: the largest
    /// parts of slow requests, the largest first. Empty where the records do not say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<CauseObject>,
}

/// What the p99 of the requests would have been without a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct P99Without {
    /// Nanoseconds.
    pub p99_without_ns: u64,
    /// 95 % interval of that, nanoseconds.
    pub p99_without_ci95: [u64; 2],
}

/// A system call in which, or a process for which, stalls of a cause waited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseObject {
    /// The call, with the address at which it waited, or the name of those who had the CPU, where `*` stands
    /// for a number.
    pub what: String,
    /// Mean nanoseconds of a slow request.
    pub slow_ns: u64,
    /// Mean nanoseconds of a typical request.
    pub typical_ns: u64,
}

/// The p99 of the requests, and what it would have been without some causes: their stalls are taken
/// away, and the queue of each thread is replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Without {
    /// As measured, of the requests for which it is known which threads served them.
    pub p99_ns: u64,
    /// Without the causes.
    pub p99_without_ns: u64,
    /// 95 % interval of that.
    pub ci95: [u64; 2],
}

/// A cause that was watched, measured, and excluded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuledOut {
    /// Cause.
    pub cause: Cause,
    /// Measured share of the extra latency of the slow samples, 0 to 1.
    pub share: f64,
    /// 95 % interval of the share.
    pub ci95: [f64; 2],
    /// Stalls of this cause during the run.
    pub stalls: u64,
    /// Why it is excluded.
    pub reason: Reason,
}

/// The state of a probe on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// All of it works.
    Attached,
    /// Part of it works; the reason says which part does not.
    Partial,
    /// This kernel does not offer it.
    Unsupported,
    /// This kernel offers it, and loading or attaching failed.
    Failed,
    /// It was left out on purpose.
    NotAsked,
    /// What a newer version of observer wrote, which this one does not know.
    #[serde(other)]
    Unknown,
}

impl ProbeState {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Partial => "partial",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
            Self::NotAsked => "not_asked",
            Self::Unknown => "unknown",
        }
    }
}

/// Coverage and distribution of one probe, target only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeSummary {
    /// Coverage.
    pub state: ProbeState,
    /// How it is attached: a name of docs/PROBES.md (`tp_btf`, `perf_event`, ...).
    pub tier: Option<String>,
    /// Why it is not (completely) attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Stalls counted in the kernel's histograms over the run, all tasks of the target's cgroup
    /// slots (every event, whether or not a record was sent).
    pub count: u64,
    /// Their total length.
    pub sum_ns: u64,
    /// Median, from the histogram.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Longest.
    pub max_ns: u64,
    /// The same, split further (`minor`, `major`, `mmap`, ...).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, DistributionSummary>,
    /// Stalls of the target that came as records.
    #[serde(default)]
    pub records: u64,
    /// Total length of the stalls that did not: shorter than the floor, or lost. They are in the
    /// distributions and not in the attribution, where they are part of the unexplained rest.
    #[serde(default)]
    pub unrecorded_ns: u64,
    /// Other counts of this probe (failures by errno, live sockets, kswapd wake-ups).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, i64>,
}

/// A distribution in five numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistributionSummary {
    /// Observations.
    pub count: u64,
    /// Their sum.
    pub sum_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

/// Everything that was lost, clamped or skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossSummary {
    /// Records that could not be delivered.
    pub total: u64,
    /// By kind, whole host: ring losses under the record kind's name, other losses under their own.
    pub by_kind: BTreeMap<String, u64>,
    /// The part of them that concerns the target; `None` in runs of older versions. All of
    /// `program_missed`, since it is not known which task that concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_by_kind: Option<BTreeMap<String, u64>>,
    /// What `program_missed` is made of: skipped runs by program, since it was loaded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped_runs: BTreeMap<String, u64>,
}

impl LossSummary {
    /// Adds a loss of records or names, which exist for the target alone.
    pub fn add_of_target(&mut self, kind: &str, count: u64) {
        let of_target = self.target_by_kind.get_or_insert_default();
        for by_kind in [&mut self.by_kind, of_target] {
            *by_kind.entry(kind.to_owned()).or_default() += count;
        }
    }
}

/// The records of one kind, over the life of the probes: `sent + lost` were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSummary {
    /// Put into the ring.
    pub sent: u64,
    /// Taken out of it again.
    pub delivered: u64,
    /// Found it full.
    pub lost: u64,
    /// Delivered and left out of the trace, which kept every n-th only.
    #[serde(default)]
    pub sampled_out: u64,
    /// Delivered and left out of the trace, which had no room for more of the kind.
    #[serde(default)]
    pub beyond_cap: u64,
    /// Removed from the trace again, with the oldest part of one of bounded size.
    #[serde(default)]
    pub removed: u64,
}

/// One floor, from an instant on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorSpan {
    /// Since when.
    pub from_ns: MonoNanos,
    /// Stalls shorter than this were counted and not sent.
    pub floor_ns: u64,
    /// Why it was changed; `None` for the first.
    pub reason: Option<FloorReason>,
}

/// The floor of one kind of record over the run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloorSummary {
    /// Smallest.
    pub lowest_ns: u64,
    /// Largest.
    pub highest_ns: u64,
    /// At the end.
    pub last_ns: u64,
    /// How often it was changed.
    pub changes: u64,
    /// How long it was higher than at the start.
    pub raised_for_ns: u64,
    /// The time up to which that is counted.
    #[serde(skip)]
    pub(crate) counted_until: MonoNanos,
    /// Length of the stalls that went unrecorded in that time.
    pub hidden_ns: u64,
    /// Which floor applied when; only the first few hundred changes, all are in the trace.
    pub history: Vec<FloorSpan>,
}

/// Changes kept with their time; all of them are in the trace, and counted.
const SPANS_MAX: usize = 500;

impl FloorSummary {
    /// The floor in force at the start.
    #[must_use]
    pub fn new(start: MonoNanos, floor_ns: u64) -> Self {
        Self {
            lowest_ns: floor_ns,
            highest_ns: floor_ns,
            last_ns: floor_ns,
            counted_until: start,
            history: vec![FloorSpan { from_ns: start, floor_ns, reason: None }],
            ..Self::default()
        }
    }

    /// The first floor.
    #[must_use]
    pub fn first_ns(&self) -> u64 {
        self.history.first().map_or(self.lowest_ns, |span| span.floor_ns)
    }

    /// Notes a change.
    pub fn note(&mut self, at: MonoNanos, change: &FloorChange) {
        self.pass(at);
        self.changes += 1;
        self.last_ns = change.new_ns;
        self.lowest_ns = change.new_ns.min(self.lowest_ns);
        self.highest_ns = change.new_ns.max(self.highest_ns);
        if self.history.len() < SPANS_MAX {
            let reason = Some(change.reason);
            self.history.push(FloorSpan { from_ns: at, floor_ns: change.new_ns, reason });
        }
    }

    /// Counts the time until `now` for the floor in force.
    pub fn pass(&mut self, now: MonoNanos) {
        if self.last_ns > self.first_ns() {
            self.raised_for_ns += now.since(self.counted_until);
        }
        self.counted_until = now;
    }
}

/// What the observer itself cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SelfSummary {
    /// User and system time of the observer process.
    pub cpu_seconds: f64,
    /// Peak resident set.
    pub max_rss_bytes: u64,
    /// Resident set at the end of the run, before the answer was worked out.
    #[serde(default)]
    pub rss_bytes: u64,
    /// Upper bound of the resident set of a run.
    #[serde(default)]
    pub rss_bound_bytes: u64,
    /// Time inside the BPF programs (0 when the kernel's BPF statistics could not be enabled).
    pub bpf_run_time_ns: u64,
    /// Runs of the BPF programs.
    pub bpf_run_count: u64,
    /// Locked memory of the BPF maps.
    #[serde(default)]
    pub bpf_map_bytes: u64,
    /// Times the thread that drains the ring woke up: on its timer, never for a record.
    #[serde(default)]
    pub drain_wakeups: u64,
    /// What observer added to the host; `None` where the kernel has no BPF run-time statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_cpu_share: Option<AddedShare>,
}

/// CPU time that observer added to the host, as a share of that of all CPUs: its own threads, its
/// BPF programs, and what their hooks cost the threads that pass them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddedShare {
    /// Mean over the run.
    pub share: f64,
    /// 95 % interval of the mean.
    pub ci95: [f64; 2],
    /// Short windows in which it was measured.
    pub windows: u64,
}

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`SUMMARY_SCHEMA`].
    pub schema: u32,
    /// The answer.
    pub verdict: Verdict,
    /// The generator's side.
    pub samples: SamplesSummary,
    /// How the samples were matched with the requests that the target served.
    #[serde(default)]
    pub requests: RequestsSummary,
    /// Where the time of the slow and of the typical requests went, if it is known which threads served
    /// them and when these slept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_ns: Option<Accounts>,
    /// The p99 without all named causes; missing where that is not known, or none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_named: Option<Without>,
    /// Causes, largest share first, the unexplained rest last.
    pub causes: Vec<CauseSummary>,
    /// Causes that were watched, measured, and excluded. Empty unless the run is conclusive.
    #[serde(default)]
    pub ruled_out: Vec<RuledOut>,
    /// The slowest requests that were watched from begin to end, slowest first.
    #[serde(default)]
    pub slowest_requests: Vec<SlowRequest>,
    /// The conditions under which the target ran.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Probes by name.
    pub probes: BTreeMap<String, ProbeSummary>,
    /// Losses.
    pub loss: LossSummary,
    /// Records by kind.
    #[serde(default)]
    pub records: BTreeMap<String, RecordSummary>,
    /// Floors by kind of record.
    #[serde(default)]
    pub floors: BTreeMap<String, FloorSummary>,
    /// Own cost.
    pub observer: SelfSummary,
}
