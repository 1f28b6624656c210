//! Assigning waits and faults to the right process when ids are reused, are taken over, or differ
//! inside a namespace.

use std::collections::BTreeMap;
use std::fs::File;

use observer_tests::cgroup::MemoryCgroup;
use observer_tests::kernel_counters::{self, SchedStat};
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::results::{Held, Relation};
use observer_tests::taskstats::{Delay, DelayAccounting, Exits, Taskstats};
use observer_tests::trial::{self, Trial, number, scaled_text};
use tempfile::TempDir;

/// The kernel counters of one process and of its children.
fn read(pid: u32) -> (BTreeMap<u32, SchedStat>, kernel_counters::Faults) {
    let schedstat = kernel_counters::schedstat(pid).expect("the workload is there");
    (schedstat, kernel_counters::faults(pid).expect("the workload is there"))
}

fn minor(before: &kernel_counters::Faults, after: &kernel_counters::Faults) -> u64 {
    let faults = after.since(*before);
    faults.minor + faults.minor_children
}

/// Every life of an id, from the final counters of ended threads.
fn lives(exits: &Exits, pid: u64) -> Vec<Delay> {
    let pid = u32::try_from(pid).expect("a process");
    let lives = exits.of(pid).expect("the kernel sent everything");
    lives.iter().map(|life| life.cpu).collect()
}

#[test]
fn an_id_that_is_used_again_begins_anew() {
    let Some(_guard) = privileged::ready("pid reuse") else { return };
    let trial = Trial::new("pid reuse");
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let exits = Taskstats::of_ended_tasks().expect("the kernel sends the counters of ended tasks");
    let place = Placement { cpu: Some(0), ..Placement::default() };
    let rounds = trial::scaled(40).max(5);
    let mut work = trial::start(&["reborn", "--rounds", &rounds.to_string()], place);
    let watches = trial.watch(&["--pid".into(), work.id().to_string()], directory.path());
    let before = read(work.id());
    trial::nudge(work.id());
    let counts = work.go().expect("the workload works");
    trial::settle(work.id());
    let after = read(work.id());
    let pid = number(&counts, "pid");
    let before_stranger = exits.of(u32::try_from(pid).expect("a pid")).expect("readable").len();

    // Now a process that has nothing to do with the target gets the same id.
    let arguments = ["reborn", "--pid", &pid.to_string(), "--rounds", "1", "--pages", "3000"];
    let mut stranger = trial::start(&arguments, place);
    let its_counts = stranger.go().expect("the stranger works");
    assert_eq!(number(&its_counts, "pid"), pid);
    stranger.end().expect("it ends");

    let runs = trial.finish(watches);
    let faults = minor(&before.1, &after.1);
    assert!(faults >= number(&counts, "minor_faults_at_least"), "{counts}");
    let held = Held::new(trial.test, "fault", &runs[0].summary);
    let against = "/proc/PID/stat minflt + cminflt";
    held.equal("minor, children too", against, runs[0].count("fault", "minor"), faults, 0.01);

    let own = kernel_counters::schedstat_since(&after.0, &before.0);
    let lives = lives(&exits, pid);
    assert_eq!(before_stranger as u64, rounds, "each life ended before the stranger's");
    let all = lives[..before_stranger].iter().fold(Delay::default(), |sum, life| sum.and(*life));
    println!("own {own:?}, {} lives of {pid}: {all:?}", lives.len());
    let held = Held::new(trial.test, "runqueue", &runs[0].summary);
    let found = runs[0].probe("runqueue");
    let against = "schedstat and taskstats of every life";
    let sum_ns = own.delay_ns + all.total_ns;
    held.equal_to_ended("sum_ns", against, runs[0].run_delay_ns(), sum_ns);
    held.equal_to_ended("count", against, found.count, own.arrivals + all.count);
    work.end().expect("the workload ends");
}

#[test]
fn a_thread_that_executes_a_program_takes_the_id_of_the_first() {
    let Some(_guard) = privileged::ready("exec of several threads") else { return };
    executes(&Trial::new("exec of several threads"), &[], &trial::directory());
}

#[test]
fn a_thread_that_sleeps_while_it_executes_a_program_keeps_its_waits() {
    let Some(_guard) = privileged::ready("exec from the disk") else { return };
    let directory = trial::directory();
    if !trial::on_disk(directory.path()) {
        println!("exec from the disk: not here: no directory on a disk");
        return;
    }
    let copy = directory.path().join("copy");
    std::fs::copy(trial::programs().work, &copy).expect("a copy can be made");
    // Pages that are not on the disk yet stay in memory.
    File::open(&copy).and_then(|file| file.sync_all()).expect("a copy on the disk");
    let copy = copy.to_str().expect("a path in UTF-8");
    // Where threads share entries, the entry of the first thread is lost to the one that executes.
    let trial = Trial::new("exec from the disk").losing(&["task_slot"]);
    executes(&trial, &["--copy", copy], &directory);
}

