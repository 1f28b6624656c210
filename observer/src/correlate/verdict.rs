//! Whether the evidence allows an answer, and which.

use serde_json::json;

use super::attribute::{Found, LEAST_SHARE};
use super::exposure::Population;
use super::loss::Losses;
use super::short::Weighty;
use super::timeline::StallLines;
use super::{Evidence, Hidden, Ignored, OwnCpu, Unwatched, closed_loop};
use crate::model::{
    Cause, CauseSummary, Outcome, Reason, RuledOut, SamplesSummary, SlowSpec, Stall, Verdict,
};
use crate::text::{count, duration, percent};

/// Slow samples needed for an answer.
const LEAST_SLOW: u64 = 5;
/// Episodes of slow samples needed: two may be coincidence.
const LEAST_EPISODES: u64 = 3;
/// Typical samples needed to say what is typical.
const LEAST_TYPICAL: usize = 5;
/// There are always samples above a quantile. A service is healthy if the extra latency is below
/// this, or below the typical response itself (a mean tail within twice the typical response).
const HEALTHY_EXCESS_NS: f64 = 500_000.0;
/// Where all of the time of the requests is accounted for, the extra latency need not be so large: below
/// this part of the typical response it is no problem.
const HEALTHY_PART: f64 = 0.25;
/// If more of the slow samples than this are left out, the others may differ from them.
const MOST_LEFT_OUT: f64 = 0.5;
/// Stalls hidden by raised thresholds, as a share of the extra latency, above which they may be a
/// cause: as much as a cause must have to be named.
const MOST_HIDDEN: f64 = LEAST_SHARE;
/// Clock error tolerated, as a share of the mean slow response.
const MOST_CLOCK_ERROR: f64 = 0.2;
/// Share of the host's CPU above which observer may itself be the cause.
const MOST_OWN_CPU: f64 = 0.05;
/// Rows skipped, as a share of all: the unreadable ones may be the slow ones.
const MOST_SKIPPED: f64 = 0.01;
/// A stall this far outside the run was not recorded on the run's clock: it takes seconds at most to
/// attach and detach.
const FOREIGN_CLOCK_NS: u64 = 60_000_000_000;
/// Failed requests, as a share of all, above which latency is not the problem.
const MOST_FAILED: f64 = 0.1;
/// Lateness of the generator, as a share of the extra latency, from which on it is the answer.
const MOST: f64 = 0.5;
/// Kinds of failed requests that are named.
const KINDS_NAMED: usize = 5;

const fn verdict(outcome: Outcome, reasons: Vec<Reason>) -> Verdict {
    Verdict { outcome, top_cause: None, reasons }
}

