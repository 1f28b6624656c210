//! The end of a run: writes everything that was gathered to the run directory, and computes the
//! answer.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use observer_ebpf::wire::{Counter, Counts, RecordKind, Series};

use crate::aggregate::Snapshot;
use crate::clock::{Anchor, MonoNanos};
use crate::correlate::{
    Analysis, Evidence, Hidden, ObjectTime, OwnCpu, Quality, Unwatched, analyse,
};
use crate::error::{Error, Exit, Result};
use crate::loadgen::{
    BEFORE_RUN, EARLIER_RECORDING, IngestError, Ingested, OUTSIDE_RUN, RelAnchor, Window,
};
use crate::model::{
    Cause, CauseObject, EndReason, FloorSummary, LossSpan, LossSummary, Outcome, OutgoingRequest,
    ProbeState, ProbeSummary, Reason, RecordSummary, RunInfo, SUMMARY_SCHEMA, Sample, SelfSummary,
    ServerRequest, Stall, Summary, TraceRow, Verdict, files,
};
use crate::output::event_files::EventsRead;
use crate::output::rundir::RunDir;
use crate::output::text::thread;
use crate::output::trace::TraceEvent;
use crate::probe::{PROBES, kind_name};

use super::complaint::{complaint, disk_full, failed_requests};
use super::floor_log::{bound_hidden, short, unrecorded_ns};
use super::journal::Journal;
use super::placing::place;
use super::start::ports;
use serde_json::json;

use super::{Captured, Session};

/// What a client waited for whose reply came in parts.
const HELD_REPLY: &str = "the rest of a reply, held back until an ACK (Nagle and delayed ACK)";

/// The result of a run.
pub struct Finished {
    /// The run directory.
    pub directory: RunDir,
    /// How it was made.
    pub info: RunInfo,
    /// The answer.
    pub summary: Summary,
    /// What went wrong although the run is complete: the samples, or COMMAND.
    pub complaint: Option<Error>,
}

