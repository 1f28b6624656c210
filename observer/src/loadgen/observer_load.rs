//! The line format of `observer load`, which any tool can write: docs/SAMPLE_FORMAT.md.
//!
//! Both sides use the types here: the generator writes them, the adapter reads them.

use serde::{Deserialize, Serialize};

use super::{
    Adapter, AdapterInfo, ClockKind, EARLIER_RECORDING, Framing, IngestError, IntendedStart,
    MALFORMED, RawRow, Sink, outcome,
};

/// The row of this adapter.
pub static INFO: AdapterInfo = AdapterInfo {
    name: "observer-load",
    aliases: &["observer"],
    doc: "JSON lines of `observer load`, or of any tool that writes docs/SAMPLE_FORMAT.md",
    clock: ClockKind::Monotonic,
    intended_start: IntendedStart::Recorded,
    framing: Framing::Lines,
    looks_like,
    start: || Box::<ObserverLoad>::default(),
};

/// `format` of the header line.
pub const FORMAT: &str = "observer-samples";

/// `version` of the header line.
pub const VERSION: u64 = 1;

/// The only `unit`.
pub const UNIT: &str = "ns";

/// The clock of the times in the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockName {
    /// `CLOCK_MONOTONIC` of the host with the header's boot id.
    Monotonic,
    /// `CLOCK_REALTIME`, nanoseconds since the Unix epoch, read for each request.
    Realtime,
}

/// The schedule by which requests were sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleInfo {
    /// `constant` or `poisson`.
    pub arrivals: String,
    /// Mean requests per second.
    pub rate_hz: f64,
    /// How long requests are sent.
    pub duration_ns: u64,
    /// When the schedule begins, on the header's clock.
    pub start_ns: u64,
    /// Seed of random arrivals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u64,
    /// Clock of every `*_start_ns`.
    pub clock: ClockName,
    /// `/proc/sys/kernel/random/boot_id` of the host; needed with the monotonic clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// [`UNIT`].
    pub unit: String,
    /// What wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<String>,
    /// What was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The schedule, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleInfo>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Number in the schedule, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// When the schedule wanted the request to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intended_start_ns: Option<u64>,
    /// When it was sent.
    pub start_ns: u64,
    /// From `start_ns` to the last byte of the answer, or to the failure.
    pub latency_ns: u64,
    /// HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong: `kind` or `kind: detail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Port of the connection at the generator's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
}

/// Median, 99th percentile and largest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// Content of the last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndSummary {
    /// Rows written before this line.
    pub sent: u64,
    /// Of these, successes.
    pub ok: u64,
    /// Of these, failures.
    pub errors: u64,
    /// Requests that have no row because the output could not keep up.
    #[serde(default)]
    pub rows_lost: u64,
    /// Actual minus intended start.
    #[serde(default)]
    pub lateness_ns: Quantiles,
    /// It ended early, on a signal.
    #[serde(default)]
    pub interrupted: bool,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndLine {
    /// Its content.
    pub summary: EndSummary,
}

/// Whether a status is a success, by the same rule as vegeta and most other generators.
#[must_use]
pub const fn is_success(status: u16) -> bool {
    status >= 200 && status < 400
}

fn looks_like(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let first = text.lines().next().unwrap_or_default();
    first.starts_with('{') && (first.contains(FORMAT) || first.contains("\"latency_ns\""))
}

/// The adapter.
///
/// A stream may hold several recordings, each with a header: a file that an earlier run left, to which
/// this run's generator appends, or the output of two generators that ran one after the other.
#[derive(Debug, Default)]
struct ObserverLoad {
    /// Since the last header.
    recording: Option<Recording>,
    /// Clock of the rows that are kept.
    clock: Option<ClockName>,
    /// Lines that belong to no header that can be used: in front of the first one, or behind one that
    /// names another clock or version.
    stray: u64,
    /// Why such a header cannot be used.
    refused: Option<IngestError>,
    ends: u64,
}

/// What follows one header.
#[derive(Debug)]
struct Recording {
    usable: bool,
    /// Lines at the place of rows, readable or not: each is counted once.
    rows: u64,
    end: Option<EndSummary>,
}

impl Recording {
    /// Rows that its summary line counts and that were not there.
    fn missing(&self, too_long: u64) -> u64 {
        let sent = self.end.as_ref().map_or(0, |end| end.sent);
        sent.saturating_sub(self.rows).saturating_sub(too_long)
    }

    const fn is_open(&self) -> bool {
        self.usable && self.end.is_none()
    }
}

fn wrong(detail: String) -> IngestError {
    IngestError::WrongFormat { expected: INFO.name, detail, looks_like: None }
}

