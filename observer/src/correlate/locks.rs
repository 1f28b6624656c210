//! What a thread waits for while it sleeps until another thread of the service wakes it: what that one does
//! meanwhile.
//!
//! Who has a lock ends the wait for it, so what stalls that thread is what the waiting one waits for; the rest is
//! `lock_wait`. Where several threads have the lock one after the other, each of them waited for the one before, which is
//! followed through in the same way.
//!
//! A wait at a place where several threads with requests wait is taken for a lock as well, unless a thread ends it that
//! waits for anything itself (an event loop): locks that are made of semaphores or conditions look like that.
//!
//! Any other wait (for a condition, a semaphore) may have been for anything that happened until
//! the waker was woken itself. Since then, the waker was on its way to end the wait: what stalled it in that time is
//! what the other thread waited for, and the rest stays `service_wait`. What the waker was woken by before is followed in
//! the same way (C.-Q. Yang and B. Miller, Critical path analysis for the execution of parallel and distributed
//! programs, ICDCS 1988).

use std::collections::{HashMap, HashSet};

use super::Evidence;
use super::aside::without;
use super::handing::Handing;
use super::siblings::within;
use super::timeline::{Pieces, Span, Timelines};
use crate::model::{Cause, Extra, Stall};

/// A thread whose wait took as long as it was to take at most, and that waits again so soon at the same place, still waits for
/// the same. It may have waited for a CPU in between.
const AGAIN_NS: u64 = 1_000_000;
/// Threads that one wait is followed through.
const DEEPEST: usize = 8;
/// There is always room for so many parts, and for as many as there are stalls. Further waits are not followed.
const LEAST_ROOM: usize = 1_000;

/// A thread slept until another one woke it, in nanoseconds since the start of the window.
#[derive(Clone, Copy, Debug)]
struct Wait {
    start: u64,
    end: u64,
    /// When it was woken, after it had waited again or not.
    woken: u64,
    /// The thread that woke it; 0 where none did.
    by: u32,
    /// Where in memory it waited.
    place: u32,
    /// It is taken for a wait for a lock.
    is_lock: bool,
    /// Its call said so.
    is_recorded_lock: bool,
}

impl Wait {
    const fn span(&self) -> Span {
        Span { start: self.start, end: self.end }
    }

    /// The cause of its record.
    const fn cause(&self) -> Cause {
        if self.is_recorded_lock { Cause::LOCK_WAIT } else { Cause::SERVICE_WAIT }
    }

    /// Whether the thread still waited for the same in the next one.
    const fn goes_on(&self, next: &Self) -> bool {
        self.by == 0 && self.place == next.place && next.start.saturating_sub(self.end) <= AGAIN_NS
    }
}

/// The waits that threads of the target ended, by thread, in order.
#[derive(Debug, Default)]
struct Waits(HashMap<u32, Vec<Wait>>);

impl Waits {
    fn new(evidence: &Evidence<'_>) -> Self {
        let (start, end) = evidence.window;
        let mut waits: HashMap<u32, Vec<Wait>> = HashMap::new();
        for stall in evidence.stalls {
            let Extra::OfThread(place) = stall.extra else { continue };
            let times = [stall.start, stall.end].map(|time| time.min(end).since(start));
            let wait = Wait {
                start: times[0],
                end: times[1],
                woken: times[1],
                by: stall.holder.map_or(0, |waker| waker.tid.0),
                place,
                is_lock: stall.cause == Cause::LOCK_WAIT,
                is_recorded_lock: stall.cause == Cause::LOCK_WAIT,
            };
            if wait.start < wait.end {
                waits.entry(stall.tid.0).or_default().push(wait);
            }
        }
        for of_thread in waits.values_mut() {
            of_thread.sort_unstable_by_key(|wait| (wait.start, wait.end));
            let mut next: Option<Wait> = None;
            for wait in of_thread.iter_mut().rev() {
                if let Some(next) = next.filter(|next| wait.goes_on(next)) {
                    (wait.by, wait.woken) = (next.by, next.woken);
                }
                next = Some(*wait);
            }
            of_thread.retain(|wait| wait.by != 0);
        }
        waits.retain(|_, of_thread| !of_thread.is_empty());
        Self(waits)
    }

