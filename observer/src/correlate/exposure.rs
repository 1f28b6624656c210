//! Which samples are slow, which are typical, and how much of each was covered by which cause.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::index;

use super::blocks::Blocks;
use super::clock_error;
use super::handing::Handing;
use super::lines::{Line, Lines, Numbering, Parts, whole};
use super::loss::Losses;
use super::matching::Matching;
use super::{Evidence, Ignored};
use crate::model::{LatencySummary, Sample, SamplesSummary, SlowSpec};

/// Samples of one group (slow, typical) whose exposure is measured; of a larger group this many are
/// drawn. The standard error of a mean over this many is below 1 % of its spread.
pub(super) const MEASURED: usize = 20_000;

/// Kinds of failed requests that are counted one by one.
const KINDS_MAX: usize = 50;

/// A sample as attribution sees it: the part served, `[start, end)` since the start of the
/// window, and how late it was sent. What lies before the actual start is the generator's.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Served {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) lateness_ns: u64,
    /// The place of its request among those of the target, where that is known.
    pub(super) request: Option<u32>,
    /// Whose stalls count in which part of it.
    pub(super) parts: Parts,
}

/// For how many of the slow and typical samples it is known which threads served them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// Stalls are counted by thread, and other samples left out.
    pub(super) by_thread: bool,
    /// Sleeps are known as well, so that all of the time is accounted for.
    pub(super) has_account: bool,
    /// Requests were recorded in some blocks of time; samples from others are left out.
    pub(super) in_blocks: bool,
    pub(super) known: u64,
    /// Slow and typical samples.
    pub(super) all: u64,
}

/// Stalls are counted by thread if it is known of this part of the slow and of the typical samples
/// which threads served them.
const LEAST_KNOWN: f64 = 0.9;

/// The samples between two quantiles of latency, at most [`MEASURED`].
#[derive(Debug)]
pub(super) struct Band {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) samples: Vec<Served>,
}

/// The quantiles between which bands lie.
const QUANTILES: [f64; 6] = [0.0, 0.5, 0.9, 0.99, 0.999, 1.0];

/// The samples of the run, split.
#[derive(Debug, Default)]
pub(super) struct Population {
    /// Slow samples in order of start, at most [`MEASURED`].
    pub(super) slow: Vec<Served>,
    /// Typical samples in order of start, at most [`MEASURED`].
    pub(super) typical: Vec<Served>,
    /// All samples whose request is known, in bands of latency; empty where there is no account.
    pub(super) bands: Vec<Band>,
    /// The lines of their parts; empty where stalls of all threads count for all.
    pub(super) lines: Vec<Line>,
    /// How stalls are counted; `None` where the target's requests were not watched.
    pub(super) counted: Option<Counted>,
    pub(super) summary: SamplesSummary,
    /// Largest resolution of the samples' times.
    pub(super) precision_ns: u64,
    /// By how much the clock of the samples may differ from the kernel's.
    pub(super) clock_error_ns: u64,
    /// Response times of all samples together.
    pub(super) all_ns: u64,
    /// Begins and ends of the episodes that the slow samples came in, since the start of the window,
    /// in order.
    pub(super) episodes: Vec<(u64, u64)>,
    /// The longest slow response, nanoseconds.
    pub(super) longest_ns: u64,
}

impl Population {
    /// Mean latency that slow samples have over typical ones.
    pub(super) fn excess_ns(&self) -> f64 {
        self.summary.slow_mean_ns - self.summary.typical_mean_ns
    }

    /// Stalls are counted by thread, and all of the time of the requests is accounted for.
    pub(super) fn has_account(&self) -> bool {
        self.counted.is_some_and(|counted| counted.has_account)
    }
}

