//! The pauses of a probe that was detached while a run went on.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Coverage, ProbeState};
use crate::clock::MonoNanos;

/// Pauses kept with their times; all of them are counted.
const PAUSES_MAX: usize = 500;

/// One pause of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Detached since.
    pub from_ns: MonoNanos,
    /// Attached again; `None` when it was not.
    pub until_ns: Option<MonoNanos>,
}

/// When a probe was detached. Its numbers do not contain what happened during a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Why, the last time.
    pub reason: String,
    /// How often.
    pub times: u64,
    /// Total time, without a current pause.
    pub total_ns: u64,
    /// Since when it is detached; `None` while it is attached.
    pub since_ns: Option<MonoNanos>,
    /// The pauses, the first few hundred.
    pub pauses: Vec<Pause>,
}

impl Detached {
    /// The probe is detached now.
    pub fn begin(&mut self, now: MonoNanos, reason: &str) {
        if self.is_under_way() {
            return;
        }
        reason.clone_into(&mut self.reason);
        self.times += 1;
        self.since_ns = Some(now);
        if self.pauses.len() < PAUSES_MAX {
            self.pauses.push(Pause { from_ns: now, until_ns: None });
        }
    }

    /// The probe is attached again.
    pub fn end(&mut self, now: MonoNanos) {
        let Some(since) = self.since_ns.take() else { return };
        self.total_ns += now.since(since);
        if let Some(pause) = self.pauses.last_mut().filter(|pause| pause.from_ns == since) {
            pause.until_ns = Some(now);
        }
    }

    /// Whether the probe is detached now.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.since_ns.is_some()
    }

    /// The same pauses, including the time up to `now` of a current one.
    #[must_use]
    pub fn until(&self, now: MonoNanos) -> Self {
        let running_ns = self.since_ns.map_or(0, |since| now.since(since));
        Self { total_ns: self.total_ns + running_ns, ..self.clone() }
    }
}

impl fmt::Display for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.total_ns as f64 / 1e9;
        let times =
            if self.times == 1 { "once".to_owned() } else { format!("{} times", self.times) };
        write!(f, "detached {times}, for {seconds:.1} s in total: {}", self.reason)
    }
}

impl Coverage {
    /// The pauses until `now`, if the probe was detached at any time.
    #[must_use]
    pub fn with_pauses(mut self, detached: &Detached, now: MonoNanos) -> Self {
        let detached = detached.until(now);
        if self.state == ProbeState::Attached {
            self.state = ProbeState::Partial;
        }
        let told = detached.to_string();
        self.reason = Some(match self.reason {
            Some(reason) => format!("{told}; {reason}"),
            None => told,
        });
        self.detached = Some(detached);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_and_all_are_counted() {
        let mut detached = Detached::default();
        for turn in 0..2 * PAUSES_MAX as u64 {
            detached.begin(MonoNanos(turn * 100), "it is dear");
            detached.begin(MonoNanos(turn * 100 + 5), "twice is once");
            detached.end(MonoNanos(turn * 100 + 10));
            detached.end(MonoNanos(turn * 100 + 20));
        }
        assert_eq!((detached.times, detached.pauses.len()), (2 * PAUSES_MAX as u64, PAUSES_MAX));
        assert_eq!(detached.total_ns, 2 * PAUSES_MAX as u64 * 10);
        let last = detached.pauses.last().expect("kept");
        assert_eq!(last.until_ns, Some(MonoNanos(last.from_ns.0 + 10)));
        assert_eq!(detached.reason, "it is dear");
    }

    #[test]
    fn a_pause_that_is_under_way_counts_up_to_now_and_makes_coverage_partial() {
        let mut detached = Detached::default();
        detached.begin(MonoNanos(1_000_000_000), "it is dear");
        let whole = Coverage {
            state: ProbeState::Attached,
            tier: Some("tp_btf".into()),
            reason: None,
            detached: None,
        };
        let coverage = whole.with_pauses(&detached, MonoNanos(3_500_000_000));
        assert_eq!(coverage.state, ProbeState::Partial);
        let reason = coverage.reason.expect("reported");
        assert_eq!(reason, "detached once, for 2.5 s in total: it is dear");
        assert_eq!(coverage.detached.expect("reported").total_ns, 2_500_000_000);
        detached.end(MonoNanos(4_000_000_000));
        assert_eq!(detached.until(MonoNanos(9_000_000_000)).total_ns, 3_000_000_000);
    }
}
