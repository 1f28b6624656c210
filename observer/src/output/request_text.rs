//! Single requests for users at a terminal.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rundir::RunDir;
use super::terminal::{Paint, asked, handed, wrapped};
use super::text::{clean, count, detail, duration, instant, percent, thread, utc};
use super::trace::TraceEvent;
use crate::clock::MonoNanos;
use crate::error::Result;
use crate::model::{
    Cause, Event, Matched, REQUESTS_LISTED_MAX, RequestList, RequestSelection, RunInfo, Sample,
    ServedBy, SlowRequest, SlowStall, StreamRow, TraceRow,
};
use crate::probe;

/// Stalls shown for one request.
const STALLS_SHOWN: usize = 5;

/// The records of the stalls that are shown, for what only they say: a system call, who had the CPU.
#[derive(Debug, Default)]
pub struct Details(BTreeMap<TraceRow, Option<Event>>);

impl Details {
    /// Reads them from the streams of the run.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn read(directory: &RunDir, list: &RequestList) -> Result<Self> {
        let shown = list.requests.iter().flat_map(shown);
        let mut details: BTreeMap<TraceRow, Option<Event>> =
            shown.filter_map(|stall| Some((place(stall.trace_row.as_ref()?)?, None))).collect();
        if !details.is_empty() {
            directory.each_event(|events| {
                for TraceEvent { row, event } in events {
                    if let Some(place) = row.and_then(|row| details.get_mut(&row)) {
                        *place = Some(*event);
                    }
                }
            })?;
        }
        Ok(Self(details))
    }

    fn of(&self, stall: &SlowStall) -> Option<&Event> {
        self.0.get(&place(stall.trace_row.as_ref()?)?)?.as_ref()
    }
}

fn shown(request: &SlowRequest) -> impl Iterator<Item = &SlowStall> {
    request.stalls.iter().take(STALLS_SHOWN)
}

fn place(row: &StreamRow) -> Option<TraceRow> {
    let kind = probe::records().find(|record| record.name == row.kind)?.kind;
    TraceRow::new(kind, u64::from(row.row))
}

/// The requests as text, a block each, with or without colours. `samples` has the sample of each.
#[must_use]
pub fn render(
    run: &RunInfo,
    list: &RequestList,
    samples: &[Sample],
    details: &Details,
    colour: bool,
) -> String {
    let paint = Paint::new(colour);
    let mut text = String::new();
    text.push_str(&paint.heading(&heading(run, list)));
    text.push('\n');
    for note in all_notes(list) {
        wrapped(&mut text, &paint.warning(&clean(&note, 600)), "  ! ");
    }
    for (request, sample) in list.requests.iter().zip(samples) {
        text.push('\n');
        block(&mut text, run, request, sample, details, paint);
    }
    text
}

/// `12 of 3,000 requests took 50.0 ms or longer, the slowest first`.
fn heading(run: &RunInfo, list: &RequestList) -> String {
    let RequestSelection { slower_than_ns, at_ns, .. } = list.selection;
    let mut conditions = Vec::new();
    conditions.extend(
        slower_than_ns.map(|least_ns| format!("took {} or longer", duration(least_ns as f64))),
    );
    conditions.extend(at_ns.map(|at| format!("were in flight {}", moment(run, at))));
    let conditions = conditions.join(" and ");
    let all = count(list.in_run);
    match (list.total, conditions.as_str()) {
        (0, "") => "No request was watched from begin to end".to_owned(),
        (0, _) => format!("None of {all} requests {conditions}"),
        (_, "") => format!("The slowest {} of {all} requests", count(list.listed)),
        (total, _) => format!("{} of {all} requests {conditions}, the slowest first", count(total)),
    }
}

/// What is left out, and the notes of the list.
fn all_notes(list: &RequestList) -> Vec<String> {
    let mut notes = Vec::new();
    let RequestSelection { slower_than_ns, at_ns, .. } = list.selection;
    let more = list.total.saturating_sub(list.listed);
    if more > 0 && (slower_than_ns.is_some() || at_ns.is_some()) {
        notes.push(format!(
            "the list ends after the slowest {}; {} more are not in it (--requests N lists up to {})",
            count(list.listed),
            count(more),
            count(REQUESTS_LISTED_MAX)
        ));
    }
    if list.outside_run > 0 {
        notes.push(format!(
            "{} requests began before the run or ended after it, and are not listed",
            count(list.outside_run)
        ));
    }
    notes.extend(list.notes.iter().cloned());
    notes
}

/// `9.503000 s into the run (2023-11-14 22:13:29.503000 UTC)`.
fn moment(run: &RunInfo, time: MonoNanos) -> String {
    let into = format!("{} into the run", instant(offset_ns(run, time)));
    match run.anchors.to_wall(time) {
        Some(wall) => format!("{into} ({})", utc(wall)),
        None => into,
    }
}

fn offset_ns(run: &RunInfo, time: MonoNanos) -> f64 {
    time.0 as f64 - run.start_ns.0 as f64
}

