//! Stalls as disjoint intervals of the window, with prefix sums: how much of any interval a cause
//! covers is two binary searches away.

use std::cmp::Reverse;
use std::sync::Arc;

use super::Ignored;
use super::aside::{Asides, without};
use super::innermost::{Rank, ThreadStall, innermost};
use super::lines::{Line, Lines};
use super::siblings::Siblings;
use crate::clock::MonoNanos;
use crate::model::{CAUSES, Cause, Stall};

/// A half-open interval, nanoseconds since the start of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// When one cause was at work: disjoint intervals, each with a weight (less than one where an
/// instant is shared with other causes).
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    starts: Vec<u64>,
    ends: Vec<u64>,
    weights: Vec<f64>,
    /// Weighted nanoseconds covered before each interval.
    before: Vec<f64>,
    total: f64,
    length_ns: u64,
}

impl Timeline {
    /// From spans in any order, overlapping or not: each instant counts once.
    pub(super) fn union(mut spans: Vec<Span>, length_ns: u64) -> Self {
        spans.sort_unstable();
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => merged.push(span),
            }
        }
        let mut timeline = Self { length_ns, ..Self::default() };
        for span in merged {
            timeline.push(span, 1.0);
        }
        timeline
    }

    /// What none of these timelines covers.
    fn gaps(timelines: &[&Self], length_ns: u64) -> Self {
        let spans = |timeline: &&Self| {
            let spans = timeline.starts.iter().zip(&timeline.ends);
            spans.map(|(start, end)| Span { start: *start, end: *end }).collect::<Vec<_>>()
        };
        let covered = Self::union(timelines.iter().flat_map(spans).collect(), length_ns);
        let mut gaps = Self { length_ns, ..Self::default() };
        let starts = covered.starts.iter().copied().chain([length_ns]);
        let ends = [0].into_iter().chain(covered.ends.iter().copied());
        for (start, end) in ends.zip(starts).filter(|(start, end)| start < end) {
            gaps.push(Span { start, end }, 1.0);
        }
        gaps
    }

    fn push(&mut self, span: Span, weight: f64) {
        self.starts.push(span.start);
        self.ends.push(span.end);
        self.weights.push(weight);
        self.before.push(self.total);
        self.total += (span.end - span.start) as f64 * weight;
    }

    /// Weighted nanoseconds covered in `[0, time)`.
    fn covered_until(&self, time: u64) -> f64 {
        let Some(last) = self.starts.partition_point(|start| *start < time).checked_sub(1) else {
            return 0.0;
        };
        let inside = time.min(self.ends[last]) - self.starts[last];
        self.before[last] + inside as f64 * self.weights[last]
    }

    /// Weighted nanoseconds covered in `[start, end)`.
    pub(super) fn exposure(&self, start: u64, end: u64) -> f64 {
        if end <= start || self.starts.is_empty() {
            return 0.0;
        }
        self.covered_until(end) - self.covered_until(start)
    }

    /// Exposure of an interval moved later by `shift` on the window bent into a circle.
    pub(super) fn shifted_exposure(&self, start: u64, end: u64, shift: u64) -> f64 {
        let wrap = |time: u64| {
            let moved = time + shift;
            if moved >= self.length_ns {
                (moved - self.length_ns, self.total)
            } else {
                (moved, 0.0)
            }
        };
        let (start, start_turn) = wrap(start);
        let (end, end_turn) = wrap(end);
        self.covered_until(end) + end_turn - self.covered_until(start) - start_turn
    }

    /// Share of the window that is covered.
    pub(super) fn duty(&self) -> f64 {
        if self.length_ns == 0 { 0.0 } else { self.total / self.length_ns as f64 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }
}

/// The intervals of one cause, thread by thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    spans: Vec<Span>,
    /// Threads in order of id, each with the place of its first interval.
    threads: Vec<(u32, usize)>,
}

impl Pieces {
    /// The last thread comes first, and of a thread the last interval. Call [`Self::turn`] behind them.
    fn push(&mut self, tid: u32, span: Span) {
        if self.threads.last().is_none_or(|(last, _)| *last != tid) {
            self.threads.push((tid, self.spans.len()));
        } else if let Some(last) = self.spans.last_mut()
            && last.start == span.end
        {
            // Without a gap, both become one piece, so that memory stays linear in the stalls.
            last.start = span.start;
            return;
        }
        self.spans.push(span);
    }

