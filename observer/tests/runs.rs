//! Run directories that released versions left: every later version reads them and comes to the
//! same answer.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// A fixture that this version reads.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runs")).join(name)
}

/// What `observer report` prints of it.
fn report(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_observer"))
        .arg("report")
        .arg(fixture(name))
        .args(arguments)
        .output()
        .expect("observer starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{name}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn has(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
    }
}

#[test]
fn a_run_of_0_1_0_keeps_its_answer() {
    let name = "0.1.0-nginx";
    has(
        &report(name, &[]),
        &[
            "ATTRIBUTED TO RUNQUEUE",
            // The stalls and the requests come from the streams, not from summary.json.
            "runqueue       218   420 ms  18.6 µs  29.3 ms  29.8 ms",
            "fault_minor      4  15.6 µs  3.62 µs  4.25 µs  4.25 µs",
            "at 2.438383 s took 30.4 ms, status 200, request 255, sent 77.2 µs late",
            "woken; ran last: python3 (17151)",
        ],
    );
    let left: Value = serde_json::from_slice(
        &std::fs::read(fixture(name).join("summary.json")).expect("summary.json"),
    )
    .expect("JSON");
    let printed: Value = serde_json::from_str(&report(name, &["--json"])).expect("JSON");
    assert_eq!(printed["verdict"]["outcome"], left["verdict"]["outcome"]);
    assert_eq!(printed["verdict"]["top_cause"], left["verdict"]["top_cause"]);
    for (printed, left) in [("causes", "share"), ("causes", "contribution_ns")]
        .map(|(list, key)| (&printed[list][0][key], &left[list][0][key]))
    {
        assert_eq!(printed, left);
    }
    assert_eq!(printed["samples"]["count"], left["samples"]["count"]);
    assert_eq!(printed["probes"]["runqueue"]["sum_ns"], left["probes"]["runqueue"]["sum_ns"]);
}

#[test]
fn a_run_of_0_1_0_that_was_killed_is_worked_out_again() {
    let name = "0.1.0-nginx-killed";
    has(
        &report(name, &[]),
        &[
            "ATTRIBUTED TO RUNQUEUE",
            "The run did not end normally",
            "events.arrows ends early",
            "433 at 112.9/s, 0 failed",
            "runqueue    401  349 ms  25.8 µs  27.1 ms  32.6 ms",
        ],
    );
    let printed: Value = serde_json::from_str(&report(name, &["--json"])).expect("JSON");
    let top = &printed["causes"][0];
    assert_eq!((&printed["samples"]["count"], &top["cause"]), (&433.into(), &"runqueue".into()));
    // 205 stalls until the last instant that run.json vouches for; the interval is 0.1.0's own.
    assert_eq!(top["stalls"], 205);
    let share = top["share"].as_f64().expect("a share");
    assert!((0.12..=0.89).contains(&share), "{share}");
    // Its slowest requests name who had the CPU; its one stream for all kinds has no rows to name.
    let slowest = printed["slowest_requests"].as_array().expect("a list");
    assert_eq!(slowest.len(), 10);
    let stalls =
        || slowest.iter().flat_map(|request| request["stalls"].as_array().expect("stalls"));
    let of_others = |stall: &&Value| {
        stall["cause"] == "runqueue" && stall["holder"]["tid"].as_u64().is_some_and(|tid| tid > 0)
    };
    assert!(stalls().any(|stall| of_others(&stall)), "{slowest:#?}");
    assert!(stalls().all(|stall| stall["trace_row"].is_null()), "{slowest:#?}");
}

#[test]
fn words_of_a_newer_version_are_no_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(fixture("0.1.0-nginx")).expect("the fixture") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).expect("a copy");
    }
    let replace = |file: &str, replaced: &[(&str, &str)]| {
        let path = directory.path().join(file);
        let mut text = std::fs::read_to_string(&path).expect("JSON");
        for (old, new) in replaced {
            assert!(text.contains(old), "{file} has {old}");
            text = text.replace(old, new);
        }
        std::fs::write(&path, text).expect("it can be written");
    };
    let state = ("\"attached\"", "\"later_state\"");
    replace("run.json", &[state, ("\"command_exit\"", "\"later_end\"")]);
    replace("summary.json", &[state, ("\"attributed\"", "\"later_outcome\"")]);
    let text = report(directory.path().to_str().expect("UTF-8"), &[]);
    has(&text, &["runqueue       218   420 ms"]);
}
