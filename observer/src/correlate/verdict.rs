//! Whether the evidence allows an answer, and which.

use observer_ebpf::wire::LossKind;

use super::attribute::Found;
use super::exposure::Population;
use super::timeline::Timelines;
use super::{Evidence, Ignored};
use crate::model::{Cause, CauseSummary, Outcome, SlowSpec, Verdict};

/// Slow samples needed for an answer.
const LEAST_SLOW: u64 = 5;
/// Episodes of slow samples needed: two may well be chance.
const LEAST_EPISODES: u64 = 3;
/// Typical samples needed to say what is typical.
const LEAST_TYPICAL: usize = 5;
/// Above a quantile there are always samples. Less excess than this, or than the typical
/// response itself (a mean tail within twice the typical), is how healthy services look.
const HEALTHY_EXCESS_NS: f64 = 500_000.0;
/// More records of a kind lost than this share: the missing ones may be the ones that matter.
const MOST_LOST: f64 = 0.001;
/// Waits whose begin the kernel has wrong. They are held against all waits of the target, since they
/// are of any length, and more of them may be missing, since they are ordinary wake-ups: a full ring
/// loses whatever comes at the worst moment.
const IN_DOUBT: &str = LossKind::SleepBookedAsWait.name();
/// Part of the waits that may be such.
const MOST_IN_DOUBT: f64 = 0.05;
/// Stalls hidden by raised floors, as a share of the excess latency, above which they may be a
/// cause: as much as a cause must have to be named.
const MOST_HIDDEN: f64 = 0.05;
/// Clock error tolerated, as a share of the mean slow response.
const MOST_CLOCK_ERROR: f64 = 0.2;
/// Share of the host's CPU above which the observer may itself be the cause.
const MOST_OWN_CPU: f64 = 0.05;
/// Rows skipped, as a share of all: the unreadable ones may be the slow ones.
const MOST_SKIPPED: f64 = 0.01;
/// Failed requests, as a share of all, above which latency is not the problem.
const MOST_FAILED: f64 = 0.1;

fn verdict(outcome: Outcome, reason: impl Into<String>) -> Verdict {
    Verdict { outcome, top_cause: None, reasons: vec![reason.into()] }
}

