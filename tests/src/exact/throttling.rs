//! How long a CPU limit held threads, against `cpu.stat` of the cgroup that has the limit.

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

fn throttled_ns(run: &Run) -> u64 {
    run.probe("runqueue").counters.get("throttled_ns").map_or(0, |ns| ns.unsigned_abs())
}

/// Busy threads on one CPU whose cgroup may run a fifth of the time: each of them was held for as long as
/// `cpu.stat` says, also where another process wants the CPU.
///
/// # Panics
/// When it is not so.
pub fn throttled(trial: &Trial, threads: u64, limit: Limit, beside_another: bool) {
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
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        let throttled_ns = limited.throttled_ns().expect("cpu.stat");
        (throttled_ns, kernel_counters::schedstat(pid).expect("the workload is there"))
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
            let check = |metric, found| {
                held.compare(Relation::Equal, metric, against, (found, held_ns), allowed);
            };
            check("throttled_ns", throttled_ns(run));
            // The records say the same, and nothing twice.
            check("throttled_ns of records", WhoRan::of(run, pid).throttled_ns);
        },
        &[("throttled_ns", TOLERANCE, 0, &throttled_ns)],
    );
    work.end().expect("the workload ends");
}
