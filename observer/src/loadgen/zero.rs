//! The zero of a clock that counts from the generator's start.
//!
//! Every bound here is a hard one, so that the interval contains the zero: a process's samples begin
//! after it was executed and end before it exits, and a connection begins within the request that
//! dialled it. A wrapper may start other programs before and after the generator, so the process
//! is found by what fits the samples, then by the port it connects to and its name. If that does not
//! decide, the interval covers all that are left.

use std::collections::BTreeSet;

use super::{Dial, IngestError, RawRow, Sink};
use crate::clock::MonoNanos;
use crate::model::{GeneratorProcess, GeneratorProcesses, RelAnchor};

/// Where the zero is.
pub(super) struct Zero {
    /// The middle of the interval, on the kernel's clock.
    pub(super) at: i128,
    /// Half its length.
    pub(super) uncertainty_ns: u64,
    /// How it was found, for the user.
    pub(super) note: String,
}

/// Instants from `low` to `high`, on the kernel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    low: i128,
    high: i128,
}

impl Span {
    fn intersection(self, other: Self) -> Option<Self> {
        let span = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        (span.low <= span.high).then_some(span)
    }

    /// The shortest span that contains all of them.
    fn around(spans: impl IntoIterator<Item = Self>) -> Option<Self> {
        spans
            .into_iter()
            .reduce(|all, span| Self { low: all.low.min(span.low), high: all.high.max(span.high) })
    }

    fn zero(self, note: impl FnOnce(f64) -> String) -> Zero {
        let half = (self.high - self.low + 1) / 2;
        let uncertainty_ns = u64::try_from(half).unwrap_or(u64::MAX);
        Zero { at: self.low + half, uncertainty_ns, note: note(uncertainty_ns as f64 / 1e6) }
    }
}

fn time(at: MonoNanos) -> i128 {
    i128::from(at.0)
}

/// What the samples say about their process, in times from its zero.
struct Rows<'a> {
    /// End of the first answer.
    first_end: i128,
    /// End of the last one.
    last_end: i128,
    /// Requests that opened a connection of their own.
    dialled: usize,
    /// The first of them.
    dials: &'a [Dial],
}

/// Finds the zero.
///
/// # Errors
/// When observer did not start the generator.
pub(super) fn relative_zero(sink: &Sink, seen: &RelAnchor) -> Result<Zero, IngestError> {
    let (Some(spawned), Some(exited)) = (seen.spawned.map(time), seen.exited.map(time)) else {
        return Err(IngestError::NoAnchor);
    };
    // A time that is longer than the generator lived is an odd number, and bounds nothing.
    let possible = |end: &i128| *end <= exited - spawned;
    let ends = || sink.rows.iter().map(|row| i128::from(RawRow::end_ns(row))).filter(possible);
    let precision = i128::from(sink.precision_ns);
    let rows = Rows {
        first_end: ends().min().unwrap_or(0) + precision,
        last_end: ends().max().unwrap_or(0) - precision,
        dialled: sink.dials.count,
        dials: &sink.dials.first,
    };
    let whole = Span { low: spawned, high: exited - rows.last_end };
    let Some(all) = &seen.processes else {
        return Ok(whole.zero(|error_ms| {
            format!(
                "COMMAND started too many processes to follow; the times are aligned by its start \
                 and its end: the error may be {error_ms:.1} ms"
            )
        }));
    };
    let fitting = fitting(all, &rows, whole, sink, &seen.ports);
    let by = if uses_connects(all) { "connections" } else { "start and end" };
    match fitting.as_slice() {
        [] => Ok(whole.zero(|error_ms| {
            format!(
                "no process of COMMAND fits the samples; the times are aligned by its start and its \
                 end: the error may be {error_ms:.1} ms"
            )
        })),
        [(process, span)] => Ok(span.zero(|error_ms| {
            let tgid = process.tgid;
            format!(
                "times aligned by the {by} of the generator's process ({tgid}): the error may be \
                 {error_ms:.1} ms"
            )
        })),
        [first, ..] => {
            let span = Span::around(fitting.iter().map(|(_, span)| *span)).unwrap_or(first.1);
            Ok(span.zero(|error_ms| {
                format!(
                    "{} processes of COMMAND fit the samples, and any of them may have written \
                     them: the error of their times may be {error_ms:.1} ms; let COMMAND start the \
                     generator once",
                    fitting.len()
                )
            }))
        }
    }
}

