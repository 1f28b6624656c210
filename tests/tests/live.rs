//! Probes that are detached while everything runs, and attached again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::kernel::{Kernel, LoadOptions};
use observer::model::ProbeState;
use observer::probe::{ForcedTier, PROBES, ProbeOptions, ThreadState};
use observer_ebpf::wire::{Counter, Series};
use observer_tests::hotplug::Cpu;
use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::trial::{number, programs, scaled_text, settle};
use observer_tests::watch::Work;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

const REASON: &str = "the test says so";
const PAUSE: Duration = Duration::from_secs(1);

/// Both places where the state of threads can be: each is cleared in its own way.
const PLACES: [ThreadState; 2] = [ThreadState::Tables, ThreadState::Storage];

fn attach(probes: &str, thread_state: ThreadState) -> Kernel {
    let selection = probes.parse().expect("names of probes");
    let probes = ProbeOptions { selection, thread_state, ..ProbeOptions::default() };
    let options = LoadOptions { has_target: true, ring_bytes: 1 << 20, probes, by_cgroup: true };
    Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"))
}

fn start(arguments: &[&str]) -> Work {
    let work = Work::start(&programs(), arguments, Placement::default());
    let work = work.unwrap_or_else(|error| panic!("{error}"));
    settle(work.id());
    work
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("a process id");
    kill_process(pid, signal).expect("the workload is there");
}

