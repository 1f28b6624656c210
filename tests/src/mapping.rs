//! Memory mappings that the service and the workloads fault in by hand.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};

/// Size of a page on every machine the tests run on.
pub const PAGE_BYTES: usize = 4096;

/// How many times as long as an empty call the memory calls are at least that two clocks time.
pub const LONG_CALL_FACTOR: u64 = 50;

/// A mapping of this process, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: *mut c_void,
    length_bytes: usize,
}

// SAFETY: the mapping belongs to this value alone; `read_page` reads, everything that writes takes
// `&mut self`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private, anonymous and writable; no page of it is present.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn anonymous(length_bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel picks the place, so nothing mapped is replaced.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), length_bytes, protection, MapFlags::PRIVATE)
        }?;
        Ok(Self { base, length_bytes })
    }

    /// The first bytes of a file, shared and read-only; no page of it is present.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_file(file: &File, length_bytes: usize) -> io::Result<Self> {
        // SAFETY: as for `anonymous`. Nothing truncates the files of the tests, and a mapping that
        // is only ever read page by page through `read_volatile` makes no promise on its contents.
        let base = unsafe {
            mmap(ptr::null_mut(), length_bytes, ProtFlags::READ, MapFlags::SHARED, file, 0)
        }?;
        Ok(Self { base, length_bytes })
    }

    /// No read-ahead: each page that is not present is a fault of its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn advise_random(&self) -> io::Result<()> {
        // SAFETY: changes no page of the mapping, which is this value's.
        unsafe { madvise(self.base, self.length_bytes, Advice::Random) }?;
        Ok(())
    }

    /// Makes all its pages present, in one call.
    ///
    /// # Errors
    /// When the kernel refuses, or is older than Linux 5.14.
    pub fn populate(&self) -> io::Result<()> {
        // SAFETY: changes the content of no page, and the mapping is this value's.
        unsafe { madvise(self.base, self.length_bytes, Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    /// No huge pages: each page of an anonymous mapping is a fault of its own.
    ///
    /// # Errors
    /// When the kernel refuses, other than for having none.
    pub fn advise_small(&self) -> io::Result<()> {
        // SAFETY: changes no page of the mapping, which is this value's.
        match unsafe { madvise(self.base, self.length_bytes, Advice::LinuxNoHugepage) } {
            Err(rustix::io::Errno::INVAL) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes away the right to write its pages, or gives it back. Of an anonymous mapping only.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn allow_writes(&mut self, are_allowed: bool) -> io::Result<()> {
        let writes = if are_allowed { MprotectFlags::WRITE } else { MprotectFlags::empty() };
        // SAFETY: the mapping is this value's, and borrowed mutably: nobody writes meanwhile.
        unsafe { mprotect(self.base, self.length_bytes, MprotectFlags::READ | writes) }?;
        Ok(())
    }

    /// Where it begins.
    #[must_use]
    pub const fn base(&self) -> *mut c_void {
        self.base
    }

    /// Length in bytes.
    #[must_use]
    pub const fn length_bytes(&self) -> usize {
        self.length_bytes
    }

    /// Whole pages in it.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.length_bytes / PAGE_BYTES
    }

    /// Reads one byte of a page, faulting it in when it is not present. Wraps around the end.
    pub fn read_page(&self, page: usize) -> u8 {
        let offset = page % self.pages() * PAGE_BYTES;
        // SAFETY: inside the mapping, which is readable.
        unsafe { self.base.cast::<u8>().add(offset).read_volatile() }
    }

    /// Reads one byte of every page.
    pub fn read_every_page(&self) {
        for page in 0..self.pages() {
            self.read_page(page);
        }
    }

    /// Writes one byte of a page. Of an anonymous mapping only.
    ///
    /// # Panics
    /// When the mapping has no such page.
    pub fn write_page(&mut self, page: usize) {
        let byte = &mut self.as_mut_slice()[page * PAGE_BYTES];
        // SAFETY: `byte` is a valid reference; volatile so that the store is not left out.
        unsafe { ptr::from_mut(byte).write_volatile(1) };
    }

    /// Asks for huge pages.
    ///
    /// # Errors
    /// When the kernel refuses: it has none.
    pub fn advise_huge(&self) -> io::Result<()> {
        // SAFETY: changes no page of the mapping, which is this value's.
        Ok(unsafe { madvise(self.base, self.length_bytes, Advice::LinuxHugepage) }?)
    }

    /// Writes one byte of every page. Of an anonymous mapping only.
    pub fn write_every_page(&mut self) {
        for byte in self.as_mut_slice().iter_mut().step_by(PAGE_BYTES) {
            // SAFETY: `byte` is a valid reference; volatile so that the store is not left out.
            unsafe { ptr::from_mut(byte).write_volatile(1) };
        }
    }

    /// Gives the pages of an anonymous mapping back to the kernel; they read as zeroes again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn discard(&mut self) -> io::Result<()> {
        // SAFETY: the mapping is this value's, and borrowed mutably.
        unsafe { madvise(self.base, self.length_bytes, Advice::LinuxDontNeed) }?;
        Ok(())
    }

    /// The bytes of an anonymous mapping.
    pub const fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: mapped, initialised with zeroes, and borrowed mutably for as long as the slice
        // lives. Mappings of files are never handed to a caller that writes.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast(), self.length_bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and nobody holds a reference into it any more.
        let unmapped = unsafe { munmap(self.base, self.length_bytes) };
        assert!(unmapped.is_ok(), "munmap: {unmapped:?}");
    }
}
