//! Waits for a CPU that are easily counted wrong.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use observer::host::process::Stat;
use observer_tests::kernel_counters::own_schedstat;
use observer_tests::scheduling::set_policy;
use rustix::thread::{CpuSet, Pid, gettid, sched_setaffinity};
use serde_json::json;

use crate::cpu::spin_until;
use crate::stage::{crew, pin, report, wait_for_end, wait_for_go};

fn fifo(path: &Path) -> io::Result<std::fs::File> {
    // Both ends, so that opening does not wait for the other process.
    OpenOptions::new().read(true).write(true).open(path)
}

/// Wakes a thread of another process again and again, and keeps the CPU for a while each time.
pub(crate) fn waker(path: &Path, rounds: usize, hold: Duration) -> io::Result<()> {
    let mut fifo = fifo(path)?;
    if wait_for_go()? {
        for _ in 0..rounds {
            fifo.write_all(&[0])?;
            spin_until(Instant::now() + hold);
            thread::sleep(hold / 2);
        }
        report(&json!({ "wakeups": rounds }))?;
    }
    wait_for_end()
}

/// The thread that is woken. It does not preempt its waker (`SCHED_BATCH`), so it waits.
pub(crate) fn woken(path: &Path, rounds: usize) -> io::Result<()> {
    let mut fifo = fifo(path)?;
    set_policy(libc::SCHED_BATCH, 0)?;
    if wait_for_go()? {
        for _ in 0..rounds {
            fifo.read_exact(&mut [0])?;
        }
        report(&json!({ "woken": rounds }))?;
    }
    wait_for_end()
}

fn busy(stop: &Arc<AtomicBool>, cpu: usize) -> Box<dyn FnOnce() + Send> {
    let stop = Arc::clone(stop);
    Box::new(move || {
        pin(cpu);
        while !stop.load(Ordering::Relaxed) {
            spin_until(Instant::now() + Duration::from_micros(50));
        }
    })
}

/// A busy thread that is moved from CPU to CPU while it waits behind a busy thread on each.
pub(crate) fn migrate(length: Duration) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let moved_tid = Arc::new(AtomicI32::new(0));
    let moves = Arc::new(AtomicU64::new(0));
    let mut parts = vec![busy(&stop, 0), busy(&stop, 1)];
    let (tid, stopped) = (Arc::clone(&moved_tid), Arc::clone(&stop));
    parts.push(Box::new(move || {
        tid.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        while !stopped.load(Ordering::Relaxed) {
            spin_until(Instant::now() + Duration::from_micros(50));
        }
    }));
    let (tid, counted, stopping) = (moved_tid, Arc::clone(&moves), stop);
    parts.push(Box::new(move || {
        let end = Instant::now() + length;
        while Instant::now() < end {
            let cpu = counted.load(Ordering::Relaxed) % 2;
            let mut cpus = CpuSet::new();
            cpus.set(cpu as usize);
            let moved = Pid::from_raw(tid.load(Ordering::Relaxed))
                .is_some_and(|tid| sched_setaffinity(Some(tid), &cpus).is_ok());
            counted.fetch_add(u64::from(moved), Ordering::Relaxed);
            thread::sleep(Duration::from_micros(300));
        }
        stopping.store(true, Ordering::Relaxed);
    }));
    crew(parts, || json!({ "moves": moves.load(Ordering::Relaxed) }))
}

/// Whether a thread of this process sleeps.
fn sleeps(tid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/self/task/{tid}/stat"))
        .is_ok_and(|line| Stat::parse(&line).is_some_and(|stat| stat.state == 'S'))
}

/// A thread that has used more than its share of a busy CPU goes to sleep, and is moved to another
/// CPU right then, until the kernel has counted `enough` sleeps as waits, or the rounds are over.
///
/// The sleeper reads what the kernel added to its run delay around each sleep. What is longer than
/// all the time that it was late can only be sleep: that much is `booked_ns` at least.
pub(crate) fn moved_asleep(rounds: usize, enough: u64, length: Duration) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let bedtime = Arc::new(AtomicI32::new(0));
    let moves = Arc::new(AtomicU64::new(0));
    let booked = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let mut parts = vec![busy(&stop, 0)];
    let (going, stopping, told) = (Arc::clone(&bedtime), Arc::clone(&stop), Arc::clone(&booked));
    parts.push(Box::new(move || {
        let tid = gettid().as_raw_nonzero().get();
        let [sleeps, sleeps_ns] = &*told;
        for _ in 0..rounds {
            if sleeps.load(Ordering::Relaxed) >= enough {
                break;
            }
            pin(0);
            spin_until(Instant::now() + Duration::from_millis(10));
            let begin = Instant::now();
            let before = own_schedstat();
            going.store(tid, Ordering::Release);
            thread::sleep(length);
            let (Ok(before), Ok(after)) = (before, own_schedstat()) else { break };
            let late = begin.elapsed().saturating_sub(length);
            let slept = Duration::from_nanos(after.delay_ns - before.delay_ns).saturating_sub(late);
            // Clocks that differ a little make no sleep.
            if slept > length / 10 {
                sleeps.fetch_add(1, Ordering::Relaxed);
                let slept_ns = slept.as_nanos().try_into().unwrap_or(u64::MAX);
                sleeps_ns.fetch_add(slept_ns, Ordering::Relaxed);
            }
        }
        stopping.store(true, Ordering::Relaxed);
    }));
    let (stopped, counted) = (stop, Arc::clone(&moves));
    parts.push(Box::new(move || {
        pin(1);
        let mut there = CpuSet::new();
        there.set(1);
        while !stopped.load(Ordering::Relaxed) {
            let tid = bedtime.load(Ordering::Acquire);
            if tid == 0 || !sleeps(tid) {
                continue;
            }
            bedtime.store(0, Ordering::Relaxed);
            let moved = sched_setaffinity(Pid::from_raw(tid), &there).is_ok();
            counted.fetch_add(u64::from(moved), Ordering::Relaxed);
        }
    }));
    crew(parts, || {
        let [moves, booked, booked_ns] =
            [&*moves, &booked[0], &booked[1]].map(|count| count.load(Ordering::Relaxed));
        json!({ "moves": moves, "booked": booked, "booked_ns": booked_ns })
    })
}

