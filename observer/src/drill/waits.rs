//! When threads waited for a CPU, for services that do not write it down: the scheduler's counts, read
//! many times a second.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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

/// How often new threads are looked for, in periods.
const LOOK: u32 = 20;

/// A thread that reads the counts of all threads of a process, until it is ended.
pub(super) struct Watch {
    thread: Option<JoinHandle<Vec<Episode>>>,
    ended: Arc<AtomicBool>,
}

impl Watch {
    /// Watches the threads of a process.
    ///
    /// # Errors
    /// When the kernel has no counts, or no thread can be started.
    pub(super) fn begin(process: u32) -> Result<Self, String> {
        let tasks = PathBuf::from(format!("/proc/{process}/task"));
        let mut threads = BTreeMap::new();
        look_for_threads(&tasks, &mut threads)?;
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let run = move || {
            // Of this thread alone. Where it is not allowed, the host has to be quiet.
            let _ = setpriority_process(Some(gettid()), NICE);
            let mut waits = Vec::new();
            for period in 1u32.. {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(PERIOD);
                if period.is_multiple_of(LOOK) {
                    // The process may have ended.
                    let _ = look_for_threads(&tasks, &mut threads);
                }
                for (schedstat, before_ns) in threads.values_mut() {
                    let waited_ns = waited_ns(schedstat);
                    waits.extend(wait(*before_ns, waited_ns, MonoNanos::now().0));
                    *before_ns = waited_ns.or(*before_ns);
                }
            }
            united(waits)
        };
        let thread = thread::Builder::new().name("drill-waits".into()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { thread: Some(thread), ended })
    }

    /// When any of them waited, in order.
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

/// Opens the counts of threads that are not known yet, each with what the thread has waited so far.
fn look_for_threads(
    tasks: &Path,
    threads: &mut BTreeMap<PathBuf, (File, Option<u64>)>,
) -> Result<(), String> {
    let cannot = |error| format!("cannot read {}: {error}", tasks.display());
    for task in fs::read_dir(tasks).map_err(cannot)?.flatten() {
        let path = task.path();
        // It may have ended.
        if !threads.contains_key(&path)
            && let Ok(schedstat) = File::open(path.join("schedstat"))
        {
            let waited_ns = waited_ns(&schedstat);
            threads.insert(path, (schedstat, waited_ns));
        }
    }
    match threads.is_empty() {
        true => Err(format!("{} has no counts of waits for a CPU", tasks.display())),
        false => Ok(()),
    }
}

/// Each instant once.
fn united(mut waits: Vec<Episode>) -> Vec<Episode> {
    waits.sort_unstable_by_key(|wait| (wait.begin, wait.end));
    let mut united: Vec<Episode> = Vec::new();
    for wait in waits {
        match united.last_mut() {
            Some(last) if wait.begin <= last.end => last.end = last.end.max(wait.end),
            _ => united.push(wait),
        }
    }
    united
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
    fn an_instant_in_which_several_threads_wait_counts_once() {
        let of = |begin, end| Episode { begin, end };
        let waits = vec![of(30, 40), of(0, 10), of(5, 8), of(9, 12), of(12, 13)];
        assert_eq!(united(waits), [of(0, 13), of(30, 40)]);
        assert_eq!(united(Vec::new()), []);
    }

    #[test]
    fn the_waits_of_a_process_are_those_that_the_scheduler_counts() {
        let watch = Watch::begin(std::process::id()).unwrap();
        thread::sleep(Duration::from_millis(50));
        let waits = watch.end().unwrap();
        let sum: u64 = waits.iter().map(|wait| wait.end - wait.begin).sum();
        let tasks = PathBuf::from(format!("/proc/{}/task", std::process::id()));
        let mut threads = BTreeMap::new();
        look_for_threads(&tasks, &mut threads).unwrap();
        // Threads that have ended since then are missing.
        let all: u64 = threads.values().filter_map(|(_, waited_ns)| *waited_ns).sum();
        println!("{sum} of {all} ns");
        assert!(waits.is_sorted_by_key(|wait| wait.begin), "{waits:?}");
        assert!(waits.windows(2).all(|pair| pair[0].end < pair[1].begin), "{waits:?}");
        assert!(Watch::begin(u32::MAX).is_err());
    }
}
