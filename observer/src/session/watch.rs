//! The target's live sockets.

use std::time::{Duration, Instant};

use crate::host::ip_sockets_of;
use crate::kernel::TargetSet;

/// Counting takes at most one part in this many of a processor's time: the sockets of a service with
/// 50,000 connections are not counted again at once.
const SHARE: u32 = 50;

/// Live IP sockets of the target, as the descriptors of its processes show them. No sum of creations,
/// acceptances and releases is right for long: sockets are passed to other processes, inherited, and
/// closed by another one than has opened them.
pub(super) struct SocketWatch {
    targets: TargetSet,
    last: Option<Last>,
}

struct Last {
    /// `None` when not all of them could be counted.
    sockets: Option<i64>,
    at: Instant,
    took: Duration,
}

impl SocketWatch {
    pub(super) const fn new(targets: TargetSet) -> Self {
        Self { targets, last: None }
    }

    /// How many there are now, or were a moment ago if it takes long to count them; `None` when not
    /// all of them could be counted.
    pub(super) fn live(&mut self) -> Option<i64> {
        if let Some(last) = &self.last
            && last.at.elapsed() < last.took.saturating_mul(SHARE)
        {
            return last.sockets;
        }
        let at = Instant::now();
        let sockets = count(&self.targets);
        self.last = Some(Last { sockets, at, took: at.elapsed() });
        sockets
    }
}

/// How many there are now; `None` when not all of them could be counted.
pub(super) fn count(targets: &TargetSet) -> Option<i64> {
    let census = ip_sockets_of(targets.marked());
    census.is_exact().then(|| i64::try_from(census.sockets.len()).ok()).flatten()
}
