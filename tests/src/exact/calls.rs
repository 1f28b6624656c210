//! `mm_syscall` against strace, perf's counters and the caller's own clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{Event, EventKind, MmCall};
use perf_event_open::config::{Cpu, Opts, Proc};
use perf_event_open::count::Counter;
use perf_event_open::event::tp::Tracepoint;
use rustix::process::Signal;
use serde_json::Value;

use crate::books::{self, Calls};
use crate::mapping::LONG_CALL_BYTES;
use crate::process::{Placement, Running};
use crate::results::{Held, not_applicable};
use crate::trial::{self, Metric, Run, Trial, number, scaled_text};

/// The watched calls.
const CALLS: [&str; 6] = ["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"];

/// `strace -c` on a process that rests.
pub(super) struct Strace {
    process: Running,
    table: std::path::PathBuf,
}

impl Strace {
    /// `None` where there is no strace, which is written down.
    pub(super) fn attach(trial: &Trial, probe: &str, pid: u32, directory: &Path) -> Option<Self> {
        let table = directory.join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-o"]).arg(&table).args(["-p", &pid.to_string()]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let process = match Running::start(&mut command, Placement::default()) {
            Ok(process) => process,
            Err(reason) => {
                not_applicable(trial.test, probe, "strace -c", &reason);
                return None;
            }
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !traced(pid) {
            assert!(Instant::now() < deadline, "strace attaches");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { process, table })
    }

    pub(super) fn counts(mut self) -> BTreeMap<String, Calls> {
        self.process.signal(Signal::INT);
        self.process.wait(Duration::from_secs(60)).expect("strace ends");
        let table = fs::read_to_string(&self.table).expect("strace wrote its table");
        books::strace_counts(&table).expect("a table of strace")
    }
}

fn traced(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .expect("the workload is there")
        .lines()
        .any(|line| line.strip_prefix("TracerPid:").is_some_and(|tracer| tracer.trim() != "0"))
}

/// perf's own count of a system call of one process; `None` without tracefs.
fn counter(call: &str, pid: u32) -> Option<Counter> {
    let id = fs::read_to_string(format!("/sys/kernel/tracing/events/syscalls/sys_enter_{call}/id"));
    let event = Tracepoint { id: id.ok()?.trim().parse().ok()? };
    Counter::new(event, (Proc(pid), Cpu::ALL), Opts::default()).ok()
}

/// Counts by call.
///
/// # Panics
/// When one differs.
pub fn memory_calls(trial: &Trial) {
    let directory = trial::directory();
    let rounds = scaled_text(1000);
    let mut work = trial::start(&["memory-calls", "--rounds", &rounds], Placement::default());
    let strace = Strace::attach(trial, "mm_syscall", work.id(), directory.path());
    let counters = CALLS.map(|call| counter(call, work.id()));
    let observed = trial.observe(&mut work, directory.path(), |_| {
        counters.iter().flatten().for_each(|counter| counter.enable().expect("perf counts"));
    });
    let strace = strace.map(Strace::counts);
    let metrics: [Metric<'_>; 6] = [
        ("mmap", 0.0, &|run| run.count("mm_syscall", "mmap")),
        ("munmap", 0.0, &|run| run.count("mm_syscall", "munmap")),
        ("mremap", 0.0, &|run| run.count("mm_syscall", "mremap")),
        ("brk", 0.0, &|run| run.count("mm_syscall", "brk")),
        ("mprotect", 0.0, &|run| run.count("mm_syscall", "mprotect")),
        ("madvise", 0.0, &|run| run.count("mm_syscall", "madvise")),
    ];
    trial.hold(
        &observed,
        "mm_syscall",
        |held, run| {
            for (call, counter) in CALLS.iter().zip(&counters) {
                let found = run.count("mm_syscall", call);
                let own = number(&observed.counts, call);
                held.at_least(call, "the caller's own count", found, own, 0.0);
                if let Some(strace) = &strace {
                    let book = strace.get(*call).copied().unwrap_or_default().calls;
                    held.equal(call, "strace -c", found, book, 0.0);
                }
                match counter {
                    Some(counter) => {
                        let book = counter.stat().expect("perf counts").count;
                        // Less where programs of others hide calls from perf; never nothing.
                        held.at_least(call, "perf count of the tracepoint", found, book, 0.0);
                    }
                    None => {
                        not_applicable(trial.test, "mm_syscall", call, "perf has no tracepoint");
                    }
                }
            }
        },
        &metrics,
    );
    work.end().expect("the workload ends");
}

