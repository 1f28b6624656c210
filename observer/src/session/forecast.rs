//! Whether observer is about to exceed its budget, between two windows in which its cost is measured.
//! A pure state machine; the code that looks at the host feeds it.
//!
//! The programs count their events all the time, in memory that observer has mapped, and the last
//! window showed what one event costs. Programs at every system call count no calls; but if there are
//! many more of them, the CPUs are busier.

use std::collections::BTreeMap;

/// What can be seen at any time.
#[derive(Clone, Debug, Default)]
pub(super) struct Glance {
    /// Now.
    pub(super) now_ns: u64,
    /// Events of each attached probe so far.
    pub(super) events: BTreeMap<&'static str, u64>,
    /// CPU time that the host has used so far; 0 where nobody needs it.
    pub(super) busy_seconds: f64,
}

/// What a window showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    /// Its begin,
    pub(super) begin: Glance,
    /// and its end.
    pub(super) end: Glance,
    /// What observer added, as a share of all CPU time.
    pub(super) share: f64,
    /// The part of observer's own threads.
    pub(super) own_share: f64,
    /// The part of the programs at every system call, if any are attached now.
    pub(super) calls_share: Option<f64>,
    /// Time of the other programs of each attached probe.
    pub(super) programs_ns: BTreeMap<&'static str, f64>,
}

/// An event costs this much before a window has shown it.
const EVENT_NS: f64 = 500.0;
/// Fewer events in a window do not show what one costs.
const EVENTS_MIN: u64 = 100;
/// The CPUs may become busier by so many without a closer look.
const BUSIER_CPUS: f64 = 0.25;
/// A window opens early at most so soon after the last one: the pause is doubled by each early window
/// that finds observer within its budget, and halved by each other one.
const SOONEST_NS: u64 = 200_000_000;
const SOONEST_MAX_NS: u64 = 2_000_000_000;

/// The state machine.
#[derive(Clone, Debug)]
pub(super) struct Forecast {
    budget: f64,
    cpus: f64,
    /// The part of a system call that the programs at every one make up.
    tax_part: f64,
    last: Glance,
    event_ns: BTreeMap<&'static str, f64>,
    own_share: f64,
    calls_share: Option<f64>,
    busy_cpus: f64,
    closed_ns: u64,
    soonest_ns: u64,
    is_early: bool,
}

impl Forecast {
    pub(super) fn new(budget: f64, cpus: f64, tax_part: f64, glance: Glance) -> Self {
        Self {
            budget,
            cpus,
            tax_part,
            last: glance,
            event_ns: BTreeMap::new(),
            own_share: 0.0,
            calls_share: None,
            busy_cpus: 0.0,
            closed_ns: 0,
            soonest_ns: SOONEST_NS,
            is_early: false,
        }
    }

    /// Whether the next window should open at once.
    pub(super) fn look(&mut self, glance: Glance) -> bool {
        let share = self.share(&glance);
        let is_due = glance.now_ns >= self.closed_ns + self.soonest_ns;
        self.last = glance;
        self.is_early = is_due && share > self.budget;
        self.is_early
    }

    /// A window was closed.
    pub(super) fn learn(&mut self, shown: Shown) {
        for (probe, ns) in shown.programs_ns {
            let of = |glance: &Glance| glance.events.get(probe).copied().unwrap_or_default();
            let events = of(&shown.end).saturating_sub(of(&shown.begin));
            if events >= EVENTS_MIN {
                self.event_ns.insert(probe, ns / events as f64);
            }
        }
        self.soonest_ns = match self.is_early && shown.share <= self.budget {
            true => self.soonest_ns * 2,
            false => self.soonest_ns / 2,
        }
        .clamp(SOONEST_NS, SOONEST_MAX_NS);
        self.is_early = false;
        self.own_share = shown.own_share;
        self.calls_share = shown.calls_share;
        // From the last look on: the host counts CPU time in ticks, and a window has few.
        self.busy_cpus = self.busy_cpus(&shown.end);
        self.closed_ns = shown.end.now_ns;
        self.last = shown.end;
    }

    /// What observer has added since the last look.
    fn share(&self, glance: &Glance) -> f64 {
        let since = |probe: &str, events: u64| {
            events.saturating_sub(self.last.events.get(probe).copied().unwrap_or(events))
        };
        let cost_ns = |(probe, events): (&&'static str, &u64)| {
            let event_ns = self.event_ns.get(probe).copied().unwrap_or(EVENT_NS);
            since(probe, *events) as f64 * event_ns
        };
        let programs_ns: f64 = glance.events.iter().map(cost_ns).sum();
        let calls_share = self.calls_share.map_or(0.0, |share| {
            let busier = self.busy_cpus(glance) - self.busy_cpus;
            // All of that time may be system calls.
            let more = if busier > BUSIER_CPUS { busier * self.tax_part } else { 0.0 };
            share + more / self.cpus
        });
        self.own_share + calls_share + programs_ns / (self.elapsed_ns(glance) * self.cpus)
    }

