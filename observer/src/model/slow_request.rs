//! The slowest requests, as the results have them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cause, Holder, Sample, ServerRequest, Stall, Tgid, Tid};
use crate::clock::MonoNanos;

/// How a request of the load generator was matched with one that the target's sockets saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Matched {
    /// By its connection and its time.
    Connection,
    /// By its time alone.
    Time,
    /// Another request is about as likely, but the same threads served both.
    SameThreads,
    /// Another request is about as likely, and it is not known which threads served this one.
    Ambiguous,
    /// No request that the target's sockets saw fits.
    Unmatched,
    /// Its connection carried several requests at a time, which the target's sockets cannot tell apart.
    Multiplexed,
    /// The requests of its block of time were not recorded.
    NotRecorded,
    /// There is no record of any request: the target's sockets were not watched, or saw none.
    NoRequests,
    /// What a newer version of observer wrote, which this one does not know.
    #[serde(other)]
    Unknown,
}

/// One of the slowest requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequest {
    /// When it should have been sent; where that is not known, when it was.
    pub begin_ns: MonoNanos,
    /// When the answer was complete, or the failure known.
    pub end_ns: MonoNanos,
    /// The time between.
    pub response_ns: u64,
    /// HTTP status.
    pub status: Option<u16>,
    /// The generator's own number.
    pub seq: Option<u64>,
    /// How it was matched; `None` in runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<Matched>,
    /// When which threads of the target served it; `None` where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served: Option<ServedBy>,
    /// The services that its thread asked for it, in order of time, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<AskedService>,
    /// Where its time went: nanoseconds by cause, which sum to `response_ns`. `None` where it is not
    /// known which threads served it, and in runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_ns: Option<BTreeMap<Cause, u64>>,
    /// The target's stalls that overlap it, longest part inside first; only the first few. Where it is
    /// known which threads served it, these threads' stalls and sleeps.
    pub stalls: Vec<SlowStall>,
    /// Stalls that overlap it beside those.
    pub more_stalls: u64,
}

impl SlowRequest {
    /// A request without its stalls yet.
    #[must_use]
    pub fn new(sample: &Sample) -> Self {
        Self {
            begin_ns: sample.begin(),
            end_ns: sample.end,
            response_ns: sample.response_ns(),
            status: sample.status,
            seq: sample.seq,
            matched: None,
            served: None,
            asked: Vec::new(),
            account_ns: None,
            stalls: Vec::new(),
            more_stalls: 0,
        }
    }
}

/// A service that the target asked for a request. The times are on the kernel's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedService {
    /// Its address, or `a Unix socket`.
    pub peer: String,
    /// The first write of what it was sent returned.
    pub sent_ns: MonoNanos,
    /// A thread of the target had taken the first bytes of the reply.
    pub replied_ns: MonoNanos,
}

/// A thread that got a request from another one. The time is on the kernel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// The thread.
    pub tid: Tid,
    /// When it was woken for the request, or could have begun with it.
    pub from_ns: MonoNanos,
}

/// How the target's sockets saw a request. The times are on the kernel's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// Its first byte was in the socket; `None` if that was not seen.
    pub arrival_ns: Option<MonoNanos>,
    /// A thread had read the first bytes.
    pub read_ns: MonoNanos,
    /// The first write of the reply returned; `None` without a reply.
    pub first_send_ns: Option<MonoNanos>,
    /// The last write of the reply returned; `None` without a reply.
    pub last_send_ns: Option<MonoNanos>,
    /// The thread that read it.
    pub reader: Tid,
    /// The thread of the first write; the reader if there was none.
    pub sender: Tid,
    /// The threads that had it after the reader, in order; the last one is the sender. Empty where the reader
    /// had it all the time, where that is not known, and in runs of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handed: Vec<HandedOver>,
}

