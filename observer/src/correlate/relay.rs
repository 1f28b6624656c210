//! Through which threads a request went from the one that read it to the one that answered it: each woke the
//! next one.
//!
//! The path is followed backwards, from the last wake-up of the thread that answered. Where the thread that
//! read the request woke it, or woke the thread that did, that is the path. A thread that did not sleep since
//! the read was busy with something else, and the request waited for it. Where a timer or the network woke a
//! thread, there is no path beyond it.
//!
//! A reader that was awake when the work for a request was done was not woken for that. There, the path is
//! followed forwards from the read: to the thread that the reader woke then, if that one usually wakes the
//! reader in turn, and until it was woken by the reader again.

use std::collections::HashMap;

use super::Evidence;
use super::timeline::Pieces;
use crate::clock::MonoNanos;
use crate::model::{Cause, ServerRequest, Stall};

/// Threads between the reader and the last hand-over, so that memory and time of the search are bounded.
const BETWEEN: usize = 16;
/// Threads that one hand-over is followed through.
const DEEPEST: usize = 3;
/// Wake-ups of a thread that are looked at for the one by the reader, and for others that may lead to it.
const LATEST: usize = 16;
const LATEST_OTHERS: usize = 8;
/// A thread gives work back if it wakes the one that woke it at least once in so many times. Others, which
/// write a log for instance, do not.
const GIVES_BACK: u32 = 10;

/// From when on a thread had a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leg {
    pub(super) tid: u32,
    /// Nanoseconds since the start of the window.
    pub(super) from: u64,
}

/// A wake-up by a thread of the target.
#[derive(Clone, Copy, Debug)]
struct WakeUp {
    tid: u32,
    by: u32,
    /// Nanoseconds since the start of the window.
    at: u64,
}

/// The wake-ups by which threads hand requests to each other.
#[derive(Debug, Default)]
pub(super) struct Relay<'a> {
    /// By thread, in order of time.
    wake_ups: Vec<WakeUp>,
    /// Places of those by threads that read requests, by that thread, in order of time.
    by_reader: Vec<u32>,
    /// How often one thread woke another one.
    counts: HashMap<(u32, u32), u32>,
    requests: &'a [ServerRequest],
    /// Their places by the thread that read them, in order of time.
    reads: Vec<u32>,
}

/// The thread that read a request, and when.
const fn read_by(request: &ServerRequest) -> (u32, u64) {
    (request.reader.0, request.read.0)
}

impl<'a> Relay<'a> {
    pub(super) fn new(evidence: &Evidence<'a>) -> Self {
        let (start, end) = evidence.window;
        let of_stall = |stall: &Stall| {
            let is_sleep = stall.cause == Cause::SERVICE_WAIT;
            let waker =
                stall.holder.filter(|_| is_sleep && start <= stall.end && stall.end <= end)?;
            Some(WakeUp { tid: stall.tid.0, by: waker.tid.0, at: stall.end.since(start) })
        };
        let mut wake_ups: Vec<WakeUp> = evidence.stalls.iter().filter_map(of_stall).collect();
        if wake_ups.is_empty() {
            return Self::default();
        }
        wake_ups.sort_unstable_by_key(|one| (one.tid, one.at));
        let requests = evidence.requests;
        let read = |place: &u32| read_by(&requests[*place as usize]);
        let mut reads: Vec<u32> = (0..requests.len() as u32).collect();
        reads.sort_unstable_by_key(read);
        let mut counts: HashMap<(u32, u32), u32> = HashMap::new();
        for one in &wake_ups {
            *counts.entry((one.by, one.tid)).or_default() += 1;
        }
        let reads_requests = |tid: u32| {
            let first = reads.partition_point(|place| read(place).0 < tid);
            reads.get(first).is_some_and(|place| read(place).0 == tid)
        };
        let mut by_reader: Vec<u32> = (0..wake_ups.len() as u32)
            .filter(|place| reads_requests(wake_ups[*place as usize].by))
            .collect();
        let key = |place: &u32| {
            let one = &wake_ups[*place as usize];
            (one.by, one.at, one.tid)
        };
        by_reader.sort_unstable_by_key(key);
        Self { wake_ups, by_reader, counts, requests, reads }
    }

