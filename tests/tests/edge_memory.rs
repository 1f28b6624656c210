//! Faults that are tried again, end in a signal, or have a reclaim inside.

use std::ops::Range;

use observer::model::Event;
use observer_ebpf::wire::{FAULT_MAJOR, FaultRecord};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::results::{Comparison, Held, Relation, case_held, not_applicable};
use observer_tests::taskstats::{DelayAccounting, Taskstats};
use observer_tests::trial::{self, Observed, Run, Trial, number, scaled_text};
use observer_tests::watch::Work;
use tempfile::TempDir;

fn read(pid: u32) -> kernel_counters::Faults {
    kernel_counters::faults(pid).expect("the workload is there")
}

/// Whether a thread can bring the pages of others; why not.
fn can_serve_faults() -> Result<(), String> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(format!("userfaultfd: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else's.
    unsafe { libc::close(fd as i32) };
    Ok(())
}

#[test]
fn a_fault_that_is_tried_again_counts_once() {
    let Some(_guard) = privileged::ready("retried faults") else { return };
    let trial = Trial::new("retried faults, and kills in a fault");
    if let Err(reason) = can_serve_faults() {
        return not_applicable(trial.test, "fault", "major", &reason);
    }
    let directory = trial::directory();
    let mut work = trial::start(&["userfault", "--pages", &scaled_text(500)], Placement::default());
    let observed = trial.observe(&mut work, directory.path(), read);
    let faults = observed.after.since(observed.before);
    let retried = number(&observed.counts, "retried");
    let majors = faults.major + faults.major_children;
    assert!(faults.major + faults.minor >= retried, "{faults:?}");
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            let (minor, major) = (run.count("fault", "minor"), run.count("fault", "major"));
            let all = faults.minor + faults.minor_children + majors;
            let against = "/proc/PID/stat minflt + majflt";
            held.equal("minor + major, retried", against, minor + major, all, 0.01);
            // Where each mapping has a lock of its own (Linux 6.7), a fault that is served by
            // userfaultfd is not retried. A few others may be major on any kernel.
            if majors > retried / 2 {
                held.equal("major, retried", "/proc/PID/stat majflt", major, majors, 0.01);
            }
        },
        &[],
    );
    work.end().expect("the workload ends");
}

/// A workload whose faults another thread serves, watched by one observer for each tier of `fault`. It
/// is still there. `None` where there can be no such faults.
fn with_served_faults(test: &'static str, arguments: &[&str]) -> Option<Served> {
    if let Err(reason) = can_serve_faults() {
        println!("no faults to serve: {reason}");
        return None;
    }
    let trial = Trial::with(test, trial::offered_tiers("fault").into_iter().map(Some).collect());
    let directory = trial::directory();
    let mut work = trial::start(arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), read);
    Some(Served { trial, observed, work, _directory: directory })
}

struct Served {
    trial: Trial,
    observed: Observed<kernel_counters::Faults>,
    work: Work,
    /// With the runs.
    _directory: TempDir,
}

impl Served {
    /// Each run, and its tier.
    fn runs(&self) -> impl Iterator<Item = (&Option<String>, &Run)> {
        self.trial.tiers.iter().zip(&self.observed.runs)
    }
}

/// Records of faults at these addresses: length and flags.
fn records(run: &Run, addresses: Range<u64>) -> Vec<Event> {
    let at = |event: &Event| {
        event.record().is_some_and(|record: FaultRecord| addresses.contains(&record.address))
    };
    run.events().into_iter().filter(at).collect()
}

#[test]
fn a_retried_major_fault_has_one_record() {
    let Some(_guard) = privileged::ready("records of retried faults") else { return };
    let pages = trial::scaled(200).max(50);
    let arguments = ["kernel-userfault", "--pages", &pages.to_string()];
    let Some(served) = with_served_faults("records of retried faults", &arguments) else { return };
    let observed = &served.observed;
    let faults = observed.after.since(observed.before);
    assert!(faults.major >= pages, "the kernel tries each fault again: {faults:?}");
    let address = number(&observed.counts, "address");
    let addresses = address..address + number(&observed.counts, "bytes");
    for (tier, run) in served.runs() {
        assert_eq!(run.count("fault", "major"), faults.major, "{tier:?}");
        let records = records(run, addresses.clone());
        assert_eq!(records.len() as u64, pages, "one record a fault: {tier:?}");
        let majors = records.iter().filter(|event| event.flags & FAULT_MAJOR != 0).count();
        assert_eq!(majors as u64, pages, "{tier:?}");
        let sent = &run.summary.records["fault"];
        assert_eq!((sent.delivered, sent.lost), (sent.sent, 0), "{tier:?}");
        let kept = run.events().iter().filter(|event| event.name() == "fault").count();
        assert_eq!(kept as u64, sent.delivered, "{tier:?}");
    }
    served.work.end().expect("the workload ends");
}

#[test]
fn a_fault_that_was_given_up_lends_no_time_to_the_next_one() {
    let Some(_guard) = privileged::ready("faults given up") else { return };
    let Some(served) = with_served_faults("faults given up", &["stopped-fault"]) else { return };
    let counts = &served.observed.counts;
    assert_eq!(counts["same"], true, "{counts:?}");
    let address = number(counts, "address");
    let continued_ns = number(counts, "continued_ns");
    for (tier, run) in served.runs() {
        let records = records(run, address..address + 1);
        assert_eq!(records.len(), 1, "{tier:?}");
        let start_ns = records[0].start().0;
        assert!(start_ns >= continued_ns, "{tier:?}: {start_ns}, continued at {continued_ns}");
    }
    served.work.end().expect("the workload ends");
}

