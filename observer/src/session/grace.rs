//! Instants of which it is known that every program that ran before them has ended.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use crate::clock::MonoNanos;
use crate::kernel::wait_for_running_programs;

/// Least time between two such instants: each costs a few changes of threads.
const INTERVAL: Duration = Duration::from_millis(100);

/// A program reads the clock, and later makes its record. In between it can be preempted, or its CPU
/// can stand still because the host of a virtual machine runs something else, so no fixed time is long
/// enough. A grace period of RCU is. It takes milliseconds, so a thread of its own waits for it.
pub(super) struct GracePeriods {
    asks: Sender<()>,
    ended: Receiver<MonoNanos>,
    is_asked: bool,
    asked_at: Option<Instant>,
}

impl GracePeriods {
    /// # Errors
    /// When the system cannot start another thread.
    pub(super) fn start() -> std::io::Result<Self> {
        let (asks, asked) = channel();
        let (end, ended) = channel();
        std::thread::Builder::new().name("observer-grace".into()).spawn(move || {
            while asked.recv().is_ok() {
                let at = MonoNanos::now();
                wait_for_running_programs();
                if end.send(at).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { asks, ended, is_asked: false, asked_at: None })
    }

    /// The next instant, once every program that ran before it has ended. Returns at once; asks for
    /// one if none is on its way.
    pub(super) fn next(&mut self) -> Option<MonoNanos> {
        if self.is_asked {
            let at = self.ended.try_recv().ok()?;
            self.is_asked = false;
            return Some(at);
        }
        if self.asked_at.is_none_or(|at| at.elapsed() >= INTERVAL) {
            self.asked_at = Some(Instant::now());
            // Fails only when the thread died: then nothing is called complete any more.
            self.is_asked = self.asks.send(()).is_ok();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_follow_each_other_and_lie_between_ask_and_answer() {
        let mut periods = GracePeriods::start().expect("a thread");
        let mut last = MonoNanos::now();
        for _ in 0..3 {
            let at = loop {
                if let Some(at) = periods.next() {
                    break at;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            assert!(last <= at && at < MonoNanos::now(), "{last:?} {at:?}");
            last = MonoNanos::now();
        }
    }
}
