//! What is done to the service or the load generator from outside, on a schedule that a seed decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fd::OwnedFd;
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, setpriority_process,
};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

use super::cgroup::Cgroup;
use super::child::NICE;
use super::rows::Outside;
use crate::clock::MonoNanos;

/// One episode as it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Episode {
    /// Before the harm began, nanoseconds of the monotonic clock.
    pub(super) begin: u64,
    /// After it was undone.
    pub(super) end: u64,
}

/// Time without harm at the start of the load, and at its end.
const HEAD: Duration = Duration::from_secs(1);
const TAIL: Duration = Duration::from_millis(900);
/// Length of an episode, and the pause after it, milliseconds. Of about the same length: the slowest
/// hundredth of the requests then comes from several episodes, and an answer needs more than one.
const LENGTH_MS: std::ops::RangeInclusive<u64> = 190..=210;
/// Of episodes in which nothing of the service runs at all.
const SHORT_MS: std::ops::RangeInclusive<u64> = 95..=105;
const PAUSE_MS: std::ops::RangeInclusive<u64> = 400..=1200;
/// Threads that burn CPU.
const HOGS: usize = 4;
/// The lowest real-time priority: above everything that has a fair policy.
const PRIORITY: i32 = 1;

/// When episodes begin, from the start of the load, and how long they last. Irregular, so that no shift
/// of the schedule matches itself.
fn plan(outside: Outside, seed: u64, load: Duration) -> Vec<(Duration, Duration)> {
    let lengths = match outside {
        Outside::StopService | Outside::StopGenerator | Outside::HogRealtime | Outside::Freeze => {
            SHORT_MS
        }
        _ => LENGTH_MS,
    };
    let mut random = StdRng::seed_from_u64(seed);
    let mut episodes = Vec::new();
    let mut begin = HEAD;
    loop {
        let length = Duration::from_millis(random.random_range(lengths.clone()));
        if begin + length + TAIL > load {
            return episodes;
        }
        episodes.push((begin, length));
        begin += length + Duration::from_millis(random.random_range(PAUSE_MS));
    }
}

/// What the harm is done to.
#[derive(Debug)]
pub(super) struct Victims {
    /// The processes of the service that serve requests.
    pub(super) service: Vec<u32>,
    /// The CPU that it is pinned to.
    pub(super) cpu: u32,
    /// The load generator.
    pub(super) generator: Option<u32>,
    /// The service's cgroup.
    pub(super) cgroup: Arc<Cgroup>,
}

/// A thread that does the harm, until it is ended.
pub(super) struct Injector {
    thread: Option<JoinHandle<Result<Vec<Episode>, String>>>,
    ended: Arc<AtomicBool>,
}

impl Injector {
    /// The load begins now.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn begin(
        outside: Outside,
        victims: Victims,
        seed: u64,
        load: Duration,
    ) -> Result<Self, String> {
        let (start, ended) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&ended);
        let run = move || {
            let mut episodes = Vec::new();
            for (begin, length) in plan(outside, seed, load) {
                if !sleep_until(start + begin, &told) {
                    break;
                }
                // A squeeze has to watch the use of memory first.
                if outside == Outside::Squeeze {
                    victims.cgroup.squeeze()?;
                }
                let begin = MonoNanos::now().0;
                let harm = Harm::begin(outside, &victims, length)?;
                sleep_until(Instant::now() + length, &told);
                drop(harm);
                episodes.push(Episode { begin, end: MonoNanos::now().0 });
            }
            Ok(episodes)
        };
        let thread = thread::Builder::new().name("drill-injector".into()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { thread: Some(thread), ended })
    }

    /// Waits for its end, at once if `now` is set; what it did.
    ///
    /// # Errors
    /// When it could not do what it was to do.
    pub(super) fn end(mut self, now: bool) -> Result<Vec<Episode>, String> {
        self.ended.store(now, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(Vec::new()) };
        thread.join().map_err(|_| "the thread that injects panicked".to_owned())?
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.ended.store(true, Ordering::Relaxed);
            // The drill has failed for another reason, which is reported.
            let _ = thread.join();
        }
    }
}

