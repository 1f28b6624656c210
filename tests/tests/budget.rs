//! What observer adds to the host stays within its budget, and observer reports what it left out
//! for that.

use observer::model::ProbeState;
use observer_tests::privileged;
use observer_tests::trial::{directory, scaled_text, watched};

/// Runs the same work with these options; returns the summary and run.json.
fn storm(options: &[&str]) -> (observer::model::Summary, observer::model::RunInfo) {
    let directory = directory();
    let rounds = scaled_text(200_000);
    let (mut work, watch) = watched(&["storm", "--rounds", &rounds], options, directory.path());
    work.go().expect("it works");
    let left = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    work.end().expect("it ends");
    left
}

#[test]
fn what_does_not_fit_the_budget_is_detached_and_reported() {
    let Some(_guard) = privileged::ready("budget") else { return };
    // So little that a storm is beyond it on a host of any size.
    let (summary, info) = storm(&["--budget", "0.01%"]);
    println!("{:#?}\n{:?}", info.coverage, summary.observer);
    let shed: Vec<_> =
        info.coverage.iter().filter(|(_, coverage)| coverage.detached.is_some()).collect();
    assert!(!shed.is_empty(), "{:?}", info.coverage);
    for (name, coverage) in shed {
        assert_eq!(coverage.state, ProbeState::Partial, "{name}");
        assert_eq!(summary.probes[name].state, ProbeState::Partial, "{name}");
        let detached = coverage.detached.as_ref().expect("filtered");
        assert!(detached.times > 0 && detached.total_ns > 0, "{name}: {detached:?}");
        let within = |at| info.start_ns <= at && at <= info.end_ns;
        assert!(detached.pauses.iter().all(|pause| within(pause.from_ns)), "{name}: {detached:?}");
        let reason = coverage.reason.as_deref().unwrap_or_default();
        assert!(reason.contains("budget") && reason.contains("0.01%"), "{name}: {reason}");
    }
    assert_ne!(info.coverage["task"].state, ProbeState::Partial, "it follows the target");
    let added = summary.observer.added_cpu_share.expect("it was measured");
    assert!(added.share > 0.0 && added.windows > 0, "{added:?}");
    assert!(added.ci95[0] <= added.share && added.share <= added.ci95[1], "{added:?}");
}

#[test]
fn without_a_budget_everything_stays_attached() {
    let Some(_guard) = privileged::ready("no budget") else { return };
    let (summary, info) = storm(&["--budget", "none"]);
    assert!(info.coverage.values().all(|coverage| coverage.detached.is_none()));
    let added = summary.observer.added_cpu_share.expect("it was measured all the same");
    println!("{added:?}");
    assert!(added.share > 0.0 && added.share < 1.0, "{added:?}");
}