/// The answer when attribution has no input: no samples, none slow, none typical.
pub(super) fn nothing_to_explain(
    evidence: &Evidence<'_>,
    population: &Population,
    losses: &Losses,
) -> Option<Verdict> {
    let summary = &population.summary;
    let skipped = evidence.quality.skipped_samples;
    let rows = evidence.samples.len() as u64 + skipped;
    let used = count(summary.count);
    let slow = evidence.slow;
    let (outcome, code, text, numbers) = if rows == 0 {
        let text = "There are no samples of a load generator.".to_owned();
        (Outcome::NoSlowSamples, "no_samples", text, json!({}))
    } else if summary.count == 0 {
        let why = if skipped == rows { "could be read" } else { "lies within the run" };
        let text = format!("None of the {} samples can be used: none {why}.", count(rows));
        let numbers = json!({"rows": rows, "unreadable": skipped});
        (Outcome::Inconclusive, "samples_unusable", text, numbers)
    } else if summary.errors as f64 > summary.count as f64 * MOST_FAILED {
        // `failed` says it.
        return Some(verdict(Outcome::Inconclusive, Vec::new()));
    } else if skipped as f64 > rows as f64 * MOST_SKIPPED {
        let share = skipped as f64 / rows as f64;
        let text = format!(
            "{} of {} samples ({}) could not be used; they may be the slow ones.",
            count(skipped),
            count(rows),
            percent(share)
        );
        let numbers = json!({"rows": rows, "skipped": skipped, "limit": MOST_SKIPPED});
        (Outcome::Inconclusive, "samples_skipped", text, numbers)
    } else if summary.slow_count + summary.slow_left_out == 0 {
        let slowest = duration(summary.latency_ns.max as f64);
        let text = match slow {
            SlowSpec::Threshold(_) => format!(
                "None of {used} requests took longer than {slow}; the slowest took {slowest}."
            ),
            SlowSpec::Quantile(_) => {
                format!("None of {used} requests is above {slow}; the slowest took {slowest}.")
            }
        };
        let numbers = json!({"count": summary.count, "max_ns": summary.latency_ns.max});
        (Outcome::NoSlowSamples, "none_slow", text, numbers)
    } else if population.typical.len() < LEAST_TYPICAL && losses.any_placed() {
        let kinds = losses.placed.join(", ");
        let text = format!(
            "Records of the target were lost during most of the run ({kinds}); too few requests \
             remain."
        );
        let numbers = json!({"kinds": losses.placed, "slow": summary.slow_count});
        (Outcome::Inconclusive, "records_lost", text, numbers)
    } else if population.typical.len() < LEAST_TYPICAL {
        let typical = population.typical.len();
        let text = format!(
            "{} of {used} requests are slow, and only {typical} of the successful others are \
             typical; that is too few to compare with. Raise --slow.",
            count(summary.slow_count + summary.slow_left_out),
        );
        let numbers =
            json!({"slow": summary.slow_count, "typical": typical, "least": LEAST_TYPICAL});
        (Outcome::Inconclusive, "few_typical", text, numbers)
    } else {
        let is_certain = population.has_account();
        let part = if is_certain { HEALTHY_PART } else { 1.0 };
        let healthy = HEALTHY_EXCESS_NS.max(summary.typical_mean_ns * part);
        let quantile = matches!(slow, SlowSpec::Quantile(_));
        if !quantile || summary.slow_count == 0 || population.excess_ns() >= healthy {
            return None;
        }
        let text = format!(
            "Requests above {slow} took {} on average and typical ones {}; there is no latency \
             problem to explain.",
            duration(summary.slow_mean_ns),
            duration(summary.typical_mean_ns)
        );
        let numbers = json!({
            "slow_mean_ns": summary.slow_mean_ns, "typical_mean_ns": summary.typical_mean_ns,
            "limit_ns": healthy,
        });
        (Outcome::NoSlowSamples, "healthy", text, numbers)
    };
    Some(verdict(outcome, vec![Reason::new(code, text, numbers)]))
}

/// The answer from the result of attribution. An inconclusive run names no cause.
pub(super) fn decide(
    evidence: &Evidence<'_>,
    population: &Population,
    losses: &Losses,
    found: &mut Found,
) -> Verdict {
    let mut problems = losses.unplaced.clone();
    problems.extend(quality(evidence, population));
    problems.extend(too_few(evidence, population, found));
    let named = || found.causes.iter().filter(|cause| cause.named);
    let late = named().find(|row| row.cause == Cause::LOAD_GENERATOR).map_or(0.0, |row| row.share);
    let is_limited = late >= MOST;
    // A smaller part of lateness is no answer: the service is slow for another reason.
    let can_be_top = |row: &&CauseSummary| is_limited || row.cause != Cause::LOAD_GENERATOR;
    let top_cause = named().find(can_be_top).map(|row| row.cause);
    problems.extend(hidden(evidence, population, found));
    let unwatched = |usual, part| {
        // The time that threads slept has a reason of its own.
        let all = evidence.quality.unwatched.iter().filter(|one| one.cause.is_stall());
        all.filter(move |one| one.usual == usual).map(move |one| not_watched(one, part))
    };
    if top_cause.is_none() {
        problems.append(&mut found.ambiguous);
        problems.extend(unwatched(true, ""));
    }
    let left_out = left_out(population, losses);
    if !problems.is_empty() {
        for cause in &mut found.causes {
            cause.named = false;
        }
        problems.extend(left_out);
        return verdict(Outcome::Inconclusive, problems);
    }
    let excess_ns = population.excess_ns();
    let excess = duration(excess_ns);
    if top_cause.is_none() {
        let text = format!(
            "No watched cause accounts for the {excess} that slow requests took longer than \
             typical ones."
        );
        let mut reasons =
            vec![Reason::new("nothing_found", text, json!({"extra_latency_ns": excess_ns}))];
        reasons.extend(named().map(|cause| accounts_for(cause, &excess)));
        reasons.extend(unwatched(false, ""));
        reasons.extend(left_out);
        return verdict(Outcome::Unexplained, reasons);
    }
    let mut reasons: Vec<Reason> = named().map(|cause| accounts_for(cause, &excess)).collect();
    reasons.extend(unwatched(true, " It may be part of the rest."));
    reasons.extend(left_out);
    let outcome = if is_limited { Outcome::GeneratorLimited } else { Outcome::Attributed };
    Verdict { outcome, top_cause, reasons }
}

