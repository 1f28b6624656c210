//! Splits the time in which threads were away from the CPU by cause.
//!
//! An absence says how long a thread was away, and its stacks; why it was away, its stalls and sleeps of that
//! time say. As everywhere, the innermost of them has an instant, and a sleep within a stall belongs to the
//! stall ([`innermost`]). What none of them has is not known.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::innermost::{Rank, ThreadStall, innermost};
use super::timeline::Span;
use crate::clock::MonoNanos;
use crate::model::{Absence, Cause, Extra, Stall, Tid};

/// The end of a sleep, the begin of a wait for a CPU and the ends of an absence are read one after the other, and
/// by two clocks. A gap between them, or a piece of a neighbour, that is not longer than this, nor than an
/// eighth of the absence, is no part of its own.
const SLACK_NS: u64 = 10_000;

/// A part of an absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Why the thread was away; [`Cause::UNEXPLAINED`] where no record says it.
    pub cause: Cause,
    /// First instant.
    pub start: MonoNanos,
    /// Length in nanoseconds.
    pub ns: u64,
}

/// The absences of a run. Those of a thread do not overlap.
#[derive(Clone, Debug, Default)]
pub struct Absences {
    /// By thread, in order of time.
    absences: Vec<Absence>,
}

impl Absences {
    /// From absences in any order.
    #[must_use]
    pub fn new(mut absences: Vec<Absence>) -> Self {
        absences.sort_unstable_by_key(|absence| (absence.tid, absence.end, absence.duration_ns));
        Self { absences }
    }

    /// All of them: by thread, in order of time.
    #[must_use]
    pub fn all(&self) -> &[Absence] {
        &self.absences
    }

    /// Whether a stall or a sleep can say why a thread was away: only these have to be kept for
    /// [`Absences::split`]. Short stalls that were summed up cannot, because it is not known when they were.
    #[must_use]
    pub fn concerns(&self, stall: &Stall) -> bool {
        let place =
            self.absences.partition_point(|one| (one.tid, one.end) <= (stall.tid, stall.start));
        stall.cause.is_recorded()
            && !matches!(stall.extra, Extra::Spread(_))
            && stall.start < stall.end
            && self
                .absences
                .get(place)
                .is_some_and(|one| one.tid == stall.tid && one.start() < stall.end)
    }

    /// Hands over each absence with its parts, in order of time, which sum to its length.
    pub fn split(&self, stalls: &[Stall], mut each: impl FnMut(&Absence, &[Part])) {
        let spans = self.spans(stalls);
        let mut parts = Vec::new();
        for absence in &self.absences {
            let (start, end) = (absence.start().0, absence.end.0);
            let first =
                spans.partition_point(|(tid, span, _)| (*tid, span.end) <= (absence.tid.0, start));
            let within = spans.get(first..).unwrap_or_default().iter();
            let within =
                within.take_while(|(tid, span, _)| *tid == absence.tid.0 && span.start < end);
            parts.clear();
            split_one(absence, within.map(|(_, span, cause)| (*span, *cause)), &mut parts);
            each(absence, &parts);
        }
    }

    /// Which cause has which interval of a thread: by thread, in order of time.
    fn spans(&self, stalls: &[Stall]) -> Vec<(u32, Span, Cause)> {
        let concerned = stalls.iter().filter(|stall| self.concerns(stall));
        let mut sorted: Vec<ThreadStall> = concerned
            .map(|stall| ThreadStall {
                start: stall.start.0,
                end: stall.end.0,
                length: stall.duration_ns(),
                tid: stall.tid.0,
                cause: stall.cause,
                rank: Rank::of(stall, stall.cause.is_stall() && !stall.cause.is_sleep()),
            })
            .collect();
        sorted.sort_unstable_by_key(|stall| Reverse((stall.tid, stall.end)));
        let mut spans = Vec::with_capacity(sorted.len());
        for thread in sorted.chunk_by(|one, other| one.tid == other.tid) {
            innermost(thread, |cause, tid, span| spans.push((tid, span, cause)));
        }
        spans.reverse();
        spans
    }
}