/// Ends the run and writes its directory. A file that cannot be written is reported and does not
/// stop the others. COMMAND may take its time to end, until `hurry` is raised.
///
/// # Errors
/// When the kernel's counters cannot be read or COMMAND cannot be waited for.
pub fn finish(session: Session, reason: EndReason, hurry: &AtomicBool) -> Result<Finished> {
    let Session {
        options,
        memory,
        mut journal,
        membership,
        mut kernel,
        capture,
        births: _,
        waits: _,
        losses,
        mut generator,
        reader,
        outputs,
        mut cost,
        mut conditions,
        mut hidden,
        requests: _,
        baseline,
        started,
    } = session;
    let end = MonoNanos::now();
    conditions.look(&membership);
    journal.info.conditions = conditions.so_far();
    let programs = cost.programs(&kernel);
    let late = super::description::thread_names(&membership);
    let mut last = kernel.snapshot(Some(super::TARGET_ROW));
    if kernel.choice("socket").is_some() {
        last.target_live_sockets = super::watch::count(&kernel.targets());
    }
    let ports = ports(&options.target, &membership);
    if let Some(generator) = &mut generator {
        generator.end(Some(hurry))?;
    }
    let seen = RelAnchor {
        spawned: generator.as_ref().map(|generator| generator.spawned),
        exited: generator.as_ref().map(|_| MonoNanos::now()),
        processes: kernel.generator_processes(),
        ports,
    };
    if journal.info.generator.is_some() {
        journal.info.generator = Some(seen.clone());
    }
    // From here on nothing is sent, so the counters now show exactly how many records have to be
    // drained.
    kernel.forget_targets();
    hidden.tick(&kernel, capture.counts());
    losses.finish(&kernel, &capture);
    capture.note_last(kernel.open_requests());
    capture.note_last(kernel.open_bursts());
    let mut captured = capture.finish();
    let counts = kernel.counts();
    journal.info.anchors.0.push(Anchor::take());

    let mut delta = last.delta(&baseline);
    delta.self_usage.bpf_run_time_ns = programs.time_ns;
    delta.self_usage.bpf_run_count = programs.runs;
    let window = Window { start: journal.info.start_ns, end, went_on: false };
    journal.info.coverage.clone_from(&last.coverage);
    let skipped_runs = kernel.skipped_runs();
    drop(kernel);
    let mut ingested = reader.map(|reader| {
        let ingest = reader.finish()?;
        ingest.finish(&journal.info.anchors, window, &seen)
    });
    outputs.into_iter().for_each(super::OutputKeeper::finish);
    journal.note_kept();
    let Journal { directory, mut info, .. } = journal;
    info.end_ns = end;
    info.end_reason = reason;
    info.command_exit = generator.as_ref().and_then(super::Generator::exit_code);
    info.thread_names.extend(captured.thread_names.clone());
    info.thread_names.extend(late);
    info.holder_cgroups = std::mem::take(&mut captured.holder_cgroups);
    info.streams = std::mem::take(&mut captured.streams);
    let records = records(&counts, &captured);
    info.loss = loss(delta.loss_summary(), skipped_runs, &records, &captured);
    let floors = captured.floors.take().map(|log| log.finish(end, &hidden.hidden_ns()));
    let mut floors = floors.unwrap_or_default();
    let probes = delta.probe_summaries();
    bound_hidden(&mut floors, &probes, &captured);
    delta.self_usage.drain_wakeups = captured.wakeups;
    delta.self_usage.added_cpu_share = cost.added();
    delta.self_usage.rss_bound_bytes = memory.resident_bound_bytes;

    let ReadBack { stalls, loss_spans, requests, outgoing, .. } =
        read_back(&directory, &mut captured, memory.requests);
    let clock_drift = match &mut ingested {
        Some(Ok(found)) => place(found, &requests),
        _ => None,
    };
    let (samples, problem) = match &ingested {
        Some(Ok(ingested)) => (ingested.samples.as_slice(), None),
        Some(Err(error)) => (&[][..], Some(error)),
        None => (&[][..], None),
    };
    info.streams.insert(files::SAMPLES.to_owned(), samples.len() as u64);
    let own_cpu = own_cpu(&delta.self_usage, &info, started.elapsed().as_secs_f64());
    let ingest = ingested.as_ref().and_then(|ingested| ingested.as_ref().ok());
    let evidence = Evidence {
        window: (info.start_ns, info.end_ns),
        samples,
        requests: &requests,
        outgoing: &outgoing,
        stalls: &stalls,
        slow: options.slow,
        quality: Quality {
            hidden: raised(&floors),
            short: short(&delta, &floors, &captured),
            loss_spans,
            target_waits: [Series::RunqueueWakeup, Series::RunqueuePreempt]
                .map(|series| delta.target_distribution(series).count())
                .iter()
                .sum(),
            requests_in_blocks: is_part(requests.len(), delta.counters[Counter::Requests as usize]),
            ..quality(&info, ingest, own_cpu)
        },
    };
    let mut analysis = analyse(&evidence);
    analysis.requests.clock_drift = clock_drift;
    judge_input(&mut analysis, ingest, problem, &captured);
    let summary = Summary {
        records,
        floors,
        ..summarise(analysis, (&delta, probes), &info, ingest, &captured)
    };

    directory.release_reserve();
    // Each file is tried even if others failed: a full disk may still have room for the short ones,
    // and the answer is shown in any case.
    let written = [
        directory.write_summary(&summary),
        directory.write_run(&info),
        write_samples(&directory, samples),
        captured.stacks.as_ref().map_or(Ok(()), |stacks| directory.write_stacks(stacks)),
    ];
    let full = captured.disk_full.then(|| disk_full(&directory));
    let complaint = full
        .or_else(|| written.into_iter().find_map(Result::err))
        .or_else(|| complaint(&options, &info, ingest, problem))
        .or_else(|| failed_requests(&summary));
    Ok(Finished { directory, info, summary, complaint })
}

/// Whether so few of the requests were read back that most of the others cannot have been recorded.
pub(super) const fn is_part(read_back: usize, seen: u64) -> bool {
    (read_back as u64) < seen / 10 * 9
}

/// What the answer is worked out from.
pub(super) struct ReadBack {
    /// The stalls in the trace, and those that did not get into it.
    pub(super) stalls: Vec<Stall>,
    /// The target's losses with their times.
    loss_spans: Vec<LossSpan>,
    /// The requests that the target served.
    pub(super) requests: Vec<ServerRequest>,
    /// The requests that the target made of other services.
    pub(super) outgoing: Vec<OutgoingRequest>,
    /// What reading the streams found.
    pub(super) found: EventsRead,
}

