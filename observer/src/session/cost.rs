//! What observer adds to the host, measured in short windows, and held below the budget.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use observer_ebpf::wire::RecordKind;

use super::budget::{Budget, BudgetControl, Measured, Sheddable, Step};
use super::forecast::{Forecast, Glance, Shown};
use crate::clock::MonoNanos;
use crate::host::{system, usage};
use crate::kernel::{Kernel, ProgramCost, RunTimeStatistics, empty_call_ns};
use crate::model::{AddedShare, Event, ProbeChange};
use crate::pace::rest;
use crate::probe::{PROBES, Program};

/// What a system call costs before anything is attached, measured at the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calibration {
    bare_call_ns: f64,
}

impl Calibration {
    /// Call it before the probes are attached.
    pub(super) fn take() -> Self {
        Self { bare_call_ns: empty_call_ns() }
    }
}

/// A window in which the kernel's BPF run-time statistics are on: they cost two clock reads a program
/// run, which would otherwise be the larger part of what is measured.
struct Window {
    statistics: RunTimeStatistics,
    length: Duration,
    begin: Reading,
}

/// What was read at the begin or the end of a window.
#[derive(Clone)]
struct Reading {
    at: Instant,
    programs: Vec<ProgramCost>,
    glance: Glance,
}

/// A window that is over.
struct Closed {
    statistics: RunTimeStatistics,
    begin: Glance,
    end: Reading,
    measured: Measured,
}

/// Runs of all programs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramRuns {
    pub(super) runs: u64,
    pub(super) time_ns: u64,
}

impl ProgramRuns {
    fn add(&mut self, window: &[ProgramCost]) {
        self.runs += window.iter().map(|cost| cost.runs).sum::<u64>();
        self.time_ns += window.iter().map(|cost| cost.run_time_ns).sum::<u64>();
    }
}

/// What the programs that are in both readings did between them.
fn between(before: &[ProgramCost], after: &[ProgramCost]) -> Vec<ProgramCost> {
    let difference = |now: &ProgramCost| {
        let then = before.iter().find(|then| then.program.name == now.program.name)?;
        Some(ProgramCost {
            runs: now.runs.saturating_sub(then.runs),
            run_time_ns: now.run_time_ns.saturating_sub(then.run_time_ns),
            ..*now
        })
    };
    after.iter().filter_map(difference).collect()
}

/// One measurement, and the time it represents.
struct Sample {
    share: f64,
    for_seconds: f64,
}

/// What observer's own threads take in the long run. Their start is no part of it: it costs more than
/// many seconds of the rest, and no probe that is shed takes it back.
struct OwnShare {
    /// The last reading: when, and how much they had taken.
    read: Instant,
    cpu_seconds: f64,
    /// Share of all CPU time between the last two readings; 0 before the second.
    share: f64,
}

impl OwnShare {
    /// Between two readings.
    const TIME: Duration = Duration::from_secs(2);

    fn new(cpu_seconds: f64) -> Self {
        Self { read: Instant::now(), cpu_seconds, share: 0.0 }
    }

    fn update(&mut self, cpu_seconds: f64, cpus: f64) {
        let elapsed = self.read.elapsed();
        if elapsed >= Self::TIME {
            let spent = (cpu_seconds - self.cpu_seconds).max(0.0);
            *self =
                Self { share: spent / (elapsed.as_secs_f64() * cpus), ..Self::new(cpu_seconds) };
        }
    }
}

/// Measures the programs, and sheds and brings back probes.
pub(super) struct CostWatch {
    budget: Budget,
    control: BudgetControl,
    /// What programs at every system call add to each.
    call_tax_ns: f64,
    cpus: f64,
    /// `None` without a budget.
    forecast: Option<Forecast>,
    window: Option<Window>,
    /// When the last window was closed, or the watch began.
    closed: Instant,
    /// From then to the next window.
    pause: Duration,
    /// When the forecast last looked.
    looked: Instant,
    /// How much of the time since `closed` the last measurement represents.
    calm: Duration,
    /// What observer's own threads had taken then. Their time is known at any moment, and a window
    /// would show too much of it: it includes the work for the window.
    own_cpu_seconds: f64,
    own: OwnShare,
    started: Instant,
    on: Duration,
    /// Runs of all programs in the windows, and the time in them.
    ran: ProgramRuns,
    samples: Vec<Sample>,
}

