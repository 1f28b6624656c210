//! Compares the readers of the kernel's counters with each other: with a wrong reader, the
//! exactness tests would prove nothing.

use observer_tests::cgroup::MemoryCgroup;
use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::taskstats::{DelayAccounting, Taskstats};
use observer_tests::trial;

#[test]
fn taskstats_and_schedstat_report_the_same_run_delay() {
    let Some(_guard) = privileged::ready("taskstats and schedstat") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let arguments = ["contend", "--threads", "3", "--ms", "300"];
    let mut work = trial::start(&arguments, Placement::default());
    let counts = work.go().expect("the workload works");
    // Both counters are read while the threads sleep: a run between the readings would be in one of
    // them only.
    trial::settle(work.id());
    let delays = kernel_counters::schedstat(work.id()).expect("the workload is there");
    assert_eq!(delays.len(), 4);
    for (tid, expected) in &delays {
        let stats = taskstats.delays(*tid).expect("the thread is there");
        assert_eq!(stats.cpu.total_ns, expected.delay_ns, "thread {tid}");
        assert_eq!(stats.cpu.count, expected.arrivals, "thread {tid}");
    }
    // Three threads on one CPU: each waits two thirds of the time, and longer where others run on
    // that CPU too, or the thread that started them waits as well.
    let total_ns: u64 = delays.values().map(|expected| expected.delay_ns).sum();
    let there_ns = trial::number(&counts, "there_ns");
    assert!((there_ns / 2..2 * there_ns).contains(&total_ns), "{total_ns} of {there_ns}");
    assert!(taskstats.delays(u32::MAX >> 1).is_err(), "no such thread");
    work.end().expect("the workload ends");
}

#[test]
fn a_workload_in_a_tight_cgroup_reclaims_and_survives() {
    let Some(_guard) = privileged::ready("tight cgroup") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let directory = trial::directory();
    let file = directory.path().join("sparse");
    let arguments = ["reclaim", "--file", file.to_str().expect("UTF-8"), "--rounds", "2"];
    let cgroup = MemoryCgroup::create(&trial::unique("counters")).expect("a cgroup can be made");
    cgroup.limit(Some(24 << 20)).expect("a limit can be set");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&arguments, place);
    work.go().expect("the workload works");
    let delays = taskstats.delays(work.id()).expect("the workload is there");
    assert!(delays.reclaim.count > 100 && delays.reclaim.total_ns > 1_000_000, "{delays:?}");
    assert!(cgroup.usage_bytes().expect("a number") <= 24 << 20);
    assert_eq!(cgroup.oom_kills().expect("a number"), 0);
    work.end().expect("the workload ends");
    let directory = cgroup.directory().to_owned();
    drop(cgroup);
    assert!(!directory.exists(), "the cgroup is removed");
}

#[test]
fn the_counters_of_a_thread_that_ended_are_sent() {
    let Some(_guard) = privileged::ready("counters of ended threads") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let exits = Taskstats::of_ended_tasks().expect("the kernel sends them");
    let mut work = trial::start(&["minor-faults", "--pages", "700"], Placement::default());
    work.go().expect("the workload works");
    let tid = work.id();
    assert!(exits.of(tid).expect("readable").is_empty(), "it lives");
    work.end().expect("the workload ends");
    let [last] = exits.of(tid).expect("readable")[..] else { panic!("it ended once") };
    assert!(last.minor_faults >= 700, "{last:?}");
}
