//! `mm_syscall` against strace, perf's counters and the caller's own clock.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{Event, Value as Field};
use observer_ebpf::wire::MmSyscallRecord;
use perf_event_open::config::{Cpu, Opts, Proc};
use perf_event_open::count::Counter;
use perf_event_open::event::tp::Tracepoint;
use rustix::process::Signal;
use serde_json::Value;

use super::clocks::{Lengths, outside, readings, side_by_side, sums, undisturbed};
use crate::kernel_counters::{self, Calls};
use crate::process::{Placement, Running};
use crate::results::not_applicable;
use crate::told::MmCall;
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
        kernel_counters::strace_counts(&table).expect("a table of strace")
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
        ("mmap", 0.0, 0, &|run| run.count("mm_syscall", "mmap")),
        ("munmap", 0.0, 0, &|run| run.count("mm_syscall", "munmap")),
        ("mremap", 0.0, 0, &|run| run.count("mm_syscall", "mremap")),
        ("brk", 0.0, 0, &|run| run.count("mm_syscall", "brk")),
        ("mprotect", 0.0, 0, &|run| run.count("mm_syscall", "mprotect")),
        ("madvise", 0.0, 0, &|run| run.count("mm_syscall", "madvise")),
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
                    let expected = strace.get(*call).copied().unwrap_or_default().calls;
                    held.equal(call, "strace -c", found, expected, 0.0);
                }
                match counter {
                    Some(counter) => {
                        let expected = counter.stat().expect("perf counts").count;
                        // Perf counts fewer calls if programs of other tools hide some from it, but
                        // never none.
                        held.at_least(call, "perf count of the tracepoint", found, expected, 0.0);
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

/// Pairs the caller's calls with observer's records of them: each record lies within the call.
fn lengths(run: &Run, call: MmCall, counts: &Value) -> Lengths {
    let length = number(&counts["length_bytes"], call.name());
    let of_call = |event: &Event| {
        let long = |record: MmSyscallRecord| record.length_bytes == length;
        event.record().is_some_and(long)
            && event.value("syscall") == Some(Field::Text(call.name().into()))
    };
    let mut events: Vec<Event> = run.events().into_iter().filter(of_call).collect();
    events.sort_unstable_by_key(Event::start);
    let own: Vec<_> = readings(&counts["long"][call.name()]).collect();
    assert_eq!(events.len(), own.len(), "{}: one record for each call", call.name());
    let pair = |(event, (begin, end)): (&Event, (u64, u64))| {
        let within = begin <= event.start().0 && event.end.0 <= end;
        assert!(within, "{}: {event:?} is not within {begin}..{end}", call.name());
        (event.duration_ns, end - begin)
    };
    events.iter().zip(own).map(pair).collect()
}

/// Time in long calls, which the caller measures as well.
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
    let counts = &observed.counts;
    // Each CPU of an emulated guest stands still while another one has its turn.
    let emulated = if trial::in_guest() { trial::between_clocks(0.05) } else { 0.0 };
    trial.hold(
        &observed,
        "mm_syscall",
        |held, run| {
            for call in [MmCall::Mmap, MmCall::Madvise, MmCall::Munmap] {
                let name = call.name();
                let lengths = lengths(run, call, counts);
                let outside = outside(name, &lengths, &counts["empty"][name]);
                let recorded_ns = sums(&lengths).0;
                let sum_ns = run.sum_ns("mm_syscall", name);
                assert!(sum_ns >= recorded_ns, "{name}: {sum_ns} ns, {recorded_ns} in records");
                let (metric, against) = (format!("{name} sum_ns"), "the caller's own clock");
                let total_ns = number(&counts["total_ns"], name);
                held.at_most(&metric, against, sum_ns, total_ns, 0.0);
                let (found, own) = undisturbed(lengths);
                held.at_least(&metric, against, found, own, outside.max(emulated));
            }
        },
        &[],
    );
    let lengths = |run: &Run| lengths(run, MmCall::Munmap, counts);
    let metric = ("mm_syscall", "munmap sum_ns");
    side_by_side(trial, &observed.runs, metric, lengths, &counts["empty"]["munmap"]);
    work.end().expect("the workload ends");
}