    /// Puts them in order of time.
    fn turn(&mut self) {
        self.spans.reverse();
        let mut end = self.spans.len();
        for (_, first) in self.threads.iter_mut().rev() {
            // So many intervals were pushed behind those of this thread.
            let behind = self.spans.len() - end;
            end = *first;
            *first = behind;
        }
        self.threads.reverse();
    }

    /// From disjoint intervals in any order.
    pub(super) fn of(mut spans: Vec<(u32, Span)>) -> Self {
        spans.sort_unstable();
        let mut pieces = Self::default();
        spans.iter().rev().for_each(|(tid, span)| pieces.push(*tid, *span));
        pieces.turn();
        pieces
    }

    /// All intervals, thread by thread, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &[Span])> {
        self.threads.iter().map(|(tid, _)| (*tid, self.of_thread(*tid)))
    }

    /// The intervals of a thread, in order.
    pub(super) fn of_thread(&self, tid: u32) -> &[Span] {
        let place = self.threads.partition_point(|(other, _)| *other < tid);
        let Some((_, first)) = self.threads.get(place).filter(|(found, _)| *found == tid) else {
            return &[];
        };
        let end = self.threads.get(place + 1).map_or(self.spans.len(), |(_, next)| *next);
        &self.spans[*first..end]
    }
}

/// Timelines of all causes.
#[derive(Debug)]
pub(super) struct Timelines {
    /// In the order of [`CAUSES`], threads united.
    by_cause: Vec<Timeline>,
    /// The same, thread by thread; empty where that is not wanted.
    pieces: Vec<Arc<Pieces>>,
    stalls: Vec<u64>,
    length_ns: u64,
}

impl Timelines {
    /// When a cause of this version was at work.
    #[cfg(test)]
    pub(super) fn of(&self, cause: Cause) -> &Timeline {
        &self.by_cause[cause.index()]
    }

    /// When these causes were at work in a thread, for whom it served others beside.
    pub(super) fn beside(&self, tid: u32, causes: &[Cause], others: &[Span]) -> Timeline {
        if others.is_empty() {
            return Timeline { length_ns: self.length_ns, ..Timeline::default() };
        }
        let pieces = causes.iter().filter_map(|cause| self.pieces.get(cause.index()));
        let mut spans: Vec<Span> =
            pieces.flat_map(|pieces| without(pieces.of_thread(tid), others)).collect();
        if causes.contains(&Cause::SERVICE_WAIT) {
            spans.extend_from_slice(others);
        }
        Timeline::union(spans, self.length_ns)
    }

    /// When these causes were at work in a thread.
    pub(super) fn of_thread(&self, tid: u32, causes: &[Cause]) -> Timeline {
        let pieces = causes.iter().filter_map(|cause| self.pieces.get(cause.index()));
        let spans = pieces.flat_map(|pieces| pieces.of_thread(tid));
        Timeline::union(spans.copied().collect(), self.length_ns)
    }

    /// The intervals of a cause, thread by thread; `None` where nothing was kept by thread.
    pub(super) fn pieces(&self, cause: Cause) -> Option<&Pieces> {
        self.pieces.get(cause.index()).map(Arc::as_ref)
    }

    /// Gives a cause other intervals, thread by thread, and so many more stalls.
    pub(super) fn replace(&mut self, cause: Cause, pieces: Pieces, more_stalls: u64) {
        self.pieces[cause.index()] = Arc::new(pieces);
        self.stalls[cause.index()] += more_stalls;
    }

    /// The sleeps that were no waits for a lock, thread by thread; `None` where nothing was kept by thread.
    pub(super) fn sleeps(&self) -> Option<Arc<Pieces>> {
        self.pieces.get(Cause::SERVICE_WAIT.index()).cloned()
    }

    /// The timelines of all threads together, in the order of [`CAUSES`]; nothing is left of these here.
    pub(super) fn take_united(&mut self) -> Vec<Timeline> {
        std::mem::take(&mut self.by_cause)
    }

