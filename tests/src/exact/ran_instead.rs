//! Which processes had the CPU while threads of the target waited, against how long the scheduler says that
//! each of them ran.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use observer::model::{RanInsteadRow, RanInsteadSummary, RanKind};

use super::runqueue::{apart_ns, tolerance};
use super::who_ran::{LESS, UNKNOWN_AT_MOST, stolen_ns};
use crate::disturbance::Window;
use crate::kernel_counters::{self, schedstat, schedstat_since};
use crate::process::{Placement, Programs, Running};
use crate::results::{Held, Relation};
use crate::switch_cost;
use crate::trial::{self, Run, Trial, nudge, programs, scaled, scaled_text, settle};
use crate::watch::Work;

/// The threads of the target. While another process runs, each of them waits.
const THREADS: u64 = 2;
/// The name and the nice value of each of the others.
const OTHERS: [(&str, i32); 3] = [("first-hog", -12), ("second-hog", -10), ("third-hog", -7)];

/// Of each process, at least this part is known.
const HALF: f64 = 0.5;

const fn at(nice: i32) -> Placement<'static> {
    Placement { cgroup: None, unified: None, throttled: None, cpu: None, nice: Some(nice) }
}

/// A busy process that has another name.
fn hog(name: &str, nice: i32, directory: &Path) -> Work {
    let ours = programs();
    let link = directory.join(name);
    symlink(std::fs::canonicalize(&ours.work).expect("a program"), &link).expect("a link");
    let named = Programs { work: link, ..ours };
    let arguments = ["contend", "--threads", "1", "--ms", &scaled_text(1200)];
    let work = Work::start(&named, &arguments, at(nice)).expect("it starts");
    settle(work.id());
    work
}

fn ran(run: &Run) -> &RanInsteadSummary {
    run.info.conditions.ran_instead.as_ref().expect("waits are watched")
}

fn row<'a>(run: &'a Run, name: &str) -> &'a RanInsteadRow {
    let by = &ran(run).by;
    by.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name}: {by:#?}"))
}

fn check_sums(run: &Run) {
    let sums = ran(run);
    println!("{:?} {sums:?}", run.summary.probes["runqueue"].tier);
    let shown_ns: u64 = sums.by.iter().map(|row| row.time_ns).sum();
    assert_eq!(sums.ran_ns, shown_ns + sums.others_ns, "{sums:?}");
    let by_part_ns = sums.by.iter().map(|row| row.by_part_ns.iter().sum::<u64>());
    assert!(by_part_ns.eq(sums.by.iter().map(|row| row.time_ns)), "{sums:?}");
    let known_ns = sums.ran_ns + sums.idle_ns + sums.throttled_ns;
    assert!(known_ns <= sums.wait_ns, "no more than the waits: {sums:?}");
    assert_eq!(sums.not_known_ns, sums.wait_ns - known_ns);
    assert!(sums.not_known_ns as f64 <= UNKNOWN_AT_MOST * sums.wait_ns as f64, "{sums:?}");
    assert_eq!((sums.no_place_ns, sums.beyond), (0, 0), "{sums:?}");
}

