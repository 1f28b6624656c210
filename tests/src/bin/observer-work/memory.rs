//! Faults, reclaim and memory-management calls.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use observer::clock::MonoNanos;
use observer_tests::mapping::{LONG_CALL_FACTOR, Mapping, PAGE_BYTES};
use serde_json::{Value, json};

use crate::stage::{report, wait_for_end, wait_for_go};

pub(crate) fn minor_faults(pages: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    if wait_for_go()? {
        let [begin, end] = timed(|| mapping.write_every_page()).1;
        report(&json!({ "minor_faults": pages, "touched_ns": end - begin }))?;
    }
    wait_for_end()
}

pub(crate) fn no_huge_pages(mapping: &Mapping) -> io::Result<()> {
    let advice = rustix::mm::Advice::LinuxNoHugepage;
    // SAFETY: advises on the caller's own mapping; no page of it changes.
    match unsafe { rustix::mm::madvise(mapping.base(), mapping.length_bytes(), advice) } {
        // A kernel that has no huge pages at all (PREEMPT_RT) rejects this advice.
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

pub(crate) fn major_faults(path: &Path, pages: usize) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let page = [7u8; PAGE_BYTES];
    for index in 0..pages {
        file.write_all_at(&page, (index * PAGE_BYTES) as u64)?;
    }
    file.sync_all()?;
    let mapping = Mapping::of_file(&file, pages * PAGE_BYTES)?;
    mapping.advise_random()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    if wait_for_go()? {
        let [begin, end] = timed(|| mapping.read_every_page()).1;
        let (base, length_bytes) = (mapping.base() as u64, mapping.length_bytes());
        report(&json!({
            "major_faults": pages, "base": base, "length_bytes": length_bytes,
            "touched_ns": end - begin,
        }))?;
    }
    wait_for_end()
}

fn brk(address: usize) -> usize {
    // SAFETY: moves the program break; whoever calls it moves it back before anything that was
    // beyond it is used.
    unsafe { libc::syscall(libc::SYS_brk, address) as usize }
}

pub(crate) fn memory_calls(rounds: usize) -> io::Result<()> {
    use rustix::mm::{
        Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mprotect,
        mremap, munmap,
    };
    const LENGTH: usize = 16 * PAGE_BYTES;
    if wait_for_go()? {
        for _ in 0..rounds {
            let null = std::ptr::null_mut();
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: all of it happens to a mapping made here, which nobody else knows.
            unsafe {
                let base = mmap_anonymous(null, LENGTH, protection, MapFlags::PRIVATE)?;
                mprotect(base, LENGTH, MprotectFlags::READ)?;
                madvise(base, LENGTH, Advice::LinuxDontNeed)?;
                let base = mremap(base, LENGTH, 2 * LENGTH, MremapFlags::MAYMOVE)?;
                munmap(base, 2 * LENGTH)?;
                // Fails, but still counts as a call.
                let _ = madvise(base, LENGTH, Advice::LinuxDontNeed);
            }
        }
        let end = brk(0);
        for _ in 0..rounds {
            brk(end + PAGE_BYTES);
            brk(end);
        }
        report(&json!({
            "mmap": rounds, "mprotect": rounds, "madvise": 2 * rounds, "mremap": rounds,
            "munmap": rounds, "brk": 2 * rounds + 1, "madvise_failed": rounds,
        }))?;
    }
    wait_for_end()
}

pub(crate) fn reclaim(path: &Path, mib: usize, rounds: usize) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let bytes = mib << 20;
    file.set_len(bytes as u64)?;
    let mut buffer = vec![0u8; 128 << 10];
    let mapping = Mapping::of_file(&file, bytes / 4)?;
    if wait_for_go()? {
        for _ in 0..rounds {
            mapping.read_every_page();
            let mut offset = 0;
            while offset < bytes {
                let want = buffer.len().min(bytes - offset);
                file.read_exact_at(&mut buffer[..want], offset as u64)?;
                offset += want;
            }
        }
        report(&json!({ "bytes": bytes * rounds }))?;
    }
    wait_for_end()
}

