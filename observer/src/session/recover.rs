//! The answer of a run that did not end normally, computed from the contents of its streams.
//!
//! `run.json` is written anew every second or so meanwhile; its `end_ns` is the instant up to which
//! everything was in the streams, and its loss is that of the same time. The streams themselves say
//! how far they are complete after that. Only that part is used. A run that was killed before both has
//! no such part: everything in its streams is used then, and no cause is named.

use std::collections::BTreeMap;
use std::io::Read;

use observer_ebpf::wire::RecordKind;

use super::Captured;
use super::finish::{judge_input, quality, summarise};
use super::floor_log::kinds_with_floor;
use super::journal::LONGEST_PAUSE;
use super::placing::place;
use crate::aggregate::{CauseRecorder, Snapshot};
use crate::clock::MonoNanos;
use crate::correlate::{Evidence, OwnCpu, Quality, analyse};
use crate::error::Result;
use crate::loadgen::{
    ClockError, Ingest, IngestError, Ingested, RelAnchor, SamplesSource, SamplesSpec, Window,
};
use crate::model::{
    ClockDrift, EndReason, FloorChange, FloorSummary, LossSpan, Outcome, OutgoingRequest,
    ProbeChange, Reason, RunInfo, Sample, ServerRequest, SlowSpec, Stall, StreamComplete, Summary,
    files,
};
use crate::output::event_files::{EventsRead, damage_note};
use crate::output::rundir::RunDir;
use crate::output::trace::TraceEvent;
use crate::probe::kind_name;

/// What could be worked out.
pub struct Recovered {
    /// The answer. Without distributions: those were in the kernel.
    pub summary: Summary,
    /// The requests, on the kernel's clock.
    pub samples: Vec<Sample>,
    /// Last instant that the answer is about; that of `run.json` where nothing is known to be complete.
    pub end_ns: MonoNanos,
}

/// What the streams and the generator's output hold of a run without an answer.
pub(super) struct Gathered {
    /// How the run was made; its end is the last instant that is used, and its loss is of the same time.
    pub(super) info: RunInfo,
    /// The last instant that is known to be complete; that of `run.json` where none is.
    end_ns: MonoNanos,
    /// Some part of the run is known to be complete.
    pub(super) vouched_for: bool,
    pub(super) stalls: Vec<Stall>,
    loss_spans: Vec<LossSpan>,
    pub(super) requests: Vec<ServerRequest>,
    pub(super) outgoing: Vec<OutgoingRequest>,
    later_stalls: u64,
    recorder: CauseRecorder,
    pub(super) floors: BTreeMap<String, FloorSummary>,
    pub(super) found: EventsRead,
    /// The generator's output, read again; `None` where it was not kept.
    pub(super) ingested: Option<Ingested>,
    /// The requests as they were saved, where its output was not kept.
    kept: Vec<Sample>,
    /// What was taken out of their times.
    clock_drift: Option<ClockDrift>,
    /// Why there are no requests.
    pub(super) problem: Option<IngestError>,
}

impl Gathered {
    /// The requests of the load generator.
    pub(super) fn samples(&self) -> &[Sample] {
        self.ingested.as_ref().map_or(&self.kept, |ingested| &ingested.samples)
    }

    /// The same, without the rest.
    pub(super) fn into_samples(self) -> Vec<Sample> {
        self.ingested.map_or(self.kept, |ingested| ingested.samples)
    }
}

