//! Interrupts of a CPU's timer that take a part of its time from whatever runs there, as those of a profiler that takes
//! far too many samples.

use std::fs::File;
use std::thread;

use perf_event_open::config::{Cpu, Opts, Proc, SampleOn, sibling};
use perf_event_open::count::Counter;
use perf_event_open::count::group::CounterGroup;
use perf_event_open::event::sw::Software;

use super::injector::pin;
use super::waits::waited_ns;
use crate::clock::MonoNanos;

/// How often each counter interrupts the CPU.
const PERIOD_NS: u64 = 1_000_000;
/// Which part of the CPU's time all of them are to take, at least. The next step is a quarter more, so that they never
/// take all of it.
const PART: f64 = 0.6;
/// Counters at the first step, and at most: each is a file.
const FIRST: usize = 8;
const MOST: usize = 768;
/// For how long the CPU is watched at each step, nanoseconds.
const WATCH_NS: u64 = 30_000_000;

/// How many counters take [`PART`] of the time of a CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profiler {
    cpu: u32,
    counters: usize,
}

impl Profiler {
    /// Finds out how many it takes on this CPU, which should have nothing else to do meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses counters, or the most that there may be take less.
    pub(super) fn new(cpu: u32) -> Result<Self, String> {
        let usual = speed(cpu)?;
        let mut counters = FIRST;
        while counters <= MOST {
            let this = Self { cpu, counters };
            let interrupting = this.begin()?;
            let left = speed(cpu);
            interrupting.end()?;
            if left? <= usual * (1.0 - PART) {
                return Ok(this);
            }
            counters += counters.div_ceil(4);
        }
        Err(format!("{MOST} counters take less than {:.0} % of a CPU's time", PART * 100.0))
    }

    /// Begins the interrupts; they end with what is returned.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn begin(self) -> Result<Interrupting, String> {
        let refused = |error| format!("the kernel refuses a counter of CPU {}: {error}", self.cpu);
        let sample_on = SampleOn::Count(PERIOD_NS);
        let options = Opts { sample_on: sample_on.clone(), ..Opts::default() };
        let target = (Proc::ALL, Cpu(self.cpu));
        let leader = Counter::new(Software::CpuClock, target, options).map_err(refused)?;
        let mut group = CounterGroup::from(leader);
        for _ in 1..self.counters {
            let options =
                sibling::Opts { sample_on: sample_on.clone(), ..sibling::Opts::default() };
            group.add(Software::CpuClock, options).map_err(refused)?;
        }
        group.enable().map_err(|error| format!("the counters cannot be switched on: {error}"))?;
        Ok(Interrupting(group))
    }
}

/// Counters that interrupt a CPU together, until they are dropped at the latest.
pub(super) struct Interrupting(CounterGroup);

impl Interrupting {
    /// Ends all of them at once; to close them takes longer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn end(&self) -> Result<(), String> {
        let disabled = self.0.disable();
        disabled.map_err(|error| format!("the counters cannot be switched off: {error}"))
    }
}

/// How often a thread on this CPU gets around in a nanosecond, without what it waits for the CPU.
fn speed(cpu: u32) -> Result<f64, String> {
    let watched = thread::spawn(move || {
        pin(&[cpu])?;
        let schedstat = File::open("/proc/thread-self/schedstat")
            .map_err(|error| format!("/proc/thread-self/schedstat: {error}"))?;
        let waited = || waited_ns(&schedstat).unwrap_or(0);
        let (begin, waited_before_ns, mut rounds) = (MonoNanos::now(), waited(), 0u64);
        loop {
            let length_ns =
                MonoNanos::now().since(begin).saturating_sub(waited() - waited_before_ns);
            if length_ns >= WATCH_NS {
                return Ok(rounds as f64 / length_ns as f64);
            }
            for _ in 0..10_000 {
                std::hint::spin_loop();
            }
            rounds += 1;
        }
    });
    watched.join().map_err(|_| "a thread panicked".to_owned())?
}
