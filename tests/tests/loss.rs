//! Far more records than the ring can hold: records made equal records delivered plus records lost,
//! exactly, and the distributions stay complete.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::model::{
    Event, FloorChange, LossScope, LossSecond, RecordSummary, SlowSpec, Summary, loss_name,
};
use observer::output::rundir::RunDir;
use observer::session::recover;
use observer_ebpf::wire::SOCKET_SLOTS;
use observer_tests::http;
use observer_tests::kernel_counters::{self, Faults};
use observer_tests::privileged;
use observer_tests::process::{Placement, Service};
use observer_tests::results::{Held, case_held};
use observer_tests::trial::{
    self, FLOODED, Trial, directory, nudge, run_delay_ns, scaled_text, settle, watched,
};
use observer_tests::watch::{Watch, lost_by_target};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// The kernel's counters of a process.
#[derive(Debug)]
struct KernelCounters {
    run_delay_ns: BTreeMap<u32, u64>,
    faults: Faults,
}

impl KernelCounters {
    fn read(pid: u32) -> Self {
        Self {
            run_delay_ns: kernel_counters::run_delay_ns(pid).expect("the workload is there"),
            faults: kernel_counters::faults(pid).expect("the workload is there"),
        }
    }

    /// Run delay since `earlier`, of threads that are in both.
    fn run_delay_since(&self, earlier: &Self) -> u64 {
        self.run_delay_ns
            .iter()
            .map(|(tid, now)| now - earlier.run_delay_ns.get(tid).copied().unwrap_or_default())
            .sum()
    }
}

/// The ring is full after a tenth of this.
const STOPPED: Duration = Duration::from_millis(30);

struct Flood {
    summary: Summary,
    events: Vec<Event>,
    counts: Value,
    before: KernelCounters,
    after: KernelCounters,
}

/// Runs a workload under an observer that cannot keep up with it: every now and then it is stopped
/// for longer than the ring lasts.
fn flood(arguments: &[&str]) -> Flood {
    let directory = directory();
    let (mut work, watch) = watched(arguments, &FLOODED, directory.path());
    let before = KernelCounters::read(work.id());
    nudge(work.id());
    let done = AtomicBool::new(false);
    let counts = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for signal in [Signal::STOP, Signal::CONT] {
                    watch.process.signal(signal);
                    std::thread::sleep(STOPPED);
                }
            }
        });
        let counts = work.go();
        done.store(true, Ordering::Relaxed);
        counts
    })
    .expect("the workload works");
    settle(work.id());
    let after = KernelCounters::read(work.id());
    let run = watch.run.clone();
    let (summary, _) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    let events = RunDir::open(&run).and_then(|run| run.read_events()).expect("a trace");
    let events = events.expect("a trace");
    assert!(!events.truncated, "the trace is whole");
    work.end().expect("the workload ends");
    Flood { summary, events: events.rows, counts, before, after }
}

impl Flood {
    fn records(&self, kind: &str) -> RecordSummary {
        self.summary.records[kind]
    }

    /// Compares the numbers of a kind with each other: in the kernel's histogram, in the counters,
    /// delivered, and found in the trace.
    #[track_caller]
    fn adds_up(&self, kind: &str) {
        let RecordSummary { sent, delivered, lost, sampled_out, .. } = self.records(kind);
        let written = self.events.iter().filter(|event| event.name() == kind).count() as u64;
        println!("{kind}: {sent} sent, {delivered} delivered, {written} in the trace, {lost} lost");
        assert_eq!(delivered, sent, "{kind}: what was sent was delivered");
        assert_eq!(written + sampled_out, delivered, "{kind}: what was delivered is in the trace");
        let by_second = self.lost_by_second(kind);
        assert_eq!(by_second, lost, "{kind}: the seconds of the trace add up to the loss");
        if let Some(probe) = self.summary.probes.get(kind) {
            assert_eq!(probe.count, delivered + lost, "{kind}: produced = delivered + lost");
        }
        let by_kind = self.summary.loss.by_kind.get(kind).copied().unwrap_or_default();
        assert_eq!(by_kind, lost, "{kind}: the loss is reported");
        let of_target = self.summary.loss.of_target().get(kind).copied().unwrap_or_default();
        assert_eq!(of_target, lost, "{kind}: records are the target's");
    }

    /// What the trace says was lost of a kind, second by second.
    fn lost_by_second(&self, kind: &str) -> u64 {
        let of_kind = |loss: &LossSecond| {
            loss.scope == LossScope::Target && loss_name(loss.loss) == Some(kind)
        };
        let losses = self.events.iter().filter_map(LossSecond::from_event).filter(of_kind);
        losses.map(|loss| loss.count).sum()
    }

    fn number(&self, key: &str) -> u64 {
        self.counts[key].as_u64().unwrap_or_else(|| panic!("{} has no {key}", self.counts))
    }

    fn part(&self, probe: &str, part: &str) -> u64 {
        self.summary.probes[probe].parts.get(part).map_or(0, |part| part.count)
    }

