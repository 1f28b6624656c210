//! The blocks of time whose requests were recorded, where there were too many to record all.

use std::collections::BTreeSet;

use observer_ebpf::wire::REQUEST_BLOCK_SHIFT;

use super::Evidence;
use super::matching::Matching;
use crate::model::Sample;

/// Tells samples whose request may have been recorded from others.
pub(super) struct Blocks {
    /// `None` where all were recorded.
    recorded: Option<BTreeSet<u64>>,
    offset_ns: i64,
}

impl Blocks {
    pub(super) fn new(evidence: &Evidence<'_>, matching: &Matching) -> Self {
        let in_blocks = evidence.quality.requests_in_blocks;
        let block = |time_ns: u64| time_ns >> REQUEST_BLOCK_SHIFT;
        let recorded = in_blocks
            .then(|| evidence.requests.iter().map(|request| block(request.begin().0)).collect());
        Self { recorded, offset_ns: matching.offset_ns }
    }

    pub(super) fn has(&self, sample: &Sample) -> bool {
        let start = sample.start.0.saturating_add_signed(self.offset_ns);
        let block = start >> REQUEST_BLOCK_SHIFT;
        self.recorded.as_ref().is_none_or(|recorded| recorded.contains(&block))
    }
}