/// Cuts an absence into parts, given which cause has which interval, in order of time.
fn split_one(
    absence: &Absence,
    causes: impl Iterator<Item = (Span, Cause)>,
    parts: &mut Vec<Part>,
) {
    let (start, end) = (absence.start().0, absence.end.0);
    let slack_ns = SLACK_NS.min((end - start) / 8);
    // A thread that could have run waited for a CPU, whether that wait was recorded or not.
    let rest = if absence.preempted { Cause::RUNQUEUE } else { Cause::UNEXPLAINED };
    // Of an absence that began before the clock did: a trace may hold anything.
    add(parts, rest, start, absence.duration_ns - (end - start));
    let mut now = start;
    for (span, cause) in causes {
        let (from, until) = (span.start.max(start), span.end.min(end));
        let is_of_neighbour = (span.start < start) != (span.end > end) && until - from <= slack_ns;
        if is_of_neighbour {
            continue;
        }
        let begin = fill(parts, rest, (now, from), slack_ns);
        add(parts, cause, begin, until - begin);
        now = until;
    }
    let begin = fill(parts, rest, (now, end), slack_ns);
    // Nothing lies behind.
    add(parts, rest, begin, end - begin);
}

/// Gives a gap to the part before it if it is short, otherwise to the rest. Returns where the next part begins:
/// behind the gap, or where there is no part before a short gap, with it.
fn fill(parts: &mut Vec<Part>, rest: Cause, gap: (u64, u64), slack_ns: u64) -> u64 {
    let (from, until) = gap;
    let is_short = until - from <= slack_ns;
    match parts.last_mut() {
        Some(last) if is_short => last.ns = last.ns.saturating_add(until - from),
        None if is_short => return from,
        _ => add(parts, rest, from, until - from),
    }
    until
}

/// Adds a part, to the last one if that has the same cause.
fn add(parts: &mut Vec<Part>, cause: Cause, start: u64, ns: u64) {
    match parts.last_mut() {
        _ if ns == 0 => {}
        Some(last) if last.cause == cause => last.ns = last.ns.saturating_add(ns),
        _ => parts.push(Part { cause, start: MonoNanos(start), ns }),
    }
}

/// Times of threads, as those in which they had slow requests: disjoint, in order.
#[derive(Clone, Debug, Default)]
pub struct ThreadTimes(HashMap<Tid, Vec<Span>>);

impl ThreadTimes {
    /// From intervals in any order, which may overlap.
    #[must_use]
    pub fn new(intervals: impl IntoIterator<Item = (Tid, MonoNanos, MonoNanos)>) -> Self {
        let mut times: HashMap<Tid, Vec<Span>> = HashMap::new();
        for (tid, from, until) in intervals {
            if from < until {
                times.entry(tid).or_default().push(Span { start: from.0, end: until.0 });
            }
        }
        for spans in times.values_mut() {
            spans.sort_unstable();
            spans.dedup_by(|next, last| {
                let overlaps = next.start <= last.end;
                if overlaps {
                    last.end = last.end.max(next.end);
                }
                overlaps
            });
        }
        Self(times)
    }

    /// What of the parts of an absence lies in the times of a thread.
    #[must_use]
    pub fn within(&self, tid: Tid, parts: &[Part]) -> Vec<Part> {
        let Some(spans) = self.0.get(&tid) else { return Vec::new() };
        let mut inside = Vec::new();
        for part in parts {
            let end = part.start.0.saturating_add(part.ns);
            let first = spans.partition_point(|span| span.end <= part.start.0);
            for span in spans[first..].iter().take_while(|span| span.start < end) {
                let start = span.start.max(part.start.0);
                let ns = span.end.min(end) - start;
                inside.push(Part { start: MonoNanos(start), ns, ..*part });
            }
        }
        inside
    }
}

#[cfg(test)]
#[path = "absences_tests.rs"]
mod tests;
