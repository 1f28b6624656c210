//! Threads that sleep in several ways, and what the kernel counted of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use observer_tests::kernel_counters::own_schedstat;
use observer_tests::scheduling::set_policy;
use rustix::event::poll;
use rustix::fs::Advice;
use rustix::process::{Signal, getpid, kill_process};
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde_json::json;

use crate::cpu::spin_until;
use crate::locks::CMutex;
use crate::stage::{pin, report, wait_for_end, wait_for_go};

/// When the last signal made this process run, nanoseconds of the monotonic clock; 0 before that.
pub(crate) static NUDGED_NS: AtomicU64 = AtomicU64::new(0);

pub(crate) fn clock_ns(clock: ClockId) -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec as u64 * 1_000_000_000 + tv_nsec as u64
}

/// What the kernel knows about the calling thread.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    now_ns: u64,
    on_cpu_ns: u64,
    /// On a CPU, or waiting for one.
    awake_ns: u64,
    voluntary_switches: u64,
}

impl Reading {
    pub(crate) fn take() -> Self {
        // SAFETY: zeros are a valid value of this plain struct.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: writes the struct, which lives through the call.
        unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        let delay_ns = own_schedstat().map_or(0, |stat| stat.delay_ns);
        let on_cpu_ns = clock_ns(ClockId::ThreadCPUTime);
        Self {
            now_ns: clock_ns(ClockId::Monotonic),
            on_cpu_ns,
            awake_ns: on_cpu_ns + delay_ns,
            voluntary_switches: usage.ru_nvcsw as u64,
        }
    }
}

/// Sleeps of one thread, or of several.
#[derive(Clone, Copy, Default)]
pub(crate) struct Slept {
    pub(crate) count: u64,
    pub(crate) sum_ns: u64,
}

impl Slept {
    pub(crate) fn since(earlier: Reading) -> Self {
        let now = Reading::take();
        let all_ns = now.now_ns - earlier.now_ns;
        Self {
            count: now.voluntary_switches - earlier.voluntary_switches,
            sum_ns: all_ns.saturating_sub(now.awake_ns - earlier.awake_ns),
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.sum_ns += other.sum_ns;
    }
}

/// One thread, on one CPU, because the kernel counts some sleeps of threads that are moved as waits.
fn sleeper(cpu: usize, rounds: usize) -> Slept {
    let before = Reading::take();
    pin(cpu);
    let pause = Duration::from_millis(1);
    for round in 0..rounds {
        match round % 3 {
            0 => thread::sleep(pause),
            1 => thread::park_timeout(pause),
            _ => {
                let timeout = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                // An end of the time, or a signal: a sleep either way.
                let _ = poll(&mut [], Some(&timeout));
            }
        }
        spin_until(Instant::now() + Duration::from_micros(20));
    }
    // With those before it got here.
    Slept { count: Reading::take().voluntary_switches, ..Slept::since(before) }
}

/// Threads that are born, sleep and end, while the first one waits for them.
pub(crate) fn sleeps(threads: usize, rounds: usize) -> io::Result<()> {
    if wait_for_go()? {
        let begin = Reading::take();
        // The sleep that has just ended began when the last signal had been handled.
        let nudged_ns = NUDGED_NS.load(Ordering::Relaxed);
        let mut all = Slept::default();
        if nudged_ns != 0 {
            all.add(Slept { count: 1, sum_ns: begin.now_ns - nudged_ns });
        }
        let spawn = |index: usize| thread::Builder::new().spawn(move || sleeper(index % 2, rounds));
        let spawned = (0..threads).map(spawn).collect::<io::Result<Vec<_>>>()?;
        for thread in spawned {
            all.add(thread.join().unwrap_or_default());
        }
        all.add(Slept::since(begin));
        report(&json!({ "sleeps": all.count, "slept_ns": all.sum_ns }))?;
    }
    wait_for_end()
}

/// Each way to spend time off the CPU takes about as long.
const PIECE: Duration = Duration::from_millis(5);
/// What is read from the file, and how much of it at a time.
const FILE_BYTES: usize = 1 << 20;

/// One thread that spends its time in all the ways there are, beside another process that has the same CPU.
pub(crate) fn all_time(rounds: usize, file: &Path) -> io::Result<()> {
    fs::write(file, vec![b'x'; FILE_BYTES])?;
    let read = File::open(file)?;
    read.sync_all()?;
    // Away from the other process and ahead of everybody else, so that no wait for a CPU comes before the first signal
    // is handled, or after the last reading.
    pin(1);
    set_policy(libc::SCHED_FIFO, 1)?;
    if wait_for_go()? {
        let begin = Reading::take();
        // The sleep that has just ended began when the last signal had been handled.
        let nudged_ns = NUDGED_NS.load(Ordering::Relaxed);
        set_policy(libc::SCHED_OTHER, 0)?;
        pin(0);
        let lock = CMutex::new(libc::PTHREAD_PRIO_NONE);
        lock.lock();
        let mut buffer = vec![0; FILE_BYTES];
        for round in 0..rounds {
            match round % 5 {
                0 => thread::sleep(PIECE),
                1 => thread::park_timeout(PIECE),
                2 => drop(lock.lock_for(PIECE)),
                3 => {
                    rustix::fs::fadvise(&read, 0, None, Advice::DontNeed)?;
                    read.read_exact_at(&mut buffer, 0)?;
                }
                // Somebody else continues it.
                _ => kill_process(getpid(), Signal::STOP)?,
            }
            spin_until(Instant::now() + PIECE);
        }
        set_policy(libc::SCHED_FIFO, 1)?;
        pin(1);
        let end = Reading::take();
        report(&json!({
            "all_ns": end.now_ns - nudged_ns,
            "on_cpu_ns": end.on_cpu_ns - begin.on_cpu_ns,
        }))?;
    }
    wait_for_end()
}