fn accounts_for(row: &CauseSummary, excess: &str) -> Reason {
    let CauseSummary { cause, share, ci95, p_value, contribution_ns, stalls, .. } = row;
    let text = format!(
        "{} accounts for {} (95 % interval {} to {}) of the {excess} that slow requests took \
         longer than typical ones: {}.",
        cause.name(),
        percent(*share),
        percent(ci95[0]),
        percent(ci95[1]),
        cause.info().sentence
    );
    let numbers = json!({
        "cause": cause, "share": share, "ci95": ci95, "p_value": p_value,
        "contribution_ns": contribution_ns, "stalls": stalls,
    });
    Reason::new("cause_named", text, numbers)
}

fn not_watched(unwatched: &Unwatched, part: &str) -> Reason {
    let Unwatched { cause, reason, .. } = unwatched;
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    Reason::new(
        "not_watched",
        format!("{} was not watched{why}.{part}", cause.name()),
        json!({"cause": cause, "reason": reason}),
    )
}

/// Causes that were watched and can have no part in a conclusive answer.
pub(super) fn ruled_out(
    evidence: &Evidence<'_>,
    stall_lines: &StallLines,
    losses: &Losses,
    found: &Found,
    short: &[Weighty<'_>],
) -> Vec<RuledOut> {
    let quality = &evidence.quality;
    let in_doubt = |cause: Cause| {
        found.covering.contains(&cause)
            || quality.unwatched.iter().any(|unwatched| unwatched.cause == cause)
            || quality.hidden.iter().any(|hidden| hidden.is_of(cause))
            || short.iter().any(|short| short.is_of(cause))
            || losses.placed.iter().any(|kind| crate::model::hidden_causes(kind).contains(&cause))
    };
    let watched = Cause::all().filter(|cause| cause.is_stall() && !in_doubt(*cause));
    watched
        .filter_map(|cause| {
            let stalls = stall_lines.stalls(cause);
            let row = found.causes.iter().find(|row| row.cause == cause);
            let (share, ci95) = row.map_or((0.0, [0.0; 2]), |row| (row.share, row.ci95));
            let named = row.is_some_and(|row| row.named);
            let name = cause.name();
            let reason = if stalls == 0 {
                let text = format!("No stall of {name} was recorded during the run.");
                Reason::new("no_stalls", text, json!({"stalls": 0}))
            } else if row.is_some() && !named && ci95[1] < LEAST_SHARE {
                let bound = percent(ci95[1]);
                let text = format!("{name} accounts for {bound} of the extra latency at most.");
                let numbers = json!({"ci95": ci95, "limit": LEAST_SHARE});
                Reason::new("share_bounded", text, numbers)
            } else {
                return None;
            };
            Some(RuledOut { cause, share, ci95, stalls, reason })
        })
        .collect()
}

/// Slow requests that were left out because of a loss.
fn left_out(population: &Population, losses: &Losses) -> Option<Reason> {
    let summary = &population.summary;
    let (left_out, slow) = (summary.slow_left_out, summary.slow_count + summary.slow_left_out);
    losses.any_placed().then(|| {
        let kinds = losses.placed.join(", ");
        let text = format!(
            "{} of {} slow requests were left out because records of the target were lost while \
             they ran ({kinds}).",
            count(left_out),
            count(slow)
        );
        let numbers = json!({"left_out": left_out, "slow": slow, "kinds": losses.placed});
        Reason::new("seconds_left_out", text, numbers)
    })
}

/// Reasons why the evidence as a whole cannot be trusted.
fn quality(evidence: &Evidence<'_>, population: &Population) -> Vec<Reason> {
    let quality = &evidence.quality;
    let summary = &population.summary;
    let mut problems = Vec::new();
    problems.extend(foreign_clock(evidence));
    if quality.samples_on_wall_clock && quality.wall_clock_steps > 0 {
        let steps = quality.wall_clock_steps;
        let text = format!(
            "The wall clock stepped {steps} times during the run, and the samples have wall-clock \
             times. Stop the clock from being set during a run."
        );
        problems.push(Reason::new("clock_stepped", text, json!({"steps": steps})));
    }
    let error_ns = population.clock_error_ns.saturating_add(population.precision_ns) as f64;
    if error_ns > summary.slow_mean_ns * MOST_CLOCK_ERROR {
        let text = format!(
            "The samples' times are exact to {} only, and slow requests took {} on average.",
            duration(error_ns),
            duration(summary.slow_mean_ns)
        );
        let numbers = json!({"error_ns": error_ns, "slow_mean_ns": summary.slow_mean_ns});
        problems.push(Reason::new("clock_inexact", text, numbers));
    }
    // Where all of the time of the requests is accounted for, waits for observer's threads are, too.
    let OwnCpu { threads, programs } = quality.own_cpu;
    let (who, share) = match population.has_account() {
        true => ("observer's BPF programs", programs),
        false => ("observer and its BPF programs", threads + programs),
    };
    if share > MOST_OWN_CPU {
        let text = format!(
            "{who} used {} of the CPU time that the target could have had (limit {}). Watch less with \
             --probes.",
            percent(share),
            percent(MOST_OWN_CPU)
        );
        let numbers = json!({"share": share, "limit": MOST_OWN_CPU});
        problems.push(Reason::new("observer_cpu", text, numbers));
    }
    problems
}

/// All stalls lie far outside the run, which a time namespace would cause.
fn foreign_clock(evidence: &Evidence<'_>) -> Option<Reason> {
    let (start, end) = evidence.window;
    let far = |stall: &Stall| {
        start.since(stall.end) > FOREIGN_CLOCK_NS || stall.start.since(end) > FOREIGN_CLOCK_NS
    };
    let stalls = evidence.stalls.len();
    (stalls > 0 && evidence.stalls.iter().all(far)).then(|| {
        let text = format!(
            "All {} recorded stalls lie far outside the run: observer and the kernel did not use \
             the same clock. Run observer outside the time namespace.",
            count(stalls as u64)
        );
        Reason::new("foreign_clock", text, json!({"stalls": stalls}))
    })
}

/// The failed requests, if there are any: said before everything else, and alone if there are many.
pub(super) fn failed(summary: &SamplesSummary) -> Option<Reason> {
    if summary.errors == 0 {
        return None;
    }
    let share = summary.errors as f64 / summary.count as f64;
    let mut kinds: Vec<(&String, &u64)> = summary.errors_by_kind.iter().collect();
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let rest: u64 = kinds.iter().skip(KINDS_NAMED).map(|(_, count)| **count).sum();
    let mut named: Vec<String> =
        kinds.iter().take(KINDS_NAMED).map(|(kind, n)| format!("{} {kind}", count(**n))).collect();
    if rest > 0 {
        named.push(format!("{} of other kinds", count(rest)));
    }
    let (code, advice) = if share > MOST_FAILED {
        ("requests_failed", " Fix that before looking at latency.")
    } else {
        ("some_failed", "")
    };
    let text = format!(
        "{} of {} requests failed ({}): {}.{advice}",
        count(summary.errors),
        count(summary.count),
        percent(share),
        named.join(", ")
    );
    let numbers = json!({
        "failed": summary.errors, "count": summary.count, "by_kind": summary.errors_by_kind,
        "limit": MOST_FAILED,
    });
    Some(Reason::new(code, text, numbers))
}

/// What was too short to be recorded while thresholds were raised cannot be placed. Should all of
/// it lie in the slow requests, and be more than the largest named cause (or, without one, more than
/// a cause must have to be named), then the answer might be another one.
fn hidden(evidence: &Evidence<'_>, population: &Population, found: &Found) -> Option<Reason> {
    // Threads sleep most of the time, and it is not known for whom.
    let is_stall = |one: &&Hidden| !one.is_of(Cause::SERVICE_WAIT);
    let hidden: Vec<&Hidden> = evidence.quality.hidden.iter().filter(is_stall).collect();
    let hidden_ns: u64 = hidden.iter().map(|kind| kind.hidden_ns).sum();
    let excess_ns = population.excess_ns() * population.summary.slow_count as f64;
    let named = found.causes.iter().filter(|cause| cause.named);
    let (largest, all) = named.fold((0.0_f64, 0.0), |(largest, all), cause| {
        (largest.max(cause.share), all + cause.share)
    });
    // What named causes account for cannot be due to hidden stalls as well.
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
                duration(kind.floor_ns as f64),
                duration(kind.raised_for_ns as f64)
            )
        })
        .collect();
    let text = format!(
        "There were so many records that recording thresholds rose: {}. The {} of shorter stalls \
         that went unrecorded may account for {} of the extra latency.",
        kinds.join(", "),
        duration(hidden_ns as f64),
        percent(share)
    );
    let kinds: Vec<&str> = hidden.iter().map(|kind| kind.kind.as_str()).collect();
    let numbers = json!({"kinds": kinds, "hidden_ns": hidden_ns, "share": share});
    Some(Reason::new("thresholds_raised", text, numbers))
}

