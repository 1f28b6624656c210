//! The target's live sockets.

use observer_ebpf::wire::{Counter, Counts};

use crate::host::sockets::{SocketCensus, ip_sockets_of};
use crate::kernel::Kernel;
use crate::target::{Changes, Membership};

/// Live IP sockets of the target: a count at one instant, and what the kernel side counted since.
pub(super) struct SocketWatch {
    census: SocketCensus,
    since: i64,
    /// A process of the target has gone. The kernel side learns this before the process closes its
    /// descriptors, and does not count the release of sockets that are older than the probe.
    stale: bool,
}

/// Created and accepted minus released, of the target.
fn balance(counts: &Counts) -> i64 {
    let of = |counter: Counter| counts.counters[counter as usize] as i64;
    of(Counter::TargetSocketsCreated) + of(Counter::TargetSocketsAccepted)
        - of(Counter::TargetSocketsReleased)
}

impl SocketWatch {
    /// Counts the sockets the target holds, again until nothing changes meanwhile (at most a few
    /// times: a busy service changes all the time, and an error of one socket does not matter
    /// then).
    pub(super) fn start(kernel: &Kernel, membership: &Membership) -> Self {
        let mut before = balance(&kernel.counts());
        for _ in 0..5 {
            let census = ip_sockets_of(membership.tgids());
            let after = balance(&kernel.counts());
            if before == after {
                return Self { census, since: after, stale: false };
            }
            before = after;
        }
        Self { census: ip_sockets_of(membership.tgids()), since: before, stale: false }
    }

    /// Handles the processes that left the target.
    pub(super) fn note(&mut self, changes: &Changes) {
        self.stale |= !changes.left.is_empty();
    }

    /// The probe was detached or attached again, so its counts since then are incomplete.
    pub(super) const fn count_again(&mut self) {
        self.stale = true;
    }

    /// How many there are now; `None` when not all of them could be counted.
    pub(super) fn live(&mut self, kernel: &Kernel, membership: &Membership) -> Option<i64> {
        // While the probe is detached, only the current sockets can be counted.
        if self.stale || !kernel.is_attached("socket") {
            *self = Self::start(kernel, membership);
        }
        let counted = self.census.sockets.len() as i64;
        self.census.is_exact().then(|| counted + balance(&kernel.counts()) - self.since)
    }
}