/// Reads everything that an answer is computed from.
///
/// # Errors
/// When a stream is there and cannot be read.
pub(super) fn gather(directory: &RunDir, info: &RunInfo) -> Result<Gathered> {
    let mut info = info.clone();
    if info.end_reason == EndReason::Running {
        extend(directory, &mut info)?;
    }
    let end_ns = info.end_ns;
    let vouched_for = end_ns > info.start_ns;
    if !vouched_for {
        info.end_ns = last_seen(directory, &info)?;
    }
    let (mut stalls, mut loss_spans, mut later_stalls) = (Vec::new(), Vec::new(), 0);
    let (mut requests, mut outgoing) = (Vec::new(), Vec::new());
    let mut recorder = CauseRecorder::default();
    let mut floors: BTreeMap<String, FloorSummary> = kinds_with_floor()
        .filter_map(|kind| {
            let floor_ns = *info.floors_ns.get(kind.name())?;
            let floor = FloorSummary::new(info.start_ns, floor_ns);
            Some((kind.name().to_owned(), floor))
        })
        .collect();
    let found = directory.each_event(|events| {
        for row in events {
            let TraceEvent { event, .. } = row;
            let loss = LossSpan::from_event(event);
            loss_spans.extend(loss.filter(|span| is_inside(span, &info)));
            if event.end > info.end_ns || event.end < info.start_ns {
                later_stalls += u64::from(event.end > info.end_ns && event.cause().is_some());
                continue;
            }
            recorder.record_event(event);
            stalls.extend(row.stalls());
            requests.extend(ServerRequest::from_event(event));
            outgoing.extend(OutgoingRequest::from_event(event));
            // A trace that lost its beginning repeats the floors in force.
            if let Some(change) = FloorChange::from_event(event)
                && let Some(floor) = floors.get_mut(change.record.name())
                && floor.last_ns != change.new_ns
            {
                floor.note(event.end, &change);
            }
        }
    })?;
    // What was in damaged batches is a loss of that time.
    for span in &found.lost {
        if is_inside(span, &info) {
            info.loss.total = info.loss.total.saturating_add(span.count);
            info.loss.add_of_target(&span.kind, span.count);
            loss_spans.push(span.clone());
        }
    }
    floors.values_mut().for_each(|floor| floor.pass(info.end_ns));
    let ingested = samples(directory, &info)?;
    let mut kept = Vec::new();
    let (mut ingested, problem) = match ingested {
        // The requests as they were saved at the end of a run that has lost its answer.
        None => match directory.read_samples() {
            Ok(loaded) => {
                kept = loaded.map(|loaded| loaded.rows).unwrap_or_default();
                (None, None)
            }
            Err(error) => (None, Some(IngestError::Unreadable(error.to_string()))),
        },
        Some(Ok(ingested)) => (Some(ingested), None),
        Some(Err(error)) => (None, Some(error)),
    };
    let clock_drift = ingested.as_mut().and_then(|ingested| place(ingested, &requests));
    Ok(Gathered {
        info,
        end_ns,
        vouched_for,
        stalls,
        loss_spans,
        requests,
        outgoing,
        later_stalls,
        recorder,
        floors,
        found,
        ingested,
        kept,
        clock_drift,
        problem,
    })
}

