//! Answers about requests whose generator has a clock that moves.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS, ORIGIN, SECOND};
use super::served_drills::{Handler, POOL, Service, has, nothing};
use super::take_out_drift;
use crate::model::{Cause, Sample};

/// What is assumed of two hosts whose clocks NTP keeps.
const ERROR_NS: u64 = 5 * MS;

fn stalled_handlers(seed: u64) -> Drill {
    let mut drill = Drill::new(seed, 120);
    let service = Service { ports: seed.is_multiple_of(2), ..POOL };
    let plan = |_, rng: &mut Xoshiro256PlusPlus| match rng.random_range(0..100) {
        0 => Handler { stall: Some((Cause::RECLAIM_MEMCG, 60 * MS)), ..Handler::default() },
        1 => Handler { sleep_ns: 40 * MS, ..Handler::default() },
        _ => Handler::default(),
    };
    service.serve(&mut drill, 200, plan, nothing);
    drill.quality.clock_uncertainty_ns = ERROR_NS;
    drill
}

#[test]
fn the_answer_is_the_same_as_without_a_drift() {
    for (seed, ppm) in [(1_200, 20.0), (1_201, -50.0), (1_202, 200.0), (1_203, 200.0)] {
        let mut drill = stalled_handlers(seed);
        let expected = drill.analyse();
        // Requests that began at about the same time may change places.
        let lengths = |samples: &[Sample]| {
            let mut lengths: Vec<u64> = samples.iter().map(Sample::response_ns).collect();
            lengths.sort_unstable();
            lengths
        };
        let before = lengths(&drill.samples);
        for sample in &mut drill.samples {
            // The clock runs faster, from the first instant on.
            let by_ns = sample.start.0.saturating_sub(ORIGIN) as f64 * ppm / 1e6;
            let moved = |time: &mut crate::clock::MonoNanos| {
                time.0 = time.0.saturating_add_signed(by_ns as i64);
            };
            sample.intended_start.iter_mut().for_each(moved);
            moved(&mut sample.start);
            moved(&mut sample.end);
        }
        let found = take_out_drift(&mut drill.samples, &drill.requests, ERROR_NS);
        let found = found.unwrap_or_else(|| panic!("seed {seed}: {ppm} ppm"));
        assert!((found.ppm - ppm).abs() < 0.5, "seed {seed}: {found:?} for {ppm}");
        assert!(lengths(&drill.samples) == before, "requests keep their lengths");
        let analysis = drill.analyse();
        assert!(has(&expected, "counted_by_thread") && has(&analysis, "counted_by_thread"));
        assert_eq!(analysis.verdict.top_cause, expected.verdict.top_cause, "seed {seed}");
        let [share, truth] =
            [&analysis, &expected].map(|analysis| analysis.of(Cause::RECLAIM_MEMCG).share);
        assert!((share - truth).abs() < 0.02, "seed {seed}: {share} for {truth}");
        assert!(analysis.requests.matched as f64 > 0.99 * expected.requests.matched as f64);
        let window_ns = 120 * SECOND;
        assert!(drill.samples.iter().all(|sample| sample.end.0 < ORIGIN + window_ns + MS));
    }
}
