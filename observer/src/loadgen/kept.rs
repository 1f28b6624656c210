//! The copy of a generator's output in the run directory: its beginning, and how much more there
//! was.

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most bytes kept of samples: those of the 4,000,000 requests that are used fit.
pub const SAMPLES_BYTES: u64 = 1 << 30;
/// Most bytes kept of output that is for users only.
pub const OUTPUT_BYTES: u64 = 64 << 20;

/// A file that takes the beginning of a stream.
#[derive(Debug)]
pub struct KeptFile {
    file: File,
    written: u64,
    limit: u64,
    cut: Arc<AtomicU64>,
}

impl KeptFile {
    /// An empty file that takes this many bytes at most. What exceeds them is counted in `cut`.
    #[must_use]
    pub fn new(file: File, limit: u64, cut: Arc<AtomicU64>) -> Self {
        Self { file, written: 0, limit, cut }
    }

    /// Another stream into the same file.
    ///
    /// # Errors
    /// When the descriptor cannot be copied.
    pub fn beside(&self) -> std::io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, self.limit, Arc::clone(&self.cut)))
    }

    /// Keeps what there is room for. If the disk has none, nothing fails: the copy is not needed
    /// for the answer.
    pub fn keep(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.limit.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        let written = if self.file.write_all(kept).is_ok() { kept.len() } else { 0 };
        self.written += kept.len() as u64;
        self.cut.fetch_add((bytes.len() - written) as u64, Ordering::Relaxed);
    }

    /// The stream cannot be used: only so much is kept as users need to see what it is.
    pub fn is_of_no_use(&mut self) {
        self.limit = self.limit.min(OUTPUT_BYTES);
    }

    /// The stream starts again.
    pub fn restart(&mut self) {
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.written = 0;
        self.cut.store(0, Ordering::Relaxed);
    }

    /// Says at the end of the file what is missing, if anything is.
    pub fn say_cut(&mut self) {
        let cut = self.cut.load(Ordering::Relaxed);
        if cut > 0 {
            let _ = writeln!(self.file, "\n[observer: {cut} more bytes were not kept]");
        }
    }
}
