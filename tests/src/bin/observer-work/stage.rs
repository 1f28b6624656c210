//! The protocol every workload follows, and threads that follow it together.

use std::io::{self, BufRead, Read, Write};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

/// Waits for a line; `false` at the end of the input.
pub(crate) fn wait_for_go() -> io::Result<bool> {
    // Executed by a workload that was already started.
    if std::env::var_os(crate::tasks::EXECUTED_BY).is_some() {
        return Ok(true);
    }
    println!("ready");
    io::stdout().flush()?;
    let mut line = String::new();
    Ok(io::stdin().lock().read_line(&mut line)? > 0)
}

pub(crate) fn wait_for_end() -> io::Result<()> {
    let mut rest = Vec::new();
    io::stdin().lock().read_to_end(&mut rest).map(|_| ())
}

pub(crate) fn report(counts: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{counts}")?;
    out.flush()
}

pub(crate) fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    if let Err(error) = sched_setaffinity(None, &cpus) {
        eprintln!("observer-work: cannot use CPU {cpu} only: {error}");
    }
}

/// Threads that do their part between two barriers and stay until the process ends, so that the
/// kernel's counters of them can be read.
struct Crew {
    go: Arc<Barrier>,
    done: Arc<Barrier>,
    stay: Arc<Barrier>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn hire(parts: Vec<Box<dyn FnOnce() + Send>>) -> io::Result<Self> {
        let barrier = || Arc::new(Barrier::new(parts.len() + 1));
        let (go, done, stay) = (barrier(), barrier(), barrier());
        let mut threads = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            let (go, done, stay) = (Arc::clone(&go), Arc::clone(&done), Arc::clone(&stay));
            let work = move || {
                go.wait();
                part();
                done.wait();
                stay.wait();
            };
            threads.push(thread::Builder::new().name(format!("work-{index}")).spawn(work)?);
        }
        Ok(Self { go, done, stay, threads })
    }

    fn work(&self) {
        self.go.wait();
        self.done.wait();
    }

    fn leave(self) {
        self.stay.wait();
        for thread in self.threads {
            // A panic in a part has been printed, and the counts tell.
            let _ = thread.join();
        }
    }
}

/// Threads that do their parts while the first one sleeps; `counts` is called afterwards.
pub(crate) fn crew(
    parts: Vec<Box<dyn FnOnce() + Send>>,
    counts: impl FnOnce() -> Value,
) -> io::Result<()> {
    let crew = Crew::hire(parts)?;
    // Each has reached its barrier and sleeps there before the observer is attached.
    thread::sleep(Duration::from_millis(50));
    if wait_for_go()? {
        crew.work();
        // The same at the end: the last thread to arrive wakes the others.
        thread::sleep(Duration::from_millis(50));
        report(&counts())?;
        wait_for_end()?;
        crew.leave();
    }
    Ok(())
}
