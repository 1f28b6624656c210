//! What observer counts, against the kernel's own books: same interval, same threads.
//!
//! Each workload is at rest (all its threads asleep) when observer is attached and when it is
//! detached, so that the interval between the two readings of the books is the interval of the
//! work for both sides, however long attaching takes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{ProbeSummary, Summary};
use observer_tests::books::{self, agree};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::privileged;
use observer_tests::process::{Placement, Programs, Running};
use observer_tests::taskstats::{DelayAccounting, Taskstats};
use observer_tests::watch::{Watch, Work};
use perf_event_open::config::{Cpu, Opts, Proc};
use perf_event_open::count::Counter;
use perf_event_open::event::sw::Software;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

fn programs() -> Programs {
    Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-work")))
}

/// A directory on the disk that holds the build: page cache of a tmpfs cannot be dropped.
fn directory() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

fn start(arguments: &[&str], place: Placement<'_>) -> Work {
    Work::start(&programs(), arguments, place).unwrap_or_else(|error| panic!("{error}"))
}

fn probe<'a>(summary: &'a Summary, name: &str) -> &'a ProbeSummary {
    summary.probes.get(name).unwrap_or_else(|| panic!("no probe {name} in {:?}", summary.probes))
}

fn count(summary: &Summary, name: &str, part: &str) -> u64 {
    probe(summary, name).parts.get(part).map_or(0, |part| part.count)
}

fn number(counts: &Value, key: &str) -> u64 {
    counts[key].as_u64().unwrap_or_else(|| panic!("{counts} has no {key}"))
}

fn assert_agree(what: &str, observer: u64, kernel: u64, tolerance: f64) {
    agree(what, observer, kernel, tolerance).unwrap_or_else(|error| panic!("{error}"));
}

/// Runs a workload under observer. `read` reads the books before and after the work.
fn observed<B>(
    work: &mut Work,
    directory: &Path,
    mut read: impl FnMut(u32) -> B,
) -> (Summary, Value, B, B) {
    let pid = work.id();
    let watch = Watch::start(&programs(), &["--pid", &pid.to_string()], directory)
        .unwrap_or_else(|error| panic!("{error}"));
    let before = read(pid);
    let counts = work.go().unwrap_or_else(|error| panic!("{error}"));
    let after = read(pid);
    let (summary, _) = watch.finish().unwrap_or_else(|error| panic!("{error}"));
    (summary, counts, before, after)
}

fn run_delay(arguments: &[&str]) {
    let directory = directory();
    let mut work = start(arguments, Placement::default());
    let (summary, _, before, after) = observed(&mut work, directory.path(), |pid| {
        books::run_delay_ns(pid).expect("the workload is there")
    });
    let kernel: u64 = after
        .iter()
        .map(|(tid, delay_ns)| delay_ns - before.get(tid).copied().unwrap_or_default())
        .sum();
    assert_agree("runqueue, ns", probe(&summary, "runqueue").sum_ns, kernel, 0.02);
    work.end().expect("the workload ends");
}

#[test]
fn runqueue_delay_of_threads_that_preempt_each_other_is_the_schedulers() {
    let Some(_guard) = privileged::ready("runqueue, preempted") else { return };
    run_delay(&["contend", "--threads", "4", "--ms", "2000"]);
}

#[test]
fn runqueue_delay_of_threads_that_wake_each_other_is_the_schedulers() {
    let Some(_guard) = privileged::ready("runqueue, woken") else { return };
    run_delay(&["ping-pong", "--rounds", "30000"]);
}

#[test]
fn minor_faults_are_the_kernels() {
    let Some(_guard) = privileged::ready("minor faults") else { return };
    let directory = directory();
    let mut work = start(&["minor-faults"], Placement::default());
    // A third, independent count: the kernel's software event.
    let event =
        Counter::new(Software::MinorPageFault, (Proc(work.id()), Cpu::ALL), Opts::default())
            .expect("a software event can be counted");
    let (summary, counts, before, after) = observed(&mut work, directory.path(), |pid| {
        event.enable().expect("the event can be counted");
        books::faults(pid).expect("the workload is there")
    });
    let found = count(&summary, "fault", "minor");
    let faults = after.since(before);
    assert!(faults.minor >= number(&counts, "minor_faults"), "{faults:?}, {counts}");
    assert_agree("minor faults against stat", found, faults.minor, 0.01);
    let event = event.stat().expect("the event can be read").count;
    assert_agree("minor faults against the software event", found, event, 0.01);
    assert!(probe(&summary, "fault").sum_ns > 0, "faults take time");
    work.end().expect("the workload ends");
}

#[test]
fn major_faults_are_the_kernels() {
    let Some(_guard) = privileged::ready("major faults") else { return };
    let directory = directory();
    let file = directory.path().join("pages");
    let file = file.to_str().expect("a path in UTF-8");
    let mut work =
        start(&["major-faults", "--file", file, "--pages", "1000"], Placement::default());
    let (summary, _, before, after) = observed(&mut work, directory.path(), |pid| {
        books::faults(pid).expect("the workload is there")
    });
    let faults = after.since(before);
    assert!(faults.major >= 900, "the pages came from the disk: {faults:?}");
    assert_agree("major faults", count(&summary, "fault", "major"), faults.major, 0.01);
    work.end().expect("the workload ends");
}

