//! Measures every cause, tests it, and shares out what several of them cover together.

use rand::rngs::Xoshiro256PlusPlus;

use super::bootstrap::{Blocks, block_ns, interval95};
use super::exposure::{Population, exposures};
use super::lines::{Lines, split_lines};
use super::share::Shares;
use super::shift::{Coincidence, Shifted, lateness_p_value};
use super::timeline::StallLines;
use crate::model::{Cause, CauseSummary, Reason};
use crate::text::percent;

/// A cause with a smaller share is not named, however significant it is: it would not be worth
/// fixing.
pub(super) const LEAST_SHARE: f64 = 0.05;
/// A cause is named below this p-value (episodes placed at random), corrected for the number of
/// causes.
pub(super) const MOST_P: f64 = 0.01;
/// And below this one (whole timeline shifted). Larger, because a few broad stalls in a short
/// run cannot get far below it: shifts by less than their length still overlap.
pub(super) const MOST_SHIFTED_P: f64 = 0.05;

/// A cause whose stalls cover more of the run, or of the typical requests, is neither named nor ruled
/// out: slow requests can hardly be covered more than that.
const MOST_COVERED: f64 = 0.5;

/// The measurements.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// As in [`super::Analysis::causes`]; `named` by the statistics alone.
    pub(super) causes: Vec<CauseSummary>,
    pub(super) episodes: u64,
    /// Length of the blocks of time that are drawn again for the intervals.
    pub(super) block_ns: u64,
    /// Causes whose stalls cover so much that nothing can be said about them.
    pub(super) covering: Vec<Cause>,
    /// Causes that may account for much, but are not statistically significant.
    pub(super) ambiguous: Vec<Reason>,
}

/// One cause on its own.
struct Candidate {
    cause: Cause,
    share: f64,
    ci95: [f64; 2],
    /// Of a stall.
    coincidence: Option<Coincidence>,
    /// The larger of the parts of the run and of the typical requests that its stalls cover, if that
    /// is more than [`MOST_COVERED`].
    covers: Option<f64>,
    named: bool,
}

struct Groups<'a> {
    population: &'a Population,
    window_ns: u64,
    block_ns: u64,
}

impl Groups<'_> {
    fn blocks(&self, causes: &[&Lines]) -> Blocks {
        let Population { slow, typical, .. } = self.population;
        Blocks::new(
            (slow, &exposures(slow, causes)),
            (typical, &exposures(typical, causes)),
            self.window_ns,
            self.block_ns,
        )
    }
}

fn nameable(share: f64, ci95: [f64; 2]) -> bool {
    share >= LEAST_SHARE && ci95[0] > 0.0
}

pub(super) fn attribute(
    population: &Population,
    stalls: &StallLines,
    window_ns: u64,
    rng: &mut Xoshiro256PlusPlus,
) -> Found {
    let episode_ns = population.episodes.iter().map(|(begin, end)| end - begin).max();
    let block_ns = block_ns(window_ns, population.longest_ns, episode_ns.unwrap_or(0));
    let groups = Groups { population, window_ns, block_ns };
    let begins: Vec<u64> = population.episodes.iter().map(|(begin, _)| *begin).collect();
    let shifted = Shifted::new(&population.slow, &population.typical, &begins, window_ns, rng);

    let mut candidates: Vec<Candidate> = Cause::all()
        .filter(|cause| stalls.stalls(*cause) > 0 || !stalls.of(*cause).is_empty())
        .filter_map(|cause| alone(&groups, stalls.of(cause), &shifted, cause, rng))
        .collect();
    let mut generator = generator(&groups, rng);
    significant(&mut candidates, generator.as_mut());
    let together = resolve(&groups, stalls, &mut candidates, rng);

    let excess_ns = population.excess_ns();
    let mut causes: Vec<CauseSummary> = candidates
        .iter()
        .map(|candidate| CauseSummary {
            cause: candidate.cause,
            share: candidate.share.clamp(0.0, 1.0),
            ci95: candidate.ci95.map(|bound| bound.clamp(0.0, 1.0)),
            p_value: candidate.coincidence.map(|coincidence| coincidence.placed),
            contribution_ns: candidate.share.clamp(0.0, 1.0) * excess_ns,
            stalls: stalls.stalls(candidate.cause),
            named: candidate.named,
            without: None,
            objects: Vec::new(),
        })
        .chain(generator)
        .collect();
    causes.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.cause.cmp(&b.cause)));
    let generator_named =
        causes.iter().any(|cause| cause.named && cause.cause == Cause::LOAD_GENERATOR);
    let named: f64 = causes.iter().filter(|cause| cause.named).map(|cause| cause.share).sum();
    let rest = (1.0 - named).clamp(0.0, 1.0);
    let rest_of = |shares: &Shares| {
        let lateness = if generator_named { shares.lateness.max(0.0) } else { 0.0 };
        let stalls: f64 = shares.stalls.iter().map(|share| share.max(0.0)).sum();
        (1.0 - stalls - lateness).clamp(0.0, 1.0)
    };
    causes.push(CauseSummary {
        cause: Cause::UNEXPLAINED,
        share: rest,
        ci95: interval95(together.iter().map(rest_of).collect()),
        p_value: None,
        contribution_ns: rest * excess_ns,
        stalls: 0,
        named: false,
        without: None,
        objects: Vec::new(),
    });
    let ambiguous = candidates.iter().filter_map(ambiguous).collect();
    let covering = candidates.iter().filter(|candidate| candidate.covers.is_some());
    let covering = covering.map(|candidate| candidate.cause).collect();
    Found { causes, episodes: begins.len() as u64, block_ns, covering, ambiguous }
}