/// Sorts out the samples: those inside the window, the slow ones, the typical ones.
pub(super) fn population(
    evidence: &Evidence<'_>,
    handing: &Handing<'_>,
    losses: &Losses,
    matching: &Matching,
    rng: &mut Xoshiro256PlusPlus,
    ignored: &mut Ignored,
) -> Population {
    let samples = evidence.samples;
    let mut ranked = inside_window(evidence, ignored);
    ranked.sort_unstable_by_key(|index| (samples[*index].response_ns(), *index));
    let slow_from = first_slow(samples, &ranked, evidence.slow);
    let (rest, slow) = ranked.split_at(slow_from);
    let mut typical = typical(samples, &ranked, rest, slow.len());
    let is_whole = |index: &usize| !losses.spoil(&samples[*index]);
    typical.retain(is_whole);
    let (all_slow, slow) = (slow, slow.iter().copied().filter(is_whole).collect::<Vec<_>>());
    let slow = slow.as_slice();
    let (counted, measured) = choose(evidence, matching, slow, &typical);
    let by_thread = counted.is_some_and(|counted| counted.by_thread);
    let has_account = counted.is_some_and(|counted| counted.has_account);
    let handing = Some(handing).filter(|_| has_account);

    let mut summary = summarise(samples, &ranked);
    summary.slow_rule = evidence.slow.to_string();
    summary.slow_count = slow.len() as u64;
    summary.slow_left_out = (all_slow.len() - slow.len()) as u64;
    summary.slow_threshold_ns = all_slow.first().map_or_else(
        || match evidence.slow {
            SlowSpec::Threshold(ns) => ns,
            SlowSpec::Quantile(_) => summary.latency_ns.max,
        },
        |index| samples[*index].response_ns(),
    );
    let mean = |indices: &[usize]| {
        let sum: f64 = indices.iter().map(|index| samples[*index].response_ns() as f64).sum();
        if indices.is_empty() { 0.0 } else { sum / indices.len() as f64 }
    };
    summary.slow_mean_ns = mean(slow);
    summary.typical_mean_ns = mean(&typical);

    let window_ns = evidence.window.1.since(evidence.window.0);
    let since = |time: crate::clock::MonoNanos| time.since(evidence.window.0).min(window_ns);
    let mut numbering = Numbering::new(evidence.window, matching.offset_ns);
    let mut served = |indices: &[usize], rng: &mut Xoshiro256PlusPlus| {
        let mut served: Vec<Served> = draw(indices, MEASURED, rng)
            .into_iter()
            .map(|index| {
                let sample = &samples[index];
                let (start, end) = (since(sample.start), since(sample.end));
                let request = matching.known(index).filter(|_| by_thread);
                let parts = match request {
                    Some(place) => numbering.parts(sample, evidence.requests, place, handing),
                    None => whole(start, end),
                };
                let request = request.map(|place| place as u32);
                Served { start, end, lateness_ns: sample.lateness_ns(), request, parts }
            })
            .collect();
        served.sort_unstable_by_key(|one| (one.start, one.end, one.lateness_ns));
        served
    };
    let mut spans: Vec<Span> = Vec::with_capacity(ranked.len());
    let healthy_ns = summary.typical_mean_ns * HEALTHY;
    for (rank, index) in ranked.iter().enumerate() {
        let sample = &samples[*index];
        spans.push(Span {
            begin: since(sample.begin()),
            end: since(sample.end),
            is_slow: rank >= slow_from && !losses.spoil(sample),
            is_healthy: sample.response_ns() as f64 <= healthy_ns,
        });
    }
    spans.sort_unstable_by_key(|span| (span.begin, span.end));
    let slow_ns = |span: &Span| if span.is_slow { span.end - span.begin } else { 0 };
    let (slow, typical) = (served(&measured.0, rng), served(&measured.1, rng));
    let band = |limits: &[f64]| {
        let place = |quantile: f64| (quantile * ranked.len() as f64).round() as usize;
        let within = &ranked[place(limits[0])..place(limits[1])];
        let is_known = |index: &usize| matching.known(*index).is_some() && is_whole(index);
        let known: Vec<usize> = within.iter().copied().filter(is_known).collect();
        Band { from: limits[0], to: limits[1], samples: served(&known, rng) }
    };
    let bands = if has_account { QUANTILES.windows(2).map(band).collect() } else { Vec::new() };
    Population {
        longest_ns: spans.iter().map(slow_ns).max().unwrap_or(0),
        episodes: episodes(&spans, window_ns),
        slow,
        typical,
        bands,
        lines: numbering.finish(),
        counted,
        precision_ns: ranked.iter().map(|index| samples[*index].precision_ns).max().unwrap_or(0),
        clock_error_ns: match by_thread {
            true => clock_error::left_ns(evidence, matching),
            false => evidence.quality.clock_uncertainty_ns,
        },
        all_ns: ranked
            .iter()
            .map(|index| samples[*index].response_ns())
            .fold(0, u64::saturating_add),
        summary,
    }
}