/// Number of measurements kept; above it, each two neighbours are merged.
const SAMPLES_MAX: usize = 4_096;

impl CostWatch {
    const WINDOW: Duration = Duration::from_millis(100);
    /// Of several windows in a row, which only add up a small excess, each may be this long: the two
    /// readings of a window take longer than everything else that observer does in it.
    const LONG_WINDOW: Duration = Duration::from_millis(300);
    /// Between two windows, unless the forecast asks for one. Switching the statistics on and off
    /// rewrites the kernel's code, on all CPUs.
    const PAUSE: Duration = Duration::from_secs(2);
    /// While the forecast looks meanwhile, the pause doubles up to this after each window that shows
    /// no need to act.
    const LONGEST_PAUSE: Duration = Duration::from_secs(8);
    /// Least time between two looks of the forecast.
    const LOOK: Duration = Duration::from_millis(400);

    /// Begins with a window, once the probes are attached.
    pub(super) fn start(budget: Budget, calibration: Calibration, kernel: &Kernel) -> Self {
        let sheddable = |probe: &&crate::probe::Probe| {
            !probe.records.iter().any(|row| row.kind == RecordKind::Task as u16)
                && kernel.is_attached(probe.name)
        };
        let attached = kernel.attached_programs();
        let probes = PROBES.into_iter().filter(sheddable).map(|probe| Sheddable {
            probe: probe.name,
            programs: attached[probe.name].iter().map(|program| program.name).collect(),
            has_causes: probe.sees_stalls() || probe.sends(RecordKind::Request),
        });
        let taxed = attached.values().flatten().any(|program| is_at_every_call(program));
        let call_ns = if taxed { empty_call_ns() } else { 0.0 };
        let call_tax_ns = (call_ns - calibration.bare_call_ns).max(0.0);
        let own_cpu_seconds = usage::own().cpu_seconds;
        let cpus = system::online_cpus().len().max(1) as f64;
        let mut watch = Self {
            budget,
            control: BudgetControl::new(budget, probes.collect()),
            call_tax_ns,
            cpus,
            forecast: None,
            window: None,
            closed: Instant::now(),
            pause: Self::PAUSE,
            looked: Instant::now(),
            calm: Duration::ZERO,
            own_cpu_seconds,
            own: OwnShare::new(own_cpu_seconds),
            started: Instant::now(),
            on: Duration::ZERO,
            ran: ProgramRuns::default(),
            samples: Vec::new(),
        };
        watch.forecast = budget.share().map(|budget| {
            Forecast::new(budget, cpus, call_tax_ns / call_ns.max(1.0), watch.glance(kernel))
        });
        watch.open(RunTimeStatistics::start(), kernel);
        watch
    }

    /// What can be seen without the kernel's statistics.
    fn glance(&self, kernel: &Kernel) -> Glance {
        Glance {
            now_ns: MonoNanos::now().0,
            events: kernel.events(),
            busy_seconds: if self.call_tax_ns > 0.0 { system::busy_seconds() } else { 0.0 },
        }
    }

    /// Begins a window, where the kernel has these statistics.
    fn open(&mut self, statistics: Option<RunTimeStatistics>, kernel: &Kernel) {
        self.looked = Instant::now();
        // Switching them on took long.
        rest();
        self.window = statistics.map(|statistics| Window {
            statistics,
            length: Self::WINDOW,
            begin: self.read(kernel, Instant::now()),
        });
    }

    /// The programs, and what else can be seen.
    fn read(&self, kernel: &Kernel, at: Instant) -> Reading {
        Reading { at, programs: kernel.program_costs(), glance: self.glance(kernel) }
    }