/// Pages that a child still has: each write copies one.
pub(crate) fn copy_on_write(pages: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    mapping.write_every_page();
    // SAFETY: the child only sleeps until its parent ends, then ends.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: no memory is involved.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::pause();
            }
        },
        _ => {}
    }
    if wait_for_go()? {
        mapping.write_every_page();
        report(&json!({ "copies": pages }))?;
    }
    wait_for_end()?;
    // SAFETY: a child of this process that nobody waited for yet.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    Ok(())
}

/// A huge page of zeroes would make a long call a short one.
fn no_huge_pages_at_all() -> io::Result<()> {
    // SAFETY: takes no pointer.
    match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One call: when it began and ended, by the caller's own clock.
pub(crate) type Timed = [u64; 2];

pub(crate) fn timed<T>(call: impl FnOnce() -> T) -> (T, Timed) {
    let begin = MonoNanos::now();
    let result = call();
    (result, [begin.0, MonoNanos::now().0])
}

/// The three long calls, by index.
const MMAP: usize = 0;
const MADVISE: usize = 1;
const MUNMAP: usize = 2;
const KINDS: usize = 3;

/// Times of the three long calls, and of empty calls of the same system calls.
#[derive(Default)]
struct CallTimes {
    long: [Vec<Timed>; KINDS],
    empty: [Vec<Timed>; KINDS],
    /// Of all calls of each kind, those of tried rounds too.
    total_ns: [u64; 3],
}

impl CallTimes {
    fn with_room(rounds: usize) -> Self {
        let room = || std::array::from_fn(|_| Vec::with_capacity(rounds));
        Self { long: room(), empty: room(), total_ns: [0; 3] }
    }

    /// One round with mappings of this many bytes. Their pages are all the page of zeroes: the
    /// calls take long, and the caches stay about as warm as an empty call leaves them.
    fn round(&mut self, lengths: [usize; 3]) -> io::Result<()> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        let map = |bytes: usize| {
            let map = || {
                // SAFETY: the kernel picks the place, so nothing mapped is replaced.
                unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ, flags) }
            };
            timed(map)
        };
        self.empty(MMAP, || map(0).1);
        for (kind, bytes) in lengths.into_iter().enumerate() {
            let (base, time) = map(bytes);
            let base = base?;
            if kind == MMAP {
                self.long(MMAP, time);
            } else {
                self.add(MMAP, time);
            }
            // SAFETY: advises on, and unmaps, the mapping made above, which nobody else knows.
            unsafe {
                if kind == MADVISE {
                    self.empty(MADVISE, || timed(|| madvise(base, 0, Advice::LinuxDontNeed)).1);
                    let (advised, time) = timed(|| madvise(base, bytes, Advice::LinuxDontNeed));
                    advised?;
                    self.long(MADVISE, time);
                }
                if kind == MUNMAP {
                    self.empty(MUNMAP, || timed(|| munmap(base, 0)).1);
                }
                let (unmapped, time) = timed(|| munmap(base, bytes));
                unmapped?;
                if kind == MUNMAP {
                    self.long(MUNMAP, time);
                } else {
                    self.add(MUNMAP, time);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, kind: usize, [begin, end]: Timed) {
        self.total_ns[kind] += end - begin;
    }

    fn long(&mut self, kind: usize, time: Timed) {
        self.add(kind, time);
        self.long[kind].push(time);
    }

    /// Empty calls fail at once or do nothing, and pass the same entry, the same exit and the same
    /// BPF programs as long ones. The first one warms the caches for the second one, as that does
    /// for the long call that follows.
    fn empty(&mut self, kind: usize, mut call: impl FnMut() -> Timed) {
        let time = call();
        self.add(kind, time);
        let time = call();
        self.add(kind, time);
        self.empty[kind].push(time);
    }

    /// Whether a kind of long call takes this many times as long as its empty call.
    fn empty_fits(&self, kind: usize, times: u64) -> bool {
        median_ns(&self.long[kind]) >= times * median_ns(&self.empty[kind])
    }
}

pub(crate) fn median_ns(calls: &[Timed]) -> u64 {
    let mut lengths: Vec<u64> = calls.iter().map(|[begin, end]| end - begin).collect();
    lengths.sort_unstable();
    lengths.get(lengths.len() / 2).copied().unwrap_or_default()
}

/// Calls that are long in comparison with an empty call, whatever the CPU and the programs attached:
/// only then does a comparison of two clocks say something. The caller reports when each call began
/// and ended.
pub(crate) fn long_calls(rounds: usize) -> io::Result<()> {
    const SHORTEST_PAGES: usize = 512;
    const LONGEST_PAGES: usize = 512 << 8;
    const TRIED_ROUNDS: usize = 9;
    no_huge_pages_at_all()?;
    let mut times = CallTimes::with_room(rounds);
    let mut tried = CallTimes::with_room(TRIED_ROUNDS);
    if wait_for_go()? {
        // Records are identified by their lengths: no two kinds have the same length, and neither
        // do the trial rounds.
        let lengths = |pages: [usize; 3], more: usize| {
            [MMAP, MADVISE, MUNMAP].map(|kind| (pages[kind] + kind + more) * PAGE_BYTES)
        };
        let mut pages = [SHORTEST_PAGES; 3];
        loop {
            tried.long.iter_mut().chain(&mut tried.empty).for_each(Vec::clear);
            for _ in 0..TRIED_ROUNDS {
                tried.round(lengths(pages, KINDS))?;
            }
            let short = |kind: &usize| {
                // With room to spare, so that those that count are long enough as well.
                !tried.empty_fits(*kind, 2 * LONG_CALL_FACTOR) && pages[*kind] < LONGEST_PAGES
            };
            let short: Vec<usize> = [MMAP, MADVISE, MUNMAP].into_iter().filter(short).collect();
            if short.is_empty() {
                break;
            }
            short.iter().for_each(|kind| pages[*kind] *= 2);
        }
        let lengths = lengths(pages, 0);
        times.total_ns = tried.total_ns;
        for _ in 0..rounds {
            times.round(lengths)?;
        }
        let by_kind = |[mmap, madvise, munmap]: [Value; 3]| json!({ "mmap": mmap, "madvise": madvise, "munmap": munmap });
        report(&json!({
            "length_bytes": by_kind(lengths.map(Value::from)),
            "long": by_kind(times.long.map(|calls| json!(calls))),
            "empty": by_kind(times.empty.map(|calls| json!(calls))),
            "total_ns": by_kind(times.total_ns.map(Value::from)),
        }))?;
    }
    wait_for_end()
}

/// Writes more memory than there is, again and again.
pub(crate) fn fill(mib: usize, rounds: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(mib << 20)?;
    no_huge_pages(&mapping)?;
    if wait_for_go()? {
        for _ in 0..rounds {
            mapping.write_every_page();
        }
        report(&json!({ "pages": mapping.pages() * rounds }))?;
    }
    wait_for_end()
}

/// Fills memory, gives every other page back, then asks for huge pages.
pub(crate) fn fragment(mib: usize) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};
    let mut small = Mapping::anonymous(mib << 20)?;
    no_huge_pages(&small)?;
    let mut huge = Mapping::anonymous(mib << 18)?;
    // SAFETY: advises on this function's own mapping.
    unsafe { madvise(huge.base(), huge.length_bytes(), Advice::LinuxHugepage) }?;
    small.write_every_page();
    for page in (0..small.pages()).step_by(2) {
        // SAFETY: one page of this function's own mapping, which is not read again.
        unsafe {
            let address = small.base().byte_add(page * PAGE_BYTES);
            madvise(address, PAGE_BYTES, Advice::LinuxDontNeed)?;
        }
    }
    if wait_for_go()? {
        huge.write_every_page();
        report(&json!({ "pages": huge.pages() }))?;
    }
    wait_for_end()
}
