//! The target's live sockets, and what the BPF programs themselves cost.

use std::time::{Duration, Instant};

use observer_ebpf::wire::{Counter, Counts};

use crate::host::sockets::{SocketCensus, ip_sockets_of};
use crate::kernel::{Kernel, RunTimeStatistics};
use crate::target::{Changes, Membership};

/// Live IP sockets of the target: a census, and what the kernel side counted since.
pub(super) struct SocketWatch {
    census: SocketCensus,
    since: i64,
    /// A process of the target is gone. The kernel side is told before it closes its descriptors,
    /// and counts no release of those that were there before the probe.
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
    /// times: a busy service never rests, and a socket more or less is then the least of it).
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

    /// Takes note of who left the target.
    pub(super) fn note(&mut self, changes: &Changes) {
        self.stale |= !changes.left.is_empty();
    }

    /// How many there are now; `None` when the census could not see all of them.
    pub(super) fn live(&mut self, kernel: &Kernel, membership: &Membership) -> Option<i64> {
        if self.stale {
            *self = Self::start(kernel, membership);
        }
        let counted = self.census.sockets.len() as i64;
        self.census.is_exact().then(|| counted + balance(&kernel.counts()) - self.since)
    }
}

/// The kernel's BPF run-time statistics, on for a short window now and then: they cost two clock
/// reads a program run, which would otherwise be the larger part of what is measured.
pub(super) struct SelfWatch {
    statistics: Option<RunTimeStatistics>,
    changed: Instant,
    on: Duration,
    total: Instant,
}

impl SelfWatch {
    const WINDOW: Duration = Duration::from_millis(100);
    /// Pauses are as long as all the time before them, within these: switching the statistics on and
    /// off rewrites the kernel's code, on all CPUs.
    const PAUSES: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(15)];

    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            statistics: RunTimeStatistics::start(),
            changed: now,
            on: Duration::ZERO,
            total: now,
        }
    }

    pub(super) fn tick(&mut self) {
        let elapsed = self.changed.elapsed();
        let [shortest, longest] = Self::PAUSES;
        if self.statistics.is_some() && elapsed >= Self::WINDOW {
            self.statistics = None;
            self.on += elapsed;
            self.changed = Instant::now();
        } else if self.statistics.is_none()
            && elapsed >= (self.total.elapsed() / 2).clamp(shortest, longest)
        {
            self.statistics = RunTimeStatistics::start();
            self.changed = Instant::now();
        }
    }

    /// Until the statistics are to be switched off; `None` while they are not on.
    pub(super) fn window_left(&self) -> Option<Duration> {
        self.statistics.as_ref().map(|_| Self::WINDOW.saturating_sub(self.changed.elapsed()))
    }

    /// Ends the measurement; by how much the sampled figures are to be multiplied.
    pub(super) fn scale(&mut self) -> f64 {
        if self.statistics.take().is_some() {
            self.on += self.changed.elapsed();
        }
        let on = self.on.as_secs_f64();
        if on > 0.0 { self.total.elapsed().as_secs_f64() / on } else { 0.0 }
    }
}
