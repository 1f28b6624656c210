//! Measurements of time that the host disturbed are repeated, and counted; no tolerance is widened. So are those in which
//! the kernel left something out by chance that observer reports as lost.
//!
//! A host disturbs a measurement by taking the CPU away: its hypervisor runs another guest (steal),
//! or its scheduler runs somebody else while an observer or the test itself wants to run.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::time::Instant;

use crate::kernel_counters;

/// How often a measurement is made at most.
const ATTEMPTS: u64 = 3;
/// Part of the CPU time of the window that the hypervisor may give to others.
const STOLEN_MAX: f64 = 0.01;
/// Part of the window that one of the observers, or the test itself, may wait for a CPU.
const DELAYED_MAX: f64 = 0.02;

thread_local! {
    /// Attempts before this one; `None` outside of [`repeated`].
    static EARLIER: Cell<Option<u64>> = const { Cell::new(None) };
    /// What the last window of measurement was disturbed by.
    static LAST: Cell<Option<Disturbance>> = const { Cell::new(None) };
}

/// What the host did during a window of measurement, as parts of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disturbance {
    /// Part of the CPU time of the host that its hypervisor gave to others.
    pub stolen: f64,
    /// Part of the window that the process which waited longest waited for a CPU.
    pub delayed: f64,
}

impl Disturbance {
    /// Whether a comparison of times says nothing about observer.
    fn matters(self) -> bool {
        self.stolen > STOLEN_MAX || self.delayed > DELAYED_MAX
    }
}

/// A window of measurement that has begun.
#[derive(Debug)]
pub struct Window {
    begun: Instant,
    stolen: std::time::Duration,
    /// Run delay so far, by process.
    delays_ns: Vec<(u32, u64)>,
}

/// Run delay of all threads of a process; none of one that ended.
fn run_delay_ns(pid: u32) -> u64 {
    kernel_counters::run_delay_ns(pid).map_or(0, |threads| threads.into_values().sum())
}

impl Window {
    /// Begins a window, with the observers that measure in it.
    #[must_use]
    pub fn begin(observers: impl Iterator<Item = u32>) -> Self {
        let processes = observers.chain([std::process::id()]);
        Self {
            begun: Instant::now(),
            stolen: kernel_counters::stolen(),
            delays_ns: processes.map(|pid| (pid, run_delay_ns(pid))).collect(),
        }
    }

    /// Ends it. What disturbed it decides whether comparisons that follow may be repeated.
    pub fn end(self) {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let length = self.begun.elapsed().as_secs_f64().max(1e-3);
        // The kernel counts steal in ticks, and may count the tick before the window in it.
        let tick = std::time::Duration::from_millis(10);
        let stolen = kernel_counters::stolen().saturating_sub(self.stolen + tick);
        let delay_ns = |(pid, before): &(u32, u64)| run_delay_ns(*pid).saturating_sub(*before);
        let delay_ns = self.delays_ns.iter().map(delay_ns).max().unwrap_or_default();
        let last = Disturbance {
            stolen: stolen.as_secs_f64() / length / cpus as f64,
            delayed: delay_ns as f64 / 1e9 / length,
        };
        println!(
            "the host stole {:.2} % of its CPU time, and let an observer or the test wait for a CPU for \
             {:.2} % of the time",
            last.stolen * 100.0,
            last.delayed * 100.0
        );
        LAST.set(Some(last));
    }
}

/// Payload of the panic that ends an attempt.
struct Disturbed(String);

/// How often this measurement was made before.
#[must_use]
pub fn repeats() -> u64 {
    EARLIER.get().unwrap_or_default()
}

/// Ends this attempt if a comparison of times that failed says nothing: the host disturbed the
/// measurement, and it can be repeated. Returns otherwise.
pub(crate) fn repeat_if_disturbed(failed: &str) {
    if let Some(last) = LAST.get().filter(|last| last.matters()) {
        repeat(&format!("{failed}; {last:?}"));
    }
}

/// Ends this attempt if the measurement can be repeated. Returns otherwise.
pub(crate) fn repeat(because: &str) {
    if EARLIER.get().is_some_and(|earlier| earlier + 1 < ATTEMPTS) {
        panic_any(Disturbed(because.to_owned()));
    }
}

/// Makes a measurement; makes it again, three times at most, if a comparison of times fails while the host disturbs
/// it, or any comparison where the kernel left out what chance decides, and observer says so. Every other failure
/// fails at once.
///
/// # Panics
/// When the measurement fails.
pub fn repeated(measure: impl Fn()) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            EARLIER.set(None);
            LAST.set(None);
        }
    }
    let _reset = Reset;
    for attempt in 0..ATTEMPTS {
        EARLIER.set(Some(attempt));
        LAST.set(None);
        match catch_unwind(AssertUnwindSafe(&measure)) {
            Ok(()) => return,
            Err(payload) => match payload.downcast::<Disturbed>() {
                Ok(disturbed) => println!("the host disturbed this, repeated: {}", disturbed.0),
                Err(payload) => resume_unwind(payload),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts(last: Disturbance, good: u64) -> (u64, bool) {
        let made = Cell::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            repeated(|| {
                made.set(made.get() + 1);
                LAST.set(Some(last));
                if made.get() < good {
                    repeat_if_disturbed("sum_ns");
                    panic!("the comparison fails");
                }
                assert_eq!(repeats() + 1, made.get());
            });
        }));
        (made.get(), outcome.is_ok())
    }

    #[test]
    fn only_a_disturbed_measurement_is_repeated_and_three_times_at_most() {
        let calm = Disturbance { stolen: 0.0, delayed: 0.01 };
        let stolen = Disturbance { stolen: 0.1, ..calm };
        let delayed = Disturbance { delayed: 0.1, ..calm };
        assert_eq!(attempts(calm, 1), (1, true));
        assert_eq!(attempts(calm, 2), (1, false));
        assert_eq!(attempts(stolen, 2), (2, true));
        assert_eq!(attempts(delayed, 3), (3, true));
        assert_eq!(attempts(delayed, 4), (3, false));
        assert_eq!(repeats(), 0, "nothing is left for the next measurement");
    }
}
