//! What a thread does for other requests while one waits for something else.
//!
//! An event loop, and a runtime that moves requests between its threads, reads a request, begins what takes
//! a while (a timer, a request to another service), and serves others meanwhile. The first one does not
//! wait for that: a thread that sleeps afterwards had nothing to do, so the first one was not ready.

use std::collections::{HashMap, HashSet};

use super::Evidence;
use super::timeline::{Pieces, Span};
use crate::model::Tid;

/// When threads worked for a request from its read to its answer, while they had another one.
#[derive(Debug, Default)]
pub(super) struct Asides {
    /// Of each thread in order, none with another read or with a sleep in it.
    by_thread: HashMap<u32, Vec<Span>>,
}

impl Asides {
    /// Nothing where it is not known when threads slept.
    pub(super) fn new(evidence: &Evidence<'_>, sleeps: Option<&Pieces>) -> Self {
        let mut by_thread = HashMap::new();
        let Some(sleeps) = sleeps else { return Self { by_thread } };
        let requests = evidence.requests;
        // These answer requests that others have read.
        let senders: HashSet<Tid> = requests
            .iter()
            .filter(|request| request.reader != request.sender)
            .map(|request| request.sender)
            .collect();
        let mut order: Vec<u32> = (0..requests.len() as u32).collect();
        let of = |place: &u32| &requests[*place as usize];
        order.sort_unstable_by_key(|place| (of(place).reader, of(place).read, *place));
        let since = |time: crate::clock::MonoNanos| time.since(evidence.window.0);
        for reads in order.chunk_by(|one, other| of(one).reader == of(other).reader) {
            let reader = of(&reads[0]).reader;
            let sleeps = sleeps.of_thread(reader.0);
            let mut has_another_until = if senders.contains(&reader) { u64::MAX } else { 0 };
            let mut spans = Vec::new();
            for (place, read) in reads.iter().enumerate() {
                let (request, next) = (of(read), reads.get(place + 1).map(of));
                let Some(end) = request.end() else { continue };
                let span = Span { start: since(request.read), end: since(end) };
                let next_sleep = sleeps.get(sleeps.partition_point(|one| one.end <= span.start));
                let is_one_piece = span.start < span.end
                    && request.sender == reader
                    && next.is_none_or(|next| since(next.read) >= span.end)
                    && next_sleep.is_none_or(|sleep| sleep.start >= span.end);
                if is_one_piece && has_another_until > span.end {
                    spans.push(span);
                }
                has_another_until = has_another_until.max(span.end);
            }
            if !spans.is_empty() {
                by_thread.insert(reader.0, spans);
            }
        }
        Self { by_thread }
    }

    /// Those of a thread, in order.
    pub(super) fn of_thread(&self, tid: u32) -> &[Span] {
        self.by_thread.get(&tid).map_or(&[], Vec::as_slice)
    }

    /// The part of `[from, until)` in which a thread served other requests and slept afterwards, while a
    /// request that was read at `from` was to be answered at `until`.
    pub(super) fn part(&self, tid: u32, from: u64, until: u64, sleeps: &[Span]) -> Option<Span> {
        let spans = self.of_thread(tid);
        // What it had begun before, the request may have waited for.
        let first = spans.get(spans.partition_point(|span| span.start < from))?;
        let slept = sleeps[..sleeps.partition_point(|sleep| sleep.start < until)].last()?;
        let end = slept.end.min(until);
        (first.end <= slept.start).then_some(Span { start: first.start, end })
    }
}

/// What is left of intervals without others; both are in order and disjoint.
pub(super) fn without(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let mut left = Vec::with_capacity(spans.len());
    for span in spans {
        let mut start = span.start;
        let first = others.partition_point(|other| other.end <= span.start);
        for other in others[first..].iter().take_while(|other| other.start < span.end) {
            if start < other.start {
                left.push(Span { start, end: other.start });
            }
            start = other.end;
        }
        if start < span.end {
            left.push(Span { start, end: span.end });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_without_others() {
        let of = |start, end| Span { start, end };
        let spans = [of(0, 10), of(20, 30), of(40, 50)];
        assert_eq!(without(&spans, &[]), spans);
        let others = [of(2, 4), of(8, 22), of(25, 26), of(39, 51)];
        let left = [of(0, 2), of(4, 8), of(22, 25), of(26, 30)];
        assert_eq!(without(&spans, &others), left);
    }

    #[test]
    fn only_what_a_thread_began_and_slept_after_is_beside_a_request() {
        let of = |start, end| Span { start, end };
        let asides = Asides { by_thread: HashMap::from([(7, vec![of(10, 12), of(20, 22)])]) };
        let sleeps = [of(14, 18), of(24, 28)];
        assert_eq!(asides.part(7, 5, 30, &sleeps), Some(of(10, 28)));
        // It had begun the first one before the request, and answered before it slept again.
        assert_eq!(asides.part(7, 11, 30, &sleeps), Some(of(20, 28)));
        assert_eq!(asides.part(7, 11, 23, &sleeps), None);
        assert_eq!(asides.part(7, 5, 23, &sleeps), Some(of(10, 18)));
        assert_eq!(asides.part(7, 5, 26, &sleeps), Some(of(10, 26)));
        assert_eq!(asides.part(7, 5, 30, &[]), None);
        assert_eq!(asides.part(8, 5, 30, &sleeps), None);
    }
}
