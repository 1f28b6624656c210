//! The upper bound of user-space memory. Everything that grows with a run has a limit, and what
//! exceeds it is counted.

use crate::loadgen::{MAX_ERROR_BYTES, MAX_SAMPLES, RawRow};
use crate::model::{Event, Sample, Stall};

use super::capture::BATCHES;
use super::drain::BATCH_EVENTS;
use super::journal::ANCHORS_MAX;
use super::{EVENTS_MAX, NAMES_MAX};
use crate::clock::Anchor;

/// The program, the kernel's BTF, the BPF object while it is loaded, stacks, and what the allocator
/// holds on to.
const FIXED_BYTES: usize = 96 << 20;
/// A name with its node in the table.
const NAME_BYTES: usize = 96;
/// Computing the answer takes this much memory per stall, in addition to the stall itself: the
/// stall clipped (24), its place among those open (24), its pieces (32), and the timelines twice
/// (64).
const ANALYSIS_BYTES: usize = 144;

/// Bytes, at most.
#[must_use]
pub fn resident_bound_bytes() -> u64 {
    let batches = (BATCHES + 2) * BATCH_EVENTS * size_of::<Event>();
    let stalls = EVENTS_MAX as usize * (size_of::<Stall>() + ANALYSIS_BYTES);
    // As rows while they are read, and as samples besides while they are aligned; a failed one
    // with its error.
    let row = size_of::<RawRow>() + size_of::<Sample>() + MAX_ERROR_BYTES;
    let samples = MAX_SAMPLES * row;
    let small = ANCHORS_MAX * size_of::<Anchor>() + NAMES_MAX * NAME_BYTES;
    (FIXED_BYTES + batches + stalls + samples + small) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_affordable() {
        let bytes = resident_bound_bytes();
        assert!((1 << 30..3 << 30).contains(&bytes), "{bytes}");
    }
}