/// Whether stalls are counted by thread, and which of the slow and of the typical samples are measured.
fn choose(
    evidence: &Evidence<'_>,
    matching: &Matching,
    slow: &[usize],
    typical: &[usize],
) -> (Option<Counted>, (Vec<usize>, Vec<usize>)) {
    let everything = (slow.to_vec(), typical.to_vec());
    if evidence.requests.is_empty() {
        return (None, everything);
    }
    let in_blocks = evidence.quality.requests_in_blocks;
    let blocks = Blocks::new(evidence, matching);
    let recorded = |indices: &[usize]| -> Vec<usize> {
        let is_recorded = |index: &usize| blocks.has(&evidence.samples[*index]);
        indices.iter().copied().filter(is_recorded).collect()
    };
    let (slow, typical) = (&recorded(slow), &recorded(typical));
    let known = |indices: &[usize]| -> Vec<usize> {
        indices.iter().copied().filter(|index| matching.known(*index).is_some()).collect()
    };
    let (known_slow, known_typical) = (known(slow), known(typical));
    let is_enough = |known: &[usize], all: &[usize]| {
        !all.is_empty() && known.len() as f64 >= all.len() as f64 * LEAST_KNOWN
    };
    let by_thread = is_enough(&known_slow, slow) && is_enough(&known_typical, typical);
    let counted = Counted {
        by_thread,
        has_account: by_thread && evidence.quality.has_sleeps(),
        in_blocks,
        known: (known_slow.len() + known_typical.len()) as u64,
        all: (slow.len() + typical.len()) as u64,
    };
    (Some(counted), if by_thread { (known_slow, known_typical) } else { everything })
}

/// A response up to so many times the mean of the typical ones is no part of a slow phase.
const HEALTHY: f64 = 2.0;
/// Requests between two slow ones, of which half are healthy, that make two episodes of them.
const GAP_REQUESTS: usize = 3;

/// A request, since the start of the window.
#[derive(Clone, Copy, Debug)]
struct Span {
    begin: u64,
    end: u64,
    is_slow: bool,
    is_healthy: bool,
}

/// The independent units that slow requests come in: a slow phase is one, however long it is and
/// whatever part of its requests counts as slow. It ends where the requests that follow are healthy
/// again; where only one or two follow before the next slow one, also a hundredth of the window has to
/// pass (1 s at most). `spans` are in order of begin.
fn episodes(spans: &[Span], window_ns: u64) -> Vec<(u64, u64)> {
    let gap_ns = (window_ns / 100).min(1_000_000_000);
    let mut episodes: Vec<(u64, u64)> = Vec::new();
    let (mut between, mut healthy) = (0, 0);
    for span in spans {
        if !span.is_slow {
            between += 1;
            healthy += usize::from(span.is_healthy);
            continue;
        }
        match episodes.last_mut() {
            Some((_, end)) => {
                let is_apart = span.begin > end.saturating_add(gap_ns);
                let is_gap = healthy * 2 >= between && (between >= GAP_REQUESTS || is_apart);
                if is_gap && span.begin > *end {
                    episodes.push((span.begin, span.end));
                } else {
                    *end = (*end).max(span.end);
                }
            }
            None => episodes.push((span.begin, span.end)),
        }
        (between, healthy) = (0, 0);
    }
    episodes
}

