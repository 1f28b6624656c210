//! Map values in user memory: an mmap of an array map, read and written without system calls.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::Map;
use bytemuck::Pod;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::Kernel;

/// A `BPF_F_MMAPABLE` array map, seen as 64-bit words.
///
/// The kernel's programs write concurrently, so every access is a relaxed atomic.
pub(super) struct MappedWords {
    words: NonNull<AtomicU64>,
    length: usize,
    bytes: usize,
}

// SAFETY: the memory is only reached through atomics and lives until drop.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps `entries` values of `value_bytes` (a multiple of eight) each.
    ///
    /// # Errors
    /// When the kernel refuses (the map was not created mappable, or is smaller).
    pub(super) fn new(fd: impl AsFd, entries: usize, value_bytes: usize) -> std::io::Result<Self> {
        Self::part(fd, 0, entries * value_bytes)
    }

    /// Maps `used` bytes from a multiple of the page size on.
    ///
    /// # Errors
    /// As for [`MappedWords::new`].
    pub(super) fn part(fd: impl AsFd, from_bytes: usize, used: usize) -> std::io::Result<Self> {
        Self::map(fd, from_bytes, used, ProtFlags::READ | ProtFlags::WRITE)
    }

    /// Maps `used` bytes that must not be written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn read_only(fd: impl AsFd, used: usize) -> std::io::Result<Self> {
        Self::map(fd, 0, used, ProtFlags::READ)
    }

    fn map(
        fd: impl AsFd,
        from_bytes: usize,
        used: usize,
        access: ProtFlags,
    ) -> std::io::Result<Self> {
        let page = rustix::param::page_size();
        let bytes = used.div_ceil(page) * page;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let address = unsafe {
            mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, fd, from_bytes as u64)
        }?;
        let words = NonNull::new(address.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { words, length: used / 8, bytes })
    }

    /// The words of the map, in order.
    #[must_use]
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for `bytes >= length * 8` in `part`, unmapped in `drop` only.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.length) }
    }

    /// One word; 0 past the end.
    #[must_use]
    pub(super) fn get(&self, index: usize) -> u64 {
        self.words().get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// A value of the map, an array of `T`; zeros past the end.
    #[must_use]
    pub(super) fn value<T: Pod>(&self, place: usize) -> T {
        let mut value = T::zeroed();
        let first = place * size_of::<T>() / 8;
        for (word, bytes) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.get(first + word).to_ne_bytes());
        }
        value
    }

    /// Writes one word; nothing past the end.
    pub(super) fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.words().get(index) {
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl Kernel {
    /// The values of an array map, mapped into memory; `None`, with a warning, when the kernel refuses.
    pub(super) fn map_words(
        &self,
        name: &'static str,
        entries: usize,
        value_bytes: usize,
    ) -> Option<MappedWords> {
        let Some(Map::Array(map)) = self.ebpf.map(name) else { return None };
        let words = MappedWords::new(map.fd(), entries, value_bytes);
        words
            .inspect_err(|error| tracing::warn!("cannot map BPF map {name} into memory: {error}"))
            .ok()
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: mapped in `part` with this size; no reference outlives `self`. A failure only
        // leaves the mapping behind.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.bytes) };
    }
}
