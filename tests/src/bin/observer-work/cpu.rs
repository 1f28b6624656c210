//! Waiting for a CPU.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use observer_tests::kernel_counters::own_schedstat;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use serde_json::json;

use crate::memory::no_huge_pages;
use crate::stage::{crew, pin};

/// Two threads that wake each other this many times.
fn ping_and_pong(rounds: usize) -> io::Result<[Box<dyn FnOnce() + Send>; 2]> {
    let (mut ping_out, mut ping_in) = io::pipe()?;
    let (mut pong_out, mut pong_in) = io::pipe()?;
    let ping = move || {
        let mut byte = [0u8];
        for _ in 0..rounds {
            if ping_in.write_all(&byte).and_then(|()| pong_out.read_exact(&mut byte)).is_err() {
                return;
            }
        }
    };
    let pong = move || {
        let mut byte = [0u8];
        for _ in 0..rounds {
            if ping_out.read_exact(&mut byte).and_then(|()| pong_in.write_all(&byte)).is_err() {
                return;
            }
        }
    };
    Ok([Box::new(ping), Box::new(pong)])
}

pub(crate) fn ping_pong(rounds: usize) -> io::Result<()> {
    let parts = ping_and_pong(rounds)?.into_iter().collect();
    crew(parts, || json!({ "wakeups_at_least": 2 * rounds }))
}

/// Pages that a thread of the storm maps and gives back.
const STORM_PAGES: usize = 8;

pub(crate) fn storm(rounds: usize) -> io::Result<()> {
    let mut parts: Vec<Box<dyn FnOnce() + Send>> = ping_and_pong(rounds)?.into_iter().collect();
    for _ in 0..2 {
        let mut mapping = Mapping::anonymous(STORM_PAGES * PAGE_BYTES)?;
        no_huge_pages(&mapping)?;
        parts.push(Box::new(move || {
            for _ in 0..rounds {
                mapping.write_every_page();
                // SAFETY: a mapping of this thread's own; its pages are written again before they
                // are read.
                let advised = unsafe {
                    let advice = rustix::mm::Advice::LinuxDontNeed;
                    rustix::mm::madvise(mapping.base(), mapping.length_bytes(), advice)
                };
                if let Err(error) = advised {
                    eprintln!("observer-work: madvise: {error}");
                    return;
                }
            }
        }));
    }
    let counts = json!({
        "wakeups_at_least": 2 * rounds, "madvise": 2 * rounds,
        "minor_faults_at_least": 2 * rounds * STORM_PAGES,
    });
    crew(parts, || counts)
}

pub(crate) fn contend(threads: usize, length: Duration, cpu: Option<usize>) -> io::Result<()> {
    let there_ns = Arc::new(AtomicU64::new(0));
    let waited_ns = Arc::new(AtomicU64::new(0));
    let times = Arc::new(Mutex::new(Vec::new()));
    let parts = (0..threads).map(|_| {
        let (there_ns, waited_ns) = (Arc::clone(&there_ns), Arc::clone(&waited_ns));
        let times = Arc::clone(&times);
        let part = move || {
            // Before the first wait, which comes of going where all the others are.
            let (begin, delay_before_ns) = (Instant::now(), delay_ns());
            if let Some(cpu) = cpu {
                pin(cpu);
            }
            spin_until(begin + length);
            let (end, delay_after_ns) = (Instant::now(), delay_ns());
            waited_ns.fetch_add(delay_after_ns - delay_before_ns, Ordering::Relaxed);
            there_ns.fetch_add((end - begin).as_nanos() as u64, Ordering::Relaxed);
            times.lock().unwrap_or_else(PoisonError::into_inner).push((begin, end));
        };
        Box::new(part) as Box<dyn FnOnce() + Send>
    });
    crew(parts.collect(), || {
        let executed_by = std::env::var(crate::tasks::EXECUTED_BY).unwrap_or_default();
        let times = times.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = |instants: Vec<Instant>| {
            let (first, last) = (instants.iter().min(), instants.iter().max());
            last.zip(first).map_or(0, |(last, first)| (*last - *first).as_nanos() as u64)
        };
        // How much later the last one began, and ended, than the first.
        let apart_ns = apart(times.iter().map(|(begin, _)| *begin).collect())
            + apart(times.iter().map(|(_, end)| *end).collect());
        json!({
            "threads": threads, "apart_ns": apart_ns,
            "there_ns": there_ns.load(Ordering::Relaxed),
            // What the kernel counted as waits for a CPU within that time. A thread may wait long
            // before its first instruction, where the kernel itself has the CPU.
            "waited_ns": waited_ns.load(Ordering::Relaxed),
            "executed_by": executed_by.parse::<u64>().unwrap_or_default(),
        })
    })
}

/// How long the calling thread has waited for a CPU since it began.
fn delay_ns() -> u64 {
    own_schedstat().map(|stat| stat.delay_ns).unwrap_or_default()
}

pub(crate) fn spin_until(end: Instant) {
    let mut rounds = 0u64;
    while Instant::now() < end {
        rounds = std::hint::black_box(rounds + 1);
    }
}
