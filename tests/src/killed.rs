//! Runs that are killed, and what they leave.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use observer::clock::MonoNanos;
use observer::model::Summary;
use rustix::process::Signal;
use serde_json::Value;

use crate::bpf::{self, Object};
use crate::command;
use crate::process::{Placement, Running};
use crate::trial::programs;

/// Stops a process, so that its BPF objects can be listed, and kills it. Returns these.
///
/// # Panics
/// When it does not end.
pub fn kill(process: &mut Running) -> BTreeSet<Object> {
    process.signal(Signal::STOP);
    let held = bpf::held_by(process.id());
    process.signal(Signal::KILL);
    process.wait(Duration::from_secs(120)).expect("it is gone");
    held
}

/// Starts a run of `observer load`, at 200 requests a second, for as long as it is not killed.
///
/// # Panics
/// When it does not start.
#[must_use]
pub fn run_with_load(pid: &str, url: &str, out: &Path, slow: &str) -> Running {
    let observer = programs().observer;
    let mut command = Command::new(&observer);
    command.args(["run", "--budget", "none", "--pid", pid, "--out"]).arg(out);
    command.args(["--samples", "observer", "--slow", slow, "--"]).arg(&observer);
    command.args(["load", url, "--rate", "200", "--duration", "600s"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running::start(&mut command, Placement::default()).expect("it starts")
}

/// When the requests ended that a run has received so far, by the rows of `observer load`. A row that is
/// not yet whole is none.
#[must_use]
pub fn ends(out: &Path) -> Vec<MonoNanos> {
    let rows = fs::read_to_string(out.join("loadgen.out")).unwrap_or_default();
    let rows = rows.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let end = |row: Value| Some(MonoNanos(row["start_ns"].as_u64()? + row["latency_ns"].as_u64()?));
    rows.filter_map(end).collect()
}

/// The answer that `observer report` works out.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn answer(out: &Path) -> Summary {
    let mut report = Command::new(programs().observer);
    let report = report.arg("report").arg(out).arg("--json");
    let finished = command::run(report, Duration::from_secs(120)).expect("it ends");
    finished.assert_code(0);
    serde_json::from_str(&finished.stdout).expect("an answer")
}

/// The answer of a killed run is about so many nanoseconds.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn assert_seconds(summary: &Summary, length_ns: u64) {
    let recovered = summary.verdict.reasons.iter().find(|reason| reason.code == "recovered");
    let seconds = &recovered.expect("it was recovered").evidence["seconds"];
    let found_ns = seconds.as_f64().map(|seconds| (seconds * 1e9).round() as u64);
    assert_eq!(found_ns, Some(length_ns), "{:?}", summary.verdict);
}
