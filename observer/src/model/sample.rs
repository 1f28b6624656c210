//! Samples: requests as the load generator saw them.

use crate::clock::MonoNanos;

/// One request, on the kernel's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When the schedule wanted it sent; `None` when the generator does not say (the sample is
    /// then open to coordinated omission).
    pub intended_start: Option<MonoNanos>,
    /// When it was sent.
    pub start: MonoNanos,
    /// When the answer was complete, or the failure known.
    pub end: MonoNanos,
    /// Resolution of the times.
    pub precision_ns: u64,
    /// HTTP status; `None` when there was no answer.
    pub status: Option<u16>,
    /// The generator counts it as a success.
    pub ok: bool,
    /// What went wrong.
    pub error: Option<String>,
    /// The generator's own number.
    pub seq: Option<u64>,
}

impl Sample {
    /// When the request should have begun: the intended start where known.
    #[must_use]
    pub fn begin(&self) -> MonoNanos {
        self.intended_start.unwrap_or(self.start)
    }

    /// Latency as a user of the service sees it: end minus intended start (or start).
    #[must_use]
    pub fn response_ns(&self) -> u64 {
        self.end.since(self.begin())
    }

    /// Length of the part of `[start, end)` inside the request.
    #[must_use]
    pub fn inside_ns(&self, start: MonoNanos, end: MonoNanos) -> u64 {
        end.min(self.end).since(start.max(self.begin()))
    }

    /// How late the generator sent it; 0 when the intended start is unknown.
    #[must_use]
    pub fn lateness_ns(&self) -> u64 {
        self.start.since(self.begin())
    }
}

/// Which samples are slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SlowSpec {
    /// Above this quantile of response time, in (0, 1).
    Quantile(f64),
    /// Above this many nanoseconds.
    Threshold(u64),
}

impl Default for SlowSpec {
    fn default() -> Self {
        Self::Quantile(0.99)
    }
}

impl std::fmt::Display for SlowSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            // 0.999 * 100 has no short decimal form in binary; users do not write more decimals
            // than these.
            Self::Quantile(q) => {
                let text = format!("{:.9}", q * 100.0);
                write!(f, "p{}", text.trim_end_matches('0').trim_end_matches('.'))
            }
            Self::Threshold(ns) if ns % 1_000_000 == 0 => write!(f, "{}ms", ns / 1_000_000),
            Self::Threshold(ns) => write!(f, "{}us", *ns as f64 / 1e3),
        }
    }
}
