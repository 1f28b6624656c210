//! `observer drill` as a user runs it: what it prints, its exit codes, and that it leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::drill::rows::INJECTIONS;
use observer::drill::services::{Real, Service};
use observer::error::Exit;
use observer::model::Outcome;
use observer_tests::command::{Finished, run};
use observer_tests::process::{Placement, Running, command_lines_with};
use observer_tests::{privileged, trial};
use rustix::process::Signal;
use serde_json::Value;

/// Much longer than the drills take: the host may be slow.
const TIMEOUT: Duration = Duration::from_secs(400);

fn observer(arguments: &[&str]) -> Command {
    let mut command = Command::new(trial::programs().observer);
    command.arg("drill").args(arguments);
    command
}

fn finished(arguments: &[&str]) -> Finished {
    run(&mut observer(arguments), TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
}

/// Directories of cgroups that a drill made.
fn cgroups(process: u32) -> Vec<PathBuf> {
    let name = format!("observer-drill-{process}");
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = hierarchies.map(|entry| entry.path().join(&name)).collect();
    places.push(Path::new("/sys/fs/cgroup").join(&name));
    places.retain(|place| place.is_dir());
    places
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Plays drills quickly and keeps their files; what observer said, and its report.
fn played(kept: &Path, only: &[&str]) -> (Finished, Value) {
    let mut arguments = vec!["--quick", "--json", "--seed", "11", "--keep", text(kept)];
    arguments.extend(only.iter().flat_map(|drill| ["--only", *drill]));
    let told = finished(&arguments);
    let report = serde_json::from_str(&told.stdout).unwrap_or_else(|error| {
        panic!("not JSON: {error}: {told:#?}");
    });
    println!("{}", told.stderr);
    (told, report)
}

/// What was kept of a drill holds a run that observer can read.
fn is_readable(run_directory: &Path) {
    let mut report = Command::new(trial::programs().observer);
    report.arg("report").arg(run_directory.join("run"));
    run(&mut report, TIMEOUT).expect("a report").assert_code(0);
}

/// A share of the whole.
fn is_share(value: &Value) -> bool {
    value.as_f64().is_some_and(|share| (0.0..=1.0).contains(&share))
}

#[test]
fn drills_are_judged_and_leave_nothing_behind() {
    let Some(_guard) = privileged::ready("drills") else { return };
    let directory = trial::directory();
    let kept = directory.path().join("kept");
    let (told, report) = played(&kept, &["event-loop/nothing", "event-loop/sleep"]);

    let drills = report["drills"].as_array().expect("drills");
    let names: Vec<_> = drills
        .iter()
        .map(|drill| (drill["service"].as_str(), drill["injection"].as_str()))
        .collect();
    let pair = |service, injection| (Some(service), Some(injection));
    let wanted = [pair("event-loop", "nothing"), pair("event-loop", "sleep")];
    assert_eq!(names, wanted);
    assert_eq!(report["seed"], 11);

    // Every drill has one status, and the exit code says what they add up to.
    let count = |status: &str| report["counts"][status].as_u64().expect("a count");
    let all = ["right", "missed", "too_weak", "skipped", "failed"].map(count);
    assert_eq!(all.iter().sum::<u64>(), drills.len() as u64, "{report:#}");
    assert_eq!((count("skipped"), count("failed")), (0, 0), "{report:#}");
    let good = count("right") > 0 && count("missed") == 0;
    told.assert_code(if good { 0 } else { Exit::DrillMissed as u8 });
    let in_table: u64 = report["confusion"]
        .as_object()
        .expect("a table")
        .values()
        .flat_map(|named| named.as_object().expect("a row").values())
        .map(|number| number.as_u64().expect("a number"))
        .sum();
    assert_eq!(in_table, count("right") + count("missed"), "{report:#}");

    for drill in drills {
        assert!(drill["named"].is_string(), "{drill:#}");
        assert!(drill["p99_ns"].as_u64() > Some(0), "{drill:#}");
        let truth = &drill["truth_share"];
        let injected = drill["injection"] != "nothing";
        assert!(if injected { is_share(truth) } else { truth.is_null() }, "{drill:#}");
    }
    // A sleep of 25 ms in 3 % of the requests is more than what a busy host does to a millisecond of work.
    // Where it is not, the truth says so, and a host that is too busy for an answer gets none.
    let sleep = &drills[1];
    let is_told = sleep["named"] != Outcome::Inconclusive.name();
    if is_told && sleep["truth_share"].as_f64() > Some(0.7) {
        assert_eq!(sleep["named"], "service_wait", "{sleep:#}");
        let share = sleep["share"].as_f64().expect("a share");
        let truth = sleep["truth_share"].as_f64().expect("a share");
        assert!((share - truth).abs() < 0.25, "{sleep:#}");
    }

    // What is kept is private, and is a run that observer can read.
    let mode = |path: &Path| fs::metadata(path).expect("kept").permissions().mode() & 0o777;
    assert_eq!(mode(&kept), 0o700);
    let run_directory = kept.join("event-loop-sleep-11");
    assert_eq!(mode(&run_directory.join("service.csv")), 0o600);
    is_readable(&run_directory);
    assert_eq!(command_lines_with("drill-service"), Vec::<String>::new());
}

/// Programs that nobody wrote for this test: where this host has none, that is said, and is no failure.
/// `cargo xtask drill` plays the other ones.
#[test]
fn programs_of_the_host_are_judged_or_skipped() {
    let Some(_guard) = privileged::ready("drills with programs of the host") else { return };
    let directory = trial::directory();
    let kept = directory.path().join("kept");
    let (told, report) = played(&kept, &["nginx/stop-service", "node/sleep"]);
    for (service, injection, cause, real) in [
        ("nginx", "stop-service", "stopped", Real::Nginx),
        ("node", "sleep", "service_wait", Real::Node),
    ] {
        let drills = report["drills"].as_array().expect("drills");
        let drill = drills.iter().find(|one| one["service"] == service).expect("a drill");
        assert_eq!(drill["injection"], injection);
        if real.program().is_none() {
            assert_eq!(drill["status"], "skipped", "{drill:#}");
            let reason = drill["reason"].as_str().expect("a reason");
            assert!(reason.contains(real.program_name()), "{reason}");
            continue;
        }
        assert!(drill["named"].is_string() && drill["p99_ns"].as_u64() > Some(0), "{drill:#}");
        // All injections make requests later by far more than what a busy host does to such small ones.
        // Where they do not, the truth says so, and a host that is too busy for an answer gets none.
        assert!(is_share(&drill["truth_share"]), "{drill:#}");
        let is_told = drill["named"] != Outcome::Inconclusive.name();
        if is_told && drill["truth_share"].as_f64() > Some(0.7) {
            assert_eq!(drill["named"], cause, "{drill:#}");
        }
        let run_directory = kept.join(format!("{service}-{injection}-11"));
        is_readable(&run_directory);
    }
    assert_eq!(command_lines_with(text(&kept)), Vec::<String>::new());
    // The worker of nginx has ended too, or its cgroup would be in use.
    assert!(!told.stderr.contains("cannot remove cgroup"), "{}", told.stderr);
    assert_eq!(command_lines_with("drill-service"), Vec::<String>::new());
}

#[test]
fn an_interrupted_drill_ends_what_it_started() {
    let Some(_guard) = privileged::ready("interrupted drill") else { return };
    let mut command = observer(&["--only", "thread-per-connection/stop-service"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Running::start(&mut command, Placement::default()).expect("observer");
    let id = process.id();
    let work = std::env::temp_dir().join(format!("observer-drill-{id}"));
    let deadline = Instant::now() + TIMEOUT;
    while command_lines_with("drill-service").is_empty() || cgroups(id).is_empty() {
        assert!(process.ended().expect("a state").is_none(), "it has ended already");
        assert!(Instant::now() < deadline, "no service was started");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(work.is_dir(), "{}", work.display());
    process.signal(Signal::INT);
    let status = process.wait(TIMEOUT).expect("it ends");
    assert_eq!(status.code(), Some(i32::from(Exit::Interrupted as u8)));
    assert_eq!(command_lines_with("drill-service"), Vec::<String>::new());
    assert_eq!(cgroups(id), Vec::<PathBuf>::new());
    assert!(!work.exists(), "{} is left", work.display());
}

#[test]
fn the_list_needs_no_root_and_nonsense_is_refused() {
    let listed = finished(&["--list"]);
    listed.assert_code(0);
    for row in INJECTIONS {
        assert!(listed.stdout.contains(row.name), "{}", row.name);
    }
    for service in Service::ALL {
        assert!(listed.stdout.contains(service.name()), "{}", service.name());
    }
    for bad in [["--only", "pool/no-such"], ["--runs", "0"], ["--only", "no-such/hog"]] {
        assert_eq!(finished(&bad).code, Some(i32::from(Exit::Usage as u8)), "{bad:?}");
    }
}
