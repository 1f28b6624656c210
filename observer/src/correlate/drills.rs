//! Known-answer drills.

use super::drill::{Drill, MS, SECOND, SQUEEZE};
use rand::RngExt;

use super::*;
use crate::model::Outcome;

fn squeezed(seed: u64, begins: impl FnOnce(&mut Drill) -> Vec<u64>) -> Drill {
    let mut drill = Drill::new(seed, 10);
    for begin in begins(&mut drill) {
        let length = drill.rng.random_range(200 * MS..SQUEEZE);
        drill.squeeze(Cause::RECLAIM_MEMCG, begin, begin + length);
    }
    drill
}

#[test]
fn one_cause_is_found_in_a_short_run_with_few_squeezes() {
    for seed in 0..20 {
        let mut drill = squeezed(seed, |drill| drill.jittered(5, SQUEEZE));
        drill.plain_load(400);
        let analysis = drill.analyse();
        analysis.check();
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{seed}: {analysis:#?}");
        let cause = analysis.of(Cause::RECLAIM_MEMCG);
        assert!(cause.share > 0.85, "seed {seed}: {analysis:#?}");
        assert!(cause.ci95[0] > 0.6 && cause.p_value < Some(0.01));
        assert!(cause.stalls > 100);
    }
}

#[test]
fn a_strictly_periodic_schedule_is_found() {
    for seed in 0..20 {
        let mut drill = squeezed(seed, |_| (0..6).map(|i| 700 * MS + i * 1_500 * MS).collect());
        drill.plain_load(400);
        let analysis = drill.analyse();
        analysis.check();
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{seed}: {analysis:#?}");
    }
}

#[test]
fn whole_stalls_are_found_with_their_full_share() {
    let mut drill = Drill::new(1, 30);
    for begin in drill.jittered(12, 40 * MS) {
        drill.culprit(Cause::RUNQUEUE, 7, begin, begin + 40 * MS);
    }
    drill.plain_load(500);
    let analysis = drill.analyse();
    let share = analysis.check().of(Cause::RUNQUEUE).share;
    assert!(share > 0.95, "{analysis:#?}");
    assert_eq!(analysis.of(Cause::RUNQUEUE).stalls, 12);
    assert_eq!(analysis, drill.analyse(), "the same evidence gives the same answer");
}

#[test]
fn the_true_share_is_recovered_when_others_are_slow_for_another_reason() {
    for seed in 0..10 {
        let mut drill = Drill::new(seed, 60);
        drill.slow = SlowSpec::Threshold(5 * MS);
        for begin in drill.jittered(150, 20 * MS) {
            drill.culprit(Cause::RECLAIM_DIRECT, 1, begin, begin + 20 * MS);
        }
        // As many slow handlers as requests in stalls, about as slow.
        let slow = |_, rng: &mut Xoshiro256PlusPlus| {
            if rng.random_bool(0.05) { 10 * MS } else { 0 }
        };
        drill.load(500, |_, _| 0, slow);
        let by_handler: f64 = drill
            .samples
            .iter()
            .map(|s| s.response_ns())
            .filter(|ns| *ns > 5 * MS)
            .map(|ns| ns as f64)
            .sum();
        let analysis = drill.analyse();
        let share = analysis.check().of(Cause::RECLAIM_DIRECT).share;
        // The handlers' work is known; the rest of the excess is the stalls'.
        let excess =
            by_handler - analysis.samples.slow_count as f64 * analysis.samples.typical_mean_ns;
        let handlers = drill.samples.len() as f64 * 0.05 * 10.0 * MS as f64;
        let truth = 1.0 - handlers / excess;
        assert!((share - truth).abs() < 0.08, "seed {seed}: {share} for {truth}");
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_DIRECT));
    }
}

#[test]
fn a_healthy_run_has_nothing_to_explain() {
    let mut drill = Drill::new(1, 10);
    for begin in drill.jittered(100, MS) {
        drill.innocent(Cause::RUNQUEUE, 1, begin, begin + 100_000);
    }
    drill.plain_load(500);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::NoSlowSamples);
    assert!(analysis.causes.is_empty());
    assert!(analysis.samples.slow_count > 0);

    drill.slow = SlowSpec::Threshold(50 * MS);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::NoSlowSamples);
    assert_eq!(analysis.samples.slow_count, 0);
    assert_eq!(analysis.verdict.reasons[0].code, "none_slow");
    assert!(analysis.verdict.reasons[0].text.contains("50ms"), "{:?}", analysis.verdict);
}

