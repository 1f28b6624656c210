//! Through which threads a request went from the one that read it to the one that answered it: each woke the
//! next one.
//!
//! The path is followed backwards, from the last wake-up of the thread that answered. Where the thread that
//! read the request woke it, or woke the thread that did, that is the path. A thread that did not sleep since
//! the read was busy with something else, and the request waited for it. Where a timer or the network woke a
//! thread, there is no path beyond it.

use super::Evidence;
use super::timeline::Pieces;
use crate::clock::MonoNanos;
use crate::model::{Cause, ServerRequest};

/// Threads between the reader and the last hand-over, so that memory and time of the search are bounded.
pub(super) const BETWEEN: usize = 5;
/// Threads that one hand-over is followed through.
const DEEPEST: usize = 3;
/// Wake-ups of a thread that are looked at for the one by the reader, and for others that may lead to it.
const LATEST: usize = 16;
const LATEST_OTHERS: usize = 8;

/// From when on a thread had a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) tid: u32,
    /// Nanoseconds since the start of the window.
    pub(super) from: u64,
}

/// A wake-up by a thread of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WakeUp {
    tid: u32,
    by: u32,
    /// Nanoseconds since the start of the window.
    at: u64,
}

/// The wake-ups by which threads hand requests to each other.
#[derive(Debug, Default)]
pub(super) struct Relay {
    /// By thread, in order of time.
    wake_ups: Vec<WakeUp>,
}

impl Relay {
    pub(super) fn new(evidence: &Evidence<'_>) -> Self {
        let (start, end) = evidence.window;
        let of_stall = |stall: &crate::model::Stall| {
            let is_sleep = stall.cause == Cause::SERVICE_WAIT;
            let waker =
                stall.holder.filter(|_| is_sleep && start <= stall.end && stall.end <= end)?;
            Some(WakeUp { tid: stall.tid.0, by: waker.tid.0, at: stall.end.since(start) })
        };
        let mut wake_ups: Vec<WakeUp> = evidence.stalls.iter().filter_map(of_stall).collect();
        wake_ups.sort_unstable_by_key(|one| (one.tid, one.at));
        Self { wake_ups }
    }

    /// Those of a thread in `(from, until]`.
    fn of(&self, tid: u32, from: u64, until: u64) -> &[WakeUp] {
        let place = |at: u64| self.wake_ups.partition_point(|one| (one.tid, one.at) <= (tid, at));
        let (first, behind) = (place(from), place(until));
        self.wake_ups.get(first..behind).unwrap_or_default()
    }

    /// The path of a request behind its reader; the last thread is the one that answered. `free` is when
    /// that one had answered the request before, since the start of the window. Empty where the reader had
    /// the request all the time, or where no path is known.
    pub(super) fn path(
        &self,
        request: &ServerRequest,
        free: u64,
        start: MonoNanos,
        sleeps: &Pieces,
    ) -> Vec<Leg> {
        let mut path = Vec::new();
        let Some(answer) = request.first_send.filter(|_| !self.wake_ups.is_empty()) else {
            return path;
        };
        let (read, until) = (request.read.since(start), answer.since(start));
        let search = Search { relay: self, sleeps, reader: request.reader.0, read };
        if request.reader == request.sender {
            search.back_and_forth(until, &mut path);
        } else {
            search.to_sender(request.sender.0, free, until, &mut path);
        }
        // Found backwards.
        path.reverse();
        path
    }
}

struct Search<'a> {
    relay: &'a Relay,
    sleeps: &'a Pieces,
    reader: u32,
    read: u64,
}

impl Search<'_> {
    /// From the answer of a reader that gave the request to another thread and got it back.
    fn back_and_forth(&self, mut until: u64, path: &mut Vec<Leg>) {
        while path.len() < BETWEEN {
            let wake_ups = self.relay.of(self.reader, self.read, until);
            let Some(last) = wake_ups.last().filter(|last| last.by != self.reader) else { return };
            // Woken by something else later, it answered because of that.
            let sleeps = self.sleeps.of_thread(self.reader);
            let behind = sleeps.partition_point(|sleep| sleep.start < until);
            if sleeps[..behind].last().is_some_and(|sleep| sleep.end > last.at) {
                return;
            }
            let known = path.len();
            path.push(Leg { tid: self.reader, from: last.at });
            if !self.follow(last.by, last.at, DEEPEST, path) || path.len() > BETWEEN + 1 {
                path.truncate(known);
                return;
            }
            until = path.last().map_or(self.read, |leg| leg.from);
        }
    }

    /// From the answer of another thread than the reader.
    fn to_sender(&self, sender: u32, free: u64, until: u64, path: &mut Vec<Leg>) {
        // The first wake-up by the reader since it was free, and not a later one: while it works on the
        // request, it may also wait for a lock that the reader holds.
        let since_free = self.relay.of(sender, self.read.max(free), until);
        let mut by_reader = since_free.iter().take(LATEST).filter(|one| one.by == self.reader);
        if let Some(first) = by_reader.next() {
            path.push(Leg { tid: sender, from: first.at });
            return;
        }
        let wake_ups = self.relay.of(sender, self.read, until);
        for last in wake_ups.iter().rev().take(LATEST_OTHERS).filter(|one| one.by != self.reader) {
            path.push(Leg { tid: sender, from: last.at });
            if self.follow(last.by, last.at, DEEPEST, path) {
                return;
            }
            path.clear();
        }
    }

    /// Adds how a thread that had the request until an instant came to it; `false` where that is not known.
    fn follow(&self, tid: u32, until: u64, deepest: usize, path: &mut Vec<Leg>) -> bool {
        if tid == self.reader || deepest == 0 {
            return false;
        }
        let wake_ups = self.relay.of(tid, self.read, until);
        let by_reader = wake_ups.iter().rev().take(LATEST).find(|one| one.by == self.reader);
        if let Some(one) = by_reader {
            path.push(Leg { tid, from: one.at });
            return true;
        }
        let known = path.len();
        if let Some(last) = wake_ups.last().filter(|last| last.by != tid) {
            path.push(Leg { tid, from: last.at });
            if self.follow(last.by, last.at, deepest - 1, path) {
                return true;
            }
            path.truncate(known);
            return false;
        }
        // Its sleeps are known, and it did not sleep since the read.
        let sleeps = self.sleeps.of_thread(tid);
        let next = sleeps.partition_point(|sleep| sleep.end <= self.read);
        let is_busy = next > 0 && sleeps.get(next).is_none_or(|sleep| sleep.start >= until);
        if is_busy {
            path.push(Leg { tid, from: self.read });
        }
        is_busy
    }
}