/// Why the rows behind a header cannot be used.
fn refusal(header: &Header, here: Option<&str>) -> Option<IngestError> {
    if header.format != FORMAT {
        Some(wrong(format!("the header says format {:?}", header.format)))
    } else if header.version != VERSION {
        Some(IngestError::Version { found: header.version, known: VERSION })
    } else if header.unit != UNIT {
        Some(wrong(format!("the unit is {:?}; only {UNIT:?} is supported", header.unit)))
    } else if header.clock == ClockName::Realtime {
        None
    } else {
        match (&header.boot_id, here) {
            (None, _) => Some(wrong("clock \"monotonic\" needs a boot_id".into())),
            (Some(found), Some(here)) if found != here => {
                Some(IngestError::OtherBoot { found: found.clone(), here: here.to_owned() })
            }
            _ => None,
        }
    }
}

impl ObserverLoad {
    fn line(&mut self, line: &[u8], sink: &mut Sink) {
        if let Ok(row) = serde_json::from_slice::<Row>(line) {
            if let Some(recording) = self.open(sink) {
                recording.rows += 1;
                let (status, error, ok) = outcome(row.status, row.error);
                sink.push(RawRow {
                    intended_start_ns: row.intended_start_ns,
                    start_ns: row.start_ns,
                    latency_ns: row.latency_ns,
                    status,
                    error,
                    seq: row.seq,
                    local_port: row.local_port,
                    ok,
                });
            }
        } else if let Ok(header) = serde_json::from_slice::<Header>(line) {
            self.begin(&header, sink);
        } else if let Ok(end) = serde_json::from_slice::<EndLine>(line) {
            if let Some(recording) = self.open(sink) {
                recording.end = Some(end.summary);
                sink.structural += 1;
                self.ends += 1;
            }
        } else if self.recording.is_none() && self.stray == 0 {
            sink.fatal = Some(wrong("the first line is not a header".into()));
        } else if let Some(recording) = self.open(sink) {
            recording.rows += 1;
            sink.skip(MALFORMED);
        }
    }

    /// The recording that a line belongs to; a line that belongs to none is counted.
    fn open(&mut self, sink: &mut Sink) -> Option<&mut Recording> {
        match self.recording.as_mut().filter(|recording| recording.usable) {
            None => {
                self.stray += 1;
                None
            }
            Some(recording) if recording.end.is_some() => {
                sink.skip("after_summary");
                None
            }
            open => open,
        }
    }

    fn begin(&mut self, header: &Header, sink: &mut Sink) {
        sink.structural += 1;
        if let Some(earlier) = self.recording.take().filter(|earlier| earlier.usable) {
            sink.earlier_is_cut |= earlier.is_open() || earlier.missing(0) > 0;
        }
        sink.same_host = header.boot_id.is_some() && header.boot_id == sink.boot_id;
        let refused = refusal(header, sink.boot_id.as_deref());
        let usable = refused.is_none();
        if usable {
            // Without a clock of this host, nothing says that they are of this run.
            sink.skip_many(EARLIER_RECORDING, std::mem::take(&mut self.stray));
            if self.clock.is_some_and(|clock| clock != header.clock) {
                sink.skip_many("unusable_recording", sink.rows.len() as u64);
                sink.rows.clear();
            }
            sink.earlier = sink.rows.len();
            self.clock = Some(header.clock);
        }
        self.refused = refused;
        self.recording = Some(Recording { usable, rows: 0, end: None });
    }
}

impl Adapter for ObserverLoad {
    fn records(&mut self, block: &[u8], sink: &mut Sink) {
        for line in block.split(|byte| *byte == b'\n') {
            if sink.fatal.is_some() {
                return;
            }
            let line = line.trim_ascii();
            if !line.is_empty() {
                self.line(line, sink);
            }
        }
    }

    fn finish(&mut self, sink: &mut Sink) {
        sink.empty_hint = "the generator ended before its first request";
        if self.clock.is_none() {
            let headless = || wrong("the first line is not a header".into());
            if self.refused.is_some() || self.stray > 0 {
                sink.fatal = Some(self.refused.take().unwrap_or_else(headless));
            }
            return;
        }
        if let Some(error) = &self.refused {
            sink.notes.push(format!("the last part of the samples cannot be used: {error}"));
            sink.skip_many("unusable_recording", self.stray);
        }
        let Some(recording) = self.recording.as_ref().filter(|recording| recording.usable) else {
            return;
        };
        let Some(end) = &recording.end else {
            sink.unfinished = true;
            sink.notes.push(
                "the samples have no summary line: the generator did not end normally, and rows \
                 may be missing"
                    .into(),
            );
            return;
        };
        let missing = recording.missing(sink.too_long);
        sink.skip_many("missing_by_summary", missing);
        sink.unfinished |= missing > 0;
        sink.skip_many("lost_by_generator", end.rows_lost);
        if end.interrupted {
            sink.notes.push("the generator was interrupted before the end of its schedule".into());
        }
    }

    fn clock(&self) -> Option<ClockKind> {
        self.clock.map(|clock| match clock {
            ClockName::Monotonic => ClockKind::Monotonic,
            ClockName::Realtime => ClockKind::WallPerEvent,
        })
    }

    fn ends(&self) -> u64 {
        self.ends
    }
}