fn event_fd() -> io::Result<(std::fs::File, std::fs::File)> {
    use rustix::event::{EventfdFlags, eventfd};
    let event = std::fs::File::from(eventfd(0, EventfdFlags::CLOEXEC)?);
    Ok((event.try_clone()?, event))
}

/// A thread that is woken by another CPU all the time, mostly while it runs, or is just about to
/// sleep.
pub(crate) fn wake_running(rounds: u64) -> io::Result<()> {
    let (mut waking, mut woken) = event_fd()?;
    let reader = move || {
        pin(0);
        let mut seen = 0;
        let mut count = [0; 8];
        while seen < rounds {
            if woken.read_exact(&mut count).is_err() {
                return;
            }
            seen += u64::from_ne_bytes(count);
            spin_until(Instant::now() + Duration::from_micros(5));
        }
    };
    let writer = move || {
        pin(1);
        for _ in 0..rounds {
            if waking.write_all(&1u64.to_ne_bytes()).is_err() {
                return;
            }
            spin_until(Instant::now() + Duration::from_micros(3));
        }
    };
    crew(vec![Box::new(reader), Box::new(writer)], || json!({ "wakeups": rounds }))
}

/// Threads that a timer's interrupt wakes, on a CPU that is busy.
pub(crate) fn sleepers(threads: usize, rounds: usize) -> io::Result<()> {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let asleep = Arc::new(AtomicU64::new(threads as u64));
    let mut parts = vec![busy(&stop, 0)];
    for index in 0..threads {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let (stop, asleep) = (Arc::clone(&stop), Arc::clone(&asleep));
        parts.push(Box::new(move || {
            pin(0);
            let pause = Timespec { tv_sec: 0, tv_nsec: 200_000 };
            let once =
                Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: pause };
            for _ in 0..rounds {
                // A timer's descriptor and clock_nanosleep(2) are woken by the same interrupt.
                if index % 2 == 0 {
                    thread::sleep(Duration::from_micros(200));
                } else if timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once).is_ok() {
                    let _ = rustix::io::read(&timer, &mut [0u8; 8]);
                }
                spin_until(Instant::now() + Duration::from_micros(50));
            }
            if asleep.fetch_sub(1, Ordering::Relaxed) == 1 {
                stop.store(true, Ordering::Relaxed);
            }
        }));
    }
    crew(parts, || json!({ "wakeups": threads * rounds }))
}

/// Threads that end while others wait for the same CPU, and a process that is killed while its
/// threads wait.
pub(crate) fn dying(rounds: usize) -> io::Result<()> {
    let tids = Arc::new(Mutex::new(Vec::new()));
    if wait_for_go()? {
        pin(0);
        for round in 0..rounds {
            let spawn = |index: usize| {
                let tids = Arc::clone(&tids);
                thread::Builder::new().spawn(move || {
                    if let Ok(mut tids) = tids.lock() {
                        tids.push(gettid().as_raw_nonzero().get());
                    }
                    let length = 2 + (round + index) % 5;
                    spin_until(Instant::now() + Duration::from_millis(length as u64));
                })
            };
            let threads = (0..4).map(spawn).collect::<io::Result<Vec<_>>>()?;
            for thread in threads {
                thread.join().map_err(|_| io::Error::other("a thread panicked"))?;
            }
        }
        let killed = kill_waiting(rounds)?;
        let tids = tids.lock().map(|tids| tids.clone()).unwrap_or_default();
        report(&json!({ "tids": tids, "killed": killed }))?;
    }
    wait_for_end()
}

/// Single-threaded children that spin on this thread's CPU until they are killed, most of them
/// while they wait.
fn kill_waiting(rounds: usize) -> io::Result<Vec<i32>> {
    let mut killed = Vec::new();
    for _ in 0..rounds.div_ceil(4) {
        let mut children = Vec::new();
        for _ in 0..3 {
            // SAFETY: the child touches nothing but its own stack.
            match unsafe { libc::fork() } {
                -1 => return Err(io::Error::last_os_error()),
                0 => loop {
                    std::hint::spin_loop();
                },
                child => children.push(child),
            }
        }
        thread::sleep(Duration::from_millis(10));
        for child in children {
            // SAFETY: a child of this process that nobody waited for yet.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
            killed.push(child);
        }
    }
    Ok(killed)
}
