//! What the threads that answer requests did for each of them, one after the other.

use super::Evidence;
use super::batches::{self, Taken};
use super::contention;
use super::handing::Handing;
use super::timeline::{Span, Timeline};
use crate::clock::MonoNanos;

/// What the thread that answered a request did for it, in nanoseconds since the start of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Index of the request.
    pub(super) request: u32,
    /// The turn that this thread had to be done with before; [`contention::NONE`] for none.
    pub(super) after: u32,
    /// The request was in the socket.
    pub(super) arrival: u64,
    /// The thread could have begun, had it not been busy.
    pub(super) ready: u64,
    /// The thread had the request.
    pub(super) handed: u64,
    /// The part of what follows in which the thread served others, while the request waited for something
    /// else or other threads had it.
    pub(super) aside: Span,
    /// Where the threads that had it in between begin in the list of all, and how many they are.
    pub(super) between: (u32, u32),
    /// The thread was through with it.
    pub(super) through: u64,
    /// The thread was through with all that it had taken together with it.
    pub(super) batch_end: u64,
    /// The last of the reply was written.
    pub(super) done: u64,
    /// The turn of the next one that was taken together with it; [`contention::NONE`] for none.
    pub(super) next: u32,
    /// How long it waited meanwhile for a CPU that other threads of the service had.
    pub(super) own_ns: f32,
}

/// When causes were at work.
pub(super) struct OwnTime {
    /// In a thread.
    pub(super) thread: Timeline,
    /// For a request while the thread served others.
    pub(super) beside: Timeline,
}

impl OwnTime {
    /// Nanoseconds of a turn, from the moment when its thread had the request.
    pub(super) fn of_turn(&self, turn: &Turn, handed: u64) -> f64 {
        let from = turn.aside.start.max(handed);
        let until = turn.aside.end.max(from);
        // What those did that had it meanwhile is added for them.
        let is_beside = turn.between.1 == 0;
        self.thread.exposure(handed, from)
            + if is_beside { self.beside.exposure(from, until) } else { 0.0 }
            + self.thread.exposure(until, turn.through)
    }
}

/// What the thread of a request did for it, behind what it was through with before.
pub(super) fn turn(
    evidence: &Evidence<'_>,
    handing: &Handing<'_>,
    taken: Taken,
    (earlier, first): (&[Turn], usize),
    between: &mut Vec<(u32, Span)>,
) -> Turn {
    let request = &evidence.requests[taken.request as usize];
    let since = |time: MonoNanos| time.since(evidence.window.0);
    let (read, done) = (since(request.read), since(MonoNanos(batches::done(request))));
    let through = since(MonoNanos(taken.through));
    let arrival = since(request.begin()).min(read);
    // A thread that reads by itself is done with the one before by then. A request that comes from another
    // thread may have waited for it.
    let reads = request.reader == request.sender;
    let route = handing.route(request);
    let (ready, handed, until) = match reads {
        true => (arrival, read, read),
        false => (read, route.handed().unwrap_or(read).min(done), done),
    };
    let before = earlier.partition_point(|other| other.through <= until);
    let after = before.checked_sub(1).map_or(contention::NONE, |place| (first + place) as u32);
    let first_between = between.len() as u32;
    between.extend(route.times_between());
    let aside = match (reads, route.left(), route.handed()) {
        (true, Some(left), Some(back)) => Span { start: left, end: back },
        _ => handing.aside(request.sender.0, handed, through),
    };
    Turn {
        request: taken.request,
        after,
        arrival,
        ready,
        handed,
        aside,
        between: (first_between, between.len() as u32 - first_between),
        through,
        batch_end: since(MonoNanos(taken.batch_end)),
        done,
        next: contention::NONE,
        own_ns: 0.0,
    }
}