#[test]
fn faults_of_children_and_new_threads_are_counted() {
    let Some(_guard) = privileged::ready("faults of children") else { return };
    let directory = directory();
    let mut work = start(
        &["churn", "--threads", "50", "--processes", "20", "--pages", "500"],
        Placement::default(),
    );
    let (summary, counts, before, after) = observed(&mut work, directory.path(), |pid| {
        books::faults(pid).expect("the workload is there")
    });
    let faults = after.since(before);
    let kernel = faults.minor + faults.minor_children;
    assert!(kernel >= number(&counts, "minor_faults_at_least"), "{faults:?}, {counts}");
    assert_agree("minor faults, children too", count(&summary, "fault", "minor"), kernel, 0.01);
    work.end().expect("the workload ends");
}

#[test]
fn memory_calls_are_those_that_strace_sees() {
    let Some(_guard) = privileged::ready("memory calls") else { return };
    let directory = directory();
    let mut work = start(&["memory-calls"], Placement::default());
    let table = directory.path().join("strace");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&table).args(["-p", &work.id().to_string()]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut strace =
        Running::start(&mut command, Placement::default()).expect("strace is installed");
    wait_for_tracer(work.id());

    let (summary, counts, (), ()) = observed(&mut work, directory.path(), |_| ());
    strace.signal(Signal::INT);
    strace.wait(Duration::from_secs(10)).expect("strace ends");
    let table = fs::read_to_string(&table).expect("strace wrote its table");
    let strace = books::strace_counts(&table).expect("a table of strace");
    for call in ["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"] {
        let expected = strace.get(call).copied().unwrap_or_default();
        let found = count(&summary, "mm_syscall", call);
        println!("{call}: observer {found}, strace {expected}, own count {}", counts[call]);
        assert!(expected >= number(&counts, call), "{call}: strace saw what was done");
        assert_eq!(found, expected, "{call}: observer against strace");
    }
    work.end().expect("the workload ends");
}

fn wait_for_tracer(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let traced = || {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .expect("the workload is there")
            .lines()
            .any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
    };
    while !traced() {
        assert!(Instant::now() < deadline, "strace attaches");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn live_sockets_are_the_socket_descriptors() {
    let Some(_guard) = privileged::ready("sockets") else { return };
    let directory = directory();
    let mut work = start(&["sockets"], Placement::default());
    let (summary, counts, before, after) = observed(&mut work, directory.path(), |pid| {
        books::socket_descriptors(pid).expect("the workload is there")
    });
    let counters = &probe(&summary, "socket").counters;
    println!("before {before}, after {after}, own counts {counts}, observer {counters:?}");
    assert_eq!(number(&counts, "live"), after as u64, "the workload's own count");
    assert_eq!(counters.get("live"), Some(&(after as i64)), "live");
    for key in ["created", "accepted", "released"] {
        assert_eq!(counters.get(key), Some(&(number(&counts, key) as i64)), "{key}");
    }
    work.end().expect("the workload ends");
}

#[test]
fn failures_for_want_of_descriptors_are_counted_by_call_and_errno() {
    let Some(_guard) = privileged::ready("descriptors") else { return };
    let directory = directory();
    let mut work = start(&["descriptors"], Placement::default());
    let (summary, counts, (), ()) = observed(&mut work, directory.path(), |_| ());
    let counters = &probe(&summary, "socket").counters;
    for call in ["open", "socket", "accept"] {
        let expected = number(&counts, call);
        assert!(expected > 0, "{counts}");
        let key = format!("failed_{call}_EMFILE");
        assert_eq!(counters.get(&key), Some(&(expected as i64)), "{key} in {counters:?}");
    }
    work.end().expect("the workload ends");
}

#[test]
fn reclaim_time_is_that_of_delay_accounting() {
    let Some(_guard) = privileged::ready("reclaim") else { return };
    let directory = directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let name = format!("observer-test-{}", std::process::id());
    let cgroup = MemoryCgroup::create(&name).expect("a cgroup can be made");
    cgroup.limit(Some(24 << 20)).expect("a limit can be set");
    let file = directory.path().join("sparse");
    let file = file.to_str().expect("a path in UTF-8");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = start(&["reclaim", "--file", file], place);
    let (summary, _, before, after) = observed(&mut work, directory.path(), |pid| {
        taskstats.delays(pid).expect("the workload has one thread, and it is there")
    });
    let (reclaims, kernel_ns) =
        (after.reclaim_count - before.reclaim_count, after.reclaim_ns - before.reclaim_ns);
    println!("{reclaims} reclaims, mean {} ns", kernel_ns / reclaims.max(1));
    let part = |name: &str| probe(&summary, "reclaim").parts.get(name).copied().unwrap_or_default();
    let (memcg, direct) = (part("memcg"), part("direct"));
    assert!(memcg.count > 0, "the limit made the workload reclaim: {memcg:?}");
    // Delay accounting counts a reclaim that starts over (do_try_to_free_pages, `goto retry`) once
    // more; the tracepoints do not.
    assert!(memcg.count + direct.count <= reclaims, "{memcg:?} {direct:?}");
    assert_agree("reclaims", memcg.count + direct.count, reclaims, 0.05);
    assert_agree("reclaim, ns", memcg.sum_ns + direct.sum_ns, kernel_ns, 0.05);
    assert_eq!(cgroup.oom_kills().expect("the cgroup counts"), 0);
    work.end().expect("the workload ends");
}
