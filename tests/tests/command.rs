//! How COMMAND ends: with all processes it started, and with complete samples.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
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

/// A process that loads a service, as far as it matters here: it says that it has begun, and goes on
/// until it is told to stop.
struct Load {
    directory: tempfile::TempDir,
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

/// Starts observer with a command that a shell runs.
fn observer_with(script: &str, pid: u32, out: &Path, more: &[&str]) -> Running {
    let mut command = Command::new(programs().observer);
    command.args(["run", "--budget", "none", "--probes", "task", "--pid", &pid.to_string()]);
    command.arg("--out").arg(out).args(more).args(["--", "sh", "-c", script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
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
    let mut observer = observer_with(&script, std::process::id(), &out, &[]);
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
    let mut observer = observer_with(&script, std::process::id(), &out, &[]);
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
        let mut observer = observer_with(&script, std::process::id(), &out, more);
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
