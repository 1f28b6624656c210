//! The budget: what observer may add to the host, as a share of all CPU time. A pure state machine;
//! the code that measures the programs feeds it.
//!
//! A burst, as at the start of a load, is not worth a gap in what observer sees. Therefore the machine
//! adds up the excess, and sheds probes when it has reached one second of the budget: at twice the
//! budget that takes a second, at eleven times a tenth of one. It sheds probes that make up a
//! considerable part of the excess: first a probe whose stalls are not a cause of latency, then the
//! most expensive one.
//! A probe that was shed is tried again after a while. The trial is as short as one measurement, so
//! that it costs next to nothing, and each one that fails doubles the wait for the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// How much observer may add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget(Option<f64>);

impl Budget {
    /// Everything stays attached, whatever it costs.
    pub const NONE: Self = Self(None);

    /// The bound as a share of all CPU time; `None` when there is none.
    #[must_use]
    pub const fn share(self) -> Option<f64> {
        self.0
    }

    /// How much of the share of observer's own threads counts.
    pub(super) fn counted(self, own_share: f64) -> f64 {
        self.0.map_or(own_share, |budget| own_share.min(budget * OWN_PART))
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(Some(0.01))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(share) => write!(f, "{}%", (share * 1e4).round() / 100.0),
            None => f.write_str("none"),
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::NONE);
        }
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match percent {
            Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(Self(Some(percent / 100.0))),
            _ => Err(format!(
                "'{text}' is neither a share of CPU time above 0 % and up to 100 %, like 1% or \
                 0.5%, nor none"
            )),
        }
    }
}

/// Probes are shed when the excess over the budget, added up over the time that was measured, is as
/// much as this many seconds of the whole budget.
const EXCESS_SECONDS: f64 = 1.0;
/// First wait before a shed probe is tried again; doubled by each trial that fails.
const HOLD_NS: u64 = 10_000_000_000;
const HOLD_MAX_NS: u64 = 320_000_000_000;
/// A probe on trial stays when all together is below this part of the budget.
const STAY_SHARE: f64 = 0.8;
/// Probes whose programs cost less than this part of the excess are not shed for it.
const BLAME_SHARE: f64 = 0.1;
/// Of what observer's own threads take, no more than this part of the budget counts: shedding probes takes
/// hardly any of it back, and each measurement that follows adds to it.
const OWN_PART: f64 = 0.5;

/// One probe the machine may shed.
#[derive(Clone, Debug)]
pub(super) struct Sheddable {
    /// Its name.
    pub(super) probe: &'static str,
    /// Its programs; other probes may name some of them as well.
    pub(super) programs: Vec<&'static str>,
    /// Its stalls can be the cause of a slow request, or it tells which threads served the requests.
    pub(super) has_causes: bool,
}

/// What was measured over one short window.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Now.
    pub(super) now_ns: u64,
    /// Length of the window.
    pub(super) window_seconds: f64,
    /// What observer's own threads take in the long run, as a share of all CPU time, as far as it counts
    /// ([`Budget::counted`]).
    pub(super) own_share: f64,
    /// The same share of each attached program, with its hook.
    pub(super) programs: BTreeMap<&'static str, f64>,
}