/// Reads the trace, of whose requests at most so many are kept.
pub(super) fn read_back(
    directory: &RunDir,
    captured: &mut Captured,
    most_requests: usize,
) -> ReadBack {
    let (mut stalls, mut loss_spans, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    let mut outgoing: Vec<OutgoingRequest> = Vec::new();
    let read = directory.each_event(|events| {
        stalls.extend(events.iter().flat_map(TraceEvent::stalls));
        loss_spans.extend(events.iter().filter_map(|event| LossSpan::from_event(&event.event)));
        let served = events.iter().filter_map(|event| ServerRequest::from_event(&event.event));
        requests.extend(served.take(most_requests - requests.len() - outgoing.len()));
        let asked = events.iter().filter_map(|event| OutgoingRequest::from_event(&event.event));
        outgoing.extend(asked.take(most_requests - requests.len() - outgoing.len()));
    });
    let found = match read {
        Ok(found) => {
            captured.stalls_missing = found.missing();
            found
        }
        Err(error) => {
            captured.stalls_missing = Some(error.to_string());
            EventsRead::default()
        }
    };
    // What was not known to be in its file may be there all the same, as the last rows.
    let is_read = |row: TraceRow| {
        let rows = kind_name(row.kind()).and_then(|kind| found.rows.get(kind));
        rows.is_some_and(|rows| u64::from(row.row()) < *rows)
    };
    let unwritten = std::mem::take(&mut captured.unwritten).into_iter();
    let unwritten = unwritten.filter(|stall| !stall.row.is_some_and(is_read));
    stalls.extend(unwritten.map(|stall| Stall { row: None, ..stall }));
    ReadBack { stalls, loss_spans, requests, outgoing, found }
}

/// Sent, delivered and lost by kind, since the programs were loaded.
pub(super) fn records(counts: &Counts, captured: &Captured) -> BTreeMap<String, RecordSummary> {
    let summary = |kind: RecordKind| RecordSummary {
        sent: counts.emitted[kind as usize],
        delivered: captured.delivered[kind as usize],
        lost: counts.lost[kind as usize],
        sampled_out: captured.sampled_out[kind as usize],
        beyond_cap: captured.beyond_cap[kind as usize],
        removed: captured.removed[kind as usize],
    };
    RecordKind::ALL.into_iter().map(|kind| (kind.name().to_owned(), summary(kind))).collect()
}

/// The losses of the kernel side, with the programs of which it skipped runs, and those of user space.
pub(super) fn loss(
    loss: LossSummary,
    skipped_runs: BTreeMap<String, u64>,
    records: &BTreeMap<String, RecordSummary>,
    captured: &Captured,
) -> LossSummary {
    let mut loss = LossSummary { skipped_runs, ..loss };
    // Records that were sent and never read: an error of the drain itself. (What could not be
    // decoded was delivered, and is counted below.)
    let undecoded: u64 = captured
        .skipped
        .iter()
        .filter_map(|(reason, count)| reason.starts_with("record_").then_some(count))
        .sum();
    let missing: u64 = records.values().map(|kind| kind.sent.saturating_sub(kind.delivered)).sum();
    let missing = missing.saturating_sub(undecoded);
    if missing > 0 {
        loss.total += missing;
        loss.add_of_target("undelivered", missing);
    }
    for (reason, count) in &captured.skipped {
        loss.total += count;
        loss.add_of_target(reason, *count);
    }
    // No record, and no total: the ten worst requests then show threads by id only.
    if captured.names_dropped > 0 {
        loss.add_of_target("thread_name", captured.names_dropped);
    }
    if captured.holder_cgroups_beyond > 0 {
        loss.add_of_target("cgroup_name", captured.holder_cgroups_beyond);
    }
    loss
}

fn own_cpu(own: &SelfSummary, info: &RunInfo, seconds: f64) -> OwnCpu {
    let cpus = f64::from(info.target_cpus.unwrap_or(info.cpus).max(1));
    let share = |used_seconds: f64| used_seconds / (seconds * cpus);
    let programs = share(own.bpf_run_time_ns as f64 / 1e9);
    OwnCpu { threads: share(own.cpu_seconds), programs }
}

pub(super) fn quality(info: &RunInfo, ingested: Option<&Ingested>, own_cpu: OwnCpu) -> Quality {
    let mut unwatched = Vec::new();
    for probe in PROBES {
        let (reason, usual) = match info.coverage.get(probe.name) {
            Some(coverage) if coverage.state == ProbeState::Attached => continue,
            Some(coverage) => {
                let asked_for = coverage.state != ProbeState::NotAsked;
                let reason = coverage.reason.clone().unwrap_or_default();
                (reason, asked_for || probe.off_by_default.is_none())
            }
            None => {
                ("the observer that recorded the run does not have its probe".to_owned(), false)
            }
        };
        let of = |cause| Unwatched { cause, reason: reason.clone(), usual };
        unwatched.extend(probe.causes().map(of));
    }
    Quality {
        lost_of_target: info.loss.of_target(),
        loss_spans: Vec::new(),
        target_waits: 0,
        clock_uncertainty_ns: ingested.map_or(0, |ingested| ingested.uncertainty_ns),
        wall_clock_steps: info.anchors.steps(),
        samples_on_wall_clock: ingested.is_some_and(|ingested| ingested.over_wall_clock),
        unwatched,
        hidden: Vec::new(),
        short: Vec::new(),
        own_cpu,
        skipped_samples: ingested.map_or(0, unusable),
        requests_in_blocks: false,
        sleeps_watched: info
            .coverage
            .get("sleep")
            .is_some_and(|coverage| coverage.state == ProbeState::Attached),
    }
}

/// Rows that could not be used and might have been slow requests. A request from before or after
/// the run does not count: it was read, but the run contains nothing about it.
fn unusable(ingested: &Ingested) -> u64 {
    let elsewhere = [OUTSIDE_RUN, BEFORE_RUN, EARLIER_RECORDING];
    let skipped = ingested.skipped.iter();
    skipped.filter(|(reason, _)| !elsewhere.contains(&reason.as_str())).map(|(_, n)| n).sum()
}

/// The kinds whose floor rose.
pub(super) fn raised(floors: &BTreeMap<String, FloorSummary>) -> Vec<Hidden> {
    floors
        .iter()
        .filter(|(_, floor)| floor.raised_for_ns > 0)
        .map(|(kind, floor)| Hidden {
            kind: kind.clone(),
            floor_ns: floor.highest_ns,
            raised_for_ns: floor.raised_for_ns,
            hidden_ns: floor.hidden_ns,
        })
        .collect()
}

/// Problems that the analysis itself cannot see: that the samples were cut or unreadable, or the
/// trace ended.
pub(super) fn judge_input(
    analysis: &mut Analysis,
    ingested: Option<&Ingested>,
    problem: Option<&IngestError>,
    captured: &Captured,
) {
    let Verdict { outcome, top_cause, reasons } = &mut analysis.verdict;
    if let Some(error) = problem {
        *outcome = Outcome::Inconclusive;
        *top_cause = None;
        let text = format!("The samples could not be used: {error}.");
        reasons.insert(0, Reason::new("samples_error", text, json!({})));
    }
    let after = |ingested: &Ingested| ingested.skipped.get(OUTSIDE_RUN).copied().unwrap_or(0);
    if let Some(after) = ingested.filter(|ingested| ingested.samples.is_empty()).map(after) {
        *outcome = Outcome::Inconclusive;
        reasons.retain(|reason| reason.code != "no_samples");
        let text = format!(
            "None of the {} samples can be used: all were sent after the last instant up to which \
             the records of the run are complete.",
            crate::text::count(after)
        );
        reasons.insert(0, Reason::new("samples_unusable", text, json!({"outside_run": after})));
    }
    if let Some(ingested) = ingested {
        let note = |note: &String| Reason::new("samples_note", sentence(note), json!({}));
        reasons.extend(ingested.notes.iter().map(note));
    }
    if let Some(error) = &captured.trace_error {
        let text = format!("The trace of events is incomplete: {error}.");
        reasons.push(Reason::new("trace_incomplete", text, json!({})));
    }
    if let Some(error) = &captured.stalls_missing {
        *outcome = Outcome::Inconclusive;
        *top_cause = None;
        let text = format!("Stalls are missing because the trace could not be read back: {error}.");
        reasons.insert(0, Reason::new("stalls_missing", text, json!({})));
    }
}

fn sentence(note: &str) -> String {
    let mut chars = note.chars();
    let first: String =
        chars.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", chars.as_str().trim_end_matches('.'))
}

pub(super) fn summarise(
    analysis: Analysis,
    (delta, mut probes): (&Snapshot, BTreeMap<String, ProbeSummary>),
    info: &RunInfo,
    ingested: Option<&Ingested>,
    captured: &Captured,
) -> Summary {
    let mut samples = analysis.samples;
    if let Some(ingested) = ingested {
        samples.skipped = ingested.skipped.clone();
        samples.intended_start_known = ingested.intended_start_known;
        samples.clock_error_ns = ingested.uncertainty_ns;
    }
    let ignored = [
        (OUTSIDE_RUN, analysis.ignored.samples_outside_window),
        ("end_before_begin", analysis.ignored.samples_reversed),
    ];
    for (reason, count) in ignored.into_iter().filter(|(_, count)| *count > 0) {
        *samples.skipped.entry(reason.to_owned()).or_insert(0) += count;
    }
    let mut causes = analysis.causes;
    for cause in &mut causes {
        // Which sleeps were for a lock is only known by what the threads did that ended them.
        if cause.cause.is_recorded() && cause.cause != Cause::LOCK_WAIT {
            cause.stalls = captured.recorder.count(cause.cause);
        }
        let objects = analysis.objects.get(&cause.cause).into_iter().flatten();
        let names = captured.recorder.object_names();
        let named = |time: &ObjectTime| {
            let ObjectTime { object, peer, had_by, slow_ns, typical_ns } = *time;
            let mut what = names.get(&object)?.clone();
            if let Some(peer) = peer {
                what += &format!(" at {peer}");
            }
            if let Some(tid) = had_by {
                what += &format!(" that thread {} had", thread(info, tid));
            }
            Some(CauseObject { what, slow_ns, typical_ns })
        };
        cause.objects = objects.filter_map(named).collect();
        if let Some([slow_ns, typical_ns]) = analysis.held_replies_ns
            && cause.cause == Cause::NETWORK
        {
            cause.objects = vec![CauseObject { what: HELD_REPLY.to_owned(), slow_ns, typical_ns }];
        }
    }
    for probe in PROBES.iter().filter(|probe| probe.causes().any(Cause::is_stall)) {
        let Some(summary) = probes.get_mut(probe.name) else { continue };
        summary.unrecorded_ns = unrecorded_ns(probe, summary.sum_ns, captured);
    }
    Summary {
        schema: SUMMARY_SCHEMA,
        verdict: analysis.verdict,
        samples,
        requests: analysis.requests,
        account_ns: analysis.account_ns,
        without_named: analysis.without_named,
        causes,
        ruled_out: analysis.ruled_out,
        slowest_requests: analysis.slowest_requests,
        conditions: info.conditions.clone(),
        probes,
        loss: info.loss.clone(),
        records: BTreeMap::new(),
        floors: BTreeMap::new(),
        observer: delta.self_usage,
    }
}

fn write_samples(directory: &RunDir, samples: &[Sample]) -> Result<()> {
    let failed = |error: crate::output::trace::TraceError| {
        let exit = if error.is_disk_full() { Exit::DiskFull } else { Exit::Output };
        Error::new(
            exit,
            format!("cannot write the samples in {}: {error}", directory.path().display()),
        )
    };
    let mut writer = directory.create_samples()?;
    for sample in samples {
        writer.append(sample).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_disturb_too_and_count_against_the_cpus_of_the_target() {
        let mut info = crate::output::example::run();
        info.cpus = 64;
        info.target_cpus = None;
        let own = SelfSummary {
            cpu_seconds: 0.5,
            bpf_run_time_ns: 1_500_000_000,
            ..SelfSummary::default()
        };
        let share = OwnCpu { threads: 0.5 / 640.0, programs: 1.5 / 640.0 };
        assert_eq!(own_cpu(&own, &info, 10.0), share);
        info.target_cpus = Some(2);
        let share = OwnCpu { threads: 0.5 / 20.0, programs: 1.5 / 20.0 };
        assert_eq!(own_cpu(&own, &info, 10.0), share);
    }
}
