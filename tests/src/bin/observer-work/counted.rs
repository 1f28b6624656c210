//! Threads and processes that switch, move and fault, and what they know of it themselves.

use std::fs;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use observer_tests::mapping::{Mapping, PAGE_BYTES};
use rustix::thread::{sched_getaffinity, sched_getcpu};
use serde_json::{Value, json};

use crate::memory::no_huge_pages;
use crate::stage::{pin, report, wait_for_end, wait_for_go};

/// What a thread or several did.
#[derive(Clone, Copy, Default)]
struct Did {
    /// Context switches, as each counted its own while it worked.
    switches: u64,
    /// Moves to another CPU on which it then ran.
    moves: u64,
    /// Pages that it touched first.
    pages: u64,
    /// Moves that the kernel counted for those that have ended; `None` where it does not tell.
    ended_migrations: Option<u64>,
}

impl Did {
    const fn nothing() -> Self {
        Self { switches: 0, moves: 0, pages: 0, ended_migrations: Some(0) }
    }

    fn and(self, other: Self) -> Self {
        let ended = self.ended_migrations.zip(other.ended_migrations);
        Self {
            switches: self.switches + other.switches,
            moves: self.moves + other.moves,
            pages: self.pages + other.pages,
            ended_migrations: ended.map(|(one, other)| one + other),
        }
    }
}

fn usage(who: libc::c_int) -> libc::rusage {
    // SAFETY: zeros are a valid value of this plain struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: writes the struct, which lives through the call.
    unsafe { libc::getrusage(who, &raw mut usage) };
    usage
}

fn switches(who: libc::c_int) -> u64 {
    let usage = usage(who);
    (usage.ru_nvcsw + usage.ru_nivcsw) as u64
}

/// Of the living threads.
fn switches_of_threads() -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/proc/self/task")? {
        let status = fs::read_to_string(entry?.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
        sum += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}

/// How often the kernel moved the calling thread, which it tells only if it was built to.
fn migrations() -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/sched").ok()?;
    let line = text.lines().find(|line| line.starts_with("se.nr_migrations"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The calling thread moves to and fro, and sleeps on each CPU. It stays on its last one.
fn work(cpus: &[usize], rounds: usize, pages: usize) -> io::Result<Did> {
    let begun = switches(libc::RUSAGE_THREAD);
    pin(cpus[0]);
    let mut did = Did::nothing();
    for round in 1..=rounds {
        let before = sched_getcpu();
        pin(cpus[round % cpus.len()]);
        did.moves += u64::from(sched_getcpu() != before);
        thread::sleep(Duration::from_micros(50));
    }
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    mapping.write_every_page();
    did.pages = pages as u64;
    did.switches = switches(libc::RUSAGE_THREAD) - begun;
    did.ended_migrations = migrations();
    Ok(did)
}

/// Two of the CPUs that it may use, or the only one.
fn two_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).ok();
    let is_allowed = |cpu: &usize| allowed.as_ref().is_some_and(|allowed| allowed.is_set(*cpu));
    (0..1_024).filter(is_allowed).take(2).collect()
}

fn json_of(did: Did) -> Value {
    json!({
        "switches": did.switches, "moves": did.moves, "pages": did.pages,
        "ended_migrations": did.ended_migrations,
    })
}

/// Half of the threads are there before it is ready and stay; the others come later and end. One of each kind
/// starts a process.
pub(crate) fn counted(threads: usize, rounds: usize, pages: usize) -> io::Result<()> {
    let cpus = two_cpus();
    let (go, stay) = (Arc::new(Barrier::new(threads + 1)), Arc::new(Barrier::new(threads + 1)));
    let spawn = |waits: bool, index: usize| {
        let (cpus, go, stay) = (cpus.clone(), Arc::clone(&go), Arc::clone(&stay));
        let (told, tell) = (std::sync::mpsc::channel(), index == 0);
        let (sender, receiver) = told;
        let run = move || {
            if waits {
                go.wait();
            }
            let done = work(&cpus, rounds, pages).and_then(|did| {
                // What it did itself has no end yet if it stays.
                let did = if waits { Did { ended_migrations: Some(0), ..did } } else { did };
                Ok(if tell { did.and(child(rounds, pages)?) } else { did })
            });
            let _ = sender.send(done);
            if waits {
                stay.wait();
            }
        };
        let thread = thread::Builder::new().name("counted".into()).spawn(run)?;
        Ok::<_, io::Error>((thread, receiver))
    };
    let old = (0..threads).map(|index| spawn(true, index)).collect::<io::Result<Vec<_>>>()?;
    // Each of them sleeps before the observer is attached.
    thread::sleep(Duration::from_millis(50));
    let ready = switches(libc::RUSAGE_SELF) + switches(libc::RUSAGE_CHILDREN);
    if wait_for_go()? {
        go.wait();
        let mut did = Did::nothing();
        let new = (0..threads).map(|index| spawn(false, index)).collect::<io::Result<Vec<_>>>()?;
        let gone = |_| io::Error::other("a thread is gone");
        for (_, receiver) in &old {
            did = did.and(receiver.recv().map_err(gone)??);
        }
        for (thread, receiver) in new {
            did = did.and(receiver.recv().map_err(gone)??);
            thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
        }
        // Those that live are read first: what they do in between is in both numbers.
        let of_living = switches_of_threads()?;
        let all = switches(libc::RUSAGE_SELF) + switches(libc::RUSAGE_CHILDREN) - ready;
        let mut counts = json_of(did);
        counts["switches_since_ready"] = all.into();
        counts["switches_of_living"] = of_living.into();
        report(&counts)?;
    } else {
        go.wait();
    }
    wait_for_end()?;
    stay.wait();
    for (thread, _) in old {
        let _ = thread.join();
    }
    Ok(())
}

/// Starts a process that does the same, and waits for its end.
fn child(rounds: usize, pages: usize) -> io::Result<Did> {
    let own = std::env::current_exe()?;
    let (rounds, pages) = (rounds.to_string(), pages.to_string());
    let mut command = Command::new(own);
    // The kernel copies the environment through page faults that are no exceptions.
    command.args(["counted-child", "--rounds", &rounds, "--pages", &pages]).env_clear();
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let counts: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| counts[name].as_u64();
    Ok(Did {
        switches: number("switches").unwrap_or(0),
        moves: number("moves").unwrap_or(0),
        pages: number("pages").unwrap_or(0),
        ended_migrations: number("ended_migrations"),
    })
}

pub(crate) fn counted_child(rounds: usize, pages: usize) -> io::Result<()> {
    // Its parent uses one CPU only.
    let mut all = rustix::thread::CpuSet::new();
    (0..1_024).for_each(|cpu| all.set(cpu));
    rustix::thread::sched_setaffinity(None, &all)?;
    report(&json_of(work(&two_cpus(), rounds, pages)?))
}
