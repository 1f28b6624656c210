//! Odd rows and rows of other runs, in every format.

use super::observer_load::{ClockName, Header, Row};
use super::tests::{Run, START, end_line, fixture, header, json_line, row, skipped, stream};
use super::*;
use crate::clock::MonoNanos;
use crate::error::Exit;
use crate::host::system::boot_id;

const OTHER_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// A stream of each format with the run that it is of.
fn good() -> Vec<(&'static str, String, Run)> {
    let text = |name: &str| String::from_utf8(fixture(name)).unwrap();
    vec![
        ("observer-load", stream(START), Run::here(START)),
        ("hey", text("hey.csv"), Run::of("hey.csv")),
        ("vegeta-csv", text("vegeta.csv"), Run::of("vegeta.csv")),
        ("vegeta-json", text("vegeta.json"), Run::of("vegeta.csv")),
    ]
}

/// Line `index` of the text changed.
fn with_line(text: &str, index: usize, change: impl Fn(&str) -> String) -> String {
    let lines = text.split_inclusive('\n').enumerate();
    lines.map(|(at, line)| if at == index { change(line) } else { line.to_owned() }).collect()
}

/// One column of a CSV line replaced.
fn with_column(line: &str, column: usize, value: &str) -> String {
    let mut columns: Vec<&str> = line.split(',').collect();
    columns[column] = value;
    columns.join(",")
}

/// One number of a JSON line replaced.
fn with_key(line: &str, key: &str, value: &str) -> String {
    let from = line.find(&format!("\"{key}\":")).unwrap() + key.len() + 3;
    let length = line[from..].find([',', '}']).unwrap();
    format!("{}{value}{}", &line[..from], &line[from + length..])
}

#[test]
fn a_status_of_zero_is_a_failure_in_every_format() {
    for (format, text, run) in good() {
        let odd = with_line(&text, 2, |line| match format {
            "observer-load" => with_key(line, "status", "0"),
            "vegeta-json" => with_key(line, "code", "0"),
            "hey" => with_column(line, 6, "0"),
            _ => with_column(line, 1, "0"),
        });
        let ingested = run.ingest(format, odd.as_bytes()).unwrap();
        assert!(!ingested.truncated && ingested.skipped.is_empty(), "{format}");
        let failed: Vec<_> = ingested.samples.iter().filter(|sample| !sample.ok).collect();
        assert_eq!(failed.len(), 1, "{format}");
        assert_eq!((failed[0].status, &failed[0].error), (None, &None), "{format}");
    }
}

#[test]
fn an_empty_error_is_none() {
    for empty in ["\"\"", "\" \"", "null"] {
        let text = with_line(&stream(START), 2, |line| {
            line.replace("\"status\":200", &format!("\"status\":200,\"error\":{empty}"))
        });
        let ingested = Run::here(START).ingest("observer", text.as_bytes()).unwrap();
        assert_eq!(ingested.samples.len(), 10, "{empty}");
        assert!(ingested.samples.iter().all(|sample| sample.ok && sample.error.is_none()));
        let text = String::from_utf8(fixture("vegeta.json")).unwrap();
        let text = with_line(&text, 2, |line| {
            line.replace("\"error\":\"\"", &format!("\"error\":{empty}"))
        });
        let ingested = Run::of("vegeta.csv").ingest("vegeta-json", text.as_bytes()).unwrap();
        assert_eq!(ingested.samples.len(), 300, "{empty}");
        assert!(ingested.samples.iter().all(|sample| sample.ok && sample.error.is_none()));
    }
}

