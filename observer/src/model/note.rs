//! Observer's own records, kept in the trace beside those from the kernel: changes of floors,
//! losses by the second, changes of sampling, and probes that were detached.

use bytemuck::{Pod, Zeroable};
use observer_ebpf::wire::{COMM_LEN, Header, KIND_SLOTS, LossKind, OWN_KINDS, Record, RecordKind};
use serde::{Deserialize, Serialize};

use super::{Event, LossScope, LossSpan, RecordRow, field};
use crate::clock::MonoNanos;

/// A change of the minimum length of stalls of a kind that are sent as records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorChange {
    /// The kind of record.
    pub record: RecordKind,
    /// Floor until now, nanoseconds.
    pub old_ns: u64,
    /// Floor from now on.
    pub new_ns: u64,
    /// Why.
    pub reason: FloorReason,
}

/// Why a floor was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FloorReason {
    /// Raised: records were lost.
    Loss,
    /// Raised: the ring filled up faster than it is drained.
    Ring,
    /// Raised: more records a second than the budget.
    Rate,
    /// Raised: at this rate the memory for stalls would soon be used up.
    Room,
    /// Lowered: the load has been low for a while.
    Calm,
}

impl FloorReason {
    /// All reasons.
    pub const ALL: [Self; 5] = [Self::Loss, Self::Ring, Self::Rate, Self::Room, Self::Calm];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Ring => "ring",
            Self::Rate => "rate",
            Self::Room => "room",
            Self::Calm => "calm",
        }
    }
}

/// [`FloorChange`] as a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct FloorRecord {
    header: Header,
    old_ns: u64,
    new_ns: u64,
    record: u32,
    reason: u32,
}

impl Record for FloorRecord {
    const KIND: u16 = OWN_KINDS;
}

fn record_name(number: u32) -> Option<&'static str> {
    Some(RecordKind::from_raw(u16::try_from(number).ok()?)?.name())
}

static FLOOR: RecordRow = RecordRow::new::<FloorRecord>(
    "floor",
    "observer changed the minimum length of the stalls of a kind that are sent.",
    &[
        field!(
            FloorRecord.record,
            "floor_record",
            "the kind of record whose floor was changed at `end_ns`",
            record_name
        ),
        field!(
            FloorRecord.old_ns,
            "floor_old_ns",
            "until then, shorter stalls were counted and not sent"
        ),
        field!(
            FloorRecord.new_ns,
            "floor_new_ns",
            "from then on, shorter stalls are counted and not sent"
        ),
        field!(
            FloorRecord.reason,
            "floor_reason",
            "`loss`, `ring`, `rate` or `room` (raised), `calm` (lowered)",
            |number| Some(FloorReason::ALL.get(number as usize)?.name())
        ),
    ],
);

impl FloorChange {
    /// The change as an event.
    #[must_use]
    pub fn event(&self, at: MonoNanos) -> Event {
        let record = FloorRecord {
            header: header(at, 0, FloorRecord::KIND),
            old_ns: self.old_ns,
            new_ns: self.new_ns,
            record: self.record as u32,
            reason: FloorReason::ALL.iter().position(|reason| *reason == self.reason).unwrap_or(0)
                as u32,
        };
        own_event(&FLOOR, &record)
    }

    /// The change an event stands for.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let record: FloorRecord = event.record()?;
        Some(Self {
            record: RecordKind::from_raw(u16::try_from(record.record).ok()?)?,
            old_ns: record.old_ns,
            new_ns: record.new_ns,
            reason: *FloorReason::ALL.get(record.reason as usize)?,
        })
    }
}

/// Losses of one kind between two readings of the kernel's counters, about a second apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossSecond {
    /// Index into the kernel's loss counters: a [`RecordKind`], or [`KIND_SLOTS`] and a [`LossKind`].
    pub loss: u32,
    /// Whose it is.
    pub scope: LossScope,
    /// How many.
    pub count: u64,
}

/// The scopes with the names that the trace has for them. Losses of the host are those of all tasks,
/// the target's included.
const SCOPES: [(LossScope, &str); 2] = [(LossScope::Target, "target"), (LossScope::Host, "host")];

/// [`LossSecond`] as a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct LossRecord {
    header: Header,
    count: u64,
    loss: u32,
    scope: u32,
}

impl Record for LossRecord {
    const KIND: u16 = OWN_KINDS + 1;
}

/// The name of a loss by its index into the kernel's counters.
#[must_use]
pub fn loss_name(index: u32) -> Option<&'static str> {
    match (index as usize).checked_sub(KIND_SLOTS) {
        None => record_name(index),
        Some(kind) => Some(LossKind::ALL.get(kind)?.name()),
    }
}

