//! Requests that read a file, which are slow when memory has to be reclaimed first.
//!
//! The index is mapped often because reclaim visits each mapping of a page before it frees it. A clean
//! page without mappings is freed in less time than it takes to fill it again, and no request would
//! be slow by much. The memory that requests fill is given back after every 32 of them, so that the
//! service needs more memory at one time than at another, as garbage collection and caches do.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::memory::Mapping;

const INDEX_BYTES: usize = 128 << 20;
const INDEX_MAPPINGS: usize = 48;
/// Pages of the index that a request looks at.
const INDEX_PAGES: usize = 512;
const DATA_BYTES: u64 = 16 << 20;
/// Bytes that a request reads, and in which pieces.
const SLICE_BYTES: usize = 512 << 10;
const CHUNK_BYTES: usize = 128 << 10;
/// Slices that a thread reads before it gives their memory back.
const SLICES: usize = 32;

/// Makes a file, and removes its name at once: nothing is left behind.
pub(super) fn without_name(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// The file, its index and the next place to read.
pub(super) struct Data {
    file: File,
    index: Vec<Mapping>,
    next_slice: AtomicU64,
    next_page: AtomicUsize,
}

impl Data {
    /// Makes the sparse file.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let file = without_name(path)?;
        file.set_len(INDEX_BYTES as u64 + DATA_BYTES)?;
        let index: Vec<Mapping> = (0..INDEX_MAPPINGS)
            .map(|_| Mapping::of_file(&file, INDEX_BYTES))
            .collect::<io::Result<_>>()?;
        for mapping in &index {
            for page in 0..INDEX_BYTES / super::memory::PAGE_BYTES {
                mapping.read_page(page);
            }
        }
        Ok(Self { file, index, next_slice: AtomicU64::new(0), next_page: AtomicUsize::new(0) })
    }

    /// Reads the next slice into fresh pages, and looks at some pages of the index.
    pub(super) fn read(&self, arena: &mut Arena) -> io::Result<()> {
        let slices = DATA_BYTES / SLICE_BYTES as u64;
        let slice = self.next_slice.fetch_add(1, Ordering::Relaxed) % slices;
        let mut offset = INDEX_BYTES as u64 + slice * SLICE_BYTES as u64;
        for chunk in arena.take()?.chunks_mut(CHUNK_BYTES) {
            self.file.read_exact_at(chunk, offset)?;
            offset += chunk.len() as u64;
        }
        if let Some(index) = self.index.last() {
            let first = self.next_page.fetch_add(INDEX_PAGES, Ordering::Relaxed);
            for page in 0..INDEX_PAGES {
                index.read_page(first.wrapping_add(page));
            }
        }
        Ok(())
    }
}

/// Memory of a thread that requests fill.
pub(super) struct Arena {
    pages: Mapping,
    used_bytes: usize,
}

impl Arena {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { pages: Mapping::anonymous(SLICES * SLICE_BYTES, false)?, used_bytes: 0 })
    }

    /// The next slice; its pages are not present.
    fn take(&mut self) -> io::Result<&mut [u8]> {
        if self.used_bytes + SLICE_BYTES > self.pages.length_bytes() {
            self.pages.discard()?;
            self.used_bytes = 0;
        }
        let first = self.used_bytes;
        self.used_bytes += SLICE_BYTES;
        Ok(&mut self.pages.as_mut_slice()[first..first + SLICE_BYTES])
    }
}
