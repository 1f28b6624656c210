//! The slowest requests, as the results have them.

use serde::{Deserialize, Serialize};

use super::{Cause, Holder, Sample, Stall, Tgid, Tid};
use crate::clock::MonoNanos;

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
    /// The target's stalls that overlap it, longest part inside first; only the first few.
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
            stalls: Vec::new(),
            more_stalls: 0,
        }
    }
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
            stack: stall.stack,
            trace_row,
        }
    }
}