    /// Takes those for locks that threads with requests wait for at the same place, but for those that event loops
    /// end.
    fn find_locks(&mut self, evidence: &Evidence<'_>, had: &HashMap<u32, Vec<Span>>) {
        let is_any = |stall: &&Stall| matches!(stall.extra, Extra::AnyOf(_));
        let loops: HashSet<u32> =
            evidence.stalls.iter().filter(is_any).map(|stall| stall.tid.0).collect();
        let has_request = |tid: &u32, wait: &Wait| {
            had.get(tid).is_some_and(|had| within(had, wait.span()).next().is_some())
        };
        let can_be = |tid: &u32, wait: &Wait| {
            !wait.is_lock && !loops.contains(&wait.by) && has_request(tid, wait)
        };
        // The one thread that waits at a place; `None` for several.
        let mut threads: HashMap<u32, Option<u32>> = HashMap::new();
        for (tid, waits) in &self.0 {
            for wait in waits.iter().filter(|wait| can_be(tid, wait)) {
                let only = threads.entry(wait.place).or_insert(Some(*tid));
                *only = only.filter(|only| only == tid);
            }
        }
        for (tid, waits) in &mut self.0 {
            for wait in waits {
                wait.is_lock |= can_be(tid, wait) && threads.get(&wait.place) == Some(&None);
            }
        }
    }

    fn of_thread(&self, tid: u32) -> &[Wait] {
        self.0.get(&tid).map_or(&[], Vec::as_slice)
    }

    /// Those of a thread that overlap an interval.
    fn within(&self, tid: u32, span: Span) -> &[Wait] {
        let waits = self.of_thread(tid);
        let first = waits.partition_point(|wait| wait.end <= span.start);
        let behind = waits.partition_point(|wait| wait.start < span.end);
        waits.get(first..behind).unwrap_or_default()
    }

    /// The one of a thread that ended at an instant.
    fn ended(&self, tid: u32, at: u64) -> Option<&Wait> {
        let waits = self.of_thread(tid);
        waits.get(waits.partition_point(|wait| wait.end < at)).filter(|wait| wait.end == at)
    }
}

/// Makes what a thread slept for another one, while it had a request, what that one did.
pub(super) fn follow(evidence: &Evidence<'_>, timelines: &mut Timelines, handing: &Handing<'_>) {
    let Some(sleeps) = timelines.sleeps().filter(|_| evidence.quality.has_sleeps()) else { return };
    let mut waits = Waits::new(evidence);
    let [had, busy] = handing.busy(evidence.requests, |tid| waits.0.contains_key(&tid));
    waits.find_locks(evidence, &had);
    drop(had);
    let mut search = Search {
        timelines,
        sleeps: &sleeps,
        waits: &waits,
        stalls: Cause::all().filter(|cause| cause.is_stall()).collect(),
        tid: 0,
        parts: Vec::new(),
    };
    let room = evidence.stalls.len().max(LEAST_ROOM);
    let mut taken: Vec<(Cause, u32, Span)> = Vec::new();
    let mut more_locks = 0;
    let mut threads: Vec<(&u32, &Vec<Span>)> = busy.iter().collect();
    threads.sort_unstable_by_key(|(tid, _)| **tid);
    for (tid, busy) in threads {
        search.tid = *tid;
        for wait in waits.of_thread(*tid) {
            let cause = wait.cause();
            let own = timelines.pieces(cause).map_or(&[][..], |all| all.of_thread(*tid));
            let before = search.parts.len();
            for span in within(busy, wait.span()).filter(|_| before < room) {
                for part in within(own, span) {
                    taken.push((cause, *tid, part));
                    search.follow(part, wait, cause, DEEPEST);
                }
            }
            let is_of_lock = |part: &(Cause, u32, Span)| part.0 == Cause::LOCK_WAIT;
            more_locks +=
                u64::from(!wait.is_recorded_lock && search.parts[before..].iter().any(is_of_lock));
        }
    }
    let parts = search.parts;
    drop((waits, busy));
    for cause in Cause::all() {
        let of = |all: &[(Cause, u32, Span)]| -> Vec<(u32, Span)> {
            all.iter().filter(|part| part.0 == cause).map(|part| (part.1, part.2)).collect()
        };
        let (gone, mut new) = (of(&taken), of(&parts));
        let Some(old) = timelines.pieces(cause).filter(|_| !gone.is_empty() || !new.is_empty())
        else {
            continue;
        };
        let gone = Pieces::of(gone);
        for (tid, spans) in old.all() {
            new.extend(without(spans, gone.of_thread(tid)).into_iter().map(|span| (tid, span)));
        }
        let more = if cause == Cause::LOCK_WAIT { more_locks } else { 0 };
        timelines.replace(cause, Pieces::of(new), more);
    }
}

