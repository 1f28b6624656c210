//! Everything known about one run, for the outputs that users read.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::digest::Digest;
use super::objects::mostly;
use super::stacks::{RecordedStacks, Selection, WaitingStacks};
use super::text;
use crate::clock::MonoNanos;
use crate::error::Result;
use crate::model::{
    AskedService, Cause, CauseSummary, DistributionSummary, EndReason, Event, FloorReason, Outcome,
    RunInfo, Sample, ServedBy, Summary, Without, files,
};
use crate::output::event_files::{Wanted, damage_note};
use crate::output::rundir::RunDir;
use crate::output::trace::{Damage, Loaded};

/// From this share on, a part of the extra latency is the larger part.
pub(super) const HALF: f64 = 0.5;

/// What [`Answer::loss`] says of a run without loss.
pub const NOTHING_LOST: &str = "nothing";

/// A slow request with the events that overlap it, longest overlap first.
#[derive(Clone, Debug, PartialEq)]
pub struct WorstRequest {
    /// The request.
    pub sample: Sample,
    /// When which threads of the target served it, if that is known.
    pub served: Option<ServedBy>,
    /// The services that its thread asked for it, as far as that is known.
    pub asked: Vec<AskedService>,
    /// Where its time went, nanoseconds by cause, if that is known.
    pub account_ns: Option<BTreeMap<Cause, u64>>,
    /// Events, each with the length of its part inside the request, nanoseconds.
    pub stalls: Vec<(Event, u64)>,
    /// Overlapping stalls beyond those.
    pub omitted: u64,
}

/// One run, as users see it.
#[derive(Debug)]
pub struct Answer {
    /// The run directory.
    pub path: std::path::PathBuf,
    /// How it was made.
    pub run: RunInfo,
    /// The answer; `None` when the run did not get that far.
    pub summary: Option<Summary>,
    /// The requests.
    pub samples: Vec<Sample>,
    /// How much of each column of the run's time the stalls of a cause cover, 0 to 1 and more.
    pub lanes: BTreeMap<Cause, Vec<f64>>,
    /// End of the time axis, nanoseconds from the start: that of the run, or of what was recorded.
    pub axis_ns: f64,
    /// The target's stalls by cause, from their records: three significant digits.
    pub recorded: BTreeMap<Cause, DistributionSummary>,
    /// The slowest requests.
    pub worst: Vec<WorstRequest>,
    /// Where the threads waited; `None` where that was not watched.
    pub waiting: Option<WaitingStacks>,
    /// What is wrong with the run directory itself.
    pub notes: Vec<String>,
    /// The page shows COMMAND's arguments, which may hold secrets.
    pub shows_arguments: bool,
}

impl Answer {
    /// Puts together what a run left.
    #[must_use]
    pub fn new(
        path: &Path,
        run: RunInfo,
        summary: Option<Summary>,
        samples: Vec<Sample>,
        events: &[Event],
    ) -> Self {
        Self::from_events(path, run, summary, samples, |each| events.iter().for_each(each))
    }

    /// The same from events that stream by: `events` hands over all of them each time it is called.
    fn from_events(
        path: &Path,
        run: RunInfo,
        summary: Option<Summary>,
        samples: Vec<Sample>,
        events: impl Fn(&mut dyn FnMut(&Event)),
    ) -> Self {
        let mut notes = Vec::new();
        if run.end_reason == EndReason::Running {
            notes.push(
                "the run has not ended, or its observer died: this report contains what was written"
                    .to_owned(),
            );
        }
        notes.extend(run.cut_bytes.iter().map(|(file, bytes)| {
            format!("{} more bytes of {file} were not kept", text::count(*bytes))
        }));
        let mut end = run.end_ns;
        if end <= run.start_ns {
            end = samples.iter().map(|sample| sample.end).fold(end, MonoNanos::max);
            events(&mut |event| end = end.max(event.end));
        }
        let axis_ns = end.since(run.start_ns) as f64;
        let known = summary.as_ref().map_or(&[][..], |summary| &summary.slowest_requests);
        let mut digest = Digest::new(&run, &samples, known, axis_ns);
        events(&mut |event| digest.add(event));
        if digest.recorder.clamped() > 0 {
            let clamped = text::count(digest.recorder.clamped());
            notes.push(format!("{clamped} stalls of over an hour count as an hour in percentiles"));
        }
        let (worst, recorded) = (digest.worst(), digest.recorder.summaries());
        let lanes = digest.lanes;
        Self {
            path: path.to_owned(),
            run,
            summary,
            samples,
            lanes,
            axis_ns,
            recorded,
            worst,
            waiting: None,
            notes,
            shows_arguments: false,
        }
    }

