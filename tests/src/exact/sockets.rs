//! `socket` against /proc/PID/fd, strace and the workload's own counts.

use crate::kernel_counters;
use crate::process::Placement;
use crate::trial::{self, Run, Trial, number, scaled_text};

use super::calls::Strace;

fn counter(run: &Run, name: &str) -> u64 {
    let found = run.probe("socket").counters.get(name).copied().unwrap_or_default();
    u64::try_from(found).unwrap_or_default()
}

/// Sockets that are made, accepted, kept and closed.
///
/// # Panics
/// When a count differs.
pub fn sockets(trial: &Trial) {
    let directory = trial::directory();
    let mut work = trial::start(&["sockets", "--pairs", &scaled_text(50)], Placement::default());
    let strace = Strace::attach(trial, "socket", work.id(), directory.path());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::socket_descriptors(pid).expect("the workload is there") as u64
    });
    let strace = strace.map(Strace::counts);
    let held_open = observed.after;
    assert_eq!(number(&observed.counts, "live"), held_open, "the workload's own count");
    let created = |run: &Run| counter(run, "created");
    let accepted = |run: &Run| counter(run, "accepted");
    trial.hold(
        &observed,
        "socket",
        |held, run| {
            held.equal("live", "/proc/PID/fd", counter(run, "live"), held_open, 0.0);
            for name in ["created", "accepted", "released"] {
                let own = number(&observed.counts, name);
                held.equal(name, "the workload's own count", counter(run, name), own, 0.0);
            }
            let Some(strace) = &strace else { return };
            let calls = |name: &str| strace.get(name).copied().unwrap_or_default();
            let done = |name: &str| calls(name).calls - calls(name).errors;
            held.equal("created", "strace -c socket", created(run), done("socket"), 0.0);
            let accepts = done("accept") + done("accept4");
            held.equal("accepted", "strace -c accept", accepted(run), accepts, 0.0);
        },
        &[("created", 0.0, 0, &created), ("accepted", 0.0, 0, &accepted)],
    );
    work.end().expect("the workload ends");
}

/// Calls that fail because no descriptors are left.
///
/// # Panics
/// When a count differs.
pub fn descriptors(trial: &Trial) {
    let directory = trial::directory();
    let mut work = trial::start(&["descriptors"], Placement::default());
    let strace = Strace::attach(trial, "socket", work.id(), directory.path());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    let strace = strace.map(Strace::counts);
    let calls = [("open", "openat"), ("socket", "socket"), ("accept", "accept4")];
    trial.hold(
        &observed,
        "socket",
        |held, run| {
            for (call, traced) in calls {
                let metric = format!("failed_{call}_EMFILE");
                let found = counter(run, &metric);
                let own = number(&observed.counts, call);
                held.equal(&metric, "the workload's own count", found, own, 0.0);
                if let Some(strace) = &strace {
                    let errors = strace.get(traced).copied().unwrap_or_default().errors;
                    held.equal(&metric, "strace -c errors", found, errors, 0.0);
                }
            }
        },
        &[],
    );
    work.end().expect("the workload ends");
}
