//! What a request waited for until it came to the thread that read it, and to the one that answered it.

use std::collections::HashMap;
use std::sync::Arc;

use super::Evidence;
use super::aside::Asides;
use super::relay::{Leg, Relay};
use super::siblings::Siblings;
use super::timeline::{Pieces, Span, Timelines};
use crate::clock::MonoNanos;
use crate::model::{ServerRequest, Tid};

/// What is known about the threads that read and answer requests.
pub(super) struct Handing<'a> {
    /// When threads slept, since the start of the window; `None` where not all of that is known.
    sleeps: Option<Arc<Pieces>>,
    /// When each of them had answered a request, in order.
    answers: HashMap<Tid, Vec<MonoNanos>>,
    /// What requests waited for while their readers slept.
    pub(super) siblings: Siblings,
    /// What their threads did for others while they waited for something else.
    pub(super) asides: Asides,
    relay: Relay<'a>,
    start: MonoNanos,
}

/// The threads of a request behind its reader, in order, the last of which answered it; none where the reader
/// had it all the time.
#[derive(Debug)]
pub(super) struct Route(pub(super) Vec<Leg>);

impl Route {
    /// When the reader gave it away, since the start of the window.
    pub(super) fn left(&self) -> Option<u64> {
        self.0.first().map(|leg| leg.from)
    }

    /// When the thread that answered it had it, since the start of the window.
    pub(super) fn handed(&self) -> Option<u64> {
        self.0.last().map(|leg| leg.from)
    }

    /// Threads between the reader and the sender, each with the time in which it had the request.
    pub(super) fn times_between(&self) -> impl Iterator<Item = (u32, Span)> {
        let with_next = self.0.iter().zip(self.0.iter().skip(1));
        with_next.map(|(leg, next)| (leg.tid, Span { start: leg.from, end: next.from }))
    }
}

impl<'a> Handing<'a> {
    pub(super) fn new(evidence: &Evidence<'a>, timelines: &Timelines) -> Self {
        let mut answers: HashMap<Tid, Vec<MonoNanos>> = HashMap::new();
        for request in evidence.requests.iter().filter(|request| request.reader != request.sender) {
            if let Some(end) = request.end() {
                answers.entry(request.sender).or_default().push(end);
            }
        }
        answers.values_mut().for_each(|ends| ends.sort_unstable());
        let sleeps = timelines.sleeps().filter(|_| evidence.quality.has_sleeps());
        let siblings = Siblings::new(evidence, timelines);
        let asides = Asides::new(evidence, sleeps.as_deref());
        let relay = if sleeps.is_some() { Relay::new(evidence) } else { Relay::default() };
        Self { sleeps, answers, siblings, asides, relay, start: evidence.window.0 }
    }

    /// The part of `[from, until)` in which a thread that had the request served others, as
    /// [`Asides::part`]; empty, at `from`, if there is none.
    pub(super) fn aside(&self, tid: u32, from: u64, until: u64) -> Span {
        let part = self
            .sleeps
            .as_deref()
            .and_then(|sleeps| self.asides.part(tid, from, until, sleeps.of_thread(tid)));
        part.unwrap_or(Span { start: from, end: from })
    }

    /// When threads had requests, and when they had some or were to read some that had arrived; each in order and
    /// disjoint.
    pub(super) fn busy(
        &self,
        requests: &[ServerRequest],
        is_wanted: impl Fn(u32) -> bool,
    ) -> [HashMap<u32, Vec<Span>>; 2] {
        let mut busy = [HashMap::new(), HashMap::new()];
        let mut add = |[had, all]: [bool; 2], tid: u32, start: u64, end: u64| {
            let [having, any] = &mut busy;
            for (spans, _) in [(having, had), (any, all)].into_iter().filter(|(_, is)| *is) {
                if start < end && is_wanted(tid) {
                    spans.entry(tid).or_insert_with(Vec::new).push(Span { start, end });
                }
            }
        };
        let since = |time: MonoNanos| time.since(self.start);
        for (place, request) in requests.iter().enumerate() {
            let Some(end) = request.end().map(since) else { continue };
            let route = self.route(request);
            let (begin, read) = (since(request.begin()), since(request.read));
            // What siblings did meanwhile is known.
            let of_siblings = self.siblings.wait(place).unwrap_or(Span { start: read, end: read });
            let (either, both) = ([false, true], [true, true]);
            add(either, request.reader.0, begin, of_siblings.start.min(read));
            add(either, request.reader.0, of_siblings.end.min(read), read);
            add(both, request.reader.0, read, route.left().unwrap_or(end).min(end));
            for (tid, span) in route.times_between() {
                add(both, tid, span.start, span.end);
            }
            add(both, request.sender.0, route.handed().unwrap_or(end), end);
        }
        for spans in busy.iter_mut().flat_map(HashMap::values_mut) {
            spans.sort_unstable();
            spans.dedup_by(|next, last| {
                let is_joined = next.start <= last.end;
                last.end = if is_joined { last.end.max(next.end) } else { last.end };
                is_joined
            });
        }
        busy
    }

    /// Through which threads a request went after it was read.
    pub(super) fn route(&self, request: &ServerRequest) -> Route {
        let is_handed = request.reader != request.sender;
        let before = if is_handed { self.answered_before(request) } else { None };
        let mut path = self.sleeps.as_deref().map_or_else(Vec::new, |sleeps| {
            let free = before.map_or(0, |before| before.since(self.start));
            self.relay.path(request, free, self.start, sleeps)
        });
        if path.is_empty() && is_handed {
            path.push(Leg { tid: request.sender.0, from: self.awake_at(request, before) });
        }
        Route(path)
    }

    /// When the sender had answered the request before this one.
    fn answered_before(&self, request: &ServerRequest) -> Option<MonoNanos> {
        let end = request.end()?;
        let answers = self.answers.get(&request.sender)?;
        answers[..answers.partition_point(|other| *other < end)].last().copied()
    }

    /// When the sender had the request, where it is not known who woke it. If it still worked on the one
    /// before, the request waited for it from the read on. Otherwise it slept until it was woken for this
    /// one.
    fn awake_at(&self, request: &ServerRequest, before: Option<MonoNanos>) -> u64 {
        let read = request.read.since(self.start);
        if before.is_some_and(|before| before > request.read) {
            return read;
        }
        let Some(sleeps) = self.sleeps.as_deref().map(|sleeps| sleeps.of_thread(request.sender.0))
        else {
            return read;
        };
        let next = sleeps.partition_point(|sleep| sleep.end <= read);
        sleeps.get(next).filter(|sleep| sleep.start <= read).map_or(read, |sleep| sleep.end)
    }
}
