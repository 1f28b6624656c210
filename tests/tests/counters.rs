//! The counters of the target's threads (`--counters`), compared with what the kernel and the threads themselves count.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{CountersSummary, Summary, WhyNot};
use observer::output::rundir::RunDir;
use observer_tests::daemon::Daemon;
use observer_tests::kernel_counters::{Faults, faults, threads};
use observer_tests::privileged;
use observer_tests::process::{Placement, Programs, Running};
use observer_tests::results::{Held, Relation, not_applicable};
use observer_tests::trial::{directory, number, programs, scaled_text};
use observer_tests::watch::{Watch, Work};
use serde_json::Value;

/// For a guest without hardware support for virtualisation.
const TIMEOUT: Duration = Duration::from_secs(240);
/// Counters that each kernel has.
const OF_KERNEL: [&str; 4] = ["context_switches", "cpu_migrations", "minor_faults", "major_faults"];

/// What the kernel says of the threads that are there, and of the whole process.
struct Reading {
    switches: u64,
    /// `None` where the kernel does not tell.
    migrations: Option<u64>,
    faults: Faults,
}

impl Reading {
    fn take(pid: u32) -> Self {
        let (mut switches, mut migrations) = (0, Some(0));
        for tid in threads(pid).expect("it is there") {
            let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
            let status = status.expect("its status");
            let counts =
                status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
            switches += counts.map(|(_, count)| parse(count)).sum::<u64>();
            let sched = fs::read_to_string(format!("/proc/{pid}/task/{tid}/sched")).ok();
            let moved = sched.as_deref().and_then(|text| {
                let line = text.lines().find(|line| line.starts_with("se.nr_migrations"))?;
                Some(parse(line.rsplit(' ').next()?))
            });
            migrations = migrations.zip(moved).map(|(sum, moved): (u64, u64)| sum + moved);
        }
        Self { switches, migrations, faults: faults(pid).expect("it is there") }
    }
}

fn parse(text: &str) -> u64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The workload at rest, with this program.
fn work(program: &Path) -> Work {
    let (rounds, pages) = (scaled_text(200), scaled_text(500));
    let arguments = ["counted", "--threads", "3", "--rounds", &rounds, "--pages", &pages];
    let programs = Programs { work: program.to_owned(), ..programs() };
    Work::start(&programs, &arguments, Placement::default()).expect("it starts")
}

/// What was counted lies between what the threads know that they did after the attach and before the end, and what
/// the kernel counted from before the attach until after the end.
fn compare(
    test: &str,
    count: impl Fn(&str) -> u64,
    did: &Value,
    before: &Reading,
    after: &Reading,
) {
    let held = Held::of_tier(test, "counters", "perf_event");
    let between = |metric, (least, at_least): (u64, &str), (most, at_most): (u64, &str)| {
        held.compare(Relation::AtLeast, metric, at_least, (count(metric), least), (0.0, 0));
        held.compare(Relation::AtMost, metric, at_most, (count(metric), most), (0.0, 0));
    };
    // What those that live did after they were read is counted by the reading after them.
    let later = after.switches - number(did, "switches_of_living");
    between(
        "context_switches",
        (number(did, "switches"), "each thread's own count (getrusage)"),
        (
            number(did, "switches_since_ready") + later,
            "that of the process and its children (getrusage, /proc/PID/task/TID/status)",
        ),
    );
    let faults = after.faults.since(before.faults);
    between(
        "minor_faults",
        (number(did, "pages"), "pages touched first"),
        (faults.minor + faults.minor_children, "/proc/PID/stat minflt + cminflt"),
    );
    assert!(count("major_faults") <= faults.major + faults.major_children, "{faults:?}");
    let moves = number(did, "moves");
    if moves == 0 {
        return not_applicable(test, "counters", "cpu_migrations", "there is one CPU only");
    }
    let metric = "cpu_migrations";
    held.compare(
        Relation::AtLeast,
        metric,
        "moves after which a thread ran on the other CPU",
        (count(metric), moves),
        (0.0, 0),
    );
    match (before.migrations, after.migrations, did["ended_migrations"].as_u64()) {
        (Some(before), Some(after), Some(ended)) => held.compare(
            Relation::AtMost,
            metric,
            "/proc/PID/task/TID/sched se.nr_migrations",
            (count(metric), after - before + ended),
            (0.0, 0),
        ),
        _ => not_applicable(test, "counters", metric, "the kernel has no /proc/PID/sched"),
    }
}

fn counters(summary: &Summary) -> &CountersSummary {
    summary.conditions.counters.as_ref().expect("they were asked for")
}

fn count(counters: &CountersSummary, name: &str) -> u64 {
    let counter = counters.get(name).unwrap_or_else(|| panic!("no {name}: {counters:?}"));
    assert_eq!(counter.running_ns, counter.enabled_ns, "the kernel's counters count all the time");
    counter.count
}

