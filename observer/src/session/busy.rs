//! Whether the host has become busier than it was when the programs' cost was last measured.

use std::time::{Duration, Instant};

/// Growth of the busy share of all CPUs that makes another measurement worth its cost. A smaller one
/// hardly changes what the programs add to the host.
const BUSIER: f64 = 0.05;
/// The kernel counts idle time in hundredths of a second; over this time that is exact enough.
const LEAST_SPAN: Duration = Duration::from_millis(200);

/// Compares the host's busy share with the highest one at which the cost was measured.
#[derive(Debug, Default)]
pub(super) struct Busy {
    cpus: f64,
    /// The last reading: when, and the idle time of all CPUs together.
    last: Option<(Instant, f64)>,
    measured: f64,
}

impl Busy {
    pub(super) fn new(cpus: f64) -> Self {
        Self { cpus, ..Self::default() }
    }

    /// Whether the last reading is old enough for another one to say something.
    pub(super) fn wants_reading(&self, now: Instant) -> bool {
        self.last.is_none_or(|(then, _)| now.saturating_duration_since(then) >= LEAST_SPAN)
    }

    /// Takes a reading; `true` if the host is busier than in any measurement so far.
    pub(super) fn has_grown(&mut self, now: Instant, idle_seconds: f64) -> bool {
        self.share(now, idle_seconds).is_some_and(|share| share > self.measured + BUSIER)
    }

    /// The cost is measured now.
    pub(super) fn measured(&mut self, now: Instant, idle_seconds: f64) {
        if let Some(share) = self.share(now, idle_seconds) {
            self.measured = self.measured.max(share);
        }
    }

    /// A probe came back: no measurement so far includes it.
    pub(super) fn forget(&mut self) {
        self.measured = 0.0;
    }

    /// The busy share since the last reading; `None` if that was only just now.
    fn share(&mut self, now: Instant, idle_seconds: f64) -> Option<f64> {
        let Some((then, idle)) = self.last else {
            self.last = Some((now, idle_seconds));
            return None;
        };
        let span = now.saturating_duration_since(then);
        if span < LEAST_SPAN {
            return None;
        }
        self.last = Some((now, idle_seconds));
        let all_seconds = span.as_secs_f64() * self.cpus;
        Some((1.0 - (idle_seconds - idle) / all_seconds).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of two CPUs, read every quarter of a second.
    struct Host {
        busy: Busy,
        now: Instant,
        idle_seconds: f64,
    }

    impl Host {
        fn new() -> Self {
            let mut busy = Busy::new(2.0);
            let now = Instant::now();
            assert!(!busy.has_grown(now, 0.0), "one reading says nothing");
            Self { busy, now, idle_seconds: 0.0 }
        }

        fn later(&mut self, share: f64) {
            self.now += Duration::from_millis(250);
            self.idle_seconds += 0.25 * 2.0 * (1.0 - share);
        }

        fn grows(&mut self, share: f64) -> bool {
            self.later(share);
            self.busy.has_grown(self.now, self.idle_seconds)
        }

        fn measure(&mut self, share: f64) {
            self.later(share);
            self.busy.measured(self.now, self.idle_seconds);
        }
    }

    #[test]
    fn a_load_that_begins_is_noticed_once() {
        let mut host = Host::new();
        host.measure(0.02);
        assert!(!host.grows(0.03) && !host.grows(0.06));
        assert!(host.grows(0.5), "the load begins");
        host.measure(0.5);
        // It comes and goes, and the cost at that level is known.
        for share in [0.0, 0.5, 0.1, 0.52] {
            assert!(!host.grows(share), "{share}");
        }
        assert!(host.grows(0.9), "more load");
    }

    #[test]
    fn a_probe_that_came_back_is_measured_at_the_next_load() {
        let mut host = Host::new();
        host.measure(0.9);
        assert!(!host.grows(0.9));
        host.busy.forget();
        assert!(!host.grows(0.0) && host.grows(0.9));
    }

    #[test]
    fn readings_in_quick_succession_say_nothing() {
        let mut host = Host::new();
        assert!(host.grows(1.0));
        host.now += Duration::from_millis(20);
        assert!(!host.busy.has_grown(host.now, host.idle_seconds));
    }
}