/// Lengths of calls: by observer's record, and by another clock.
type Lengths = Vec<(u64, u64)>;

/// Pairs the caller's calls with observer's records of them: each record lies within the call.
fn lengths(run: &Run, call: MmCall, own: &Value) -> Lengths {
    let of_call = |event: &Event| {
        matches!(event.kind, EventKind::MmSyscall { call: found, length_bytes, .. }
            if found == call && length_bytes == LONG_CALL_BYTES)
    };
    let mut events: Vec<Event> = run.events().into_iter().filter(of_call).collect();
    events.sort_unstable_by_key(Event::start);
    let own = own.as_array().expect("the caller's clock readings");
    assert_eq!(events.len(), own.len(), "{}: a record for each call", call.name());
    let pair = |(event, own): (&Event, &Value)| {
        let (begin, end) = (own[0].as_u64().expect("ns"), own[1].as_u64().expect("ns"));
        let within = begin <= event.start().0 && event.end.0 <= end;
        assert!(within, "{}: {event:?} is not within {begin}..{end}", call.name());
        (event.duration_ns, end - begin)
    };
    events.iter().zip(own).map(pair).collect()
}

/// The sums of both sides without the tenth of the calls on which they differ most: between two
/// readings of a clock the caller may have been interrupted, preempted, or its CPU taken away.
fn undisturbed(mut lengths: Lengths) -> (u64, u64) {
    lengths.sort_unstable_by_key(|(one, other)| one.abs_diff(*other));
    lengths.truncate(lengths.len() - lengths.len() / 10);
    sums(&lengths)
}

fn sums(lengths: &[(u64, u64)]) -> (u64, u64) {
    lengths.iter().fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
}

/// Time in long calls, which the caller takes as well.
///
/// # Panics
/// When they differ.
pub fn memory_call_time(trial: &Trial) {
    if trial::in_guest() && trial.tiers.len() > 1 {
        let reason = "the programs of several observers take an emulated CPU longer than the calls";
        return not_applicable(trial.test, "mm_syscall", "munmap sum_ns", reason);
    }
    let directory = trial::directory();
    let rounds = scaled_text(200);
    let mut work = trial::start(&["long-calls", "--rounds", &rounds], Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    trial.hold(
        &observed,
        "mm_syscall",
        |held, run| {
            for call in [MmCall::Mmap, MmCall::Madvise, MmCall::Munmap] {
                let name = call.name();
                let lengths = lengths(run, call, &observed.counts[name]);
                let all = sums(&lengths);
                let sum_ns = run.sum_ns("mm_syscall", name);
                assert!(sum_ns >= all.0, "{name}: {sum_ns} ns, of records {all:?}");
                let (metric, against) = (format!("{name} sum_ns"), "the caller's own clock");
                held.at_most(&metric, against, sum_ns, all.1, 0.0);
                let (found, own) = undisturbed(lengths);
                held.at_least(&metric, against, found, own, trial::between_clocks(0.05));
            }
        },
        &[],
    );
    if let [first, others @ ..] = observed.runs.as_slice() {
        let own = &observed.counts["munmap"];
        let best = lengths(first, MmCall::Munmap, own);
        for other in others {
            let pair = |(one, first): ((u64, u64), &(u64, u64))| (one.0, first.0);
            let lengths = lengths(other, MmCall::Munmap, own);
            let (found, book) = undisturbed(lengths.into_iter().zip(&best).map(pair).collect());
            let held = Held::new(trial.test, "mm_syscall", &other.summary);
            let tier = first.probe("mm_syscall").tier.as_deref().unwrap_or_default();
            held.equal("munmap sum_ns", &format!("{tier}, side by side"), found, book, 0.02);
        }
    }
    work.end().expect("the workload ends");
}
