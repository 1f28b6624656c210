//! The three known answers, as `cargo xtask demo` plays them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Programs;
use observer_tests::scenario::{Finding, Scenario, play};
use observer_tests::trial;
use observer_tests::watch::lost_by_target;

/// A generator that sends this late does not get the processor time it needs, and the answer may
/// then differ from the known one.
const LATE_P99_MAX: Duration = Duration::from_millis(5);
/// The same is true if the hypervisor gives at least this part of the processor time to others.
const STOLEN_MAX: f64 = 0.02;
/// Times that a scenario is played on a host that is too busy for it.
const ATTEMPTS: usize = 3;

/// Plays it once; returns what went wrong, and whether the host was too busy.
fn played(programs: &Programs, scenario: Scenario, at: &Path) -> Result<Finding, (String, bool)> {
    let (before, begun) = (kernel_counters::stolen(), Instant::now());
    let log = at.join("log");
    let played = play(programs, scenario, &at.join("run"), Some(&log));
    let stolen = (kernel_counters::stolen() - before).as_secs_f64()
        / begun.elapsed().as_secs_f64()
        / std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    let late_p99 = played.as_ref().map_or(Duration::ZERO, |finding| {
        Duration::from_nanos(finding.summary.samples.lateness_ns.p99)
    });
    println!("{}: stolen {:.2} %, late {late_p99:?}", scenario.name(), stolen * 100.0);
    played.and_then(|finding| finding.judge().map(|()| finding)).map_err(|error| {
        let printed = fs::read_to_string(&log).unwrap_or_default();
        let said = format!("{}: {error}\nobserver printed:\n{printed}", scenario.name());
        (said, stolen > STOLEN_MAX || late_p99 > LATE_P99_MAX)
    })
}

fn is_named(scenario: Scenario) {
    let Some(_guard) = privileged::ready(scenario.name()) else { return };
    let programs = trial::programs();
    let finding = (1..=ATTEMPTS).find_map(|attempt| {
        let directory = trial::directory();
        match played(&programs, scenario, directory.path()) {
            Ok(finding) => Some(finding),
            Err((said, true)) if attempt < ATTEMPTS => {
                println!("the host is too busy, once more: {said}");
                None
            }
            Err((said, _)) => {
                // Kept for analysis.
                let kept = directory.keep();
                panic!("{said}\nrun directory: {}/run", kept.display())
            }
        }
    });
    let finding = finding.expect("the last attempt ends in one of both");
    println!("{}", finding.lines().join("\n"));
    // Others on the host may lose something.
    let loss = &finding.summary.loss;
    assert!(lost_by_target(loss).is_empty(), "{loss:?}");
    let cause = finding.expected_cause().expect("it is among the causes");
    assert!(cause.share > 0.3, "{cause:?}");
    // What the serving threads did cannot be coincidence, where all of their time is accounted for.
    let is_significant = cause.p_value.is_none_or(|p| p < 0.01);
    assert!(cause.stalls > 0 && is_significant, "{cause:?}");
    assert!(finding.summary.samples.intended_start_known);
    assert_eq!(finding.summary.samples.errors, 0);
}

#[test]
fn a_squeezed_memory_cgroup_is_named_reclaim() {
    is_named(Scenario::Reclaim);
}

#[test]
fn cpu_hogs_are_named_runqueue() {
    is_named(Scenario::Hog);
}

#[test]
fn a_sleeping_handler_is_named_and_no_kernel_cause() {
    is_named(Scenario::Sleep);
}
