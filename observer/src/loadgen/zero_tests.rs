//! hey's recording behind wrappers of several kinds.

use super::tests::{Run, fixture, skipped};
use super::*;
use crate::clock::MonoNanos;
use crate::model::{GeneratorProcess, GeneratorProcesses};

/// hey's zero in that run, by the server's log of the same requests: 9.3 to 9.8 ms after the spawn.
const ZERO_NS: u64 = 9_500_000;

/// Its dials in `hey.csv`, from its zero. The first was too short for the steps of its times, so that
/// no row shows it.
const DIALS_NS: [u64; 5] = [20_700_000, 21_750_000, 21_800_000, 21_850_000, 61_550_000];

const PORT: u16 = 80;
const SECOND: u64 = 1_000_000_000;

/// The run of the fixture, in which a wrapper did other things for so long before it started hey.
fn behind(delay_ns: u64) -> (Run, u64) {
    let mut run = Run::of("hey.csv");
    let zero = run.window.start.0 + delay_ns + ZERO_NS;
    run.window.end.0 += delay_ns;
    run.seen.exited = Some(run.window.end);
    (run, zero)
}

fn process(comm: &str, began: u64, ended: u64, connects: &[u64], port: u16) -> GeneratorProcess {
    GeneratorProcess {
        tgid: began as u32,
        comm: comm.into(),
        began: Some(MonoNanos(began)),
        ended: Some(MonoNanos(ended)),
        connects: connects.iter().map(|at| (MonoNanos(*at), port)).collect(),
        more_connects: false,
    }
}

/// hey itself.
fn hey(run: &Run, zero: u64) -> GeneratorProcess {
    let connects = DIALS_NS.map(|dial| zero + dial);
    process("hey", zero - 2_000_000, run.window.end.0, &connects, PORT)
}

/// How far the samples are off, and how far they may be.
fn placed(run: &Run, zero: u64, processes: Vec<GeneratorProcess>) -> (u64, u64, Ingested) {
    placed_by(run, zero, GeneratorProcesses { processes, connects_known: true })
}

fn placed_by(run: &Run, zero: u64, all: GeneratorProcesses) -> (u64, u64, Ingested) {
    const FIRST_NS: u64 = 20_600_000;
    let run = Run {
        anchors: run.anchors.clone(),
        window: run.window,
        seen: RelAnchor { processes: Some(all), ..run.seen.clone() },
    };
    let ingested = run.ingest("hey", &fixture("hey.csv")).unwrap();
    let off = ingested.samples[0].start.0.abs_diff(zero + FIRST_NS);
    let uncertainty = ingested.uncertainty_ns;
    assert!(off <= uncertainty, "{off} {:?}", ingested.notes);
    (off, uncertainty, ingested)
}

#[test]
fn hey_is_placed_by_the_best_anchor_there_is() {
    let (run, zero) = behind(0);
    let (_, by_connects, ingested) = placed(&run, zero, vec![hey(&run, zero)]);
    assert!(by_connects < 500_000, "{by_connects}");
    assert_eq!(ingested.samples.len(), 600);
    assert!(!ingested.over_wall_clock && !ingested.intended_start_known);
    assert!(ingested.samples.iter().all(|sample| sample.precision_ns == 100_000 && sample.ok));
    let all = GeneratorProcesses { processes: vec![hey(&run, zero)], connects_known: false };
    let (_, by_life, _) = placed_by(&run, zero, all);
    assert!(by_life > by_connects, "{by_life}");
    let (_, by_command, _) = placed(&run, zero, vec![]);
    assert!(by_command > by_life, "{by_command}");
    // Too much to follow.
    let unknown = Run { seen: RelAnchor { processes: None, ..run.seen }, ..run };
    let ingested = unknown.ingest("hey", &fixture("hey.csv")).unwrap();
    assert_eq!(ingested.uncertainty_ns, by_command);
}

