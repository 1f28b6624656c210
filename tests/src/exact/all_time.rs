//! Where all of a thread's time went: on a CPU, waiting for one, asleep in each way, and stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::Placement;
use crate::results::Relation;
use crate::trial::{self, Run, Trial, number, scaled_text};

/// How far the sum may be from the time that passed, beside what the switches took.
const TOLERANCE: f64 = 0.001;
/// How long the workload stays stopped, about.
const STOPPED: Duration = Duration::from_millis(10);

/// A thread that sleeps in several ways, stops itself, reads a file, and works beside another process on the same CPU:
/// all of its time is known.
///
/// # Panics
/// When the sum is not the time that passed.
pub fn all_time(trial: &Trial) {
    let directory = trial::directory();
    let file = directory.path().join("read");
    let file = file.to_str().expect("a path in UTF-8");
    let rounds = scaled_text(240);
    let mut work =
        trial::start(&["all-time", "--rounds", &rounds, "--file", file], Placement::default());
    let mut busy = trial::start(
        &["contend", "--threads", "1", "--ms", "120000", "--cpu", "0"],
        Placement::default(),
    );
    let id = work.id();
    let target = ["--pid", &id.to_string(), "--probes", "default,sleep"].map(str::to_owned);
    let process = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
    let ended = AtomicBool::new(false);
    let observed = thread::scope(|scope| {
        busy.begin().expect("it works");
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(STOPPED);
                // Of a process that is not stopped, it changes nothing.
                kill_process(process, Signal::CONT).expect("the workload is there");
            }
        });
        let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
        ended.store(true, Ordering::Relaxed);
        observed
    });
    let (all_ns, on_cpu_ns) =
        (number(&observed.counts, "all_ns"), number(&observed.counts, "on_cpu_ns"));
    let off_cpu_ns = |run: &Run| run.probe("runqueue").sum_ns + run.probe("sleep").sum_ns;
    trial.hold(
        &observed,
        "sleep",
        |held, run| {
            for (probe, part) in [
                ("runqueue", "preempted"),
                ("sleep", "interruptible"),
                ("sleep", "lock"),
                ("sleep", "stopped"),
            ] {
                println!("{probe} {part}: {} ns", run.sum_ns(probe, part));
                assert!(run.sum_ns(probe, part) > all_ns / 100, "{probe} {part} of {all_ns} ns");
            }
            let (metric, against) = ("all time", "the time that passed");
            let sum_ns = on_cpu_ns + off_cpu_ns(run);
            // The scheduler reads its clock before the switch that the program sees.
            let intervals = run.probe("runqueue").count + run.probe("sleep").count;
            let allowed = (trial::between_clocks(TOLERANCE), intervals * observed.switch_ns);
            held.compare(Relation::Equal, metric, against, (sum_ns, all_ns), allowed);
        },
        &[("all time off the CPU", TOLERANCE, 0, &off_cpu_ns)],
    );
    work.end().expect("the workload ends");
}
