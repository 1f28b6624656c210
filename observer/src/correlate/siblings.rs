//! What requests wait for while the thread that will read them sleeps: stalls of threads that had been woken
//! for a request and found it read by another thread.
//!
//! Where several threads wait for the requests of the same connections, the kernel wakes one of them for
//! each request. While that one cannot run, the request waits, until another thread, which is woken for a
//! later one, takes it. That other thread slept meanwhile, but what the request waited for is the stall.

use std::cmp::Reverse;

use super::Evidence;
use super::innermost::{Rank, ThreadStall, innermost};
use super::timeline::{Span, Timeline, Timelines};
use crate::clock::MonoNanos;
use crate::model::{Cause, ServerRequest};

/// The moments of an arrival and of the wake-up for it come from two clocks of the kernel, which differ
/// by less.
const CLOCK_ERROR_NS: u64 = 20_000;

/// One of so many stalls may be that of a sibling, so that their memory is bounded: with its parts between
/// those of others, each is there twice at most. The stalls of further threads are none of siblings.
const ROOM: usize = 4;
/// There is always room for so many.
const LEAST_ROOM: usize = 1_000;

/// A stall of a thread that was woken for a request and did not read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Woken {
    pub(super) span: Span,
    pub(super) cause: Cause,
    pub(super) tid: u32,
}

/// These stalls, and the requests that waited for them.
#[derive(Debug, Default)]
pub(super) struct Siblings {
    /// In order of time. At each instant there is at most one: of several threads, that of the one whose
    /// stall began last.
    stalls: Vec<Woken>,
    /// In order of the request: its index, and the part of its wait from the first of these stalls to the
    /// last one, in which its reader slept.
    waits: Vec<(u32, Span)>,
    length_ns: u64,
}

impl Siblings {
    /// Nothing where it is not known when threads slept.
    pub(super) fn new(evidence: &Evidence<'_>, timelines: &Timelines) -> Self {
        let (start, end) = evidence.window;
        let mut siblings = Self { length_ns: end.since(start), ..Self::default() };
        let Some(sleeps) = timelines.sleeps().filter(|_| evidence.quality.has_sleeps()) else {
            return siblings;
        };
        let requests = evidence.requests;
        let mut order: Vec<u32> = (0..requests.len() as u32).collect();
        let of = |place: &u32| &requests[*place as usize];
        order.sort_unstable_by_key(|place| (of(place).reader, of(place).read, *place));
        let causes: Vec<Cause> = Cause::all().filter(|cause| cause.is_stall()).collect();
        let room = (evidence.stalls.len() / ROOM).max(LEAST_ROOM);
        let mut stalls: Vec<ThreadStall> = Vec::new();
        let mut asleep = Vec::new();
        for of_thread in order.chunk_by(|one, other| of(one).reader == of(other).reader) {
            let tid = of(&of_thread[0]).reader.0;
            let thread = Thread::new(of_thread.iter().map(of), sleeps.of_thread(tid), start);
            let has_room = stalls.len() < room;
            for woken in thread.woken_in_vain(siblings.length_ns).filter(|_| has_room) {
                for cause in &causes {
                    let pieces = timelines.pieces(*cause).map_or(&[][..], |all| all.of_thread(tid));
                    for Span { start, end } in within(pieces, woken) {
                        let rank = Rank::Stall;
                        let length = end - start;
                        stalls.push(ThreadStall { start, end, length, tid, cause: *cause, rank });
                    }
                }
            }
            let waits = thread.asleep_on_arrival().map(|(read, span)| (of_thread[read], span));
            asleep.extend(waits);
        }
        drop(order);
        siblings.take(stalls);
        siblings.waits = asleep
            .into_iter()
            .filter_map(|(place, span)| Some((place, siblings.narrow(span)?)))
            .collect();
        siblings.waits.sort_unstable_by_key(|(place, _)| *place);
        siblings
    }

    /// Gives each instant to one stall.
    fn take(&mut self, mut stalls: Vec<ThreadStall>) {
        stalls.sort_unstable_by_key(|stall| Reverse((stall.end, stall.start, stall.tid)));
        innermost(&stalls, |cause, tid, span| self.stalls.push(Woken { span, cause, tid }));
        self.stalls.reverse();
    }