    /// The stalls on one line of all threads.
    pub(super) fn on_one_line(&self, united: Vec<Timeline>) -> StallLines {
        let (length_ns, mut stalls) = (self.length_ns, self.stalls.clone());
        forget_sleeps(&mut stalls);
        // Most threads sleep most of the time, so together they say nothing.
        let stalls_alone = |(timeline, cause): (Timeline, Cause)| match cause.is_stall() {
            true => Lines::united(timeline),
            false => Lines::united(Timeline { length_ns, ..Timeline::default() }),
        };
        let by_cause = united.into_iter().zip(Cause::all()).map(stalls_alone).collect();
        StallLines { by_cause, stalls }
    }

    /// The stalls by line.
    pub(super) fn on_lines(
        &self,
        lines: &[Line],
        siblings: &Siblings,
        asides: &Asides,
    ) -> StallLines {
        let Self { pieces, stalls, length_ns, .. } = self;
        let (length_ns, mut stalls) = (*length_ns, stalls.clone());
        let has_account = lines.contains(&Line::Outside);
        if !has_account {
            forget_sleeps(&mut stalls);
        }
        // Lines of two threads repeat the stalls of both. As much as all stalls is affordable; further
        // ones have those of the sender.
        let mut room: usize = pieces.iter().map(|pieces| pieces.spans.len()).sum();
        let affordable: Vec<Line> = lines
            .iter()
            .map(|line| {
                let Line::Both { reader, sender } = *line else { return *line };
                let of = |tid: u32| pieces.iter().map(move |one| one.of_thread(tid).len());
                let needed: usize = of(reader).chain(of(sender)).sum();
                let Some(left) = room.checked_sub(needed) else { return Line::Thread(sender) };
                room = left;
                *line
            })
            .collect();
        let by_cause = pieces
            .iter()
            .zip(Cause::all())
            .map(|(pieces, cause)| {
                let timeline = |line: &Line| {
                    let spans = match *line {
                        Line::Outside => Vec::new(),
                        _ if !cause.is_stall() && !has_account => Vec::new(),
                        Line::Siblings => return siblings.timeline(&[cause]),
                        Line::Thread(tid) => pieces.of_thread(tid).to_vec(),
                        Line::Aside(tid) => {
                            let others = asides.of_thread(tid);
                            let own = without(pieces.of_thread(tid), others);
                            match cause {
                                Cause::SERVICE_WAIT => [&own, others].concat(),
                                _ => own,
                            }
                        }
                        Line::Both { reader, sender } => {
                            [pieces.of_thread(reader), pieces.of_thread(sender)].concat()
                        }
                    };
                    Timeline::union(spans, length_ns)
                };
                Lines::by_thread(affordable.iter().map(timeline).collect(), &affordable)
            })
            .collect();
        let mut lines = StallLines { by_cause, stalls };
        if has_account {
            lines.add_the_rest(&affordable, length_ns);
        }
        lines
    }

    /// Its stalls that reach into the window.
    pub(super) fn stalls(&self, cause: Cause) -> u64 {
        self.stalls.get(cause.index()).copied().unwrap_or(0)
    }
}

/// Where they say nothing, what a service does of its own will is not counted.
fn forget_sleeps(stalls: &mut [u64]) {
    for cause in Cause::all().filter(|cause| !cause.is_stall()) {
        stalls[cause.index()] = 0;
    }
}

/// All causes by line.
#[derive(Debug)]
pub(super) struct StallLines {
    /// In the order of [`CAUSES`].
    by_cause: Vec<Lines>,
    stalls: Vec<u64>,
}

impl StallLines {
    /// Gives the time of a line that no record covers to the service's own work, that outside the service to
    /// the network, and that between stalls of siblings to the sleep of the reader.
    fn add_the_rest(&mut self, lines: &[Line], length_ns: u64) {
        let rest = |number: usize| {
            let covered: Vec<&Timeline> =
                self.by_cause.iter().map(|lines| lines.number(number)).collect();
            Timeline::gaps(&covered, length_ns)
        };
        let rests: Vec<Timeline> = (0..lines.len()).map(rest).collect();
        for ((number, line), rest) in lines.iter().enumerate().zip(rests) {
            let cause = match line {
                Line::Outside => Cause::NETWORK,
                Line::Siblings => Cause::SERVICE_WAIT,
                Line::Thread(_) | Line::Aside(_) | Line::Both { .. } => Cause::SERVICE_CPU,
            };
            self.by_cause[cause.index()].replace(number, rest);
        }
    }

    /// When a cause of this version was at work.
    pub(super) fn of(&self, cause: Cause) -> &Lines {
        &self.by_cause[cause.index()]
    }