/// Whether connections can tell the generator from other processes. If none was seen, it runs outside
/// COMMAND's processes (in a container, say), or connects in a way that is not watched.
fn uses_connects(all: &GeneratorProcesses) -> bool {
    all.connects_known && all.processes.iter().any(|process| !process.connects.is_empty())
}

/// The processes that may have written the samples, and where their zero then is.
fn fitting<'a>(
    all: &'a GeneratorProcesses,
    rows: &Rows<'_>,
    whole: Span,
    sink: &Sink,
    ports: &BTreeSet<u16>,
) -> Vec<(&'a GeneratorProcess, Span)> {
    let by_connects = uses_connects(all);
    let mut fitting: Vec<_> = all
        .processes
        .iter()
        .filter_map(|process| Some((process, fit(process, rows, whole, by_connects)?)))
        .collect();
    let reaches_target =
        |process: &GeneratorProcess| process.connects.iter().any(|(_, port)| ports.contains(port));
    let is_named = |process: &GeneratorProcess| process.comm.starts_with(sink.program);
    for told_apart in [&reaches_target as &dyn Fn(&GeneratorProcess) -> bool, &is_named] {
        if fitting.iter().any(|(process, _)| told_apart(process)) {
            fitting.retain(|(process, _)| told_apart(process));
        }
    }
    // Generators print at their end: of as many recordings as processes, the last is of the process
    // that ended last.
    if sink.recordings > 1 && fitting.len() == sink.recordings {
        fitting.sort_by_key(|(process, _)| process.ended.unwrap_or(MonoNanos(u64::MAX)));
        fitting.drain(..sink.recordings - 1);
    }
    fitting
}

/// Where the zero is, if the samples are this process's.
fn fit(
    process: &GeneratorProcess,
    rows: &Rows<'_>,
    whole: Span,
    by_connects: bool,
) -> Option<Span> {
    let mut span = whole;
    if let Some(began) = process.began {
        span.low = span.low.max(time(began));
    }
    if let Some(ended) = process.ended {
        span.high = span.high.min(time(ended) - rows.last_end);
    }
    if by_connects {
        let connects: Vec<i128> = process.connects.iter().map(|(at, _)| time(*at)).collect();
        if !process.more_connects && connects.len() < rows.dialled {
            return None;
        }
        // Something was connected before the first answer came.
        span.low = span.low.max(*connects.first()? - rows.first_end);
        return Span::around(placements(span, &connects, process.more_connects, rows.dials));
    }
    (span.low <= span.high).then_some(span)
}

/// The parts of `span` in which each dial has a connection that began within it.
fn placements(span: Span, connects: &[i128], more: bool, dials: &[Dial]) -> Vec<Span> {
    let mut left: Vec<Span> = Some(span).filter(|span| span.low <= span.high).into_iter().collect();
    for dial in dials {
        let (earliest, latest) = (i128::from(dial.earliest_ns), i128::from(dial.latest_ns));
        let place = |at: &i128| Span { low: at - latest, high: at - earliest };
        // Of connections after the last known one, only that is known.
        let later = connects.last().filter(|_| more);
        let later = later.map(|at| Span { low: at - latest, high: i128::MAX });
        let places = merged(connects.iter().map(place).chain(later).collect());
        left = left
            .iter()
            .flat_map(|span| places.iter().filter_map(|place| span.intersection(*place)))
            .collect();
    }
    left
}

fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.low);
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.low <= last.high => last.high = last.high.max(span.high),
            _ => merged.push(span),
        }
    }
    merged
}
