//! Events: decoded, owned records.

use observer_ebpf::wire::{Header, Record};
use serde::{Deserialize, Serialize};

use super::{Cause, EndedBy, Holder, PARTS, RecordRow, Summed, Value};
use crate::clock::MonoNanos;

/// Thread id in the initial pid namespace.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tid(pub u32);

/// Process id (thread-group id) in the initial pid namespace.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tgid(pub u32);

/// Bytes of a record's header.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();
/// Most bytes that may follow the header of a record.
pub(super) const BODY_BYTES: usize = 64;

/// An event of a thread of the target, or observer's own: the decoded common part of a record, and
/// its other bytes unchanged. [`Event::record`] gives the whole record back.
#[derive(Clone, Copy)]
pub struct Event {
    /// End of the stall, or the instant.
    pub end: MonoNanos,
    /// Length; 0 for instants.
    pub duration_ns: u64,
    /// The thread it happened to.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// CPU it ended on.
    pub cpu: u32,
    /// Bits whose meaning belongs to the kind.
    pub flags: u16,
    row: &'static RecordRow,
    body: [u8; BODY_BYTES],
}

impl Event {
    /// An event of this kind with all other fields zero.
    #[must_use]
    pub const fn empty(row: &'static RecordRow) -> Self {
        Self {
            end: MonoNanos(0),
            duration_ns: 0,
            tid: Tid(0),
            tgid: Tgid(0),
            cpu: 0,
            flags: 0,
            row,
            body: [0; BODY_BYTES],
        }
    }

    /// The event a record stands for; `None` when the bytes are too few, or a field holds a value
    /// that its kind does not define.
    #[must_use]
    pub fn decode(row: &'static RecordRow, bytes: &[u8]) -> Option<Self> {
        let header: Header = bytemuck::pod_read_unaligned(bytes.get(..HEADER_BYTES)?);
        let rest = bytes.get(HEADER_BYTES..row.size)?;
        let mut event = Self {
            end: MonoNanos(header.end_ns),
            duration_ns: header.duration_ns,
            tid: Tid(header.tid),
            tgid: Tgid(header.tgid),
            cpu: header.cpu,
            flags: header.flags,
            ..Self::empty(row)
        };
        event.body.get_mut(..rest.len())?.copy_from_slice(rest);
        row.fields.iter().all(|field| field.is_valid(&event)).then_some(event)
    }

    /// First instant.
    #[must_use]
    pub const fn start(&self) -> MonoNanos {
        MonoNanos(self.end.0.saturating_sub(self.duration_ns))
    }

    /// What is known of its kind.
    #[must_use]
    pub const fn row(&self) -> &'static RecordRow {
        self.row
    }

    /// Name of its kind.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.row.name
    }

    /// The cause of the stall it stands for, or of the longest part of it; `None` for events that are
    /// not stalls.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.causes()
            .reduce(|most, part| if part.1 > most.1 { part } else { most })
            .map(|most| most.0)
    }

    /// The causes of the stall it stands for, each with its nanoseconds, which sum to the length of the
    /// stall: first of what is left when the parts that have another cause are taken away, which is
    /// missing when nothing is left, then of these. Nothing for events that are not stalls.
    pub fn causes(&self) -> impl Iterator<Item = (Cause, u64)> {
        let cause = (self.row.cause)(self);
        let mut rest_ns = self.duration_ns;
        // A trace may hold anything.
        let mut within = |(cause, ns): (Cause, u64)| {
            let ns = ns.min(rest_ns);
            rest_ns -= ns;
            (ns > 0).then_some((cause, ns))
        };
        let parts = match cause {
            Some(_) => (self.row.parts)(self).map(&mut within),
            None => [None; PARTS],
        };
        let has_rest = rest_ns > 0 || parts.iter().all(Option::is_none);
        let rest = cause.filter(|_| has_rest).map(|cause| (cause, rest_ns));
        rest.into_iter().chain(parts.into_iter().flatten())
    }

    /// Who had what the thread waited for, in the longest part of the stall, where the record says so.
    #[must_use]
    pub fn holder(&self) -> Option<Holder> {
        (self.row.holder)(self, self.cause()?)
    }

    /// In what the part of the stall with this cause waited, or for whom, where the record says so: a number
    /// for [`super::ObjectRow::name`].
    #[must_use]
    pub fn object(&self, cause: Cause) -> Option<u32> {
        (self.row.objects?.id)(self, cause)
    }

    /// What could end the wait for its object.
    #[must_use]
    pub fn ended_by(&self) -> EndedBy {
        self.row.objects.map_or(EndedBy::Object, |objects| (objects.ended_by)(self))
    }

    /// Id of the thread's stack, where the record has one.
    #[must_use]
    pub fn stack(&self) -> Option<u32> {
        (self.row.stack)(self)
    }

    /// What it says about the short stalls that it stands for; `None` for an event of one stall.
    #[must_use]
    pub fn summed(&self) -> Option<Summed> {
        (self.row.sums?)(self)
    }

    /// Whether it is of the kind `R` is sent as.
    #[must_use]
    pub const fn is<R: Record>(&self) -> bool {
        self.row.kind == R::KIND
    }

    /// The record it came as; `None` when it is of another kind.
    #[must_use]
    pub fn record<R: Record>(&self) -> Option<R> {
        if !self.is::<R>() {
            return None;
        }
        let header = Header {
            end_ns: self.end.0,
            duration_ns: self.duration_ns,
            tid: self.tid.0,
            tgid: self.tgid.0,
            kind: self.row.kind,
            flags: self.flags,
            cpu: self.cpu,
        };
        let mut bytes = [0; HEADER_BYTES + BODY_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(bytemuck::bytes_of(&header));
        bytes[HEADER_BYTES..].copy_from_slice(&self.body);
        bytes.get(..size_of::<R>()).map(bytemuck::pod_read_unaligned)
    }

    /// The value of one of its fields, as the trace names it.
    #[must_use]
    pub fn value(&self, field: &str) -> Option<Value<'_>> {
        let field = self.row.fields.iter().find(|known| known.name == field)?;
        Some(field.value(self))
    }

    /// `length` bytes at an offset of the record, behind the header.
    pub(super) fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        let from = offset.saturating_sub(HEADER_BYTES);
        self.body.get(from..from + length).unwrap_or_default()
    }

    /// The same bytes, for writing.
    pub(super) fn bytes_mut(&mut self, offset: usize, length: usize) -> &mut [u8] {
        let from = offset.saturating_sub(HEADER_BYTES);
        self.body.get_mut(from..from + length).unwrap_or_default()
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        let common = |event: &Self| {
            let Self { end, duration_ns, tid, tgid, cpu, flags, .. } = *event;
            (end, duration_ns, tid, tgid, cpu, flags)
        };
        self.row.kind == other.row.kind && common(self) == common(other) && self.body == other.body
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = formatter.debug_struct(self.row.name);
        text.field("end_ns", &self.end.0).field("duration_ns", &self.duration_ns);
        text.field("tid", &self.tid.0).field("tgid", &self.tgid.0).field("cpu", &self.cpu);
        for field in self.row.fields {
            text.field(field.name, &field.value(self));
        }
        text.finish()
    }
}
