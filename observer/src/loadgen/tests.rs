//! The adapters on what the generators really wrote (tests/fixtures/loadgen), and on bad input.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::observer_load::{
    ClockName, EndLine, EndSummary, FORMAT, Header, Quantiles, Row, UNIT, VERSION,
};
use super::*;
use crate::clock::{Anchor, Anchors, MonoNanos, WallNanos};
use crate::error::Exit;
use crate::host::system::boot_id;
use crate::model::GeneratorProcesses;

/// The target's.
const PORT: u16 = 80;

#[derive(Clone, Copy, Deserialize)]
struct Clocks {
    realtime_ns: u64,
    monotonic_ns: u64,
}

pub(super) fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/fixtures/loadgen/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Clock readings around the run that wrote a fixture, by moment.
fn clocks(name: &str) -> BTreeMap<String, Clocks> {
    let mut all: BTreeMap<String, BTreeMap<String, Clocks>> =
        serde_json::from_slice(&fixture("clocks.json")).unwrap();
    all.remove(name).unwrap()
}

pub(super) struct Run {
    pub(super) anchors: Anchors,
    pub(super) window: Window,
    pub(super) seen: RelAnchor,
}

impl Run {
    /// The run a fixture was written in.
    pub(super) fn of(name: &str) -> Self {
        let clocks = clocks(name);
        let mono = |moment: &str| MonoNanos(clocks[moment].monotonic_ns);
        let anchor = |moment: &str| Anchor {
            monotonic_ns: mono(moment),
            wall_ns: WallNanos(clocks[moment].realtime_ns),
            uncertainty_ns: 100,
        };
        let (start, end) = (mono("before_spawn"), mono("after_exit"));
        Self {
            anchors: Anchors(vec![anchor("before_spawn"), anchor("after_exit")]),
            window: Window { start, end, went_on: false },
            seen: RelAnchor {
                spawned: Some(start),
                exited: Some(end),
                processes: Some(GeneratorProcesses { processes: vec![], connects_known: true }),
                ports: BTreeSet::from([PORT]),
            },
        }
    }

    /// A run on this host, around rows at `start + 0..1 s`.
    pub(super) fn here(start: u64) -> Self {
        Self {
            anchors: Anchors(vec![Anchor::take()]),
            window: Window {
                start: MonoNanos(start),
                end: MonoNanos(start + 1_000_000_000),
                went_on: false,
            },
            seen: RelAnchor::default(),
        }
    }

    pub(super) fn ingest(&self, format: &str, bytes: &[u8]) -> Result<Ingested, IngestError> {
        let mut ingest = Ingest::new(adapter(format).unwrap());
        ingest.feed(bytes);
        ingest.finish(&self.anchors, self.window, &self.seen)
    }
}

pub(super) fn skipped(ingested: &Ingested) -> Vec<(&str, u64)> {
    ingested.skipped.iter().map(|(reason, count)| (reason.as_str(), *count)).collect()
}

#[test]
fn vegeta_csv_and_json_say_the_same() {
    let run = Run::of("vegeta.csv");
    let csv = run.ingest("vegeta-csv", &fixture("vegeta.csv")).unwrap();
    let json = run.ingest("vegeta-json", &fixture("vegeta.json")).unwrap();
    assert_eq!(csv.samples, json.samples);
    assert_eq!(csv.samples.len(), 300);
    let mut numbers: Vec<u64> = csv.samples.iter().filter_map(|sample| sample.seq).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    assert!(csv.samples.iter().all(|sample| sample.ok && sample.precision_ns == 1));
    assert!(csv.over_wall_clock && !csv.truncated && csv.skipped.is_empty());
    assert!(csv.uncertainty_ns < 10_000, "{}", csv.uncertainty_ns);
    // 100 per second, sent within 0.6 ms of its slots.
    assert!(csv.intended_start_known, "{:?}", csv.notes);
    assert!(csv.samples.iter().all(|sample| sample.lateness_ns() < 1_500_000));
    assert!(csv.notes[0].contains("100 requests per second"), "{:?}", csv.notes);
}