/// Measures and tests one cause as if there were no other.
fn alone(
    groups: &Groups<'_>,
    lines: &Lines,
    shifted: &Shifted,
    cause: Cause,
    rng: &mut Xoshiro256PlusPlus,
) -> Option<Candidate> {
    let duties = [lines.duty()];
    let blocks = groups.blocks(&[lines]);
    let share = blocks.shares(&duties)?.stalls[0];
    let resamples = blocks.resample(&duties, rng);
    let ci95 = interval95(resamples.iter().map(|shares| shares.stalls[0]).collect());
    if !cause.is_stall() || groups.population.has_account() {
        // What a request was doing when nothing held it up cannot be coincidence. Where all of its time
        // is accounted for, neither can a stall of the thread that served it.
        let named = nameable(share, ci95);
        return Some(Candidate { cause, share, ci95, coincidence: None, covers: None, named });
    }
    let coincidence = shifted.test(lines, rng);
    let covers = Some(covered(groups.population, lines)).filter(|part| *part > MOST_COVERED);
    let named = covers.is_none() && nameable(share, ci95) && coincidence.shifted < MOST_SHIFTED_P;
    Some(Candidate { cause, share, ci95, coincidence: Some(coincidence), covers, named })
}

/// The larger of the parts of the run and of the typical requests that stalls cover; of the requests
/// alone where stalls are counted by thread.
fn covered(population: &Population, lines: &Lines) -> f64 {
    let typical = &population.typical;
    let all_ns: u64 = typical.iter().map(|one| one.end - one.start).sum();
    let covered_ns: f64 = typical.iter().map(|one| lines.exposure(&one.parts)).sum();
    lines.duty().max(covered_ns / all_ns.max(1) as f64)
}

/// The part of late sends.
fn generator(groups: &Groups<'_>, rng: &mut Xoshiro256PlusPlus) -> Option<CauseSummary> {
    let Population { slow, typical, summary, .. } = groups.population;
    if !summary.intended_start_known {
        return None;
    }
    let blocks = groups.blocks(&[]);
    let share = blocks.shares(&[])?.lateness;
    let ci95 = interval95(blocks.resample(&[], rng).iter().map(|s| s.lateness).collect());
    let p_value = lateness_p_value(slow, typical, rng);
    Some(CauseSummary {
        cause: Cause::LOAD_GENERATOR,
        share: share.clamp(0.0, 1.0),
        ci95: ci95.map(|bound| bound.clamp(0.0, 1.0)),
        p_value: Some(p_value),
        contribution_ns: share.clamp(0.0, 1.0) * groups.population.excess_ns(),
        stalls: 0,
        named: nameable(share, ci95),
        without: None,
        objects: Vec::new(),
    })
}