#[test]
fn what_a_wrapper_does_before_hey_does_not_move_it() {
    let (run, zero) = behind(2 * SECOND);
    let begin = run.window.start.0;
    let shell = || process("sh", begin, run.window.end.0, &[], 0);
    let alone = placed(&run, zero, vec![hey(&run, zero)]).1;
    let early = |name, port| process(name, begin + 1, begin + SECOND, &[begin + 1_000], port);
    let dials = DIALS_NS.map(|dial| begin + 1_000_000 + dial);
    let long = |name: &str, port| process(name, begin + 1, run.window.end.0, &dials, port);
    for others in [
        vec![early("curl", PORT)],
        vec![early("curl", PORT + 1), early("hey", PORT)],
        // They made the same connections, and lived long enough.
        vec![long("python3", PORT)],
        vec![long("hey", PORT + 1)],
        vec![long("wrk", PORT), long("hey", PORT + 1), early("hey", PORT)],
        // Too few connections.
        vec![process("hey", begin + 1, run.window.end.0, &dials[..2], PORT)],
    ] {
        let named = format!("{others:?}");
        let all = [vec![shell()], others, vec![hey(&run, zero)]].concat();
        assert_eq!(placed(&run, zero, all).1, alone, "{named}");
    }
}

#[test]
fn what_cannot_be_told_apart_is_uncertain() {
    let (run, zero) = behind(2 * SECOND);
    let begin = run.window.start.0;
    let dials = DIALS_NS.map(|dial| begin + 1_000_000 + dial);
    let twin = process("hey", begin + 1, run.window.end.0 - SECOND, &dials, PORT);
    for (is_first, all) in
        [(true, vec![twin.clone(), hey(&run, zero)]), (false, vec![hey(&run, zero), twin.clone()])]
    {
        let (off, _, ingested) = placed(&run, zero, all);
        assert!(off > SECOND / 2, "{is_first}");
        assert!(ingested.notes.iter().any(|note| note.contains("2 processes")), "{is_first}");
    }
    // Only some connections are known: they may be anything, but not later than hey began.
    let mut flood = hey(&run, zero);
    flood.connects = (0..32).map(|number| (MonoNanos(zero + 20_650_000 + number), PORT)).collect();
    flood.more_connects = true;
    placed(&run, zero, vec![flood]);
    // Connections that failed came before, and no row shows them.
    let mut failed = hey(&run, zero);
    for number in 0..10 {
        failed.connects.insert(0, (MonoNanos(zero + number * 1_500_000), PORT));
    }
    placed(&run, zero, vec![failed]);
}

#[test]
fn of_two_recordings_the_last_is_of_the_process_that_ended_last() {
    let (run, zero) = behind(4 * SECOND);
    let earlier = process(
        "hey",
        run.window.start.0 + 1,
        run.window.end.0 - 4 * SECOND,
        &DIALS_NS.map(|dial| run.window.start.0 + ZERO_NS + dial),
        PORT,
    );
    let alone = placed(&run, zero, vec![hey(&run, zero)]);
    let seen = |processes| {
        let all = GeneratorProcesses { processes, connects_known: true };
        RelAnchor { processes: Some(all), ..run.seen.clone() }
    };
    let text = fixture("hey.csv");
    let ingest = |seen| {
        let run = Run { anchors: run.anchors.clone(), window: run.window, seen };
        run.ingest("hey", &[text.as_slice(), &text].concat()).unwrap()
    };
    let twice = ingest(seen(vec![earlier.clone(), hey(&run, zero)]));
    assert_eq!(skipped(&twice), [("earlier_recording", 600)]);
    assert_eq!((twice.uncertainty_ns, &twice.samples), (alone.1, &alone.2.samples));
    // A third one wrote elsewhere, and may have been the last.
    let third = ingest(seen(vec![earlier.clone(), earlier, hey(&run, zero)]));
    assert!(third.uncertainty_ns > SECOND);
}
