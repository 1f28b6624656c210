//! Which of a thread's stalls has an instant.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::timeline::Span;
use crate::model::{Cause, Extra, Stall};

/// A stall in absolute time: which of two began last must not depend on the window.
#[derive(Clone, Copy)]
pub(super) struct ThreadStall {
    /// First instant of which it may have a part.
    pub(super) start: u64,
    pub(super) end: u64,
    /// How long it is at most.
    pub(super) length: u64,
    pub(super) tid: u32,
    pub(super) cause: Cause,
    pub(super) rank: Rank,
}

/// Which of a thread's intervals has an instant, the last one first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Short stalls that were summed up, and lay in what nothing else has.
    Spread,
    /// A sleep is of the service's own will unless a stall has begun: what a thread sleeps for in that,
    /// the stall is the reason of.
    Sleep,
    Stall,
}

impl Rank {
    pub(super) const fn of(stall: &Stall, is_stall: bool) -> Self {
        match stall.extra {
            Extra::Spread(_) => Self::Spread,
            _ if is_stall => Self::Stall,
            _ => Self::Sleep,
        }
    }
}

/// A stall that is open at an instant: its rank, start, end, cause and thread, and what is left of its length.
/// The greatest one has the instant.
type Open = (Rank, u64, Reverse<u64>, Reverse<Cause>, u32, u64);

/// Sweeps one thread's stalls backwards (sorted by end, the last first) and passes on which cause and thread
/// has which interval, the last one first: of the stalls open at an instant, the one that began last, whatever
/// its cause; of several that began together, the one that ends first. A sleep has what no stall has.
///
/// Short stalls that were summed up have what is left, and of it the latest that they can: the few at the
/// begin of a burst may lie far before the others, but no pause ends a burst that began with many. Of two
/// bursts, the one that began last comes first; like this, all find their place if it is possible at
/// all, and it is, since what they stand for did not overlap.
pub(super) fn innermost(thread: &[ThreadStall], mut each: impl FnMut(Cause, u32, Span)) {
    let mut open: BinaryHeap<Open> = BinaryHeap::new();
    let mut upcoming = thread.iter().peekable();
    let mut now = u64::MAX;
    loop {
        while let Some(stall) = upcoming.next_if(|stall| stall.end >= now) {
            let ThreadStall { start, end, length, tid, cause, rank } = *stall;
            open.push((rank, start, Reverse(end), Reverse(cause), tid, length));
        }
        let next = upcoming.peek().map(|stall| stall.end);
        match (open.peek_mut(), next) {
            (Some(top), _) if top.1 >= now || top.5 == 0 => {
                PeekMut::pop(top);
            }
            (Some(mut top), next) => {
                let (_, start, _, Reverse(cause), tid, left) = *top;
                let until = start.max(next.unwrap_or(0)).max(now.saturating_sub(left));
                each(cause, tid, Span { start: until, end: now });
                top.5 = left - (now - until);
                now = until;
            }
            (None, Some(end)) => now = end,
            (None, None) => return,
        }
    }
}

#[cfg(test)]
#[path = "burst_tests.rs"]
pub(super) mod bursts;