#[test]
fn slow_requests_overlap_the_pause_that_made_them_slow() {
    let clocks = clocks("vegeta-pause.csv");
    let begin = MonoNanos(clocks["server_pause_begin"].monotonic_ns);
    let end = MonoNanos(clocks["server_pause_end"].monotonic_ns);
    let run = Run::of("vegeta-pause.csv");
    let ingested = run.ingest("vegeta-csv", &fixture("vegeta-pause.csv")).unwrap();
    let slow: Vec<_> =
        ingested.samples.iter().filter(|sample| sample.response_ns() > 20_000_000).collect();
    // 300 ms at 100 requests per second; the last two waited for less than 20 ms.
    assert_eq!(slow.len(), 28);
    assert!(slow.iter().all(|sample| sample.start <= end && sample.end >= begin));
    assert_eq!(ingested.samples.iter().filter(|s| s.start <= end && s.end >= begin).count(), 30);
    // It was the server that stopped: the generator was on time.
    assert!(ingested.intended_start_known);
    assert!(ingested.samples.iter().all(|sample| sample.lateness_ns() < 2_000_000));
}

#[test]
fn failed_requests_keep_their_latency() {
    let ingested =
        Run::of("vegeta-err.csv").ingest("vegeta-csv", &fixture("vegeta-err.csv")).unwrap();
    assert_eq!(ingested.samples.len(), 20);
    let unanswered: Vec<_> =
        ingested.samples.iter().filter(|sample| sample.status.is_none()).collect();
    assert_eq!(unanswered.len(), 9);
    for sample in &unanswered {
        assert!(!sample.ok && sample.error.is_some());
        assert!(sample.response_ns() > 100_000);
    }
    let timeouts = unanswered.iter().filter(|sample| sample.response_ns() > 500_000_000).count();
    assert_eq!(timeouts, 3);
    // A quoted field with a comma and doubled quotes.
    let refused = "Get \"http://127.0.0.1:18081/\": dial tcp 0.0.0.0:0->127.0.0.1:18081: connect: \
                   connection refused";
    assert!(ingested.samples.iter().any(|sample| sample.error.as_deref() == Some(refused)));
    let unavailable = ingested.samples.iter().find(|sample| sample.status == Some(503)).unwrap();
    assert!(!unavailable.ok);
}

#[test]
fn the_row_for_no_target_is_no_request() {
    let ingested =
        Run::of("vegeta-lazy.json").ingest("vegeta-json", &fixture("vegeta-lazy.json")).unwrap();
    assert_eq!(ingested.samples.len(), 2);
    assert_eq!(skipped(&ingested), [("no_targets", 1)]);
    assert!(!ingested.intended_start_known);
    assert!(ingested.notes[0].contains("too few requests"), "{:?}", ingested.notes);
}

#[test]
fn hey_without_any_anchor_is_on_no_clock() {
    let mut run = Run::of("hey.csv");
    run.seen = RelAnchor::default();
    let error = run.ingest("hey", &fixture("hey.csv")).unwrap_err();
    assert_eq!(error, IngestError::NoAnchor);
    assert_eq!(error.exit(), Exit::SamplesClock);
}

#[test]
fn hey_keeps_error_answers_and_says_that_failures_are_missing() {
    let run = Run::of("hey.csv");
    let ingested = run.ingest("hey", &fixture("hey-503.csv")).unwrap();
    assert_eq!(ingested.samples.len(), 40);
    assert!(ingested.samples.iter().all(|sample| !sample.ok && sample.status == Some(503)));
    assert!(ingested.notes.iter().any(|note| note.contains("omits failed requests")));
    let error = run.ingest("hey", &fixture("hey-refused.csv")).unwrap_err();
    assert_eq!(error.exit(), Exit::SamplesEmpty);
    assert!(error.to_string().contains("without -o csv"), "{error}");
}

#[test]
fn hey_columns_are_found_by_name() {
    let run = Run::of("hey.csv");
    let text = b"offset,status-code,response-time\n0.5000,204,0.0250\n";
    let ingested = run.ingest("hey", text).unwrap();
    assert_eq!(ingested.samples[0].status, Some(204));
    assert_eq!(ingested.samples[0].response_ns(), 25_000_000);
}

pub(super) fn header(clock: ClockName, boot: Option<String>) -> Header {
    Header {
        format: FORMAT.into(),
        version: VERSION,
        clock,
        boot_id: boot,
        unit: UNIT.into(),
        generator: None,
        url: None,
        schedule: None,
    }
}

