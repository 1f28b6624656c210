//! The limits of CPU time on the target's cgroups, compared with the kernel's counters about them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use observer::model::{CpuLimitSummary, EndReason};
use observer::output::rundir::RunDir;
use observer_tests::cgroup::CpuCgroup;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{directory, programs, unique};
use observer_tests::watch::Watch;

/// Time in which much is counted.
const WHILE: Duration = Duration::from_secs(3);
const PERIOD_US: u64 = 100_000;

/// A cgroup that may use so much CPU time in each period; `None` where that cannot be limited.
fn limited(quota_us: u64) -> Option<CpuCgroup> {
    match CpuCgroup::create(&unique("limited")) {
        Ok(cgroup) => {
            cgroup.limit(quota_us, PERIOD_US).expect("the kernel takes the limit");
            Some(cgroup)
        }
        Err(reason) => {
            println!("{reason}");
            None
        }
    }
}

/// A process that uses all CPU time it can get, and has used up its limit before.
fn busy(cgroup: &CpuCgroup) -> Running {
    let place = Placement { throttled: Some(cgroup), ..Placement::default() };
    let mut command = Command::new("sh");
    let busy = Running::start(command.args(["-c", "while :; do :; done"]), place);
    let busy = busy.expect("it starts");
    while counters(cgroup)[1] == 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    busy
}

fn watch(target: &Running, directory: &Path) -> Watch {
    Watch::start(&programs(), &["--pid", &target.id().to_string()], directory).expect("it attaches")
}

/// What the kernel has counted: periods, throttled periods, time of that, CPU time.
fn counters(cgroup: &CpuCgroup) -> [u64; 4] {
    let stat = cgroup.stat().expect("cpu.stat");
    let of = |key: &str| stat.get(key).expect("a counter");
    let throttled_ns = cgroup.throttled_ns().expect("a time");
    [of("nr_periods"), of("nr_throttled"), throttled_ns, cgroup.usage_ns().expect("a time")]
}

#[test]
fn the_limits_of_a_cgroup_and_of_the_one_above_are_counted_as_the_kernel_does() {
    let Some(_guard) = privileged::ready("CPU limits") else { return };
    let Some(outer) = limited(60_000) else { return };
    let inner = outer.create_below("inner").expect("a cgroup");
    inner.limit(20_000, PERIOD_US).expect("the kernel takes the limit");
    let busy = busy(&inner);
    let both = [&outer, &inner];
    let read = || both.map(counters);
    let files = directory();
    let before = read();
    let watch = watch(&busy, files.path());
    let begun = read();
    std::thread::sleep(WHILE);
    let ending = read();
    let run = watch.run.clone();
    let (summary, info) = watch.finish().expect("a run");
    let after = read();
    drop(busy);

    let top = outer.directory().parent().expect("a mount point");
    assert_eq!(summary.conditions.cpu_limits.len(), 2, "{:?}", summary.conditions.cpu_limits);
    for (index, quota_us) in [60_000, 20_000].into_iter().enumerate() {
        let limit = &summary.conditions.cpu_limits[index];
        let name = both[index].directory().strip_prefix(top).expect("it is below");
        assert_eq!(limit.cgroup, format!("/{}", name.display()));
        assert_eq!((limit.limit.quota_us, limit.limit.period_us), (quota_us, PERIOD_US));
        assert_eq!((limit.version, limit.changed), (both[index].version(), false));
        // The kernel's counters, read around observer's readings and between them.
        let CpuLimitSummary { periods, throttled_periods, throttled_ns, .. } = *limit;
        let usage_ns = limit.usage_ns.expect("the host counts it");
        let found = [periods, throttled_periods, throttled_ns, usage_ns];
        for (counter, found) in found.into_iter().enumerate() {
            let least = ending[index][counter] - begun[index][counter];
            let most = after[index][counter] - before[index][counter];
            println!("{}, counter {counter}: {least} <= {found} <= {most}", limit.cgroup);
            assert!((least..=most).contains(&found), "{limit:?}");
        }
    }
    let [of_outer, of_inner] = &summary.conditions.cpu_limits[..] else { unreachable!("two") };
    assert_eq!(of_outer.throttled_periods, 0, "the other limit is tighter");
    assert!(of_inner.throttled_periods > 0 && of_inner.throttled_ns > 0, "{of_inner:?}");
    assert_eq!(
        (&info.conditions.cpu_limits, info.conditions.cpu_limits_beyond),
        (&summary.conditions.cpu_limits, 0)
    );
    let report = Command::new(programs().observer).arg("report").arg(&run).output();
    let report = String::from_utf8(report.expect("a report").stdout).expect("UTF-8");
    assert!(report.contains("\nCPU limits\n"), "{report}");
    assert!(report.contains("20.0 ms of CPU time in each 100 ms (0.20 CPUs)"), "{report}");
    drop(inner);
}

#[test]
fn the_last_reading_counts_of_a_cgroup_that_ends_with_the_target() {
    let Some(_guard) = privileged::ready("CPU limit of a removed cgroup") else { return };
    let Some(cgroup) = limited(20_000) else { return };
    let busy = busy(&cgroup);
    let files = directory();
    let before = counters(&cgroup);
    let mut watch = watch(&busy, files.path());
    let run = RunDir::open(&watch.run).expect("a directory");
    let deadline = Instant::now() + Duration::from_secs(120);
    let read = loop {
        let info = run.read_run().expect("run.json");
        let periods = info.conditions.cpu_limits.first().map_or(0, |limit| limit.throttled_periods);
        if periods > 0 {
            break periods;
        }
        assert!(Instant::now() < deadline, "the limit is read while the run goes on: {info:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(busy);
    let after = counters(&cgroup);
    drop(cgroup);
    watch.process.wait(Duration::from_secs(120)).expect("it ends with its target");
    let (summary, info) = watch.finish().expect("a run");
    assert_eq!(info.end_reason, EndReason::TargetExit);
    let [limit] = &summary.conditions.cpu_limits[..] else {
        panic!("{:?}", summary.conditions.cpu_limits)
    };
    let most = after[1] - before[1];
    assert!((read..=most).contains(&limit.throttled_periods), "{read} to {most}: {limit:?}");
    assert!(!limit.changed, "it is gone, and its limit was not lifted: {limit:?}");
}

#[test]
fn doctor_warns_of_a_limit_on_observer_itself() {
    let Some(_guard) = privileged::ready("CPU limit on observer") else { return };
    let Some(cgroup) = limited(150_000) else { return };
    let files = directory();
    let path = files.path().join("json");
    let mut command = Command::new(programs().observer);
    command.args(["doctor", "--json"]).stdout(std::fs::File::create(&path).expect("a file"));
    let place = Placement { throttled: Some(&cgroup), ..Placement::default() };
    let mut doctor = Running::start(&mut command, place).expect("it starts");
    doctor.wait(Duration::from_secs(120)).expect("it ends");
    let found = std::fs::read(&path).expect("its output");
    let found: serde_json::Value = serde_json::from_slice(&found).expect("JSON");
    let checks = found["checks"].as_array().expect("checks");
    let check = checks.iter().find(|check| check["id"] == "cpu_throttling").expect("the check");
    assert_eq!(check["state"], "limited");
    let value = check["value"].as_str().expect("text");
    let directory = cgroup.directory().display().to_string();
    assert!(value.starts_with("1.50 CPUs by ") && value.contains(&directory), "{value}");
}