#[test]
fn an_odd_number_costs_its_line_and_nothing_else() {
    let odd = ["-1", "-1.5", "1e400", "99999999999999999999", "null", "\"x\""];
    for (format, text, run) in good() {
        let whole = run.ingest(format, text.as_bytes()).unwrap();
        let keys: &[&str] = match format {
            "observer-load" => &["seq", "intended_start_ns", "start_ns", "latency_ns", "status"],
            "vegeta-json" => &["seq", "code", "latency"],
            _ => &[],
        };
        let columns: &[usize] = match format {
            "hey" => &[0, 6, 7],
            "vegeta-csv" => &[0, 1, 2, 8],
            _ => &[],
        };
        let by_key = keys.iter().flat_map(|key| {
            // Absent and null are the same where a key may be absent.
            let optional = ["seq", "intended_start_ns", "status"].contains(key);
            let values = odd.into_iter().filter(move |value| !optional || *value != "null");
            let values = values.chain(["18446744073709551615"].into_iter().filter(|_| {
                matches!((format, *key), (_, "latency_ns" | "latency") | ("vegeta-json", "seq"))
            }));
            values.map(|value| with_line(&text, 3, |line| with_key(line, key, value)))
        });
        let by_column = columns.iter().flat_map(|column| {
            let values = odd.into_iter().chain(["18446744073709551615"]);
            let text = &text;
            values.map(move |value| {
                with_line(text, 3, |line| match *column {
                    7 => with_column(line, 7, &format!("{value}\n")),
                    column => with_column(line, column, value),
                })
            })
        });
        for text in by_key.chain(by_column) {
            let ingested = run.ingest(format, text.as_bytes()).unwrap();
            let line = text.lines().nth(3).unwrap();
            assert_eq!(skipped(&ingested), [("malformed_line", 1)], "{format}: {line}");
            assert_eq!(ingested.samples.len(), whole.samples.len() - 1, "{format}: {line}");
            assert!(!ingested.truncated, "{format}: {line}");
            assert_eq!(ingested.uncertainty_ns, whole.uncertainty_ns, "{format}: {line}");
            assert_eq!(ingested.intended_start_known, whole.intended_start_known, "{line}");
            assert!(ingested.samples.iter().all(|sample| whole.samples.contains(sample)));
        }
    }
}

#[test]
fn a_long_time_of_hey_does_not_move_the_others() {
    let run = Run::of("hey.csv");
    let text = String::from_utf8(fixture("hey.csv")).unwrap();
    let whole = run.ingest("hey", text.as_bytes()).unwrap();
    let text = with_line(&text, 3, |line| with_column(line, 0, "99999.0000"));
    let odd = run.ingest("hey", text.as_bytes()).unwrap();
    let same = whole.samples.iter().filter(|sample| odd.samples.contains(sample)).count();
    assert_eq!(same, whole.samples.len() - 1);
}

#[test]
fn a_record_that_is_too_long_is_counted_once() {
    let long = format!("{{\"x\":\"{}\"}}\n", "x".repeat(MAX_RECORD_BYTES + (1 << 17)));
    let text = with_line(&stream(START), 3, |_| long.clone());
    let ingested = Run::here(START).ingest("observer", text.as_bytes()).unwrap();
    assert_eq!(skipped(&ingested), [("record_too_long", 1)]);
    assert!(!ingested.truncated && ingested.samples.len() == 9);
}

#[test]
fn a_byte_order_mark_is_accepted_in_every_format() {
    for (format, text, run) in good() {
        let marked = format!("\u{feff}{text}");
        let ingested = run.ingest(format, marked.as_bytes()).unwrap();
        assert_eq!(ingested, run.ingest(format, text.as_bytes()).unwrap(), "{format}");
        for info in ADAPTERS.iter().filter(|info| info.name != format) {
            let error = run.ingest(info.name, marked.as_bytes()).unwrap_err().to_string();
            assert!(error.ends_with(&format!("try --samples {format}")), "{format}: {error}");
        }
        let mut ingest = Ingest::new(adapter(format).unwrap());
        marked.as_bytes().iter().for_each(|byte| ingest.feed(&[*byte]));
        assert_eq!(ingest.finish(&run.anchors, run.window, &run.seen).unwrap(), ingested);
    }
}

/// A day before the run, without the summary line where `whole` is false.
fn earlier(header: &Header, whole: bool) -> String {
    let rows = (0..30).map(|seq| json_line(&row(seq, START + 1_000 + seq)));
    let end = if whole { end_line(30) } else { String::new() };
    json_line(header) + &rows.collect::<String>() + &end
}

#[test]
fn rows_that_an_earlier_run_left_are_told_apart() {
    const DAY: u64 = 86_400_000_000_000;
    let (run, new) = (Run::here(START + DAY), stream(START + DAY));
    let whole = run.ingest("observer", new.as_bytes()).unwrap();
    let here = header(ClockName::Monotonic, boot_id());
    let other_boot = header(ClockName::Monotonic, Some(OTHER_BOOT.into()));
    let newer = Header { version: 9, ..here.clone() };
    let headless = |text: String| text.split_once('\n').unwrap().1.to_owned();
    for (old, left) in [
        (earlier(&here, true), 30),
        (earlier(&here, false), 30),
        (earlier(&other_boot, true), 31),
        (earlier(&other_boot, false), 30),
        (earlier(&newer, false), 30),
        (headless(earlier(&here, false)), 30),
        (earlier(&here, true) + &earlier(&here, false), 60),
        (earlier(&other_boot, false) + &earlier(&here, true), 60),
    ] {
        let ingested = run.ingest("observer", (old.clone() + &new).as_bytes()).unwrap();
        assert_eq!(skipped(&ingested), [("earlier_recording", left)], "{old}");
        assert_eq!(ingested.samples, whole.samples);
        assert!(!ingested.truncated && ingested.notes.is_empty(), "{:?}", ingested.notes);
    }
}