fn too_few(evidence: &Evidence<'_>, population: &Population, found: &Found) -> Option<Reason> {
    let summary = &population.summary;
    let (slow, left_out) = (summary.slow_count, summary.slow_left_out);
    let numbers = |least: u64| {
        json!({
            "slow": slow, "left_out": left_out, "count": summary.count,
            "episodes": found.episodes, "least": least,
        })
    };
    if slow < LEAST_SLOW || left_out as f64 > (slow + left_out) as f64 * MOST_LEFT_OUT {
        let usable = if left_out > 0 { " that can be used" } else { "" };
        let text = format!(
            "Only {slow} slow requests{usable} of {} (rule: {}); at least {} are needed. Run \
             longer or lower --slow.",
            count(summary.count),
            evidence.slow,
            LEAST_SLOW.max(left_out)
        );
        return Some(Reason::new("few_slow", text, numbers(LEAST_SLOW)));
    }
    let is_certain = population.has_account();
    (found.episodes < LEAST_EPISODES && !is_certain).then(|| {
        let text = format!(
            "The {} slow requests came in only {} separate episodes; at least {LEAST_EPISODES} are \
             needed to rule out coincidence. Run longer.",
            count(slow),
            found.episodes
        );
        Reason::new("few_episodes", text, numbers(LEAST_EPISODES))
    })
}

