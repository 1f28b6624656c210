//! How COMMAND ends: with all processes it started, and with complete samples.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, os::unix::process::CommandExt};

use observer::model::{EndReason, RunInfo};
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service, command_lines_with};
use observer_tests::trial::{directory, programs};
use observer_tests::watch::read_run;
use rustix::process::{Pid, Signal, kill_process_group};

const TIMEOUT: Duration = Duration::from_secs(60);

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn ended(process: &mut Running, run: &Path) -> RunInfo {
    let status = process.wait(TIMEOUT).expect("it ends");
    assert!(status.success(), "{status}");
    read_run(run).expect("a whole run").1
}

#[test]
fn a_command_behind_a_shell_ends_with_all_it_started() {
    let Some(_guard) = privileged::ready("command behind a shell") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let (out, mark) = (directory.path().join("run"), directory.path().join("never"));
    // Keeps writing into the pipe that observer reads, and does not end with the shell.
    let script = format!(
        "{} load {}/ --rate 50 --duration 600s & cat {}; true",
        text(&programs().observer),
        service.url,
        text(&mark)
    );
    let pid = service.process.id().to_string();
    let mut command = Command::new(programs().observer);
    command.args(["run", "--pid", &pid, "--duration", "2s", "--samples", "observer", "--out"]);
    command.arg(&out).args(["--", "sh", "-c", &format!("{script}; wait")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    let info = ended(&mut observer, &out);
    assert_eq!(info.end_reason, EndReason::Duration);
    assert!(begun.elapsed() < TIMEOUT / 2, "{:?}", begun.elapsed());
    let left = command_lines_with(&service.url);
    assert!(left.is_empty(), "no process loads the service any more: {left:?}");
}

#[test]
fn an_interrupt_at_the_terminal_reaches_the_generator_once() {
    let Some(_guard) = privileged::ready("interrupt at the terminal") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let out = directory.path().join("run");
    let (pid, url) = (service.process.id().to_string(), format!("{}/sleep?ms=300", service.url));
    let mut command = Command::new(programs().observer);
    command.args(["run", "--budget", "none", "--pid", &pid]);
    command.args(["--samples", "observer", "--out"]).arg(&out).arg("--");
    command.arg(&programs().observer).args(["load", &url, "--rate", "100", "--duration", "600s"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // As a shell starts it at a terminal: ^C goes to the whole group.
    command.process_group(0);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    let deadline = Instant::now() + TIMEOUT;
    let rows = || fs::read_to_string(out.join("loadgen.out")).unwrap_or_default().lines().count();
    while rows() < 100 {
        assert!(Instant::now() < deadline, "the load begins");
        std::thread::sleep(Duration::from_millis(20));
    }
    let group = Pid::from_raw(observer.id() as i32).expect("a process");
    kill_process_group(group, Signal::INT).expect("the group is there");
    let info = ended(&mut observer, &out);
    assert_eq!(info.end_reason, EndReason::Interrupted);
    // Requests that were under way (some thirty) are waited for and written, and so is the
    // generator's summary at its end.
    let said = fs::read_to_string(out.join("loadgen.err")).expect("its words");
    assert!(said.contains("interrupted before the end of the schedule"), "{said}");
}

/// `observer run --pid SERVICE ARGUMENTS --out OUT`, with its messages in a file.
fn watching(service: &Service, arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::new(programs().observer);
    command.args(["run", "--budget", "none", "--pid", &service.process.id().to_string(), "--out"]);
    let log = fs::File::create(out.with_extension("log")).expect("a file");
    command.arg(out).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

fn said(out: &Path) -> String {
    fs::read_to_string(out.with_extension("log")).expect("what it said")
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A shell script that makes a hundred requests and keeps their rows, and does something else at SIGINT,
/// for as long as that takes.
fn slow_to_end(service: &Service, directory: &Path, at_interrupt: &str) -> String {
    let (load, rows) = (text(&programs().observer).to_owned(), directory.join("rows"));
    let (rows, url) = (text(&rows).to_owned(), &service.url);
    let at_interrupt = at_interrupt.replace("$ROWS", &rows);
    format!(
        "trap '{at_interrupt}' INT; {load} load {url}/ --rate 100 --duration 1s > {rows}; \
         while :; do sleep 1; done"
    )
}

/// Waits until all rows are there, and interrupts observer.
fn interrupt_after_load(observer: &Running, directory: &Path) {
    let rows = directory.join("rows");
    wait_for("the load", || fs::read_to_string(&rows).is_ok_and(|rows| rows.contains("summary")));
    observer.signal(Signal::INT);
}

#[test]
fn a_generator_that_works_after_an_interrupt_is_waited_for() {
    let Some(_guard) = privileged::ready("slow results") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let out = directory.path().join("run");
    // Longer than what a program that does not end would be given.
    let script = slow_to_end(&service, directory.path(), "sleep 4; cat $ROWS; exit 0");
    let arguments = ["--samples", "observer", "--", "sh", "-c", &script];
    let mut command = watching(&service, &arguments, &out);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    interrupt_after_load(&observer, directory.path());
    let info = ended(&mut observer, &out);
    assert_eq!((info.end_reason, info.command_exit), (EndReason::Interrupted, Some(0)));
    let samples = read_run(&out).expect("a whole run").0.samples;
    assert_eq!(samples.count, 100, "{samples:?}");
    assert!(said(&out).contains("waiting for the results of COMMAND"), "{}", said(&out));
}

#[test]
fn a_second_interrupt_ends_a_generator_that_is_waited_for() {
    let Some(_guard) = privileged::ready("second interrupt") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let out = directory.path().join("run");
    let mark = directory.path().join("at-interrupt");
    let at_interrupt = format!("echo > {}; sleep 5000", text(&mark));
    let script = slow_to_end(&service, directory.path(), &at_interrupt);
    let rows = format!("observer:{}", text(&directory.path().join("rows")));
    let arguments = ["--samples", &rows, "--", "sh", "-c", &script];
    let mut command = watching(&service, &arguments, &out);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    interrupt_after_load(&observer, directory.path());
    wait_for("the interrupt", || mark.exists());
    wait_for("the message", || said(&out).contains("^C ends it"));
    assert!(observer.ended().expect("a status").is_none(), "it waits");
    observer.signal(Signal::INT);
    let info = ended(&mut observer, &out);
    assert_eq!((info.end_reason, info.command_exit), (EndReason::Interrupted, Some(143)));
    let left = command_lines_with(text(&mark));
    assert!(left.is_empty(), "{left:?}");
}

/// A run without COMMAND ends with its samples.
fn ends_with_samples(service: &Service, command: &mut Command, out: &Path, begin: impl FnOnce()) {
    let mut observer = Running::start(command, Placement::default()).expect("it starts");
    wait_for("the run", || out.join("loadgen.out").exists());
    begin();
    let status = observer.wait(TIMEOUT).expect("it ends with the samples");
    assert!(status.success(), "{status}: {}", said(out));
    let (summary, info) = read_run(out).expect("a whole run");
    assert_eq!(info.end_reason, EndReason::SamplesEnd, "{}", service.url);
    assert_eq!(summary.samples.count, 100, "{:?}", summary.samples);
}

#[test]
fn the_samples_end_a_run_without_a_command() {
    let Some(_guard) = privileged::ready("end of samples") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let path = |name: &str| directory.path().join(name);
    let load = |out: &str| {
        let mut load = Command::new(programs().observer);
        load.args(["load", &format!("{}/", service.url), "--rate", "100", "--duration", "1s"]);
        load.args(["--out", out]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut load = Running::start(&mut load, Placement::default()).expect("it starts");
        assert!(load.wait(TIMEOUT).expect("it ends").success());
    };

    // A stream that stays open behind the summary line.
    let go = path("go");
    let script = format!(
        "while ! [ -e {} ]; do sleep 0.1; done; {} load {}/ --rate 100 --duration 1s; \
         exec sleep 5000",
        text(&go),
        text(&programs().observer),
        service.url
    );
    let mut producer = Command::new("sh");
    producer.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut producer = Running::start(&mut producer, Placement::default()).expect("it starts");
    let stream = producer.stdout().expect("a pipe");
    let out = path("stdin");
    let mut command = watching(&service, &["--samples", "observer:-"], &out);
    command.stdin(stream);
    ends_with_samples(&service, &mut command, &out, || fs::write(&go, "").expect("a file"));

    // A file in which an earlier run has left its samples, with their end.
    let file = path("file");
    load(text(&path("old")));
    fs::copy(path("old"), &file).expect("a copy");
    let out = path("appended");
    let mut command =
        watching(&service, &["--samples", &format!("observer:{}", text(&file))], &out);
    ends_with_samples(&service, &mut command, &out, || {
        load(text(&path("new")));
        let mut both = fs::OpenOptions::new().append(true).open(&file).expect("the file");
        let new = fs::read(path("new")).expect("samples");
        std::io::Write::write_all(&mut both, &new).expect("room");
    });
    let skipped = read_run(&out).expect("a whole run").0.samples.skipped;
    assert_eq!(skipped.into_iter().collect::<Vec<_>>(), [("earlier_recording".to_owned(), 100)]);

    let fifo = path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("FIFO");
    let out = path("from-fifo");
    let mut command =
        watching(&service, &["--samples", &format!("observer:{}", text(&fifo))], &out);
    ends_with_samples(&service, &mut command, &out, || load(text(&fifo)));

    let socket = format!("unix:{}", text(&path("socket")));
    let out = path("from-socket");
    let mut command = watching(&service, &["--samples", &format!("observer:{socket}")], &out);
    ends_with_samples(&service, &mut command, &out, || load(&socket));
    assert!(!path("socket").exists(), "the socket goes with the run");
}

#[test]
fn samples_come_through_a_socket() {
    let Some(_guard) = privileged::ready("socket") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let directory = directory();
    let (out, socket) = (directory.path().join("run"), directory.path().join("socket"));
    let to = format!("unix:{}", text(&socket));
    let script = format!(
        "for i in 1 2; do {} load {}/ --rate 100 --duration 1s --out {to} || exit; done",
        text(&programs().observer),
        service.url
    );
    let from = format!("observer:{to}");
    let arguments = ["--samples", &from, "--", "sh", "-c", &script];
    let run = || {
        let mut command = watching(&service, &arguments, &out);
        let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
        observer.wait(TIMEOUT).expect("it ends").code()
    };
    assert_eq!(run(), Some(0), "{}", said(&out));
    let (summary, info) = read_run(&out).expect("a whole run");
    assert_eq!(info.end_reason, EndReason::CommandExit);
    assert_eq!(summary.samples.count, 200, "{:?}", summary.samples);
    assert!(out.join("loadgen.samples").metadata().expect("a copy").len() > 10_000);
    assert!(!socket.exists(), "the socket goes with the run");

    fs::write(&socket, "mine").expect("a file");
    fs::remove_dir_all(&out).expect("the run");
    assert_eq!(run(), Some(8), "{}", said(&out));
    assert!(said(&out).contains("choose another path"), "{}", said(&out));
    assert_eq!(fs::read_to_string(&socket).expect("still there"), "mine");
}