#[test]
fn a_sleeping_handler_is_unexplained() {
    for seed in 0..20 {
        let mut drill = Drill::new(seed, 20);
        // Noise that is always there.
        for _ in 0..4_000 {
            let begin = drill.rng.random_range(0..drill.window_ns);
            drill.innocent(Cause::RUNQUEUE, 1, begin, begin + 100_000);
            drill.innocent(Cause::FAULT_MINOR, 2, begin + 300_000, begin + 310_000);
        }
        let sleep = |_, rng: &mut Xoshiro256PlusPlus| {
            if rng.random_bool(0.02) { 30 * MS } else { 0 }
        };
        drill.load(300, |_, _| 0, sleep);
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Unexplained, "{seed}: {analysis:#?}");
        assert_eq!(analysis.of(Cause::UNEXPLAINED).share, 1.0);
    }
}

/// How many of 200 runs name a cause that has nothing to do with the slow requests.
fn falsely_named(build: impl Fn(&mut Drill)) -> usize {
    (0..200)
        .filter(|seed| {
            let mut drill = Drill::new(1_000 + seed, 20);
            build(&mut drill);
            let analysis = drill.analyse();
            analysis.check().verdict.outcome == Outcome::Attributed
        })
        .count()
}

#[test]
fn coincidence_with_scattered_slow_requests_is_not_named() {
    let false_positives = falsely_named(|drill| {
        for _ in 0..60 {
            let begin = drill.rng.random_range(0..drill.window_ns);
            let length = drill.rng.random_range(MS..80 * MS);
            drill.innocent(Cause::RECLAIM_MEMCG, 1, begin, begin + length);
        }
        let slow = |_, rng: &mut Xoshiro256PlusPlus| {
            if rng.random_bool(0.01) { rng.random_range(10 * MS..50 * MS) } else { 0 }
        };
        drill.load(200, |_, _| 0, slow);
    });
    assert!(false_positives <= 4, "{false_positives} of 200");
}

#[test]
fn coincidence_with_episodes_is_not_named() {
    let false_positives = falsely_named(|drill| {
        for begin in drill.jittered(8, SQUEEZE) {
            drill.freeze(begin, begin + SQUEEZE);
        }
        for begin in drill.jittered(8, SQUEEZE) {
            drill.innocent(Cause::RUNQUEUE, 1, begin, begin + SQUEEZE);
        }
        drill.plain_load(200);
    });
    assert!(false_positives <= 4, "{false_positives} of 200");
}

#[test]
fn an_innocent_cause_of_the_same_period_is_hardly_ever_named() {
    // Both recur every 2 s, at a random phase. In phase to a few per cent of the period they
    // cannot be told apart; that happens, rarely.
    let false_positives = falsely_named(|drill| {
        let phase = drill.rng.random_range(0..2 * SECOND);
        for i in 0..10 {
            drill.freeze(i * 2 * SECOND + 500 * MS, i * 2 * SECOND + 800 * MS);
            let begin = (i * 2 * SECOND + phase) % drill.window_ns;
            drill.innocent(Cause::RUNQUEUE, 1, begin, begin + SQUEEZE);
        }
        drill.plain_load(200);
    });
    assert!(false_positives <= 14, "{false_positives} of 200");
}

#[test]
fn nested_causes_go_to_the_innermost() {
    let mut drill = Drill::new(1, 30);
    for begin in drill.jittered(12, 40 * MS) {
        drill.innocent(Cause::MM_SYSCALL, 1, begin, begin + 40 * MS);
        drill.innocent(Cause::FAULT_MINOR, 1, begin + MS, begin + 39 * MS);
        drill.culprit(Cause::RECLAIM_MEMCG, 1, begin + 2 * MS, begin + 38 * MS);
    }
    drill.plain_load(500);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
    assert!(analysis.of(Cause::RECLAIM_MEMCG).share > 0.85, "{analysis:#?}");
    assert!(!analysis.of(Cause::FAULT_MINOR).named && !analysis.of(Cause::MM_SYSCALL).named);
}

