//! The line format of `observer load`, which any tool can write: docs/SAMPLE_FORMAT.md.
//!
//! Both sides use the types here: the generator writes them, the adapter reads them.

use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterInfo, ClockKind, Framing, IngestError, IntendedStart, RawRow, Sink};

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
#[derive(Debug, Default)]
struct ObserverLoad {
    header: Option<Header>,
    end: Option<EndSummary>,
    rows: u64,
    foreign: bool,
}

impl ObserverLoad {
    fn line(&mut self, line: &[u8], sink: &mut Sink) {
        if self.header.is_none() {
            self.first(line, sink);
        } else if self.foreign {
            sink.skip("after_second_header");
        } else if self.end.is_some() {
            sink.skip("after_summary");
        } else if let Ok(row) = serde_json::from_slice::<Row>(line) {
            self.rows += 1;
            let status = row.status.filter(|status| *status != 0);
            let ok = row.error.is_none() && status.is_none_or(is_success);
            sink.push(RawRow {
                intended_start_ns: row.intended_start_ns,
                start_ns: row.start_ns,
                latency_ns: row.latency_ns,
                status,
                error: row.error,
                seq: row.seq,
                ok,
            });
        } else if let Ok(end) = serde_json::from_slice::<EndLine>(line) {
            sink.structural += 1;
            self.end = Some(end.summary);
        } else if serde_json::from_slice::<Header>(line).is_ok() {
            // Two concatenated outputs may be on two clocks.
            sink.skip("second_header");
            self.foreign = true;
        } else {
            sink.skip("malformed_line");
        }
    }

    fn first(&mut self, line: &[u8], sink: &mut Sink) {
        let wrong = |detail: String| IngestError::WrongFormat {
            expected: INFO.name,
            detail,
            looks_like: None,
        };
        let header = match serde_json::from_slice::<Header>(line) {
            Ok(header) if header.format == FORMAT => header,
            Ok(header) => {
                sink.fatal = Some(wrong(format!("the header says format {:?}", header.format)));
                return;
            }
            Err(_) => {
                sink.fatal = Some(wrong("the first line is not a header".into()));
                return;
            }
        };
        sink.same_host = header.boot_id.is_some() && header.boot_id == sink.boot_id;
        sink.fatal = if header.version != VERSION {
            Some(IngestError::Version { found: header.version, known: VERSION })
        } else if header.unit != UNIT {
            Some(wrong(format!("the unit is {:?}; only {UNIT:?} is supported", header.unit)))
        } else if header.clock == ClockName::Monotonic {
            match (&header.boot_id, sink.boot_id.clone()) {
                (None, _) => Some(wrong("clock \"monotonic\" needs a boot_id".into())),
                (Some(found), Some(here)) if *found != here => {
                    Some(IngestError::OtherBoot { found: found.clone(), here })
                }
                _ => None,
            }
        } else {
            None
        };
        sink.structural += 1;
        self.header = Some(header);
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
        if self.header.is_none() || sink.fatal.is_some() {
            return;
        }
        match &self.end {
            None => {
                sink.unfinished = true;
                sink.notes.push(
                    "the samples have no summary line: the generator did not end normally, and rows \
                     may be missing"
                        .into(),
                );
            }
            Some(end) => {
                let missing = end.sent.saturating_sub(self.rows);
                if missing > 0 {
                    sink.skipped.insert("missing_by_summary", missing);
                    sink.unfinished = true;
                }
                if end.rows_lost > 0 {
                    sink.skipped.insert("lost_by_generator", end.rows_lost);
                }
                if end.interrupted {
                    sink.notes.push(
                        "the generator was interrupted before the end of its schedule".into(),
                    );
                }
            }
        }
    }

    fn clock(&self) -> Option<ClockKind> {
        self.header.as_ref().map(|header| match header.clock {
            ClockName::Monotonic => ClockKind::Monotonic,
            ClockName::Realtime => ClockKind::WallPerEvent,
        })
    }
}