/// Two busy threads of the target on one CPU, and three other processes with different shares of it, which come
/// later and end earlier: each of them ran as long as the scheduler says, once for each thread that waited.
///
/// # Panics
/// When it is not so.
pub fn other_processes(trial: &Trial) {
    let directory = trial::directory();
    // An emulated CPU takes seconds until the others have begun.
    let length = (scaled(3_500) * if trial::in_guest() { 8 } else { 1 }).to_string();
    let threads = THREADS.to_string();
    let arguments = ["contend", "--threads", &threads, "--ms", &length];
    let mut work = trial::start(&arguments, at(-10));
    let mut hogs = OTHERS.map(|(name, nice)| (name, hog(name, nice, directory.path())));
    let pid = work.id();
    let target = ["--pid".to_owned(), pid.to_string()];
    let watches = trial.watch(&target, directory.path());
    let window = Window::begin(watches.iter().map(|watch| watch.process.id()));
    let read = |pid: u32| schedstat(pid).expect("the workload is there");
    let (own_before, stolen) = (read(pid), kernel_counters::stolen());
    nudge(pid);
    work.begin().expect("it begins");
    // All threads are there by then, and compete for the CPU.
    std::thread::sleep(Duration::from_millis(scaled(200)));
    let before = hogs.each_ref().map(|(_, hog)| read(hog.id()));
    hogs.iter_mut().for_each(|(_, hog)| hog.begin().expect("it begins"));
    for (_, hog) in &mut hogs {
        hog.counts().expect("it works");
        settle(hog.id());
    }
    let after = hogs.each_ref().map(|(_, hog)| read(hog.id()));
    let states = kernel_counters::thread_states(pid).expect("the target is there");
    assert!(states.contains(&'R'), "the target works longer than the others: {states:?}");
    let hogs = hogs.map(|(name, hog)| {
        // Its id goes away while the run goes on.
        hog.end().expect("it ends");
        name
    });
    let counts = work.counts().expect("the target works");
    settle(pid);
    let own = schedstat_since(&read(pid), &own_before);
    let stolen_ns = stolen_ns(stolen, kernel_counters::stolen());
    window.end();
    let switch_ns = switch_cost::measure_ns();
    let runs = trial.finish(watches);
    let alone_ns = trial::number(&counts, "apart_ns");
    let held_of = |run: &Run| Held::new(trial.test, "runqueue", &run.summary);
    for run in &runs {
        check_sums(run);
        let held = held_of(run);
        let not_known_ns = ran(run).not_known_ns;
        let tolerance = tolerance(run).max(0.05);
        let against = "schedstat time on the CPU, by process, for each waiting thread";
        let (mut all_ns, mut all_expected_ns) = (0, 0);
        for ((name, before), after) in hogs.iter().zip(&before).zip(&after) {
            let scheduler = schedstat_since(after, before);
            let expected_ns = THREADS * scheduler.ran_ns;
            let found = row(run, name);
            assert_eq!(found.kind, RanKind::Other, "{found:?}");
            assert!(found.waits >= 2 && found.waits <= ran(run).wait_ns / 5_000, "{found:?}");
            let slack = THREADS * (stolen_ns + apart_ns(scheduler, switch_ns));
            let numbers = (found.time_ns, expected_ns);
            held.compare(Relation::AtMost, "ran_instead", against, numbers, (tolerance, slack));
            // Of a long wait on a busy host, only the last switches are known.
            held.compare(Relation::AtLeast, "ran_instead", against, numbers, (HALF, slack));
            (all_ns, all_expected_ns) = (all_ns + found.time_ns, all_expected_ns + expected_ns);
        }
        held.at_least(
            "ran_instead, all and unknown",
            against,
            all_ns + not_known_ns,
            all_expected_ns,
            if trial::in_guest() { LESS } else { tolerance },
        );
        let own_row = row(run, "observer-work");
        assert_eq!(own_row.kind, RanKind::Own, "{own_row:?}");
        let against = "schedstat time on the CPU, of the target";
        let slack = stolen_ns + apart_ns(own, switch_ns);
        let numbers = (own_row.time_ns, own.ran_ns);
        held.compare(Relation::AtMost, "ran_instead, own", against, numbers, (tolerance, slack));
        let least_ns = own.ran_ns.saturating_sub(alone_ns);
        let own_ns = own_row.time_ns + not_known_ns;
        held.at_least("ran_instead, own, and unknown", against, own_ns, least_ns, LESS);
    }
    work.end().expect("the workload ends");
}

/// Processes that live for a moment, one after the other, beside a busy thread: together they are the reason for
/// its waits, by their name.
///
/// # Panics
/// When they are not.
pub fn short_processes(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["contend", "--threads", "1", "--ms", &scaled_text(4_000)];
    let mut work = trial::start(&arguments, at(-10));
    let target = ["--pid".to_owned(), work.id().to_string()];
    let watches = trial.watch(&target, directory.path());
    nudge(work.id());
    // A few milliseconds each, so that a wait of the target has fewer switches than are known.
    let mut command = Command::new("sh");
    command
        .args(["-c", "while :; do sh -c 'n=0; while [ $n -lt 10000 ]; do n=$((n+1)); done'; done"]);
    let place = Placement { cpu: Some(0), nice: Some(-10), ..Placement::default() };
    let side_car = Running::start(&mut command, place).expect("it starts");
    work.go().expect("the target works");
    drop(side_car);
    for run in &trial.finish(watches) {
        check_sums(run);
        let sums = ran(run);
        let others = sums.by.iter().filter(|row| row.kind == RanKind::Other);
        // The name of one that had ended before the wait did may not be known.
        let named = others.filter(|row| ["sh", ""].contains(&&*row.name));
        let side_car_ns: u64 = named.map(|row| row.time_ns).sum();
        let held = Held::new(trial.test, "runqueue", &run.summary);
        let against = "the waits of the target beside short-lived processes";
        let wait_ns = sums.wait_ns;
        held.at_most("ran_instead, by name", against, side_car_ns, wait_ns, 0.0);
        let numbers = side_car_ns + sums.not_known_ns;
        held.at_least("ran_instead, by name, and unknown", against, numbers, wait_ns, LESS);
        let sh_ns = row(run, "sh").time_ns;
        assert!(sh_ns > side_car_ns / 2, "most of them have a name: {sums:?}");
    }
    work.end().expect("the workload ends");
}