    /// All kinds, and that nothing unexpected was lost.
    #[track_caller]
    fn everything_adds_up(&self) {
        for kind in ["runqueue", "fault", "mm_syscall", "task"] {
            self.adds_up(kind);
        }
        // Others on the host may lose something too.
        let mut lost = lost_by_target(&self.summary.loss);
        lost.retain(|kind, _| !self.summary.records.contains_key(kind));
        assert!(lost.is_empty(), "only records: {:?}", self.summary.loss);
        let floors = self.events.iter().filter(|event| FloorChange::from_event(event).is_some());
        assert_eq!(floors.count(), 0, "floors fixed by hand stay where they are");
    }
}

/// During the flood, the distributions agree with the kernel counters as they do without it.
impl Flood {
    #[track_caller]
    fn held(&self, probe: &str) -> Held {
        Held::new("flood of records", probe, &self.summary)
    }

    #[track_caller]
    fn faults_agree(&self, faults: &Faults) {
        let found = self.part("fault", "minor");
        self.held("fault").equal("minor", "/proc/PID/stat minflt", found, faults.minor, 0.01);
    }

    #[track_caller]
    fn waits_agree(&self) {
        let delay_ns = self.after.run_delay_since(&self.before);
        let found = run_delay_ns(&self.summary);
        self.held("runqueue").equal("sum_ns", "schedstat run delay", found, delay_ns, 0.02);
    }
}

#[test]
fn produced_is_delivered_and_lost_for_several_kinds_at_once() {
    let Some(_guard) = privileged::ready("flood of all kinds") else { return };
    let flood = flood(&["storm", "--rounds", &scaled_text(60_000)]);
    flood.everything_adds_up();
    for kind in ["fault", "mm_syscall"] {
        let RecordSummary { delivered, lost, .. } = flood.records(kind);
        assert!(lost > 1_000 && delivered > 1_000, "{kind}: {delivered} and {lost}");
    }
    // The distributions are as exact as without the flood. With PREEMPT_RT threads are preempted in
    // the middle of a program, and the kernel skips the program for other threads meanwhile; this
    // loss is reported.
    let missed = flood.summary.loss.by_kind.get("program_missed").copied().unwrap_or_default();
    let (found, made) = (flood.part("mm_syscall", "madvise"), flood.number("madvise"));
    println!("madvise: {found} of {made}, {missed} runs left out");
    assert!(found <= made && found + missed >= made, "{found} of {made}, {missed} left out");
    let faults = flood.after.faults.since(flood.before.faults);
    assert!(faults.minor >= flood.number("minor_faults_at_least"), "{faults:?}");
    flood.faults_agree(&faults);
    flood.waits_agree();
}

#[test]
fn produced_is_delivered_and_lost_for_memory_calls() {
    let Some(_guard) = privileged::ready("flood of memory calls") else { return };
    let flood = flood(&["memory-calls", "--rounds", &scaled_text(100_000)]);
    flood.everything_adds_up();
    assert!(flood.records("mm_syscall").lost > 1_000, "{:?}", flood.records("mm_syscall"));
    for call in ["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"] {
        assert!(flood.part("mm_syscall", call) >= flood.number(call), "{call}");
    }
    let made: u64 = ["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"]
        .into_iter()
        .map(|call| flood.part("mm_syscall", call))
        .sum();
    let RecordSummary { delivered, lost, .. } = flood.records("mm_syscall");
    assert_eq!(made, delivered + lost);
}

#[test]
fn produced_is_delivered_and_lost_for_faults() {
    let Some(_guard) = privileged::ready("flood of faults") else { return };
    let flood = flood(&["minor-faults", "--pages", &scaled_text(200_000)]);
    flood.everything_adds_up();
    assert!(flood.records("fault").lost > 1_000, "{:?}", flood.records("fault"));
    let faults = flood.after.faults.since(flood.before.faults);
    flood.faults_agree(&faults);
}

#[test]
fn produced_is_delivered_and_lost_for_waits() {
    let Some(_guard) = privileged::ready("flood of waits") else { return };
    let flood = flood(&["ping-pong", "--rounds", &scaled_text(200_000)]);
    flood.everything_adds_up();
    flood.waits_agree();
}

