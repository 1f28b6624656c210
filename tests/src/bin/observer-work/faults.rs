//! Faults that do not end the way most do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use observer::clock::MonoNanos;
use observer_tests::clone::{clone_with_pid, wait_for};
use observer_tests::kernel_counters;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use serde_json::json;

use crate::memory::{Timed, median_ns, no_huge_pages, timed};
use crate::stage::{report, wait_for_end, wait_for_go};

/// linux/userfaultfd.h.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const UFFD_API: u64 = 0xaa;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const UFFD_EVENT_PAGEFAULT: u64 = 0x12;
/// `struct uffd_msg`, and where the address of a fault lies in it.
const MESSAGE_BYTES: usize = 32;
const MESSAGE_ADDRESS: usize = 16;

fn control<const N: usize>(
    fd: &OwnedFd,
    request: libc::c_ulong,
    words: [u64; N],
) -> io::Result<()> {
    let mut words = words;
    // SAFETY: each request's structure is made of as many words as its number says.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, words.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mapping whose missing pages are brought by another thread.
fn served(mapping: &Mapping) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
    control(&fd, UFFDIO_API, [UFFD_API, 0, 0])?;
    let range = [mapping.base() as u64, mapping.length_bytes() as u64];
    let [base, length] = range;
    control(&fd, UFFDIO_REGISTER, [base, length, UFFDIO_REGISTER_MODE_MISSING, 0])?;
    Ok(fd)
}

/// Waits for a fault, and returns the address of its page.
fn next_fault(fd: &OwnedFd) -> io::Result<u64> {
    let mut message = [0u8; MESSAGE_BYTES];
    rustix::io::read(fd, &mut message)?;
    if u64::from(message[0]) != UFFD_EVENT_PAGEFAULT {
        return Err(io::Error::other("no page fault"));
    }
    let address = message[MESSAGE_ADDRESS..].first_chunk::<8>().copied().unwrap_or_default();
    Ok(u64::from_ne_bytes(address) & !(PAGE_BYTES as u64 - 1))
}

fn bring(fd: &OwnedFd, address: u64) -> io::Result<()> {
    let page = Box::new([7u8; PAGE_BYTES]);
    control(fd, UFFDIO_COPY, [address, page.as_ptr() as u64, PAGE_BYTES as u64, 0, 0])
}

fn serve(fd: &OwnedFd, pages: usize) -> io::Result<()> {
    (0..pages).try_for_each(|_| bring(fd, next_fault(fd)?))
}

/// Faults that are long in comparison with the shortest: each clears a huge page. The caller reports
/// when each began and ended, by its own clock, and the same of faults that map the page of zeroes.
/// Where the kernel has no huge page to give, no fault is long.
pub(crate) fn huge_faults(rounds: usize) -> io::Result<()> {
    const LEAST_FACTOR: u64 = 10;
    let size = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    let size: usize = size.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(2 << 20);
    let small = Mapping::anonymous(2 * rounds * PAGE_BYTES)?;
    no_huge_pages(&small)?;
    let mut huge = Mapping::anonymous(2 * size)?;
    // Without huge pages no fault is long.
    let _ = huge.advise_huge();
    let first = (huge.base() as usize).next_multiple_of(size) - huge.base() as usize;
    let mut empty: Vec<Timed> = Vec::with_capacity(rounds);
    let mut long = Vec::with_capacity(rounds);
    if wait_for_go()? {
        for round in 0..rounds {
            // The first one warms the caches for the second.
            small.read_page(2 * round);
            empty.push(timed(|| small.read_page(2 * round + 1)).1);
            let (page, pid) = (first / PAGE_BYTES, std::process::id());
            let time = timed(|| huge.write_page(page)).1;
            // The neighbour is there already if the page is huge.
            let before = kernel_counters::faults(pid).map_err(io::Error::other)?;
            huge.write_page(page + 1);
            let after = kernel_counters::faults(pid).map_err(io::Error::other)?;
            if after.minor == before.minor {
                long.push(time);
            }
            huge.discard()?;
        }
        let least_ns = LEAST_FACTOR * median_ns(&empty);
        long.retain(|[begin, end]| end - begin >= least_ns);
        let address = huge.base() as usize + first;
        report(&json!({ "address": address, "long": long, "empty": empty }))?;
    }
    wait_for_end()
}

