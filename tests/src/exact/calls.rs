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

use crate::kernel_counters::{self, Calls};
use crate::mapping::LONG_CALL_FACTOR;
use crate::process::{Placement, Running};
use crate::results::{Held, not_applicable};
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

/// Lengths of calls: by observer's record, and by another clock.
type Lengths = Vec<(u64, u64)>;

/// Begin and end of calls, as the caller read its clock.
fn readings(own: &Value) -> impl Iterator<Item = (u64, u64)> {
    let calls = own.as_array().expect("the caller's clock readings").iter();
    calls.map(|own| (own[0].as_u64().expect("ns"), own[1].as_u64().expect("ns")))
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

/// Part of a call that the caller's clock may have more than observer's.
///
/// The caller's clock includes the way into the kernel and out of it and the BPF programs of every
/// observer on both; so does the caller's time of an empty call. A long call leaves the caches colder
/// for its way out than an empty one, hence one empty call for each end. The workload makes its
/// calls at least [`LONG_CALL_FACTOR`] times as long as an empty one, so this stays a small part on
/// every CPU.
fn outside(call: MmCall, lengths: &Lengths, counts: &Value) -> f64 {
    let median = |mut lengths: Vec<u64>| {
        lengths.sort_unstable();
        lengths.get(lengths.len() / 2).copied().expect("calls")
    };
    let empty = readings(&counts["empty"][call.name()]).map(|(begin, end)| end - begin).collect();
    let empty_ns = median(empty);
    let long_ns = median(lengths.iter().map(|(_, own)| *own).collect());
    let apart_ns = median(lengths.iter().map(|(found, own)| own.abs_diff(*found)).collect());
    println!(
        "{}: a call takes {long_ns} ns, an empty one {empty_ns} ns, the clocks are {apart_ns} ns \
         apart (medians)",
        call.name(),
    );
    2.0 * (empty_ns as f64 / long_ns as f64).max(1.0 / LONG_CALL_FACTOR as f64)
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
                let outside = outside(call, &lengths, counts);
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
    if let [first, others @ ..] = observed.runs.as_slice() {
        let best = lengths(first, MmCall::Munmap, counts);
        let outside = outside(MmCall::Munmap, &best, counts);
        for other in others {
            let pair = |(one, first): ((u64, u64), &(u64, u64))| (one.0, first.0);
            let lengths = lengths(other, MmCall::Munmap, counts);
            let (found, expected) = undisturbed(lengths.into_iter().zip(&best).map(pair).collect());
            let held = Held::new(trial.test, "mm_syscall", &other.summary);
            let tier = first.probe("mm_syscall").tier.as_deref().unwrap_or_default();
            let against = format!("{tier}, side by side");
            // Between the clocks of two tiers lies no more than one end of an empty call.
            held.equal("munmap sum_ns", &against, found, expected, outside / 2.0);
        }
    }
    work.end().expect("the workload ends");
}