pub(super) fn json_line(value: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).unwrap())
}

pub(super) fn row(seq: u64, start_ns: u64) -> Row {
    Row {
        seq: Some(seq),
        intended_start_ns: Some(start_ns - 1_000),
        start_ns,
        latency_ns: 2_000_000,
        status: Some(200),
        error: None,
        local_port: None,
    }
}

pub(super) fn end_line(sent: u64) -> String {
    let lateness_ns = Quantiles::default();
    let summary =
        EndSummary { sent, ok: sent, errors: 0, rows_lost: 0, lateness_ns, interrupted: false };
    json_line(&EndLine { summary })
}

/// Ten requests of a good stream on this host's clock, from `start`.
pub(super) fn stream(start: u64) -> String {
    let mut text = json_line(&header(ClockName::Monotonic, boot_id()));
    for seq in 0..10 {
        text += &json_line(&row(seq, start + 1_000 + seq * 50_000_000));
    }
    text + &end_line(10)
}

pub(super) const START: u64 = 5_000_000_000;

#[test]
fn the_line_format_needs_no_conversion() {
    let ingested = Run::here(START).ingest("observer", stream(START).as_bytes()).unwrap();
    assert_eq!(ingested.samples.len(), 10);
    assert_eq!(ingested.samples[1].intended_start, Some(MonoNanos(START + 50_000_000)));
    assert_eq!(ingested.samples[1].lateness_ns(), 1_000);
    assert_eq!(ingested.samples[1].response_ns(), 2_001_000);
    assert_eq!(ingested.uncertainty_ns, 0);
    assert!(!ingested.truncated && !ingested.over_wall_clock && ingested.intended_start_known);
    assert!(ingested.skipped.is_empty() && ingested.notes.is_empty());
}

#[test]
fn the_line_format_may_be_on_the_wall_clock() {
    let anchor = Anchor::take();
    let run = Run::here(anchor.monotonic_ns.0);
    let mut text = json_line(&header(ClockName::Realtime, None));
    text += &json_line(&row(0, anchor.wall_ns.0 + 7_000_000));
    text += &end_line(1);
    let run = Run { anchors: Anchors(vec![anchor]), ..run };
    let ingested = run.ingest("observer", text.as_bytes()).unwrap();
    assert_eq!(ingested.samples[0].start, MonoNanos(anchor.monotonic_ns.0 + 7_000_000));
    assert!(ingested.over_wall_clock);
}

