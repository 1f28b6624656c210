//! `observer report`, as a person calls it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use observer::clock::MonoNanos;
use observer::model::{RunInfo, Sample};
use observer::output::rundir::RunDir;
use observer::probe::decode;
use observer_ebpf::wire::{Header, RECLAIM_MEMCG, ReclaimRecord, RecordKind};

fn report(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_observer"))
        .arg("report")
        .args(arguments)
        .env_remove("NO_COLOR")
        .output()
        .expect("observer starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn refused(arguments: &[&str], code: i32, wanted: &str) {
    let output = report(arguments);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(wanted) && error.lines().count() == 1, "{error}");
    assert!(output.stdout.is_empty());
}

fn run_info() -> RunInfo {
    serde_json::from_value(serde_json::json!({
        "schema": 1, "observer_version": "0.1.0", "kernel_release": "6.12.0", "machine": "x86_64",
        "cpus": 2, "target": "--pid 7", "target_processes": {"7": "service"},
        "target_cgroup": null, "command": [], "command_exit": null, "samples_format": null,
        "slow_rule": "p99", "start_ns": 1_000_000_000u64, "end_ns": 0, "end_reason": "running",
        "anchors": [], "floors_ns": {}, "loss": {"total": 0, "by_kind": {}},
        "coverage": {"reclaim": {"state": "attached", "tier": "tp_btf", "reason": null}},
        "thread_names": {"8": "worker"}
    }))
    .expect("run.json")
}

/// A run whose observer died: no summary, streams without their end.
fn crashed(path: &Path) {
    let directory = RunDir::create(Some(path)).expect("directory");
    directory.write_run(&run_info()).expect("run.json");
    let mut events = directory.create_events().expect("events");
    let reclaim = ReclaimRecord {
        header: Header {
            end_ns: 1_050_000_000,
            duration_ns: 30_000_000,
            tid: 8,
            tgid: 7,
            kind: RecordKind::Reclaim as u16,
            flags: RECLAIM_MEMCG,
            cpu: 0,
        },
        reclaimed_pages: 64,
        gfp_flags: 0,
        order: 0,
    };
    let reclaim = decode(bytemuck::bytes_of(&reclaim)).expect("event");
    events.append(&reclaim).expect("event");
    events.flush(reclaim.end).expect("flush");
    drop(events);
    let mut samples = directory.create_samples().expect("samples");
    let sample = Sample {
        intended_start: None,
        start: MonoNanos(1_010_000_000),
        end: MonoNanos(1_060_000_000),
        precision_ns: 1,
        status: Some(200),
        ok: true,
        error: None,
        seq: Some(0),
        local_port: None,
    };
    samples.append(&sample).expect("sample");
    samples.flush().expect("flush");
}

#[test]
fn a_crashed_run_is_reported_with_what_there_is() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("run");
    crashed(&path);
    let html = root.path().join("report.html");
    let (run, html) = (path.to_str().expect("path"), html.to_str().expect("path"));
    let output = report(&[run, "--html", html]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for wanted in [
        "INCONCLUSIVE",
        "its observer died",
        "so no cause is named",
        "from what it wrote in its first 0.1 s",
        "reclaim.arrows ends early",
        "at 0.010000 s took 50.0 ms",
        "worker (8)",
        "reclaim_memcg",
        "64 pages, order 0",
        "Lost: not known",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is missing in\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "no colours into a pipe");
    assert!(fs::read_to_string(html).expect("page").ends_with("</html>\n"));
    refused(&[run, "--html", html], 6, "never overwritten");
    let output = report(&[run, "--json"]);
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["verdict"]["outcome"], "inconclusive");
    assert_eq!(printed["verdict"]["reasons"][0]["code"], "trace_incomplete");
    assert_eq!(printed["samples"]["count"], 1);
}

#[test]
fn the_summary_is_printed_for_programs() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("run");
    crashed(&path);
    let summary = serde_json::json!({
        "schema": 1,
        "verdict": {"outcome": "inconclusive", "top_cause": null, "reasons": ["lost records"]},
        "samples": {"count": 0, "errors": 0, "rate_hz": 0.0, "intended_start_known": true,
            "latency_ns": {"p50": 0, "p90": 0, "p99": 0, "p999": 0, "max": 0}},
        "causes": [], "probes": {}, "loss": {"total": 1, "by_kind": {"fault": 1}},
        "observer": {"cpu_seconds": 0.0, "max_rss_bytes": 0, "bpf_run_time_ns": 0,
            "bpf_run_count": 0}
    });
    fs::write(path.join("summary.json"), summary.to_string()).expect("summary");
    let output = report(&[path.to_str().expect("path"), "--json"]);
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed["verdict"]["outcome"], "inconclusive");
    let reason = &printed["verdict"]["reasons"][0];
    assert_eq!(reason["text"], "lost records", "a run of an older version can be read");
    assert_eq!(printed["requests"]["unmatched"], 0, "such a run has no requests of the target");
    assert_eq!(printed["loss"]["by_kind"]["fault"], 1);
}

#[test]
fn what_cannot_be_read_gets_one_line_and_its_exit_code() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().to_str().expect("path");
    refused(&["/nonexistent/run"], 12, "does not exist");
    refused(&[path], 12, "not a run directory");
    refused(&[path, "--json"], 12, "not a run directory");
    fs::write(root.path().join("run.json"), "{\"schema\": 1, \"observer_ver").expect("run.json");
    refused(&[path], 12, "run.json");
}

#[test]
fn a_damaged_trace_does_not_hide_the_rest() {
    let root = tempfile::tempdir().expect("directory");
    let path = root.path().join("run");
    crashed(&path);
    fs::write(path.join("reclaim.arrows"), "not arrow at all").expect("events");
    let output = report(&[path.to_str().expect("path")]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(said.contains("not an Arrow IPC stream"), "{said}");
    assert!(said.contains("took 50.0 ms") && said.contains("no stall of the target"), "{said}");
}