/// `limit` of the items at random, or all of them.
pub(super) fn draw<T: Clone>(items: &[T], limit: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<T> {
    if items.len() <= limit {
        return items.to_vec();
    }
    index::sample(rng, items.len(), limit).into_iter().map(|index| items[index].clone()).collect()
}

/// Samples that lie completely inside the window, allowing for the error of their times: stalls
/// outside it were not seen.
fn inside_window(evidence: &Evidence<'_>, ignored: &mut Ignored) -> Vec<usize> {
    let mut inside = Vec::with_capacity(evidence.samples.len());
    for (index, sample) in evidence.samples.iter().enumerate() {
        let slack = sample.precision_ns.saturating_add(evidence.quality.clock_uncertainty_ns);
        if sample.end < sample.start || sample.end < sample.begin() {
            ignored.samples_reversed += 1;
        } else if sample.begin().0.saturating_add(slack) < evidence.window.0.0
            || sample.end.0 > evidence.window.1.0.saturating_add(slack)
        {
            ignored.samples_outside_window += 1;
        } else {
            inside.push(index);
        }
    }
    inside
}

/// Position in `ranked` of the first slow sample.
fn first_slow(samples: &[Sample], ranked: &[usize], slow: SlowSpec) -> usize {
    let limit = match slow {
        SlowSpec::Threshold(ns) => ns,
        SlowSpec::Quantile(quantile) => {
            let rank = (quantile.clamp(0.0, 1.0) * ranked.len() as f64).ceil() as usize;
            match ranked.get(rank.max(1) - 1) {
                Some(index) => samples[*index].response_ns(),
                None => return ranked.len(),
            }
        }
    };
    ranked.partition_point(|index| samples[*index].response_ns() <= limit)
}

/// The median half of the successful requests; where more than a quarter of all are slow, of
/// those that are not. Never a slow one. Failures often end at once and would set a false
/// standard.
fn typical(samples: &[Sample], ranked: &[usize], rest: &[usize], slow: usize) -> Vec<usize> {
    let from = if slow > ranked.len() / 4 { rest } else { ranked };
    let successes: Vec<usize> = from.iter().copied().filter(|index| samples[*index].ok).collect();
    let quarter = successes.len() / 4;
    let half = &successes[quarter..(successes.len() - quarter).max(quarter)];
    let Some(longest) = rest.last().map(|index| samples[*index].response_ns()) else {
        return Vec::new();
    };
    half.iter().copied().filter(|index| samples[*index].response_ns() <= longest).collect()
}

fn summarise(samples: &[Sample], ranked: &[usize]) -> SamplesSummary {
    let used = || ranked.iter().map(|index| &samples[*index]);
    let first = used().map(Sample::begin).min().unwrap_or_default();
    let last = used().map(|sample| sample.end).max().unwrap_or_default();
    let span_ns = last.since(first);
    let mut errors_by_kind = BTreeMap::new();
    for kind in used().filter_map(Sample::failure) {
        // Texts may differ in every request.
        let room = errors_by_kind.len() < KINDS_MAX || errors_by_kind.contains_key(&kind);
        let kind = if room { kind } else { "other".to_owned() };
        *errors_by_kind.entry(kind).or_insert(0) += 1;
    }
    SamplesSummary {
        count: ranked.len() as u64,
        errors: errors_by_kind.values().sum(),
        errors_by_kind,
        rate_hz: if span_ns == 0 { 0.0 } else { ranked.len() as f64 * 1e9 / span_ns as f64 },
        latency_ns: percentiles(used().map(Sample::response_ns)),
        intended_start_known: !ranked.is_empty()
            && used().all(|sample| sample.intended_start.is_some()),
        lateness_ns: percentiles(used().map(Sample::lateness_ns)),
        ..SamplesSummary::default()
    }
}

/// Percentiles with three significant digits; the largest value is exact.
pub(super) fn percentiles(values: impl Iterator<Item = u64>) -> LatencySummary {
    let Ok(mut histogram) = Histogram::<u64>::new(3) else {
        return LatencySummary::default();
    };
    histogram.auto(true);
    let mut max = 0;
    for value in values {
        max = max.max(value);
        // Fails above 2^63 ns, which is no response time.
        let _ = histogram.record(value.min(u64::MAX / 4));
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile).min(max);
    LatencySummary { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
}

/// Exposure of each sample to each cause, one vector a cause.
pub(super) fn exposures(samples: &[Served], causes: &[&Lines]) -> Vec<Vec<f64>> {
    let of =
        |lines: &&Lines| samples.iter().map(|sample| lines.own_exposure(&sample.parts)).collect();
    causes.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins of the episodes, in a window of 100 s. A request begins every 10 ms, and is slow for 's',
    /// healthy for '.', neither for 'o'.
    fn begins(requests: &str) -> Vec<u64> {
        let spans = requests.chars().enumerate().map(|(index, kind)| {
            let begin = index as u64 * 10_000_000;
            let end = begin + if kind == 's' { 8_000_000 } else { 1_000_000 };
            Span { begin, end, is_slow: kind == 's', is_healthy: kind == '.' }
        });
        let spans: Vec<Span> = spans.collect();
        let episodes = episodes(&spans, 100_000_000_000);
        episodes.into_iter().map(|(begin, _)| begin / 10_000_000).collect()
    }

    #[test]
    fn a_slow_phase_is_one_episode_until_requests_are_healthy_again() {
        assert_eq!(begins("..ss.s...s"), [2, 9]);
        assert_eq!(begins(".soooos.oos.o.s"), [1, 14]);
        assert_eq!(begins("s...s...s"), [0, 4, 8]);
        assert_eq!(begins("...."), [0; 0]);
        // Slow and healthy requests of several connections at the same time.
        let span = |begin, end, is_slow| Span { begin, end, is_slow, is_healthy: !is_slow };
        let healthy = (1..9).map(|i| span(i * 10, i * 10 + 5, false));
        let mut spans: Vec<Span> = healthy.collect();
        spans.insert(0, span(0, 100, true));
        spans.push(span(95, 120, true));
        spans.push(span(140, 150, true));
        assert_eq!(episodes(&spans, 1_000), [(0, 120), (140, 150)]);
    }
}
