//! Stacks of threads that were away from the CPU: as many as the kernel counts switches, for as long as the threads
//! did not run, and with the functions in which the kernel says that they are.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use observer::model::{Event, Frame, Stacks};
use observer::output::rundir::RunDir;
use observer_ebpf::wire::{STACK_PREEMPTED, StackRecord};
use observer_tests::disturbance::repeated;
use observer_tests::process::Placement;
use observer_tests::results::Relation;
use observer_tests::trial::{self, Run, Trial, number, scaled_text};
use observer_tests::{privileged, watch::read_run};

/// On some virtual machines the kernel leaves out the events of several switches in a thousand. An absence whose end has
/// none is completed at the next switch; if that has none either, it is missing.
const COUNT_TOLERANCE: f64 = 0.01;
/// Of a few hundred, so many may be missed for that reason.
const MISSED: u64 = 2;
/// The scheduler's clock, that of threads and the monotonic one differ a little.
const TIME_TOLERANCE: f64 = 0.01;

/// Every absence is recorded, however short.
const ALL: [&str; 4] = ["--probes", "default,stack", "--floor", "stack=0ns"];

/// The `stack` events of a thread.
fn absences(run: &Run, tid: u32) -> Vec<(Event, StackRecord)> {
    let of_thread = run.events().into_iter().filter(|event| event.tid.0 == tid);
    of_thread.filter_map(|event| Some((event, event.record::<StackRecord>()?))).collect()
}

fn stacks(directory: &Path) -> Stacks {
    let run = RunDir::open(directory).expect("a run directory");
    run.read_stacks().expect("stacks").expect("a run with stacks")
}

/// Context switches of a thread so far: (voluntary, involuntary).
fn switches(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).expect("a thread");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().parse().expect("a number")
    };
    (value("voluntary_ctxt_switches:"), value("nonvoluntary_ctxt_switches:"))
}

