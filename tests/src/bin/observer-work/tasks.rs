//! Threads and processes that are born and die.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use observer_tests::clone::{clone_with_pid, wait_for};
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use rustix::fs::Advice;
use serde_json::json;

use crate::cpu::spin_until;
use crate::memory::no_huge_pages;
use crate::stage::{pin, report, wait_for_end, wait_for_go};

pub(crate) fn churn(threads: usize, processes: usize, pages: usize) -> io::Result<()> {
    if wait_for_go()? {
        for _ in 0..threads {
            let touch = move || {
                let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
                no_huge_pages(&mapping)?;
                mapping.write_every_page();
                Ok::<_, io::Error>(())
            };
            thread::Builder::new()
                .name("churn".into())
                .spawn(touch)?
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
        }
        for _ in 0..processes {
            // Its own minor-faults workload: forked, executed, and started at once.
            let own = std::env::current_exe()?;
            let mut child = Command::new(own)
                .args(["minor-faults", "--pages", &pages.to_string()])
                // As in `exec_threads`.
                .env_clear()
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(b"\n")?;
            }
            child.wait()?;
        }
        report(&json!({
            "threads": threads, "processes": processes,
            "minor_faults_at_least": (threads + processes) * pages,
        }))?;
    }
    wait_for_end()
}

/// The thread that executed this program, if its task has begun already.
pub(crate) const EXECUTED_BY: &str = "OBSERVER_WORK_EXECUTED_BY";

/// A thread that is not the first executes another program: all others die, and it gets the id of
/// the first. If the pages of the program are not in memory, it sleeps after that, before it has executed.
pub(crate) fn exec_threads(length: Duration, copy: Option<&Path>) -> io::Result<()> {
    const THREADS: usize = 3;
    let program = copy.map_or_else(std::env::current_exe, |copy| Ok(copy.to_owned()))?;
    let go = Arc::new(Barrier::new(3));
    let mut others = Vec::new();
    for index in 0..THREADS {
        let go = Arc::clone(&go);
        let (program, is_copy) = (program.clone(), copy.is_some());
        others.push(thread::Builder::new().spawn(move || {
            if index > 1 {
                thread::park();
                return;
            }
            go.wait();
            // Two of them take turns, so that each has waited long before one executes.
            pin(0);
            spin_until(Instant::now() + length);
            if index > 0 {
                thread::park();
                return;
            }
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            if is_copy {
                forget_pages(&program);
            }
            let error = Command::new(&program)
                .args(["contend", "--threads", "3", "--ms", &length.as_millis().to_string()])
                // The kernel copies the environment through page faults without an exception, which
                // not every tier can count: as many as the pages of this host's environment.
                .env_clear()
                .env(EXECUTED_BY, tid.to_string())
                .exec();
            eprintln!("observer-work: cannot execute itself: {error}");
        })?);
    }
    // All of them sleep before the observer comes.
    thread::sleep(Duration::from_millis(50));
    if wait_for_go()? {
        go.wait();
    }
    for other in others {
        let _ = other.join();
    }
    Ok(())
}

fn forget_pages(path: &Path) {
    let forgotten = File::open(path)
        .and_then(|file| Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?));
    if let Err(error) = forgotten {
        eprintln!("observer-work: the pages of {} stay in memory: {error}", path.display());
    }
}

/// One process after the other with the same id. Each touches pages and runs against its parent.
pub(crate) fn reborn(pid: Option<i32>, rounds: usize, pages: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    if wait_for_go()? {
        let mut pid = pid;
        for _ in 0..rounds {
            let length = Duration::from_millis(4);
            let child = clone_with_pid(pid, || {
                mapping.write_every_page();
                spin_until(Instant::now() + length);
            })?;
            spin_until(Instant::now() + length);
            wait_for(child)?;
            pid = Some(child);
        }
        report(&json!({ "pid": pid, "minor_faults_at_least": rounds * pages }))?;
    }
    wait_for_end()
}

/// Two processes in a pid and a cgroup namespace of their own; this one stays outside.
pub(crate) fn inside(pages: usize, length: Duration) -> io::Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    let flags = UnshareFlags::NEWPID | UnshareFlags::NEWCGROUP | UnshareFlags::NEWNS;
    // SAFETY: descriptors stay shared; the process has one thread.
    unsafe { unshare_unsafe(flags) }?;
    let mut children = Vec::new();
    for _ in 0..2 {
        let (mut out, go) = io::pipe()?;
        let child = clone_with_pid(None, || {
            let mut byte = [0];
            if io::Read::read_exact(&mut out, &mut byte).is_ok() {
                mapping.write_every_page();
                spin_until(Instant::now() + length);
            }
        })?;
        children.push((child, go));
    }
    if wait_for_go()? {
        // The first one is the namespace's init: with it all others end.
        for (child, go) in children.iter_mut().rev() {
            go.write_all(&[0])?;
            spin_until(Instant::now() + length);
            wait_for(*child)?;
        }
        let pids: Vec<i32> = children.iter().map(|(child, _)| *child).collect();
        report(&json!({ "pids": pids, "minor_faults_at_least": 2 * pages }))?;
    }
    wait_for_end()
}
