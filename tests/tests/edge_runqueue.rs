//! Waits for a CPU that are easily counted for the wrong thread, twice, or not at all.

use std::fs;
use std::path::Path;

use observer_tests::disturbance::repeated;
use observer_tests::kernel_counters::{self, SchedStat};
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::results::{Held, case_held, not_applicable};
use observer_tests::taskstats::{Delay, DelayAccounting, Taskstats};
use observer_tests::trial::{self, Run, Trial, number, scaled_text};
use observer_tests::{exact, watch::Work};
use serde_json::Value;

const PROBE: &str = "runqueue";
const TOLERANCE: f64 = 0.02;

fn hold(held: &Held, run: &Run, delay_ns: u64, arrivals: u64, source: &str) {
    let found = run.probe(PROBE);
    let apart = trial::between_clocks(TOLERANCE);
    held.equal("sum_ns", &format!("{source} run delay"), run.run_delay_ns(), delay_ns, apart);
    held.equal("count", &format!("{source} arrivals"), found.count, arrivals, apart);
}

/// Two observers: one uses the scheduler's own counters, which do not depend on wake-ups, and one
/// keeps its own begin times and has to handle wake-ups correctly.
fn counters_and_own_clock(test: &'static str) -> Trial {
    Trial::with(test, vec![None, Some("runqueue=tp_btf_pair".to_owned())])
}

fn stat(work: &Work) -> std::collections::BTreeMap<u32, SchedStat> {
    kernel_counters::schedstat(work.id()).expect("the workload is there")
}

/// Whether the second CPU is there, which some cases need; reports the case as not applicable where it is not.
fn two_cpus(test: &str) -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
    if !two {
        not_applicable(test, PROBE, "sum_ns", "needs two CPUs");
    }
    two
}

#[test]
fn a_wait_belongs_to_the_woken_and_not_to_the_waker() {
    let Some(_guard) = privileged::ready("waker and woken") else { return };
    let trial = Trial::new("waker and woken");
    let directory = trial::directory();
    let fifo = directory.path().join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).expect("a fifo can be made");
    let fifo = fifo.to_str().expect("a path in UTF-8");
    let rounds = scaled_text(500);
    let place = Placement { cpu: Some(0), ..Placement::default() };
    let mut woken = trial::start(&["woken", "--fifo", fifo, "--rounds", &rounds], place);
    let mut waker = trial::start(&["waker", "--fifo", fifo, "--rounds", &rounds], place);
    // One observer for each of the two, on the same wake-ups.
    let watches: Vec<_> = [&woken, &waker]
        .iter()
        .enumerate()
        .map(|(index, work)| {
            let place = directory.path().join(index.to_string());
            fs::create_dir(&place).expect("a directory");
            trial.watch(&["--pid".into(), work.id().to_string()], &place)
        })
        .collect();
    let before = [stat(&woken), stat(&waker)];
    for work in [&woken, &waker] {
        trial::nudge(work.id());
    }
    woken.begin().expect("it begins");
    waker.go().expect("the waker works");
    woken.counts().expect("the woken works");
    trial::settle(woken.id());
    trial::settle(waker.id());
    let after = [stat(&woken), stat(&waker)];
    let [waited, held_up] =
        [0, 1].map(|index| kernel_counters::schedstat_since(&after[index], &before[index]));
    assert!(
        waited.delay_ns.abs_diff(held_up.delay_ns) * 20 > waited.delay_ns.max(held_up.delay_ns),
        "the two differ clearly: woken {waited:?}, waker {held_up:?}"
    );
    for (watches, expected) in watches.into_iter().zip([waited, held_up]) {
        let runs = trial.finish(watches);
        let held = Held::new(trial.test, PROBE, &runs[0].summary);
        hold(&held, &runs[0], expected.delay_ns, expected.arrivals, "schedstat");
    }
    woken.end().expect("it ends");
    waker.end().expect("it ends");
}

#[test]
fn a_thread_that_migrates_while_it_waits_waits_once() {
    let Some(_guard) = privileged::ready("migration") else { return };
    let test = "migration while waiting";
    if two_cpus(test) {
        repeated(|| {
            exact::run_delay(
                &counters_and_own_clock(test),
                &["migrate", "--ms", &scaled_text(1000)],
            );
        });
    }
}

#[test]
fn a_sleep_that_the_kernel_counts_as_a_wait_is_none() {
    let Some(_guard) = privileged::ready("moved asleep") else { return };
    let trial = Trial::new("moved asleep");
    if !two_cpus(trial.test) {
        return;
    }
    // Delayed dequeue came with Linux 6.12. Whether a move comes while the sleeper is still on its run
    // queue is up to the scheduler, so the workload goes on until the kernel has counted enough.
    let delayed = kernel_counters::kernel_version() >= (6, 12);
    let (rounds, enough) = if delayed { ("1000", "3") } else { ("40", "1") };
    let directory = trial::directory();
    let arguments = ["moved-asleep", "--rounds", rounds, "--enough", enough];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::schedstat(pid).expect("the workload is there")
    });
    println!("{}", observed.counts);
    assert!(number(&observed.counts, "moves") > 0, "{}", observed.counts);
    let counted = kernel_counters::schedstat_since(&observed.after, &observed.before);
    let run = &observed.runs[0];
    let sleeps = run.target_lost("sleep_booked_as_wait");
    let slept_ns = trial::sleep_booked_as_wait_ns(&run.summary);
    let held = Held::new(trial.test, PROBE, &run.summary);
    let against = "schedstat run delay";
    held.equal("sum_ns + sleeps", against, run.run_delay_ns(), counted.delay_ns, TOLERANCE);
    case_held(trial.test, PROBE, &format!("{sleeps} sleeps of {slept_ns} ns in the run delay"));
    let [booked, booked_ns] = ["booked", "booked_ns"].map(|key| number(&observed.counts, key));
    if delayed {
        assert!(booked > 0, "no sleep was counted as a wait: {}", observed.counts);
        let found = format!("{sleeps} sleeps in {slept_ns} ns, {}", observed.counts);
        assert!(sleeps >= booked && slept_ns >= booked_ns, "{found}");
    } else {
        let found = (sleeps, slept_ns, booked, booked_ns);
        assert_eq!(found, (0, 0, 0, 0), "this kernel does not do that");
    }
    work.end().expect("it ends");
}

