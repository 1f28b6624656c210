//! Stalls: when a thread had work and could not continue.

use std::num::NonZeroU32;

use super::{Cause, EndedBy, Event, FUTEX_OBJECT, Holder, Tgid, Tid};
use crate::clock::MonoNanos;

/// What only some stalls have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// Nothing more.
    None,
    /// Id of the thread's stack.
    Stack(u32),
    /// In what it waited, or for whom ([`super::ObjectRow`]).
    Object(u32),
    /// The same, where it waited until any of several descriptors was ready.
    AnyOf(u32),
    /// At which place in memory it waited for another thread, or for the time that it was to take at most
    /// ([`EndedBy::Thread`]).
    OfThread(u32),
    /// It stands for several short stalls, somewhere in the last so many nanoseconds before its end. Its
    /// length is the time in all of them together.
    Spread(u32),
}

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
    /// CPU it ended on.
    pub cpu: u32,
    /// Who had the CPU or the lock; `None` where its record does not say.
    pub holder: Option<Holder>,
    /// Its stack, or over which time it is spread.
    pub extra: Extra,
    /// Its record in the trace; `None` when it is not there.
    pub row: Option<TraceRow>,
    /// Why.
    pub cause: Cause,
}

// The analysis keeps millions of them, and the memory that a run needs at most is computed from this.
const _: () = assert!(size_of::<Stall>() == 64);

impl Stall {
    /// A stall of which nothing but the time, the thread and the cause is known.
    #[cfg(test)]
    pub(crate) const fn of_thread(tid: u32, cause: Cause, start: u64, end: u64) -> Self {
        Self {
            start: MonoNanos(start),
            end: MonoNanos(end),
            tid: Tid(tid),
            tgid: Tgid(1),
            cpu: 0,
            holder: None,
            extra: Extra::None,
            row: None,
            cause,
        }
    }

    /// The stalls that an event stands for, without a row: one after the other for each of its causes.
    /// Nothing for events that stall nobody (sockets, forks).
    ///
    /// In which order the parts of a wait really came is not known: in a request that began or ended
    /// in the middle of the wait, their shares can be wrong by as much.
    pub fn of_event(event: &Event) -> impl Iterator<Item = Self> {
        let spread = |first: MonoNanos| u32::try_from(event.end.since(first)).unwrap_or(u32::MAX);
        let extra = match (event.summed(), event.stack()) {
            (Some(summed), _) => Extra::Spread(spread(summed.first)),
            (None, Some(stack)) => Extra::Stack(stack),
            (None, None) => Extra::None,
        };
        let extra = move |cause| match event.object(cause) {
            Some(object) => match event.ended_by() {
                EndedBy::Object => Extra::Object(object),
                EndedBy::AnyDescriptor => Extra::AnyOf(object),
                EndedBy::Thread(place) => Extra::OfThread(place),
            },
            None => extra,
        };
        let mut end = event.start();
        let stall = move |(cause, ns): (Cause, u64)| {
            let start = end;
            end = MonoNanos(start.0.saturating_add(ns));
            Self {
                start,
                end,
                tid: event.tid,
                tgid: event.tgid,
                cpu: event.cpu,
                holder: (event.row().holder)(event, cause),
                extra: extra(cause),
                row: None,
                cause,
            }
        };
        event.causes().map(stall)
    }

    /// First instant of which it may have a part; that is before its start where it stands for several
    /// short stalls.
    #[must_use]
    pub fn first(&self) -> MonoNanos {
        match self.extra {
            Extra::Spread(ns) => self.start.min(MonoNanos(self.end.0.saturating_sub(ns.into()))),
            _ => self.start,
        }
    }

    /// Id of the thread's stack, where its record has one.
    #[must_use]
    pub const fn stack(&self) -> Option<u32> {
        match self.extra {
            Extra::Stack(stack) => Some(stack),
            _ => None,
        }
    }

