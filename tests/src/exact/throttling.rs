//! How long a CPU limit held threads, against `cpu.stat` of the cgroup that has the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::who_ran::WhoRan;
use crate::cgroup::CpuCgroup;
use crate::kernel_counters;
use crate::process::Placement;
use crate::results::{Relation, not_applicable};
use crate::trial::{self, Run, Trial, scaled_text};

const TOLERANCE: f64 = 0.02;

/// In each period, the cgroup may use a fifth of it.
const QUOTA_US: u64 = 10_000;
const PERIOD_US: u64 = 50_000;

/// While a process is stopped now and then: how long it is, and how long it is not. Together more than a period, so
/// that it is stopped, and goes on, at any time of one.
const STOPPED: Duration = Duration::from_millis(30);
const GOES_ON: Duration = Duration::from_millis(41);

/// Which cgroup has the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// That of the threads.
    Own,
    /// The one above it.
    Above,
}

/// The cgroup with the limit, and the one with the threads, which is removed first.
struct Cgroups {
    below: Option<CpuCgroup>,
    limited: CpuCgroup,
}

impl Cgroups {
    fn create(limit: Limit) -> crate::Result<Self> {
        let limited = CpuCgroup::create(&trial::unique("throttled"))?;
        let below = (limit == Limit::Above).then(|| limited.create_below("below")).transpose()?;
        Ok(Self { below, limited })
    }

    fn of_threads(&self) -> &CpuCgroup {
        self.below.as_ref().unwrap_or(&self.limited)
    }
}

/// What is throttled.
#[derive(Clone, Copy, Debug)]
pub struct Throttled {
    /// Busy threads, all on one CPU.
    pub threads: u64,
    /// Which cgroup has the limit.
    pub limit: Limit,
    /// Another process wants the CPU.
    pub beside_another: bool,
    /// Their process is stopped by a signal now and then.
    pub is_stopped: bool,
}

impl Throttled {
    /// One thread.
    pub const ONE: Self =
        Self { threads: 1, limit: Limit::Own, beside_another: false, is_stopped: false };
}

/// A thread that stops a process now and then, until it is dropped.
struct Stops {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stops {
    /// The process must be there until then.
    fn begin(pid: u32) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let send = move |signal| {
            // SAFETY: takes no pointer. The process is the caller's, which has not waited for it yet.
            unsafe { libc::kill(pid.cast_signed(), signal) };
        };
        let thread = std::thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                send(libc::SIGSTOP);
                std::thread::sleep(STOPPED);
                send(libc::SIGCONT);
                std::thread::sleep(GOES_ON);
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Stops {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn throttled_ns(run: &Run) -> u64 {
    run.probe("runqueue").counters.get("throttled_ns").map_or(0, |ns| ns.unsigned_abs())
}

/// Busy threads whose cgroup may run a fifth of the time: each of them was held for as long as `cpu.stat` says,
/// also where another process wants the CPU, and where they are stopped while they are held.
///
/// # Panics
/// When it is not so.
pub fn throttled(trial: &Trial, case: Throttled) {
    let Throttled { threads, limit, beside_another, is_stopped } = case;
    let cgroups = match Cgroups::create(limit) {
        Ok(cgroups) => cgroups,
        Err(reason) => return not_applicable(trial.test, "runqueue", "cpu.stat", &reason),
    };
    let directory = trial::directory();
    let another = ["contend", "--threads", "1", "--ms", &scaled_text(60_000)];
    let mut another = beside_another.then(|| trial::start(&another, Placement::default()));
    let (number, milliseconds) = (threads.to_string(), scaled_text(2000));
    let arguments = ["contend", "--threads", &number, "--ms", &milliseconds];
    let place = Placement { throttled: Some(cgroups.of_threads()), ..Placement::default() };
    let mut work = trial::start(&arguments, place);
    let pid = work.id();
    let limited = &cgroups.limited;
    limited.limit(QUOTA_US, PERIOD_US).expect("the kernel takes the limit");
    if let Some(another) = &mut another {
        another.begin().expect("it begins");
    }
    // Between the readings only: what it waits before the first one and behind the last one is in the numbers of
    // observer alone.
    let (mut stops, mut has_begun) = (None, false);
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        if stops.take().is_some() {
            trial::settle(pid);
        }
        let throttled_ns = limited.throttled_ns().expect("cpu.stat");
        let schedstat = kernel_counters::schedstat(pid).expect("the workload is there");
        if is_stopped && !std::mem::replace(&mut has_begun, true) {
            stops = Some(Stops::begin(pid));
        }
        (throttled_ns, schedstat)
    });
    let held_ns = threads * (observed.after.0 - observed.before.0);
    let schedstat = kernel_counters::schedstat_since(&observed.after.1, &observed.before.1);
    assert!(held_ns > schedstat.ran_ns, "the limit works: {held_ns} ns, {schedstat:?}");
    let against = "cpu.stat throttled, of each thread";
    // Before all of them work, and when the first one is done, fewer are held.
    let not_all_ns = (threads - 1) * 2 * PERIOD_US * 1000;
    trial.hold(
        &observed,
        "runqueue",
        |held, run| {
            let found = run.run_delay_ns();
            held.equal("sum_ns", "schedstat run delay", found, schedstat.delay_ns, TOLERANCE);
            let allowed = (trial::between_clocks(TOLERANCE), not_all_ns);
            let (counted, all) = (throttled_ns(run), WhoRan::of(run, pid).throttled_ns);
            held.equal("throttled_ns", "throttled_ns of records", counted, all, TOLERANCE);
            if is_stopped {
                // Each time the process goes on, its first thread runs as well, and may be held.
                let metric = "throttled_ns of records";
                held.compare(Relation::AtLeast, metric, against, (all, held_ns), allowed);
                let against = "cpu.stat throttled, of two threads";
                held.at_most(metric, against, all, 2 * held_ns, TOLERANCE);
            } else {
                // Where the work ends, the first thread may be held beside those that work.
                let metric = "throttled_ns of records of those that work";
                let found = WhoRan::of_threads(run, pid, |tid| tid != pid).throttled_ns;
                held.compare(Relation::Equal, metric, against, (found, held_ns), allowed);
            }
        },
        &[("throttled_ns", TOLERANCE, 0, &throttled_ns)],
    );
    work.end().expect("the workload ends");
}