/// A thread sleeps, and works beside another process on its CPU.
fn counted(trial: &Trial) {
    let directory = trial::directory();
    let rounds = scaled_text(200);
    // Longer than a time slice, so that it is preempted as well.
    let arguments = ["deep-sleeps", "--rounds", &rounds, "--ms", "2", "--work-us", "8000"];
    let mut work = trial::start(&arguments, Placement::default());
    let mut busy = trial::start(
        &["contend", "--threads", "1", "--ms", "120000", "--cpu", "0"],
        Placement::default(),
    );
    busy.begin().expect("it works");
    let id = work.id();
    let mut target = vec!["--pid".to_owned(), id.to_string()];
    target.extend(ALL.map(str::to_owned));
    let observed = trial.observe_target(&target, &mut work, directory.path(), switches);
    let [begin_ns, end_ns, on_cpu_ns] =
        ["begin_ns", "end_ns", "on_cpu_ns"].map(|key| number(&observed.counts, key));
    let (voluntary, involuntary) =
        (observed.after.0 - observed.before.0, observed.after.1 - observed.before.1);
    let count = |run: &Run| absences(run, id).len() as u64;
    let preempted = |run: &Run| {
        let all = absences(run, id);
        all.iter().filter(|(event, _)| event.flags & STACK_PREEMPTED != 0).count() as u64
    };
    let away_ns = |run: &Run| {
        let all = absences(run, id);
        let inside = all.iter().filter(|(event, _)| (begin_ns..=end_ns).contains(&event.end.0));
        inside.map(|(event, _)| event.duration_ns).sum::<u64>()
    };
    trial.hold(
        &observed,
        "stack",
        |held, run| {
            let against = "voluntary and involuntary context switches";
            // The first absence began before observer came, and the last one has not ended.
            let allowed = (COUNT_TOLERANCE, MISSED + 1);
            let switches = voluntary + involuntary;
            held.compare(Relation::Equal, "count", against, (count(run), switches), allowed);
            let counted = run.probe("stack").counters["absences"].unsigned_abs();
            held.compare(Relation::Equal, "absences", against, (counted, switches), allowed);
            let against = "involuntary context switches";
            let allowed = (COUNT_TOLERANCE, MISSED);
            held.compare(
                Relation::Equal,
                "preempted",
                against,
                (preempted(run), involuntary),
                allowed,
            );
            let against = "elapsed time without CPU time";
            let allowed = (trial::between_clocks(TIME_TOLERANCE), switches * observed.switch_ns);
            let off_cpu_ns = end_ns - begin_ns - on_cpu_ns;
            held.compare(Relation::Equal, "sum_ns", against, (away_ns(run), off_cpu_ns), allowed);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

#[test]
fn absences_are_the_context_switches() {
    let Some(_guard) = privileged::ready("absences of threads") else { return };
    let tiers = match trial::in_guest() {
        true => vec![None],
        false => trial::offered_tiers("stack").into_iter().map(Some).collect(),
    };
    for tier in tiers {
        repeated(|| counted(&Trial::with("absences of a thread", vec![tier.clone()])));
    }
}

/// What the kernel says about the stack of a thread: functions and offsets, the innermost first.
fn own_stack(pid: u32) -> Vec<(String, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stack")).unwrap_or_default();
    let frame = |line: &str| {
        let (function, rest) = line.strip_prefix("[<0>] ")?.split_once("+0x")?;
        let (offset, _) = rest.split_once('/')?;
        Some((function.to_owned(), u64::from_str_radix(offset, 16).ok()?))
    };
    text.lines().filter_map(frame).collect()
}

fn named(frames: &[Frame]) -> Vec<(String, u64)> {
    let name = |frame: &Frame| (frame.function.clone().unwrap_or_default(), frame.offset);
    frames.iter().map(name).collect()
}

#[test]
fn a_stack_is_where_the_thread_sleeps() {
    let Some(_guard) = privileged::ready("stacks of a sleeping thread") else { return };
    let directory = trial::directory();
    let arguments = ["deep-sleeps", "--rounds", "20", "--ms", "50"];
    let (mut work, watch) = trial::watched(&arguments, &["--stacks", "40ms"], directory.path());
    let id = work.id();
    work.begin().expect("it works");
    let deadline = Instant::now() + Duration::from_secs(60);
    let told = loop {
        let told = own_stack(id);
        if told.iter().any(|(function, _)| function == "hrtimer_nanosleep") {
            break told;
        }
        assert!(Instant::now() < deadline, "the thread sleeps: {told:?}");
        std::thread::sleep(Duration::from_millis(1));
    };
    work.counts().expect("its counts");
    let place = watch.run.clone();
    let (summary, info) = watch.finish().unwrap_or_else(|error| panic!("{error}"));
    let run = Run { summary, info, directory: place };
    let stacks = stacks(&run.directory);
    println!("{:?}", stacks.not_known);
    let all = absences(&run, id);
    let deep: Vec<_> = all
        .iter()
        .filter(|(_, record)| {
            let user = stacks.user.iter().find(|user| {
                user.tgid.0 == id && i64::from(user.id) == i64::from(record.user_stack)
            });
            user.is_some_and(|user| {
                let functions: Vec<_> =
                    user.frames.iter().filter_map(|frame| frame.function.as_deref()).collect();
                functions.starts_with(&["observer_work_sleeps", "observer_work_calls"])
            })
        })
        .collect();
    // A hypervisor may keep one of them from sleeping that long.
    assert!(deep.len() >= 18, "{} of 20, of {} in all", deep.len(), all.len());
    for (event, record) in deep {
        assert!(event.duration_ns >= 40_000_000, "{event:?}");
        let id = u32::try_from(record.kernel_stack).expect("a stack in the kernel");
        let kernel = named(&stacks.kernel[&id]);
        assert!(kernel.ends_with(&told), "{kernel:?} ends with {told:?}");
        // Nothing of observer is in it.
        assert!(kernel[0].0.contains("schedule"), "{kernel:?}");
    }
    work.end().expect("the workload ends");
}

#[test]
fn a_process_that_has_ended_has_names_too() {
    let Some(_guard) = privileged::ready("stacks of a process that ends") else { return };
    let directory = trial::directory();
    let arguments = ["deep-sleeps", "--rounds", "3", "--ms", "50"];
    let (mut work, watch) = trial::watched(&arguments, &["--stacks", "40ms"], directory.path());
    let id = work.id();
    work.go().expect("it works");
    work.end().expect("it ends");
    let place = watch.run.clone();
    // Its target has exited, which ends the run.
    let _ = watch.finish_with_loss();
    let (..) = read_run(&place).expect("a run");
    let found = stacks(&place);
    let user: Vec<_> = found.user.iter().filter(|stack| stack.tgid.0 == id).collect();
    let is_deep = |frames: &[Frame]| {
        frames.first().is_some_and(|frame| {
            frame.function.as_deref() == Some("observer_work_sleeps")
                && frame.module.ends_with("observer-work")
        })
    };
    assert!(user.iter().any(|stack| is_deep(&stack.frames)), "{user:#?}");
}