fn report(run: &Path) -> String {
    let report = Command::new(programs().observer).arg("report").arg(run).output();
    let report = String::from_utf8(report.expect("a report").stdout).expect("UTF-8");
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every counter is there, or said not to be.
fn assert_complete(counters: &CountersSummary) {
    let mut named: Vec<&str> = counters.by.iter().map(|counter| counter.name.as_str()).collect();
    named.extend(counters.unsupported.iter().map(|gap| gap.name.as_str()));
    named.sort_unstable();
    named.dedup();
    assert_eq!(named.len(), 14, "{counters:?}");
    for name in OF_KERNEL {
        assert!(counters.get(name).is_some(), "{name} is counted everywhere: {counters:?}");
    }
    assert!(counters.unsupported.iter().all(|gap| gap.why == WhyNot::Unsupported), "{counters:?}");
}

#[test]
fn threads_and_processes_old_and_new_are_counted_as_the_kernel_does() {
    let Some(_guard) = privileged::ready("counters of a target") else { return };
    let files = directory();
    let mut work = work(&programs().work);
    let old = threads(work.id()).expect("it is there").len();
    let before = Reading::take(work.id());
    let target = ["--pid", &work.id().to_string(), "--counters"];
    let watch = Watch::start(&programs(), &target, files.path()).expect("it attaches");
    let did = work.go().expect("it works");
    let run = watch.run.clone();
    let (summary, info) = watch.finish().expect("a run");
    let after = Reading::take(work.id());
    let found = counters(&summary);
    println!("{found:?}\n{did}");
    compare("counters", |name| count(found, name), &did, &before, &after);
    assert_complete(found);
    assert_eq!(found.threads, old as u64, "those that came later inherited their counters");
    assert_eq!((found.threads_not_counted.len(), found.threads_unsure), (0, 0));
    assert_eq!(found.processes_late, 0);
    assert!(found.cpu_ns() > 0 && found.observed_ns > 0);
    assert_eq!(info.conditions, summary.conditions);
    let report = report(&run);
    assert!(report.contains("Counters The target's threads were switched "), "{report}");
    let unsupported = "Not counted, because this machine has no such counter";
    assert_eq!(report.contains(unsupported), !found.unsupported.is_empty(), "{report}");
    work.end().expect("it ends");
}

#[test]
fn a_process_that_joins_by_itself_is_counted_from_then_on() {
    let Some(_guard) = privileged::ready("counters of a process that joins") else { return };
    let files = directory();
    // No other test may match.
    let program = files.path().join("observer-counted");
    fs::copy(programs().work, &program).expect("a program of its own");
    let first = work(&program);
    let target = ["--exe", program.to_str().expect("UTF-8"), "--counters"];
    let watch = Watch::start(&programs(), &target, files.path()).expect("it attaches");
    let mut second = work(&program);
    let before = Reading::take(second.id());
    let run = RunDir::open(&watch.run).expect("a directory");
    let deadline = Instant::now() + TIMEOUT;
    let found = |run: &RunDir| run.read_run().expect("run.json").conditions.counters;
    while found(&run).is_none_or(|counters| counters.processes_late == 0) {
        assert!(Instant::now() < deadline, "it joins: {:?}", found(&run));
        std::thread::sleep(Duration::from_millis(50));
    }
    let did = second.go().expect("it works");
    let (summary, _) = watch.finish().expect("a run");
    let after = Reading::take(second.id());
    let found = counters(&summary);
    println!("{found:?}\n{did}");
    // The first one rests all the time.
    compare("counters of a process that joins", |name| count(found, name), &did, &before, &after);
    assert_eq!((found.processes_late, found.threads_unsure), (1, 0));
    for work in [first, second] {
        work.end().expect("it ends");
    }
}

#[test]
fn threads_without_descriptors_are_told() {
    let Some(_guard) = privileged::ready("counters, the limit of open files") else { return };
    let files = directory();
    let mut work = {
        let arguments = ["contend", "--threads", "60", "--ms", "1"];
        Work::start(&programs(), &arguments, Placement::default()).expect("it starts")
    };
    let all = threads(work.id()).expect("it is there").len() as u64;
    let run = files.path().join("run");
    let script = "ulimit -n 960; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(programs().observer);
    command.args(["run", "--pid", &work.id().to_string(), "--counters", "--duration", "1s"]);
    command.arg("--out").arg(&run).stdin(Stdio::null()).stdout(Stdio::null());
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    assert!(observer.wait(TIMEOUT).expect("it ends").success());
    let summary = RunDir::open(&run).expect("a directory").read_summary();
    let summary = summary.expect("summary.json").expect("it is there");
    let found = counters(&summary);
    // What everything else needs is left.
    let room = (960 - 256 - 640) / found.by.len() as u64;
    assert_eq!(found.threads, room, "{found:?}");
    assert_eq!(found.threads_not_counted, BTreeMap::from([(WhyNot::NoDescriptors, all - room)]));
    let told = format!("{} threads, and those that they started, were not counted", all - room);
    assert!(report(&run).contains(&told), "{}", report(&run));
    work.go().expect("it works");
    work.end().expect("it ends");
}

#[test]
fn the_daemon_counts_without_the_rights_that_it_gave_up() {
    let Some(_guard) = privileged::ready("counters of a daemon") else { return };
    let mut work = work(&programs().work);
    let before = Reading::take(work.id());
    let daemon = Daemon::start(&["--pid", &work.id().to_string(), "--counters"]);
    let did = work.go().expect("it works");
    let read = |name: &str| {
        let label = format!("counter=\"{name}\"");
        daemon.scrape().count("observer_target_perf_events_total", &[&label])
    };
    // The daemon reads them once a second.
    let deadline = Instant::now() + TIMEOUT;
    while read("minor_faults") < number(&did, "pages")
        || read("context_switches") < number(&did, "switches")
        || read("cpu_migrations") < number(&did, "moves")
    {
        assert!(Instant::now() < deadline, "{did}: {}", daemon.scrape().text());
        std::thread::sleep(Duration::from_millis(100));
    }
    let found: BTreeMap<&str, u64> = OF_KERNEL.map(|name| (name, read(name))).into();
    let after = Reading::take(work.id());
    compare("counters of a daemon", |name| found[name], &did, &before, &after);
    assert!(daemon.scrape().sum("observer_target_counted_cpu_seconds_total", &[]) > 0.0);
    daemon.end();
    work.end().expect("it ends");
}