/// A thread that is not the first executes a program.
fn executes(trial: &Trial, more: &[&str], directory: &TempDir) {
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let exits = Taskstats::of_ended_tasks().expect("the kernel sends the counters of ended tasks");
    let length = scaled_text(300);
    let arguments = [&["exec-threads", "--ms", &length], more].concat();
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), read);
    let (before, after) = (&observed.before, &observed.after);
    let executed_by = number(&observed.counts, "executed_by");
    let mut own = SchedStat::default();
    for (tid, stat) in &after.0 {
        // The first thread's id belongs to the one that executed, with all it had before.
        let was = if *tid == work.id() { u32::try_from(executed_by).expect("a tid") } else { *tid };
        let earlier = before.0.get(&was).copied().unwrap_or_default();
        own.delay_ns += stat.delay_ns - earlier.delay_ns;
        own.arrivals += stat.arrivals - earlier.arrivals;
    }
    for (tid, earlier) in &before.0 {
        let ended = exits.of(*tid).expect("the kernel sent everything");
        for life in &ended {
            own.delay_ns += life.cpu.total_ns - earlier.delay_ns;
            own.arrivals += life.cpu.count - earlier.arrivals;
        }
    }
    let faults = minor(&before.1, &after.1);
    trial.hold(
        &observed,
        "runqueue",
        |held, run| {
            let against = "schedstat across exec, and taskstats of the dead";
            held.equal_to_ended("sum_ns", against, run.run_delay_ns(), own.delay_ns);
            let held = Held::new(trial.test, "fault", &run.summary);
            let found = run.count("fault", "minor");
            // The pages of the new program's arguments come without an exception.
            let numbers = (found, faults);
            held.compare(Relation::Equal, "minor", "/proc/PID/stat minflt", numbers, (0.01, 2));
        },
        &[],
    );
    work.end().expect("the workload ends");
}

/// Watches processes in namespaces of their own, with the target that `target` derives from the
/// outer process.
fn namespaces(test: &'static str, place: Placement<'_>, target: impl Fn(u32) -> Vec<String>) {
    let trial = Trial::new(test);
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let exits = Taskstats::of_ended_tasks().expect("the kernel sends the counters of ended tasks");
    let arguments = ["inside", "--pages", &scaled_text(2000), "--ms", &scaled_text(200)];
    let mut work = trial::start(&arguments, place);
    let target = target(work.id());
    let observed = trial.observe_target(&target, &mut work, directory.path(), read);
    let (before, after) = (&observed.before, &observed.after);
    let faults = minor(&before.1, &after.1);
    assert!(faults >= number(&observed.counts, "minor_faults_at_least"), "{faults}");
    let own = kernel_counters::schedstat_since(&after.0, &before.0);
    let pids = observed.counts["pids"].as_array().expect("processes").clone();
    let inner = pids.iter().map(|pid| lives(&exits, pid.as_u64().expect("a pid")));
    let inner = inner.flatten().fold(Delay::default(), Delay::and);
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            let against = "/proc/PID/stat minflt + cminflt";
            held.equal("minor, children too", against, run.count("fault", "minor"), faults, 0.01);
            let held = Held::new(trial.test, "runqueue", &run.summary);
            let found = run.run_delay_ns();
            let against = "schedstat, and taskstats of those inside";
            // The processes inside waited a little before observer was attached.
            held.equal_to_ended("sum_ns", against, found, own.delay_ns + inner.total_ns);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

#[test]
fn processes_in_namespaces_are_known_by_the_ids_of_the_host() {
    let Some(_guard) = privileged::ready("namespaces") else { return };
    let place = Placement { cpu: Some(0), ..Placement::default() };
    namespaces("own namespaces, by pid", place, |pid| vec!["--pid".into(), pid.to_string()]);
}

#[test]
fn processes_in_namespaces_are_found_by_the_cgroup_that_the_host_sees() {
    let Some(_guard) = privileged::ready("namespaces, by cgroup") else { return };
    let cgroup = MemoryCgroup::create(&trial::unique("inside")).expect("a cgroup can be made");
    let place = Placement { cgroup: Some(&cgroup), cpu: Some(0), ..Placement::default() };
    let name = cgroup.directory().display().to_string();
    namespaces("own namespaces, by cgroup", place, |_| vec!["--cgroup".into(), name.clone()]);
}