impl Measured {
    /// Everything.
    pub(super) fn share(&self) -> f64 {
        self.own_share + self.programs.values().sum::<f64>()
    }
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Detach the probe, for this reason.
    Detach(&'static str, String),
    /// Attach the probe again, and measure at once.
    Attach(&'static str),
}

#[derive(Clone, Debug)]
struct State {
    sheddable: Sheddable,
    /// When it may be tried again; `None` while it is attached.
    due_ns: Option<u64>,
    hold_ns: u64,
    /// When a trial last brought it back.
    back_ns: Option<u64>,
}

impl State {
    fn is_due(&self, now_ns: u64) -> bool {
        self.due_ns.is_some_and(|due_ns| now_ns >= due_ns)
    }
}

/// The state machine.
#[derive(Clone, Debug)]
pub(super) struct BudgetControl {
    budget: Budget,
    probes: Vec<State>,
    /// The probe that was attached again for one measurement.
    trial: Option<&'static str>,
    /// Share above the budget times seconds, in the windows since it was last at or below it.
    excess_seconds: f64,
}

impl BudgetControl {
    pub(super) fn new(budget: Budget, probes: Vec<Sheddable>) -> Self {
        let state = |sheddable| State { sheddable, due_ns: None, hold_ns: HOLD_NS, back_ns: None };
        Self {
            budget,
            probes: probes.into_iter().map(state).collect(),
            trial: None,
            excess_seconds: 0.0,
        }
    }

    /// Processes a measurement and returns what to do.
    pub(super) fn step(&mut self, measured: &Measured) -> Vec<Step> {
        let Some(budget) = self.budget.share() else { return Vec::new() };
        let all = measured.share();
        let trial = self.trial.take();
        if let Some(probe) = trial
            && all > budget * STAY_SHARE
        {
            let reason = self.reason(budget, all);
            return self.shed(probe, measured.now_ns, true, reason).into_iter().collect();
        }
        if let Some(state) = trial.and_then(|probe| self.state(probe)) {
            state.back_ns = Some(measured.now_ns);
        }
        let over = self.excess_seconds + (all - budget) * measured.window_seconds;
        self.excess_seconds = over.max(0.0);
        let mut steps = Vec::new();
        if over > budget * EXCESS_SECONDS && all > budget {
            self.excess_seconds = 0.0;
            steps = self.shed_excess(budget, measured);
        }
        if !steps.is_empty() || all > budget * STAY_SHARE {
            return steps;
        }
        // One at a time, and first the probes whose stalls can be a cause.
        let due = self.probes.iter().filter(|state| state.is_due(measured.now_ns));
        let next = due.max_by_key(|state| state.sheddable.has_causes);
        let Some(probe) = next.map(|state| state.sheddable.probe) else { return Vec::new() };
        if let Some(state) = self.state(probe) {
            state.due_ns = None;
        }
        self.trial = Some(probe);
        vec![Step::Attach(probe)]
    }

    /// The probe could not be attached again: it stays shed, and waits once more.
    pub(super) fn refused(&mut self, probe: &str, now_ns: u64) {
        self.trial = None;
        if let Some(state) = self.state(probe) {
            state.due_ns = Some(now_ns + state.hold_ns);
        }
    }

    /// Whether the next measurement is needed at once: a probe is on trial, or the excess is not yet
    /// enough to shed one.
    pub(super) fn is_waiting(&self) -> bool {
        self.trial.is_some() || self.excess_seconds > 0.0
    }

    /// How long it takes at what was measured last until the excess is enough to shed probes, or is
    /// gone; 0 while a probe is on trial.
    pub(super) fn seconds_to_step(&self, measured: &Measured) -> f64 {
        let Some(budget) = self.budget.share().filter(|_| self.trial.is_none()) else { return 0.0 };
        match measured.share() - budget {
            excess if excess > 0.0 => (budget * EXCESS_SECONDS - self.excess_seconds) / excess,
            below => self.excess_seconds / -below,
        }
        .max(0.0)
    }

    /// Whether a probe that was shed may be tried again, if the next measurement leaves room for it.
    pub(super) fn is_trial_due(&self, now_ns: u64) -> bool {
        self.probes.iter().any(|state| state.is_due(now_ns))
    }

    fn shed_excess(&mut self, budget: f64, measured: &Measured) -> Vec<Step> {
        let mut steps = Vec::new();
        let cost_of = |programs: &BTreeSet<&str>| -> f64 {
            programs.iter().filter_map(|name| measured.programs.get(name)).sum()
        };
        let before = measured.share();
        let mut left = before;
        while left > budget {
            let excess = left - budget;
            let dearest = self
                .probes
                .iter()
                .filter(|state| state.due_ns.is_none())
                .map(|state| {
                    let programs = state.sheddable.programs.iter().copied().collect();
                    (cost_of(&programs), &state.sheddable)
                })
                .filter(|(cost, _)| *cost > 0.0 && *cost >= excess * BLAME_SHARE)
                .max_by(|(one, first), (other, second)| {
                    let least = |probe: &Sheddable| !probe.has_causes;
                    least(first).cmp(&least(second)).then(one.total_cmp(other))
                })
                .map(|(_, sheddable)| sheddable.probe);
            let Some(probe) = dearest else { break };
            let reason = self.reason(budget, before);
            steps.extend(self.shed(probe, measured.now_ns, false, reason));
            // A program is detached with the last probe that uses it.
            let attached = self.probes.iter().filter(|state| state.due_ns.is_none());
            let needed: BTreeSet<&str> =
                attached.flat_map(|state| state.sheddable.programs.iter().copied()).collect();
            let sheddable = self.probes.iter().flat_map(|state| &state.sheddable.programs);
            let gone: BTreeSet<&str> =
                sheddable.copied().filter(|program| !needed.contains(program)).collect();
            left = before - cost_of(&gone);
        }
        steps
    }

    fn shed(
        &mut self,
        probe: &'static str,
        now_ns: u64,
        failed_trial: bool,
        reason: String,
    ) -> Option<Step> {
        let state = self.state(probe)?;
        // A probe that has to be shed again soon was brought back too early.
        let soon = state.back_ns.take().is_some_and(|back_ns| now_ns - back_ns < 2 * state.hold_ns);
        state.hold_ns = match failed_trial || soon {
            true => (2 * state.hold_ns).min(HOLD_MAX_NS),
            false => HOLD_NS,
        };
        state.due_ns = Some(now_ns + state.hold_ns);
        Some(Step::Detach(probe, reason))
    }

    fn reason(&self, budget: f64, all: f64) -> String {
        let bound = Budget(Some(budget));
        format!("observer would have added {:.1} % CPU time, the budget is {bound}", all * 100.0)
    }

    fn state(&mut self, probe: &str) -> Option<&mut State> {
        self.probes.iter_mut().find(|state| state.sheddable.probe == probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A host whose programs run at given rates, measured for a tenth of a second every two seconds,
    /// and at once when the machine waits for it.
    struct Drill {
        control: BudgetControl,
        attached: BTreeSet<&'static str>,
        now_ns: u64,
        log: Vec<(u64, Step)>,
        /// Share of CPU time, integrated over time.
        spent_ns: f64,
        budget: Budget,
        own_share: f64,
    }

    fn probes() -> Vec<Sheddable> {
        let of = |probe, programs: &[&'static str], has_causes| Sheddable {
            probe,
            programs: programs.to_vec(),
            has_causes,
        };
        vec![
            of("runqueue", &["sched_switch"], true),
            of("fault", &["page_fault", "fault_end"], true),
            of("mm_syscall", &["sys_enter", "sys_exit"], true),
            of("socket", &["create", "sys_exit", "release"], false),
        ]
    }

    impl Drill {
        fn new(budget: &str) -> Self {
            let budget = budget.parse().expect("a budget");
            Self {
                control: BudgetControl::new(budget, probes()),
                attached: probes().iter().map(|probe| probe.probe).collect(),
                now_ns: 0,
                log: Vec::new(),
                spent_ns: 0.0,
                budget,
                own_share: 0.0005,
            }
        }

        fn run(&mut self, seconds: u64, rates: &[(&'static str, f64)]) {
            let end_ns = self.now_ns + seconds * SECOND;
            while self.now_ns < end_ns {
                let running: BTreeSet<&str> = probes()
                    .iter()
                    .filter(|probe| self.attached.contains(probe.probe))
                    .flat_map(|probe| probe.programs.clone())
                    .collect();
                let programs =
                    rates.iter().copied().filter(|(name, _)| running.contains(name)).collect();
                let pause_ns = if self.control.is_waiting() { SECOND / 10 } else { 2 * SECOND };
                self.now_ns += pause_ns;
                let measured = Measured {
                    now_ns: self.now_ns,
                    window_seconds: 0.1,
                    own_share: self.budget.counted(self.own_share),
                    programs,
                };
                self.spent_ns += measured.share() * pause_ns as f64;
                for step in self.control.step(&measured) {
                    match &step {
                        Step::Detach(probe, _) => assert!(self.attached.remove(probe), "{step:?}"),
                        Step::Attach(probe) => assert!(self.attached.insert(probe), "{step:?}"),
                    }
                    self.log.push((self.now_ns, step));
                }
            }
        }

        fn missing(&self) -> Vec<&'static str> {
            let names = probes().into_iter().map(|probe| probe.probe);
            names.filter(|probe| !self.attached.contains(probe)).collect()
        }
    }

    #[test]
    fn budgets_are_shares_or_none() {
        assert_eq!("1%".parse(), Ok(Budget::default()));
        assert_eq!("none".parse(), Ok(Budget::NONE));
        assert_eq!("0.25%".parse::<Budget>().unwrap().to_string(), "0.25%");
        assert_eq!(
            (Budget::default().to_string(), Budget::NONE.to_string()),
            ("1%".into(), "none".into())
        );
        for wrong in ["", "1", "%", "0%", "-1%", "101%", "NaN%", "inf%", "all"] {
            assert!(wrong.parse::<Budget>().unwrap_err().contains("0.5%"), "{wrong}");
        }
    }

    #[test]
    fn a_cost_within_the_budget_changes_nothing() {
        let mut drill = Drill::new("1%");
        drill.run(600, &[("sched_switch", 0.006), ("sys_exit", 0.002), ("fault_end", 0.001)]);
        assert_eq!(drill.log, []);
    }

    #[test]
    fn probes_are_not_shed_for_what_observers_own_threads_take() {
        let mut drill = Drill { own_share: 0.05, ..Drill::new("1%") };
        drill.run(60, &[("sched_switch", 0.003), ("sys_exit", 0.0005)]);
        assert_eq!(drill.log, []);
        // As much of the budget as is left for the programs.
        drill.run(60, &[("sched_switch", 0.003), ("sys_exit", 0.02)]);
        assert_eq!(drill.missing(), ["mm_syscall", "socket"]);
        assert_eq!(Budget::NONE.counted(0.05), 0.05);
    }

    #[test]
    fn without_a_budget_nothing_is_shed() {
        let mut drill = Drill::new("none");
        drill.run(60, &[("sched_switch", 0.5), ("sys_exit", 0.5)]);
        assert_eq!(drill.log, []);
    }

    #[test]
    fn a_tax_on_every_system_call_goes_with_both_probes_that_need_it() {
        let mut drill = Drill::new("1%");
        let busy = [("sys_exit", 0.1), ("sched_switch", 0.003), ("fault_end", 0.0001)];
        drill.run(3, &busy);
        assert_eq!(drill.missing(), ["mm_syscall", "socket"]);
        let Step::Detach(first, reason) = &drill.log[0].1 else { panic!("{:?}", drill.log) };
        assert_eq!(*first, "socket", "it is no cause");
        assert!(reason.contains("10.4 %") && reason.contains("1%"), "{reason}");
        drill.spent_ns = 0.0;
        drill.run(1_000, &busy);
        let share = drill.spent_ns / 1e12;
        assert!(share < 0.01, "with all trials {share}");
        drill.run(700, &[("sched_switch", 0.003)]);
        assert!(drill.missing().is_empty(), "both are back: {:?}", drill.log);
    }

    #[test]
    fn the_dearest_goes_and_those_that_cost_little_stay() {
        let mut drill = Drill::new("1%");
        drill.run(4, &[("fault_end", 0.05), ("sched_switch", 0.004), ("sys_exit", 0.0005)]);
        assert_eq!(drill.missing(), ["fault"]);
        let (shed_ns, _) = drill.log[0];
        assert!(!drill.control.is_trial_due(shed_ns + HOLD_NS - 1));
        assert!(drill.control.is_trial_due(shed_ns + HOLD_NS));
    }

    #[test]
    fn one_that_does_not_fit_is_tried_ever_more_rarely() {
        let mut drill = Drill::new("1%");
        drill.run(5_000, &[("sched_switch", 0.02)]);
        let trials: Vec<u64> = drill
            .log
            .iter()
            .filter(|(_, step)| matches!(step, Step::Attach(_)))
            .map(|(at_ns, _)| *at_ns)
            .collect();
        let gaps: Vec<u64> = trials.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted(), "{gaps:?}");
        assert!(*gaps.last().expect("trials") >= HOLD_MAX_NS && trials.len() < 25, "{gaps:?}");
    }

    #[test]
    fn bursts_are_paid_for_ever_more_rarely() {
        let mut drill = Drill::new("1%");
        for _ in 0..500 {
            drill.run(10, &[("sched_switch", 0.1)]);
            drill.run(10, &[]);
        }
        let share = drill.spent_ns / drill.now_ns as f64;
        assert!(share < 0.01, "{share}: {:?}", drill.log);
    }

    #[test]
    fn a_cost_at_the_edge_does_not_make_it_come_and_go() {
        let mut drill = Drill::new("1%");
        drill.run(4, &[("sched_switch", 0.02)]);
        let before = drill.log.len();
        // Below the budget, above what a probe on trial must stay below.
        drill.run(1_000, &[("sched_switch", 0.009)]);
        let stays = drill.log[before..].iter().filter(|(_, step)| matches!(step, Step::Attach(_)));
        assert!(stays.count() < 10, "{:?}", drill.log);
        assert_eq!(drill.missing(), ["runqueue"]);
    }

    #[test]
    fn a_burst_is_no_reason_and_what_lasts_is_shed_the_sooner_the_more_it_costs() {
        let mut drill = Drill::new("1%");
        for _ in 0..100 {
            // The start of a load generator, which lasts as long as one window.
            drill.run(1, &[("fault_end", 0.08)]);
            drill.run(4, &[("fault_end", 0.001)]);
        }
        assert_eq!(drill.log, []);
        // Excess, and the number of windows after which it is one second of the budget.
        for (share, windows) in [(0.0116, 48), (0.02, 10), (0.06, 2), (0.2, 1)] {
            let mut drill = Drill::new("1%");
            drill.run(20, &[("fault_end", share)]);
            let at_ns = drill.log.first().map(|(at_ns, _)| *at_ns);
            assert_eq!(at_ns, Some(2 * SECOND + (windows - 1) * SECOND / 10), "{share}");
        }
    }

    #[test]
    fn what_the_own_threads_cost_sheds_nothing() {
        let mut control = BudgetControl::new(Budget::default(), probes());
        let programs = BTreeMap::from([("sched_switch", 0.0001)]);
        for window in 0..100 {
            let measured = Measured {
                now_ns: window * SECOND,
                window_seconds: 0.1,
                own_share: 0.2,
                programs: programs.clone(),
            };
            assert_eq!(control.step(&measured), []);
        }
    }

    #[test]
    fn a_probe_that_is_refused_waits_again() {
        let mut drill = Drill::new("1%");
        drill.run(3, &[("fault_end", 0.05)]);
        let calm = |now_ns| Measured { now_ns, ..Measured::default() };
        assert_eq!(drill.control.step(&calm(100 * SECOND)), [Step::Attach("fault")]);
        drill.control.refused("fault", 100 * SECOND);
        assert_eq!(drill.control.step(&calm(101 * SECOND)), []);
        assert_eq!(drill.control.step(&calm(111 * SECOND)), [Step::Attach("fault")]);
    }
}
