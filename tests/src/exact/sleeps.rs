//! `sleep` against voluntary context switches and the time that threads neither ran nor waited for a CPU.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;

use super::directory_on_disk;
use crate::cgroup::UnifiedCgroup;
use crate::kernel_counters::thread_states;
use crate::process::Placement;
use crate::results::{Comparison, Held, Relation};
use crate::taskstats::{DelayAccounting, Taskstats};
use crate::trial::{self, Run, Trial, number, scaled, scaled_text};

/// The kernel's clock of a run queue, that of threads, and the monotonic one differ a little, most
/// where a hypervisor takes the CPU away from a thread that runs.
fn tolerance() -> f64 {
    if trial::in_guest() { 0.05 } else { 0.02 }
}

/// On some virtual machines the kernel switches to a thread without an event, up to three times in a
/// thousand: no tool sees these.
const COUNT_TOLERANCE: f64 = 0.01;

/// Of a few dozen, so many may be missed for that reason.
const MISSED: u64 = 2;

/// Each of the four threads may wait for locks of the address space at its end, when it has read its own
/// counters.
const AT_THE_END: u64 = 8;

fn sum_ns(run: &Run) -> u64 {
    run.probe("sleep").sum_ns
}

/// Threads that sleep in several ways: each sleep is a voluntary context switch, and together they are
/// the time that is left beside running and waiting.
///
/// # Panics
/// When they are not.
pub fn sleeps(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["sleeps", "--rounds", &scaled_text(300)];
    let mut work = trial::start(&arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,sleep"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    let (count, slept_ns) =
        (number(&observed.counts, "sleeps"), number(&observed.counts, "slept_ns"));
    trial.hold(
        &observed,
        "sleep",
        |held, run| {
            let switches = "voluntary context switches (getrusage)";
            held.check(&Comparison {
                metric: "count",
                against: switches,
                relation: Relation::Equal,
                observed: run.probe("sleep").count,
                expected: count,
                tolerance: COUNT_TOLERANCE,
                slack: AT_THE_END,
            });
            held.check(&Comparison {
                metric: "sum_ns",
                against: "elapsed time without CPU time and run delay",
                relation: Relation::Equal,
                observed: sum_ns(run),
                expected: slept_ns,
                tolerance: tolerance(),
                slack: 0,
            });
        },
        &[("sum_ns", 0.01, 0, &sum_ns)],
    );
    work.end().expect("the workload ends");
}

/// A thread that reads pages of a file from a disk: it slept for block I/O as often, and for as long, as delay
/// accounting counts, or a bit more.
///
/// # Panics
/// When it is not so.
pub fn block_io(trial: &Trial) {
    let Some(directory) = directory_on_disk(trial, "sleep", "block_io") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let file = directory.path().join("pages");
    let file = file.to_str().expect("a path in UTF-8");
    let pages = scaled(1000).max(200).to_string();
    let arguments = ["major-faults", "--file", file, "--pages", &pages];
    let mut work = trial::start(&arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,sleep"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |pid| {
        (taskstats.delays(pid).expect("the workload is there").block, voluntary_switches(pid))
    });
    let delay = observed.after.0.since(observed.before.0);
    let switches = observed.after.1 - observed.before.1;
    let touched_ns = number(&observed.counts, "touched_ns");
    let count = |run: &Run| run.count("sleep", "block_io");
    let sum_ns = |run: &Run| run.sum_ns("sleep", "block_io");
    trial.hold(
        &observed,
        "sleep",
        |held, run| {
            // Since Linux 6.12, the kernel misses the end of a wait that is over before the thread has left
            // its run queue (delayed dequeue).
            let (metric, found) = ("block_io count", count(run));
            let check = |relation, against, expected| {
                let allowed = (COUNT_TOLERANCE, MISSED);
                held.compare(relation, metric, against, (found, expected), allowed);
            };
            check(Relation::AtLeast, "taskstats blkio_count", delay.count);
            check(Relation::AtMost, "voluntary context switches", switches);
            // Linux 6.18 once counted more than passed, as in `major_faults`.
            if delay.total_ns > touched_ns {
                return println!("delay accounting counted more than passed: not comparable");
            }
            // It counts until the wake-up, and a sleep is over when the thread is on a run queue: where
            // another CPU has to be woken first, some microseconds later.
            let (metric, found) = ("block_io sum_ns", sum_ns(run));
            let tolerance = trial::between_clocks(0.02);
            // The kernel's count begins before the switch.
            let allowed = (tolerance, switches * observed.switch_ns);
            let against = "taskstats blkio_delay_total";
            held.compare(Relation::AtLeast, metric, against, (found, delay.total_ns), allowed);
            held.at_most(metric, "the caller's clock", found, touched_ns, tolerance);
        },
        // One observer reads the clock after the other, at each begin and at each end.
        &[("block_io sum_ns", 0.01, 2 * switches * observed.switch_ns, &sum_ns)],
    );
    work.end().expect("the workload ends");
}

