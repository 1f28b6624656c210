//! Following real processes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::*;
use crate::host::{Owners, Process};
use crate::model::Tgid;

/// A shell that executes the commands it gets, line by line, and is killed with its children at the
/// end.
struct Shell {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Shell {
    fn new() -> Self {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    fn tgid(&self) -> Tgid {
        Tgid(self.child.id())
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Runs `command` in the background and returns its process.
    fn start(&mut self, command: &str) -> Tgid {
        self.tell(&format!("{command} & echo $!"));
        let line = self.lines.recv_timeout(Duration::from_secs(10)).unwrap();
        Tgid(line.parse().unwrap())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn has_comm(tgid: Tgid, comm: &str) -> bool {
    Process::read(tgid).is_some_and(|process| process.comm == comm)
}

fn pid(tgid: Tgid) -> TargetSpec {
    TargetSpec::Pids([tgid].into())
}

/// A copy of sleep(1) under a name of its own.
fn program(name: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::copy("/bin/sleep", &path).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn descendants_are_there_from_the_start_and_new_children_join() {
    let mut shell = Shell::new();
    let early = shell.start("sleep 60");
    // A grandchild: the subshell stays because it has two commands to run.
    let middle = shell.start("(sleep 60; true)");
    let mut target = Membership::new(&pid(shell.tgid())).unwrap();
    eventually("grandchild joins", || {
        target.poll();
        target.processes().any(|process| process.parent == middle)
    });
    assert!(target.contains(early) && target.contains(middle) && target.contains(shell.tgid()));
    assert_eq!(target.primary().unwrap().tgid, shell.tgid());
    let count = target.tgids().len();
    assert_eq!(count, 4);

    let late = shell.start("sleep 60");
    let mut joined = Vec::new();
    eventually("late child joins", || {
        joined.extend(target.poll().joined);
        target.contains(late)
    });
    assert_eq!(joined.iter().map(|process| process.tgid).collect::<Vec<_>>(), [late]);
    // Five processes of one owner.
    let owner = Owners::read().of(shell.tgid()).unwrap();
    let described = target.describe();
    assert!(described.ends_with(&format!(" and 1 more ({owner})")), "{described}");
}

#[test]
fn the_target_is_gone_when_its_last_process_is() {
    let mut shell = Shell::new();
    let child = shell.start("sleep 60");
    let mut target = Membership::new(&pid(shell.tgid())).unwrap();
    eventually("child joins", || {
        target.poll();
        target.contains(child)
    });
    shell.child.kill().unwrap();
    let mut left = Vec::new();
    // The child is an orphan now, and still the target: it may be the one that serves.
    eventually("shell leaves", || {
        left.extend(target.poll().left);
        !left.is_empty()
    });
    assert_eq!(left, [shell.tgid()]);
    assert!(!target.all_gone());
    assert_eq!(target.primary().unwrap().tgid, child);

    let raw = rustix::process::Pid::from_raw(child.0.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    eventually("all gone", || {
        left.extend(target.poll().left);
        target.all_gone()
    });
    assert_eq!(left, [shell.tgid(), child]);
    assert_eq!(target.primary(), None);
    assert_eq!(target.describe(), format!("--pid {}: no process", shell.tgid().0));
}

#[test]
fn a_zombie_is_gone_before_its_parent_collects_it() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let mut target = Membership::new(&pid(Tgid(child.id()))).unwrap();
    assert!(target.poll().is_empty());
    child.kill().unwrap();
    eventually("zombie is gone", || {
        target.poll();
        target.all_gone()
    });
    child.wait().unwrap();
    assert_eq!(
        Membership::new(&pid(Tgid(child.id()))).unwrap_err(),
        TargetError::NoSuchProcess(Tgid(child.id()))
    );
}

#[test]
fn a_service_that_executes_its_program_later_is_waited_for_by_name() {
    let (_directory, path) = program("obs-late-comm");
    let spec = TargetSpec::Comm("obs-late-comm".into());
    assert!(matches!(spec.resolve(), Err(TargetError::NoCommand(_))));
    let stop = Arc::new(AtomicBool::new(false));
    let waiting = {
        let (spec, stop) = (spec.clone(), Arc::clone(&stop));
        std::thread::spawn(move || Membership::wait(&spec, &stop))
    };
    let mut shell = Shell::new();
    let service = shell.start(&format!("(sleep 0.3; exec {path} 60)"));
    let mut target = waiting.join().unwrap().unwrap().unwrap();
    assert_eq!(target.tgids(), [service].into());

    // A second one, executed after its process was already looked at under another name.
    let second = shell.start(&format!("(sleep 0.7; exec {path} 60)"));
    eventually("second joins", || {
        target.poll();
        target.contains(second)
    });
    assert!(!target.contains(shell.tgid()));
}

#[test]
fn a_program_is_known_by_its_file_and_by_its_path() {
    let (directory, path) = program("obs-exe");
    let link = directory.path().join("alias");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut shell = Shell::new();
    let service = shell.start(&format!("{path} 60"));
    eventually("service runs", || has_comm(service, "obs-exe"));
    let tgids = |path: &std::path::Path| {
        Membership::new(&TargetSpec::Exe(path.to_path_buf())).unwrap().tgids()
    };
    assert_eq!(tgids(path.as_ref()), [service].into());
    assert_eq!(tgids(&link), [service].into());
    // An upgrade replaced the file under the running service.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "new").unwrap();
    assert_eq!(tgids(path.as_ref()), [service].into());
}

#[test]
fn a_restarted_service_joins_again() {
    let (_directory, path) = program("obs-restart");
    let mut shell = Shell::new();
    let first = shell.start(&format!("{path} 60"));
    eventually("first runs", || has_comm(first, "obs-restart"));
    let mut target = Membership::new(&TargetSpec::Comm("obs-restart".into())).unwrap();
    shell.tell(&format!("kill {}", first.0));
    eventually("first is gone", || {
        target.poll();
        target.all_gone()
    });
    let second = shell.start(&format!("{path} 60"));
    eventually("second joins", || {
        target.poll();
        target.contains(second)
    });
}

#[test]
fn an_excluded_process_stays_out_with_its_children() {
    let mut shell = Shell::new();
    let outside = shell.start("(sleep 60; true)");
    eventually("child runs", || Process::read(outside).is_some());
    let mut target = Membership::new(&pid(shell.tgid())).unwrap();
    target.exclude(outside);
    let inside = shell.start("sleep 60");
    eventually("other child joins", || {
        target.rescan();
        target.contains(inside)
    });
    assert!(!target.contains(outside));
    assert!(target.processes().all(|process| process.parent != outside));
}

#[test]
fn fork_and_exec_events_are_taken_at_once() {
    let mut shell = Shell::new();
    let mut target = Membership::new(&pid(shell.tgid())).unwrap();
    let (_directory, path) = program("obs-forked");
    let child = shell.start(&format!("{path} 60"));
    eventually("child runs", || has_comm(child, "obs-forked"));
    assert_eq!(target.on_birth(child, false).map(|process| process.tgid), Some(child));
    assert_eq!(target.on_birth(child, false), None);
    // Its parent is part of the target, and nobody in the target forked the shell.
    assert!(target.was_forked(child) && !target.was_forked(shell.tgid()));
    assert_eq!(target.on_birth(shell.tgid(), true), None);
    assert!(target.was_forked(shell.tgid()));
    assert!(target.contains(child));
    // One that was born and died between two drains of the ring.
    let mut short = Command::new("true").spawn().unwrap();
    short.wait().unwrap();
    assert_eq!(target.on_birth(Tgid(short.id()), true), None);
    assert!(!target.contains(Tgid(short.id())));

    shell.tell(&format!("exec {path} 60"));
    eventually("shell became the program", || has_comm(shell.tgid(), "obs-forked"));
    target.on_exec(shell.tgid());
    assert_eq!(target.primary().unwrap().comm, "obs-forked");
}

#[test]
fn waiting_ends_on_request_and_is_refused_where_it_cannot_help() {
    let stop = Arc::new(AtomicBool::new(false));
    let waiting = {
        let stop = Arc::clone(&stop);
        let spec = TargetSpec::Comm("never called so".into());
        std::thread::spawn(move || Membership::wait(&spec, &stop))
    };
    std::thread::sleep(Duration::from_millis(120));
    assert!(!waiting.is_finished());
    stop.store(true, Ordering::Relaxed);
    assert!(waiting.join().unwrap().unwrap().is_none());

    stop.store(false, Ordering::Relaxed);
    let me = Tgid(std::process::id());
    assert_eq!(Membership::wait(&pid(me), &stop).unwrap_err(), TargetError::Itself(me));
}