#[test]
fn a_fault_that_ends_in_a_signal_is_not_a_page() {
    let Some(_guard) = privileged::ready("faults that end in signals") else { return };
    let trial = Trial::new("faults that end in signals");
    let directory = trial::directory();
    let file = directory.path().join("short");
    let file = file.to_str().expect("a path in UTF-8");
    let arguments = ["bad-faults", "--file", file, "--rounds", &scaled_text(500)];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), read);
    let faults = observed.after.since(observed.before);
    let all = faults.minor + faults.minor_children + faults.major + faults.major_children;
    let (segv, bus) = (number(&observed.counts, "segv"), number(&observed.counts, "bus"));
    assert!(segv > 0 && bus > 0 && all >= segv + bus, "{:?}", observed.counts);
    trial.hold(
        &observed,
        "fault",
        |held, run| {
            let found = run.count("fault", "minor") + run.count("fault", "major");
            held.at_least("minor + major", "/proc/PID/stat minflt + majflt", found, all, 0.01);
            // memory.stat also counts a fault that fails because there is no page (SIGBUS), and so
            // does the tier that ends faults there.
            let against = "/proc/PID/stat minflt + majflt, and SIGBUS";
            held.at_most("minor + major", against, found, all + bus, 0.01);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

fn inside(inner: &Event, outer: &Event) -> bool {
    inner.tid == outer.tid && outer.start() <= inner.start() && inner.end <= outer.end
}

/// Reclaims that lie wholly within one of `outer`, and reclaims that cross a border of one.
fn nesting(reclaims: &[&Event], outer: &[&Event]) -> (usize, usize) {
    let mut within = 0;
    let mut across = 0;
    for reclaim in reclaims {
        let overlapping = |other: &&&Event| {
            other.tid == reclaim.tid && other.start() < reclaim.end && reclaim.start() < other.end
        };
        let others: Vec<_> = outer.iter().filter(overlapping).collect();
        within += others.iter().filter(|outer| inside(reclaim, outer)).count();
        across += others.iter().filter(|outer| !inside(reclaim, outer)).count();
    }
    (within, across)
}

#[test]
fn a_reclaim_inside_a_fault_inside_a_call_is_each_once() {
    let Some(_guard) = privileged::ready("nested stalls") else { return };
    let trial = Trial::new("reclaim inside a fault inside a call");
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let cgroup = MemoryCgroup::create(&trial::unique("nested")).expect("a cgroup can be made");
    cgroup.limit(Some(16 << 20)).expect("a limit can be set");
    let file = directory.path().join("sparse");
    let file = file.to_str().expect("a path in UTF-8");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let rounds = trial::scaled(1500).max(300).to_string();
    let mut work = trial::start(&["nested", "--file", file, "--rounds", &rounds], place);
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        (read(pid), taskstats.delays(pid).expect("the workload is there"))
    });
    let (before, after) = (&observed.before, &observed.after);
    let counted = after.1.reclaim.since(before.1.reclaim);
    let faults = after.0.since(before.0);
    let calls = number(&observed.counts, "mmap");
    // Pages that mmap(2) brings itself are no exceptions.
    let exceptions = faults.minor - number(&observed.counts, "populated");
    trial.hold(
        &observed,
        "reclaim",
        |held, run| {
            let found = run.probe("reclaim");
            let against = "taskstats freepages_delay_total";
            held.check(&Comparison {
                metric: "sum_ns",
                against,
                relation: Relation::Equal,
                observed: found.sum_ns,
                expected: counted.total_ns,
                tolerance: trial::between_clocks(0.01),
                // From where the kernel reads its clock to the tracepoint, with the programs there.
                slack: counted.count * observed.switch_ns,
            });
            let held = Held::new(trial.test, "fault", &run.summary);
            let minor = run.count("fault", "minor");
            // At the kernel's own function for faults those of mmap(2) are seen as well.
            let tier = run.probe("fault").tier.as_deref().unwrap_or_default();
            if ["fentry", "kprobe"].iter().any(|name| tier.starts_with(name)) {
                held.equal("minor", "/proc/PID/stat minflt", minor, faults.minor, 0.02);
            } else {
                let against = "/proc/PID/stat minflt, less those of mmap(2)";
                held.equal("minor", against, minor, exceptions, 0.02);
            }
            let held = Held::new(trial.test, "mm_syscall", &run.summary);
            let found = run.count("mm_syscall", "mmap");
            held.equal("mmap", "the caller's own count", found, calls, 0.01);
            nested(&trial, run);
        },
        &[],
    );
    work.end().expect("the workload ends");
}

/// Asserts that a reclaim lies completely within the stall that contains it: only then can the
/// innermost one get the time.
fn nested(trial: &Trial, run: &Run) {
    let events = run.events();
    let of = |kind: &str| -> Vec<&Event> {
        events.iter().filter(|event| event.name() == kind).collect()
    };
    let (reclaims, faults, calls) = (of("reclaim"), of("fault"), of("mm_syscall"));
    let (in_faults, across_faults) = nesting(&reclaims, &faults);
    let (in_calls, across_calls) = nesting(&reclaims, &calls);
    let what = format!(
        "{} reclaims: {in_faults} inside faults, {in_calls} inside memory calls, {} across a border",
        reclaims.len(),
        across_faults + across_calls
    );
    assert_eq!(across_faults + across_calls, 0, "{what}");
    assert!(in_faults > 0 && in_calls > 0, "both happened: {what}");
    case_held(trial.test, "reclaim", &what);
}
