//! What a request does, and what is written down about it.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use super::entry::Entry;
use super::files::{Arena, Data, without_name};
use super::http::Connection;
use super::memory::Mapping;
use crate::clock::MonoNanos;
use crate::drill::rows::{Harm, Work};
use crate::load::is_chosen;

/// CPU time of each request.
const SPIN: Duration = Duration::from_millis(1);
/// Part of the requests that the injection concerns.
const SHARE: f64 = 0.03;
/// What these requests sleep or burn.
const HARM: Duration = Duration::from_millis(25);
/// What they touch, and what they map, again and again in that time: how long a page takes differs by
/// more than ten times between hosts.
const STORM_BYTES: usize = 2 << 20;
const MAP_BYTES: usize = 8 << 20;
/// What one thread maps while the others map a page each.
const MUCH_BYTES: usize = 64 << 20;
const PAGE_BYTES: usize = 4096;
/// What they write before they sync it.
const SYNC_BYTES: usize = 1 << 20;
/// Background threads, and the CPU time of each when it is woken.
const BACKGROUND_THREADS: usize = 50;
const BACKGROUND: Duration = Duration::from_millis(1);
/// How long a thread has the lock, of that on a CPU, and the pauses between.
const KEEPS: Duration = HARM;
const KEEPS_ON_CPU: Duration = Duration::from_millis(5);
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(400)..=Duration::from_millis(1_200);
/// The lowest priority of the fair class.
const LAST: i32 = 19;
/// Requests that one thread writes down; a drill has a few thousand.
const ENTRIES_MAX: usize = 1_000_000;

/// What all threads share.
pub(super) struct Handler {
    work: Work,
    harm: Harm,
    seed: u64,
    requests: AtomicU64,
    announced: AtomicBool,
    data: Option<Data>,
    /// What is written to and synced.
    synced: Option<File>,
    background: Vec<Sender<()>>,
    lock: Option<Arc<Mutex<()>>>,
    logs: Mutex<Vec<Arc<Mutex<Vec<Entry>>>>>,
}

impl Handler {
    pub(super) fn new(work: Work, harm: Harm, seed: u64, file: Option<&Path>) -> io::Result<Self> {
        let data = match (work, file) {
            (Work::Spin, _) => None,
            (Work::Read, Some(file)) => Some(Data::make(file)?),
            (Work::Read, None) => return Err(io::Error::other("this work needs --file")),
        };
        let synced = match (harm, file) {
            (Harm::Sync, Some(file)) => Some(without_name(file)?),
            (Harm::Sync, None) => return Err(io::Error::other("this harm needs --file")),
            _ => None,
        };
        let threads = if harm == Harm::Background { BACKGROUND_THREADS } else { 0 };
        let background = (0..threads).map(start_background).collect::<io::Result<_>>()?;
        let lock = (harm == Harm::Lock).then(|| start_keeper(seed)).transpose()?;
        if harm == Harm::MapLock {
            start_mapper(seed)?;
        }
        Ok(Self {
            work,
            harm,
            seed,
            requests: AtomicU64::new(0),
            announced: AtomicBool::new(false),
            data,
            synced,
            background,
            lock,
            logs: Mutex::default(),
        })
    }

    /// Everything that was written down.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |log: &Arc<Mutex<Vec<Entry>>>| {
            log.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        logs.iter().flat_map(of).collect()
    }

    /// Whether the injection concerns the next request.
    fn is_harmed(&self) -> bool {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        is_chosen(self.seed, number, SHARE)
    }

    /// Tells the drill that the load has begun.
    fn announce(&self) {
        if !self.announced.swap(true, Ordering::Relaxed) {
            println!("request");
        }
    }
}

/// A thread on the first CPU that works when it is woken, after everybody else.
fn start_background(index: usize) -> io::Result<Sender<()>> {
    let (wake, woken) = channel();
    std::thread::Builder::new().name(format!("drill-back-{index}")).spawn(
        move || -> io::Result<()> {
            let mut cpu = CpuSet::new();
            cpu.set(crate::host::system::online_cpus().first().map_or(0, |cpu| *cpu as usize));
            sched_setaffinity(None, &cpu)?;
            // Of this thread alone.
            setpriority_process(Some(gettid()), LAST)?;
            for () in woken {
                burn(BACKGROUND);
            }
            Ok(())
        },
    )?;
    Ok(wake)
}

