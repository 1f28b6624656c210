//! Known-answer drills about stalls that are too short to be recorded.

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS};
use super::served_drills::{Handler, POOL, Service, US, has, nothing};
use super::*;

/// One request in fifty is served with `slow`; its thread has stalls that no record reports.
fn drill(seed: u64, slow: Handler) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let plan = |_, rng: &mut Xoshiro256PlusPlus| match rng.random_bool(0.02) {
        true => slow,
        false => Handler::default(),
    };
    Service { sleeps: true, ..POOL }.serve(&mut drill, 300, plan, nothing);
    drill
}

/// The answer where stalls of this kind, shorter than 5 µs, took this part of the excess latency of all slow
/// requests.
fn with_short(drill: &mut Drill, kind: &str, part: f64) -> Analysis {
    let samples = drill.analyse().samples;
    let excess_ns = (samples.slow_mean_ns - samples.typical_mean_ns) * samples.slow_count as f64;
    let total_ns = (excess_ns * part) as u64;
    drill.quality.short = vec![Short { kind: kind.into(), floor_ns: 5 * US, total_ns }];
    let analysis = drill.analyse();
    analysis.check();
    drill.quality.short.clear();
    let before = drill.analyse();
    assert_eq!((&analysis.causes, &analysis.account_ns), (&before.causes, &before.account_ns));
    assert_eq!(analysis.verdict.outcome, before.verdict.outcome, "it is an answer all the same");
    assert_eq!(analysis.verdict.top_cause, before.verdict.top_cause);
    assert!(!has(&before, "short_stalls"));
    analysis
}

fn evidence(analysis: &Analysis) -> Option<&serde_json::Value> {
    let mut reasons = analysis.verdict.reasons.iter();
    reasons.find(|reason| reason.code == "short_stalls").map(|reason| &reason.evidence)
}

fn is_ruled_out(analysis: &Analysis, cause: Cause) -> bool {
    analysis.ruled_out.iter().any(|row| row.cause == cause)
}

#[test]
fn work_of_the_service_may_be_short_stalls() {
    let mut drill = drill(600, Handler { burn_ns: 30 * MS, ..Handler::default() });
    let analysis = with_short(&mut drill, "runqueue", 0.9);
    assert_eq!(analysis.verdict.top_cause, Some(Cause::SERVICE_CPU));
    let numbers = evidence(&analysis).expect("it is said");
    assert_eq!(numbers["within"], "service_cpu");
    assert!((numbers["share"].as_f64().expect("a share") - 0.9).abs() < 0.01, "{numbers}");
    for cause in [Cause::RUNQUEUE, Cause::RUNQUEUE_OTHER, Cause::RUNQUEUE_SELF] {
        assert!(!is_ruled_out(&analysis, cause), "{cause:?}");
    }
    assert!(is_ruled_out(&analysis, Cause::FAULT_MINOR), "all of its time is known");

    let analysis = with_short(&mut drill, "runqueue", 0.3);
    assert_eq!(evidence(&analysis), None, "most of it is not in these");
    assert!(is_ruled_out(&analysis, Cause::RUNQUEUE_OTHER));
    let analysis = with_short(&mut drill, "sleep", 0.9);
    assert_eq!(evidence(&analysis).expect("it is said")["kind"], "sleep");
    // No more than the part that they would be in.
    let analysis = with_short(&mut drill, "runqueue", 10.0);
    let numbers = evidence(&analysis).expect("it is said");
    assert_eq!(numbers["share"], numbers["within_share"]);
}

#[test]
fn short_stalls_of_usual_requests_are_not_all_in_the_slow_ones() {
    let mut drill = drill(601, Handler { burn_ns: 1_500 * US, ..Handler::default() });
    let analysis = with_short(&mut drill, "runqueue", 0.75);
    assert_eq!(analysis.verdict.top_cause, Some(Cause::SERVICE_CPU), "{analysis:#?}");
    assert_eq!(evidence(&analysis), None);
    let analysis = with_short(&mut drill, "runqueue", 1.5);
    let numbers = evidence(&analysis).expect("twenty times as many are enough");
    let share = numbers["share"].as_f64().expect("a share");
    assert!((0.5..0.95).contains(&share), "{numbers}");
}

#[test]
fn an_answer_that_names_something_else_stands() {
    let stall = Some((Cause::RECLAIM_MEMCG, 30 * MS));
    let mut reclaims = drill(602, Handler { stall, ..Handler::default() });
    let analysis = with_short(&mut reclaims, "runqueue", 0.9);
    assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
    assert_eq!(evidence(&analysis), None, "the service hardly computed");
    assert!(is_ruled_out(&analysis, Cause::RUNQUEUE_OTHER));

    let mut both = drill(603, Handler { stall, burn_ns: 15 * MS, ..Handler::default() });
    let analysis = with_short(&mut both, "runqueue", 0.9);
    assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
    let numbers = evidence(&analysis).expect("it is said");
    assert!(numbers["share"].as_f64() < Some(0.4), "of the smaller part: {numbers}");
}

#[test]
fn what_is_unexplained_may_be_short_stalls() {
    let mut asleep = drill(604, Handler { sleep_ns: 30 * MS, ..Handler::default() });
    asleep.quality.sleeps_watched = false;
    let analysis = with_short(&mut asleep, "softirq", 0.9);
    assert_eq!(analysis.verdict.outcome, Outcome::Unexplained);
    assert_eq!(evidence(&analysis).expect("it is said")["within"], "unexplained");
    assert!(!is_ruled_out(&analysis, Cause::SOFTIRQ));
    assert!(is_ruled_out(&analysis, Cause::RUNQUEUE_OTHER));
    assert_eq!(evidence(&with_short(&mut asleep, "softirq", 0.3)), None);
    // Of sleeps, nothing was recorded anyway.
    assert_eq!(evidence(&with_short(&mut asleep, "sleep", 0.9)), None);
    asleep.requests.clear();
    let analysis = with_short(&mut asleep, "mm_syscall", 0.9);
    assert!(!is_ruled_out(&analysis, Cause::MM_SYSCALL));

    // An answer that the run does not give needs no such remark.
    asleep.quality.own_cpu.programs = 0.9;
    asleep.quality.own_cpu.threads = 0.9;
    let analysis = with_short(&mut asleep, "mm_syscall", 0.9);
    assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive);
    assert_eq!(evidence(&analysis), None);
}
