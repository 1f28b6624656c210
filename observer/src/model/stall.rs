//! Stalls: when a thread had work and could not continue.

use super::{Cause, Event, Tgid, Tid};
use crate::clock::MonoNanos;

/// An interval `[start, end)` in which a thread that had work could not continue.
#[derive(Clone, Debug, PartialEq)]
pub struct Stall {
    /// First instant of the stall.
    pub start: MonoNanos,
    /// First instant after it.
    pub end: MonoNanos,
    /// The stalled thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// Why.
    pub cause: Cause,
}

impl Stall {
    /// The stall an event stands for; `None` for events that stall nobody (sockets, forks).
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let cause = event.cause()?;
        Some(Self { start: event.start(), end: event.end, tid: event.tid, tgid: event.tgid, cause })
    }

    /// Length in nanoseconds.
    #[must_use]
    pub const fn duration_ns(&self) -> u64 {
        self.end.since(self.start)
    }
}