/// Where all of the time of the requests is accounted for, nothing in it is coincidence, and one slow phase
/// is enough for an answer about that one.
pub(super) fn about_few(population: &Population, found: &Found) -> Option<Reason> {
    let is_certain = population.has_account();
    (is_certain && found.episodes < LEAST_EPISODES).then(|| {
        let (slow, episodes) = (population.summary.slow_count, found.episodes);
        let phases = if episodes == 1 { "one slow phase" } else { "few slow phases" };
        let text = format!(
            "The {} slow requests came in {phases} ({episodes}): this answer is about these. Whether later \
             ones have the same cause is not known.",
            count(slow)
        );
        Reason::new("few_phases", text, json!({"slow": slow, "episodes": episodes}))
    })
}

/// Notes that apply to any outcome.
pub(super) fn notes(
    evidence: &Evidence<'_>,
    population: &Population,
    ignored: &Ignored,
) -> Vec<Reason> {
    let mut notes = Vec::new();
    if population.summary.count > 0 && !population.summary.intended_start_known {
        notes.push(closed_loop::note(evidence, population).unwrap_or_else(|| {
            let text = "The load generator does not say when requests should have been sent, so that \
                        latencies are open to coordinated omission.";
            Reason::new("intended_start_unknown", text, json!({}))
        }));
    }
    let (outside, reversed) = (ignored.samples_outside_window, ignored.samples_reversed);
    if outside + reversed > 0 && population.summary.count > 0 {
        let samples = evidence.samples.len();
        let text = format!(
            "{} of {} samples were ignored ({} outside the run, {} that end before they begin).",
            count(outside + reversed),
            count(samples as u64),
            count(outside),
            count(reversed)
        );
        let numbers = json!({"samples": samples, "outside_run": outside, "reversed": reversed});
        notes.push(Reason::new("samples_left_out", text, numbers));
    }
    let stalls = ignored.stalls_empty_or_reversed;
    if stalls > 0 {
        let text = format!("{} stalls without a length were ignored.", count(stalls));
        notes.push(Reason::new("stalls_left_out", text, json!({"stalls": stalls})));
    }
    notes
}