impl ServedBy {
    /// As the record of the request says.
    #[must_use]
    pub fn new(request: &ServerRequest) -> Self {
        Self {
            arrival_ns: request.arrival,
            read_ns: request.read,
            first_send_ns: request.first_send,
            last_send_ns: request.end(),
            reader: request.reader,
            sender: request.sender,
            handed: Vec::new(),
        }
    }

    /// Which threads had the request, in order, and when: the reader until it was read, and then the sender,
    /// if nothing else is known.
    #[must_use]
    pub fn threads(&self, sample: &Sample) -> Vec<(Tid, MonoNanos, MonoNanos)> {
        let begin = self.arrival_ns.unwrap_or(self.read_ns);
        let end = self.last_send_ns.unwrap_or(sample.end);
        let handed = match self.handed.is_empty() && self.sender != self.reader {
            true => &[HandedOver { tid: self.sender, from_ns: self.read_ns }],
            false => &self.handed[..],
        };
        let reader = HandedOver { tid: self.reader, from_ns: begin };
        let ends = handed.iter().map(|next| next.from_ns).chain([end]);
        let all = [reader].into_iter().chain(handed.iter().copied());
        all.zip(ends).map(|(one, end)| (one.tid, one.from_ns, end)).collect()
    }

    /// The threads that had it, each once.
    #[must_use]
    pub fn all_threads(&self) -> Vec<Tid> {
        let mut all = vec![self.reader, self.sender];
        all.extend(self.handed.iter().map(|one| one.tid));
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The parts of a stall or of a sleep of the target that overlap a request; none if it is known not to
/// concern it.
#[must_use]
pub fn inside(
    sample: &Sample,
    served: Option<&ServedBy>,
    stall: &Stall,
) -> Vec<(MonoNanos, MonoNanos)> {
    let mut times = match served {
        Some(served) => served.threads(sample),
        // Threads sleep most of the time, and most of them for another reason.
        None if stall.cause.is_stall() => vec![(stall.tid, sample.begin(), sample.end)],
        None => Vec::new(),
    };
    times.retain(|(tid, ..)| *tid == stall.tid);
    let overlap = |(_, from, until)| (stall.start.max(from), stall.end.min(until));
    times.into_iter().map(overlap).filter(|(from, until)| from < until).collect()
}

/// How long a stall or a sleep of the target overlaps a request; 0 if it is known not to concern it.
#[must_use]
pub fn overlap_ns(sample: &Sample, served: Option<&ServedBy>, stall: &Stall) -> u64 {
    inside(sample, served, stall).into_iter().map(|(from, until)| until.since(from)).sum()
}

/// A stall that overlaps a slow request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowStall {
    /// Why the thread could not continue.
    pub cause: Cause,
    /// First instant of the stall.
    pub start_ns: MonoNanos,
    /// First instant after it.
    pub end_ns: MonoNanos,
    /// Length of its part inside the request.
    pub inside_ns: u64,
    /// The stalled thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// CPU it ended on.
    pub cpu: u32,
    /// Who had the CPU or the lock, where its record says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Id of the thread's stack, where its record has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<u32>,
    /// Its record in the trace; `None` when it is not there.
    pub trace_row: Option<StreamRow>,
}

/// A [`super::TraceRow`] with the kind by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRow {
    /// Kind of record.
    pub kind: String,
    /// Row in the stream of that kind, from 0.
    pub row: u32,
}

impl SlowStall {
    /// A stall of which so much is inside the request.
    #[must_use]
    pub fn new(stall: &Stall, inside_ns: u64) -> Self {
        let trace_row = stall.row.and_then(|row| {
            let kind = crate::probe::kind_name(row.kind())?.to_owned();
            Some(StreamRow { kind, row: row.row() })
        });
        Self {
            cause: stall.cause,
            start_ns: stall.start,
            end_ns: stall.end,
            inside_ns,
            tid: stall.tid,
            tgid: stall.tgid,
            cpu: stall.cpu,
            holder: stall.holder,
            stack: stall.stack(),
            trace_row,
        }
    }
}