#[test]
fn causes_of_two_threads_share_what_they_cover_together() {
    let mut drill = Drill::new(1, 30);
    for begin in drill.jittered(12, 40 * MS) {
        drill.culprit(Cause::RECLAIM_MEMCG, 1, begin, begin + 40 * MS);
        drill.innocent(Cause::RUNQUEUE, 2, begin, begin + 40 * MS);
    }
    // A third thread always in faults is no competitor.
    for i in 0..3_000 {
        drill.innocent(Cause::FAULT_MINOR, 3, i * 10 * MS, i * 10 * MS + 9 * MS);
    }
    drill.plain_load(500);
    let analysis = drill.analyse();
    analysis.check();
    let reclaim = analysis.of(Cause::RECLAIM_MEMCG);
    let runqueue = analysis.of(Cause::RUNQUEUE);
    assert!(reclaim.named && runqueue.named, "{analysis:#?}");
    assert!((reclaim.share - 0.5).abs() < 0.05 && (runqueue.share - 0.5).abs() < 0.05);
    assert!(!analysis.of(Cause::FAULT_MINOR).named, "{analysis:#?}");
    assert!(analysis.of(Cause::UNEXPLAINED).share < 0.1);
}

#[test]
fn two_causes_at_different_times_each_get_their_part() {
    let mut drill = Drill::new(3, 60);
    for (i, begin) in drill.jittered(40, 40 * MS).into_iter().enumerate() {
        let cause = if i % 4 == 0 { Cause::RUNQUEUE } else { Cause::COMPACTION };
        drill.culprit(cause, 1, begin, begin + 40 * MS);
    }
    drill.plain_load(500);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.top_cause, Some(Cause::COMPACTION), "{analysis:#?}");
    assert!((analysis.of(Cause::COMPACTION).share - 0.75).abs() < 0.15, "{analysis:#?}");
    assert!(analysis.of(Cause::RUNQUEUE).named, "{analysis:#?}");
}

#[test]
fn stalls_across_both_ends_of_the_run_are_clipped() {
    let mut drill = Drill::new(1, 20);
    let last = drill.window_ns;
    drill.culprit(Cause::RUNQUEUE, 1, 0, 30 * MS);
    drill.stalls[0].start = MonoNanos(drill.stalls[0].start.0 - SECOND);
    for begin in [3 * SECOND, 7_100 * MS, 8_900 * MS, 13_333 * MS, 17_777 * MS] {
        drill.culprit(Cause::RUNQUEUE, 1, begin, begin + 40 * MS);
    }
    drill.innocent(Cause::RUNQUEUE, 1, last - 20 * MS, last + 5 * SECOND);
    drill.plain_load(500);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.top_cause, Some(Cause::RUNQUEUE), "{analysis:#?}");
    assert!(analysis.of(Cause::RUNQUEUE).share > 0.9, "{analysis:#?}");
    assert_eq!(analysis.of(Cause::RUNQUEUE).stalls, 7);
}

#[test]
fn late_sends_are_the_generators_even_where_stalls_cover_them() {
    let mut drill = Drill::new(1, 20);
    let begins = drill.jittered(8, 60 * MS);
    for begin in &begins {
        // Ends when the late requests are sent: it covers lateness only.
        drill.innocent(Cause::RUNQUEUE, 1, *begin, begin + 50 * MS);
    }
    let late = move |at: u64, _: &mut Xoshiro256PlusPlus| {
        begins
            .iter()
            .find(|begin| (**begin..**begin + 50 * MS).contains(&at))
            .map_or(0, |begin| begin + 50 * MS - at)
    };
    drill.load(500, late, |_, _| 0);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::GeneratorLimited, "{analysis:#?}");
    assert_eq!(analysis.verdict.top_cause, Some(Cause::LOAD_GENERATOR));
    assert!(analysis.of(Cause::LOAD_GENERATOR).share > 0.95, "{analysis:#?}");
    assert!(!analysis.of(Cause::RUNQUEUE).named, "{analysis:#?}");
    assert!(analysis.samples.lateness_ns.max > 30 * MS);

    for sample in &mut drill.samples {
        sample.intended_start = None;
    }
    let blind = drill.analyse();
    assert!(blind.causes.iter().all(|cause| cause.cause != Cause::LOAD_GENERATOR));
    assert!(blind.verdict.reasons.iter().any(|r| r.code == "intended_start_unknown"));
    assert!(!blind.samples.intended_start_known);
}