static LOSS: RecordRow = RecordRow::new::<LossRecord>(
    "loss",
    "observer noticed a loss of events between `start_ns` and `end_ns` (about a second).",
    &[
        field!(
            LossRecord.loss,
            "loss",
            "what was lost: a kind of record that found the ring full, or a kind of `loss.by_kind`",
            loss_name
        ),
        field!(
            LossRecord.scope,
            "scope",
            "`target`: what the target's tasks lost; `host`: what all tasks lost, the target's \
             included",
            |number| Some(SCOPES.get(number as usize)?.1)
        ),
        field!(LossRecord.count, "count", "how many"),
    ],
);

impl LossSecond {
    /// The loss as an event that began at the last reading.
    #[must_use]
    pub fn event(&self, at: MonoNanos, since: MonoNanos) -> Event {
        let record = LossRecord {
            header: header(at, at.since(since), LossRecord::KIND),
            count: self.count,
            loss: self.loss,
            scope: SCOPES.iter().position(|(scope, _)| *scope == self.scope).unwrap_or(0) as u32,
        };
        own_event(&LOSS, &record)
    }

    /// The loss an event stands for.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let record: LossRecord = event.record()?;
        let (scope, _) = *SCOPES.get(record.scope as usize)?;
        Some(Self { loss: record.loss, scope, count: record.count })
    }
}

impl LossSpan {
    /// The target's loss in an event, and its time span.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let LossSecond { loss, scope, count } = LossSecond::from_event(event)?;
        let kind = loss_name(loss).filter(|_| scope == LossScope::Target)?.to_owned();
        Some(Self { start: event.start(), end: event.end, kind, count })
    }
}

/// A change of how many records of a kind the trace keeps: from now on every n-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingChange {
    /// The kind of record.
    pub record: RecordKind,
    /// Until now, one record in this many was kept.
    pub old_one_in: u32,
    /// From now on, one record in this many is kept.
    pub new_one_in: u32,
}

/// [`SamplingChange`] as a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct SamplingRecord {
    header: Header,
    record: u32,
    old_one_in: u32,
    new_one_in: u32,
    reserved: u32,
}

impl Record for SamplingRecord {
    const KIND: u16 = OWN_KINDS + 2;
}

static SAMPLING: RecordRow = RecordRow::new::<SamplingRecord>(
    "sampling",
    "observer changed how many records of a frequent kind the trace keeps.",
    &[
        field!(
            SamplingRecord.record,
            "sampled_record",
            "the kind of record, `socket` or `task`",
            record_name
        ),
        field!(
            SamplingRecord.old_one_in,
            "old_one_in",
            "until then, one record in this many was kept"
        ),
        field!(
            SamplingRecord.new_one_in,
            "new_one_in",
            "from then on, one record in this many is kept"
        ),
    ],
);

impl SamplingChange {
    /// The change as an event.
    #[must_use]
    pub fn event(&self, at: MonoNanos) -> Event {
        let record = SamplingRecord {
            header: header(at, 0, SamplingRecord::KIND),
            record: self.record as u32,
            old_one_in: self.old_one_in,
            new_one_in: self.new_one_in,
            reserved: 0,
        };
        own_event(&SAMPLING, &record)
    }

    /// The change an event stands for.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let SamplingRecord { record, old_one_in, new_one_in, .. } = event.record()?;
        let record = RecordKind::from_raw(u16::try_from(record).ok()?)?;
        Some(Self { record, old_one_in, new_one_in })
    }
}

/// A probe was detached to keep the budget, a CPU came online that it did not watch, or it was attached
/// again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeChange {
    /// Its name; 16 bytes of it are kept.
    pub probe: &'static str,
    /// From now on it is attached.
    pub attached: bool,
}

/// [`ProbeChange`] as a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct ProbeRecord {
    header: Header,
    probe: [u8; COMM_LEN],
    change: u32,
    reserved: u32,
}

impl Record for ProbeRecord {
    const KIND: u16 = OWN_KINDS + 3;
}

const CHANGES: [&str; 2] = ["detached", "attached"];

static PROBE: RecordRow = RecordRow::new::<ProbeRecord>(
    "probe",
    "observer detached a probe to keep the budget, a CPU came online that the probe did not watch, or the \
     probe was attached again.",
    &[
        field!(ProbeRecord.probe, "probe", "the probe"),
        field!(
            ProbeRecord.change,
            "change",
            "`detached`: from then on nothing was counted and no record was sent, or not on the CPU that \
             came online; `attached`: from then on it works again",
            |number| CHANGES.get(number as usize).copied()
        ),
    ],
);

impl ProbeChange {
    /// The change as an event.
    #[must_use]
    pub fn event(&self, at: MonoNanos) -> Event {
        let mut probe = [0; COMM_LEN];
        for (kept, byte) in probe.iter_mut().zip(self.probe.bytes()) {
            *kept = byte;
        }
        let header = header(at, 0, ProbeRecord::KIND);
        let change = u32::from(self.attached);
        own_event(&PROBE, &ProbeRecord { header, probe, change, reserved: 0 })
    }
}

impl ProbeChange {
    /// Whether an event stands for one.
    #[must_use]
    pub const fn is_in(event: &Event) -> bool {
        event.row().kind == ProbeRecord::KIND
    }
}