    /// Reads a run directory. Traces that are damaged become notes: the rest can still be shown.
    ///
    /// # Errors
    /// [`crate::error::Exit::RunUnreadable`] when `run.json` or `summary.json` cannot be read.
    pub fn load(directory: &RunDir) -> Result<Self> {
        let run = directory.read_run()?;
        let summary = directory.read_summary()?;
        Ok(Self::of_directory(directory, run, summary, None))
    }

    /// Like [`Answer::load`], with an answer and samples that are not in the directory: those of a
    /// crashed run.
    #[must_use]
    pub fn recovered(
        directory: &RunDir,
        run: RunInfo,
        summary: Option<Summary>,
        samples: Vec<Sample>,
    ) -> Self {
        Self::of_directory(directory, run, summary, Some(samples))
    }

    fn of_directory(
        directory: &RunDir,
        run: RunInfo,
        summary: Option<Summary>,
        samples: Option<Vec<Sample>>,
    ) -> Self {
        let read = || samples_and_notes(directory, &run);
        let (samples, samples_notes) =
            match samples.map_or_else(read, |rows| Ok((rows, Vec::new()))) {
                Ok((rows, notes)) => (rows, notes),
                Err(error) => (Vec::new(), vec![error.to_string()]),
            };
        let events_notes = RefCell::new(Vec::new());
        let mut answer = Self::from_events(directory.path(), run, summary, samples, |each| {
            let read =
                directory.each_event(|events| events.iter().for_each(|event| each(&event.event)));
            *events_notes.borrow_mut() = match read {
                Ok(found) => found.notes(),
                Err(error) => vec![error.to_string()],
            };
        });
        let (run, summary) = (&answer.run, answer.summary.as_ref());
        match RecordedStacks::read(directory, run, summary) {
            Ok(stacks) => {
                answer.waiting = stacks.map(|stacks| stacks.sum_up(&Selection::default()));
            }
            Err(error) => answer.notes.push(error.to_string()),
        }
        answer.notes.extend(directory.doubts());
        let kept = directory.kept_damage(&answer.run).into_iter();
        answer.notes.extend(kept.map(|(_, damage)| damage));
        answer.notes.extend(events_notes.into_inner());
        answer.notes.extend(samples_notes);
        answer
    }

    /// Nanoseconds from the start of the run.
    #[must_use]
    pub fn offset_ns(&self, time: MonoNanos) -> f64 {
        time.0 as f64 - self.run.start_ns.0 as f64
    }

    /// Length of the run, nanoseconds; 0 while it is not known.
    #[must_use]
    pub fn length_ns(&self) -> u64 {
        self.run.end_ns.since(self.run.start_ns)
    }

