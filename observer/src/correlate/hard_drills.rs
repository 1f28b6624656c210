//! Known-answer drills in which stalls and slow requests have little to do with each other.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS, SECOND, SQUEEZE};
use crate::model::{Cause, Outcome};

#[test]
fn a_smaller_part_of_lateness_is_not_the_answer() {
    let mut drill = Drill::new(2, 20);
    // Every 37th millisecond, requests are sent 8 ms late and work 20 ms longer.
    let is_slow = |at: u64| (at / MS).is_multiple_of(37);
    let late = |at, _: &mut Xoshiro256PlusPlus| if is_slow(at) { 8 * MS } else { 0 };
    drill.load(500, late, |at, _| if is_slow(at) { 20 * MS } else { 0 });
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::Unexplained, "{analysis:#?}");
    let generator = analysis.of(Cause::LOAD_GENERATOR);
    assert!(generator.named && (generator.share - 8.0 / 28.0).abs() < 0.02, "{generator:?}");
    let rest = analysis.of(Cause::UNEXPLAINED).share;
    assert!((rest + generator.share - 1.0).abs() < 1e-9, "{rest}");
    let told = analysis.verdict.reasons.iter().filter(|reason| reason.code == "cause_named");
    assert_eq!(told.count(), 1, "{:?}", analysis.verdict);
}

#[test]
fn a_cause_that_covers_nearly_everything_is_neither_named_nor_ruled_out() {
    for seed in 0..20 {
        let mut drill = Drill::new(seed, 20);
        for begin in drill.jittered(10, SQUEEZE) {
            drill.freeze(begin, begin + SQUEEZE);
            drill.innocent(Cause::RUNQUEUE, 2, begin, begin + SQUEEZE * 98 / 100);
        }
        // Background threads wait 95 % of the time, whatever happens to the requests.
        for i in 0..2_000 {
            drill.innocent(Cause::RUNQUEUE, 1, i * 10 * MS, i * 10 * MS + 9_500_000);
        }
        drill.plain_load(300);
        let analysis = drill.analyse();
        analysis.check();
        assert!(!analysis.of(Cause::RUNQUEUE).named, "{seed}: {analysis:#?}");
        assert!(analysis.ruled_out.iter().all(|row| row.cause != Cause::RUNQUEUE));
        assert_eq!(analysis.verdict.top_cause, None);
    }
}

#[test]
fn one_slow_phase_beside_one_phase_of_stalls_proves_nothing() {
    for seed in 0..20 {
        let mut drill = Drill::new(seed, 24);
        // A slow dependency for 8 s, and stalls of other threads for 10 s that overlap it.
        let phase = 8 * SECOND..16 * SECOND;
        let slow = |at: u64, rng: &mut Xoshiro256PlusPlus| match phase.contains(&at) {
            true => rng.random_range(5 * MS..60 * MS),
            false => 0,
        };
        for begin in (7 * SECOND..17 * SECOND).step_by(5_000_000) {
            drill.innocent(Cause::RUNQUEUE, 2, begin, begin + 4 * MS);
        }
        drill.load(200, |_, _| 0, slow);
        let analysis = drill.analyse();
        assert_eq!(
            analysis.check().verdict.outcome,
            Outcome::Inconclusive,
            "{seed}: {analysis:#?}"
        );
        assert_eq!(analysis.episodes, 1, "{seed}");
        assert!(analysis.verdict.reasons.iter().any(|reason| reason.code == "few_episodes"));
    }
}