#[test]
fn too_few_episodes_or_slow_samples_are_inconclusive() {
    let mut drill = Drill::new(1, 10);
    for begin in [2_345 * MS, 7_890 * MS] {
        drill.culprit(Cause::RUNQUEUE, 1, begin, begin + 100 * MS);
    }
    drill.plain_load(400);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::Inconclusive);
    assert_eq!(analysis.episodes, 2);
    assert_eq!(analysis.verdict.reasons[0].code, "few_episodes");
    assert_eq!(analysis.verdict.reasons[0].evidence["episodes"], 2);
    assert!(analysis.of(Cause::RUNQUEUE).share > 0.8);

    drill.samples.truncate(300);
    drill.samples[5].end = MonoNanos(drill.samples[5].end.0 + 70 * MS);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.outcome, Outcome::Inconclusive);
    let reason = &analysis.verdict.reasons[0];
    assert!(reason.text.starts_with("Only 3 slow requests of 300"), "{reason:?}");
}

/// A clear case, spoilt by `spoil`.
fn spoilt(spoil: impl Fn(&mut Drill)) -> Analysis {
    let mut drill = squeezed(4, |drill| drill.jittered(6, SQUEEZE));
    drill.plain_load(400);
    spoil(&mut drill);
    let analysis = drill.analyse();
    analysis.check();
    analysis
}

fn inconclusive(code: &str, spoil: impl Fn(&mut Drill)) {
    let verdict = spoilt(spoil).verdict;
    assert_eq!(verdict.outcome, Outcome::Inconclusive, "{code}: {verdict:?}");
    assert!(verdict.reasons.iter().any(|reason| reason.code == code), "{code}: {verdict:?}");
}

#[test]
fn bad_evidence_is_inconclusive_with_the_reason() {
    assert_eq!(spoilt(|_| ()).verdict.outcome, Outcome::Attributed);
    let lose = |kind: &'static str, count: u64| {
        move |drill: &mut Drill| {
            drill.quality.lost_of_target.insert(kind.to_owned(), count);
        }
    };
    inconclusive("records_lost", lose("reclaim", 10));
    inconclusive("records_lost", lose("unheard_of", 10));
    inconclusive("records_lost", lose("sleep_booked_as_wait", 100));
    let in_doubt = spoilt(|drill| {
        lose("sleep_booked_as_wait", 100)(drill);
        drill.quality.target_waits = 10_000;
    });
    assert_eq!(in_doubt.verdict.outcome, Outcome::Attributed, "one wait in a hundred");
    assert_eq!(spoilt(lose("socket", 10_000)).verdict.outcome, Outcome::Attributed);
    assert_eq!(spoilt(lose("cgroup_slot", 10_000)).verdict.outcome, Outcome::Attributed);
    assert_eq!(spoilt(lose("reclaim", 0)).verdict.outcome, Outcome::Attributed);
    inconclusive("clock_stepped", |drill| {
        drill.quality.wall_clock_steps = 1;
        drill.quality.samples_on_wall_clock = true;
    });
    let stepped = spoilt(|drill| drill.quality.wall_clock_steps = 1);
    assert_eq!(stepped.verdict.outcome, Outcome::Attributed, "monotonic samples do not mind");
    inconclusive("foreign_clock", |drill| {
        for stall in &mut drill.stalls {
            stall.start.0 += 100_000 * SECOND;
            stall.end.0 += 100_000 * SECOND;
        }
    });
    inconclusive("clock_inexact", |drill| drill.quality.clock_uncertainty_ns = 500 * MS);
    inconclusive("clock_inexact", |drill| drill.samples[7].precision_ns = SECOND);
    inconclusive("observer_cpu", |drill| drill.quality.own_cpu.threads = 0.06);
    inconclusive("samples_skipped", |drill| drill.quality.skipped_samples = 100);
    inconclusive("requests_failed", |drill| {
        drill.samples.iter_mut().step_by(5).for_each(|sample| sample.ok = false);
    });
}