/// Leaves those named whose p-value is below [`MOST_P`] after the correction for as many causes as were
/// tested (S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
/// Statistics 6, 1979).
fn significant(candidates: &mut [Candidate], generator: Option<&mut CauseSummary>) {
    let stalls = candidates.iter_mut().filter(|candidate| candidate.covers.is_none());
    let stalls =
        stalls.filter_map(|candidate| Some((candidate.coincidence?.placed, &mut candidate.named)));
    let generator = generator.and_then(|row| Some((row.p_value?, &mut row.named)));
    let mut tests: Vec<(f64, &mut bool)> = stalls.chain(generator).collect();
    tests.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut left = tests.len();
    let mut passed = true;
    for (p_value, named) in tests {
        passed &= p_value < MOST_P / left as f64;
        *named &= passed;
        left -= 1;
    }
}

/// Divides the instants that several named causes cover, until each remaining cause keeps enough to
/// be named. Returns the resamples of the named ones together.
fn resolve(
    groups: &Groups<'_>,
    stalls: &StallLines,
    candidates: &mut [Candidate],
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<Shares> {
    loop {
        let named: Vec<usize> =
            (0..candidates.len()).filter(|index| candidates[*index].named).collect();
        let whole: Vec<&Lines> =
            named.iter().map(|index| stalls.of(candidates[*index].cause)).collect();
        let parts = split_lines(&whole);
        let parts: Vec<&Lines> = parts.iter().collect();
        let duties: Vec<f64> = parts.iter().map(|part| part.duty()).collect();
        let blocks = groups.blocks(&parts);
        let Some(shares) = blocks.shares(&duties) else { return Vec::new() };
        let resamples = blocks.resample(&duties, rng);
        let mut dropped = false;
        for (position, index) in named.iter().enumerate() {
            let candidate = &mut candidates[*index];
            candidate.share = shares.stalls[position];
            candidate.ci95 = interval95(resamples.iter().map(|s| s.stalls[position]).collect());
            candidate.named = nameable(candidate.share, candidate.ci95);
            dropped |= !candidate.named;
        }
        if !dropped {
            return resamples;
        }
    }
}

/// A cause of this share that is not named is mentioned, when coincidence is not likely either.
const AMBIGUOUS_SHARE: f64 = 0.25;
/// Coincidence is likely above this p-value.
const AMBIGUOUS_P: f64 = 0.1;

fn ambiguous(candidate: &Candidate) -> Option<Reason> {
    let Candidate { cause, share, ci95, coincidence, covers, named } = candidate;
    if let Some(covers) = covers
        && *share >= LEAST_SHARE
    {
        let (name, part) = (cause.name(), percent(*covers));
        let text = format!(
            "Stalls of {name} cover {part} of the run or of the typical requests, so that their part in \
             the slow ones cannot be told."
        );
        let numbers = serde_json::json!({"cause": cause, "share": share, "covered": covers});
        return Some(Reason::new("covers_most", text, numbers));
    }
    let coincidence = coincidence.as_ref()?;
    if *named || *share < AMBIGUOUS_SHARE || coincidence.placed > AMBIGUOUS_P {
        return None;
    }
    let name = cause.name();
    let numbers = serde_json::json!({
        "cause": cause, "share": share, "ci95": ci95, "p_placed": coincidence.placed,
        "p_shifted": coincidence.shifted,
    });
    Some(if coincidence.placed < MOST_P && coincidence.shifted >= MOST_SHIFTED_P {
        let text = format!(
            "{name} overlaps the slow requests, but its stalls shifted in time overlap them as \
             much in {} of the cases: both may merely recur with the same period.",
            percent(coincidence.shifted)
        );
        Reason::new("same_period", text, numbers)
    } else {
        let text = format!(
            "{name} may account for {} of the extra latency, but that is not statistically \
             significant (95 % interval {} to {}, p = {:.3}). Run longer.",
            percent(*share),
            percent(ci95[0].clamp(0.0, 1.0)),
            percent(ci95[1].clamp(0.0, 1.0)),
            coincidence.placed
        );
        Reason::new("thin_evidence", text, numbers)
    })
}