    /// The outcome in one or two plain sentences.
    #[must_use]
    pub fn verdict(&self) -> String {
        let Some(summary) = &self.summary else {
            return "This run has no result: it ended before one was worked out.".to_owned();
        };
        let samples = &summary.samples;
        let slow = || {
            format!(
                "{} slow requests (≥ {}; mean {}, typical {})",
                text::count(samples.slow_count),
                text::duration(samples.slow_threshold_ns as f64),
                text::duration(samples.slow_mean_ns),
                text::duration(samples.typical_mean_ns),
            )
        };
        match summary.verdict.outcome {
            Outcome::Attributed => attributed(summary, &slow()),
            Outcome::GeneratorLimited => format!(
                "The load generator sent requests late, and that accounts for {} of the extra latency \
                 of {}. As far as this load can tell, the service is healthy.",
                text::percent(share_of(summary, Cause::LOAD_GENERATOR)),
                slow(),
            ),
            Outcome::Unexplained => {
                format!("No watched cause accounts for the extra latency of {}.", slow())
            }
            Outcome::Inconclusive if requests_failed(summary) => format!(
                "{} of the requests failed, so that their latency says little about the service.",
                text::percent(samples.errors as f64 / samples.count.max(1) as f64)
            ),
            Outcome::Inconclusive => {
                "This run is inconclusive: the evidence does not allow an answer.".to_owned()
            }
            Outcome::Unknown => {
                "A newer version of observer gave a kind of answer that this one does not know."
                    .to_owned()
            }
            Outcome::NoSlowSamples if samples.count == 0 => {
                "There are no request samples; this report has kernel statistics only.".to_owned()
            }
            Outcome::NoSlowSamples => format!(
                "No latency problem found (p99 {}, median {}).",
                text::duration(samples.latency_ns.p99 as f64),
                text::duration(samples.latency_ns.p50 as f64),
            ),
        }
    }

    /// What to do about the causes that are named, or about what no cause accounts for.
    #[must_use]
    pub fn advice(&self) -> Vec<String> {
        let Some(summary) = &self.summary else { return Vec::new() };
        let wanted = |row: &&CauseSummary| match summary.verdict.outcome {
            Outcome::Attributed | Outcome::GeneratorLimited => {
                row.named || row.cause.is_rest() && row.share >= HALF
            }
            Outcome::Unexplained => row.cause.is_rest(),
            Outcome::Inconclusive | Outcome::NoSlowSamples | Outcome::Unknown => false,
        };
        let rows = summary.causes.iter().filter(wanted);
        rows.map(|row| format!("{}: {}", row.cause.name(), row.cause.info().advice)).collect()
    }

    /// The outcome in a word or two, as a heading.
    #[must_use]
    pub fn headline(&self) -> String {
        let Some(summary) = &self.summary else { return "no result".to_owned() };
        match (summary.verdict.outcome, summary.verdict.top_cause) {
            (Outcome::Attributed, Some(cause)) => {
                let (name, share) = (cause.name(), share_of(summary, cause));
                if share_of(summary, Cause::UNEXPLAINED) < HALF {
                    format!("attributed to {name}")
                } else {
                    format!("mostly unexplained; {name} {}", text::percent(share))
                }
            }
            (Outcome::GeneratorLimited, _) => "limited by the load generator".to_owned(),
            (Outcome::NoSlowSamples, _) if summary.samples.count == 0 => "no samples".to_owned(),
            (Outcome::NoSlowSamples, _) => "no latency problem found".to_owned(),
            (Outcome::Inconclusive, _) if requests_failed(summary) => "requests failed".to_owned(),
            (outcome, _) => outcome.name().to_owned(),
        }
    }

    /// Own cost in one sentence.
    #[must_use]
    pub fn cost(&self) -> Option<String> {
        let own = &self.summary.as_ref()?.observer;
        let seconds = self.length_ns() as f64 / 1e9;
        let share = |part: f64| {
            if seconds > 0.0 {
                format!(" ({} of one CPU)", text::percent(part / seconds))
            } else {
                String::new()
            }
        };
        let mut cost = format!(
            "{} of CPU time{}, {} of memory",
            text::duration(own.cpu_seconds * 1e9),
            share(own.cpu_seconds),
            text::bytes(own.max_rss_bytes),
        );
        if own.bpf_map_bytes > 0 {
            cost += &format!(", {} of BPF maps", text::bytes(own.bpf_map_bytes));
        }
        if own.bpf_run_count > 0 {
            let time = own.bpf_run_time_ns as f64;
            cost += &format!(
                "; the BPF programs ran {} times, {}{}",
                text::count(own.bpf_run_count),
                text::duration(time),
                share(time / 1e9),
            );
        }
        if let Some(cpus) = self.run.target_cpus.filter(|_| seconds > 0.0) {
            let all = own.cpu_seconds + own.bpf_run_time_ns as f64 / 1e9;
            let share = text::percent(all / seconds / f64::from(cpus.max(1)));
            cost += &match cpus {
                1 => format!("; together {share} of the CPU that the target can use"),
                _ => format!("; together {share} of the {cpus} CPUs that the target can use"),
            };
        }
        Some(cost)
    }