    /// The thread that a reader woke first in `(from, until)`, of those that give work back, and when.
    fn first_given(&self, reader: u32, from: u64, until: u64) -> Option<WakeUp> {
        let of = |place: &u32| self.wake_ups[*place as usize];
        let key = |place: &u32| (of(place).by, of(place).at);
        let first = self.by_reader.partition_point(|place| key(place) <= (reader, from));
        let count = |by: u32, tid: u32| self.counts.get(&(by, tid)).copied().unwrap_or(0);
        let gives_back = |one: &WakeUp| {
            count(one.tid, reader).saturating_mul(GIVES_BACK) >= count(reader, one.tid)
        };
        let given = self.by_reader[first..].iter().map(of);
        let mut given = given.take_while(|one| one.by == reader && one.at < until).take(LATEST);
        given.find(gives_back)
    }

    /// When the thread that read a request read the ones before and behind it.
    fn neighbours(&self, request: &ServerRequest) -> (Option<MonoNanos>, Option<MonoNanos>) {
        let read = |place: &u32| read_by(&self.requests[*place as usize]);
        let this = read_by(request);
        let first = self.reads.partition_point(|place| read(place) < this);
        let behind = self.reads.partition_point(|place| read(place) <= this);
        let of = |place: Option<usize>| {
            let (thread, at) = read(self.reads.get(place?)?);
            (thread == this.0).then_some(MonoNanos(at))
        };
        (of(first.checked_sub(1)), of(Some(behind)))
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
            let (before, next) = self.neighbours(request);
            let neighbours = (before.map(|at| at.since(start)), next.map(|at| at.since(start)));
            search.forwards(neighbours, path.last().map_or(until, |leg| leg.from), &mut path);
        } else {
            search.to_sender(request.sender.0, free, until, &mut path);
        }
        // Found backwards.
        path.reverse();
        path
    }
}

struct Search<'a> {
    relay: &'a Relay<'a>,
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

    /// From the read to the thread that the reader then woke, which had the request at most until then.
    /// `before` and `next` are the reads of the reader around it.
    fn forwards(
        &self,
        (before, next): (Option<u64>, Option<u64>),
        until: u64,
        path: &mut Vec<Leg>,
    ) {
        let (relay, reader, read) = (self.relay, self.reader, self.read);
        let own_sleeps = self.sleeps.of_thread(reader);
        let slept = own_sleeps.partition_point(|sleep| sleep.end <= read);
        let awake_since = slept.checked_sub(1).map_or(0, |last| own_sleeps[last].end);
        // Of several requests that it read before it gave the first one away, it is not known which one it
        // was.
        let is_unclear =
            |before: u64| before > awake_since && relay.first_given(reader, before, read).is_none();
        if before.is_some_and(is_unclear) {
            return;
        }
        let Some(given) = relay.first_given(reader, read, next.unwrap_or(u64::MAX).min(until))
        else {
            return;
        };
        // A sleep that the reader ended was a wait for work, and so is one that is not over.
        let sleeps = self.sleeps.of_thread(given.tid);
        let again = relay.of(given.tid, given.at, until).iter().find(|one| one.by == reader);
        let idle_until = again.map_or(until, |one| one.at);
        let place = sleeps.partition_point(|sleep| sleep.start < idle_until);
        let last = place.checked_sub(1).and_then(|last| sleeps.get(last));
        let done = last.filter(|sleep| sleep.start >= given.at && sleep.end >= idle_until);
        let done = done.map_or(idle_until, |sleep| sleep.start);
        if given.at < done {
            path.push(Leg { tid: reader, from: done });
            path.push(Leg { tid: given.tid, from: given.at });
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