    /// In what it waited, or for whom, where its record says so.
    #[must_use]
    pub fn object(&self) -> Option<u32> {
        match self.extra {
            Extra::Object(object) | Extra::AnyOf(object) => Some(object),
            // There are many places at which threads wait for work.
            Extra::OfThread(_) if self.cause == Cause::SERVICE_WAIT => Some(FUTEX_OBJECT),
            Extra::OfThread(place) => Some(place),
            Extra::None | Extra::Spread(_) | Extra::Stack(_) => None,
        }
    }

    /// Length in nanoseconds.
    #[must_use]
    pub const fn duration_ns(&self) -> u64 {
        self.end.since(self.start)
    }
}

/// Where a record is in the trace. Packed, so that an optional one takes six bytes of a [`Stall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(2))]
pub struct TraceRow {
    kind: u16,
    /// Rows of the stream up to this one, and this one.
    rows: NonZeroU32,
}

impl TraceRow {
    /// A row, counted from 0, in the stream of a kind of record; `None` for rows beyond what 32 bits
    /// can count.
    #[must_use]
    pub fn new(kind: u16, row: u64) -> Option<Self> {
        let rows = u32::try_from(row).ok()?.checked_add(1).and_then(NonZeroU32::new)?;
        Some(Self { kind, rows })
    }

    /// The kind of record, as in [`super::RecordRow::kind`].
    #[must_use]
    pub const fn kind(self) -> u16 {
        self.kind
    }

    /// The row in the stream of that kind, from 0. In a trace cut into segments, the segments that
    /// are there count as one stream, the oldest first.
    #[must_use]
    pub const fn row(self) -> u32 {
        self.rows.get() - 1
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Pod, Zeroable};
    use observer_ebpf::wire::{Header, OWN_KINDS, Record};

    use super::*;
    use crate::model::{RecordRow, field};
    use crate::output::example;

    /// A record with a stack and a holder.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    struct LockRecord {
        header: Header,
        stack_id: u32,
        owner: u32,
    }

    impl Record for LockRecord {
        const KIND: u16 = OWN_KINDS + 101;
    }

    static LOCK: RecordRow = RecordRow::new::<LockRecord>(
        "lock",
        "A thread waited for a lock.",
        &[
            field!(LockRecord.stack_id, "stack_id", "stack of the thread"),
            field!(LockRecord.owner, "owner", "process that had the lock"),
        ],
    )
    .stalls(0, |_| Some(Cause::COMPACTION))
    .holder(|event, _| {
        let owner = event.record::<LockRecord>()?.owner;
        Some(Holder { tid: Tid(owner), tgid: Tgid(owner), cgroup: None })
    })
    .stack(|event| Some(event.record::<LockRecord>()?.stack_id));

    #[test]
    fn a_stall_has_what_its_record_says() {
        let header = Header {
            end_ns: 900,
            duration_ns: 300,
            tid: 12,
            tgid: 10,
            kind: LockRecord::KIND,
            flags: 0,
            cpu: 3,
        };
        let record = LockRecord { header, stack_id: 0, owner: 77 };
        let event = Event::decode(&LOCK, bytemuck::bytes_of(&record)).expect("a record");
        let stall = Stall::of_event(&event).next().expect("a stall");
        let expected = Stall {
            start: MonoNanos(600),
            end: MonoNanos(900),
            tid: Tid(12),
            tgid: Tgid(10),
            cpu: 3,
            holder: Some(Holder { tid: Tid(77), tgid: Tgid(77), cgroup: None }),
            extra: Extra::Stack(0),
            row: None,
            cause: Cause::COMPACTION,
        };
        assert_eq!(stall, expected);
        let fault = Stall::of_event(&example::fault(9, 5, 4_096)).next().expect("a stall");
        assert_eq!((fault.cpu, fault.holder, fault.stack()), (1, None, None));
    }

    #[test]
    fn rows_are_those_that_32_bits_can_count() {
        let row = TraceRow::new(7, 0).expect("the first row");
        assert_eq!((row.kind(), row.row()), (7, 0));
        let last = u64::from(u32::MAX) - 1;
        assert_eq!(TraceRow::new(7, last).map(|row| u64::from(row.row())), Some(last));
        assert_eq!(TraceRow::new(7, last + 1), None);
        assert_eq!(TraceRow::new(7, u64::MAX), None);
    }
}