struct Search<'a> {
    timelines: &'a Timelines,
    sleeps: &'a Pieces,
    waits: &'a Waits,
    /// The causes of stalls.
    stalls: Vec<Cause>,
    /// The thread whose waits are followed.
    tid: u32,
    /// What it waited for.
    parts: Vec<(Cause, u32, Span)>,
}

impl Search<'_> {
    fn add(&mut self, cause: Cause, span: Span) {
        if span.start < span.end {
            self.parts.push((cause, self.tid, span));
        }
    }

    /// Adds what a part of a wait was for. `rest` is the cause where nothing more is known.
    fn follow(&mut self, mut span: Span, wait: &Wait, rest: Cause, deepest: usize) {
        if deepest == 0 || wait.by == self.tid {
            return self.add(rest, span);
        }
        if wait.is_lock {
            return self.meanwhile(wait.by, span, Cause::LOCK_WAIT, deepest);
        }
        let since = self.woken_before(wait.by, wait.woken);
        if span.start < since {
            let before = Span { end: span.end.min(since), ..span };
            span.start = before.end;
            match self.waits.ended(wait.by, since) {
                Some(earlier) => self.follow(before, earlier, rest, deepest - 1),
                None => self.add(rest, before),
            }
        }
        self.meanwhile(wait.by, span, rest, deepest);
    }

    /// When a thread that was awake at an instant had been woken; that instant, if its sleeps are not known.
    fn woken_before(&self, tid: u32, at: u64) -> u64 {
        let sleeps = self.sleeps.of_thread(tid);
        let last = sleeps.partition_point(|sleep| sleep.start < at).checked_sub(1);
        last.map_or(at, |last| sleeps[last].end.min(at))
    }

    /// Adds what a thread did in an interval for which another one waited for it.
    fn meanwhile(&mut self, tid: u32, span: Span, rest: Cause, deepest: usize) {
        let mut doing: Vec<(Span, Cause)> = Vec::new();
        for cause in self.stalls.iter().copied().chain([Cause::LOCK_WAIT, Cause::SERVICE_WAIT]) {
            let pieces = self.timelines.pieces(cause).map_or(&[][..], |all| all.of_thread(tid));
            doing.extend(within(pieces, span).map(|part| (part, cause)));
        }
        doing.sort_unstable();
        let mut at = span.start;
        for (part, cause) in doing {
            self.add(rest, Span { start: at, end: part.start });
            at = part.end;
            if cause.is_stall() {
                self.add(cause, part);
                continue;
            }
            let (mut left, waits) = (part, self.waits);
            for wait in waits.within(tid, part) {
                let start = wait.start.max(left.start);
                self.add(rest, Span { start: left.start, end: start });
                left.start = wait.end.min(part.end);
                self.follow(Span { start, end: left.start }, wait, rest, deepest - 1);
            }
            self.add(rest, left);
        }
        self.add(rest, Span { start: at, end: span.end });
    }
}
