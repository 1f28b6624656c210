//! The requests of a run one by one, worked out from its directory alone.
//!
//! Everything is read again as for an answer: of a whole run with its samples as they were saved, of a
//! run without an answer with the part that is known to be complete (`recover`).

use std::collections::BTreeMap;

use super::Captured;
use super::finish::{ReadBack, is_part, quality, raised, read_back};
use super::recover::{gather, samples_source};
use crate::correlate::{
    Chosen, Evidence, OwnCpu, Quality, ThreadTimes, Unwatched, choose, take_out_drift,
};
use crate::error::Result;
use crate::model::{
    Coverage, OutgoingRequest, ProbeState, REQUESTS_LISTED_MAX, RequestList, RequestSelection,
    RunInfo, SUMMARY_SCHEMA, Sample, ServerRequest, SlowSpec, Stall, Summary,
};
use crate::output::answer::samples_and_notes;
use crate::output::event_files::EventsRead;
use crate::output::rundir::RunDir;
use crate::text;

/// What a run left about its requests.
pub struct RecordedRun {
    /// How it was made. Its end is the last instant that is used.
    pub info: RunInfo,
    samples: Vec<Sample>,
    requests: Vec<ServerRequest>,
    outgoing: Vec<OutgoingRequest>,
    stalls: Vec<Stall>,
    quality: Quality,
    /// What should be known about all of it, one sentence each.
    notes: Vec<String>,
    /// Why there are no samples, if that is known.
    problem: Option<String>,
}

/// Listed requests.
pub struct Listed {
    /// The requests, for programs.
    pub list: RequestList,
    /// The sample of each.
    pub samples: Vec<Sample>,
}

/// When which threads of the target had slow requests.
pub struct SlowTimes {
    /// The times.
    pub times: ThreadTimes,
    /// Slow requests.
    pub requests: u64,
    /// Of these, those of which it is known which threads served them: only their times are here.
    pub matched: u64,
}

impl RecordedRun {
    /// Reads the directory. What is damaged becomes a note, as long as there are requests.
    ///
    /// # Errors
    /// [`crate::error::Exit::RunUnreadable`] when `run.json`, `summary.json` or the samples cannot be
    /// read.
    pub fn read(directory: &RunDir) -> Result<Self> {
        let info = directory.read_run()?;
        let mut run = match directory.read_summary()? {
            Some(summary) => Self::of_whole(directory, info, &summary)?,
            None => Self::of_interrupted(directory, &info)?,
        };
        run.notes.extend(run.unmatched_note());
        run.notes.extend(run.unaccounted_note());
        run.notes.extend(run.unwatched_notes());
        run.notes.extend(run.loss_note());
        run.notes.extend(run.quality.hidden.iter().map(|hidden| {
            format!(
                "the recording threshold of {} was raised up to {}: shorter stalls of that time are not \
                 in the accounts",
                text::clean(&hidden.kind, 40),
                text::duration(hidden.floor_ns as f64)
            )
        }));
        run.notes.extend(directory.doubts());
        Ok(run)
    }

    fn of_whole(directory: &RunDir, info: RunInfo, summary: &Summary) -> Result<Self> {
        let (mut samples, mut notes) = samples_and_notes(directory, &info)?;
        let mut captured = Captured::default();
        let ReadBack { stalls, requests, outgoing, found, .. } =
            read_back(directory, &mut captured, usize::MAX);
        // The samples of an older version still have it.
        take_out_drift(&mut samples, &requests, summary.samples.clock_error_ns);
        let sleeps_damaged = is_damaged(&found, "sleep");
        let found_notes = found.notes();
        if found_notes.is_empty() {
            notes.extend(captured.stalls_missing);
        }
        notes.extend(found_notes);
        notes.extend(skipped(&summary.samples.skipped));
        let seen = summary.probes.get("request").and_then(|probe| probe.counters.get("requests"));
        let seen = seen.and_then(|seen| u64::try_from(*seen).ok()).unwrap_or(0);
        let mut quality = Quality {
            hidden: raised(&summary.floors),
            clock_uncertainty_ns: summary.samples.clock_error_ns,
            requests_in_blocks: is_part(requests.len(), seen),
            ..quality(&info, None, OwnCpu::default())
        };
        quality.sleeps_watched &= !sleeps_damaged;
        Ok(Self { info, samples, requests, outgoing, stalls, quality, notes, problem: None })
    }