#[test]
fn an_unwatched_cause_matters_where_nothing_else_explains() {
    let unwatched = |usual| {
        let reason = "no perf events".to_owned();
        move |drill: &mut Drill| {
            let one = Unwatched { cause: Cause::FAULT_MAJOR, reason: reason.clone(), usual };
            drill.quality.unwatched.push(one);
        }
    };
    let named = spoilt(unwatched(true));
    assert_eq!(named.verdict.outcome, Outcome::Attributed);
    assert!(named.verdict.reasons.iter().any(|r| r.text.contains("fault_major was not watched")));
    inconclusive("not_watched", |drill| {
        drill.stalls.clear();
        unwatched(true)(drill);
    });
    let unexplained = spoilt(|drill| drill.stalls.clear());
    assert_eq!(unexplained.verdict.outcome, Outcome::Unexplained);

    // A probe that is off by default leaves the answer as it is, and its causes open.
    let named = spoilt(unwatched(false));
    assert_eq!(named.verdict.outcome, Outcome::Attributed);
    assert!(named.verdict.reasons.iter().all(|reason| reason.code != "not_watched"));
    assert!(named.ruled_out.iter().all(|row| row.cause != Cause::FAULT_MAJOR));
    let unexplained = spoilt(|drill| {
        drill.stalls.clear();
        unwatched(false)(drill);
    });
    assert_eq!(unexplained.verdict.outcome, Outcome::Unexplained);
    assert!(unexplained.verdict.reasons.iter().any(|reason| reason.code == "not_watched"));
}

#[test]
fn what_raised_floors_hid_matters_where_it_may_be_the_cause() {
    let hidden = |hidden_ns| {
        vec![Hidden {
            kind: "runqueue".into(),
            floor_ns: 80_000,
            raised_for_ns: 5 * SECOND,
            hidden_ns,
        }]
    };
    // Nothing named: a little is no matter, a lot may be the cause.
    let asleep = |hidden_ns| {
        let mut drill = Drill::new(0, 20);
        let sleep = |_, rng: &mut Xoshiro256PlusPlus| {
            if rng.random_bool(0.02) { 30 * MS } else { 0 }
        };
        drill.load(300, |_, _| 0, sleep);
        drill.quality.hidden = hidden(hidden_ns);
        drill.analyse().verdict
    };
    assert_eq!(asleep(MS).outcome, Outcome::Unexplained);
    let unsure = asleep(60 * SECOND);
    assert_eq!(unsure.outcome, Outcome::Inconclusive, "{unsure:?}");
    assert_eq!(unsure.reasons[0].code, "thresholds_raised");
    // A cause that accounts for nearly everything leaves no room for hidden stalls.
    let mut drill = squeezed(3, |drill| drill.jittered(5, SQUEEZE));
    drill.plain_load(400);
    drill.quality.hidden = hidden(60 * SECOND);
    let verdict = drill.analyse().verdict;
    assert_eq!(verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{verdict:?}");
}

#[test]
fn a_run_where_most_requests_are_slow_compares_with_the_others() {
    let mut drill = Drill::new(9, 25);
    drill.slow = SlowSpec::Threshold(5 * MS);
    for begin in drill.jittered(40, 300 * MS) {
        drill.culprit(Cause::RECLAIM_DIRECT, 1, begin, begin + 300 * MS);
    }
    let slow = |_, rng: &mut Xoshiro256PlusPlus| if rng.random_bool(0.1) { 10 * MS } else { 0 };
    drill.load(300, |_, _| 0, slow);
    let analysis = drill.analyse();
    analysis.check();
    assert!(analysis.samples.slow_count * 2 > analysis.samples.count);
    assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_DIRECT), "{analysis:#?}");
    assert!(analysis.of(Cause::RECLAIM_DIRECT).share > 0.9, "{analysis:#?}");

    drill.slow = SlowSpec::Threshold(100_000);
    let all = drill.analyse();
    assert_eq!(all.check().verdict.outcome, Outcome::Inconclusive);
}

