//! What `observer run` does with its target, its end and its directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{Cause, EndReason, Outcome, ProbeState, RunInfo, Summary};
use observer::output::rundir::RunDir;
use observer::probe::Selection;
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::command::{Finished, as_nobody, give_to_nobody, run};
use observer_tests::privileged;
use observer_tests::process::{Placement, Programs, Running, Service, command_lines_with};
use observer_tests::trial::{directory, number, programs, says_the_answer, unique};
use observer_tests::watch::{Watch, Work, read_run};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(120);

fn service(placement: Placement<'_>) -> Service {
    Service::start(&programs().service, &[], placement).unwrap_or_else(|error| panic!("{error}"))
}

/// `observer run ARGUMENTS --out RUN`, to its end.
fn observer_run(arguments: &[&str], out: &Path) -> Finished {
    let mut command = Command::new(programs().observer);
    // The generator may stand behind `--`.
    command.args(["run", "--budget", "none", "--out"]).arg(out).args(arguments);
    run(&mut command, TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
}

fn complete(run: &Path) -> (Summary, RunInfo) {
    read_run(run).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_duration_ends_the_run() {
    let Some(_guard) = privileged::ready("duration") else { return };
    let (service, directory) = (service(Placement::default()), directory());
    let pid = service.process.id().to_string();
    let out = directory.path().join("run");
    observer_run(&["--pid", &pid, "--duration", "1s"], &out).assert_code(0);
    let (summary, info) = complete(&out);
    assert_eq!(info.end_reason, EndReason::Duration);
    let length_ns = info.end_ns.since(info.start_ns);
    // Not before. How much later depends on the host: a thread may have to wait for a CPU.
    assert!(length_ns >= 950_000_000, "{length_ns}");
    // No generator: distributions, and no verdict.
    assert_eq!(summary.verdict.outcome, Outcome::NoSlowSamples, "{:?}", summary.verdict);
    assert_eq!((summary.samples.count, summary.causes.len()), (0, 0), "{summary:#?}");
    let usual = Selection::default();
    for (name, probe) in summary.probes.iter().filter(|(name, _)| usual.contains(name)) {
        assert!(
            matches!(probe.state, ProbeState::Attached | ProbeState::Partial),
            "{name}: {probe:?}"
        );
        assert!(probe.tier.is_some(), "{name}: {probe:?}");
    }
    assert!(info.anchors.0.len() >= 2, "the clocks were read again and again");
}

#[test]
fn no_other_user_may_read_a_run() {
    let Some(_guard) = privileged::ready("modes") else { return };
    let (service, directory) = (service(Placement::default()), directory());
    let pid = service.process.id().to_string();
    let out = directory.path().join("run");
    observer_run(&["--pid", &pid, "--duration", "300ms"], &out).assert_code(0);
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
    assert_eq!(mode(&out), 0o700);
    for entry in fs::read_dir(&out).expect("the run").flatten() {
        assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
    }
}

/// Starts a run that has no end of its own, sends a signal, and reads its run directory.
fn ended_by(signal: Signal) {
    let (service, directory) = (service(Placement::default()), directory());
    let pid = service.process.id().to_string();
    let mut watch = Watch::start(&programs(), &["--pid", &pid], directory.path())
        .unwrap_or_else(|error| panic!("{error}"));
    std::thread::sleep(Duration::from_millis(300));
    watch.process.signal(signal);
    let status = watch.process.wait(TIMEOUT).unwrap_or_else(|e| panic!("{e}"));
    assert!(status.success(), "{status}: {}", watch.printed());
    let (_, info) = complete(&watch.run);
    assert_eq!(info.end_reason, EndReason::Interrupted);
    // The command waits for a file in this directory; no such process is left.
    let needle = directory.path().to_string_lossy().into_owned();
    let deadline = Instant::now() + TIMEOUT;
    while !command_lines_with(&needle).is_empty() {
        assert!(Instant::now() < deadline, "the command was ended with the run");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interrupt_leaves_a_complete_run() {
    let Some(_guard) = privileged::ready("interrupt") else { return };
    ended_by(Signal::INT);
}

#[test]
fn a_termination_leaves_a_complete_run() {
    let Some(_guard) = privileged::ready("termination") else { return };
    ended_by(Signal::TERM);
}

#[test]
fn a_target_that_exits_ends_the_run() {
    let Some(_guard) = privileged::ready("target exit") else { return };
    let (service, directory) = (service(Placement::default()), directory());
    let pid = service.process.id().to_string();
    let mut watch = Watch::start(&programs(), &["--pid", &pid], directory.path())
        .unwrap_or_else(|error| panic!("{error}"));
    std::thread::sleep(Duration::from_millis(200));
    drop(service);
    let status = watch.process.wait(TIMEOUT).unwrap_or_else(|e| panic!("{e}"));
    assert!(status.success(), "{status}: {}", watch.printed());
    let (summary, info) = complete(&watch.run);
    assert_eq!(info.end_reason, EndReason::TargetExit);
    // The listener was there before the probe, and the kernel closed it with the process.
    assert_eq!(summary.probes["socket"].counters["live"], 0, "{:?}", summary.probes["socket"]);
}

#[test]
fn a_target_is_found_by_each_of_its_names() {
    let Some(_guard) = privileged::ready("targets") else { return };
    let name = unique("target");
    let cgroup = MemoryCgroup::create(&name).expect("a cgroup can be made");
    let directory = directory();
    // A program of a name of its own: others may run the service too.
    let program = directory.path().join(format!("svc-{}", std::process::id()));
    fs::copy(programs().service, &program).expect("a copy");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let service = Service::start(&program, &[], place).unwrap_or_else(|error| panic!("{error}"));
    let comm = program.file_name().expect("a name").to_string_lossy().into_owned();
    let (port, pid) = (service.port.to_string(), service.process.id());
    let targets = [
        ("--port", port.as_str()),
        ("--comm", comm.as_str()),
        ("--exe", program.to_str().expect("UTF-8")),
        ("--cgroup", cgroup.directory().to_str().expect("UTF-8")),
        ("--cgroup", name.as_str()),
    ];
    for (index, (flag, value)) in targets.into_iter().enumerate() {
        let out = directory.path().join(format!("run-{index}"));
        observer_run(&[flag, value, "--duration", "200ms"], &out).assert_code(0);
        let (_, info) = complete(&out);
        let found: Vec<u32> = info.target_processes.keys().copied().collect();
        assert_eq!(found, [pid], "{flag} {value}: {info:#?}");
        assert_eq!(info.target_processes[&pid], comm);
    }
}

#[test]
fn a_target_that_does_not_exist_yet_is_waited_for() {
    let Some(_guard) = privileged::ready("wait") else { return };
    let directory = directory();
    let name = format!("late-{}", std::process::id());
    let late = directory.path().join(&name);
    fs::copy(programs().work, &late).expect("a copy");
    let out = directory.path().join("run");
    let mut command = Command::new(programs().observer);
    command.args(["run", "-v", "--comm", &name, "--wait", "--out"]).arg(&out);
    let log = directory.path().join("log");
    let output = fs::File::create_new(&log).expect("a file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    std::thread::sleep(Duration::from_secs(1));
    assert!(observer.ended().expect("a status").is_none(), "it waits");

    let late = Programs { work: late, ..programs() };
    let arguments = ["minor-faults", "--pages", "5000"];
    let mut work = Work::start(&late, &arguments, Placement::default()).expect("it starts");
    let deadline = Instant::now() + TIMEOUT;
    while !fs::read_to_string(&log).expect("a log").contains("observer: target") {
        assert!(Instant::now() < deadline, "the target is found, and probes are attached");
        std::thread::sleep(Duration::from_millis(50));
    }
    work.go().expect("it works");
    let pid = work.id();
    work.end().expect("it ends");
    let status = observer.wait(TIMEOUT).expect("the target's end ends the run");
    assert!(status.success(), "{status}");
    let (summary, info) = complete(&out);
    assert_eq!(info.end_reason, EndReason::TargetExit);
    assert!(info.target_processes.contains_key(&pid), "{info:#?}");
    let faults = summary.probes["fault"].parts.get("minor").map_or(0, |part| part.count);
    assert!(faults >= 5000, "{faults}");
}

#[test]
fn json_is_the_summary_and_the_report_says_the_same_without_root() {
    let Some(_guard) = privileged::ready("json and report") else { return };
    let (service, directory) = (service(Placement::default()), directory());
    let (pid, observer) = (service.process.id().to_string(), programs().observer);
    let out = directory.path().join("run");
    let url = format!("{}/sleep?ms=20&every=20", service.url);
    let arguments = [
        "--pid",
        &pid,
        "--json",
        "--samples",
        "observer",
        "--slow",
        "10ms",
        "--",
        observer.to_str().expect("UTF-8"),
        "load",
        &url,
        "--rate",
        "200",
        "--duration",
        "3s",
    ];
    let finished = observer_run(&arguments, &out);
    finished.assert_code(0);
    let printed: Summary = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("standard output is summary.json: {error}: {finished:#?}"));
    let (summary, info) = complete(&out);
    assert_eq!(printed, summary);
    assert_eq!(info.end_reason, EndReason::CommandExit);
    assert_eq!(summary.samples.count, 600);
    assert_eq!(summary.samples.slow_rule, "10ms");
    assert!(summary.samples.slow_count >= 30, "{:?}", summary.samples);
    // On a busy host more requests are slow than those that sleep, by the generator's own rows too.
    let slow = rows_above(10_000_000, &out.join("loadgen.out"));
    assert_eq!(summary.samples.slow_count + summary.samples.slow_left_out, slow);
    // Then they may have waited for a CPU, or the load generator may; and the budget may have detached
    // the probe that sees sleeps. Memory has no part in it.
    let waits =
        [Cause::RUNQUEUE_OTHER, Cause::RUNQUEUE_SELF, Cause::RUNQUEUE_IDLE, Cause::RUNQUEUE];
    let own = [Cause::SERVICE_WAIT, Cause::SERVICE_CPU, Cause::NETWORK, Cause::LOAD_GENERATOR];
    let possible = [&waits[..], &own].concat();
    let cause = summary.verdict.top_cause;
    assert!(cause.is_none_or(|cause| possible.contains(&cause)), "{:?}", summary.verdict);

    give_to_nobody(&out).expect("root may");
    let public = TempDir::new().expect("a directory");
    let moved = public.path().join("run");
    // Also where it cannot be reached.
    copy_directory(&out, &moved);
    let report = |arguments: &[&str]| {
        let mut all = vec!["report", moved.to_str().expect("UTF-8")];
        all.extend(arguments);
        let mut command = as_nobody(&observer, public.path(), &all).expect("a command");
        let finished = run(&mut command, TIMEOUT).expect("it ends");
        finished.assert_code(0);
        finished.stdout
    };
    let again: Summary = serde_json::from_str(&report(&["--json"])).expect("summary.json");
    assert_eq!(again, summary);
    let text = report(&[]);
    assert!(says_the_answer(&text, &summary), "{text}");
    for word in summary.probes.keys() {
        assert!(text.contains(word), "{word}: {text}");
    }
}

/// Rows of `observer load` whose response time is longer, nanoseconds.
fn rows_above(threshold_ns: u64, rows: &Path) -> u64 {
    let text = fs::read_to_string(rows).expect("what the generator wrote");
    let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let rows = rows.filter(|row| row["latency_ns"].is_u64());
    let response_ns = |row: &Value| {
        number(row, "start_ns") + number(row, "latency_ns") - number(row, "intended_start_ns")
    };
    rows.filter(|row| response_ns(row) > threshold_ns).count() as u64
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("the run").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    give_to_nobody(to).expect("root may");
}

#[test]
fn an_observer_that_is_killed_leaves_what_it_had() {
    let Some(_guard) = privileged::ready("killed") else { return };
    let (service, directory) = (service(Placement::default()), directory());
    let pid = service.process.id().to_string();
    let mut watch = Watch::start(&programs(), &["--pid", &pid], directory.path())
        .unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..50 {
        observer_tests::http::get(service.port, "/cpu?us=100", "").expect("an answer");
    }
    // Until run.json says up to when the trace is whole.
    let deadline = Instant::now() + TIMEOUT;
    let is_known = |info: RunInfo| info.end_ns > info.start_ns;
    while !RunDir::open(&watch.run).and_then(|run| run.read_run()).is_ok_and(is_known) {
        assert!(Instant::now() < deadline, "run.json is written during the run");
        std::thread::sleep(Duration::from_millis(50));
    }
    watch.process.signal(Signal::KILL);
    watch.process.wait(TIMEOUT).expect("it is gone");
    fs::write(directory.path().join("stop"), "").expect("the command ends, too");
    let mut command = Command::new(programs().observer);
    let finished = run(command.arg("report").arg(&watch.run), TIMEOUT).expect("it ends");
    finished.assert_code(0);
    assert!(finished.stdout.contains("fault"), "{finished:#?}");
}