    /// Call it about twice a second, and when [`CostWatch::window_left`] is over.
    pub(super) fn tick(&mut self, kernel: &mut Kernel) -> Vec<Event> {
        let Some(window) = &self.window else {
            if self.is_due(kernel) {
                self.open(RunTimeStatistics::start(), kernel);
            }
            return Vec::new();
        };
        if window.begin.at.elapsed() < window.length {
            return Vec::new();
        }
        let Some(Closed { statistics, begin, end, measured }) = self.close(kernel) else {
            return Vec::new();
        };
        let changed = self.act(kernel, &measured);
        self.pause =
            match self.forecast.is_some() && changed.is_empty() && !self.control.is_waiting() {
                true => (self.pause * 2).min(Self::LONGEST_PAUSE),
                false => Self::PAUSE,
            };
        rest();
        self.learn(kernel, begin, end.glance.clone(), &measured);
        rest();
        if !self.control.is_waiting() {
            return changed;
        }
        if changed.is_empty() {
            // The end of one window is the begin of the next.
            let length = Self::window(self.control.seconds_to_step(&measured));
            self.window = Some(Window { statistics, length, begin: end });
        } else {
            self.open(Some(statistics), kernel);
        }
        changed
    }

    /// The length of the next window in a row, from the time until the excess asks for a step.
    fn window(seconds_to_step: f64) -> Duration {
        let part = (seconds_to_step / 4.0).min(Self::LONG_WINDOW.as_secs_f64());
        Duration::from_secs_f64(part.max(Self::WINDOW.as_secs_f64()))
    }

    /// Whether it is time for the next window, or the forecast asks for it.
    fn is_due(&mut self, kernel: &Kernel) -> bool {
        let pause = match self.control.is_trial_due(MonoNanos::now().0) {
            true => Self::PAUSE,
            false => self.pause,
        };
        if self.closed.elapsed() >= pause {
            return true;
        }
        if self.forecast.is_none() || self.looked.elapsed() < Self::LOOK {
            return false;
        }
        let glance = self.glance(kernel);
        let before = std::mem::replace(&mut self.looked, Instant::now());
        let asks = self.forecast.as_mut().is_some_and(|forecast| forecast.look(glance));
        if asks && let Some(last) = self.samples.last_mut() {
            // Until the look before, all was as in the last window.
            self.calm = before.saturating_duration_since(self.closed);
            last.for_seconds += self.calm.as_secs_f64();
        }
        asks
    }

    /// Tells the forecast what a window showed.
    fn learn(&mut self, kernel: &Kernel, begin: Glance, end: Glance, measured: &Measured) {
        let Some(forecast) = &mut self.forecast else { return };
        let all_ns = measured.window_seconds * 1e9 * self.cpus;
        let mut at_calls = BTreeMap::new();
        let mut programs_ns = BTreeMap::new();
        for (probe, programs) in kernel.attached_programs() {
            let shares = programs.into_iter().map(|program| {
                (program, measured.programs.get(program.name).copied().unwrap_or_default())
            });
            let (everywhere, others): (Vec<_>, Vec<_>) =
                shares.partition(|(program, _)| is_at_every_call(program));
            at_calls.extend(everywhere.iter().map(|(program, share)| (program.name, *share)));
            programs_ns.insert(probe, others.iter().map(|(_, share)| share * all_ns).sum());
        }
        forecast.learn(Shown {
            begin,
            end,
            share: measured.share(),
            own_share: measured.own_share,
            calls_share: (!at_calls.is_empty()).then(|| at_calls.values().sum()),
            programs_ns,
        });
    }

    /// Time until the window that is open is over; `None` without one.
    pub(super) fn window_left(&self) -> Option<Duration> {
        let left = |window: &Window| window.length.saturating_sub(window.begin.at.elapsed());
        self.window.as_ref().map(left)
    }

