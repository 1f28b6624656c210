//! `kernel_lock` against perf's count of the tracepoint, and the clock and the sleeps of the threads that waited.

use std::fs;

use perf_event_open::config::{Cpu, Inherit, Opts, Proc};
use perf_event_open::count::Counter;
use perf_event_open::event::tp::Tracepoint;

use crate::process::Placement;
use crate::results::{Relation, not_applicable};
use crate::trial::{self, Metric, Run, Trial, number, scaled_text};

/// Locks in which threads sleep, by the flags of `contention_begin` (include/trace/events/lock.h): for reading, for
/// writing, a mutex that is spun for first, those of `PREEMPT_RT`, and those with a count for each CPU.
const SLEEPING: &std::ffi::CStr =
    c"flags == 2 || flags == 4 || flags == 33 || flags == 8 || flags == 10 \
    || flags == 12 || flags == 18 || flags == 20";

/// Threads may wait for locks at their end, when perf has stopped counting for them.
const AT_THE_END: u64 = 4;

/// perf's own count of the waits of a process that has no other threads yet; `None` without tracefs.
fn counter(pid: u32) -> Option<Counter> {
    let id = fs::read_to_string("/sys/kernel/tracing/events/lock/contention_begin/id").ok()?;
    let event = Tracepoint { id: id.trim().parse().ok()? };
    let options = Opts { inherit: Some(Inherit::NewChild), ..Opts::default() };
    let counter = Counter::new(event, (Proc(pid), Cpu::ALL), options).ok()?;
    counter.with_ftrace_filter(SLEEPING).ok()?;
    Some(counter)
}

/// Threads that map memory at the same time: they wait as often as perf counts, at least for as long as they slept, and
/// no longer than their calls took.
///
/// # Panics
/// When it is not so.
pub fn kernel_locks(trial: &Trial) {
    let directory = trial::directory();
    let rounds = scaled_text(400);
    let mut work = trial::start(&["mappers", "--rounds", &rounds], Placement::default());
    let counter = counter(work.id());
    let observed = trial.observe(&mut work, directory.path(), |_| {
        counter.iter().for_each(|counter| counter.enable().expect("perf counts"));
    });
    let (calls_ns, slept_ns) =
        (number(&observed.counts, "calls_ns"), number(&observed.counts, "slept_ns"));
    let count = |run: &Run| run.probe("kernel_lock").count;
    let sum_ns = |run: &Run| run.probe("kernel_lock").sum_ns;
    let of_mmap = |run: &Run| {
        ["mmap_read", "mmap_write"].map(|part| run.sum_ns("kernel_lock", part)).iter().sum::<u64>()
    };
    // Each of two programs may be preempted and miss what the other one counts.
    let metrics: [Metric<'_>; 1] = [("count", 0.01, 2, &count)];
    trial.hold(
        &observed,
        "kernel_lock",
        |held, run| {
            match &counter {
                Some(counter) => {
                    let waits = counter.stat().expect("perf counts").count;
                    // A program that is preempted is not run again on that CPU, which the kernel counts.
                    let allowed = (0.0, run.target_lost("program_missed") + AT_THE_END);
                    let against = "perf count of the tracepoint";
                    let values = (count(run), waits);
                    held.compare(Relation::Equal, "count", against, values, allowed);
                }
                None => {
                    not_applicable(trial.test, "kernel_lock", "count", "perf has no tracepoint");
                }
            }
            let tolerance = trial::between_clocks(0.02);
            held.at_least(
                "mmap sum_ns",
                "what the threads slept",
                of_mmap(run),
                slept_ns,
                tolerance,
            );
            held.at_most("sum_ns", "the caller's clock", sum_ns(run), calls_ns, tolerance);
        },
        &metrics,
    );
    work.end().expect("the workload ends");
}