fn block(
    text: &mut String,
    run: &RunInfo,
    request: &SlowRequest,
    sample: &Sample,
    details: &Details,
    paint: Paint,
) {
    let when = run.anchors.to_wall(request.begin_ns).map(|wall| format!("{}, ", utc(wall)));
    let mut first = format!(
        "{}{} into the run: took {}",
        when.unwrap_or_default(),
        instant(offset_ns(run, request.begin_ns)),
        duration(request.response_ns as f64)
    );
    if let Some(status) = request.status {
        let _ = write!(first, ", status {status}");
    }
    if let Some(seq) = request.seq {
        let _ = write!(first, ", request {seq}");
    }
    if let Some(error) = &sample.error {
        let _ = write!(first, ", {}", clean(error, 80));
    }
    let _ = writeln!(text, "{}", paint.heading(&first));
    wrapped(text, &matched(request, sample), "  ");
    if let Some(served) = &request.served {
        wrapped(text, &served_by(run, request, served), "  ");
    }
    if let Some(asked) = asked(&request.asked, request.begin_ns) {
        wrapped(text, &asked, "  ");
    }
    let mut rest: Vec<&SlowStall> = shown(request).collect();
    let mut parts: Vec<(&Cause, &u64)> = request.account_ns.iter().flatten().collect();
    parts.sort_by_key(|(cause, part_ns)| (Reverse(**part_ns), **cause));
    for (cause, part_ns) in parts {
        let share = percent(*part_ns as f64 / request.response_ns.max(1) as f64);
        let (name, length) = (cause.name(), duration(*part_ns as f64));
        let _ = writeln!(text, "    {name:<16} {length:>8} {share:>6}");
        let (of_cause, others): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|stall| stall.cause == *cause);
        rest = others;
        of_cause.into_iter().for_each(|stall| row(text, run, stall, false, details));
    }
    // Of a request without an account, and those that lie completely within others.
    rest.into_iter().for_each(|stall| row(text, run, stall, true, details));
    let more = request.more_stalls + request.stalls.len().saturating_sub(STALLS_SHOWN) as u64;
    if more > 0 {
        let _ = writeln!(text, "      and {} shorter ones", count(more));
    } else if request.account_ns.is_none() && request.stalls.is_empty() {
        text.push_str("    no stall of the target during it\n");
    }
}

/// A stall or a sleep, with its cause if that is not in the line above.
fn row(text: &mut String, run: &RunInfo, stall: &SlowStall, with_cause: bool, details: &Details) {
    let at = instant(offset_ns(run, stall.start_ns));
    let whole_ns = stall.end_ns.since(stall.start_ns);
    let _ = write!(text, "      at {at} {}", thread(run, stall.tid));
    if with_cause {
        let _ = write!(text, " {}", stall.cause.name());
    }
    let _ = write!(text, ", {}", duration(stall.inside_ns as f64));
    if whole_ns != stall.inside_ns {
        let _ = write!(text, " of {}", duration(whole_ns as f64));
    }
    let about = match (details.of(stall), stall.holder) {
        (Some(event), _) => detail(run, event),
        (None, Some(holder)) => {
            let did = if stall.cause.is_stall() { "had it" } else { "woke it" };
            format!("thread {} {did}", thread(run, holder.tid))
        }
        (None, None) => String::new(),
    };
    if !about.is_empty() {
        let _ = write!(text, ": {about}");
    }
    text.push('\n');
}

/// How it was matched, or why it was not.
fn matched(request: &SlowRequest, sample: &Sample) -> String {
    const ALL: &str = "stalls of all threads are shown";
    let port = sample.local_port.map(|port| format!("port {port}"));
    match request.matched {
        Some(Matched::Connection) => {
            format!("matched by its connection ({})", port.unwrap_or_default())
        }
        Some(Matched::Time) => "matched by its time".to_owned(),
        Some(Matched::SameThreads) => {
            "matched with one of several requests that the same threads served".to_owned()
        }
        Some(Matched::Ambiguous) => format!(
            "not matched: it may be one of several requests, which different threads served; {ALL}"
        ),
        Some(Matched::Unmatched) => format!(
            "not matched: no request that the target's sockets saw fits its time{}; {ALL}",
            port.map_or_else(String::new, |port| format!(" and {port}"))
        ),
        Some(Matched::Multiplexed) => format!(
            "not matched: its connection{} carried several requests at a time, which the target's \
             sockets cannot tell apart; {ALL}",
            port.map_or_else(String::new, |port| format!(" ({port})"))
        ),
        Some(Matched::NotRecorded) => format!(
            "not matched: there were so many requests that only those of some blocks of time were \
             recorded, and it is in none of these; {ALL}"
        ),
        Some(Matched::NoRequests) => {
            format!("not matched: no request of the target was recorded; {ALL}")
        }
        Some(Matched::Unknown) | None => "it is not known how it was matched".to_owned(),
    }
}

/// `in the socket after 41.0 µs, read after 60.2 µs by svc-1 (12), answered after 20.3 ms by svc-2 (13)`.
fn served_by(run: &RunInfo, request: &SlowRequest, served: &ServedBy) -> String {
    let after = |time: MonoNanos| duration(time.since(request.begin_ns) as f64);
    let arrival = served.arrival_ns.map(|time| format!("in the socket after {}, ", after(time)));
    let (arrival, reader) = (arrival.unwrap_or_default(), thread(run, served.reader));
    let mut read = format!("{arrival}read after {} by {reader}", after(served.read_ns));
    read.push_str(&handed(run, request.begin_ns, served));
    match served.first_send_ns {
        None => format!("{read}, not answered"),
        Some(first) => {
            format!("{read}, answered after {} by {}", after(first), thread(run, served.sender))
        }
    }
}

#[cfg(test)]
#[path = "request_text_tests.rs"]
mod tests;
