//! Tables that are too small for the number of events: losses are counted by kind, and never
//! silent. And cgroups of either version as the host lays them out.

use std::fs;
use std::path::Path;

use observer::host::cgroups::Cgroups;
use observer::kernel::ThreadPlaces;
use observer::probe::{ProbeOptions, ThreadState};
use observer_ebpf::wire::{SOCKET_SLOTS, TASK_SLOTS_MAX};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::daemon::Daemon;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::results::{Comparison, Held, Relation, case_held, not_applicable};
use observer_tests::sysctl::Sysctl;
use observer_tests::trial::{self, Run, Trial, number};

const FAULTS: &str = "observer_fault_latency_seconds_count";

#[test]
fn sockets_beyond_the_table_are_counted_one_by_one() {
    let Some(_guard) = privileged::ready("many sockets") else { return };
    let trial = Trial::new("more sockets than slots").losing(&["socket_slot"]);
    let directory = trial::directory();
    let count = u64::from(SOCKET_SLOTS) + 4000;
    let arguments = ["many-sockets", "--count", &count.to_string()];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    let run = &observed.runs[0];
    let held = Held::new(trial.test, "socket", &run.summary);
    let counter = |name: &str| {
        let found = run.probe("socket").counters.get(name).copied().unwrap_or_default();
        u64::try_from(found).unwrap_or_default()
    };
    for name in ["created", "released"] {
        held.equal(name, "the workload's own count", counter(name), count, 0.0);
    }
    let lost = run.target_lost("socket_slot");
    assert!(lost >= 4000, "{lost} lost: {:?}", run.summary.loss);
    let known = run.probe("socket").count + lost;
    held.equal("lifetimes + losses", "the workload's own count", known, count, 0.0);
    case_held(trial.test, "socket", &format!("{lost} of {count} counted as socket_slot"));
    work.end().expect("the workload ends");
}

/// A run on two live threads whose ids belong to the same entry of a table of threads, with the
/// number of their calls; or why there cannot be one.
fn collision(trial: &Trial, place: &str) -> Result<(Run, u64), String> {
    let _pid_max = Sysctl::at_least("kernel/pid_max", 3 * u64::from(TASK_SLOTS_MAX))?;
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() < 2) {
        return Err("needs two CPUs".into());
    }
    let directory = trial::directory();
    let rounds = trial::scaled(2000).max(500).to_string();
    let mut work = trial::start(&["collide", "--rounds", &rounds], Placement::default());
    let pid = work.id().to_string();
    // Faults lose begins in the same way, and would hide a loss that is not counted.
    let target = ["--pid", &pid, "--thread-state", place, "--probes", "mm_syscall"];
    let target = target.map(str::to_owned);
    let mut observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    work.end().expect("the workload ends");
    Ok((observed.runs.remove(0), number(&observed.counts, "calls")))
}

fn memory_calls(run: &Run) -> u64 {
    run.count("mm_syscall", "mmap") + run.count("mm_syscall", "munmap")
}

#[test]
fn threads_that_share_a_slot_lose_what_they_say_they_lose() {
    let Some(_guard) = privileged::ready("shared slots") else { return };
    // Of what was overwritten only the other half is seen.
    let trial = Trial::new("threads that share a slot").losing(&[
        "task_slot",
        "end_without_begin",
        "begin_without_end",
    ]);
    let (run, calls) = match collision(&trial, "tables") {
        Ok(found) => found,
        Err(reason) => {
            return not_applicable(trial.test, "mm_syscall", "calls + losses", &reason);
        }
    };
    let held = Held::new(trial.test, "mm_syscall", &run.summary);
    // Another process may lose a stall to one of the many new ids as well.
    let lost = run.target_lost("task_slot");
    let counted = memory_calls(&run);
    assert!(lost > 0, "threads shared a slot: {:?}", run.summary.loss);
    let against = "the callers' own count";
    held.at_most("calls", against, counted, calls, 0.01);
    held.at_least("calls + losses", against, counted + lost, calls, 0.0);
    case_held(trial.test, "mm_syscall", &format!("{lost} of {calls} counted as task_slot"));
}

