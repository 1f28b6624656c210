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

/// How the target's sockets saw a request. The times are on the kernel's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
        }
    }

    /// When the request was with this thread: with the reader until it was read, and then with the sender.
    fn with_thread(&self, sample: &Sample, tid: Tid) -> Option<(MonoNanos, MonoNanos)> {
        let begin = self.arrival_ns.unwrap_or(self.read_ns);
        let end = self.last_send_ns.unwrap_or(sample.end);
        match (tid == self.reader, tid == self.sender) {
            (true, true) => Some((begin, end)),
            (true, false) => Some((begin, self.read_ns)),
            (false, true) => Some((self.read_ns, end)),
            (false, false) => None,
        }
    }
}

/// The part of a stall or of a sleep of the target that overlaps a request; `None` if it is known not to
/// concern it.
#[must_use]
pub fn inside(
    sample: &Sample,
    served: Option<&ServedBy>,
    stall: &Stall,
) -> Option<(MonoNanos, MonoNanos)> {
    let (from, until) = match served {
        Some(served) => served.with_thread(sample, stall.tid)?,
        // Threads sleep most of the time, and most of them for another reason.
        None if stall.cause.is_stall() => (sample.begin(), sample.end),
        None => return None,
    };
    let (from, until) = (stall.start.max(from), stall.end.min(until));
    (from < until).then_some((from, until))
}

/// How long a stall or a sleep of the target overlaps a request; 0 if it is known not to concern it.
#[must_use]
pub fn overlap_ns(sample: &Sample, served: Option<&ServedBy>, stall: &Stall) -> u64 {
    inside(sample, served, stall).map_or(0, |(from, until)| until.since(from))
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
