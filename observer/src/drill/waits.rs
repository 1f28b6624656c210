//! How long a thread waited for a CPU, for services that do not write it down: the scheduler's count, read
//! many times a second.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::setpriority_process;
use rustix::thread::gettid;

use super::child::NICE;
use super::injector::Episode;
use crate::clock::MonoNanos;

/// How often the count is read: a wait is taken to have ended when it is seen, so that it may lie this much
/// too late.
const PERIOD: Duration = Duration::from_micros(500);

/// A thread that reads the count of another one, until it is ended.
pub(super) struct Watch {
    thread: Option<JoinHandle<Vec<Episode>>>,
    ended: Arc<AtomicBool>,
}

impl Watch {
    /// Watches the first thread of a process.
    ///
    /// # Errors
    /// When the kernel has no count, or no thread can be started.
    pub(super) fn begin(process: u32) -> Result<Self, String> {
        let path = format!("/proc/{process}/schedstat");
        let file = File::open(&path).map_err(|error| format!("cannot open {path}: {error}"))?;
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let run = move || {
            // Of this thread alone. Where it is not allowed, the host has to be quiet.
            let _ = setpriority_process(Some(gettid()), NICE);
            let mut waits = Vec::new();
            let mut before_ns = waited_ns(&file);
            while !told.load(Ordering::Relaxed) {
                thread::sleep(PERIOD);
                let waited_ns = waited_ns(&file);
                waits.extend(wait(before_ns, waited_ns, MonoNanos::now().0));
                before_ns = waited_ns.or(before_ns);
            }
            waits
        };
        let thread = thread::Builder::new().name("drill-waits".into()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { thread: Some(thread), ended })
    }

    /// The waits so far, in order.
    ///
    /// # Errors
    /// When the thread panicked.
    pub(super) fn end(mut self) -> Result<Vec<Episode>, String> {
        self.ended.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(Vec::new()) };
        thread.join().map_err(|_| "the thread that reads waits panicked".to_owned())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The drill has failed for another reason, which is reported.
            let _ = thread.join();
        }
    }
}

/// How long it has waited in its life, nanoseconds.
fn waited_ns(schedstat: &File) -> Option<u64> {
    let mut text = [0u8; 96];
    let length = schedstat.read_at(&mut text, 0).ok()?;
    std::str::from_utf8(text.get(..length)?).ok()?.split(' ').nth(1)?.parse().ok()
}

/// The wait between two readings, of which the second one is of `now`.
fn wait(before_ns: Option<u64>, waited_ns: Option<u64>, now: u64) -> Option<Episode> {
    let length_ns = waited_ns?.checked_sub(before_ns?).filter(|length| *length > 0)?;
    Some(Episode { begin: now.saturating_sub(length_ns), end: now })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_it_is_seen() {
        assert_eq!(wait(Some(5), Some(12), 100), Some(Episode { begin: 93, end: 100 }));
        for (before, now) in
            [(Some(5), Some(5)), (Some(5), None), (None, Some(5)), (Some(6), Some(5))]
        {
            assert_eq!(wait(before, now, 100), None, "{before:?} {now:?}");
        }
    }

    #[test]
    fn the_waits_of_a_thread_are_those_that_the_scheduler_counts() {
        let watch = Watch::begin(std::process::id()).unwrap();
        let file = File::open(format!("/proc/{}/schedstat", std::process::id())).unwrap();
        let before = waited_ns(&file).unwrap();
        thread::sleep(Duration::from_millis(50));
        let after = waited_ns(&file).unwrap();
        let waits = watch.end().unwrap();
        let sum: u64 = waits.iter().map(|wait| wait.end - wait.begin).sum();
        assert!(sum <= waited_ns(&file).unwrap(), "{sum}");
        assert!(before <= after && waits.is_sorted_by_key(|wait| wait.end), "{waits:?}");
        assert!(Watch::begin(u32::MAX).is_err());
    }
}
