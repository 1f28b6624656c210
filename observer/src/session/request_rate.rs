//! How many requests are recorded: all of them up to a rate, above it those of some blocks of time.

use std::time::Instant;

use observer_ebpf::wire::REQUEST_BLOCKS;

use crate::kernel::Kernel;

/// So many requests are recorded a second, on average. Each takes about a microsecond of observer, so
/// that they stay far below the budget of one percent.
const RECORDED_HZ: f64 = 4_000.0;

/// Follows the rate.
pub(super) struct RequestRate {
    requests: u64,
    at: Instant,
    blocks: u64,
}

impl RequestRate {
    /// Records all requests at first.
    pub(super) fn start(kernel: &Kernel) -> Self {
        kernel.record_requests(REQUEST_BLOCKS);
        Self { requests: kernel.requests(), at: Instant::now(), blocks: REQUEST_BLOCKS }
    }

    /// Adapts what is recorded to the rate since the last call.
    pub(super) fn tick(&mut self, kernel: &Kernel) {
        let (requests, now) = (kernel.requests(), Instant::now());
        let seconds = now.duration_since(self.at).as_secs_f64();
        let rate_hz = requests.wrapping_sub(self.requests) as f64 / seconds.max(0.001);
        (self.requests, self.at) = (requests, now);
        let blocks = blocks(rate_hz);
        if blocks == self.blocks {
            return;
        }
        if self.blocks == REQUEST_BLOCKS {
            tracing::info!(
                "{rate_hz:.0} requests a second: only those of some blocks of time are recorded, about \
                 {RECORDED_HZ} a second"
            );
        }
        self.blocks = blocks;
        kernel.record_requests(blocks);
    }
}

/// The blocks that are recorded at a rate.
fn blocks(rate_hz: f64) -> u64 {
    let part = RECORDED_HZ / rate_hz.max(RECORDED_HZ);
    ((part * REQUEST_BLOCKS as f64) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn above_the_rate_a_part_of_the_blocks_is_recorded() {
        assert_eq!(blocks(0.0), REQUEST_BLOCKS);
        assert_eq!(blocks(RECORDED_HZ), REQUEST_BLOCKS);
        assert_eq!(blocks(2.0 * RECORDED_HZ), REQUEST_BLOCKS / 2);
        assert_eq!(blocks(10.0 * RECORDED_HZ), 6);
        assert_eq!(blocks(1e9), 1);
    }
}