/// Computes the answer.
///
/// # Errors
/// When a stream is there and cannot be read.
pub fn recover(directory: &RunDir, info: &RunInfo, slow: SlowSpec) -> Result<Recovered> {
    let mut gathered = gather(directory, info)?;
    let loss_spans = std::mem::take(&mut gathered.loss_spans);
    let recorder = std::mem::take(&mut gathered.recorder);
    let Gathered { info, end_ns, vouched_for, later_stalls, floors, found, .. } = &gathered;
    let (ingested, problem) = (gathered.ingested.as_ref(), gathered.problem.as_ref());
    let evidence = Evidence {
        window: (info.start_ns, info.end_ns),
        samples: gathered.samples(),
        requests: &gathered.requests,
        outgoing: &gathered.outgoing,
        stalls: &gathered.stalls,
        slow,
        quality: Quality { loss_spans, ..quality(info, ingested, OwnCpu::default()) },
    };
    let mut analysis = analyse(&evidence);
    analysis.requests.clock_drift = gathered.clock_drift;
    if floors.values().any(|floor| floor.raised_for_ns > 0) {
        analysis.verdict.outcome = Outcome::Inconclusive;
        analysis.verdict.top_cause = None;
        let text = "Recording thresholds were raised, and what they hid is not known: the run did \
                    not end normally.";
        let reason = Reason::new("thresholds_raised", text, serde_json::json!({}));
        analysis.verdict.reasons.insert(0, reason);
    }
    if !*vouched_for {
        analysis.verdict.outcome = Outcome::Inconclusive;
        analysis.verdict.top_cause = None;
        let text = "The run ended before observer noted up to when its files are complete and what was \
                    lost: stalls may be missing anywhere, so no cause is named.";
        let reason = Reason::new("trace_incomplete", text, serde_json::json!({}));
        analysis.verdict.reasons.insert(0, reason);
    }
    let captured = Captured { recorder, stalls_missing: found.missing(), ..Captured::default() };
    judge_input(&mut analysis, ingested, problem, &captured);
    let source = samples_source(info).map(|(_, name)| name);
    for (name, damage) in directory.kept_damage(info) {
        if source == Some(name) {
            analysis.verdict.outcome = Outcome::Inconclusive;
            analysis.verdict.top_cause = None;
            let text = format!(
                "{damage}. Any request in it may be wrong, and some may be missing, so no cause is \
                 named."
            );
            let reason = Reason::new("samples_damaged", text, serde_json::json!({"file": name}));
            analysis.verdict.reasons.insert(0, reason);
        }
    }
    for (name, damage) in &found.skipped {
        let numbers =
            serde_json::json!({"stream": name, "batches": damage.batches, "rows": damage.rows});
        let text = format!("{}.", damage_note(name, damage));
        analysis.verdict.reasons.push(Reason::new("trace_damaged", text, numbers));
    }
    let seconds = info.end_ns.since(info.start_ns) as f64 / 1e9;
    let text = if info.end_reason == EndReason::Running {
        of_killed(seconds, *later_stalls)
    } else {
        format!("This is a trace of {seconds:.1} s, without an answer of its own.")
    };
    let numbers = serde_json::json!({"seconds": seconds, "later_stalls": later_stalls});
    analysis.verdict.reasons.push(Reason::new("recovered", text, numbers));
    // Distributions were in the kernel.
    let nothing = Snapshot::default();
    let summary = Summary {
        probes: BTreeMap::new(),
        floors: floors.clone(),
        ..summarise(analysis, (&nothing, nothing.probe_summaries()), info, ingested, &captured)
    };
    let end_ns = *end_ns;
    Ok(Recovered { summary, samples: gathered.into_samples(), end_ns })
}

fn is_inside(span: &LossSpan, info: &RunInfo) -> bool {
    span.start <= info.end_ns && span.end >= info.start_ns
}

/// Moves the end from the last checkpoint to the last instant up to which the streams are complete by
/// their own notes, with what was lost until then. A probe that was detached or attached after the
/// checkpoint is not in its coverage, so that the answer ends there.
fn extend(directory: &RunDir, info: &mut RunInfo) -> Result<()> {
    let (mut notes, mut losses) = (Vec::new(), Vec::new());
    let mut changed = MonoNanos(u64::MAX);
    let found = directory.each_event(|events| {
        for TraceEvent { event, .. } in events {
            notes.extend(StreamComplete::from_event(event));
            losses.extend(LossSpan::from_event(event));
            if ProbeChange::is_in(event) && event.end > info.end_ns {
                changed = changed.min(event.end);
            }
        }
    })?;
    // Those of one instant are about all streams.
    let is_there = |note: &StreamComplete| {
        let rows = kind_name(note.kind).and_then(|kind| found.rows.get(kind));
        rows.copied().unwrap_or(0) >= note.rows
    };
    let complete = notes
        .chunk_by(|one, other| one.until == other.until)
        .take_while(|notes| notes.iter().all(is_there))
        .map(|notes| notes[0].until);
    let until = complete.fold(info.end_ns, MonoNanos::max).min(changed.max(info.end_ns));
    if until == info.end_ns {
        return Ok(());
    }
    info.end_ns = until;
    // run.json has some of them, those up to a moment after the checkpoint.
    let mut by_kind: BTreeMap<String, u64> = BTreeMap::new();
    for LossSpan { kind, count, .. } in losses.into_iter().filter(|span| is_inside(span, info)) {
        let sum = by_kind.entry(kind).or_default();
        *sum = sum.saturating_add(count);
    }
    for (kind, count) in by_kind {
        let known = info.loss.of_target().get(&kind).copied().unwrap_or(0);
        let more = count.saturating_sub(known);
        let is_record = RecordKind::ALL.into_iter().any(|record| record.name() == kind);
        info.loss.total = info.loss.total.saturating_add(if is_record { more } else { 0 });
        if more > 0 {
            info.loss.add_of_target(&kind, more);
        }
    }
    Ok(())
}

