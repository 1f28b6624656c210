//! Interrupts of a CPU's timer that take a part of its time from whatever runs there, as those of a profiler that takes
//! far too many samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use perf_event_open::config::{Cpu, Opts, Proc, SampleOn};
use perf_event_open::count::Counter;
use perf_event_open::event::sw::Software;

use super::injector::pin;

/// How often each counter interrupts the CPU.
const PERIOD_NS: u64 = 1_000_000;
/// Which part of the CPU's time all of them are to take, at least. The next step is a quarter more, so that they never
/// take all of it.
const PART: f64 = 0.6;
/// Counters at the first step, and at most: each is a file.
const FIRST: usize = 8;
const MOST: usize = 768;
/// How long the CPU is watched at each step.
const WATCH: Duration = Duration::from_millis(30);

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
        let speed = Speed::watch(cpu)?;
        let usual = speed.rounds();
        let mut counters = FIRST;
        while counters <= MOST {
            let this = Self { cpu, counters };
            let interrupting = this.begin()?;
            let left = speed.rounds();
            interrupting.end()?;
            if left <= usual * (1.0 - PART) {
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
        let counters = (0..self.counters).map(|_| counter(self.cpu)).collect::<Result<_, String>>();
        let interrupting = Interrupting(counters?);
        let enabled = interrupting.0.iter().try_for_each(Counter::enable);
        enabled.map_err(|error| format!("a counter cannot be switched on: {error}"))?;
        Ok(interrupting)
    }
}

/// Counters that interrupt a CPU, until they are dropped at the latest.
pub(super) struct Interrupting(Vec<Counter>);

impl Interrupting {
    /// Ends all of them at once; to close one takes longer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn end(&self) -> Result<(), String> {
        let disabled = self.0.iter().try_for_each(Counter::disable);
        disabled.map_err(|error| format!("a counter cannot be switched off: {error}"))
    }
}

fn counter(cpu: u32) -> Result<Counter, String> {
    let options = Opts { sample_on: SampleOn::Count(PERIOD_NS), ..Opts::default() };
    Counter::new(Software::CpuClock, (Proc::ALL, Cpu(cpu)), options)
        .map_err(|error| format!("the kernel refuses a counter of CPU {cpu}: {error}"))
}

/// A thread that counts how often it gets around on a CPU.
struct Speed {
    rounds: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Speed {
    fn watch(cpu: u32) -> Result<Self, String> {
        let (rounds, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, told) = (Arc::clone(&rounds), Arc::clone(&ended));
        let run = move || {
            // Where it is not allowed, the counters look cheap, and are refused as too few.
            let _ = pin(&[cpu]);
            while !told.load(Ordering::Relaxed) {
                for _ in 0..100 {
                    std::hint::spin_loop();
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let thread = thread::Builder::new().name("drill-speed".into()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { rounds, ended, thread: Some(thread) })
    }

    /// How often it gets around in a while.
    fn rounds(&self) -> f64 {
        let before = self.rounds.load(Ordering::Relaxed);
        thread::sleep(WATCH);
        (self.rounds.load(Ordering::Relaxed) - before) as f64
    }
}

impl Drop for Speed {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
