//! The readers of the kernel's books against each other: a wrong reader would make the exactness
//! tests prove nothing.

use std::path::Path;

use observer_tests::books;
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::privileged;
use observer_tests::process::{Placement, Programs};
use observer_tests::taskstats::{DelayAccounting, Taskstats};
use observer_tests::watch::Work;

fn programs() -> Programs {
    Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-work")))
}

#[test]
fn taskstats_and_schedstat_tell_the_same_run_delay() {
    let Some(_guard) = privileged::ready("taskstats and schedstat") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let arguments = ["contend", "--threads", "3", "--ms", "300"];
    let mut work =
        Work::start(&programs(), &arguments, Placement::default()).expect("the workload starts");
    work.go().expect("the workload works");
    let delays = books::run_delay_ns(work.id()).expect("the workload is there");
    assert_eq!(delays.len(), 4);
    for (tid, delay_ns) in &delays {
        let stats = taskstats.delays(*tid).expect("the thread is there");
        assert_eq!(stats.cpu_ns, *delay_ns, "thread {tid}");
    }
    // Three threads on one CPU for 300 ms: each waits two thirds of the time.
    let total_ns: u64 = delays.values().sum();
    assert!((400_000_000..900_000_000).contains(&total_ns), "{total_ns}");
    assert!(taskstats.delays(u32::MAX >> 1).is_err(), "no such thread");
    work.end().expect("the workload ends");
}

#[test]
fn a_workload_in_a_tight_cgroup_reclaims_and_survives() {
    let Some(_guard) = privileged::ready("tight cgroup") else { return };
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let file = directory.path().join("sparse");
    let arguments = ["reclaim", "--file", file.to_str().expect("UTF-8"), "--rounds", "2"];
    let name = format!("observer-books-{}", std::process::id());
    let cgroup = MemoryCgroup::create(&name).expect("a cgroup can be made");
    cgroup.limit(Some(24 << 20)).expect("a limit can be set");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = Work::start(&programs(), &arguments, place).expect("the workload starts");
    work.go().expect("the workload works");
    let delays = taskstats.delays(work.id()).expect("the workload is there");
    assert!(delays.reclaim_count > 100 && delays.reclaim_ns > 1_000_000, "{delays:?}");
    assert!(cgroup.usage_bytes().expect("a number") <= 24 << 20);
    assert_eq!(cgroup.oom_kills().expect("a number"), 0);
    work.end().expect("the workload ends");
    let directory = cgroup.directory().to_owned();
    drop(cgroup);
    assert!(!directory.exists(), "the cgroup is removed");
}
