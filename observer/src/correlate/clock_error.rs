//! How exact the times of the samples are, once their requests are known.

use super::Evidence;
use super::matching::{Matching, ns};
use super::usual::median;
use crate::model::{Sample, ServerRequest};

/// A write may return this long after the client has had the answer.
const RETURN_NS: u64 = 100_000;
/// If requests took longer than their samples by more than this part of what makes the latencies of the
/// samples different, each sample may have been matched with the request before or after its own.
const MOST_SHIFTED: f64 = 0.1;
/// Pieces of the run in which the difference of the clocks is measured again, and pairs in each at least.
const PIECES: usize = 16;
const LEAST_PAIRS: usize = 32;

/// By how much the clock of the samples may still differ from the kernel's, nanoseconds.
///
/// Where the connection of each sample tells its request, the times of both sides say by how much
/// the clocks differ: a request arrives after it was sent, and an answer after it was written. What remains
/// unknown is how the time outside the server is split between both ways, and so half of it at most, and by how
/// much one clock ran faster. What was known about the clocks before matters no more. Requests that were
/// found by their times have only that.
pub(super) fn left_ns(evidence: &Evidence<'_>, matching: &Matching) -> u64 {
    let declared_ns = evidence.quality.clock_uncertainty_ns;
    let (mut pairs, mut latencies, mut shifted_ns) = (Vec::new(), Vec::new(), 0.0);
    for (place, sample) in evidence.samples.iter().enumerate() {
        let request = matching.known(place).and_then(|place| evidence.requests.get(place));
        let Some(request) = request else { continue };
        if sample.local_port != Some(request.remote_port) {
            return declared_ns;
        }
        let Some(pair) = Pair::new(sample, request) else { continue };
        let latency_ns = ns(sample.end) - ns(sample.start);
        shifted_ns += -((pair.outside_ns + RETURN_NS as i64).min(0) as f64);
        pairs.push(pair);
        latencies.push(latency_ns);
    }
    let Some(usual_ns) = median(&mut latencies) else { return declared_ns };
    let different_ns: f64 = latencies.iter().map(|latency| latency.abs_diff(usual_ns) as f64).sum();
    if shifted_ns > different_ns * MOST_SHIFTED {
        return declared_ns;
    }
    // The difference comes from the usual times of both ways, so the usual round trip is its limit.
    let mut outside: Vec<i64> = pairs.iter().map(|pair| pair.outside_ns.max(0)).collect();
    let split_ns = median(&mut outside).unwrap_or(0).unsigned_abs().div_ceil(2);
    pairs.sort_unstable_by_key(|pair| pair.start_ns);
    let drift_ns = pairs
        .chunks((pairs.len() / PIECES).max(LEAST_PAIRS))
        .filter(|piece| piece.len() >= LEAST_PAIRS)
        .filter_map(|piece| {
            median(&mut piece.iter().map(|pair| pair.difference_ns).collect::<Vec<_>>())
        })
        .map(|difference_ns| difference_ns.abs_diff(matching.offset_ns))
        .max();
    declared_ns.min(split_ns.saturating_add(drift_ns.unwrap_or(0)))
}

/// A sample and its request.
struct Pair {
    start_ns: i64,
    /// Time outside the server. It does not depend on the difference of the clocks.
    outside_ns: i64,
    /// The kernel's clock minus that of the sample, if both ways took equally long.
    difference_ns: i64,
}

impl Pair {
    /// `None` where the sample ended without the answer.
    fn new(sample: &Sample, request: &ServerRequest) -> Option<Self> {
        let sent = request.end().filter(|_| sample.is_answered())?;
        let start_ns = ns(sample.start);
        let (there_ns, back_ns) = (ns(request.begin()) - start_ns, ns(sample.end) - ns(sent));
        let (outside_ns, difference_ns) = (there_ns + back_ns, (there_ns - back_ns) / 2);
        Some(Self { start_ns, outside_ns, difference_ns })
    }
}