#[test]
fn rows_from_before_the_run_do_not_hide_the_rate_of_the_others() {
    let (old, new) = (fixture("vegeta.csv"), fixture("vegeta-pause.csv"));
    let run = Run::of("vegeta-pause.csv");
    let alone = run.ingest("vegeta-csv", &new).unwrap();
    let both = run.ingest("vegeta-csv", &[old, new].concat()).unwrap();
    assert_eq!(skipped(&both), [("before_run", 300)]);
    assert_eq!((both.samples, both.notes), (alone.samples, alone.notes));
    assert!(both.intended_start_known);
}

#[test]
fn rows_of_two_recordings_in_one_run_are_both_used() {
    let first = earlier(&header(ClockName::Monotonic, boot_id()), true);
    let both = Run::here(START).ingest("observer", (first + &stream(START)).as_bytes()).unwrap();
    assert!(!both.truncated && both.skipped.is_empty(), "{:?}", both.skipped);
    assert_eq!(both.samples.len(), 40);
    let cut = earlier(&header(ClockName::Monotonic, boot_id()), false);
    let both = Run::here(START).ingest("observer", (cut + &stream(START)).as_bytes()).unwrap();
    assert!(both.truncated && both.samples.len() == 40);
    // What follows cannot be used, and is not passed over in silence.
    let other = header(ClockName::Monotonic, Some(OTHER_BOOT.into()));
    let text = stream(START) + &earlier(&other, false);
    let ingested = Run::here(START).ingest("observer", text.as_bytes()).unwrap();
    assert_eq!(skipped(&ingested), [("unusable_recording", 30)]);
    assert!(ingested.notes[0].contains("another host or boot"), "{:?}", ingested.notes);
}

#[test]
fn samples_older_than_the_run_are_said_to_be_so() {
    for (format, text, run) in good() {
        if format == "hey" {
            continue;
        }
        let late = Run {
            window: Window {
                start: MonoNanos(run.window.end.0 + 3_600_000_000_000),
                end: MonoNanos(run.window.end.0 + 3_700_000_000_000),
                went_on: true,
            },
            ..run
        };
        let error = late.ingest(format, text.as_bytes()).unwrap_err();
        assert!(matches!(error, IngestError::BeforeRun { .. }), "{format}: {error}");
        assert_eq!(error.exit(), Exit::SamplesClock);
        assert!(!error.to_string().contains("clock"), "{error}");
    }
}

/// Those of a run that was killed before anything was known to be complete are no sign of another
/// clock.
#[test]
fn samples_after_what_is_complete_of_a_killed_run_are_outside_it() {
    // A generator's own clock says nothing of when it was started.
    for (format, text, run) in good().into_iter().filter(|(format, ..)| *format != "hey") {
        let of = |went_on| {
            let start = MonoNanos(run.window.start.0.saturating_sub(2_000_000_000));
            let window = Window { start, end: MonoNanos(start.0 + 1_000_000), went_on };
            Run { window, anchors: run.anchors.clone(), seen: run.seen.clone() }
        };
        let all = run.ingest(format, text.as_bytes()).unwrap().samples.len() as u64;
        let killed = of(true).ingest(format, text.as_bytes()).unwrap();
        assert!(killed.samples.is_empty(), "{format}");
        assert_eq!(killed.skipped.get("outside_run"), Some(&all), "{format}");
        let error = of(false).ingest(format, text.as_bytes()).unwrap_err();
        assert!(matches!(error, IngestError::OtherClock { .. }), "{format}: {error}");
    }
}

#[test]
fn live_numbers_are_those_of_the_last_recording() {
    let mut ingest = Ingest::new(adapter("observer").unwrap());
    let here = header(ClockName::Monotonic, boot_id());
    let failed = Row { status: Some(500), ..row(0, START) };
    ingest.feed((json_line(&here) + &json_line(&failed)).as_bytes());
    assert_eq!((ingest.live().count, ingest.live().errors, ingest.ends()), (1, 1, 0));
    ingest.feed(stream(START).as_bytes());
    assert_eq!((ingest.live().count, ingest.live().errors, ingest.ends()), (10, 0, 1));
}
