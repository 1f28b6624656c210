//! `runqueue` against schedstat, `cpu.stat` and `cpu.pressure`.

use std::time::Duration;

use crate::cgroup::UnifiedCgroup;
use crate::kernel_counters::{self, Flat, Pressure, SchedStat};
use crate::process::Placement;
use crate::results::{Comparison, Relation, not_applicable};
use crate::trial::{self, Metric, Run, Trial, number, scaled_text};

const TOLERANCE: f64 = 0.02;

/// On an emulated CPU, which may stand still between the readings of two clocks.
const TOLERANCE_EMULATED: f64 = 0.5;

pub(super) fn tolerance(run: &Run) -> f64 {
    match (own_clock(run), trial::in_guest()) {
        (true, true) => TOLERANCE_EMULATED,
        // A guest's CPU may stand still for 100 ms between a reading of the kernel counters and the
        // work.
        (false, true) => 0.05,
        (_, false) => TOLERANCE,
    }
}

fn side_by_side_tolerance() -> f64 {
    if trial::in_guest() { TOLERANCE_EMULATED } else { TOLERANCE }
}

/// The kernel counts a few arrivals without a context switch; among some hundred arrivals they
/// matter.
const ARRIVALS_WITHOUT_SWITCH: u64 = 10;

/// These tiers take the time themselves: a bit before and after the scheduler does, with the programs
/// of all observers in between.
fn own_clock(run: &Run) -> bool {
    run.probe("runqueue").tier.as_ref().is_some_and(|tier| tier.ends_with("_pair"))
}

/// The distance between the clocks of these tiers and the scheduler's, summed over all waits.
///
/// It may be all of the way from a wake-up to the switch: when the woken thread preempts the waker, the
/// scheduler skips the update of its clock at the switch and counts no wait at all
/// (`rq_clock_skip_update`, kernel/sched/sched.h). Twice, because the programs of all observers take
/// longer for the threads of the target than for those that measured `switch_ns`.
pub(super) const fn apart_ns(expected: SchedStat, switch_ns: u64) -> u64 {
    2 * expected.arrivals * switch_ns
}

fn sum_ns(run: &Run) -> u64 {
    run.probe("runqueue").sum_ns
}

fn count(run: &Run) -> u64 {
    run.probe("runqueue").count
}

/// Any workload whose threads stay: time and number of waits are those of schedstat.
///
/// # Panics
/// When they are not.
pub fn run_delay(trial: &Trial, arguments: &[&str]) {
    run_delay_of(trial, arguments, "default");
}

/// As [`run_delay`], with these probes.
///
/// # Panics
/// As [`run_delay`].
pub fn run_delay_of(trial: &Trial, arguments: &[&str], probes: &str) {
    let directory = trial::directory();
    let mut work = trial::start(arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", probes].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |pid| {
        kernel_counters::schedstat(pid).expect("the workload is there")
    });
    let expected = kernel_counters::schedstat_since(&observed.after, &observed.before);
    let apart_ns = apart_ns(expected, observed.switch_ns);
    // Only the tiers that read the scheduler's counters have the sleeps that it counts as waits.
    let slept = |run: &Run| trial::sleep_booked_as_wait_ns(&run.summary);
    let slept_ns = observed.runs.iter().map(slept).max().unwrap_or_default();
    println!("the scheduler counted {slept_ns} ns of sleeps as waits");
    let side_by_side: [Metric<'_>; 2] =
        [("count", TOLERANCE, 0, &count), ("sum_ns", side_by_side_tolerance(), apart_ns, &sum_ns)];
    trial.hold(
        &observed,
        "runqueue",
        |held, run| {
            held.check(&Comparison {
                metric: "count",
                against: "schedstat arrivals",
                relation: Relation::Equal,
                observed: count(run),
                expected: expected.arrivals,
                tolerance: TOLERANCE,
                slack: ARRIVALS_WITHOUT_SWITCH,
            });
            held.check(&Comparison {
                metric: "sum_ns",
                against: "schedstat run delay",
                relation: Relation::Equal,
                observed: sum_ns(run) + slept_ns,
                expected: expected.delay_ns,
                tolerance: tolerance(run),
                slack: if own_clock(run) { apart_ns } else { 0 },
            });
        },
        &side_by_side,
    );
    work.end().expect("the workload ends");
}

