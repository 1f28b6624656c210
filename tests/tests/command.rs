//! How COMMAND ends: with all processes it started, and with complete samples.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, os::unix::process::CommandExt};

use observer::loadgen::kept::OUTPUT_BYTES;
use observer::model::{EndReason, RunInfo};
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service, command_lines_with};
use observer_tests::trial::{directory, in_guest, programs};
use observer_tests::watch::read_run;
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(120);

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
    // In an emulated guest, the generator takes seconds to begin.
    let duration = if in_guest() { "15s" } else { "2s" };
    command.args(["run", "--pid", &pid, "--duration", duration, "--samples", "observer", "--out"]);
    command.arg(&out).args(["--", "sh", "-c", &format!("{script}; wait")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    let info = ended(&mut observer, &out);
    assert_eq!(info.end_reason, EndReason::Duration);
    let left = command_lines_with(&service.url);
    assert!(left.is_empty(), "no process loads the service any more: {left:?}");
}

/// A process that loads a service, as far as it matters here: it says that it has begun, and goes on
/// until it is told to stop.
struct Load {
    directory: TempDir,
    program: PathBuf,
}

impl Load {
    fn new() -> Self {
        // Other users may enter it.
        let directory = tempfile::tempdir().expect("a directory");
        let program = directory.path().join("load");
        fs::copy(&programs().work, &program).expect("a copy");
        let open = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("its mode");
        };
        open(&program, 0o755);
        open(directory.path(), 0o777);
        Self { directory, program }
    }

    /// The command that runs one.
    fn command(&self, name: &str) -> String {
        let [begun, stop] = [name, "stop"].map(|name| self.directory.path().join(name));
        format!("{} hold {} {}", text(&self.program), text(&begun), text(&stop))
    }

    fn wait_for(&self, names: &[&str]) {
        let deadline = Instant::now() + TIMEOUT;
        while names.iter().any(|name| !self.directory.path().join(name).exists()) {
            assert!(Instant::now() < deadline, "{names:?} begin: {:?}", self.running());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn running(&self) -> Vec<String> {
        command_lines_with(text(self.directory.path()))
    }

    /// Those that are left when they have had time to end.
    fn left(&self) -> Vec<String> {
        let deadline = Instant::now() + TIMEOUT / 2;
        while !self.running().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.running()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.path().join("stop"), "");
        self.left();
    }
}

/// `observer run MORE --out OUT -- COMMAND`, with as little as possible to watch.
fn observing(more: &[&str], out: &Path, command: &[&str]) -> Command {
    let mut observer = Command::new(programs().observer);
    observer.args(["run", "--budget", "none", "--probes", "task", "--pid"]);
    observer.arg(std::process::id().to_string()).arg("--out").arg(out).args(more);
    observer.arg("--").args(command);
    observer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    observer
}

/// Starts observer with a command that a shell runs.
fn observer_with(script: &str, out: &Path, more: &[&str]) -> Running {
    let mut command = observing(more, out, &["sh", "-c", script]);
    Running::start(&mut command, Placement::default()).expect("it starts")
}

/// A script whose processes leave the shell in every way there is, and their names.
fn scattered(load: &Load) -> (String, Vec<&'static str>) {
    let mut names = vec!["background", "in_pipe", "last"];
    let [background, in_pipe, last] = [0, 1, 2].map(|index| load.command(names[index]));
    let mut script = format!("{background} & {in_pipe} | cat & ");
    // Guests have few programs.
    if Path::new("/usr/bin/setsid").exists() {
        let [session, orphan] = ["session", "orphan"].map(|name| load.command(name));
        script += &format!("setsid {session} & (setsid {orphan} & ) & ");
        names.extend(["session", "orphan"]);
    }
    if Path::new("/usr/bin/setpriv").exists() {
        let user = load.command("other_user");
        script += &format!("setpriv --reuid=65534 --regid=65534 --clear-groups {user} & ");
        names.push("other_user");
    }
    (script + &last, names)
}

#[test]
fn nothing_that_a_command_started_outlives_an_observer_that_is_killed() {
    let Some(_guard) = privileged::ready("killed observer") else { return };
    let (load, directory) = (Load::new(), directory());
    let (script, names) = scattered(&load);
    let out = directory.path().join("run");
    let mut observer = observer_with(&script, &out, &[]);
    load.wait_for(&names);
    observer.child().kill().expect("it is killed");
    observer.wait(TIMEOUT).expect("it ends");
    assert_eq!(load.left(), [""; 0]);
}

#[test]
fn nothing_that_a_command_started_outlives_it_when_its_supervisor_is_killed() {
    let Some(_guard) = privileged::ready("killed supervisor") else { return };
    let (load, directory) = (Load::new(), directory());
    let (script, names) = scattered(&load);
    let out = directory.path().join("run");
    let mut observer = observer_with(&script, &out, &[]);
    load.wait_for(&names);
    let observers = observer.id();
    let supervisor = observer::host::process::all()
        .into_iter()
        .find(|process| process.parent.0 == observers)
        .expect("the process between observer and the command");
    assert_ne!(supervisor.comm, "observer", "a signal to all of that name does not reach it");
    let pid = Pid::from_raw(supervisor.tgid.0 as i32).expect("a process");
    rustix::process::kill_process(pid, Signal::KILL).expect("it is killed");
    assert_eq!(ended(&mut observer, &out).end_reason, EndReason::CommandExit);
    assert_eq!(load.running(), [""; 0], "nothing is left when the run has ended");
}

#[test]
fn what_a_command_leaves_behind_ends_with_the_run() {
    let Some(_guard) = privileged::ready("left behind") else { return };
    for (how, more) in [("; true", &[][..]), ("; sleep 600", &["--duration", "500ms"])] {
        let (load, directory) = (Load::new(), directory());
        let (script, names) = scattered(&load);
        let out = directory.path().join("run");
        // The last one runs in the background too, and the shell waits until all have begun.
        let begun =
            names.iter().map(|name| format!("-e {}", text(&load.directory.path().join(name))));
        let all: Vec<String> = begun.map(|test| format!("[ {test} ]")).collect();
        let script = format!("{script} & until {}; do sleep 0.05; done{how}", all.join(" && "));
        let mut observer = observer_with(&script, &out, more);
        ended(&mut observer, &out);
        assert_eq!(load.running(), [""; 0], "{how}");
    }
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
    let rows = || fs::read_to_string(out.join("loadgen.out")).unwrap_or_default().lines().count();
    wait_for("the load begins", || rows() >= 100);
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

/// A run of a command until it ends; what it left.
fn run_of(command: &[&str], more: &[&str], environment: &[(&str, &str)]) -> (TempDir, RunInfo) {
    let directory = directory();
    let out = directory.path().join("run");
    let mut observer = observing(more, &out, command);
    observer.envs(environment.iter().copied());
    let mut observer = Running::start(&mut observer, Placement::default()).expect("it starts");
    let info = ended(&mut observer, &out);
    (directory, info)
}

fn kept(directory: &TempDir, name: &str) -> Vec<u8> {
    fs::read(directory.path().join("run").join(name)).expect("what was kept")
}

/// A line of `/proc/PID/status`, as the command printed it.
fn status_line(directory: &TempDir, key: &str) -> Vec<u32> {
    let text = String::from_utf8(kept(directory, "loadgen.out")).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the line");
    line.split_ascii_whitespace().map(|number| number.parse().expect("a number")).collect()
}

#[test]
fn a_command_runs_as_the_user_it_was_asked_for() {
    let Some(_guard) = privileged::ready("user of a command") else { return };
    let print = ["sh", "-c", "cat /proc/self/status; echo \"MARK $MARK\""];
    let sudo = [("SUDO_UID", "65534"), ("SUDO_GID", "65533"), ("MARK", "5")];
    let (root, other) = ([0; 4], [65534; 4]);
    for (more, environment, uid) in [
        (&[][..], &sudo[2..], root),
        (&["--as", "65534:65533"], &sudo[2..], other),
        (&[], &sudo, other),
        (&["--as", "0:0"], &sudo, root),
    ] {
        let (directory, info) = run_of(&print, more, environment);
        assert_eq!(status_line(&directory, "Uid:"), uid, "{more:?}");
        if uid == other {
            assert_eq!(status_line(&directory, "Gid:"), [65533; 4]);
            assert_eq!(status_line(&directory, "Groups:"), [65533]);
            let text = String::from_utf8(kept(&directory, "loadgen.out")).expect("text");
            assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
        }
        assert_eq!(status_line(&directory, "MARK"), [5], "the environment is kept");
        assert_eq!(info.command_user.is_some(), uid == other, "{:?}", info.command_user);
    }
}

#[test]
fn arguments_are_on_the_page_only_if_asked_for() {
    let Some(_guard) = privileged::ready("secrets of a command") else { return };
    let secret = "Bearer-5f2c";
    for (more, shown) in [(&[][..], false), (&["--show-arguments"], true)] {
        let (directory, info) = run_of(&["true", secret], more, &[]);
        assert_eq!(info.command, ["true", secret]);
        let page = String::from_utf8(kept(&directory, "report.html")).expect("text");
        assert_eq!(page.contains(secret), shown);
        assert!(page.contains("<dd>true"), "{page}");
    }
}

#[test]
fn what_a_command_prints_is_kept_up_to_a_limit() {
    let Some(_guard) = privileged::ready("long output") else { return };
    let files = directory();
    let input = files.path().join("input");
    let more = 12_345;
    let file = fs::File::create(&input).expect("a file");
    file.set_len(OUTPUT_BYTES + more).expect("a sparse file");
    let script = format!("cat {0}; cat {0} >&2", text(&input));
    let (directory, info) = run_of(&["sh", "-c", &script], &[], &[]);
    for name in ["loadgen.out", "loadgen.err"] {
        assert_eq!(info.cut_bytes[name], more, "{name}");
        let kept = kept(&directory, name);
        let said = String::from_utf8_lossy(&kept[OUTPUT_BYTES as usize..]).into_owned();
        assert_eq!(said, format!("\n[observer: {more} more bytes were not kept]\n"));
    }
    let page = String::from_utf8(kept(&directory, "report.html")).expect("text");
    assert!(page.contains("12,345 more bytes of loadgen.out were not kept"), "{page}");
}

#[test]
fn samples_without_an_end_do_not_hold_up_the_run() {
    let Some(_guard) = privileged::ready("endless samples") else { return };
    let files = directory();
    let fifo = files.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a fifo");
    // More writers than a reader can follow, and a pipe that is never empty. They end when observer
    // has closed the other end.
    let path = fifo.clone();
    let endless = std::thread::spawn(move || {
        let mut fifo = fs::OpenOptions::new().write(true).open(&path).expect("a reader");
        rustix::pipe::fcntl_setpipe_size(&fifo, 1 << 20).expect("a larger pipe");
        fifo.write_all(b"response-time,status-code,offset\n").expect("a header");
        let write = || {
            // Written at once, so that the rows of the writers do not mix.
            let rows = b"0.001,200,0.5\n".repeat(290);
            while (&fifo).write_all(&rows).is_ok() {}
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| {
                scope.spawn(write);
            });
        });
    });
    let samples = format!("hey:{}", text(&fifo));
    let (_directory, info) =
        run_of(&["sleep", "600"], &["--duration", "1s", "--samples", &samples], &[]);
    assert_eq!(info.end_reason, EndReason::Duration);
    endless.join().expect("it ends");
}
