//! `fault` against /proc/PID/stat, software events, taskstats and `memory.stat`.

use observer::model::{Cause, Event};
use observer_ebpf::wire::FaultRecord;
use perf_event_open::config::{Cpu, Opts, Proc};
use perf_event_open::count::Counter;
use perf_event_open::event::sw::Software;
use serde_json::Value;

use super::clocks::{Lengths, outside, readings, side_by_side, sums, undisturbed};
use super::directory_on_disk;
use crate::cgroup::MemoryCgroup;
use crate::kernel_counters::{self, Faults, Flat};
use crate::process::Placement;
use crate::results::{Comparison, Held, Relation, not_applicable};
use crate::taskstats::{DelayAccounting, Delays, Taskstats};
use crate::trial::{self, Run, Trial, number, scaled_text};

const TOLERANCE: f64 = 0.01;

fn minor(run: &Run) -> u64 {
    run.count("fault", "minor")
}

fn major(run: &Run) -> u64 {
    run.count("fault", "major")
}

/// Allows for the delay of `memory.stat`, for counters that are read from it.
fn lazy(held: &Held, metric: &str, against: &str, observed: u64, expected: u64) {
    held.check(&Comparison {
        metric,
        against,
        relation: Relation::Equal,
        observed,
        expected,
        tolerance: TOLERANCE,
        slack: MemoryCgroup::late_events(),
    });
}

/// All kernel counters of the faults of one thread, at one instant.
struct KernelCounters {
    faults: Faults,
    delays: Delays,
    cgroup: Flat,
}

impl KernelCounters {
    fn read(pid: u32, taskstats: &Taskstats, cgroup: &MemoryCgroup) -> Self {
        Self {
            faults: kernel_counters::faults(pid).expect("the workload is there"),
            delays: taskstats.delays(pid).expect("the workload is there"),
            cgroup: cgroup.stat().expect("memory.stat"),
        }
    }
}

/// Short faults take about as long as the programs of all observers at their begins and ends, so the sums
/// of two tiers are not comparable. But the faults of the pages lie between two readings of the caller's
/// clock, and the few others are no longer than the longest.
fn short_faults(run: &Run, counts: &Value) {
    let (pages, touched_ns) = (number(counts, "minor_faults"), number(counts, "touched_ns"));
    let found = &run.probe("fault").parts["minor"];
    let (count, sum_ns, max_ns) = (found.count, found.sum_ns, found.max_ns);
    let most_ns = touched_ns + count.saturating_sub(pages) * max_ns;
    let tier = run.probe("fault").tier.as_deref().unwrap_or_default();
    println!(
        "fault ({tier}) minor sum_ns: {sum_ns} of {count} faults, at most {most_ns}; not comparable with \
         other tiers"
    );
    assert!((1..=most_ns).contains(&sum_ns), "{tier}: {found:?}, {counts}");
}

/// Records of single faults, and the bursts of those that are too short for that, hold each fault of the
/// histogram once.
fn all_recorded(held: &Held, run: &Run) {
    let events = run.events();
    let minor = || events.iter().filter(|event| event.cause() == Some(Cause::FAULT_MINOR));
    let count = |event: &Event| event.summed().map_or(1, |summed| u64::from(summed.count));
    let against = "the histogram";
    held.equal("minor in records", against, minor().map(count).sum(), self::minor(run), TOLERANCE);
    let recorded_ns = minor().map(|event| event.duration_ns).sum();
    let sum_ns = run.sum_ns("fault", "minor");
    held.equal("minor sum_ns in records", against, recorded_ns, sum_ns, TOLERANCE);
    let bursts = minor().filter(|event| event.summed().is_some()).count();
    println!("{bursts} bursts, {} events of minor faults", minor().count());
}

