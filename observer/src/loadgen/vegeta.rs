//! What vegeta's encodings have in common (lib/results.go, lib/attack.go): the wall clock read
//! once and monotonic from there, the start when a worker picked the request up, no intended
//! start, and one fake row when `-lazy` targets run out.

use super::{MALFORMED, RawRow, Sink, intended_start, outcome};

/// Error text of the row that stands for no request.
const NO_TARGETS: &str = "no targets to attack";

/// No attack has so many requests: a number from here on is an odd one, and would hide the rate of the
/// others.
const MOST_SEQ: u64 = 1 << 53;

/// One result, however it was encoded.
#[derive(Clone, Debug)]
pub(super) struct Hit {
    pub(super) start_ns: u64,
    pub(super) latency_ns: u64,
    pub(super) code: u16,
    pub(super) seq: u64,
    pub(super) error: String,
}

pub(super) fn push(hit: Hit, sink: &mut Sink) {
    if hit.code == 0 && hit.error == NO_TARGETS {
        sink.skip("no_targets");
        return;
    }
    if hit.seq >= MOST_SEQ {
        sink.skip(MALFORMED);
        return;
    }
    let (status, error, ok) = outcome(Some(hit.code), Some(hit.error));
    sink.push(RawRow {
        intended_start_ns: None,
        start_ns: hit.start_ns,
        latency_ns: hit.latency_ns,
        status,
        error,
        seq: Some(hit.seq),
        local_port: None,
        ok,
    });
}

/// Derives intended starts where the rate was constant, and says what was done.
pub(super) fn finish(sink: &mut Sink) {
    sink.empty_hint = "vegeta attack ended before its first request";
    if sink.rows.is_empty() {
        return;
    }
    sink.notes.push(match intended_start::derive_constant(&mut sink.rows) {
        Ok(rate) => format!(
            "vegeta writes no intended start: observer computed it from the request numbers, at {rate} requests \
             per {}",
            rate.unit()
        ),
        Err(why) => format!(
            "vegeta writes no intended start, and observer could not compute it ({why}): the \
             samples may suffer from coordinated omission"
        ),
    });
}