/// A thread that waits for locks of several kinds: it slept for them as often, and for as long, as the kernel counted
/// around its calls. What it slept otherwise, in the same call with other values, is not among that.
///
/// # Panics
/// When it is not so.
pub fn locks(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["locks", "--rounds", &scaled_text(300)];
    let mut work = trial::start(&arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,sleep"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    let (count, slept_ns) =
        (number(&observed.counts, "locks"), number(&observed.counts, "slept_ns"));
    let sum_ns = |run: &Run| run.sum_ns("sleep", "lock");
    trial.hold(
        &observed,
        "sleep",
        |held, run| {
            let switches = "voluntary context switches (getrusage) in calls for a lock";
            let (metric, found) = ("lock count", run.count("sleep", "lock"));
            let allowed = (COUNT_TOLERANCE, 2 * MISSED);
            held.compare(Relation::Equal, metric, switches, (found, count), allowed);
            // Those that were missed have no time.
            let slept_ns = (slept_ns as f64 * found as f64 / count.max(1) as f64) as u64;
            // Each end wakes an idle CPU up, which is sleep or CPU time, as the clocks happen to be read.
            let allowed = (tolerance(), 2 * count * observed.switch_ns);
            let time = "elapsed time in such calls without CPU time and run delay";
            let values = (sum_ns(run), slept_ns);
            held.compare(Relation::Equal, "lock sum_ns", time, values, allowed);
        },
        &[("lock sum_ns", 0.01, 2 * count * observed.switch_ns, &sum_ns)],
    );
    work.end().expect("the workload ends");
}

/// A process that is stopped by a signal, and frozen by its cgroup: both are known to the nanosecond, but
/// for the time that it takes to see them.
///
/// # Panics
/// When they are not.
pub fn holds(trial: &Trial) {
    const LENGTH: Duration = Duration::from_millis(3);
    let directory = trial::directory();
    let cgroup = UnifiedCgroup::create(&trial::unique("holds")).expect("a cgroup");
    let placement = Placement { unified: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&["sleeps", "--rounds", "1"], placement);
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,sleep"].map(str::to_owned);
    let watches = trial.watch(&target, directory.path());
    trial::nudge(work.id());
    let is_stopped = || thread_states(work.id()).is_ok_and(|states| states == ['T']);
    let freeze = cgroup.directory().join("cgroup.freeze");
    let events = cgroup.directory().join("cgroup.events");
    let is_frozen = || has_line(&events, "frozen 1");
    let write = |text: &str| fs::write(&freeze, text).expect("a cgroup that can be frozen");
    let rounds = scaled(40);
    let (mut seen_ns, mut most_ns) = (Vec::new(), 0);
    for round in 0..rounds {
        let is_signal = round.is_multiple_of(2);
        let switches = voluntary_switches(work.id());
        let begin = MonoNanos::now();
        match is_signal {
            true => work.signal(rustix::process::Signal::STOP),
            false => write("1"),
        }
        wait_until(&|| if is_signal { is_stopped() } else { is_frozen() });
        // It says so a moment before it gives up the CPU.
        wait_until(&|| voluntary_switches(work.id()) > switches);
        let seen = MonoNanos::now();
        std::thread::sleep(LENGTH);
        let end = MonoNanos::now();
        match is_signal {
            true => work.signal(rustix::process::Signal::CONT),
            false => write("0"),
        }
        wait_until(&|| if is_signal { !is_stopped() } else { !is_frozen() });
        // It has run, and sleeps again.
        trial::settle(work.id());
        seen_ns.push(end.since(seen));
        most_ns += MonoNanos::now().since(begin);
    }
    seen_ns.sort_unstable();
    work.go().expect("the workload works");
    let runs = trial.finish(watches);
    let against = "stops in /proc/PID/stat, freezes in cgroup.events";
    for run in &runs {
        let held = Held::new(trial.test, "sleep", &run.summary);
        let check = |metric, relation, observed, expected, tolerance, slack| {
            held.check(&Comparison {
                metric,
                against,
                relation,
                observed,
                expected,
                tolerance,
                slack,
            });
        };
        let count = run.count("sleep", "stopped");
        check("stopped", Relation::Equal, count, rounds, 0.0, MISSED);
        // Whichever were missed, the others took at least as long as the shortest ones.
        let least_ns = seen_ns.iter().take(count as usize).sum();
        let sum_ns = run.sum_ns("sleep", "stopped");
        check("stopped_ns", Relation::AtLeast, sum_ns, least_ns, tolerance(), 0);
        check("stopped_ns", Relation::AtMost, sum_ns, most_ns, tolerance(), 0);
    }
    work.end().expect("the workload ends");
}

/// Of the first thread.
fn voluntary_switches(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.and_then(|number| number.trim().parse().ok()).expect("a count of switches")
}

fn has_line(file: &Path, line: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(|one| one == line))
}

/// # Panics
/// When it does not become true.
fn wait_until(is_true: &dyn Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_true() {
        assert!(Instant::now() < deadline, "the process is not held, or held for too long");
        std::thread::sleep(Duration::from_micros(200));
    }
}