/// First touches of anonymous memory.
///
/// # Panics
/// When the counts differ.
pub fn minor_faults(trial: &Trial) {
    let directory = trial::directory();
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let cgroup = MemoryCgroup::create(&trial::unique("minor")).expect("a cgroup can be made");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&["minor-faults", "--pages", &scaled_text(20_000)], place);
    let event =
        Counter::new(Software::MinorPageFault, (Proc(work.id()), Cpu::ALL), Opts::default())
            .expect("a software event can be counted");
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        event.enable().expect("the event can be counted");
        KernelCounters::read(pid, &taskstats, &cgroup)
    });
    let event = event.stat().expect("the event can be read").count;
    let (before, after) = (&observed.before, &observed.after);
    let faults = after.faults.since(before.faults);
    assert!(faults.minor >= number(&observed.counts, "minor_faults"), "{faults:?}");
    let charged = after.cgroup.since(&before.cgroup);
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            held.equal("minor", "/proc/PID/stat minflt", minor(run), faults.minor, TOLERANCE);
            held.equal("minor", "perf software event", minor(run), event, TOLERANCE);
            let taskstats = after.delays.minor_faults - before.delays.minor_faults;
            held.equal("minor", "taskstats ac_minflt", minor(run), taskstats, TOLERANCE);
            let pgfault = charged.get("pgfault").expect("memory.stat has pgfault");
            lazy(held, "minor", "memory.stat pgfault", minor(run), pgfault);
            short_faults(run, &observed.counts);
            all_recorded(held, run);
        },
        &[("minor", 0.0, 0, &minor)],
    );
    work.end().expect("the workload ends");
}

/// Pairs the faults of huge pages, by the caller's clock, with observer's records of them: each
/// record lies within the touch.
fn lengths(run: &Run, counts: &Value) -> Lengths {
    let address = number(counts, "address");
    let at_address =
        |event: &Event| event.record().is_some_and(|record: FaultRecord| record.address == address);
    let events: Vec<Event> = run.events().into_iter().filter(at_address).collect();
    let length = |(begin, end): (u64, u64)| {
        let within = |event: &&Event| begin <= event.start().0 && event.end.0 <= end;
        let found: Vec<_> = events.iter().filter(within).collect();
        assert_eq!(found.len(), 1, "one record between {begin} and {end}: {found:?}");
        (found[0].duration_ns, end - begin)
    };
    readings(&counts["long"]).map(length).collect()
}

/// Time in faults of huge pages, which the caller measures as well.
///
/// # Panics
/// When they differ.
pub fn fault_time(trial: &Trial) {
    let directory = trial::directory();
    let mut work =
        trial::start(&["huge-faults", "--rounds", &scaled_text(200)], Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    let counts = &observed.counts;
    work.end().expect("the workload ends");
    if readings(&counts["long"]).next().is_none() {
        let reason = "no huge pages: a fault is too short for two clocks to be compared";
        return not_applicable(trial.test, "fault", "sum_ns", reason);
    }
    // Each CPU of an emulated guest stands still while another one has its turn.
    let emulated = if trial::in_guest() { trial::between_clocks(0.05) } else { 0.0 };
    let (metric, against) = ("huge pages sum_ns", "the caller's own clock");
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            let lengths = lengths(run, counts);
            let outside = outside(metric, &lengths, &counts["empty"]);
            let (recorded_ns, own_ns) = sums(&lengths);
            let sum_ns = run.sum_ns("fault", "minor");
            assert!(sum_ns >= recorded_ns, "{sum_ns} ns, {recorded_ns} in records");
            held.at_most(metric, against, recorded_ns, own_ns, 0.0);
            let (found, own) = undisturbed(lengths);
            held.at_least(metric, against, found, own, outside.max(emulated));
        },
        &[],
    );
    let lengths = |run: &Run| lengths(run, counts);
    side_by_side(trial, &observed.runs, ("fault", metric), lengths, &counts["empty"]);
}