    fn busy_cpus(&self, glance: &Glance) -> f64 {
        (glance.busy_seconds - self.last.busy_seconds) * 1e9 / self.elapsed_ns(glance)
    }

    fn elapsed_ns(&self, glance: &Glance) -> f64 {
        glance.now_ns.saturating_sub(self.last.now_ns).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Two CPUs with a budget of 1 %, on which 0.6 of a system call are the programs'.
    struct Drill {
        forecast: Forecast,
        glance: Glance,
    }

    impl Drill {
        fn new() -> Self {
            let glance = Glance::default();
            Self { forecast: Forecast::new(0.01, 2.0, 0.6, glance.clone()), glance }
        }

        /// Time passes, with so many events a second, and so many CPUs in use.
        fn pass(&mut self, ms: u64, events_hz: u64, busy_cpus: f64) -> Glance {
            self.glance.now_ns += ms * MS;
            *self.glance.events.entry("runqueue").or_default() += events_hz * ms / 1_000;
            self.glance.busy_seconds += busy_cpus * ms as f64 / 1e3;
            self.glance.clone()
        }

        fn looks(&mut self, ms: u64, events_hz: u64, busy_cpus: f64) -> bool {
            let glance = self.pass(ms, events_hz, busy_cpus);
            self.forecast.look(glance)
        }

        /// A window of 100 ms in which an event costs 200 ns.
        fn window(&mut self, events_hz: u64, busy_cpus: f64, calls_share: Option<f64>) {
            let begin = self.glance.clone();
            let end = self.pass(100, events_hz, busy_cpus);
            let ns = (events_hz / 10) as f64 * 200.0;
            self.forecast.learn(Shown {
                begin,
                end,
                share: ns / 2e8 + calls_share.unwrap_or_default(),
                own_share: 0.0,
                calls_share,
                programs_ns: BTreeMap::from([("runqueue", ns)]),
            });
        }
    }

    #[test]
    fn a_window_opens_when_the_events_would_cost_more_than_the_budget() {
        let mut drill = Drill::new();
        drill.window(2_000, 0.1, None);
        // At 200 ns, 1 % of two CPUs are 100,000 events a second.
        assert!(!drill.looks(250, 99_000, 2.0));
        assert!(drill.looks(250, 101_000, 2.0));
        drill.window(101_000, 2.0, None);
        assert!(!drill.looks(250, 99_000, 2.0));
        assert!(!drill.looks(250, 0, 0.0));
    }

    #[test]
    fn an_event_that_was_not_seen_in_a_window_is_taken_for_expensive() {
        let mut drill = Drill::new();
        drill.window(900, 0.1, None);
        assert!(!drill.looks(250, 39_000, 0.1));
        assert!(drill.looks(250, 41_000, 0.1));
        drill.window(41_000, 0.1, None);
        assert!(!drill.looks(500, 99_000, 0.1), "it has been seen now");
    }

    #[test]
    fn busier_cpus_open_a_window_where_programs_are_at_every_call() {
        for (calls_share, busy_cpus, opens) in [
            (Some(0.001), 0.7, false),
            (Some(0.001), 0.8, true),
            (Some(0.02), 0.0, true),
            (None, 2.0, false),
        ] {
            let mut drill = Drill::new();
            drill.window(100, 0.5, calls_share);
            assert_eq!(drill.looks(250, 100, busy_cpus), opens, "{calls_share:?} {busy_cpus}");
        }
        // On 100 CPUs a quarter of one is far less than the budget.
        let mut drill = Drill::new();
        drill.forecast.cpus = 100.0;
        drill.window(100, 50.0, Some(0.001));
        assert!(!drill.looks(250, 100, 51.0));
        assert!(drill.looks(250, 100, 52.0));
    }

    #[test]
    fn windows_that_find_nothing_open_ever_more_rarely() {
        let mut drill = Drill::new();
        // Bursts that end when a window opens.
        drill.window(100, 0.1, Some(0.001));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            let closed_ns = drill.glance.now_ns;
            while !drill.looks(100, 100, 1.0) {}
            pauses.push((drill.glance.now_ns - closed_ns) / MS);
            drill.window(100, 0.1, Some(0.001));
        }
        assert_eq!(pauses, [200, 400, 800, 1_600, 2_000, 2_000]);
        // Each window at its usual time gives half of that back, and a real excess too.
        drill.window(100, 0.1, Some(0.001));
        assert!(!drill.looks(900, 100, 1.0));
        assert!(drill.looks(100, 100, 1.0));
        drill.window(300_000, 1.0, Some(0.001));
        assert!(!drill.looks(400, 100, 0.1));
        assert!(drill.looks(100, 300_000, 1.0));
    }
}