/// A thread that takes the lock again and again.
fn start_keeper(seed: u64) -> io::Result<Arc<Mutex<()>>> {
    let lock = Arc::new(Mutex::new(()));
    let kept = Arc::clone(&lock);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    std::thread::Builder::new().name("drill-keeper".into()).spawn(move || {
        loop {
            std::thread::sleep(rng.random_range(PAUSES));
            let guard = kept.lock();
            burn(KEEPS_ON_CPU);
            std::thread::sleep(KEEPS - KEEPS_ON_CPU);
            drop(guard);
        }
    })?;
    Ok(lock)
}

/// A thread that maps and unmaps much memory again and again, now and then.
fn start_mapper(seed: u64) -> io::Result<()> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    std::thread::Builder::new().name("drill-mapper".into()).spawn(move || {
        loop {
            std::thread::sleep(rng.random_range(PAUSES));
            let begin = MonoNanos::now();
            // A host without so much memory maps nothing, and then nobody waits.
            while MonoNanos::now().since(begin) < HARM.as_nanos() as u64
                && Mapping::anonymous(MUCH_BYTES, true).is_ok()
            {}
        }
    })?;
    Ok(())
}

/// CPU time of this thread, nanoseconds.
fn cpu_ns() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Uses this much CPU time.
fn burn(length: Duration) {
    let end = cpu_ns() + length.as_nanos() as u64;
    while cpu_ns() < end {
        for _ in 0..200 {
            std::hint::spin_loop();
        }
    }
}

/// A request that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    reader: u32,
    read_ns: u64,
    wait_ns: u64,
}

/// A thread of the service, and what it writes down.
pub(super) struct Thread {
    handler: Arc<Handler>,
    number: u32,
    log: Arc<Mutex<Vec<Entry>>>,
    /// The kernel's statistics of this thread; without them, waits before the handler are not known.
    schedstat: Option<File>,
    /// How long it had waited for a CPU in its life when its last work ended.
    waited_ns: u64,
    arena: Option<Arena>,
    storm: Option<Mapping>,
}

impl Thread {
    /// Of the calling thread.
    pub(super) fn new(handler: &Arc<Handler>) -> io::Result<Self> {
        let log = Arc::new(Mutex::new(Vec::with_capacity(4096)));
        let number = {
            let mut logs = handler.logs.lock().unwrap_or_else(PoisonError::into_inner);
            logs.push(Arc::clone(&log));
            logs.len() as u32
        };
        let mut thread = Self {
            handler: Arc::clone(handler),
            number,
            log,
            schedstat: File::open("/proc/thread-self/schedstat").ok(),
            waited_ns: 0,
            arena: (handler.work == Work::Read).then(Arena::new).transpose()?,
            storm: (handler.harm == Harm::Faults)
                .then(|| Mapping::anonymous(STORM_BYTES, false))
                .transpose()?,
        };
        thread.newly_waited_ns();
        Ok(thread)
    }