/// First reads of pages that are on a disk.
///
/// # Panics
/// When the counts differ.
pub fn major_faults(trial: &Trial) {
    let Some(directory) = directory_on_disk(trial, "fault", "major") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let cgroup = MemoryCgroup::create(&trial::unique("major")).expect("a cgroup can be made");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let file = directory.path().join("pages");
    let file = file.to_str().expect("a path in UTF-8");
    let pages = trial::scaled(1000).max(200);
    let mut work =
        trial::start(&["major-faults", "--file", file, "--pages", &pages.to_string()], place);
    let observed = trial
        .observe(&mut work, directory.path(), |pid| KernelCounters::read(pid, &taskstats, &cgroup));
    let (before, after) = (&observed.before, &observed.after);
    let faults = after.faults.since(before.faults);
    assert!(faults.major * 10 >= pages * 9, "the pages came from the disk: {faults:?}");
    let charged = after.cgroup.since(&before.cgroup);
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            held.equal("major", "/proc/PID/stat majflt", major(run), faults.major, TOLERANCE);
            let taskstats = after.delays.major_faults - before.delays.major_faults;
            held.equal("major", "taskstats ac_majflt", major(run), taskstats, TOLERANCE);
            let pgmajfault = charged.get("pgmajfault").expect("memory.stat has pgmajfault");
            lazy(held, "major", "memory.stat pgmajfault", major(run), pgmajfault);
            // It waited for the disk in its faults alone.
            let (sum_ns, blocked) = (run.probe("fault").sum_ns, after.delays.block);
            let blocked_ns = blocked.since(before.delays.block).total_ns;
            let touched_ns = number(&observed.counts, "touched_ns");
            println!(
                "fault sum_ns: {sum_ns}, taskstats blkio_delay_total {blocked_ns}, by the caller's \
                 clock {touched_ns}"
            );
            let major_ns = run.sum_ns("fault", "major");
            // One more, of a page of the program, would be outside of that time.
            if faults.major <= pages {
                assert!(major_ns <= touched_ns, "{major_ns} ns of major faults in {touched_ns} ns");
            }
            // Linux 6.18 once counted 348 ms of waits in 74 ms of faults. `delayacct_end` would do so for
            // a wait whose begin it has not seen: it counts from the begin of the wait before.
            if blocked_ns > touched_ns {
                return println!("delay accounting counted more than passed: not comparable");
            }
            let least_ns = blocked_ns as f64 * (1.0 - trial::between_clocks(0.02));
            assert!(sum_ns as f64 >= least_ns, "{sum_ns} ns, {blocked_ns} ns of them for the disk");
        },
        &[("major", 0.0, 0, &major)],
    );
    work.end().expect("the workload ends");
}

/// Faults of children and of new threads, with their programs executed anew.
///
/// # Panics
/// When the counts differ.
pub fn families(trial: &Trial) {
    let directory = trial::directory();
    let [threads, processes, pages] = [50, 20, 500].map(scaled_text);
    let arguments = ["churn", "--threads", &threads, "--processes", &processes, "--pages", &pages];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::faults(pid).expect("the workload is there")
    });
    let faults = observed.after.since(observed.before);
    let kernel = faults.minor + faults.minor_children;
    assert!(kernel >= number(&observed.counts, "minor_faults_at_least"), "{faults:?}");
    let against = "/proc/PID/stat minflt + cminflt";
    trial.hold(
        &observed,
        "fault",
        |held, run| held.equal("minor, children too", against, minor(run), kernel, TOLERANCE),
        &[("minor, children too", TOLERANCE, 0, &minor)],
    );
    work.end().expect("the workload ends");
}

/// Writes to pages that are shared with a child: delay accounting times the copies, which are
/// part of their faults.
///
/// # Panics
/// When a kernel counter is contradicted.
pub fn copied_pages(trial: &Trial) {
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let pages = scaled_text(5000);
    let mut work = trial::start(&["copy-on-write", "--pages", &pages], Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        let delays = taskstats.delays(pid).expect("the workload is there");
        (delays, kernel_counters::faults(pid).expect("the workload is there"))
    });
    let (before, after) = (&observed.before.0, &observed.after.0);
    let (Some(before), Some(after)) = (before.wpcopy, after.wpcopy) else {
        let reason = "taskstats before version 13 have no wpcopy delay";
        return not_applicable(trial.test, "fault", "minor", reason);
    };
    let copies = after.since(before);
    let faults = observed.after.1.since(observed.before.1);
    assert!(copies.count >= number(&observed.counts, "copies"), "{copies:?}");
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            held.equal("minor", "/proc/PID/stat minflt", minor(run), faults.minor, TOLERANCE);
            held.at_least("minor", "taskstats wpcopy_count", minor(run), copies.count, TOLERANCE);
            let sum_ns = run.sum_ns("fault", "minor");
            let against = "taskstats wpcopy_delay_total";
            held.at_least("minor sum_ns", against, sum_ns, copies.total_ns, 0.0);
        },
        &[("minor", 0.0, 0, &minor)],
    );
    work.end().expect("the workload ends");
}
