//! `sleep` against voluntary context switches and the time that threads neither ran nor waited for a CPU.

use crate::process::Placement;
use crate::results::{Comparison, Relation};
use crate::trial::{self, Run, Trial, number, scaled_text};

/// The kernel's clock of a run queue, that of threads, and the monotonic one differ a little, most
/// where a hypervisor takes the CPU away from a thread that runs.
fn tolerance() -> f64 {
    if trial::in_guest() { 0.05 } else { 0.02 }
}

/// On some virtual machines the kernel switches to a thread without an event, up to three times in a
/// thousand: no tool sees these.
const COUNT_TOLERANCE: f64 = 0.01;

/// Each of the four threads may wait for locks of the address space at its end, when it has read its own
/// counters.
const AT_THE_END: u64 = 8;

fn sum_ns(run: &Run) -> u64 {
    run.probe("sleep").sum_ns
}

/// Threads that sleep in several ways: each sleep is a voluntary context switch, and together they are
/// the time that is left beside running and waiting.
///
/// # Panics
/// When they are not.
pub fn sleeps(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["sleeps", "--rounds", &scaled_text(300)];
    let mut work = trial::start(&arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,sleep"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    let (count, slept_ns) =
        (number(&observed.counts, "sleeps"), number(&observed.counts, "slept_ns"));
    trial.hold(
        &observed,
        "sleep",
        |held, run| {
            let switches = "voluntary context switches (getrusage)";
            held.check(&Comparison {
                metric: "count",
                against: switches,
                relation: Relation::Equal,
                observed: run.probe("sleep").count,
                expected: count,
                tolerance: COUNT_TOLERANCE,
                slack: AT_THE_END,
            });
            held.check(&Comparison {
                metric: "sum_ns",
                against: "elapsed time without CPU time and run delay",
                relation: Relation::Equal,
                observed: sum_ns(run),
                expected: slept_ns,
                tolerance: tolerance(),
                slack: 0,
            });
        },
        &[("sum_ns", 0.01, 0, &sum_ns)],
    );
    work.end().expect("the workload ends");
}
