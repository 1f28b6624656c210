//! When requests are due, independently of the server.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Distribution of the requests over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arrivals {
    /// One every 1/rate seconds.
    Constant,
    /// Independent of each other, 1/rate seconds apart on average, as many users would send.
    Poisson,
}

impl Arrivals {
    /// The name used in outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// Offsets from the schedule's start at which requests are due, in order.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    rate_hz: f64,
    duration_ns: u64,
    sent: u64,
    /// Poisson only: seconds would lose nanoseconds after a day in a float, nanoseconds do not.
    at_ns: f64,
    random: StdRng,
}

impl Schedule {
    /// Requests at `rate_hz` for `duration_ns`; the same seed gives the same random arrivals.
    #[must_use]
    pub fn new(arrivals: Arrivals, rate_hz: f64, duration_ns: u64, seed: u64) -> Self {
        Self {
            arrivals,
            rate_hz,
            duration_ns,
            sent: 0,
            at_ns: 0.0,
            random: StdRng::seed_from_u64(seed),
        }
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let at_ns = match self.arrivals {
            // From the request's number, not by adding up: rounding does not accumulate.
            Arrivals::Constant => self.sent as f64 * 1e9 / self.rate_hz,
            Arrivals::Poisson => {
                let uniform: f64 = self.random.random();
                self.at_ns -= (1.0 - uniform).ln() * 1e9 / self.rate_hz;
                self.at_ns
            }
        };
        self.sent += 1;
        let at_ns = at_ns.round() as u64;
        (at_ns < self.duration_ns).then_some(at_ns)
    }
}

/// Whether the request of this number is among a random share (0 to 1) of all requests: the same ones for the
/// same seed. (The mixer is SplitMix64's.)
#[must_use]
pub fn is_chosen(seed: u64, number: u64, share: f64) -> bool {
    let mut mixed = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / ((1u64 << 53) as f64) < share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_do_not_drift() {
        let due: Vec<u64> = Schedule::new(Arrivals::Constant, 3.0, 100_000_000_000, 0).collect();
        assert_eq!(due.len(), 300);
        assert_eq!(&due[..3], &[0, 333_333_333, 666_666_667]);
        assert_eq!(due[297], 99_000_000_000);
    }

    #[test]
    fn poisson_arrivals_have_the_mean_and_the_spread_of_their_kind() {
        let due: Vec<u64> = Schedule::new(Arrivals::Poisson, 1_000.0, 100_000_000_000, 7).collect();
        // 100,000 expected, standard deviation 316.
        assert!(due.len().abs_diff(100_000) < 1_600, "{}", due.len());
        assert!(due.is_sorted());
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential's standard deviation is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "{}", variance.sqrt() / mean);
        let again: Vec<u64> =
            Schedule::new(Arrivals::Poisson, 1_000.0, 100_000_000_000, 7).collect();
        assert_eq!(due, again);
        let other: Vec<u64> =
            Schedule::new(Arrivals::Poisson, 1_000.0, 100_000_000_000, 8).collect();
        assert_ne!(due, other);
    }
}