    /// What was lost, in words; [`NOTHING_LOST`] when nothing was.
    #[must_use]
    pub fn loss(&self) -> String {
        if self.run.end_reason != EndReason::Running {
            return self.counted_loss();
        }
        if self.summary.is_none() || self.length_ns() == 0 {
            return "not known: the run did not end".to_owned();
        }
        let seconds = self.length_ns() as f64 / 1e9;
        format!("{} (in the first {seconds:.1} s; later losses are not known)", self.counted_loss())
    }

    fn counted_loss(&self) -> String {
        let loss = self.summary.as_ref().map_or(&self.run.loss, |summary| &summary.loss);
        if loss.total == 0 && loss.by_kind.values().all(|count| *count == 0) {
            return NOTHING_LOST.to_owned();
        }
        let kinds: Vec<_> = loss
            .by_kind
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(kind, count)| format!("{} {}", text::clean(kind, 40), text::count(*count)))
            .collect();
        format!("{} records; by kind: {}", text::count(loss.total), kinds.join(", "))
    }

    /// Floors that rose for a while, a line each: what was hidden by them is not in the
    /// attribution.
    #[must_use]
    pub fn raised_floors(&self) -> Vec<String> {
        let floors = self.summary.iter().flat_map(|summary| &summary.floors);
        floors
            .filter(|(_, floor)| floor.changes > 0)
            .map(|(kind, floor)| {
                let start_ns = floor.first_ns();
                let first = floor.history.get(1).map_or(0.0, |span| self.offset_ns(span.from_ns));
                let reasons: std::collections::BTreeSet<&str> = floor
                    .history
                    .iter()
                    .filter_map(|span| span.reason)
                    .filter(|reason| *reason != FloorReason::Calm)
                    .map(FloorReason::name)
                    .collect();
                format!(
                    "{}: from {} up to {} for {} of the run, first at {} (reason: {}); at the end \
                     {}; {} of shorter stalls went unrecorded",
                    text::clean(kind, 40),
                    text::duration(start_ns as f64),
                    text::duration(floor.highest_ns as f64),
                    text::duration(floor.raised_for_ns as f64),
                    text::duration(first),
                    reasons.into_iter().collect::<Vec<_>>().join(", "),
                    text::duration(floor.last_ns as f64),
                    text::duration(floor.hidden_ns as f64),
                )
            })
            .collect()
    }

    /// How the requests were matched with those that the target served; `None` where the target's were
    /// not watched.
    #[must_use]
    pub fn matching(&self) -> Option<String> {
        let requests = self.summary.as_ref()?.requests;
        (requests.samples() > 0).then(|| {
            let multiplexed = match requests.multiplexed {
                0 => String::new(),
                several => format!(
                    ", {} over connections with several requests at a time, as in HTTP/2",
                    text::count(several)
                ),
            };
            let drift = requests.clock_drift.map_or_else(String::new, |drift| {
                format!("; the generator's clock {}, which was corrected", drift.text())
            });
            format!(
                "matched with requests that the target served: {} ({} ambiguous, {} \
                 unmatched{multiplexed}){drift}",
                text::count(requests.matched),
                text::count(requests.ambiguous),
                text::count(requests.unmatched),
            )
        })
    }

    /// What should be known about the samples before trusting their numbers.
    #[must_use]
    pub fn sample_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let Some(samples) = self.summary.as_ref().map(|summary| &summary.samples) else {
            return warnings;
        };
        if samples.count == 0 {
            return warnings;
        }
        if !samples.intended_start_known {
            warnings.push(
                "the load generator does not say when requests should have been sent: requests that \
                 a stall held back may be missing from the latencies (coordinated omission)"
                    .to_owned(),
            );
        }
        let late = samples.lateness_ns;
        if late.p99 > 1_000_000 {
            warnings.push(format!(
                "the load generator fell behind its schedule: p99 {}, maximum {}",
                text::duration(late.p99 as f64),
                text::duration(late.max as f64)
            ));
        }
        for (reason, count) in samples.skipped.iter().filter(|(_, count)| **count > 0) {
            let reason = text::clean(reason, 80).replace('_', " ");
            warnings.push(format!("{} rows were ignored: {reason}", text::count(*count)));
        }
        warnings
    }
}