/// Faults that wait for another thread of this process, so that each is tried twice; then
/// children that are killed in the middle of such a fault.
pub(crate) fn userfault(pages: usize, killed: usize) -> io::Result<()> {
    let mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    let fd = served(&mapping)?;
    let server = thread::Builder::new().name("server".into()).spawn(move || serve(&fd, pages))?;
    if wait_for_go()? {
        mapping.read_every_page();
        server.join().map_err(|_| io::Error::other("the server panicked"))??;
        for _ in 0..killed {
            kill_in_fault()?;
        }
        report(&json!({ "retried": pages, "killed": killed }))?;
    }
    wait_for_end()
}

/// Faults in the kernel that wait for another thread. They have the lock of the whole address space
/// from the first attempt on, so that each is tried a second time and is a major fault.
pub(crate) fn kernel_userfault(pages: usize) -> io::Result<()> {
    let mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    let fd = served(&mapping)?;
    let server = thread::Builder::new().name("server".into()).spawn(move || serve(&fd, pages))?;
    if wait_for_go()? {
        for page in 0..pages {
            let place = mapping.base().wrapping_byte_add(page * PAGE_BYTES);
            // SAFETY: the kernel writes a number into a page of this function's own mapping.
            if unsafe { libc::syscall(libc::SYS_getcpu, place, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        server.join().map_err(|_| io::Error::other("the server panicked"))??;
        let (address, bytes) = (mapping.base() as usize, mapping.length_bytes());
        report(&json!({ "address": address, "bytes": bytes, "pages": pages }))?;
    }
    wait_for_end()
}

/// A thread that waits in a fault when the process is stopped. It leaves the fault for that, and
/// begins a new one at the same address when it goes on.
pub(crate) fn stopped_fault(stop: Duration) -> io::Result<()> {
    let mapping = Mapping::anonymous(PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    let fd = served(&mapping)?;
    let shared = rustix::fs::memfd_create("continued", rustix::fs::MemfdFlags::CLOEXEC)?;
    let shared = File::from(shared);
    if wait_for_go()? {
        let address = mapping.base() as usize;
        let faulting = thread::Builder::new().name("faulting".into());
        let faulting = faulting.spawn(move || mapping.read_page(0))?;
        let page = next_fault(&fd)?;
        let parent = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let child = clone_with_pid(None, || {
            // SAFETY: a signal to the parent, which waits for this child.
            unsafe { libc::kill(parent, libc::SIGSTOP) };
            thread::sleep(stop);
            let now = MonoNanos::now().0.to_ne_bytes();
            let written = shared.write_all_at(&now, 0);
            // SAFETY: as above.
            unsafe { libc::kill(parent, libc::SIGCONT) };
            assert!(written.is_ok(), "{written:?}");
        })?;
        wait_for(child)?;
        let mut continued_ns = [0; 8];
        shared.read_exact_at(&mut continued_ns, 0)?;
        // The same fault anew.
        let again = next_fault(&fd)?;
        bring(&fd, again)?;
        faulting.join().map_err(|_| io::Error::other("the thread panicked"))?;
        let continued_ns = u64::from_ne_bytes(continued_ns);
        let same = page == again && page == address as u64;
        report(&json!({ "address": address, "continued_ns": continued_ns, "same": same }))?;
    }
    wait_for_end()
}

fn kill_in_fault() -> io::Result<()> {
    let mapping = Mapping::anonymous(PAGE_BYTES)?;
    let child = clone_with_pid(None, || {
        // Its own userfaultfd, which no thread serves.
        let _fd = served(&mapping);
        mapping.read_page(0);
    })?;
    thread::sleep(std::time::Duration::from_millis(5));
    // SAFETY: a child of this process that nobody waited for yet.
    unsafe { libc::kill(child, libc::SIGKILL) };
    wait_for(child)?;
    Ok(())
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static FILE: AtomicI32 = AtomicI32::new(-1);

/// Makes the page that was touched accessible.
extern "C" fn on_segv(_signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's own structure; the page is one of the mapping under test.
    unsafe {
        let page = (*info).si_addr() as usize & !(PAGE_BYTES - 1);
        libc::mprotect(page as *mut _, PAGE_BYTES, libc::PROT_READ | libc::PROT_WRITE);
    }
}

/// Makes the file one page longer.
extern "C" fn on_bus(_signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let pages = SIGNALS.fetch_add(1, Ordering::Relaxed) + 1;
    // SAFETY: takes no pointer.
    unsafe { libc::ftruncate(FILE.load(Ordering::Relaxed), (pages * PAGE_BYTES as u64) as i64) };
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

fn handle(signal: libc::c_int, handler: Handler) {
    SIGNALS.store(0, Ordering::Relaxed);
    // SAFETY: the handlers make only system calls that are safe in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

/// Faults that end in a signal whose handler mends the cause, and children that such a signal
/// kills.
pub(crate) fn bad_faults(path: &Path, rounds: usize, killed: usize) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let mut protected = Mapping::anonymous(rounds * PAGE_BYTES)?;
    no_huge_pages(&protected)?;
    let beyond = Mapping::of_file(&file, rounds * PAGE_BYTES)?;
    beyond.advise_random()?;
    if wait_for_go()? {
        // SAFETY: this function's own mapping.
        unsafe {
            libc::mprotect(protected.base(), protected.length_bytes(), libc::PROT_NONE);
        }
        handle(libc::SIGSEGV, on_segv);
        protected.write_every_page();
        let segv = SIGNALS.load(Ordering::Relaxed);
        handle(libc::SIGBUS, on_bus);
        FILE.store(file.as_raw_fd(), Ordering::Relaxed);
        beyond.read_every_page();
        let bus = SIGNALS.load(Ordering::Relaxed);
        for _ in 0..killed {
            let child = clone_with_pid(None, || {
                // SAFETY: it is meant to be killed by this.
                unsafe {
                    libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                    std::ptr::null_mut::<u8>().wrapping_add(8).write_volatile(1);
                }
            })?;
            wait_for(child)?;
        }
        report(&json!({ "segv": segv, "bus": bus, "killed": killed }))?;
    }
    wait_for_end()
}

/// Reads a file into memory that is not there yet, and maps memory at once: in a tight cgroup
/// reclaims lie inside faults inside read(2), and inside mmap(2).
pub(crate) fn nested(path: &Path, mib: usize, rounds: usize) -> io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    const PAGES: usize = 64;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len((mib << 20) as u64)?;
    let mut buffer = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    no_huge_pages(&buffer)?;
    if wait_for_go()? {
        for round in 0..rounds {
            buffer.discard()?;
            let offset = (round * PAGES * PAGE_BYTES) % (mib << 20);
            read_over(&file, &mut buffer, offset as u64)?;
            let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
            // SAFETY: a mapping made here, which nobody else knows.
            unsafe {
                let null = std::ptr::null_mut();
                let length = PAGES * PAGE_BYTES;
                let base = mmap_anonymous(null, length, ProtFlags::READ | ProtFlags::WRITE, flags)?;
                munmap(base, length)?;
            }
        }
        report(&json!({ "mmap": rounds, "populated": rounds * PAGES, "read": rounds * PAGES }))?;
    }
    wait_for_end()
}

fn read_over(file: &File, buffer: &mut Mapping, offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer.as_mut_slice(), offset)
}

/// Two processes whose ids fall on the same slot of a table of 2^17, in the middle of calls at the
/// same time.
pub(crate) fn collide(rounds: usize) -> io::Result<()> {
    const SLOTS: i32 = 1 << 17;
    let work = || {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        const LENGTH: usize = 128 * PAGE_BYTES;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        for _ in 0..rounds {
            // SAFETY: a mapping made here, which nobody else knows.
            let unmapped = unsafe {
                let null = std::ptr::null_mut();
                mmap_anonymous(null, LENGTH, ProtFlags::READ | ProtFlags::WRITE, flags)
                    .and_then(|base| munmap(base, LENGTH))
            };
            if unmapped.is_err() {
                return;
            }
        }
    };
    if wait_for_go()? {
        let first = clone_with_pid(None, work)?;
        let second = clone_with_pid(Some(first + SLOTS), work)?;
        wait_for(first)?;
        wait_for(second)?;
        report(&json!({ "calls": 4 * rounds, "pids": [first, second] }))?;
    }
    wait_for_end()
}
