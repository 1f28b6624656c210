//! Puts the samples on the kernel's clock as exactly as the requests that the target saw allow.

use crate::correlate::{place_by_arrivals, take_out_drift};
use crate::loadgen::{ClockKind, Ingested};
use crate::model::{ClockDrift, ServerRequest};

/// Moves the samples of a generator whose clock counts from its own start, or drifts; returns the drift that
/// was taken out.
pub(super) fn place(ingested: &mut Ingested, requests: &[ServerRequest]) -> Option<ClockDrift> {
    let Ingested { samples, uncertainty_ns, notes, alignment, .. } = ingested;
    if alignment.clock == ClockKind::Relative
        && let Some(left_ns) = place_by_arrivals(samples, requests, *uncertainty_ns)
    {
        *uncertainty_ns = left_ns;
        alignment.uncertainty_ns = left_ns;
        notes.push(format!(
            "the requests that arrived at the target say more exactly when the samples were: the error may be \
             {:.1} ms",
            left_ns as f64 / 1e6
        ));
    }
    take_out_drift(samples, requests, *uncertainty_ns)
}