#[test]
fn empty_and_senseless_input_is_answered() {
    let mut drill = Drill::new(1, 10);
    assert_eq!(drill.analyse().check().verdict.outcome, Outcome::NoSlowSamples);
    drill.culprit(Cause::RUNQUEUE, 1, 0, MS);
    assert_eq!(drill.analyse().check().verdict.outcome, Outcome::NoSlowSamples);
    drill.quality.skipped_samples = 3;
    assert_eq!(drill.analyse().check().verdict.outcome, Outcome::Inconclusive);

    drill.quality.skipped_samples = 0;
    drill.sample(11 * SECOND, 11 * SECOND, 12 * SECOND);
    drill.sample(3, 2, 1);
    let outside = drill.analyse();
    assert_eq!(outside.check().verdict.outcome, Outcome::Inconclusive);
    assert_eq!(outside.ignored.samples_outside_window, 1);
    assert_eq!(outside.ignored.samples_reversed, 1);
    assert_eq!(outside.samples.count, 0);

    drill.plain_load(400);
    drill.innocent(Cause::RUNQUEUE, 1, 9, 3);
    drill.innocent(Cause::LOAD_GENERATOR, 1, 3, 9);
    for quantile in [f64::NAN, -1.0, 0.0, 1.0, 7.0] {
        drill.slow = SlowSpec::Quantile(quantile);
        let analysis = drill.analyse();
        analysis.check();
        assert_eq!(analysis.ignored.samples_outside_window, 1);
        assert_eq!(analysis.ignored.stalls_empty_or_reversed, 1);
        assert_eq!(analysis.ignored.stalls_without_kernel_cause, 1);
        assert!(analysis.verdict.reasons.iter().any(|r| r.code == "samples_left_out"));
    }
    drill.window_ns = 0;
    assert_eq!(drill.analyse().check().verdict.outcome, Outcome::Inconclusive);
}

#[test]
fn failed_requests_are_said_before_slowness() {
    let failing = |slow: SlowSpec, every: usize| {
        let mut drill = Drill::new(1, 20);
        drill.slow = slow;
        drill.plain_load(100);
        for (index, sample) in drill.samples.iter_mut().step_by(every).enumerate() {
            sample.ok = false;
            sample.status = (index % 4 == 0).then_some(503);
            sample.error = (index % 4 != 0).then(|| "refused: by the host".to_owned());
        }
        let analysis = drill.analyse();
        analysis.check();
        analysis
    };
    for slow in [SlowSpec::Threshold(50 * MS), SlowSpec::default(), SlowSpec::Threshold(1)] {
        for every in [1, 2, 9] {
            let analysis = failing(slow, every);
            assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive, "{slow} {every}");
            let (first, samples) = (&analysis.verdict.reasons[0], &analysis.samples);
            assert_eq!(first.code, "requests_failed", "{slow} {every}");
            let (refused, status) =
                (samples.errors_by_kind["refused"], samples.errors_by_kind["status_503"]);
            assert_eq!(refused + status, samples.errors);
            assert_eq!(samples.errors, samples.count.div_ceil(every as u64));
            assert!(first.text.contains("refused, ") && first.text.contains(" status_503."));
            assert_eq!(first.evidence["by_kind"]["refused"], refused);
        }
        let analysis = failing(slow, 11);
        assert_eq!(analysis.verdict.reasons[0].code, "some_failed", "{slow}");
        assert!(!analysis.verdict.reasons[0].text.contains("before looking"));
    }
    let threshold = failing(SlowSpec::Threshold(50 * MS), 11);
    assert_eq!(threshold.verdict.outcome, Outcome::NoSlowSamples);
    assert_eq!(threshold.verdict.reasons[1].code, "none_slow");
}

#[test]
fn failures_of_ever_new_texts_are_bounded() {
    let mut drill = Drill::new(1, 20);
    drill.plain_load(100);
    for (index, sample) in drill.samples.iter_mut().enumerate() {
        (sample.ok, sample.status) = (false, None);
        sample.error = Some(format!("kind_{index}: x"));
    }
    let samples = drill.analyse().samples;
    assert!(samples.errors_by_kind.len() <= 51);
    assert_eq!(samples.errors_by_kind.values().sum::<u64>(), samples.count);
}
