//! Memory mappings that the service fills by hand.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Pages of this size exist on every machine on which the programs run.
pub(super) const PAGE_BYTES: usize = 4096;

/// A mapping of this process, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut c_void,
    length_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone; what writes takes `&mut self`.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared references only read single bytes with volatile loads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private, anonymous, writable and of small pages; no page is present unless `populate` is set.
    pub(super) fn anonymous(length_bytes: usize, populate: bool) -> io::Result<Self> {
        let flags = if populate { MapFlags::POPULATE } else { MapFlags::empty() };
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks the place, so nothing that is mapped is replaced.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), length_bytes, protection, MapFlags::PRIVATE | flags)
        }?;
        let mapping = Self { base, length_bytes };
        if !populate {
            mapping.advise(Advice::LinuxNoHugepage);
        }
        Ok(mapping)
    }

    /// The first bytes of a file, shared and read-only, without read-ahead.
    pub(super) fn of_file(file: &File, length_bytes: usize) -> io::Result<Self> {
        // SAFETY: as in `anonymous`. The file is the service's own and is not truncated.
        let base = unsafe {
            mmap(ptr::null_mut(), length_bytes, ProtFlags::READ, MapFlags::SHARED, file, 0)
        }?;
        let mapping = Self { base, length_bytes };
        mapping.advise(Advice::Random);
        Ok(mapping)
    }

    fn advise(&self, advice: Advice) {
        // A kernel without such pages refuses, and then has none of them.
        // SAFETY: changes the content of no page, and the mapping is this value's.
        let _ = unsafe { madvise(self.base, self.length_bytes, advice) };
    }

    /// Length in bytes.
    pub(super) const fn length_bytes(&self) -> usize {
        self.length_bytes
    }

    /// Reads one byte of a page; wraps around the end.
    pub(super) fn read_page(&self, page: usize) -> u8 {
        let offset = page % (self.length_bytes / PAGE_BYTES) * PAGE_BYTES;
        // SAFETY: inside the mapping, which is readable.
        unsafe { self.base.cast::<u8>().add(offset).read_volatile() }
    }

    /// Writes one byte of every page of an anonymous mapping.
    pub(super) fn touch(&mut self) {
        for byte in self.as_mut_slice().iter_mut().step_by(PAGE_BYTES) {
            // SAFETY: `byte` is a valid reference; volatile so that the store is not left out.
            unsafe { ptr::from_mut(byte).write_volatile(1) };
        }
    }

    /// Gives the pages of an anonymous mapping back to the kernel.
    pub(super) fn discard(&mut self) -> io::Result<()> {
        // SAFETY: the mapping is this value's, and borrowed mutably.
        unsafe { madvise(self.base, self.length_bytes, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// The bytes of an anonymous mapping.
    pub(super) const fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: mapped, initialised with zeroes, and borrowed mutably for as long as the slice
        // lives. A mapping of a file is never borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast(), self.length_bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and no reference into it is left.
        let _ = unsafe { munmap(self.base, self.length_bytes) };
    }
}
