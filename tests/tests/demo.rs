//! The three known answers, as `cargo xtask demo` plays them.

use std::fs;
use std::path::Path;

use observer_tests::privileged;
use observer_tests::process::Programs;
use observer_tests::scenario::{Scenario, play};

fn is_named(scenario: Scenario) {
    let Some(_guard) = privileged::ready(scenario.name()) else { return };
    let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-service")));
    let directory = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let log = directory.path().join("log");
    let finding = play(&programs, scenario, &directory.path().join("run"), Some(&log))
        .and_then(|finding| finding.judge().map(|()| finding));
    let printed = || fs::read_to_string(&log).unwrap_or_default();
    let finding = finding.unwrap_or_else(|error| {
        // Kept, for whoever looks into it.
        let kept = directory.path().display().to_string();
        let printed = printed();
        std::mem::forget(directory);
        panic!(
            "{}: {error}\nrun directory: {kept}/run\nobserver printed:\n{printed}",
            scenario.name()
        )
    });
    println!("{}", finding.lines().join("\n"));
    assert_eq!(finding.summary.loss.total, 0, "{:?}", finding.summary.loss);
    if let Some(cause) = finding.expected_cause() {
        assert!(cause.share > 0.3, "{cause:?}");
        assert!(cause.stalls > 0 && cause.p_value.is_some_and(|p| p < 0.01), "{cause:?}");
    }
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
fn a_sleeping_handler_is_named_by_no_kernel_cause() {
    is_named(Scenario::Sleep);
}
