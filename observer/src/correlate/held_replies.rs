//! Replies whose last part the kernel held back: a connection with Nagle's algorithm sends no small segment before
//! the one in front of it is acknowledged, and a client that waits for more acknowledges only after a while
//! (delayed ACK). So a small reply that is written in two calls comes 40 ms late.

use super::Evidence;
use super::exposure::{Population, Served};
use super::matching::ns;
use crate::model::ServerRequest;

/// From the first write of a reply to its end at the client: the shortest delay of an acknowledgement
/// (`TCP_DELACK_MIN`, include/net/tcp.h), and what a timer and a busy client may add to it.
const DELAYED_NS: std::ops::Range<i64> = 39_000_000..56_000_000;
/// The last part was on its way for at least so long: less than this of the delay is left if it was written late.
const HELD_LEAST_NS: i64 = 20_000_000;

/// Mean nanoseconds for which the rest of the reply was held back, of the slow and of the typical requests;
/// `None` if none was.
pub(super) fn means(evidence: &Evidence<'_>, population: &Population) -> Option<[u64; 2]> {
    let mean = |samples: &[Served]| {
        let held = samples.iter().filter_map(|sample| {
            let request = evidence.requests.get(sample.request? as usize)?;
            held_ns(request, ns(evidence.window.0).saturating_add(sample.end as i64))
        });
        held.sum::<u64>() / samples.len().max(1) as u64
    };
    let (slow_ns, typical_ns) = (mean(&population.slow), mean(&population.typical));
    (slow_ns > 0).then_some([slow_ns, typical_ns])
}

/// For how long the rest of a reply was held back that the client had at this instant.
fn held_ns(request: &ServerRequest, end_ns: i64) -> Option<u64> {
    let (first_ns, last_ns) = (ns(request.first_send?), ns(request.last_send?));
    let held_ns = end_ns.saturating_sub(last_ns);
    let is_held = last_ns > first_ns
        && DELAYED_NS.contains(&end_ns.saturating_sub(first_ns))
        && held_ns >= HELD_LEAST_NS;
    is_held.then_some(held_ns.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;

    #[test]
    fn only_a_reply_in_parts_that_comes_as_late_as_an_acknowledgement_was_held_back() {
        const MS: u64 = 1_000_000;
        let request = |first: u64, last: u64| {
            let mut request = ServerRequest::of_times((1, 1), [0, 1, first * MS], 0);
            request.last_send = Some(MonoNanos(last * MS));
            request
        };
        let held = |first, last, end: u64| held_ns(&request(first, last), (end * MS) as i64);
        assert_eq!(held(100, 101, 141), Some(40 * MS));
        assert_eq!(held(100, 115, 144), Some(29 * MS));
        // In one piece; too early and too late for it; a long reply whose end comes at once.
        for (first, last, end) in
            [(100, 100, 141), (100, 101, 130), (100, 101, 190), (100, 140, 141)]
        {
            assert_eq!(held(first, last, end), None, "{first} {last} {end}");
        }
        let unanswered = ServerRequest { first_send: None, last_send: None, ..request(1, 2) };
        assert_eq!(held_ns(&unanswered, 50), None);
        assert_eq!(held_ns(&request(1, 2), i64::MIN), None);
    }
}