/// The samples as they were saved, and what is wrong with them, one sentence each.
///
/// # Errors
/// [`crate::error::Exit::RunUnreadable`] when they cannot be read.
pub fn samples_and_notes(directory: &RunDir, run: &RunInfo) -> Result<(Vec<Sample>, Vec<String>)> {
    let loaded = directory.read_samples()?;
    let mut wanted = Wanted::of_samples(&run.streams);
    let Some(Loaded { rows, truncated, damage }) = loaded else {
        return Ok((Vec::new(), wanted.absent()));
    };
    wanted.note(files::SAMPLES, rows.len() as u64);
    let mut notes = wanted.absent();
    if damage != Damage::default() {
        notes.insert(0, damage_note(files::SAMPLES, &damage));
    }
    notes.extend(truncated.then(|| ends_early(files::SAMPLES)));
    Ok((rows, notes))
}

/// Whether so many requests failed that this is the answer.
fn requests_failed(summary: &Summary) -> bool {
    summary.verdict.reasons.iter().any(|reason| reason.code == "requests_failed")
}

fn ends_early(name: &str) -> String {
    format!("{name} ends early; its last moments are missing")
}

/// The share of a cause; 0 where it has none.
fn share_of(summary: &Summary, cause: Cause) -> f64 {
    summary.causes.iter().find(|row| row.cause == cause).map_or(0.0, |row| row.share)
}

/// The headline claims no more than the shares: if the rest is the larger part, the headline says
/// so.
fn attributed(summary: &Summary, slow: &str) -> String {
    let top = summary.verdict.top_cause.unwrap_or(Cause::UNEXPLAINED);
    let rest = share_of(summary, Cause::UNEXPLAINED);
    let mut sentence = if rest >= HALF {
        format!(
            "Most of the extra latency ({}) is unexplained. Requests were slow in part because {}.",
            text::percent(rest),
            top.info().sentence
        )
    } else {
        format!("Requests were slow because {}.", top.info().sentence)
    };
    let row = summary.causes.iter().find(|row| row.cause == top);
    if let Some(row @ CauseSummary { share, ci95: [low, high], .. }) = row {
        sentence += &format!(
            " {} accounts for {} (95 % interval {} to {}) of the extra latency of {slow}.",
            top.name(),
            text::percent(*share),
            text::percent(*low),
            text::percent(*high),
        );
        sentence += &mostly(summary, row).map_or_else(String::new, |mostly| format!(" {mostly}"));
    }
    if let Some(Without { p99_ns, p99_without_ns, ci95: [low, high] }) = summary.without_named {
        let [with, without, low, high] =
            [p99_ns, p99_without_ns, low, high].map(|ns| text::duration(ns as f64));
        let gone = summary.causes.iter().filter(|row| row.without.is_some()).count();
        let what = if gone == 1 { "it" } else { "the named causes" };
        sentence += &format!(
            " Without {what}, p99 would have been {without} (95 % interval {low} to {high}) instead of \
             {with}."
        );
    }
    sentence
}