    /// How long it has waited for a CPU in its life.
    fn all_waited_ns(&self) -> u64 {
        let mut text = [0u8; 96];
        let length =
            self.schedstat.as_ref().map_or(0, |file| file.read_at(&mut text, 0).unwrap_or(0));
        std::str::from_utf8(&text[..length])
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse().ok())
            .unwrap_or(self.waited_ns)
    }

    /// How long it waited for a CPU since the last call.
    fn newly_waited_ns(&mut self) -> u64 {
        let waited = self.all_waited_ns();
        let new = waited.saturating_sub(self.waited_ns);
        self.waited_ns = waited;
        new
    }

    /// Call it when a request has been read completely.
    pub(super) fn received(&mut self) -> Received {
        let read_ns = MonoNanos::now().0;
        Received { reader: self.number, read_ns, wait_ns: self.newly_waited_ns() }
    }

    /// Does the work of a request, answers it, and writes it down.
    pub(super) fn serve(&mut self, connection: &Connection, received: Received) -> io::Result<()> {
        let begin_wait_ns = if received.reader == self.number { 0 } else { self.newly_waited_ns() };
        let mut entry = Entry {
            port: connection.port(),
            reader: received.reader,
            worker: self.number,
            read_ns: received.read_ns,
            begin_ns: MonoNanos::now().0,
            read_wait_ns: received.wait_ns,
            begin_wait_ns,
            ..Entry::default()
        };
        let begin_cpu_ns = cpu_ns();
        self.handler.announce();
        let done = self.work().and_then(|()| self.harm(&mut entry));
        let answered = connection.answer(if done.is_ok() { 200 } else { 500 });
        let on_cpu_ns = cpu_ns() - begin_cpu_ns;
        entry.end_ns = MonoNanos::now().0;
        let length_ns = entry.end_ns - entry.begin_ns;
        entry.off_cpu_ns = length_ns.saturating_sub(on_cpu_ns + entry.slept_ns);
        entry.waited_ns = self.newly_waited_ns();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() < ENTRIES_MAX {
            log.push(entry);
        }
        answered
    }

    /// Does something; nanoseconds that it took, without waits for a CPU.
    fn timed<T>(&self, what: impl FnOnce() -> T) -> (u64, T) {
        let (begin, waited_ns) = (MonoNanos::now(), self.all_waited_ns());
        let done = what();
        let length_ns = MonoNanos::now().since(begin);
        (length_ns.saturating_sub(self.all_waited_ns().saturating_sub(waited_ns)), done)
    }

    fn work(&mut self) -> io::Result<()> {
        match (&self.handler.data, &mut self.arena) {
            (Some(data), Some(arena)) => data.read(arena),
            _ => {
                burn(SPIN);
                Ok(())
            }
        }
    }

    fn harm(&mut self, entry: &mut Entry) -> io::Result<()> {
        if let Some(lock) = &self.handler.lock {
            entry.locked_ns = self.timed(|| drop(lock.lock())).0;
        }
        if self.handler.harm == Harm::MapLock {
            let mapped = self.timed(|| Mapping::anonymous(PAGE_BYTES, true).map(drop));
            entry.mapped_ns = mapped.0;
            mapped.1?;
        }
        if self.handler.harm == Harm::None || !self.handler.is_harmed() {
            return Ok(());
        }
        let (begin, begin_cpu_ns) = (MonoNanos::now(), cpu_ns());
        let length_ns = || MonoNanos::now().since(begin);
        match self.handler.harm {
            Harm::None | Harm::Lock | Harm::MapLock => {}
            Harm::Sleep => {
                std::thread::sleep(HARM);
                entry.slept_ns = length_ns();
            }
            Harm::Background => {
                for wake in &self.handler.background {
                    // A thread that has ended works as little as one that nobody wakes.
                    let _ = wake.send(());
                }
                let begin = MonoNanos::now();
                std::thread::sleep(HARM);
                entry.slept_ns = MonoNanos::now().since(begin);
            }
            Harm::Burn => {
                burn(HARM);
                entry.burnt_ns = cpu_ns() - begin_cpu_ns;
            }
            Harm::Faults => {
                while length_ns() < HARM.as_nanos() as u64 {
                    let Some(mut storm) = self.storm.take() else { break };
                    let touched = self.timed(|| storm.touch());
                    entry.faulted_ns += touched.0;
                    let discarded = storm.discard();
                    self.storm = Some(storm);
                    discarded?;
                }
            }
            Harm::Map => {
                while length_ns() < HARM.as_nanos() as u64 {
                    let mapped = self.timed(|| Mapping::anonymous(MAP_BYTES, true).map(drop));
                    entry.mapped_ns += mapped.0;
                    mapped.1?;
                }
            }
            Harm::Sync => {
                let Some(file) = &self.handler.synced else { return Ok(()) };
                let text = vec![b'x'; SYNC_BYTES];
                while length_ns() < HARM.as_nanos() as u64 {
                    file.write_all_at(&text, 0)?;
                    let begin_cpu_ns = cpu_ns();
                    let synced = self.timed(|| file.sync_all());
                    entry.synced_ns += synced.0.saturating_sub(cpu_ns() - begin_cpu_ns);
                    synced.1?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_alone_chooses_the_requests() {
        let chosen = |seed| (0..100_000).filter(move |number| is_chosen(seed, *number, SHARE));
        let share = chosen(7).count() as f64 / 100_000.0;
        // Standard deviation 0.0005.
        assert!((share - SHARE).abs() < 0.003, "{share}");
        assert!(chosen(7).eq(chosen(7)));
        assert!(chosen(7).ne(chosen(8)));
    }

    #[test]
    fn a_burn_uses_the_cpu_time_that_it_says() {
        let begin = cpu_ns();
        burn(Duration::from_millis(2));
        assert!(cpu_ns() - begin >= 2_000_000);
    }
}
