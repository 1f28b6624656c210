//! A thread that sleeps at a place in its code that is known.

use std::arch::global_asm;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libc::timespec;
use rustix::time::ClockId;
use serde_json::json;

use crate::cpu::spin_until;
use crate::sleeps::{NUDGED_NS, clock_ns};
use crate::stage::{pin, report, wait_for_end, wait_for_go};

// One function calls another one, which sleeps in nanosleep(2). Both keep frame pointers, which compilers leave
// out if they may.
global_asm!(
    ".text",
    ".globl observer_work_calls",
    ".type observer_work_calls, @function",
    "observer_work_calls:",
    "push rbp",
    "mov rbp, rsp",
    "call observer_work_sleeps",
    "pop rbp",
    "ret",
    ".size observer_work_calls, . - observer_work_calls",
    ".globl observer_work_sleeps",
    ".type observer_work_sleeps, @function",
    "observer_work_sleeps:",
    "push rbp",
    "mov rbp, rsp",
    "mov eax, 35",
    "xor esi, esi",
    "syscall",
    "pop rbp",
    "ret",
    ".size observer_work_sleeps, . - observer_work_sleeps",
);

unsafe extern "C" {
    fn observer_work_calls(pause: *const timespec) -> i64;
}

/// One thread on one CPU, which works between two sleeps.
pub(crate) fn deep_sleeps(rounds: usize, pause: Duration, work: Duration) -> io::Result<()> {
    pin(0);
    if wait_for_go()? {
        let on_cpu_ns = clock_ns(ClockId::ThreadCPUTime);
        // The sleep that has just ended began when the last signal had been handled.
        let nudged_ns = NUDGED_NS.load(Ordering::Relaxed);
        let pause =
            timespec { tv_sec: pause.as_secs() as i64, tv_nsec: i64::from(pause.subsec_nanos()) };
        for _ in 0..rounds {
            // SAFETY: the call reads the time, which lives until it returns.
            unsafe { observer_work_calls(&raw const pause) };
            spin_until(Instant::now() + work);
        }
        let end_ns = clock_ns(ClockId::Monotonic);
        report(&json!({
            "begin_ns": nudged_ns,
            "end_ns": end_ns,
            "on_cpu_ns": clock_ns(ClockId::ThreadCPUTime) - on_cpu_ns,
        }))?;
    }
    wait_for_end()
}