#[test]
fn the_documented_example_is_the_format() {
    let path = format!("{}/../docs/SAMPLE_FORMAT.md", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.split("```").nth(1).unwrap().trim().lines().collect();
    assert_eq!(lines.len(), 4);
    let header: Header = serde_json::from_str(lines[0]).unwrap();
    assert_eq!((header.version, header.clock), (VERSION, ClockName::Monotonic));
    assert_eq!(json_line(&header).trim_end(), lines[0]);
    for line in &lines[1..3] {
        assert_eq!(json_line(&serde_json::from_str::<Row>(line).unwrap()).trim_end(), *line);
    }
    let end: EndLine = serde_json::from_str(lines[3]).unwrap();
    assert_eq!(json_line(&end).trim_end(), lines[3]);
    assert_eq!(end.summary.sent, 2);
    for info in ADAPTERS {
        assert!(text.contains(&format!("`{}`", info.name)), "{} is not described", info.name);
    }
}

#[test]
fn byte_by_byte_is_the_same_as_whole() {
    let here = stream(START);
    let cases = [
        ("vegeta-csv", fixture("vegeta-err.csv"), Run::of("vegeta-err.csv")),
        ("vegeta-json", fixture("vegeta.json"), Run::of("vegeta.csv")),
        ("hey", fixture("hey.csv"), Run::of("hey.csv")),
        ("observer", here.into_bytes(), Run::here(START)),
    ];
    for (format, bytes, run) in cases {
        let mut ingest = Ingest::new(adapter(format).unwrap());
        for byte in &bytes {
            ingest.feed(&[*byte]);
        }
        let piecewise = ingest.finish(&run.anchors, run.window, &run.seen).unwrap();
        assert_eq!(piecewise, run.ingest(format, &bytes).unwrap(), "{format}");
    }
}

#[test]
fn a_stream_cut_in_a_line_gives_what_was_whole() {
    for (format, name, run, whole) in [
        ("vegeta-csv", "vegeta.csv", "vegeta.csv", 300),
        ("vegeta-json", "vegeta.json", "vegeta.csv", 300),
        ("hey", "hey.csv", "hey.csv", 600),
    ] {
        let bytes = fixture(name);
        let ingested = Run::of(run).ingest(format, &bytes[..bytes.len() - 4]).unwrap();
        assert!(ingested.truncated, "{format}");
        assert_eq!(ingested.samples.len(), whole - 1, "{format}");
        assert_eq!(skipped(&ingested), [("truncated_record", 1)], "{format}");
        assert!(ingested.notes.iter().any(|note| note.contains("middle of a record")));
        let first = Run::of(run).ingest(format, &bytes[..20]).unwrap_err();
        assert_eq!(first.exit(), Exit::SamplesTruncated, "{format}: {first}");
    }
}

#[test]
fn a_stream_without_its_summary_line_is_truncated() {
    let text = stream(START);
    let run = Run::here(START);
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let ingested = run.ingest("observer", lines[..8].concat().as_bytes()).unwrap();
    assert!(ingested.truncated && ingested.samples.len() == 7);
    assert!(ingested.notes[0].contains("no summary line"), "{:?}", ingested.notes);
    // A row is missing in the middle: the summary knows.
    let gap = [&lines[..4], &lines[5..]].concat().concat();
    let ingested = run.ingest("observer", gap.as_bytes()).unwrap();
    assert!(ingested.truncated);
    assert_eq!(skipped(&ingested), [("missing_by_summary", 1)]);
    // Only the last line end is missing: everything is there.
    let ingested = run.ingest("observer", text.trim_end().as_bytes()).unwrap();
    assert!(!ingested.truncated && ingested.samples.len() == 10);
}

#[test]
fn lines_that_cannot_be_used_are_counted_by_reason() {
    let mut text = json_line(&header(ClockName::Monotonic, boot_id()));
    text += &json_line(&row(0, START + 1_000));
    text += "{\"seq\":1}\n\nnot json\n";
    text += &json_line(&row(2, START + 5_000_000_000));
    text += &end_line(4);
    text += &json_line(&row(3, START + 2_000));
    let ingested = Run::here(START).ingest("observer", text.as_bytes()).unwrap();
    assert_eq!(ingested.samples.len(), 1);
    // The summary counts the two malformed lines as rows.
    assert_eq!(
        skipped(&ingested),
        [("after_summary", 1), ("malformed_line", 2), ("outside_run", 1)]
    );
    assert!(!ingested.truncated);
}

#[test]
fn nothing_and_a_header_alone_are_distinguished() {
    for format in ADAPTERS {
        let error = Run::here(START).ingest(format.name, b"").unwrap_err();
        assert_eq!(error, IngestError::Empty, "{}", format.name);
        assert_eq!(error.exit(), Exit::SamplesEmpty);
    }
    let text = json_line(&header(ClockName::Monotonic, boot_id())) + &end_line(0);
    let error = Run::here(START).ingest("observer", text.as_bytes()).unwrap_err();
    assert!(matches!(error, IngestError::HeaderOnly { .. }), "{error}");
}

#[test]
fn every_format_is_distinguished_from_every_other() {
    let here = stream(START).into_bytes();
    let streams = [
        ("observer-load", here),
        ("hey", fixture("hey.csv")),
        ("vegeta-csv", fixture("vegeta.csv")),
        ("vegeta-csv", fixture("vegeta-err.csv")),
        ("vegeta-json", fixture("vegeta.json")),
    ];
    for (actual, bytes) in &streams {
        for info in ADAPTERS.iter().filter(|info| info.name != *actual) {
            let error = Run::here(START).ingest(info.name, bytes).unwrap_err();
            assert_eq!(error.exit(), Exit::SamplesFormat, "{actual} as {}", info.name);
            let text = error.to_string();
            assert!(text.ends_with(&format!("try --samples {actual}")), "{text}");
        }
    }
    let error = Run::here(START).ingest("hey", b"<html>\n<body>\n").unwrap_err();
    assert!(matches!(error, IngestError::WrongFormat { looks_like: None, .. }), "{error}");
}

#[test]
fn a_wrong_format_is_known_before_the_end() {
    let mut ingest = Ingest::new(adapter("observer").unwrap());
    ingest.feed(&fixture("hey.csv")[..200]);
    let error = ingest.failed().unwrap();
    assert!(matches!(error, IngestError::WrongFormat { looks_like: Some("hey"), .. }), "{error}");
}

#[test]
fn another_boot_and_another_clock_are_refused() {
    let other = "00000000-0000-0000-0000-000000000000";
    let mut text = json_line(&header(ClockName::Monotonic, Some(other.into())));
    text += &json_line(&row(0, START + 1_000));
    let error = Run::here(START).ingest("observer", text.as_bytes()).unwrap_err();
    assert!(matches!(error, IngestError::OtherBoot { .. }), "{error}");
    assert_eq!(error.exit(), Exit::SamplesClock);

    // A day later.
    let late = Run::here(START + 86_400_000_000_000);
    let error = late.ingest("observer", stream(START).as_bytes()).unwrap_err();
    assert_eq!(error.exit(), Exit::SamplesClock);
    assert!(error.to_string().contains("before it"), "{error}");
    // Recorded in an earlier run, and in a later one.
    let error =
        Run::of("vegeta-pause.csv").ingest("vegeta-csv", &fixture("vegeta.csv")).unwrap_err();
    assert!(matches!(error, IngestError::BeforeRun { count: 300, .. }), "{error}");
    let error =
        Run::of("vegeta.csv").ingest("vegeta-csv", &fixture("vegeta-pause.csv")).unwrap_err();
    assert!(matches!(error, IngestError::OtherClock { count: 300, .. }), "{error}");
}

#[test]
fn a_header_must_say_what_can_be_relied_on() {
    let run = Run::here(START);
    let refuse = |header: &Header| {
        let text = json_line(header) + &json_line(&row(0, START + 1_000));
        run.ingest("observer", text.as_bytes()).unwrap_err().to_string()
    };
    let good = header(ClockName::Monotonic, boot_id());
    assert!(refuse(&Header { boot_id: None, ..good.clone() }).contains("boot_id"));
    assert!(refuse(&Header { version: 9, ..good.clone() }).contains("version 9"));
    assert!(refuse(&Header { unit: "us".into(), ..good }).contains("unit"));
}

#[test]
fn progress_is_known_while_it_runs() {
    let mut ingest = Ingest::new(adapter("vegeta-csv").unwrap());
    assert_eq!(ingest.live(), Live::default());
    let bytes = fixture("vegeta-pause.csv");
    ingest.feed(&bytes);
    let live = ingest.live();
    assert_eq!((live.count, live.errors), (300, 0));
    assert!((live.rate_hz - 100.0).abs() < 0.5, "{}", live.rate_hz);
    assert!((250_000_000..300_000_000).contains(&live.p99_ns), "{}", live.p99_ns);
    assert_eq!(ingest.bytes(), bytes.len() as u64);
}

#[test]
fn hostile_input_is_counted_and_nothing_else() {
    let mut nested = json_line(&header(ClockName::Monotonic, boot_id()));
    nested += &format!("{{\"x\":{}\n", "[".repeat(100_000));
    nested += &json_line(&row(0, START + 1_000));
    nested += "{\"start_ns\":18446744073709551615,\"latency_ns\":18446744073709551615}\n";
    let ingested = Run::here(START).ingest("observer", nested.as_bytes()).unwrap();
    assert_eq!(ingested.samples.len(), 1);
    assert_eq!(skipped(&ingested), [("malformed_line", 2)]);

    let mut binary = fixture("vegeta.csv");
    binary.extend((0..=255u8).cycle().take(100_000));
    binary.extend_from_slice(b"\n");
    let ingested = Run::of("vegeta.csv").ingest("vegeta-csv", &binary).unwrap();
    assert_eq!(ingested.samples.len(), 300);
    assert!(ingested.truncated || !ingested.skipped.is_empty());
}
