//! What a request waited for until it came to the thread that read it, and to the one that answered it.

use std::collections::HashMap;

use super::Evidence;
use super::aside::Asides;
use super::siblings::Siblings;
use super::timeline::{Pieces, Span, Timelines};
use crate::clock::MonoNanos;
use crate::model::{ServerRequest, Tid};

/// What is known about the threads that read and answer requests.
pub(super) struct Handing<'a> {
    /// When threads slept, since the start of the window; `None` where not all of that is known.
    sleeps: Option<&'a Pieces>,
    /// When each of them had answered a request, in order.
    answers: HashMap<Tid, Vec<MonoNanos>>,
    /// What requests waited for while their readers slept.
    pub(super) siblings: Siblings,
    /// What their threads did for others while they waited for something else.
    pub(super) asides: Asides,
    start: MonoNanos,
}

impl<'a> Handing<'a> {
    pub(super) fn new(evidence: &Evidence<'_>, timelines: &'a Timelines) -> Self {
        let mut answers: HashMap<Tid, Vec<MonoNanos>> = HashMap::new();
        for request in evidence.requests.iter().filter(|request| request.reader != request.sender) {
            if let Some(end) = request.end() {
                answers.entry(request.sender).or_default().push(end);
            }
        }
        answers.values_mut().for_each(|ends| ends.sort_unstable());
        let sleeps = timelines.sleeps().filter(|_| evidence.quality.has_sleeps());
        let siblings = Siblings::new(evidence, timelines);
        let asides = Asides::new(evidence, sleeps);
        Self { sleeps, answers, siblings, asides, start: evidence.window.0 }
    }

    /// The part of `[from, until)` in which a thread that had the request served others, as
    /// [`Asides::part`]; empty, at `from`, if there is none.
    pub(super) fn aside(&self, tid: u32, from: u64, until: u64) -> Span {
        let part = self
            .sleeps
            .and_then(|sleeps| self.asides.part(tid, from, until, sleeps.of_thread(tid)));
        part.unwrap_or(Span { start: from, end: from })
    }

    /// When the sender had the request, since the start of the window. If it still worked on the one
    /// before, the request waited for it from the read on. Otherwise it slept until it was woken for this
    /// one.
    pub(super) fn at(&self, request: &ServerRequest) -> u64 {
        let read = request.read.since(self.start);
        let before = request.end().and_then(|end| {
            let answers = self.answers.get(&request.sender)?;
            answers[..answers.partition_point(|other| *other < end)].last()
        });
        if before.is_some_and(|before| *before > request.read) {
            return read;
        }
        let Some(sleeps) = self.sleeps.map(|sleeps| sleeps.of_thread(request.sender.0)) else {
            return read;
        };
        let next = sleeps.partition_point(|sleep| sleep.end <= read);
        sleeps.get(next).filter(|sleep| sleep.start <= read).map_or(read, |sleep| sleep.end)
    }
}
