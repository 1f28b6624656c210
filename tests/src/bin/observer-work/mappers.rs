//! Threads that are in the way of each other in their address space.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use observer_tests::mapping::{Mapping, PAGE_BYTES};
use rustix::time::ClockId;
use serde_json::json;

use crate::sleeps::{Reading, Slept, clock_ns};
use crate::stage::{pin, report, wait_for_end, wait_for_go};

/// What one thread maps, touches and unmaps all the time.
const LARGE_PAGES: usize = 4096;
/// The pause of the other one between two small mappings.
const PAUSE: Duration = Duration::from_micros(200);

/// Time in calls for memory, and what of it was slept.
#[derive(Clone, Copy, Default)]
struct Spent {
    calls_ns: u64,
    slept: Slept,
}

impl Spent {
    /// Maps so many pages, touches them in one call, and unmaps them.
    fn map(&mut self, pages: usize) -> io::Result<()> {
        let (before, begin_ns) = (Reading::take(), clock_ns(ClockId::Monotonic));
        let mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
        mapping.populate()?;
        drop(mapping);
        self.calls_ns += clock_ns(ClockId::Monotonic) - begin_ns;
        self.slept.add(Slept::since(before));
        Ok(())
    }
}

/// One thread maps small pieces, and another one large pieces meanwhile.
pub(crate) fn mappers(rounds: usize) -> io::Result<()> {
    if wait_for_go()? {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let large = thread::Builder::new().spawn(move || {
            pin(1);
            let mut spent = Spent::default();
            while !stopped.load(Ordering::Relaxed) && spent.map(LARGE_PAGES).is_ok() {}
            spent
        })?;
        let small = thread::Builder::new().spawn(move || {
            pin(0);
            let mut spent = Spent::default();
            for _ in 0..rounds {
                if spent.map(1).is_err() {
                    break;
                }
                thread::sleep(PAUSE);
            }
            stop.store(true, Ordering::Relaxed);
            spent
        })?;
        let both = [small, large].map(|thread| thread.join().unwrap_or_default());
        let calls_ns: u64 = both.iter().map(|spent| spent.calls_ns).sum();
        let slept_ns: u64 = both.iter().map(|spent| spent.slept.sum_ns).sum();
        report(&json!({ "calls_ns": calls_ns, "slept_ns": slept_ns }))?;
    }
    wait_for_end()
}

/// One thread takes the right to write from a page again and again, while another one runs on another CPU, whose TLB
/// has to forget the page each time.
pub(crate) fn shootdowns(count: usize) -> io::Result<()> {
    if wait_for_go()? {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
        let other = thread::Builder::new().spawn(move || {
            pin(1);
            while !stopped.load(Ordering::Relaxed) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        pin(0);
        let mut page = Mapping::anonymous(PAGE_BYTES)?;
        let result = (0..count).try_for_each(|_| {
            page.write_page(0);
            // The other one has the CPU.
            let before = rounds.load(Ordering::Relaxed);
            while rounds.load(Ordering::Relaxed) == before {
                std::hint::spin_loop();
            }
            page.allow_writes(false)?;
            page.allow_writes(true)
        });
        stop.store(true, Ordering::Relaxed);
        let _ = other.join();
        result?;
        report(&json!({ "shootdowns": count }))?;
    }
    wait_for_end()
}