/// The same comparison with wake-ups that begin no wait: a tier that counted them as waits would
/// have more and longer waits than the scheduler.
///
/// # Panics
/// When there are more.
pub fn no_more_waits(trial: &Trial, arguments: &[&str]) {
    let directory = trial::directory();
    let mut work = trial::start(arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::schedstat(pid).expect("the workload is there")
    });
    let expected = kernel_counters::schedstat_since(&observed.after, &observed.before);
    let slack = apart_ns(expected, observed.switch_ns);
    trial.hold(
        &observed,
        "runqueue",
        |held, run| {
            let tolerance = tolerance(run);
            let check = |metric, against, observed, expected, slack| {
                let numbers = (observed, expected);
                held.compare(Relation::AtMost, metric, against, numbers, (tolerance, slack));
            };
            check("count", "schedstat arrivals", count(run), expected.arrivals, 0);
            check("sum_ns", "schedstat run delay", run.run_delay_ns(), expected.delay_ns, slack);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

/// Busy threads on one CPU, alone in a cgroup: what they did not run (`cpu.stat`) of the time they
/// were there, they waited; and the group stalled (`cpu.pressure`) whenever one of them waited.
///
/// # Panics
/// When it is not so.
pub fn processor_time(trial: &Trial) {
    const THREADS: u64 = 3;
    let cgroup = match UnifiedCgroup::create(&trial::unique("cpu")) {
        Ok(cgroup) => cgroup,
        Err(reason) => return not_applicable(trial.test, "runqueue", "cpu.stat", &reason),
    };
    let directory = trial::directory();
    let arguments = ["contend", "--threads", &THREADS.to_string(), "--ms", &scaled_text(1500)]
        .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let place = Placement { unified: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&arguments, place);
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        let stat: Flat = cgroup.cpu_stat().expect("cpu.stat");
        let pressure: Result<Pressure, String> = cgroup.pressure("cpu");
        (
            stat,
            pressure,
            kernel_counters::schedstat(pid).expect("the workload is there"),
            kernel_counters::stolen(),
        )
    });
    // One tick more than was counted of the time that the hypervisor took from the CPU: the threads
    // neither ran then nor waited for each other.
    let stolen = observed.after.3.saturating_sub(observed.before.3) + Duration::from_millis(10);
    let stolen_ns = u64::try_from(stolen.as_nanos()).expect("a short run");
    let ran_us = observed.after.0.since(&observed.before.0).get("usage_usec").expect("usage_usec");
    let schedstat = kernel_counters::schedstat_since(&observed.after.2, &observed.before.2);
    let there_ns = number(&observed.counts, "there_ns");
    // What the threads waited before they looked at the clock first, and after they did last.
    let outside_ns = schedstat.delay_ns.saturating_sub(number(&observed.counts, "waited_ns"));
    println!("the threads waited {outside_ns} ns before or after the time that they were there");
    trial.hold(
        &observed,
        "runqueue",
        |held, run| {
            let waited = there_ns.saturating_sub(1000 * ran_us) + outside_ns;
            let apart = trial::between_clocks(0.03);
            held.check(&Comparison {
                metric: "sum_ns",
                against: "cpu.stat usage_usec",
                relation: Relation::Equal,
                observed: sum_ns(run),
                expected: waited,
                tolerance: apart,
                slack: THREADS * stolen_ns,
            });
            held.equal(
                "sum_ns",
                "schedstat run delay",
                run.run_delay_ns(),
                schedstat.delay_ns,
                TOLERANCE,
            );
            match (&observed.before.1, &observed.after.1) {
                (Ok(before), Ok(after)) => {
                    let some_ns = 1000 * after.since(*before).some_us;
                    // At any stalled instant at least one thread waits, and at most all do (while
                    // that of another process runs).
                    held.at_least("sum_ns", "cpu.pressure some", sum_ns(run), some_ns, 0.03);
                    let most_ns = THREADS * some_ns;
                    let against = "cpu.pressure some, times threads";
                    held.at_most("sum_ns", against, sum_ns(run), most_ns, 0.03);
                }
                (_, Err(reason)) | (Err(reason), _) => {
                    not_applicable(trial.test, "runqueue", "cpu.pressure", reason);
                }
            }
        },
        &[("sum_ns", TOLERANCE, 0, &sum_ns)],
    );
    work.end().expect("the workload ends");
}