/// Up to when a stream is complete. Those of all streams are written together, behind what they are
/// about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamComplete {
    /// Everything that ended before this instant is there, and what was lost before it. Of bursts, one
    /// of each thread may be missing, of at most about a millisecond.
    pub until: MonoNanos,
    /// The kind of its events.
    pub kind: u16,
    /// Rows that it has at least.
    pub rows: u64,
}

/// [`StreamComplete`] as a record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct CompleteRecord {
    header: Header,
    until_ns: u64,
    rows: u64,
    stream: u32,
    reserved: u32,
}

impl Record for CompleteRecord {
    // The largest: its stream is flushed last.
    const KIND: u16 = OWN_KINDS + 4;
}

fn stream_name(number: u32) -> Option<&'static str> {
    let own = OWN_RECORDS.iter().find(|row| u32::from(row.kind) == number);
    record_name(number).or(own.map(|row| row.name))
}

static COMPLETE: RecordRow = RecordRow::new::<CompleteRecord>(
    "complete",
    "observer noted up to when a stream is complete. The answer of a killed run is about that time.",
    &[
        field!(
            CompleteRecord.until_ns,
            "until_ns",
            "what ended before this instant is in the stream, if it was not lost; losses are known. Of \
             bursts (`fault_burst`, ...), the last one of a thread may be missing: it leaves with a later \
             stall or the end of the thread"
        ),
        field!(
            CompleteRecord.stream,
            "stream",
            "the stream, by the kind of its events",
            stream_name
        ),
        field!(CompleteRecord.rows, "rows", "rows that the stream has at least"),
    ],
);

impl StreamComplete {
    /// The kind of these notes.
    pub const KIND: u16 = CompleteRecord::KIND;

    /// The note as an event.
    #[must_use]
    pub fn event(&self, at: MonoNanos) -> Event {
        let Self { until, kind, rows } = *self;
        let header = header(at, 0, Self::KIND);
        let stream = kind.into();
        let until_ns = until.0;
        own_event(&COMPLETE, &CompleteRecord { header, until_ns, rows, stream, reserved: 0 })
    }

    /// The note an event stands for.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let CompleteRecord { until_ns, rows, stream, .. } = event.record()?;
        Some(Self { until: MonoNanos(until_ns), kind: u16::try_from(stream).ok()?, rows })
    }
}

/// The kinds of observer's own records.
pub static OWN_RECORDS: [&RecordRow; 5] = [&FLOOR, &LOSS, &SAMPLING, &PROBE, &COMPLETE];

const fn header(at: MonoNanos, duration_ns: u64, kind: u16) -> Header {
    Header { end_ns: at.0, duration_ns, tid: 0, tgid: 0, kind, flags: 0, cpu: 0 }
}

fn own_event<R: Record>(row: &'static RecordRow, record: &R) -> Event {
    Event::decode(row, bytemuck::bytes_of(record)).unwrap_or(Event::empty(row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Value;

    #[test]
    fn notes_come_back_from_their_events() {
        let (at, since) = (MonoNanos(5_000), MonoNanos(4_000));
        for reason in FloorReason::ALL {
            let change =
                FloorChange { record: RecordKind::MmSyscall, old_ns: 3, new_ns: 24, reason };
            let event = change.event(at);
            assert_eq!((event.name(), event.end), ("floor", at));
            assert_eq!(FloorChange::from_event(&event), Some(change));
            assert_eq!(LossSecond::from_event(&event), None);
        }
        for (scope, _) in SCOPES {
            let loss = LossSecond { loss: KIND_SLOTS as u32, scope, count: 7 };
            let event = loss.event(at, since);
            assert_eq!((event.start(), event.end), (since, at));
            assert_eq!(LossSecond::from_event(&event), Some(loss));
        }
        let change = SamplingChange { record: RecordKind::Socket, old_one_in: 1, new_one_in: 4 };
        assert_eq!(SamplingChange::from_event(&change.event(at)), Some(change));
        let complete = StreamComplete { until: since, kind: StreamComplete::KIND, rows: 9 };
        assert_eq!(StreamComplete::from_event(&complete.event(at)), Some(complete));
        assert!(OWN_RECORDS.iter().all(|row| row.kind <= StreamComplete::KIND), "flushed last");
        let event = ProbeChange { probe: "mm_syscall", attached: true }.event(at);
        assert_eq!((event.name(), event.end), ("probe", at));
        assert!(ProbeChange::is_in(&event) && !ProbeChange::is_in(&complete.event(at)));
        assert_eq!(event.value("probe"), Some(Value::Text("mm_syscall".into())));
        assert_eq!(event.value("change"), Some(Value::Text("attached".into())));
    }

    #[test]
    fn every_loss_has_a_name_of_its_own() {
        let names: Vec<&str> = (0..64).filter_map(loss_name).collect();
        assert_eq!(names.len(), RecordKind::ALL.len() + LossKind::ALL.len());
        let different: std::collections::BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(different.len(), names.len());
    }
}
