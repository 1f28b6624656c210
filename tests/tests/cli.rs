//! Bad input at the command line: each kind has its own exit code and one clear line, and the data
//! gathered so far is kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use observer::error::Exit;
use observer::model::{EndReason, Outcome};
use observer::probe::PROBES;
use observer_tests::command::{Finished, as_nobody, run};
use observer_tests::http::ReservedPort;
use observer_tests::privileged;
use observer_tests::process::{Placement, Service};
use observer_tests::trial::{directory, programs};
use observer_tests::watch::read_run;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(120);

fn observer(arguments: &[&str]) -> Finished {
    run(Command::new(programs().observer).args(arguments), TIMEOUT)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn service() -> Service {
    Service::start(&programs().service, &[], Placement::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A service to watch, and a directory for the run.
struct Bad {
    service: Service,
    directory: TempDir,
}

impl Bad {
    fn new() -> Self {
        Self { service: service(), directory: directory() }
    }

    fn out(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// `observer run --pid SERVICE --out RUN ARGUMENTS`.
    fn run(&self, arguments: &[&str]) -> Finished {
        let (pid, out) = (self.service.process.id().to_string(), self.out());
        let mut all = vec!["run", "--pid", &pid, "--out", out.to_str().expect("UTF-8")];
        all.extend(arguments);
        observer(&all)
    }

    /// Runs observer with a shell command as COMMAND. `$LOAD` is a second of load on the service.
    fn run_shell(&self, arguments: &[&str], script: &str) -> Finished {
        let load = format!(
            "'{}' load {}/ --rate 200 --duration 1s",
            programs().observer.display(),
            self.service.url
        );
        let script = script.replace("$LOAD", &load);
        let mut all = arguments.to_vec();
        all.extend(["--", "sh", "-c", &script]);
        self.run(&all)
    }

    /// The run directory is complete, whatever went wrong.
    #[track_caller]
    fn assert_complete(&self) -> observer::model::Summary {
        let (summary, info) = read_run(&self.out()).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(info.end_reason, EndReason::Running, "the run says how it ended");
        assert!(info.end_ns > info.start_ns, "{info:?}");
        assert!(self.out().join("report.html").is_file());
        summary
    }
}

#[test]
fn an_unknown_pid_is_a_target_error() {
    let Some(_guard) = privileged::ready("unknown pid") else { return };
    let mut gone = Command::new("true").spawn().expect("true starts");
    gone.wait().expect("true ends");
    let pid = gone.id().to_string();
    let directory = directory();
    let out = directory.path().join("run");
    let finished = observer(&["run", "--pid", &pid, "--out", out.to_str().expect("UTF-8")]);
    finished.assert_code(Exit::Target as u8);
    assert!(finished.stderr.contains(&pid), "{finished:#?}");
}

#[test]
fn a_target_without_a_process_gets_its_own_line() {
    let Some(_guard) = privileged::ready("missing targets") else { return };
    let directory = directory();
    let out = directory.path().join("run");
    let reserved = ReservedPort::new().expect("a port");
    let port = reserved.number().to_string();
    for target in [
        ["--comm", "no-such-name"],
        ["--exe", "/no/such/program"],
        ["--cgroup", "/no/such/cgroup"],
        ["--port", &port],
    ] {
        let out = out.to_str().expect("UTF-8");
        let finished = observer(&["run", target[0], target[1], "--out", out]);
        finished.assert_code(Exit::Target as u8);
        assert!(finished.stderr.contains(target[1]), "{finished:#?}");
    }
}

#[test]
fn a_command_that_does_not_exist_is_a_command_error() {
    let Some(_guard) = privileged::ready("missing command") else { return };
    let bad = Bad::new();
    let finished = bad.run(&["--", "/no/such/generator"]);
    finished.assert_code(Exit::Command as u8);
    assert!(finished.stderr.contains("/no/such/generator"), "{finished:#?}");
}

#[test]
fn a_command_that_fails_leaves_a_complete_run() {
    let Some(_guard) = privileged::ready("failing command") else { return };
    let bad = Bad::new();
    let finished = bad.run_shell(&[], "sleep 0.3; echo oops >&2; exit 9");
    finished.assert_code(Exit::CommandFailed as u8);
    bad.assert_complete();
    let (_, info) = read_run(&bad.out()).expect("a run");
    assert_eq!((info.command_exit, info.end_reason), (Some(9), EndReason::CommandExit));
    let stderr = fs::read_to_string(bad.out().join("loadgen.err")).expect("its standard error");
    assert!(stderr.contains("oops"), "{stderr:?}");
}

#[test]
fn an_unprivileged_user_gets_a_message() {
    let directory = TempDir::new().expect("a directory");
    let observer = programs().observer;
    // Everybody may write there.
    let out = format!("/tmp/observer-nobody-{}", std::process::id());
    for arguments in [
        &["run", "--pid", "1", "--duration", "1s", "--out", &out][..],
        &["daemon", "--listen", "127.0.0.1:0"],
    ] {
        let mut command = as_nobody(&observer, directory.path(), arguments).expect("a command");
        let finished = run(&mut command, TIMEOUT).expect("it ends");
        finished.assert_code(Exit::Permission as u8);
        assert!(finished.stderr.contains("observer doctor"), "it says what to do: {finished:#?}");
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn an_output_directory_is_never_overwritten() {
    let Some(_guard) = privileged::ready("existing output") else { return };
    let bad = Bad::new();
    fs::create_dir(bad.out()).expect("a directory");
    fs::write(bad.out().join("run.json"), "mine").expect("a file");
    let finished = bad.run(&["--duration", "1s"]);
    finished.assert_code(Exit::OutputExists as u8);
    let kept = fs::read_to_string(bad.out().join("run.json")).expect("still there");
    assert_eq!((kept.as_str(), fs::read_dir(bad.out()).expect("a directory").count()), ("mine", 1));
    // It is refused first of all, and not when the target is there after a long wait.
    for (command, flag) in [("run", "--out"), ("daemon", "--trace")] {
        let out = bad.out();
        let out = out.to_str().expect("UTF-8");
        let finished = observer(&[command, "--exe", "/no/such/program", "--wait", flag, out]);
        finished.assert_code(Exit::OutputExists as u8);
    }
}

#[test]
fn an_output_directory_that_cannot_be_made_is_an_output_error() {
    let Some(_guard) = privileged::ready("unwritable output") else { return };
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "").expect("a file");
    let service = service();
    let pid = service.process.id().to_string();
    for out in [directory.path().join("no/such/run"), file.join("run"), "/proc/run".into()] {
        let out = out.to_str().expect("UTF-8");
        observer(&["run", "--pid", &pid, "--duration", "1s", "--out", out])
            .assert_code(Exit::Output as u8);
    }
}

#[test]
fn samples_that_are_empty_keep_the_run() {
    let Some(_guard) = privileged::ready("empty samples") else { return };
    let bad = Bad::new();
    bad.run_shell(&["--samples", "observer"], "sleep 0.3").assert_code(Exit::SamplesEmpty as u8);
    bad.assert_complete();
}

#[test]
fn samples_files_that_are_empty_or_missing_keep_the_run() {
    let Some(_guard) = privileged::ready("missing samples") else { return };
    let command = &["--", "sleep", "0.5"][..];
    for (content, more, exit) in [
        (Some(""), &[][..], Exit::SamplesEmpty),
        (None, &[], Exit::SamplesUnreadable),
        (None, command, Exit::SamplesUnreadable),
    ] {
        let bad = Bad::new();
        let file = bad.directory.path().join("samples");
        if let Some(content) = content {
            fs::write(&file, content).expect("a file");
        }
        let samples = format!("observer:{}", file.display());
        let arguments = [&["--samples", &samples, "--duration", "500ms"], more].concat();
        let finished = bad.run(&arguments);
        finished.assert_code(exit as u8);
        if content.is_some() {
            bad.assert_complete();
        }
        // Another program has to write it. COMMAND may do so.
        let waits = format!("waiting for the samples in {}, which does not", file.display());
        let told = finished.stderr.lines().filter(|line| line.contains(&waits)).count();
        let expected = usize::from(content.is_none() && more.is_empty());
        assert_eq!(told, expected, "{arguments:?}: {finished:#?}");
    }
}

#[test]
fn samples_cut_in_the_middle_of_a_line_are_used_up_to_there() {
    let Some(_guard) = privileged::ready("cut samples") else { return };
    let bad = Bad::new();
    // The header and the requests, without the last 20 bytes: less than a line.
    let script = "$LOAD > $TMPDIR/whole; \
                  (head -n 1 $TMPDIR/whole; grep latency_ns $TMPDIR/whole) | head -c -20";
    let script = script.replace("$TMPDIR", bad.directory.path().to_str().expect("UTF-8"));
    let finished = bad.run_shell(&["--samples", "observer"], &script);
    finished.assert_code(Exit::SamplesTruncated as u8);
    let whole = fs::read_to_string(bad.directory.path().join("whole")).expect("samples");
    let rows = whole.lines().filter(|line| line.contains("\"latency_ns\"")).count() as u64;
    let summary = bad.assert_complete();
    assert!(rows > 150, "{rows}");
    assert_eq!(summary.samples.count, rows - 1, "all lines but the cut one");
}

#[test]
fn samples_of_another_format_keep_the_run() {
    let Some(_guard) = privileged::ready("other format") else { return };
    for (format, output) in [
        (
            "observer",
            "response-time,DNS+dialup,DNS,Request-write,Response-delay,Response-read,status-code,offset\\n0.1,0.0,0.0,0.0,0.1,0.0,200,0.2\\n",
        ),
        ("hey", "{\"format\":\"observer-samples\",\"version\":1}\\n{}\\n"),
        ("vegeta-json", "hello\\nworld\\n"),
    ] {
        let bad = Bad::new();
        let finished =
            bad.run_shell(&["--samples", format], &format!("sleep 0.3; printf '{output}'"));
        finished.assert_code(Exit::SamplesFormat as u8);
        assert!(finished.stderr.contains(format), "{finished:#?}");
        bad.assert_complete();
    }
}

#[test]
fn samples_on_another_clock_keep_the_run() {
    let Some(_guard) = privileged::ready("other clock") else { return };
    let bad = Bad::new();
    // Samples of a load that was over before the run began.
    let old = bad.directory.path().join("old");
    let load = observer(&[
        "load",
        &bad.service.url,
        "--rate",
        "200",
        "--duration",
        "500ms",
        "--out",
        old.to_str().expect("UTF-8"),
    ]);
    load.assert_code(0);
    std::thread::sleep(Duration::from_millis(200));
    let script = format!("sleep 0.3; cat '{}'", old.display());
    let finished = bad.run_shell(&["--samples", "observer"], &script);
    finished.assert_code(Exit::SamplesClock as u8);
    let summary = bad.assert_complete();
    assert_ne!(summary.verdict.outcome, Outcome::Attributed);
}

/// A load of 200 requests, with every second row changed by a command of sed.
fn half_of_the_rows(change: &str) -> String {
    format!("$LOAD | sed '/\"seq\":[0-9]*[02468],/{change}'")
}

#[test]
fn failed_requests_are_said_first_and_have_an_exit_code() {
    let Some(_guard) = privileged::ready("failed requests") else { return };
    let bad = Bad::new();
    let arguments = ["--samples", "observer", "--slow", "50ms"];
    let finished = bad.run_shell(&arguments, &half_of_the_rows(r#"s/"status":200/"status":0/"#));
    finished.assert_code(Exit::RequestsFailed as u8);
    assert!(finished.stdout.starts_with("REQUESTS FAILED"), "{finished:#?}");
    let summary = bad.assert_complete();
    assert_eq!((summary.samples.count, summary.samples.errors), (200, 100), "{summary:#?}");
    assert_eq!(summary.samples.errors_by_kind["no_answer"], 100);
    assert_eq!(summary.verdict.reasons[0].code, "requests_failed");
}

#[test]
fn a_row_with_an_odd_number_is_counted_once() {
    let Some(_guard) = privileged::ready("odd rows") else { return };
    let bad = Bad::new();
    let script = half_of_the_rows("s/\"latency_ns\":/&-/");
    bad.run_shell(&["--samples", "observer"], &script).assert_code(0);
    let samples = bad.assert_complete().samples;
    assert_eq!((samples.count, samples.errors), (100, 0), "{samples:#?}");
    assert_eq!(samples.skipped.into_iter().collect::<Vec<_>>(), [("malformed_line".into(), 100)]);
}

#[test]
fn a_run_that_cannot_be_read_is_an_error() {
    let directory = directory();
    let missing = directory.path().join("missing");
    observer(&["report", missing.to_str().expect("UTF-8")]).assert_code(Exit::RunUnreadable as u8);
    let empty = directory.path().to_str().expect("UTF-8");
    observer(&["report", empty]).assert_code(Exit::RunUnreadable as u8);
    fs::write(directory.path().join("run.json"), "{\"schema\": 1").expect("a file");
    observer(&["report", empty]).assert_code(Exit::RunUnreadable as u8);
}

#[test]
fn an_invalid_command_line_is_a_usage_error() {
    for arguments in [
        &["run"][..],
        &["run", "--pid", "1", "--comm", "init"],
        &["run", "--pid", "abc"],
        &["run", "--pid", "1", "--samples", "tarot"],
        &["run", "--pid", "1", "--slow", "quickly"],
        &["load"],
        &["load", "http://127.0.0.1/", "--rate", "0"],
        &["daemon", "--listen", "nowhere"],
        &["frobnicate"],
    ] {
        let finished = observer(arguments);
        assert_eq!(finished.code, Some(Exit::Usage as i32), "{arguments:?}: {finished:#?}");
        assert!(!finished.stderr.is_empty() && finished.stdout.is_empty(), "{finished:#?}");
    }
}

#[test]
fn doctor_reports_the_same_as_json_and_as_text() {
    let text = observer(&["doctor"]);
    let finished = observer(&["doctor", "--json"]);
    assert_eq!(text.code, finished.code);
    let allowed = [0, Exit::Permission as i32, Exit::Kernel as i32].map(Some);
    assert!(allowed.contains(&finished.code), "{finished:#?}");
    let report: serde_json::Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.is_object(), "{report}");
    for probe in PROBES.map(|probe| probe.name) {
        assert!(text.stdout.contains(probe), "{probe} in {}", text.stdout);
        assert!(finished.stdout.contains(&format!("\"{probe}\"")), "{probe} in {report}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(finished.code, Some(0), "the tests run where observer runs: {finished:#?}");
    }
}
