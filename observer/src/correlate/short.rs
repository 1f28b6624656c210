//! What was too short for records of its own, weighed against the part of the extra latency that it would be
//! in.
//!
//! Stalls below their floor are in the histograms, so their time in the run is known, and not in which
//! requests it was. The analysis sees work of the service instead of them, or what it cannot explain.

use serde_json::json;

use super::Evidence;
use super::attribute::{Found, LEAST_SHARE};
use super::exposure::Population;
use crate::model::{Cause, CauseSummary, Reason};
use crate::text::{duration, percent};

/// Slow requests may have so many times as much of such stalls, for their length, as all requests.
const DENSEST: f64 = 20.0;
/// More than this part of what they would be in is said, and keeps their causes from being ruled out.
const MOST_OF_PART: f64 = 0.5;

/// Stalls of one kind that were too short to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// Kind of record that longer ones have.
    pub kind: String,
    /// All of them are shorter than this, nanoseconds.
    pub floor_ns: u64,
    /// Their length during the run, of all threads of the target, nanoseconds.
    pub total_ns: u64,
}

/// Short stalls that may be a large part of something else.
#[derive(Debug)]
pub(super) struct Weighty<'a> {
    kind: &'a str,
    pub(super) reason: Reason,
}

impl Weighty<'_> {
    /// Whether longer stalls of this kind have this cause.
    pub(super) fn is_of(&self, cause: Cause) -> bool {
        cause.comes_as(self.kind)
    }
}

/// The kinds whose short stalls may be more than half of the part that they would be in.
pub(super) fn weigh<'a>(
    evidence: &'a Evidence<'_>,
    population: &Population,
    found: &Found,
) -> Vec<Weighty<'a>> {
    let has_account = population.has_account();
    // A thread that did not sleep and had no stall was at work, as far as is known.
    let within = if has_account { Cause::SERVICE_CPU } else { Cause::UNEXPLAINED };
    let part = found.causes.iter().find(|row| row.cause == within);
    let Some(part) = part.filter(|part| part.share >= LEAST_SHARE) else { return Vec::new() };
    // Without an account, longer sleeps are not known either.
    let can_be = |short: &&Short| has_account || !Cause::SERVICE_WAIT.comes_as(&short.kind);
    let short = evidence.quality.short.iter().filter(can_be);
    short.filter_map(|short| weigh_one(short, population, part)).collect()
}

fn weigh_one<'a>(
    short: &'a Short,
    population: &Population,
    part: &CauseSummary,
) -> Option<Weighty<'a>> {
    let Short { kind, floor_ns, total_ns } = short;
    let summary = &population.summary;
    let slow = summary.slow_count as f64;
    let excess_ns = population.excess_ns() * slow;
    let slow_ns = summary.slow_mean_ns * slow;
    let densest = DENSEST * slow_ns / population.all_ns.max(1) as f64;
    let most_ns = *total_ns as f64 * densest.min(1.0);
    if excess_ns <= 0.0 || most_ns <= part.share * excess_ns * MOST_OF_PART {
        return None;
    }
    let share = (most_ns / excess_ns).min(part.share);
    let mean_ns = *total_ns as f64 / summary.count.max(1) as f64;
    let subject = match Cause::SERVICE_WAIT.comes_as(kind) {
        true => "Sleeps".to_owned(),
        false => format!("Stalls of {kind}"),
    };
    let condition = match densest < 1.0 {
        true => {
            format!("Had slow requests {DENSEST} times as much of that as others of their length")
        }
        false => "Had slow requests all of that".to_owned(),
    };
    let text = format!(
        "{subject} shorter than {} have no records of their own. They took {} during the run, {} for each \
         request on average. {condition}, it would be {} of the extra latency, out of the {} that this \
         answer calls {}.",
        duration(*floor_ns as f64),
        duration(*total_ns as f64),
        duration(mean_ns),
        percent(share),
        percent(part.share),
        part.cause.name(),
    );
    let numbers = json!({
        "kind": kind, "floor_ns": floor_ns, "total_ns": total_ns, "mean_ns": mean_ns,
        "most_ns": most_ns / slow, "share": share, "within": part.cause,
        "within_share": part.share,
    });
    Some(Weighty { kind, reason: Reason::new("short_stalls", text, numbers) })
}
