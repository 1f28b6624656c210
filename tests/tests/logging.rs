//! Log lines: levels, forms, and where they go.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use observer::error::Exit;
use observer_tests::command::{Finished, run};
use observer_tests::daemon::Daemon;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{directory, programs};
use rustix::process::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const TIMEOUT: Duration = Duration::from_secs(60);

fn observer(arguments: &[&str]) -> Finished {
    run(Command::new(programs().observer).args(arguments), TIMEOUT)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn a_failure_is_one_line_in_every_form() {
    let directory = directory();
    let missing = directory.path().join("missing");
    let missing = missing.to_str().expect("UTF-8");
    for flags in [&[][..], &["-q"], &["-v"], &["-vv"]] {
        let finished = observer(&[flags, &["report", missing]].concat());
        finished.assert_code(Exit::RunUnreadable as u8);
        assert!(finished.stderr.starts_with("observer: error: "), "{finished:#?}");
    }
    for flags in [&["--log-format", "json"][..], &["-q", "--log-format=json"]] {
        let finished = observer(&[&["report", missing], flags].concat());
        assert_eq!(finished.code, Some(i32::from(Exit::RunUnreadable as u8)), "{finished:#?}");
        let line = json(finished.stderr.trim_end());
        assert_eq!(line["level"], "ERROR", "{line}");
        assert!(line["message"].as_str().is_some_and(|text| text.contains(missing)), "{line}");
    }
    assert_eq!(observer(&["-q", "-v", "doctor"]).code, Some(Exit::Usage as i32));
    let usage = observer(&["report"]).stderr;
    assert!(usage.starts_with("observer: error: "), "one style of errors: {usage}");
}

#[test]
fn journald_gets_priorities_instead_of_times() {
    let directory = directory();
    let log = directory.path().join("journal");
    let file = File::create_new(&log).expect("a file");
    let stream = |inode: u64| {
        let device = file.metadata().expect("metadata").dev();
        format!("{device}:{inode}")
    };
    let inode = file.metadata().expect("metadata").ino();
    for (stream, prefix) in [(stream(inode), "<3>"), (stream(inode + 1), "observer: error: ")] {
        fs::write(&log, "").expect("a write");
        let mut command = Command::new(programs().observer);
        command.args(["report", "/no/such/run"]).env("JOURNAL_STREAM", stream);
        let output = File::options().append(true).open(&log).expect("a file");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).status();
        assert_eq!(status.expect("it starts").code(), Some(i32::from(Exit::RunUnreadable as u8)));
        let text = fs::read_to_string(&log).expect("a log");
        assert!(text.starts_with(prefix), "{prefix}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

/// Starts a daemon with these options, ends it, and returns what it logged.
fn logged(options: &[&str]) -> String {
    let directory = directory();
    let log = directory.path().join("log");
    let port = observer_tests::http::free_port().expect("a port");
    let mut command = Command::new(programs().observer);
    command.args(options).args(["daemon", "--listen", &format!("127.0.0.1:{port}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create_new(&log).expect("a file"));
    let mut process = Running::start(&mut command, Placement::default()).expect("it starts");
    Daemon::wait_until_healthy(&mut process, port);
    process.signal(Signal::TERM);
    assert!(process.wait(TIMEOUT).expect("it ends").success());
    fs::read_to_string(&log).expect("a log")
}

#[test]
fn the_daemon_says_where_it_serves_and_more_only_when_asked() {
    let Some(_guard) = privileged::ready("log lines of the daemon") else { return };
    let serving = "serving http://127.0.0.1:";
    let attached = "probe runqueue: attached";
    let default = logged(&[]);
    assert!(default.contains(serving) && !default.contains(attached), "{default}");
    for line in default.lines() {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok(), "{line}");
        assert!(rest.starts_with("observer: "), "{line}");
    }
    let verbose = logged(&["-v"]);
    assert!(verbose.contains(serving) && verbose.contains(attached), "{verbose}");
    let quiet = logged(&["-q"]);
    assert_eq!(quiet, "", "nothing failed");
    let lines: Vec<Value> = logged(&["-v", "--log-format", "json"]).lines().map(json).collect();
    let message = |text: &str| {
        let is_it = |line: &&Value| line["message"].as_str().is_some_and(|it| it.contains(text));
        lines.iter().find(is_it).unwrap_or_else(|| panic!("{text}: {lines:#?}"))
    };
    assert_eq!(message(serving)["level"], "INFO");
    assert_eq!(message(attached)["level"], "INFO");
}
