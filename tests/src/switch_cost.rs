//! What a wake-up and the switch that follows it cost here and now.
//!
//! Where observer and the kernel read a clock at different places of the same path, their distance
//! is a few tenths of a microsecond on one CPU and more on another, and the programs of all observers
//! run in between. A wake-up and a switch pass two hooks with a program of each observer, and the
//! scheduler's own work between them, so what they cost bounds that distance on every CPU.

use std::fs::File;
use std::io::{Read, Write};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::kernel_counters::own_schedstat;
use crate::scheduling::set_policy;

const ROUNDS: usize = 500;

/// CPU time of one wake-up and the switch to the woken thread, nanoseconds, by the scheduler's own
/// clock (schedstat): two threads on one CPU wake each other.
///
/// # Panics
/// When the kernel refuses what that needs.
#[must_use]
pub fn measure_ns() -> u64 {
    let (here, to_there) = pipe();
    let (there, to_here) = pipe();
    let other = thread::spawn(move || pass(here, to_here, false));
    let (ran_ns, arrivals) = pass(there, to_there, true);
    let (other_ran_ns, other_arrivals) = other.join().expect("the other thread ends");
    let switch_ns = (ran_ns + other_ran_ns) / (arrivals + other_arrivals).max(1);
    println!("a wake-up and a switch take {switch_ns} ns");
    switch_ns
}

fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe().expect("a pipe can be made");
    (read.into(), write.into())
}

/// Passes a byte on again and again; what this thread ran meanwhile, and how often it was switched to.
fn pass(mut from: File, mut to: File, first: bool) -> (u64, u64) {
    // Both on the same CPU, and ahead of whatever else is there.
    let mut cpus = CpuSet::new();
    let before = sched_getaffinity(None).expect("where this thread may run");
    cpus.set((0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).expect("a CPU"));
    sched_setaffinity(None, &cpus).expect("one of its CPUs");
    // Where real-time threads are not allowed, the measurement takes longer and its result is the same.
    let is_ahead = set_policy(libc::SCHED_FIFO, 1).is_ok();
    let mut byte = [0];
    if !first {
        from.read_exact(&mut byte).expect("a byte");
    }
    let schedstat = || own_schedstat().expect("schedstat");
    let begin = schedstat();
    for _ in 0..ROUNDS {
        to.write_all(&byte).expect("a byte can be passed");
        from.read_exact(&mut byte).expect("a byte");
    }
    let end = schedstat();
    to.write_all(&byte).ok();
    if is_ahead {
        set_policy(libc::SCHED_OTHER, 0).expect("the policy from before");
    }
    sched_setaffinity(None, &before).expect("where it ran before");
    (end.ran_ns - begin.ran_ns, end.arrivals - begin.arrivals)
}