    /// Ends the measurement; returns what all programs ran, from what they did in the windows. The kernel may
    /// count outside of them as well, because another program wants it (`kernel.bpf_stats_enabled`).
    pub(super) fn programs(&mut self, kernel: &Kernel) -> ProgramRuns {
        self.close(kernel);
        let on = self.on.as_secs_f64();
        let factor = if on > 0.0 { self.started.elapsed().as_secs_f64() / on } else { 0.0 };
        let whole = |number: u64| (number as f64 * factor).round() as u64;
        ProgramRuns { runs: whole(self.ran.runs), time_ns: whole(self.ran.time_ns) }
    }

    /// The mean over the time so far, with its interval; `None` where the kernel has no statistics.
    pub(super) fn added(&self) -> Option<AddedShare> {
        let weight: f64 = self.samples.iter().map(|sample| sample.for_seconds).sum();
        if weight <= 0.0 {
            return None;
        }
        let sum = |of: &dyn Fn(&Sample) -> f64| self.samples.iter().map(of).sum::<f64>();
        let share = sum(&|sample| sample.share * sample.for_seconds) / weight;
        let off = |sample: &Sample| ((sample.share - share) * sample.for_seconds).powi(2);
        let spread = match self.samples.len() {
            // A single window gives no interval.
            1 => share,
            count => {
                let count = count as f64;
                1.96 * (sum(&off) * count / (count - 1.0)).sqrt() / weight
            }
        };
        let windows = self.samples.len() as u64;
        Some(AddedShare { share, ci95: [(share - spread).max(0.0), share + spread], windows })
    }

    /// Ends the window.
    fn close(&mut self, kernel: &Kernel) -> Option<Closed> {
        let window = self.window.take()?;
        let programs = kernel.program_costs();
        let at = Instant::now();
        let end = Reading { at, programs, glance: self.glance(kernel) };
        let elapsed = at.duration_since(window.begin.at);
        let since_seconds = self.closed.elapsed().as_secs_f64();
        let for_seconds = since_seconds - std::mem::take(&mut self.calm).as_secs_f64();
        self.closed = Instant::now();
        self.looked = self.closed;
        self.on += elapsed;
        let ran = between(&window.begin.programs, &end.programs);
        self.ran.add(&ran);
        let all_ns = elapsed.as_nanos() as f64 * self.cpus;
        if all_ns <= 0.0 {
            return None;
        }
        let own_cpu_seconds = usage::own().cpu_seconds;
        let own_seconds = own_cpu_seconds - self.own_cpu_seconds;
        self.own_cpu_seconds = own_cpu_seconds;
        self.own.update(own_cpu_seconds, self.cpus);
        let measured = Measured {
            now_ns: MonoNanos::now().0,
            window_seconds: elapsed.as_secs_f64(),
            own_share: self.budget.counted(self.own.share),
            programs: self.shares(&ran, all_ns),
        };
        // The end of the run cuts the last window off, and what observer does then is not what it did
        // meanwhile.
        if elapsed >= Self::WINDOW || self.samples.is_empty() {
            let own_share = own_seconds.max(0.0) / (since_seconds * self.cpus);
            let share = own_share + measured.programs.values().sum::<f64>();
            self.samples.push(Sample { share, for_seconds });
        }
        if self.samples.len() > SAMPLES_MAX {
            self.thin_out();
        }
        let Window { statistics, begin, .. } = window;
        Some(Closed { statistics, begin: begin.glance, end, measured })
    }

    /// Merges two neighbours into one measurement that represents the time of both.
    fn thin_out(&mut self) {
        let merge = |pair: &[Sample]| {
            let for_seconds: f64 = pair.iter().map(|sample| sample.for_seconds).sum();
            let spent: f64 = pair.iter().map(|sample| sample.share * sample.for_seconds).sum();
            Sample { share: spent / for_seconds.max(f64::MIN_POSITIVE), for_seconds }
        };
        self.samples = self.samples.chunks(2).map(merge).collect();
    }