/// Stops all threads of a workload, outside of any fault or system call.
fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    let deadline = Instant::now() + Duration::from_secs(30);
    let stopped = || {
        kernel_counters::thread_states(pid)
            .is_ok_and(|states| states.iter().all(|state| *state == 'T'))
    };
    while !stopped() {
        assert!(Instant::now() < deadline, "the workload stops");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Count and longest of some series of the target.
fn counted(kernel: &mut Kernel, series: &[Series]) -> (u64, u64, Duration) {
    let snapshot = kernel.snapshot(Some("target"));
    let of = series.iter().map(|series| snapshot.target_distribution(*series));
    of.fold((0, 0, Duration::ZERO), |(count, sum_ns, longest), one| {
        let longest = longest.max(Duration::from_nanos(one.max_ns));
        (count + one.count(), sum_ns + one.sum_ns, longest)
    })
}

const FAULTS: [Series; 4] = [
    Series::FaultMinorUser,
    Series::FaultMinorKernel,
    Series::FaultMajorUser,
    Series::FaultMajorKernel,
];

/// All faults of the host that were counted.
fn of_host(kernel: &mut Kernel) -> u64 {
    let snapshot = kernel.snapshot(None);
    FAULTS.iter().map(|series| snapshot.host_distribution(*series).count()).sum()
}

fn faults(pid: u32) -> u64 {
    kernel_counters::faults(pid).expect("the workload is there").all()
}

/// Waits until a process that goes on has had many more faults.
fn wait_for_faults(pid: u32, before: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while faults(pid) < before + 10_000 {
        assert!(Instant::now() < deadline, "the workload goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn equal(what: &str, observed: u64, kernel: u64) {
    println!("{what}: observed {observed}, the kernel counted {kernel}");
    assert!(observed.abs_diff(kernel) * 100 <= kernel, "{what}: {observed}, not {kernel}");
}

#[test]
fn faults_are_counted_while_attached_and_none_spans_a_pause() {
    let Some(_guard) = privileged::ready("detached faults") else { return };
    PLACES.into_iter().for_each(faults_with_pauses);
}

fn faults_with_pauses(state: ThreadState) {
    let mut kernel = attach("fault", state);
    let mut work = start(&["storm", "--rounds", "100000000"]);
    let pid = work.id();
    kernel.targets().set(pid, true);
    let mut before = faults(pid);
    let mut expected = 0;
    work.begin().expect("it works");
    for round in 0..3 {
        wait_for_faults(pid, before);
        // At rest, so that the kernel's counters can be read at the instant of the change.
        stop(pid);
        let at_detach = faults(pid);
        expected += at_detach - before;
        kernel.detach("fault", REASON).expect("it was attached");
        assert!(!kernel.is_attached("fault"));
        assert!(!kernel.events().contains_key("fault"));
        signal(pid, Signal::CONT);
        wait_for_faults(pid, at_detach);
        stop(pid);
        before = faults(pid);
        equal(&format!("faults, pause {round}"), counted(&mut kernel, &FAULTS).0, expected);
        kernel.attach_again("fault").expect("it was attached before");
        assert!(kernel.is_attached("fault"));
        signal(pid, Signal::CONT);
        // What can be counted at any time is what the histograms have.
        let (least, events, most) =
            (of_host(&mut kernel), kernel.events()["fault"], of_host(&mut kernel));
        assert!((least..=most).contains(&events), "{least} <= {events} <= {most}");
    }
    wait_for_faults(pid, before);
    stop(pid);
    expected += faults(pid) - before;
    equal("faults in the end", counted(&mut kernel, &FAULTS).0, expected);
    let coverage = kernel.coverage().remove("fault").expect("a line of it");
    assert_eq!(coverage.state, ProbeState::Partial, "{coverage:?}");
    let detached = coverage.detached.expect("it was detached");
    assert_eq!((detached.times, detached.pauses.len()), (3, 3), "{detached:?}");
    assert!(coverage.reason.is_some_and(|reason| reason.contains(REASON)));
    signal(pid, Signal::CONT);
}

#[test]
fn nothing_that_began_before_a_pause_ends_after_it() {
    let Some(_guard) = privileged::ready("detached in the middle") else { return };
    PLACES.into_iter().for_each(stalls_with_pauses);
}

fn stalls_with_pauses(state: ThreadState) {
    let mut kernel = attach("all", state);
    // The probe that follows the target has to stay, and the next test is about waits.
    let stays = ["task", "runqueue"];
    let probes = || PROBES.into_iter().filter(|probe| !stays.contains(&probe.name));
    let mut work = start(&["storm", "--rounds", "100000000"]);
    kernel.targets().set(work.id(), true);
    work.begin().expect("it works");
    // A stall is at most as long as the probes were attached at a time, which the host may draw out.
    let (mut attached, mut longest_attached) = (Instant::now(), Duration::ZERO);
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(300));
        for probe in probes() {
            kernel.detach(probe.name, REASON).expect("it was attached");
        }
        longest_attached = longest_attached.max(attached.elapsed());
        std::thread::sleep(PAUSE.max(2 * longest_attached));
        attached = Instant::now();
        for probe in probes().rev() {
            kernel.attach_again(probe.name).expect("it was attached before");
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let series: Vec<Series> =
        probes().flat_map(|probe| probe.parts()).flat_map(|(_, series)| series).collect();
    let (count, _, longest) = counted(&mut kernel, &series);
    longest_attached = longest_attached.max(attached.elapsed());
    assert!(count > 0);
    println!("the longest stall took {longest:?}, and {longest_attached:?} is the longest time");
    assert!(longest <= longest_attached, "{longest:?} is longer than it was attached at a time");
}

#[test]
fn the_wait_of_a_pause_is_not_counted_after_it() {
    let Some(_guard) = privileged::ready("detached runqueue") else { return };
    PLACES.into_iter().for_each(waits_with_a_pause);
}

fn waits_with_a_pause(state: ThreadState) {
    const WAITS: [Series; 2] = [Series::RunqueueWakeup, Series::RunqueuePreempt];
    let mut kernel = attach("runqueue", state);
    let mut work = start(&["contend", "--threads", "4", "--ms", "600000"]);
    let pid = work.id();
    kernel.targets().set(pid, true);
    let waited =
        || -> u64 { kernel_counters::run_delay_ns(pid).expect("it is there").values().sum() };
    work.begin().expect("it works");
    std::thread::sleep(PAUSE);
    kernel.detach("runqueue", REASON).expect("it was attached");
    let at_detach = waited();
    std::thread::sleep(PAUSE);
    // On a busy host each of these steps may take a while: the kernel's count is read on both sides.
    let before_attach = waited();
    let before = counted(&mut kernel, &WAITS).1;
    kernel.attach_again("runqueue").expect("it was attached before");
    let after_attach = waited();
    std::thread::sleep(PAUSE);
    let before_end = waited();
    let observed = counted(&mut kernel, &WAITS).1 - before;
    let after_end = waited();
    let paused = before_attach - at_detach;
    let (least, most) = (before_end - after_attach, after_end - before_attach);
    println!(
        "{paused} ns waited in the pause; after it {observed} ns observed, {least}..{most} real"
    );
    // At both ends each of the three threads that wait may be in the middle of its wait.
    assert!(paused > 0 && observed > 0);
    assert!(observed < most + paused / 2, "{observed} of {most}, {paused} in the pause");
    assert!(observed + paused / 2 > least, "{observed} of {least}, {paused} in the pause");
    drop(work);
}

#[test]
fn a_program_that_two_probes_share_goes_with_the_second() {
    let Some(_guard) = privileged::ready("detached sharers") else { return };
    const CALLS: [Series; 2] = [Series::Mprotect, Series::Madvise];
    let mut kernel = attach("mm_syscall,socket", ThreadState::Auto);
    let mut expected = 0;
    let mut calls = |kernel: &mut Kernel, attached: bool| {
        let mut work = start(&["memory-calls", "--rounds", &scaled_text(200)]);
        kernel.targets().set(work.id(), true);
        let counts = work.go().expect("it works");
        kernel.targets().set(work.id(), false);
        if attached {
            expected += number(&counts, "mprotect") + number(&counts, "madvise");
        }
        assert_eq!(counted(kernel, &CALLS).0, expected, "attached: {attached}");
        work.end().expect("it ends");
    };
    calls(&mut kernel, true);
    kernel.detach("socket", REASON).expect("it was attached");
    calls(&mut kernel, true);
    kernel.detach("mm_syscall", REASON).expect("it was attached");
    calls(&mut kernel, false);
    kernel.attach_again("socket").expect("it was attached before");
    calls(&mut kernel, false);
    kernel.attach_again("mm_syscall").expect("it was attached before");
    calls(&mut kernel, true);
    assert!(kernel.detach("task", REASON).is_err(), "the others need what follows the target");
    assert!(kernel.detach("fault", REASON).is_err(), "it was not asked for");
    assert!(kernel.attach_again("nothing").is_err());
}

#[test]
fn accepted_sockets_are_counted_for_the_socket_probe_alone() {
    let Some(_guard) = privileged::ready("accepted sockets without socket") else { return };
    let counters = |kernel: &mut Kernel| {
        let snapshot = kernel.snapshot(Some("target"));
        let counters = [Counter::SocketsAccepted, Counter::TargetSocketsAccepted];
        counters.map(|counter| snapshot.counters[counter as usize])
    };
    // What is new: while the probe was attached, others on the host accepted sockets too.
    let accepted = |kernel: &mut Kernel| {
        let before = counters(kernel);
        let mut work = start(&["sockets", "--pairs", "20"]);
        kernel.targets().set(work.id(), true);
        let counts = work.go().expect("it works");
        let after = counters(kernel);
        work.end().expect("it ends");
        assert!(number(&counts, "accepted") > 0);
        [after[0] - before[0], after[1] - before[1]]
    };
    assert_eq!(accepted(&mut attach("mm_syscall", ThreadState::Auto)), [0, 0]);
    let mut both = attach("mm_syscall,socket", ThreadState::Auto);
    both.detach("socket", REASON).expect("it was attached");
    assert_eq!(accepted(&mut both), [0, 0], "while it is detached");
    both.attach_again("socket").expect("it was attached before");
    assert!(accepted(&mut both)[1] > 0);
}

/// Faults by the tier that needs an event of each CPU.
fn attach_to_each_cpu() -> Kernel {
    let probes = ProbeOptions {
        selection: "fault".parse().expect("a probe"),
        tiers: ["fault=perf_event".parse::<ForcedTier>().expect("a tier")].into_iter().collect(),
        ..ProbeOptions::default()
    };
    let options = LoadOptions { has_target: true, ring_bytes: 1 << 20, probes, by_cgroup: true };
    Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// Lets the target have faults on this CPU alone: how many, by the kernel's own count.
fn faults_on(cpu: u32, kernel: &Kernel) -> u64 {
    let place = Placement { cpu: Some(cpu), ..Placement::default() };
    let arguments = ["storm", "--rounds", &scaled_text(2_000)];
    let mut work = Work::start(&programs(), &arguments, place).expect("it starts");
    kernel.targets().set(work.id(), true);
    let before = faults(work.id());
    work.go().expect("it works");
    kernel.targets().set(work.id(), false);
    let found = faults(work.id()) - before;
    work.end().expect("it ends");
    found
}

#[test]
fn a_cpu_that_comes_online_is_watched_and_the_gap_is_said() {
    let Some(_guard) = privileged::ready("CPU hotplug, faults") else { return };
    let cpu = match Cpu::offline(1) {
        Ok(cpu) => cpu,
        Err(reason) => return println!("{reason}"),
    };
    let mut kernel = attach_to_each_cpu();
    assert!(kernel.tend_cpus().is_empty(), "no CPU came");
    let mut expected = 0;
    for times in 1..=3 {
        if times > 1 {
            // Gone and back between two looks, so that the list of CPUs is the same.
            cpu.switch(false);
        }
        cpu.switch(true);
        let changes = kernel.tend_cpus();
        assert_eq!(changes.len(), 2, "detached and attached: {changes:?}");
        expected += faults_on(1, &kernel);
        equal("faults on CPU 1", counted(&mut kernel, &FAULTS).0, expected);
        let coverage = kernel.coverage().remove("fault").expect("a line of it");
        let detached = coverage.detached.expect("what was not seen is said");
        assert_eq!((coverage.state, detached.times), (ProbeState::Partial, times));
        assert_eq!(detached.reason, "CPU 1 came online");
        assert!(kernel.tend_cpus().is_empty(), "it is attached once");
    }
}

/// A CPU comes online while this process may open nothing, so that its event is refused.
fn refuse_cpu_1(kernel: &mut Kernel) {
    let usual = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(0), ..usual };
    setrlimit(Resource::Nofile, none).expect("a limit can be lowered");
    let changes = kernel.watch_cpus(&BTreeSet::from([1]), MonoNanos::now());
    let tried_again = kernel.watch_cpus(&BTreeSet::new(), MonoNanos::now());
    setrlimit(Resource::Nofile, usual).expect("and raised again");
    assert_eq!(changes.len(), 1, "detached, and not attached again: {changes:?}");
    assert!(tried_again.is_empty(), "nothing has changed: {tried_again:?}");
}

#[test]
fn a_cpu_that_cannot_be_watched_is_a_gap_until_it_can() {
    let Some(_guard) = privileged::ready("refused on a CPU") else { return };
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        return println!("needs two CPUs");
    }
    let mut kernel = attach_to_each_cpu();
    let (mut expected, mut times) = (0, 0);
    let detached = |kernel: &Kernel| {
        let coverage = kernel.coverage().remove("fault").expect("a line of it");
        assert_eq!(coverage.state, ProbeState::Partial, "{coverage:?}");
        coverage.detached.expect("what was not seen is said")
    };
    for closes_by_itself in [true, false] {
        refuse_cpu_1(&mut kernel);
        times += 1;
        let gap = detached(&kernel);
        assert!(gap.is_under_way() && gap.times == times, "{gap:?}");
        for word in ["CPU 1 came online", "cannot attach ", " on CPU 1: "] {
            assert!(gap.reason.contains(word), "{word}: {gap:?}");
        }
        assert!(kernel.is_attached("fault"), "it works on the other CPUs");
        assert!(faults_on(1, &kernel) > 0);
        assert_eq!(counted(&mut kernel, &FAULTS).0, expected, "faults on CPU 1 are not seen");
        expected += faults_on(0, &kernel);
        equal("faults on CPU 0", counted(&mut kernel, &FAULTS).0, expected);
        if closes_by_itself {
            let changes = kernel.tend_cpus();
            assert_eq!(changes.len(), 1, "attached: {changes:?}");
        } else {
            kernel.detach("fault", REASON).expect("it was attached");
            assert!(!kernel.is_attached("fault"));
            times += 1;
            assert_eq!(
                (detached(&kernel).reason.as_str(), detached(&kernel).times),
                (REASON, times)
            );
            kernel.attach_again("fault").expect("it was attached before");
        }
        assert!(!detached(&kernel).is_under_way());
        assert!(kernel.tend_cpus().is_empty(), "it is attached once");
        expected = counted(&mut kernel, &FAULTS).0 + faults_on(1, &kernel);
        equal("faults on CPU 1", counted(&mut kernel, &FAULTS).0, expected);
        expected = counted(&mut kernel, &FAULTS).0;
    }
}
