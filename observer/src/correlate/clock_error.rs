//! How exact the times of the samples are, once their requests are known.

use super::Evidence;
use super::matching::{Matching, ns};
use crate::model::{Sample, ServerRequest};

/// A write may return this long after the client has had the answer.
const RETURN_NS: u64 = 100_000;
/// If requests took longer than their samples by more than this part of what makes the latencies of the
/// samples different, each sample may have been matched with the request before or after its own.
const MOST_SHIFTED: f64 = 0.1;

/// By how much the clock of the samples may still differ from the kernel's, nanoseconds.
///
/// Where the connection of each sample tells its request, the times of both sides say by how much
/// the clocks differ: a request arrives after it was sent, and an answer after it was written. What remains
/// unknown is how the time outside the server is split between both ways: half of it at most. So what was known
/// about the clocks before matters no more. Requests that were found by their times have only that.
pub(super) fn left_ns(evidence: &Evidence<'_>, matching: &Matching) -> u64 {
    let declared_ns = evidence.quality.clock_uncertainty_ns;
    let (mut outside, mut latencies, mut shifted_ns) = (Vec::new(), Vec::new(), 0.0);
    for (place, sample) in evidence.samples.iter().enumerate() {
        let request = matching.known(place).and_then(|place| evidence.requests.get(place));
        let Some(request) = request else { continue };
        if sample.local_port != Some(request.remote_port) {
            return declared_ns;
        }
        let Some(served_ns) = served_ns(sample, request) else { continue };
        let latency_ns = sample.end.since(sample.start);
        shifted_ns += served_ns.saturating_sub(latency_ns.saturating_add(RETURN_NS)) as f64;
        outside.push(latency_ns.saturating_sub(served_ns));
        latencies.push(latency_ns);
    }
    let Some(usual_ns) = median(&mut latencies) else { return declared_ns };
    let different_ns: f64 = latencies.iter().map(|latency| latency.abs_diff(usual_ns) as f64).sum();
    if shifted_ns > different_ns * MOST_SHIFTED {
        return declared_ns;
    }
    // The difference comes from the usual times of both ways, so the usual round trip is its limit.
    let left_ns = median(&mut outside).map_or(declared_ns, |usual_ns| usual_ns.div_ceil(2));
    left_ns.min(declared_ns)
}

/// From the arrival of the request to the last write, nanoseconds; `None` where the sample ended without the
/// answer. It does not depend on the difference of the clocks.
fn served_ns(sample: &Sample, request: &ServerRequest) -> Option<u64> {
    let sent = request.end().filter(|_| sample.is_answered())?;
    u64::try_from(ns(sent) - ns(request.begin())).ok()
}

fn median(values: &mut [u64]) -> Option<u64> {
    let middle = values.len() / 2;
    (!values.is_empty()).then(|| *values.select_nth_unstable(middle).1)
}
