//! The copy of a generator's output in the run directory: its beginning, its checksum, and how much
//! more there was.

use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::KeptPart;

/// Most bytes kept of samples: those of the 4,000,000 requests that are used fit.
pub const SAMPLES_BYTES: u64 = 1 << 30;
/// Most bytes kept of output that is for users only.
pub const OUTPUT_BYTES: u64 = 64 << 20;

/// What is in a file so far, readable from any thread.
#[derive(Debug, Default)]
pub struct Kept(Mutex<Written>);

#[derive(Debug, Default)]
struct Written {
    bytes: u64,
    sum: crc32fast::Hasher,
    /// Bytes that were not kept.
    cut: u64,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Written> {
        // It is changed only after a write, as a whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been written.
    #[must_use]
    pub fn part(&self) -> KeptPart {
        let written = self.lock();
        KeptPart::new(written.bytes, written.sum.clone())
    }

    /// Bytes that were not kept.
    #[must_use]
    pub fn cut(&self) -> u64 {
        self.lock().cut
    }
}

/// A file that takes the beginning of a stream.
#[derive(Debug)]
pub struct KeptFile {
    file: File,
    /// Of this stream.
    taken: u64,
    limit: u64,
    kept: Arc<Kept>,
}

impl KeptFile {
    /// An empty file that takes this many bytes at most. `kept` tells what is in it.
    #[must_use]
    pub fn new(file: File, limit: u64, kept: Arc<Kept>) -> Self {
        Self { file, taken: 0, limit, kept }
    }

    /// Another stream into the same file.
    ///
    /// # Errors
    /// When the descriptor cannot be copied.
    pub fn beside(&self) -> std::io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, self.limit, Arc::clone(&self.kept)))
    }

    /// Keeps what there is room for. If the disk has none, nothing fails: the copy is not needed
    /// for the answer.
    pub fn keep(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.limit.saturating_sub(self.taken)).unwrap_or(usize::MAX);
        let kept = &bytes[..bytes.len().min(room)];
        self.taken += kept.len() as u64;
        // Another stream into this file waits meanwhile: the checksum has the order of the file.
        let mut state = self.kept.lock();
        let written = write(&mut self.file, kept, &mut state);
        state.cut += (bytes.len() - written) as u64;
    }

    /// The stream cannot be used: only so much is kept as users need to see what it is.
    pub fn is_of_no_use(&mut self) {
        self.limit = self.limit.min(OUTPUT_BYTES);
    }

    /// The stream starts again.
    pub fn restart(&mut self) {
        let mut state = self.kept.lock();
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind());
        *state = Written::default();
        self.taken = 0;
    }

    /// Says at the end of the file what is missing, if anything is.
    pub fn say_cut(&mut self) {
        let mut state = self.kept.lock();
        if state.cut > 0 {
            let text = format!("\n[observer: {} more bytes were not kept]\n", state.cut);
            write(&mut self.file, text.as_bytes(), &mut state);
        }
    }
}

/// Writes as much as the disk takes; how much that was.
fn write(file: &mut File, bytes: &[u8], state: &mut Written) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => break,
            Ok(count) => {
                state.sum.update(&bytes[done..done + count]);
                state.bytes += count as u64;
                done += count;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_file_whatever_became_of_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let kept = Arc::new(Kept::default());
        let mut copy = KeptFile::new(File::create_new(&path).unwrap(), 10, Arc::clone(&kept));
        let assert_sum = |cut: u64| {
            let content = std::fs::read(&path).unwrap();
            let mut sum = crc32fast::Hasher::new();
            sum.update(&content);
            assert_eq!(kept.part(), KeptPart::new(content.len() as u64, sum));
            assert_eq!(kept.cut(), cut);
        };
        assert_sum(0);
        copy.keep(b"first");
        copy.beside().unwrap().keep(b"beside");
        assert_sum(0);
        copy.restart();
        assert_sum(0);
        copy.keep(b"twelve bytes");
        assert_sum(2);
        copy.say_cut();
        assert_sum(2);
        // A disk without room takes nothing.
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let kept = Arc::new(Kept::default());
        KeptFile::new(full, 10, Arc::clone(&kept)).keep(b"four");
        assert_eq!((kept.part().bytes, kept.cut()), (0, 4));
    }
}