/// What the answer of a run whose observer died comes from, and what it cannot know.
fn of_killed(seconds: f64, later_stalls: u64) -> String {
    let mut text = format!(
        "The run did not end normally (observer was killed or failed) or has not ended yet: this \
         answer was computed from what it wrote in its first {seconds:.1} s."
    );
    if later_stalls > 0 {
        text += &format!(
            " It also wrote {} later stalls, which are left out, because others of that time may be \
             missing.",
            crate::text::count(later_stalls)
        );
    }
    text + " The distributions over all events were in the kernel and ended with it."
}

/// The last instant that anything in the directory is about.
fn last_seen(directory: &RunDir, info: &RunInfo) -> Result<MonoNanos> {
    let anchor = info.anchors.0.last().map(|anchor| anchor.monotonic_ns);
    let mut last = anchor.unwrap_or(info.start_ns).max(info.start_ns);
    directory.each_event(|events| {
        last = events.iter().map(|row| row.event.end).fold(last, MonoNanos::max);
    })?;
    let open = RunInfo { end_ns: MonoNanos(u64::MAX), ..info.clone() };
    let saved = directory.read_samples().ok().flatten();
    let mut kept = saved.map(|loaded| loaded.rows).unwrap_or_default();
    if let Some(Ok(ingested)) = samples(directory, &open)? {
        kept = ingested.samples;
    }
    Ok(kept.iter().map(|sample| sample.end).fold(last, MonoNanos::max))
}

/// Where the samples came from, and the file that keeps them.
pub(super) fn samples_source(info: &RunInfo) -> Option<(SamplesSpec, &'static str)> {
    let spec: SamplesSpec = info.samples_format.as_deref()?.parse().ok()?;
    let name = match spec.source {
        SamplesSource::Path(_) | SamplesSource::Socket(_) => files::LOADGEN_SAMPLES,
        SamplesSource::CommandOutput | SamplesSource::Stdin => files::LOADGEN_OUT,
    };
    Some((spec, name))
}

/// What was seen of the generator. Its end is not known if the run was killed, but observer had ended
/// before it would have written run.json again.
fn generator(info: &RunInfo) -> RelAnchor {
    let mut seen = info.generator.clone().unwrap_or_default();
    if seen.spawned.is_some() {
        let last = info.anchors.0.last().map_or(info.end_ns, |anchor| anchor.monotonic_ns);
        let latest = last.max(info.end_ns).0.saturating_add(2 * LONGEST_PAUSE.as_nanos() as u64);
        seen.exited.get_or_insert(MonoNanos(latest));
    }
    seen
}

/// The generator's output as it was kept, read again.
fn samples(
    directory: &RunDir,
    info: &RunInfo,
) -> Result<Option<std::result::Result<Ingested, IngestError>>> {
    let Some((spec, name)) = samples_source(info) else { return Ok(None) };
    let Some(mut file) = directory.open_raw(name)? else { return Ok(None) };
    let clock_error = ClockError::of(info.clock_error_ns, !info.command.is_empty());
    let mut ingest =
        Ingest::of_run(spec.adapter, info.boot_id.clone()).with_clock_error(clock_error);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => ingest.feed(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Some(Err(IngestError::Unreadable(error.to_string())))),
        }
    }
    if ingest.bytes() == 0 {
        return Ok(None);
    }
    // The generator outlived the run, and its later requests were not watched.
    let went_on = info.end_reason == EndReason::Running;
    let window = Window { start: info.start_ns, end: info.end_ns, went_on };
    Ok(Some(ingest.finish(&info.anchors, window, &generator(info))))
}