/// Nanoseconds with a unit people read.
fn human(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{:.2} s", ns / 1e9),
        ns if ns >= 1e7 => format!("{:.0} ms", ns / 1e6),
        ns if ns >= 1e6 => format!("{:.1} ms", ns / 1e6),
        ns => format!("{:.0} us", ns / 1e3),
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 1.0 && percent > 0.0 {
        format!("{percent:.2} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// The answer where attribution has nothing to work on: no samples, none slow, none typical.
pub(super) fn nothing_to_explain(
    evidence: &Evidence<'_>,
    population: &Population,
) -> Option<Verdict> {
    let summary = &population.summary;
    let skipped = evidence.quality.skipped_samples;
    let rows = evidence.samples.len() as u64 + skipped;
    if rows == 0 {
        return Some(verdict(Outcome::NoSlowSamples, "there are no samples"));
    }
    if summary.count == 0 {
        let reason = format!("none of the {rows} samples can be used: they lie outside the run");
        let unreadable = format!("none of the {rows} samples can be used: {skipped} unreadable");
        let reason = if skipped == rows { unreadable } else { reason };
        return Some(verdict(Outcome::Inconclusive, reason));
    }
    if skipped as f64 > rows as f64 * MOST_SKIPPED {
        let reason = format!(
            "{skipped} of {rows} samples ({}) could not be used: they may be the slow ones",
            percent(skipped as f64 / rows as f64)
        );
        return Some(verdict(Outcome::Inconclusive, reason));
    }
    if summary.slow_count == 0 {
        let slowest = human(summary.latency_ns.max as f64);
        let reason = match evidence.slow {
            SlowSpec::Threshold(_) => format!(
                "no request of {} took longer than {}; the slowest took {slowest}",
                summary.count, evidence.slow
            ),
            SlowSpec::Quantile(_) => format!(
                "no request of {} is above {}: the slowest took {slowest}",
                summary.count, evidence.slow
            ),
        };
        return Some(verdict(Outcome::NoSlowSamples, reason));
    }
    if population.typical.len() < LEAST_TYPICAL {
        let reason = format!(
            "{} of {} requests are slow and {} of the successful others are typical: too few to \
             compare with",
            summary.slow_count,
            summary.count,
            population.typical.len()
        );
        return Some(verdict(Outcome::Inconclusive, reason));
    }
    let healthy = HEALTHY_EXCESS_NS.max(summary.typical_mean_ns);
    if matches!(evidence.slow, SlowSpec::Quantile(_)) && population.excess_ns() < healthy {
        let reason = format!(
            "requests above {} took {} on average, typical ones {}: no problem to explain",
            evidence.slow,
            human(summary.slow_mean_ns),
            human(summary.typical_mean_ns)
        );
        return Some(verdict(Outcome::NoSlowSamples, reason));
    }
    None
}

/// The answer to what was found. An inconclusive run names no cause.
pub(super) fn decide(
    evidence: &Evidence<'_>,
    population: &Population,
    timelines: &Timelines,
    found: &mut Found,
) -> Verdict {
    let mut problems = quality(evidence, population, timelines);
    problems.extend(too_few(evidence, population, found));
    let top_cause = found.causes.iter().find(|cause| cause.named).map(|cause| cause.cause);
    problems.extend(hidden(evidence, population, found));
    if top_cause.is_none() {
        problems.append(&mut found.ambiguous);
        problems.extend(evidence.quality.unwatched.iter().map(|unwatched| {
            format!("{} was not watched: {}", unwatched.cause.name(), unwatched.reason)
        }));
    }
    if !problems.is_empty() {
        for cause in &mut found.causes {
            cause.named = false;
        }
        return Verdict { outcome: Outcome::Inconclusive, top_cause: None, reasons: problems };
    }
    let excess = human(population.excess_ns());
    if top_cause.is_none() {
        let reason = format!(
            "no watched cause carries the {excess} that slow requests took longer than typical ones"
        );
        return verdict(Outcome::Unexplained, reason);
    }
    let sentence = |cause: &CauseSummary| {
        format!(
            "{} carries {} (95 % interval {:.0} to {:.0} %) of the {excess} that slow requests \
             took longer than typical ones: {}",
            cause.cause.name(),
            percent(cause.share),
            cause.ci95[0] * 100.0,
            cause.ci95[1] * 100.0,
            cause.cause.info().sentence
        )
    };
    let mut reasons: Vec<String> =
        found.causes.iter().filter(|cause| cause.named).map(sentence).collect();
    reasons.extend(evidence.quality.unwatched.iter().map(|unwatched| {
        format!(
            "{} was not watched and may be part of the rest: {}",
            unwatched.cause.name(),
            unwatched.reason
        )
    }));
    Verdict { outcome: Outcome::Attributed, top_cause, reasons }
}

/// Reasons why the evidence as a whole cannot be trusted.
fn quality(evidence: &Evidence<'_>, population: &Population, timelines: &Timelines) -> Vec<String> {
    let quality = &evidence.quality;
    let summary = &population.summary;
    let mut problems: Vec<String> = quality
        .lost_records
        .iter()
        .filter_map(|(kind, lost)| loss(kind, *lost, quality.target_waits, timelines))
        .collect();
    if quality.samples_on_wall_clock && quality.wall_clock_steps > 0 {
        problems.push(format!(
            "the wall clock stepped {} times during the run, and the samples' times came over it",
            quality.wall_clock_steps
        ));
    }
    let error_ns = quality.clock_uncertainty_ns.saturating_add(population.precision_ns) as f64;
    if error_ns > summary.slow_mean_ns * MOST_CLOCK_ERROR {
        problems.push(format!(
            "the samples' times are exact to {} only, slow requests took {} on average",
            human(error_ns),
            human(summary.slow_mean_ns)
        ));
    }
    if quality.observer_cpu_share > MOST_OWN_CPU {
        problems.push(format!(
            "the observer itself used {} of the host's CPU time (limit {})",
            percent(quality.observer_cpu_share),
            percent(MOST_OWN_CPU)
        ));
    }
    if summary.errors as f64 > summary.count as f64 * MOST_FAILED {
        problems.push(format!(
            "{} of {} requests failed: their latency says little",
            summary.errors, summary.count
        ));
    }
    problems
}

/// A sentence if so many records of the kind were lost that it matters.
fn loss(kind: &str, lost: u64, target_waits: u64, timelines: &Timelines) -> Option<String> {
    let all: Vec<Cause>;
    let causes: &[Cause] = match kind {
        "runqueue" | IN_DOUBT => &[Cause::RUNQUEUE],
        "fault" => &[Cause::FAULT_MINOR, Cause::FAULT_MAJOR],
        "reclaim" => &[Cause::RECLAIM_DIRECT, Cause::RECLAIM_MEMCG],
        "compaction" => &[Cause::COMPACTION],
        "mm_syscall" => &[Cause::MM_SYSCALL],
        // These stall nobody.
        "socket" | "fd_failure" | "task" | "thread_name" => return None,
        // An unknown loss may be one of anything.
        _ => {
            all = Cause::all().filter(|cause| cause.is_stall()).collect();
            &all
        }
    };
    let seen: u64 = causes.iter().map(|cause| timelines.stalls(*cause)).sum();
    let (seen, limit) = match kind {
        IN_DOUBT => (seen.max(target_waits), MOST_IN_DOUBT),
        _ => (seen, MOST_LOST),
    };
    let share = lost as f64 / lost.saturating_add(seen).max(1) as f64;
    (share > limit).then(|| {
        format!(
            "{lost} {kind} records were lost ({} of them, limit {})",
            percent(share),
            percent(limit)
        )
    })
}

/// What was too short to be recorded while floors were raised cannot be placed. Should all of it
/// lie in the slow requests, and be more than the largest named cause (or, without one, more than a
/// cause must have to be named), then the answer might be another one.
fn hidden(evidence: &Evidence<'_>, population: &Population, found: &Found) -> Option<String> {
    let hidden = &evidence.quality.hidden;
    let hidden_ns: u64 = hidden.iter().map(|kind| kind.hidden_ns).sum();
    let excess_ns = population.excess_ns() * population.summary.slow_count as f64;
    let named = found.causes.iter().filter(|cause| cause.named);
    let (largest, all) = named.fold((0.0_f64, 0.0), |(largest, all), cause| {
        (largest.max(cause.share), all + cause.share)
    });
    // What is carried by named causes cannot be carried by hidden stalls as well.
    let share = (hidden_ns as f64 / excess_ns.max(1.0)).min(1.0 - all);
    if share <= largest.max(MOST_HIDDEN) {
        return None;
    }
    let kinds: Vec<String> = hidden
        .iter()
        .map(|kind| {
            format!(
                "{} (up to {}, for {})",
                kind.kind,
                human(kind.floor_ns as f64),
                human(kind.raised_for_ns as f64)
            )
        })
        .collect();
    Some(format!(
        "there were so many records that their floors rose: {}; the {} of shorter stalls that went \
         unrecorded may carry {} of the excess latency",
        kinds.join(", "),
        human(hidden_ns as f64),
        percent(share)
    ))
}

fn too_few(evidence: &Evidence<'_>, population: &Population, found: &Found) -> Option<String> {
    let summary = &population.summary;
    if summary.slow_count < LEAST_SLOW {
        return Some(format!(
            "{} of {} requests are slow (rule {}), an answer needs {LEAST_SLOW}: a longer run or \
             a lower limit gives more",
            summary.slow_count, summary.count, evidence.slow
        ));
    }
    (found.episodes < LEAST_EPISODES).then(|| {
        format!(
            "the {} slow requests came in {} episodes, an answer needs {LEAST_EPISODES}: fewer \
             may coincide with anything",
            summary.slow_count, found.episodes
        )
    })
}

/// What the reader of any outcome should know.
pub(super) fn notes(
    evidence: &Evidence<'_>,
    population: &Population,
    ignored: &Ignored,
) -> Vec<String> {
    let mut notes = Vec::new();
    if population.summary.count > 0 && !population.summary.intended_start_known {
        notes.push(
            "the generator does not say when requests should have been sent: latencies are open \
             to coordinated omission"
                .to_owned(),
        );
    }
    let left_out = ignored.samples_outside_window + ignored.samples_reversed;
    if left_out > 0 && population.summary.count > 0 {
        notes.push(format!(
            "{left_out} of {} samples were left out: {} not within the run, {} end before they \
             begin",
            evidence.samples.len(),
            ignored.samples_outside_window,
            ignored.samples_reversed
        ));
    }
    if ignored.stalls_empty_or_reversed > 0 {
        notes.push(format!(
            "{} stalls of no length were left out",
            ignored.stalls_empty_or_reversed
        ));
    }
    notes
}
