//! The clock of a load generator on another host drifts against the kernel's, and may be set or slewed while
//! the run lasts. Where the requests prove that, the samples are put on the kernel's clock.

use super::matching::asked;
use super::tracking::{Course, Tracker};
use super::trips::{Requests, middle};
use crate::model::{ClockDrift, Sample, ServerRequest};

/// Clocks that differ by less are the same clock.
const SAME_CLOCK_NS: u64 = 100_000;

/// Finds by how much the clock of the samples drifted against the kernel's, and takes it out of their
/// times. A sample keeps its length. Samples whose times may be off by `uncertainty_ns`, which is less than
/// 0.1 ms, have the kernel's clock, and stay as they are; so do all where one difference of the
/// clocks explains the whole run. Returns what was taken out.
pub fn take_out_drift(
    samples: &mut [Sample],
    requests: &[ServerRequest],
    uncertainty_ns: u64,
) -> Option<ClockDrift> {
    if uncertainty_ns <= SAME_CLOCK_NS || samples.is_empty() || requests.is_empty() {
        return None;
    }
    let course = course(samples, requests, uncertainty_ns)?;
    for sample in samples.iter_mut() {
        sample.move_by(course.at(middle(sample)).round() as i64);
    }
    samples.sort_by_key(Sample::begin);
    let (first, last) = course.seen;
    Some(ClockDrift {
        ppm: (course.slope() * -1e8).round() / 100.0,
        steps: course.steps_ns().count() as u64,
        offset_first_ns: course.at(first).round() as i64,
        offset_last_ns: course.at(last).round() as i64,
        error_ns: (course.both_ns.max(0.0) / 2.0 + course.tolerance_ns).round() as u64,
    })
}

fn course(samples: &[Sample], requests: &[ServerRequest], uncertainty_ns: u64) -> Option<Course> {
    let asked = asked(samples, requests);
    let is_good = |sample: &&Sample| sample.start <= sample.end && sample.is_answered();
    let has_port = |sample: &&Sample| sample.local_port.is_some();
    let most_ns = uncertainty_ns.min(1 << 40) as i64;
    // Where the target sees other ports than the generator, times decide.
    let found = [true, false].into_iter().find_map(|by_port| {
        let kept = samples.iter().filter(is_good).filter(|sample| !by_port || has_port(sample));
        let requests = Requests::new(requests, &asked, by_port);
        Tracker::new(kept.collect(), requests, most_ns).course()
    });
    found.flatten()
}

#[cfg(test)]
#[path = "drift_tests.rs"]
mod tests;