    /// The part of an interval from the first of the stalls to the last.
    fn narrow(&self, wait: Span) -> Option<Span> {
        let first = self.stalls.partition_point(|stall| stall.span.end <= wait.start);
        let behind = self.stalls.partition_point(|stall| stall.span.start < wait.end);
        let inside = self.stalls.get(first..behind)?;
        let (first, last) = (inside.first()?.span, inside.last()?.span);
        Some(Span { start: first.start.max(wait.start), end: last.end.min(wait.end) })
    }

    /// The part of a request's wait in which its reader slept and siblings were stalled, gaps between
    /// these stalls included.
    pub(super) fn wait(&self, request: usize) -> Option<Span> {
        let place = self.waits.binary_search_by_key(&request, |(place, _)| *place as usize).ok()?;
        Some(self.waits[place].1)
    }

    /// When stalls of these causes were at work.
    pub(super) fn timeline(&self, causes: &[Cause]) -> Timeline {
        let stalls = self.stalls.iter().filter(|stall| causes.contains(&stall.cause));
        Timeline::union(stalls.map(|stall| stall.span).collect(), self.length_ns)
    }

    pub(super) fn stalls(&self) -> &[Woken] {
        &self.stalls
    }
}

/// The parts of intervals, which are in order, within one.
pub(super) fn within(spans: &[Span], limits: Span) -> impl Iterator<Item = Span> {
    let first = spans.partition_point(|span| span.end <= limits.start);
    let there = spans[first..].iter().take_while(move |span| span.start < limits.end);
    there.map(move |span| Span {
        start: span.start.max(limits.start),
        end: span.end.min(limits.end),
    })
}

/// A request that a thread read, since the start of the window.
struct Read {
    arrival: u64,
    read: u64,
    /// The latest answer of the thread to this request or one that it read before.
    answered: u64,
}

/// What a thread read, and when it slept.
struct Thread<'a> {
    reads: Vec<Read>,
    sleeps: &'a [Span],
}

impl<'a> Thread<'a> {
    /// From its requests in the order of their reads.
    fn new<'r>(
        requests: impl Iterator<Item = &'r ServerRequest>,
        sleeps: &'a [Span],
        start: MonoNanos,
    ) -> Self {
        let mut answered = 0;
        let reads = requests
            .map(|request| {
                let read = request.read.since(start);
                let end = request.end().filter(|_| request.sender == request.reader);
                answered = end.map_or(0, |end| end.since(start)).max(read).max(answered);
                Read { arrival: request.begin().since(start).min(read), read, answered }
            })
            .collect();
        Self { reads, sleeps }
    }

    /// Whether it has answered all that it has read until then.
    fn is_free(&self, at: u64) -> bool {
        let next = self.reads.partition_point(|read| read.read < at);
        next.checked_sub(1).is_none_or(|last| self.reads[last].answered <= at)
    }

    /// The times from each wake-up to the next sleep or read, where it was not woken for what it then read.
    fn woken_in_vain(&self, length_ns: u64) -> impl Iterator<Item = Span> {
        let next_sleeps = self.sleeps.iter().skip(1).map(|sleep| sleep.start).chain([length_ns]);
        self.sleeps.iter().zip(next_sleeps).filter_map(|(sleep, until)| {
            let start = sleep.end;
            let next = self.reads.get(self.reads.partition_point(|read| read.read < start));
            let next = next.filter(|next| next.read < until);
            let is_for_it = |next: &Read| next.arrival <= start + CLOCK_ERROR_NS;
            let end = next.map_or(until, |next| next.read);
            (!next.is_some_and(is_for_it) && start < end && self.is_free(sleep.start))
                .then_some(Span { start, end })
        })
    }

    /// The reads of requests that arrived while it slept and had nothing else to do, each with the rest of
    /// that sleep. Who is woken for a request at once was not asleep for it.
    fn asleep_on_arrival(&self) -> impl Iterator<Item = (usize, Span)> {
        self.reads.iter().enumerate().filter_map(|(place, read)| {
            let Read { arrival, read, .. } = *read;
            let next = self.sleeps.partition_point(|sleep| sleep.end <= arrival);
            let sleep = self.sleeps.get(next).filter(|sleep| sleep.start <= arrival)?;
            let end = sleep.end.min(read);
            (end > arrival + CLOCK_ERROR_NS && self.is_free(sleep.start))
                .then_some((place, Span { start: arrival, end }))
        })
    }
}