#[test]
fn threads_with_storage_of_their_own_share_nothing() {
    let Some(_guard) = privileged::ready("task-local storage") else { return };
    let trial = Trial::new("threads with storage of their own");
    let options = ProbeOptions { thread_state: ThreadState::Storage, ..ProbeOptions::default() };
    if let Some(why) = ThreadPlaces::of_host(&options).why() {
        println!("no task-local storage here: {why}");
        return;
    }
    match collision(&trial, "storage") {
        Ok((run, calls)) => {
            println!("{} calls counted, {calls} made", memory_calls(&run));
            // Others on the host may lose something to their own storage.
            let lost = ["task_slot", "thread_storage"].map(|kind| run.target_lost(kind));
            assert_eq!(lost, [0, 0], "{:?}", run.summary.loss);
            // The process that starts the two makes a few calls as well.
            assert!((calls..=calls + calls / 100).contains(&memory_calls(&run)));
        }
        Err(reason) => println!("no ids that collide: {reason}"),
    }
}

/// One workload in a cgroup, as the daemon's row of that cgroup has it.
fn row_of_a_cgroup(test: &str) {
    let cgroup = MemoryCgroup::create(&trial::unique("row")).expect("a cgroup can be made");
    let name = cgroup.directory().file_name().expect("a name").to_string_lossy().into_owned();
    let daemon = Daemon::start(&[]);
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&["minor-faults", "--pages", "5000"], place);
    work.go().expect("the workload works");
    let expected = cgroup.stat().expect("memory.stat").get("pgfault").expect("pgfault");
    let metrics = daemon.scrape();
    let held = Held::of_tier(test, "fault", &metrics.tier("fault"));
    let row = format!("cgroup=\"/{name}\"");
    held.check(&Comparison {
        metric: "minor + major of the cgroup",
        against: &format!("memory.stat pgfault, version {}", cgroup.version()),
        relation: Relation::Equal,
        observed: metrics.count(FAULTS, &[&row]),
        expected,
        tolerance: 0.02,
        slack: MemoryCgroup::late_events(),
    });
    work.end().expect("the workload ends");
    daemon.end();
}

#[test]
fn a_cgroup_has_its_row_however_the_host_lays_cgroups_out() {
    let Some(_guard) = privileged::ready("cgroup layout") else { return };
    let layout = Cgroups::read().layout().name();
    row_of_a_cgroup(&format!("cgroups, {layout}"));
}

/// A memory hierarchy of version 1, mounted for a while.
struct VersionOne;

impl VersionOne {
    const PLACE: &str = "/tmp/observer-test-v1";

    fn mount() -> Result<Self, String> {
        let cgroups = Cgroups::read();
        let Some(unified) = cgroups.unified_mount_point() else {
            return Err("version 2 is not mounted".into());
        };
        let control = unified.join("cgroup.subtree_control");
        // Controllers of version 2 in use cannot be moved.
        let _ = fs::write(&control, "-memory");
        let place = Path::new(Self::PLACE);
        fs::create_dir_all(place).map_err(|error| error.to_string())?;
        let mounted = rustix::mount::mount(
            "observer-test",
            place,
            "cgroup",
            rustix::mount::MountFlags::empty(),
            Some(c"memory"),
        );
        match mounted {
            Ok(()) => Ok(Self),
            Err(error) => {
                let _ = fs::write(&control, "+memory");
                Err(format!("this kernel does not give version 1 the memory controller: {error}"))
            }
        }
    }
}

impl Drop for VersionOne {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::empty();
        if let Err(error) = rustix::mount::unmount(Self::PLACE, flags) {
            eprintln!("{} stays mounted: {error}", Self::PLACE);
        }
    }
}

#[test]
fn a_cgroup_of_version_1_has_its_row_beside_version_2() {
    let Some(_guard) = privileged::ready("cgroup version 1") else { return };
    let test = "cgroups, version 1 mounted beside version 2";
    if Cgroups::read().version_1("memory").is_some() {
        let reason = "memory is on version 1 already: the other test is this one";
        return not_applicable(test, "fault", "minor + major of the cgroup", reason);
    }
    if !trial::in_guest() {
        let reason = "takes the memory controller from everybody: done in guests only";
        return not_applicable(test, "fault", "minor + major of the cgroup", reason);
    }
    match VersionOne::mount() {
        Ok(_mounted) => row_of_a_cgroup(test),
        Err(reason) => not_applicable(test, "fault", "minor + major of the cgroup", &reason),
    }
}