/// `false`: ended.
fn sleep_until(deadline: Instant, ended: &AtomicBool) -> bool {
    loop {
        if ended.load(Ordering::Relaxed) {
            return false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}

/// Harm that is being done; dropping it undoes it.
enum Harm {
    Nothing,
    Hogs { stop: Arc<AtomicBool>, threads: Vec<JoinHandle<Result<(), String>>> },
    Stopped(Vec<OwnedFd>),
    Squeezed(Arc<Cgroup>),
    Throttled(Arc<Cgroup>),
    Frozen(Arc<Cgroup>),
}

impl Harm {
    fn begin(outside: Outside, victims: &Victims, length: Duration) -> Result<Self, String> {
        let hogs = |count, is_realtime| hogs(count, victims.cpu, is_realtime, length);
        match outside {
            Outside::None => Ok(Self::Nothing),
            Outside::Hog => hogs(HOGS, false),
            Outside::HogRealtime => hogs(1, true),
            Outside::StopService => stop(&victims.service),
            Outside::StopGenerator => {
                stop(&[victims.generator.ok_or("the load generator was not found")?])
            }
            Outside::Squeeze => Ok(Self::Squeezed(Arc::clone(&victims.cgroup))),
            Outside::Quota => {
                victims.cgroup.set_quota(true)?;
                Ok(Self::Throttled(Arc::clone(&victims.cgroup)))
            }
            Outside::Freeze => {
                victims.cgroup.freeze(true)?;
                Ok(Self::Frozen(Arc::clone(&victims.cgroup)))
            }
        }
    }
}

impl Drop for Harm {
    fn drop(&mut self) {
        let undone = match self {
            Self::Nothing => Ok(()),
            Self::Hogs { stop, threads } => {
                stop.store(true, Ordering::Relaxed);
                let ended = threads.drain(..).map(|thread| {
                    thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
                });
                ended.collect::<Result<(), String>>()
            }
            Self::Stopped(processes) => processes.iter().try_for_each(|process| {
                pidfd_send_signal(process, Signal::CONT)
                    .map_err(|error| format!("cannot send SIGCONT: {error}"))
            }),
            Self::Squeezed(cgroup) => cgroup.release(),
            Self::Throttled(cgroup) => cgroup.set_quota(false),
            Self::Frozen(cgroup) => cgroup.freeze(false),
        };
        if let Err(error) = undone {
            tracing::warn!("drill: {error}");
        }
    }
}

fn stop(processes: &[u32]) -> Result<Harm, String> {
    let open = |id: &u32| {
        let pid = i32::try_from(*id).ok().and_then(Pid::from_raw).ok_or("not a process id")?;
        pidfd_open(pid, PidfdFlags::empty())
            .map_err(|error| format!("process {id} is gone: {error}"))
    };
    let processes: Vec<OwnedFd> = processes.iter().map(open).collect::<Result<_, String>>()?;
    // Dropping it continues those that were stopped before another one failed.
    let stopped = Harm::Stopped(processes);
    if let Harm::Stopped(processes) = &stopped {
        for process in processes {
            pidfd_send_signal(process, Signal::STOP)
                .map_err(|error| format!("cannot send SIGSTOP: {error}"))?;
        }
    }
    Ok(stopped)
}

fn hogs(count: usize, cpu: u32, is_realtime: bool, length: Duration) -> Result<Harm, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    // However late the injector is: a real-time thread must never keep a CPU for good.
    let deadline = Instant::now() + 2 * length;
    for index in 0..count {
        let stop = Arc::clone(&stop);
        let thread = thread::Builder::new().name(format!("drill-hog-{index}")).spawn(move || {
            pin(&[cpu])?;
            // Of this thread alone. As much as the service has, if that is allowed.
            let _ = setpriority_process(Some(gettid()), NICE);
            if is_realtime {
                set_realtime()?;
            }
            while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                for _ in 0..1000 {
                    std::hint::spin_loop();
                }
            }
            Ok(())
        });
        threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
    }
    Ok(Harm::Hogs { stop, threads })
}

/// Pins the calling thread.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn pin(cpus: &[u32]) -> Result<(), String> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu as usize);
    }
    sched_setaffinity(None, &set).map_err(|error| format!("cannot use CPUs {cpus:?}: {error}"))
}

/// Gives the calling thread a real-time policy.
fn set_realtime() -> Result<(), String> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: `parameters` lives through the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if result == 0 {
        return Ok(());
    }
    Err(format!("SCHED_FIFO is refused: {}", std::io::Error::last_os_error()))
}

/// Whether threads may have a real-time policy here.
///
/// # Errors
/// With the reason when they may not.
pub(super) fn can_be_realtime() -> Result<(), String> {
    let tried = thread::spawn(set_realtime).join();
    tried.unwrap_or_else(|_| Err("a thread panicked".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_the_schedule_which_fits_into_the_load() {
        let load = Duration::from_secs(10);
        let planned = plan(Outside::Hog, 3, load);
        assert!((5..=14).contains(&planned.len()), "{planned:?}");
        assert_eq!(planned, plan(Outside::Hog, 3, load));
        assert_ne!(planned, plan(Outside::Hog, 4, load));
        for pair in planned.windows(2) {
            assert!(pair[0].0 + pair[0].1 < pair[1].0, "{planned:?}");
        }
        let (begin, length) = planned[planned.len() - 1];
        assert!(planned[0].0 >= HEAD && begin + length + TAIL <= load, "{planned:?}");
    }
}