    fn of_interrupted(directory: &RunDir, info: &RunInfo) -> Result<Self> {
        let mut gathered = gather(directory, info)?;
        let ingested = gathered.ingested.as_ref();
        let mut quality = Quality {
            hidden: raised(&gathered.floors),
            ..quality(&gathered.info, ingested, OwnCpu::default())
        };
        quality.sleeps_watched &= !is_damaged(&gathered.found, "sleep");
        let seconds = gathered.info.end_ns.since(gathered.info.start_ns) as f64 / 1e9;
        let mut notes = vec![if gathered.vouched_for {
            format!(
                "the run has no answer of its own (it has not ended, or observer was killed): this list is \
                 about its first {seconds:.1} s, of which its files are complete"
            )
        } else {
            "the run ended before observer noted up to when its files are complete: requests and stalls \
             may be missing anywhere"
                .to_owned()
        }];
        notes.extend(ingested.into_iter().flat_map(|ingested| skipped(&ingested.skipped)));
        notes.extend(gathered.found.notes());
        let source = samples_source(info).map(|(_, name)| name);
        let kept = directory.kept_damage(&gathered.info).into_iter();
        notes.extend(kept.filter(|(name, _)| source == Some(*name)).map(|(_, damage)| damage));
        let problem = gathered.problem.take().map(|problem| problem.to_string());
        let stalls = std::mem::take(&mut gathered.stalls);
        let requests = std::mem::take(&mut gathered.requests);
        let outgoing = std::mem::take(&mut gathered.outgoing);
        let info = gathered.info.clone();
        let samples = gathered.into_samples();
        Ok(Self { info, samples, requests, outgoing, stalls, quality, notes, problem })
    }

    /// Why there is nothing to list; `None` where there are requests.
    #[must_use]
    pub fn nothing_to_list(&self) -> Option<String> {
        if !self.samples.is_empty() {
            return None;
        }
        Some(match (&self.problem, &self.info.samples_format) {
            (Some(problem), _) => format!("There are no requests to list: {problem}."),
            (None, None) => {
                "There are no requests to list: the run read no samples of a load generator \
                             (`observer run --samples`)."
                    .to_owned()
            }
            (None, Some(_)) => "There are no requests to list: the run has no samples of its load \
                                generator."
                .to_owned(),
        })
    }

    /// The requests that fit.
    #[must_use]
    pub fn list(&self, selection: RequestSelection) -> Listed {
        let requests = selection.requests.min(REQUESTS_LISTED_MAX);
        let selection = RequestSelection { requests, ..selection };
        let evidence = Evidence {
            window: (self.info.start_ns, self.info.end_ns),
            samples: &self.samples,
            requests: &self.requests,
            outgoing: &self.outgoing,
            stalls: &self.stalls,
            slow: SlowSpec::default(),
            quality: self.quality.clone(),
        };
        let Chosen { requests, places, total, inside, outside } = choose(&evidence, &selection);
        let list = RequestList {
            schema: SUMMARY_SCHEMA,
            selection,
            in_run: inside,
            outside_run: outside,
            total,
            listed: requests.len() as u64,
            notes: self.notes.clone(),
            requests,
        };
        let samples = places.into_iter().map(|place| self.samples[place].clone()).collect();
        Listed { list, samples }
    }