    /// The part of all CPU time that each program took in a window, with its hook.
    fn shares(&self, window: &[ProgramCost], all_ns: f64) -> BTreeMap<&'static str, f64> {
        let with_hook = |cost: &ProgramCost| {
            let runs = cost.runs as f64;
            let time_ns = cost.run_time_ns as f64 + runs * cost.program.attach.around_ns();
            (cost.program, runs, time_ns)
        };
        let mut costs: Vec<(&Program, f64, f64)> = window.iter().map(with_hook).collect();
        // The program that runs at every call accounts for the slow path of all calls, including
        // its own run.
        let everywhere = costs
            .iter_mut()
            .filter(|(program, ..)| is_at_every_call(program))
            .max_by(|(_, one, _), (_, other, _)| one.total_cmp(other));
        if let Some((_, runs, cost_ns)) = everywhere {
            *cost_ns = cost_ns.max(*runs * self.call_tax_ns);
        }
        costs.into_iter().map(|(program, _, ns)| (program.name, ns / all_ns)).collect()
    }

    fn act(&mut self, kernel: &mut Kernel, measured: &Measured) -> Vec<Event> {
        let mut changed = Vec::new();
        for step in self.control.step(measured) {
            let (probe, attached) = match step {
                Step::Detach(probe, reason) => {
                    // It fails only for a probe that is not attached.
                    let _ = kernel.detach(probe, &reason);
                    (probe, false)
                }
                Step::Attach(probe) => {
                    if kernel.attach_again(probe).is_err() {
                        self.control.refused(probe, measured.now_ns);
                        continue;
                    }
                    (probe, true)
                }
            };
            changed.push(ProbeChange { probe, attached }.event(MonoNanos::now()));
        }
        changed
    }
}

fn is_at_every_call(program: &Program) -> bool {
    program.attach.is_at_every_system_call()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = CostWatch::WINDOW;
    const LONG: Duration = CostWatch::LONG_WINDOW;

    #[test]
    fn what_programs_did_outside_of_a_window_does_not_count() {
        let of = |runs| {
            let program = &crate::probe::PROBES[0].tiers[0].programs[0];
            vec![ProgramCost { program, runs, run_time_ns: runs * 50 }]
        };
        let mut ran = ProgramRuns::default();
        // Another program has the statistics on: they go on between the two windows.
        for (begin, end) in [(1_000, 1_010), (90_000, 90_005)] {
            ran.add(&between(&of(begin), &of(end)));
        }
        // Attached during a window, and attached again with a count from the beginning.
        ran.add(&between(&[], &of(70)));
        ran.add(&between(&of(90_005), &of(3)));
        assert_eq!(ran, ProgramRuns { runs: 15, time_ns: 750 });
    }

    #[test]
    fn windows_in_a_row_are_short_where_a_step_is_near() {
        let sheddable =
            Sheddable { probe: "fault", programs: vec!["page_fault"], has_causes: true };
        let mut control = BudgetControl::new(Budget::default(), vec![sheddable]);
        let mut step = |share, now_ns| {
            let programs = BTreeMap::from([("page_fault", share)]);
            let measured = Measured { now_ns, window_seconds: 0.1, own_share: 0.0, programs };
            let steps = control.step(&measured);
            (steps.len(), CostWatch::window(control.seconds_to_step(&measured)))
        };
        // The excess of 0.2 % has to last for five seconds, and one of 5 % for 0.2 s.
        assert_eq!(step(0.012, 1), (0, LONG));
        assert_eq!(step(0.06, 2), (0, SHORT));
        // It is gone after 2.5 s at nearly the budget, and after 0.4 s without cost.
        assert_eq!(step(0.008, 3), (0, LONG));
        assert_eq!(step(0.0, 4), (0, SHORT));
        assert_eq!(step(0.2, 5), (1, SHORT), "it is shed");
        // A trial is as short as one window.
        let tried = step(0.0, 60_000_000_000);
        assert_eq!(tried, (1, SHORT));
    }
}
