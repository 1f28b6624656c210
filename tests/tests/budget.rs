//! What observer adds to the host stays within its budget, and observer reports what it left out
//! for that.

use std::collections::BTreeMap;

use observer::model::{Coverage, Event, ProbeState, RunInfo, Summary, Value};
use observer_tests::privileged;
use observer_tests::trial::{Run, directory, scaled_text, watched};

/// Runs the same work with these options; returns the summary, run.json and the trace.
fn storm(options: &[&str]) -> (Summary, RunInfo, Vec<Event>) {
    let directory = directory();
    let rounds = scaled_text(200_000);
    let (mut work, watch) = watched(&["storm", "--rounds", &rounds], options, directory.path());
    work.go().expect("it works");
    let place = watch.run.clone();
    let (summary, info) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    work.end().expect("it ends");
    let run = Run { summary, info, directory: place };
    let events = run.events();
    (run.summary, run.info, events)
}

/// How often the trace says that each probe was detached.
fn detached(events: &[Event]) -> BTreeMap<String, u64> {
    let mut times = BTreeMap::new();
    for event in events.iter().filter(|event| event.name() == "probe") {
        let text = |field| match event.value(field) {
            Some(Value::Text(text)) => text.to_string(),
            other => panic!("{field}: {other:?}"),
        };
        if text("change") == "detached" {
            *times.entry(text("probe")).or_default() += 1;
        }
    }
    times
}

#[test]
fn what_does_not_fit_the_budget_is_detached_and_reported() {
    let Some(_guard) = privileged::ready("budget") else { return };
    // So little that a storm is beyond it on a host of any size.
    let (summary, info, events) = storm(&["--budget", "0.01%"]);
    println!("{:#?}\n{:?}", info.coverage, summary.observer);
    let shed: Vec<_> =
        info.coverage.iter().filter(|(_, coverage)| coverage.detached.is_some()).collect();
    assert!(!shed.is_empty(), "{:?}", info.coverage);
    let times = |(name, coverage): &(&String, &Coverage)| {
        ((*name).clone(), coverage.detached.as_ref().map_or(0, |detached| detached.times))
    };
    assert_eq!(detached(&events), shed.iter().map(times).collect(), "the trace says when");
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
    let (summary, info, events) = storm(&["--budget", "none"]);
    assert_eq!(detached(&events), BTreeMap::new());
    assert!(info.coverage.values().all(|coverage| coverage.detached.is_none()));
    let added = summary.observer.added_cpu_share.expect("it was measured all the same");
    println!("{added:?}");
    assert!(added.share > 0.0 && added.share < 1.0, "{added:?}");
}
