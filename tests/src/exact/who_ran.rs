//! Who had the CPU during the waits of `runqueue`, against what the scheduler says of both sides.

use std::time::Duration;

use observer::model::Event;
use observer_ebpf::wire::RunqueueRecord;

use super::runqueue::apart_ns;
use crate::kernel_counters::{self, SchedStat};
use crate::process::Placement;
use crate::results::{Held, Relation};
use crate::trial::{self, Run, Trial, number, scaled_text};

/// Between the clocks of the scheduler, and those that some tiers keep.
const TOLERANCE: f64 = 0.05;

/// How much less it may be: the first thread of the process works, too, and others of the host come in
/// between.
pub(super) const LESS: f64 = 0.25;

/// The kernel does not show all switches on all hosts; of a wait in which one is missing, the time
/// between its neighbours is not known. Three in a thousand were seen to be missing.
pub(super) const UNKNOWN_AT_MOST: f64 = 0.25;

/// How long others, the process itself, and nobody had the CPU, over all waits of the process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WhoRan {
    pub(super) other_ns: u64,
    pub(super) own_ns: u64,
    pub(super) idle_ns: u64,
    /// How long a CPU limit held the threads.
    pub(super) throttled_ns: u64,
    /// What is left of these waits.
    pub(super) unknown_ns: u64,
}

impl WhoRan {
    /// From the records of a run in which all waits were recorded.
    pub(super) fn of(run: &Run, pid: u32) -> Self {
        Self::of_threads(run, pid, |_| true)
    }

    /// As [`Self::of`], of some of its threads.
    pub(super) fn of_threads(run: &Run, pid: u32, are_of: impl Fn(u32) -> bool) -> Self {
        let mut sum = Self::default();
        let of_them = |event: &Event| event.tgid.0 == pid && are_of(event.tid.0);
        for event in run.events().into_iter().filter(of_them) {
            let Some(record) = event.record::<RunqueueRecord>() else { continue };
            // Observer has not seen who had the CPU before it came. Sleeps that the kernel counts as waits
            // can be that long.
            if event.start() < run.info.start_ns {
                continue;
            }
            let known_ns = record.throttled_ns + record.other_ns + record.own_ns + record.idle_ns;
            assert!(known_ns <= event.duration_ns, "no more than the wait: {event:?}");
            sum.other_ns += record.other_ns;
            sum.own_ns += record.own_ns;
            sum.idle_ns += record.idle_ns;
            sum.throttled_ns += record.throttled_ns;
            sum.unknown_ns += event.duration_ns - known_ns;
        }
        println!("{sum:?}");
        let all_ns = sum.throttled_ns + sum.other_ns + sum.own_ns + sum.idle_ns + sum.unknown_ns;
        let unknown = sum.unknown_ns as f64 / all_ns.max(1) as f64;
        assert!(unknown < UNKNOWN_AT_MOST, "{sum:?}");
        sum
    }
}

/// Both before the rest of the host, and on one CPU.
const FIRST: Placement<'_> =
    Placement { cgroup: None, unified: None, throttled: None, cpu: None, nice: Some(-10) };

/// One more tick than was counted of the time that the hypervisor took from a CPU.
pub(super) fn stolen_ns(before: Duration, after: Duration) -> u64 {
    let stolen = after.saturating_sub(before) + Duration::from_millis(10);
    u64::try_from(stolen.as_nanos()).expect("a short run")
}

/// Two busy threads of one process on one CPU: while one waits, the other one runs.
///
/// # Panics
/// When the records say otherwise.
pub fn own_threads(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["contend", "--threads", "2", "--ms", &scaled_text(1500)];
    let mut work = trial::start(&arguments, FIRST);
    let pid = work.id();
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        let counters = kernel_counters::schedstat(pid).expect("the workload is there");
        (counters, kernel_counters::stolen())
    });
    let ran = kernel_counters::schedstat_since(&observed.after.0, &observed.before.0);
    let stolen_ns = stolen_ns(observed.before.1, observed.after.1);
    // While one of them was not there yet, or not any more, the other one kept nobody waiting.
    let alone_ns = number(&observed.counts, "apart_ns");
    let own_ns = |run: &Run| {
        let found = WhoRan::of(run, pid);
        found.own_ns + found.unknown_ns
    };
    trial.hold(
        &observed,
        "runqueue",
        |held: &Held, run| {
            let against = "schedstat time on the CPU";
            let numbers = (WhoRan::of(run, pid).own_ns, ran.ran_ns);
            // A switch, with the programs at it, is part of a wait, and of nobody's time on the CPU.
            let slack = stolen_ns + apart_ns(ran, observed.switch_ns);
            held.compare(Relation::AtMost, "own_ns", against, numbers, (TOLERANCE, slack));
            let least_ns = ran.ran_ns.saturating_sub(alone_ns);
            let against = "schedstat time on the CPU, together";
            held.at_least("own_ns, and unknown", against, own_ns(run), least_ns, LESS);
        },
        &[("own_ns, and unknown", TOLERANCE, 0, &own_ns)],
    );
    work.end().expect("the workload ends");
}

/// A busy thread beside another process on one CPU: whenever it waits, others have the CPU, most of all
/// that process.
///
/// # Panics
/// When the records say otherwise.
pub fn another_process(trial: &Trial) {
    let directory = trial::directory();
    let hog = ["contend", "--threads", "1", "--ms", &scaled_text(60_000)];
    let mut hog = trial::start(&hog, FIRST);
    let of_hog = hog.id();
    let mut work = trial::start(&["contend", "--threads", "1", "--ms", &scaled_text(1500)], FIRST);
    let pid = work.id();
    hog.begin().expect("it begins");
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::schedstat(pid).expect("the workload is there")
    });
    let waited: SchedStat = kernel_counters::schedstat_since(&observed.after, &observed.before);
    let other_ns = |run: &Run| {
        let found = WhoRan::of(run, pid);
        found.other_ns + found.unknown_ns
    };
    trial.hold(
        &observed,
        "runqueue",
        |held: &Held, run| {
            let against = "schedstat run delay, beside a busy process";
            let numbers = (WhoRan::of(run, pid).other_ns, waited.delay_ns);
            let slack = apart_ns(waited, observed.switch_ns);
            held.compare(Relation::AtMost, "other_ns", against, numbers, (TOLERANCE, slack));
            held.compare(Relation::AtLeast, "other_ns", against, numbers, (LESS, slack));
            let of_waits = run.events().into_iter().filter(|event| event.tgid.0 == pid);
            let (mut all_ns, mut of_hog_ns) = (0, 0);
            for event in of_waits {
                let Some(record) = event.record::<RunqueueRecord>() else { continue };
                all_ns += record.other_ns;
                of_hog_ns += if record.ran_tgid == of_hog { record.other_ns } else { 0 };
            }
            // Others of the host may lead in a few short waits.
            assert!(of_hog_ns > all_ns / 2, "the busy process: {of_hog_ns} of {all_ns} ns");
        },
        &[("other_ns, and unknown", TOLERANCE, 0, &other_ns)],
    );
    work.end().expect("the workload ends");
}