/// Other processes fill the socket table and are moved between CPUs in their sleep. Their losses
/// are counted, and none of them is counted for the target.
#[test]
fn what_other_processes_lose_is_not_the_targets_loss() {
    let Some(_guard) = privileged::ready("losses of others") else { return };
    let trial = Trial::new("losses of other processes");
    let directory = directory();
    let sockets = (u64::from(SOCKET_SLOTS) + 4000).to_string();
    let mut others: Vec<_> =
        [&["many-sockets", "--count", &sockets][..], &["moved-asleep", "--rounds", "40"]]
            .map(|arguments| trial::start(arguments, Placement::default()))
            .into();
    let mut work = trial::start(&["minor-faults", "--pages", "1000"], Placement::default());
    let mut first = true;
    let observed = trial.observe(&mut work, directory.path(), |_| {
        if std::mem::take(&mut first) {
            others.iter_mut().for_each(|other| drop(other.go().expect("the others work")));
        }
    });
    let run = &observed.runs[0];
    let loss = &run.summary.loss;
    assert!(run.lost("socket_slot") >= 4000, "{loss:?}");
    assert_eq!(run.target_lost("socket_slot"), 0, "{loss:?}");
    // The target sleeps as well, and may be moved meanwhile; its counted time then shows it.
    let kind = "sleep_booked_as_wait";
    let (all, targets) = (run.lost(kind), run.target_lost(kind));
    let slept_ns = trial::sleep_booked_as_wait_ns(&run.summary);
    assert!(targets > 0 || slept_ns == 0, "{slept_ns} ns in no sleep: {loss:?}");
    // Whether a move comes while the sleeper is still on its run queue is up to the scheduler (delayed
    // dequeue, Linux 6.12). A loss of the target's is counted for the host as well.
    assert!(all >= targets, "{loss:?}");
    println!("{all} sleeps counted as waits, {targets} of the target");
    case_held(trial.test, "socket", &format!("{loss:?}"));
    for work in others.into_iter().chain([work]) {
        work.end().expect("it ends");
    }
}

/// Two observers watch the same service. One is killed: up to where its answer ends, it wrote whatever
/// the other one saw.
#[test]
fn nothing_is_missing_up_to_the_end_of_the_answer_of_a_killed_run() {
    let Some(_guard) = privileged::ready("end of a killed run") else { return };
    let data = directory();
    let file = data.path().join("file");
    let file = ["--file", file.to_str().expect("UTF-8"), "--slice-kib", "64"];
    let small = ["--data-mib", "1", "--index-mib", "1", "--index-mappings", "1"];
    let arguments: Vec<&OsStr> = file.iter().chain(&small).map(OsStr::new).collect();
    let programs = trial::programs();
    let service = Service::start(&programs.service, &arguments, Placement::default());
    let service = service.unwrap_or_else(|error| panic!("{error}"));
    let pid = service.process.id().to_string();
    let target = ["--pid", &pid, "--floor", "fault=0ns", "--floor", "runqueue=0ns"];
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for path in ["/read", "/cpu?us=100"] {
                    let _ = http::get(service.port, path, "");
                }
                rounds.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _over = Over(&is_over);
        // Before and after the time in which the trace is written often.
        for killed_after in [700, 1_900, 5_300] {
            let (first, second) = (directory(), directory());
            let start = |directory: &TempDir| {
                let watch = Watch::start(&programs, &target, directory.path());
                watch.unwrap_or_else(|error| panic!("{error}"))
            };
            let (mut killed, whole) = (start(&first), start(&second));
            let (begin, before) = (Instant::now(), rounds.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(killed_after));
            // On a busy host it takes longer until enough has happened.
            while rounds.load(Ordering::Relaxed) < before + 100 {
                assert!(begin.elapsed() < Duration::from_secs(120), "the service answers");
                std::thread::sleep(Duration::from_millis(10));
            }
            killed.process.signal(Signal::KILL);
            killed.process.wait(Duration::from_secs(60)).expect("it is gone");
            let (_, info) = whole.finish().unwrap_or_else(|error| panic!("{error}"));
            compare(&killed.run, &second.path().join("run"), info.start_ns);
        }
    });
}

/// Raises the flag at the end of a scope, whatever ends it.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Compares the stalls from this instant on.
fn compare(killed: &Path, whole: &Path, start: MonoNanos) {
    let directory = RunDir::open(killed).expect("a run");
    let info = directory.read_run().expect("run.json");
    let end = recover(&directory, &info, SlowSpec::default()).expect("an answer").end_ns;
    let stalls = |path: &Path| {
        let events = RunDir::open(path).and_then(|run| run.read_events()).expect("readable");
        let mut by_thread: BTreeMap<_, Vec<Event>> = BTreeMap::new();
        for event in events.expect("a trace").rows {
            if ["fault", "runqueue"].contains(&event.name()) {
                by_thread.entry((event.name(), event.tid)).or_default().push(event);
            }
        }
        by_thread
    };
    let (killed, whole) = (stalls(killed), stalls(whole));
    // Each observer reads the clock itself, so that the times of a stall are almost the same.
    let is_same = |one: &Event, other: &Event| one.end.0.abs_diff(other.end.0) < 10_000_000;
    let mut count = 0;
    for (thread, stalls) in &whole {
        let written = killed.get(thread).map_or(&[][..], Vec::as_slice);
        for stall in stalls.iter().filter(|stall| stall.start() > start && stall.end < end) {
            let found = written.iter().any(|other| is_same(stall, other));
            assert!(found, "{stall:?} {thread:?} ended {} ns before {end:?}", end.since(stall.end));
            count += 1;
        }
    }
    let later = killed.values().flatten().filter(|stall| stall.end > end).count();
    println!("{count} stalls until the end, {later} after it");
    assert!(count > 50, "{count}");
}
