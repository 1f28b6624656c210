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
    /// Port of the connection at the generator's end; `None` when the generator does not say, or no
    /// connection was used.
    pub local_port: Option<u16>,
}

impl Sample {
    /// A request that succeeded, of which nothing but its times is known.
    #[cfg(test)]
    pub(crate) const fn of_times(start: u64, end: u64) -> Self {
        Self {
            intended_start: None,
            start: MonoNanos(start),
            end: MonoNanos(end),
            precision_ns: 1,
            status: Some(200),
            ok: true,
            error: None,
            seq: None,
            local_port: None,
        }
    }

    /// When the request should have begun: the intended start where known.
    #[must_use]
    pub fn begin(&self) -> MonoNanos {
        self.intended_start.unwrap_or(self.start)
    }

    /// Whether an answer came, even one that says that the request failed.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.ok || self.status.is_some()
    }

    /// Adds this to all times, nanoseconds.
    pub(crate) fn move_by(&mut self, by_ns: i64) {
        let times = [&mut self.start, &mut self.end].into_iter().chain(&mut self.intended_start);
        times.for_each(|time| *time = MonoNanos(time.0.saturating_add_signed(by_ns)));
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

    /// What kind of failure it is, as failures are counted; `None` for a success. Generators write
    /// `kind: detail` or `what was tried: what went wrong`.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        if self.ok {
            return None;
        }
        let is_word = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        Some(match (self.status, self.error.as_deref()) {
            (Some(status), error) if error.is_none() || !(200..400).contains(&status) => {
                format!("status_{status}")
            }
            (_, Some(error)) => {
                let kind = error.split(": ").next().filter(|kind| is_word(kind));
                let kind = kind.or_else(|| error.rsplit(": ").next()).unwrap_or(error);
                crate::text::clean(kind, KIND_LENGTH)
            }
            _ => "no_answer".to_owned(),
        })
    }

    /// How late the generator sent it; 0 when the intended start is unknown.
    #[must_use]
    pub fn lateness_ns(&self) -> u64 {
        self.start.since(self.begin())
    }
}

/// Longest name of a kind of failure.
const KIND_LENGTH: usize = 60;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_counted_by_its_kind() {
        let kind = |ok: bool, status: Option<u16>, error: Option<&str>| {
            let (start, end) = (MonoNanos(1), MonoNanos(2));
            let error = error.map(str::to_owned);
            let intended_start = None;
            let sample = Sample {
                intended_start,
                start,
                end,
                precision_ns: 1,
                status,
                ok,
                error,
                seq: None,
                local_port: None,
            };
            sample.failure()
        };
        assert_eq!(kind(true, Some(200), None), None);
        assert_eq!(kind(false, None, None).as_deref(), Some("no_answer"));
        for (status, error, wanted) in [
            (Some(503), None, "status_503"),
            (Some(503), Some("503 Service Unavailable"), "status_503"),
            (Some(200), Some("not_http: no length"), "not_http"),
            (None, Some("refused: connect: Connection refused (os error 111)"), "refused"),
            (
                None,
                Some("Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connection refused"),
                "connection refused",
            ),
            (None, Some("EOF"), "EOF"),
            (None, Some("a\u{1b}[31m"), "a?[31m"),
        ] {
            assert_eq!(kind(false, status, error).as_deref(), Some(wanted), "{error:?}");
        }
    }
}
