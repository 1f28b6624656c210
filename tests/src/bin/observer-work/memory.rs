//! Faults, reclaim and memory-management calls.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use observer::clock::MonoNanos;
use observer_tests::mapping::{LONG_CALL_BYTES, Mapping, PAGE_BYTES};
use serde_json::json;

use crate::stage::{report, wait_for_end, wait_for_go};

pub(crate) fn minor_faults(pages: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    if wait_for_go()? {
        mapping.write_every_page();
        report(&json!({ "minor_faults": pages }))?;
    }
    wait_for_end()
}

pub(crate) fn no_huge_pages(mapping: &Mapping) -> io::Result<()> {
    let advice = rustix::mm::Advice::LinuxNoHugepage;
    // SAFETY: advises on the caller's own mapping; no page of it changes.
    match unsafe { rustix::mm::madvise(mapping.base(), mapping.length_bytes(), advice) } {
        // A kernel that has no huge pages at all (PREEMPT_RT) knows no such advice.
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
        mapping.read_every_page();
        let (base, length_bytes) = (mapping.base() as u64, mapping.length_bytes());
        report(&json!({ "major_faults": pages, "base": base, "length_bytes": length_bytes }))?;
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
                // Fails, and is a call all the same.
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

/// Calls that take long enough for two clocks to agree on how long; the caller notes when each began
/// and ended.
pub(crate) fn long_calls(rounds: usize) -> io::Result<()> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
    const LENGTH: usize = LONG_CALL_BYTES as usize;
    let mut calls: [Vec<[u64; 2]>; 3] = std::array::from_fn(|_| Vec::with_capacity(rounds));
    let since = |begin: MonoNanos| [begin.0, MonoNanos::now().0];
    if wait_for_go()? {
        for _ in 0..rounds {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
            // SAFETY: all of it happens to a mapping made here, which nobody else knows.
            unsafe {
                let begin = MonoNanos::now();
                let base = mmap_anonymous(std::ptr::null_mut(), LENGTH, protection, flags)?;
                calls[0].push(since(begin));
                let begin = MonoNanos::now();
                madvise(base, LENGTH, Advice::LinuxDontNeed)?;
                calls[1].push(since(begin));
                base.cast::<u8>().write_bytes(1, LENGTH);
                let begin = MonoNanos::now();
                munmap(base, LENGTH)?;
                calls[2].push(since(begin));
            }
        }
        let [mmap, madvise, munmap] = calls;
        report(&json!({ "mmap": mmap, "madvise": madvise, "munmap": munmap }))?;
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