    /// When which threads had the requests that took so long or longer.
    #[must_use]
    pub fn slow_times(&self, threshold_ns: u64) -> SlowTimes {
        let Listed { list, samples } = self.list(RequestSelection {
            requests: REQUESTS_LISTED_MAX,
            slower_than_ns: Some(threshold_ns),
            at_ns: None,
        });
        let (mut matched, mut intervals) = (0, Vec::new());
        for (request, sample) in list.requests.iter().zip(&samples) {
            if let Some(served) = &request.served {
                matched += 1;
                intervals.extend(served.threads(sample));
            }
        }
        SlowTimes { times: ThreadTimes::new(intervals), requests: list.total, matched }
    }

    /// Why no request can be matched with one that the target served.
    fn unmatched_note(&self) -> Option<String> {
        if !self.requests.is_empty() || self.samples.is_empty() {
            return None;
        }
        Some(format!(
            "it is not known which threads served which request, so that requests have no account, and \
             the stalls of all threads at the same time are shown: {}",
            match why_not_watched(&self.info, "request") {
                Some(why) => format!("the target's requests were not watched ({why})"),
                None => "the target's sockets saw no request".to_owned(),
            }
        ))
    }

    /// Why the rest of a request's time is unexplained.
    fn unaccounted_note(&self) -> Option<String> {
        if self.requests.is_empty() || self.quality.has_sleeps() {
            return None;
        }
        let why = why_not_watched(&self.info, "sleep");
        let why = why.unwrap_or_else(|| {
            "the recording threshold of sleeps was raised, or their stream is damaged".to_owned()
        });
        Some(format!(
            "it is not known when the serving threads slept ({why}), so that time without a stall is \
             unexplained"
        ))
    }

    /// Which stalls may be missing although they are usually watched.
    fn unwatched_notes(&self) -> Vec<String> {
        let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let stalls = self.quality.unwatched.iter().filter(|one| one.usual && one.cause.is_stall());
        for Unwatched { cause, reason, .. } in stalls {
            by_reason.entry(reason).or_default().push(cause.name());
        }
        let note = |(reason, causes): (&str, Vec<&str>)| {
            let causes = causes.join(", ");
            format!("stalls may be missing ({causes}): {}", text::clean(reason, 200))
        };
        by_reason.into_iter().map(note).collect()
    }

    fn loss_note(&self) -> Option<String> {
        let lost = self.info.loss.of_target().into_iter().filter(|(_, count)| *count > 0);
        let lost: Vec<String> = lost
            .map(|(kind, count)| format!("{} {}", text::clean(&kind, 40), text::count(count)))
            .collect();
        (!lost.is_empty()).then(|| {
            format!(
                "records of the target were lost or are wrong ({}): what they were about is missing \
                 from the accounts",
                lost.join(", ")
            )
        })
    }
}

/// Whether rows of this kind cannot be read.
fn is_damaged(found: &EventsRead, kind: &str) -> bool {
    let is_of = |name: &str| name.split('.').next() == Some(kind);
    found.lost.iter().any(|span| span.kind == kind)
        || found.skipped.iter().any(|(name, damage)| is_of(name) && damage.more_rows)
        || found.damaged.iter().any(|(name, _)| is_of(name))
        || found.absent.iter().any(|sentence| is_of(sentence))
}

/// Rows of the generator's output that were ignored.
fn skipped(skipped: &BTreeMap<String, u64>) -> Vec<String> {
    let skipped = skipped.iter().filter(|(_, count)| **count > 0);
    let note = |(reason, count): (&String, &u64)| {
        let reason = text::clean(reason, 80).replace('_', " ");
        format!(
            "{} rows of the load generator's output were ignored: {reason}",
            text::count(*count)
        )
    };
    skipped.map(note).collect()
}

/// Why a probe did not watch during the whole run; `None` if it did.
fn why_not_watched(info: &RunInfo, probe: &str) -> Option<String> {
    let Some(Coverage { state, reason, .. }) = info.coverage.get(probe) else {
        return Some(format!("the observer that recorded the run has no probe {probe}"));
    };
    if *state == ProbeState::Attached {
        return None;
    }
    let state = format!("probe {probe}: {}", state.name());
    Some(match reason {
        Some(reason) => format!("{state}, {}", text::clean(reason, 200)),
        None => state,
    })
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
