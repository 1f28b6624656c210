//! Known-answer drills about loss, and about what can be ruled out.

use super::drill::{Drill, MS, ORIGIN, SECOND};
use super::*;

/// Twelve squeezes in half a minute, and where each begins.
fn squeezed() -> (Drill, Vec<u64>) {
    let mut drill = Drill::new(7, 30);
    let begins = drill.jittered(12, 60 * MS);
    for begin in &begins {
        drill.squeeze(Cause::RECLAIM_MEMCG, *begin, begin + 60 * MS);
    }
    drill.plain_load(500);
    (drill, begins)
}

fn lose(drill: &mut Drill, kind: &str, from: u64, length: u64, count: u64) {
    let start = MonoNanos(ORIGIN + from);
    let end = MonoNanos(start.0 + length);
    drill.quality.loss_spans.push(LossSpan { start, end, kind: kind.to_owned(), count });
    *drill.quality.lost_of_target.entry(kind.to_owned()).or_default() += count;
}

#[test]
fn only_requests_in_the_seconds_of_a_loss_are_left_out() {
    let (mut drill, begins) = squeezed();
    let whole = drill.analyse();
    assert_eq!(whole.verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
    assert_eq!(whole.samples.slow_left_out, 0);

    let lost: Vec<(u64, u64)> =
        begins[..3].iter().map(|begin| (begin / SECOND * SECOND, SECOND)).collect();
    for (from, length) in &lost {
        lose(&mut drill, "reclaim", *from, *length, 40);
    }
    let analysis = drill.analyse();
    analysis.check();
    assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{analysis:#?}");
    assert_eq!(
        analysis.samples.slow_count + analysis.samples.slow_left_out,
        whole.samples.slow_count
    );
    let threshold_ns = whole.samples.slow_threshold_ns;
    assert_eq!(
        analysis.samples.slow_threshold_ns, threshold_ns,
        "the rule is that of all requests"
    );
    let spoilt = |sample: &&Sample| {
        let (begin, end) = (sample.begin().0 - ORIGIN, sample.end.0 - ORIGIN);
        lost.iter().any(|(from, length)| begin < from + length && end > *from)
    };
    let slow = drill.samples.iter().filter(|sample| sample.response_ns() >= threshold_ns);
    assert_eq!(analysis.samples.slow_left_out, slow.filter(spoilt).count() as u64);
    assert!(analysis.samples.slow_left_out > 0);
    let reason = analysis.verdict.reasons.iter().find(|reason| reason.code == "seconds_left_out");
    let evidence = &reason.expect("it is reported").evidence;
    assert_eq!(evidence["left_out"], analysis.samples.slow_left_out);
    assert!(analysis.ruled_out.iter().all(|row| row.cause != Cause::RECLAIM_DIRECT), "in doubt");
}

#[test]
fn a_loss_that_cannot_be_placed_or_is_everywhere_voids_the_run() {
    let code = |drill: &Drill| {
        let verdict = drill.analyse().check().verdict.clone();
        assert_eq!(verdict.outcome, Outcome::Inconclusive, "{verdict:?}");
        verdict.reasons[0].code.clone()
    };
    let (mut drill, begins) = squeezed();
    lose(&mut drill, "reclaim", begins[0], SECOND, 40);
    *drill.quality.lost_of_target.get_mut("reclaim").expect("lost") += 1;
    assert_eq!(code(&drill), "records_lost", "one of them may be anywhere");

    let (mut drill, begins) = squeezed();
    lose(&mut drill, "reclaim", begins[0], SECOND, 40);
    lose(&mut drill, "fault", begins[0], SECOND, 40);
    drill.quality.loss_spans.retain(|span| span.kind == "reclaim");
    assert_eq!(code(&drill), "records_lost", "of the other kind nothing is known");

    let (mut drill, _) = squeezed();
    for second in 0..30 {
        lose(&mut drill, "reclaim", second * SECOND, SECOND, 4);
    }
    assert_eq!(code(&drill), "records_lost", "nothing remains");

    // Most of the slow requests: the others may not be like them.
    let (mut drill, begins) = squeezed();
    for begin in &begins[..9] {
        lose(&mut drill, "reclaim", *begin, SECOND, 4);
    }
    assert_eq!(code(&drill), "few_slow");
}

#[test]
fn a_small_loss_and_one_that_hides_nothing_leave_nothing_out() {
    let (mut drill, begins) = squeezed();
    lose(&mut drill, "socket", begins[0], SECOND, 9_999);
    lose(&mut drill, "cgroup_slot", begins[0], SECOND, 9_999);
    lose(&mut drill, "reclaim", begins[0], SECOND, 0);
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.top_cause, Some(Cause::RECLAIM_MEMCG));
    assert_eq!(analysis.samples.slow_left_out, 0);
    assert!(analysis.verdict.reasons.iter().all(|reason| reason.code != "seconds_left_out"));
}

#[test]
fn what_was_watched_and_has_no_part_is_ruled_out() {
    let (mut drill, _) = squeezed();
    // Very short faults all the time: they have no part in anything.
    for i in 0..3_000 {
        drill.innocent(Cause::FAULT_MINOR, 3, i * 10 * MS, i * 10 * MS + 1_000);
    }
    let reason = "not asked for".to_owned();
    drill.quality.unwatched = vec![Unwatched { cause: Cause::COMPACTION, reason, usual: true }];
    let hidden = Hidden { kind: "runqueue".into(), floor_ns: 1, raised_for_ns: 1, hidden_ns: 1 };
    drill.quality.hidden = vec![hidden];
    let analysis = drill.analyse();
    let code = |cause: Cause| {
        let row = analysis.ruled_out.iter().find(|row| row.cause == cause);
        row.map(|row| row.reason.code.as_str())
    };
    assert_eq!(code(Cause::MM_SYSCALL), Some("no_stalls"));
    assert_eq!(code(Cause::FAULT_MINOR), Some("share_bounded"), "{analysis:#?}");
    assert_eq!(code(Cause::RECLAIM_MEMCG), None, "it is the cause");
    assert_eq!(code(Cause::COMPACTION), None, "it was not watched");
    assert_eq!(code(Cause::RUNQUEUE), None, "short ones went unrecorded");

    *drill.quality.lost_of_target.entry("reclaim".to_owned()).or_default() = 999;
    assert!(drill.analyse().ruled_out.is_empty(), "an inconclusive run rules nothing out");
}