#[test]
fn a_wake_up_of_a_running_thread_begins_no_wait() {
    let Some(_guard) = privileged::ready("wake-up while running") else { return };
    let test = "wake-up of a running thread";
    if two_cpus(test) {
        let arguments = ["wake-running", "--rounds", &scaled_text(100_000)];
        repeated(|| exact::run_delay(&Trial::new(test), &arguments));
        repeated(|| exact::no_more_waits(&counters_and_own_clock(test), &arguments));
    }
}

#[test]
fn threads_woken_by_interrupts_wait_as_others_do() {
    let Some(_guard) = privileged::ready("interrupts that wake") else { return };
    let arguments = ["sleepers", "--threads", "4", "--rounds", &scaled_text(500)];
    repeated(|| exact::run_delay(&counters_and_own_clock("interrupts that wake"), &arguments));
}

/// Sum of what the named threads had when they ended.
fn dead(exits: &observer_tests::taskstats::Exits, counts: &Value, key: &str) -> (Delay, usize) {
    let tids = counts[key].as_array().expect("a list of threads");
    let mut sum = Delay::default();
    for tid in tids {
        let tid = u32::try_from(tid.as_u64().expect("a thread")).expect("a thread");
        let ends = exits.of(tid).expect("the kernel sent everything");
        assert_eq!(ends.len(), 1, "thread {tid} ended once");
        sum = sum.and(ends[0].cpu);
    }
    (sum, tids.len())
}

#[test]
fn threads_that_end_while_they_or_others_wait_take_their_waits_along() {
    let Some(_guard) = privileged::ready("end while waiting") else { return };
    repeated(end_while_waiting);
}

fn end_while_waiting() {
    let trial = Trial::new("end while waiting");
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let exits = Taskstats::of_ended_tasks().expect("the kernel sends the counters of ended tasks");
    let mut work = trial::start(&["dying", "--rounds", &scaled_text(20)], Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        kernel_counters::schedstat(pid).expect("the workload is there")
    });
    let own = kernel_counters::schedstat_since(&observed.after, &observed.before);
    let (ended, threads) = dead(&exits, &observed.counts, "tids");
    let (killed, processes) = dead(&exits, &observed.counts, "killed");
    println!("{threads} threads ended: {ended:?}, {processes} processes were killed: {killed:?}");
    let all = ended.and(killed);
    trial.hold(
        &observed,
        PROBE,
        |held, run| {
            let against = "schedstat, and taskstats of the dead";
            let sum_ns = own.delay_ns + all.total_ns;
            held.equal_to_ended("sum_ns", against, run.run_delay_ns(), sum_ns);
            let arrivals = own.arrivals + all.count;
            held.equal_to_ended("count", against, run.probe(PROBE).count, arrivals);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

#[test]
fn a_cpu_that_goes_and_comes_back_loses_no_wait() {
    let Some(_guard) = privileged::ready("CPU hotplug") else { return };
    let test = "CPU hotplug";
    let switch = Path::new("/sys/devices/system/cpu/cpu1/online");
    if !trial::in_guest() {
        let reason = "takes a CPU from everybody: done in guests only (OBSERVER_TEST_GUEST=1)";
        return not_applicable(test, PROBE, "sum_ns", reason);
    }
    if let Err(error) = fs::write(switch, "1") {
        let reason = format!("cannot switch {}: {error}", switch.display());
        return not_applicable(test, PROBE, "sum_ns", &reason);
    }
    let trial = Trial::new(test);
    let directory = trial::directory();
    let length = scaled_text(3000);
    let arguments = ["contend", "--threads", "4", "--anywhere", "--ms", &length];
    let mut work = trial::start(&arguments, Placement::default());
    let watches = trial.watch(&["--pid".into(), work.id().to_string()], directory.path());
    let before = stat(&work);
    trial::nudge(work.id());
    work.begin().expect("it begins");
    let mut switched = 0;
    for _ in 0..3 {
        for state in ["0", "1"] {
            std::thread::sleep(std::time::Duration::from_millis(trial::scaled(300)));
            fs::write(switch, state).expect("the guest lets a CPU go and come back");
            switched += 1;
        }
    }
    let counts = work.counts().expect("the workload works");
    let expected = kernel_counters::schedstat_since(&stat(&work), &before);
    let runs = trial.finish(watches);
    let held = Held::new(test, PROBE, &runs[0].summary);
    hold(&held, &runs[0], expected.delay_ns, expected.arrivals, "schedstat");
    assert!(number(&counts, "threads") == 4 && switched == 6);
    case_held(test, PROBE, "CPU 1 went and came back three times");
    work.end().expect("the workload ends");
}