    /// Its stalls that reach into the window.
    pub(super) fn stalls(&self, cause: Cause) -> u64 {
        self.stalls.get(cause.index()).copied().unwrap_or(0)
    }
}

/// Clips stalls to the window, gives each instant of a thread to its innermost stall, and unites
/// the threads.
#[cfg(test)]
pub(super) fn flatten(
    stalls: &[Stall],
    window: (MonoNanos, MonoNanos),
    ignored: &mut Ignored,
) -> Timelines {
    Timelines::new(stalls, window, false, ignored)
}

impl Timelines {
    /// Clips stalls to the window, gives each instant of a thread to its innermost stall, unites the
    /// threads, and keeps what was of which thread if `by_thread`.
    pub(super) fn new(
        stalls: &[Stall],
        window: (MonoNanos, MonoNanos),
        by_thread: bool,
        ignored: &mut Ignored,
    ) -> Self {
        let length_ns = window.1.since(window.0);
        let mut counts = vec![0; CAUSES.len()];
        let mut inside: Vec<ThreadStall> = Vec::with_capacity(stalls.len());
        for stall in stalls {
            let cause = stall.cause;
            let is_stall = cause.is_stall();
            if !cause.is_recorded() {
                ignored.stalls_without_kernel_cause += 1;
                continue;
            }
            if !is_stall && !by_thread {
                continue;
            }
            if stall.end <= stall.start {
                ignored.stalls_empty_or_reversed += 1;
                continue;
            }
            let first = stall.first();
            if first.since(window.0) >= stall.end.since(window.0).min(length_ns) {
                ignored.stalls_outside_window += 1;
                continue;
            }
            counts[cause.index()] += 1;
            let (start, end, length) = (first.0, stall.end.0, stall.duration_ns());
            let rank = Rank::of(stall, is_stall && !cause.is_sleep());
            inside.push(ThreadStall { start, end, length, tid: stall.tid.0, cause, rank });
        }
        inside.sort_unstable_by_key(|stall| Reverse((stall.tid, stall.end)));
        let mut pieces = vec![Pieces::default(); CAUSES.len()];
        for thread in inside.chunk_by(|a, b| a.tid == b.tid) {
            innermost(thread, |cause, tid, span| {
                let start = MonoNanos(span.start).since(window.0);
                let end = MonoNanos(span.end).since(window.0).min(length_ns);
                if start < end {
                    pieces[cause.index()].push(tid, Span { start, end });
                }
            });
        }
        pieces.iter_mut().for_each(Pieces::turn);
        drop(inside);
        let unite = |pieces: &mut Pieces| {
            let spans =
                if by_thread { pieces.spans.clone() } else { std::mem::take(&mut pieces.spans) };
            Timeline::union(spans, length_ns)
        };
        let by_cause = pieces.iter_mut().map(unite).collect();
        let pieces = if by_thread { pieces } else { Vec::new() };
        let pieces = pieces.into_iter().map(Arc::new).collect();
        Self { by_cause, pieces, stalls: counts, length_ns }
    }
}

/// The given timelines again, with every instant that several of them cover shared equally.
pub(super) fn split(timelines: &[&Timeline]) -> Vec<Timeline> {
    let length_ns = timelines.first().map_or(0, |timeline| timeline.length_ns);
    let mut result = vec![Timeline { length_ns, ..Timeline::default() }; timelines.len()];
    let mut next = vec![0usize; timelines.len()];
    let mut now = 0;
    loop {
        let mut boundary = u64::MAX;
        let mut active = Vec::with_capacity(timelines.len());
        for (index, timeline) in timelines.iter().enumerate() {
            while timeline.ends.get(next[index]).is_some_and(|end| *end <= now) {
                next[index] += 1;
            }
            let Some(&start) = timeline.starts.get(next[index]) else { continue };
            if start <= now {
                active.push(index);
                boundary = boundary.min(timeline.ends[next[index]]);
            } else {
                boundary = boundary.min(start);
            }
        }
        if boundary == u64::MAX {
            return result;
        }
        for index in &active {
            result[*index].push(Span { start: now, end: boundary }, 1.0 / active.len() as f64);
        }
        now = boundary;
    }
}

#[cfg(test)]
#[path = "nesting_tests.rs"]
mod nesting;
#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
