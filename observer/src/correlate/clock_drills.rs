//! Known-answer drills about samples whose clock is not exact.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS, ORIGIN};
use super::served_drills::{Handler, POOL, Service, US, has, nothing};
use super::*;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 620..626;
/// By how much the clock of the samples may be wrong, as the user said.
const DECLARED_NS: u64 = 500 * MS;

/// Moves the clock of the samples, and says that this may be so.
fn behind(drill: &mut Drill, behind_ns: u64) {
    for sample in &mut drill.samples {
        for time in [Some(&mut sample.start), Some(&mut sample.end), sample.intended_start.as_mut()]
        {
            time.into_iter().for_each(|time| time.0 -= behind_ns);
        }
    }
    drill.quality.clock_uncertainty_ns = DECLARED_NS;
}

fn reclaims(seed: u64, ports: bool, about_ns: u64) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let plan = |_, rng: &mut Xoshiro256PlusPlus| {
        let length_ns = rng.random_range(about_ns / 2..about_ns);
        let stall = rng.random_bool(0.02).then_some((Cause::RECLAIM_MEMCG, length_ns));
        Handler { stall, ..Handler::default() }
    };
    Service { sleeps: true, ports, ..POOL }.serve(&mut drill, 300, plan, nothing);
    drill
}

#[test]
fn requests_that_are_known_by_their_connection_say_by_how_much_the_clocks_differ() {
    for seed in SEEDS {
        let mut drill = reclaims(seed, true, 40 * MS);
        let exact = drill.analyse();
        behind(&mut drill, 300 * MS);
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Attributed, "{analysis:#?}");
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
        let share = |analysis: &Analysis| analysis.of(Cause::RECLAIM_MEMCG).share;
        assert!((share(&analysis) - share(&exact)).abs() < 0.03, "{analysis:#?}");

        // What the rows of the generator leave open remains so.
        drill.samples[7].precision_ns = 300 * MS;
        assert!(has(&drill.analyse(), "clock_inexact"));
    }
}

#[test]
fn requests_that_are_known_by_their_times_alone_do_not() {
    for seed in SEEDS {
        let mut drill = reclaims(seed, false, 40 * MS);
        behind(&mut drill, 300 * MS);
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Inconclusive, "{analysis:#?}");
        assert!(has(&analysis, "clock_inexact"));
        // Nor those whose threads are not known.
        let mut drill = reclaims(seed, true, 40 * MS);
        behind(&mut drill, 0);
        drill.requests.clear();
        assert!(has(&drill.analyse(), "clock_inexact"));
    }
}

#[test]
fn a_clock_that_runs_too_fast_is_known_less_exactly() {
    for seed in SEEDS {
        let mut drill = reclaims(seed, true, 5 * MS);
        behind(&mut drill, 0);
        assert_eq!(drill.analyse().check().verdict.outcome, Outcome::Attributed);
        // By 6 ms in all.
        for sample in &mut drill.samples {
            let faster_ns = (sample.start.0 - ORIGIN) / 5_000;
            for time in
                [Some(&mut sample.start), Some(&mut sample.end), sample.intended_start.as_mut()]
            {
                time.into_iter().for_each(|time| time.0 += faster_ns);
            }
        }
        let analysis = drill.analyse();
        assert!(has(&analysis, "clock_inexact"), "{analysis:#?}");
    }
}

/// Where requests come at a constant pace over one connection, each sample may be the request before or after
/// its own, and all of them fit.
#[test]
fn a_connection_with_a_constant_pace_does_not_say_it() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 30);
        drill.quality.sleeps_watched = true;
        for number in 0..2_900 {
            let at = number * 10 * MS;
            let slow = drill.rng.random_bool(0.03);
            let work_ns = drill.rng.random_range(900..1_100) * if slow { 6 * US } else { US };
            let (arrival, sent) = (at + 25 * US, at + 25 * US + work_ns);
            drill.sample(at, at, sent + 25 * US);
            if let Some(sample) = drill.samples.last_mut() {
                sample.local_port = Some(40_000);
            }
            drill.request((1, 1), [arrival, arrival + 5 * US, sent], 40_000);
        }
        assert_eq!(drill.analyse().verdict.top_cause, Some(Cause::SERVICE_CPU));
        behind(&mut drill, 300 * MS);
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Inconclusive, "{analysis:#?}");
        assert!(has(&analysis, "clock_inexact"));
    }
}
