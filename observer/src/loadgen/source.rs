//! Reading a samples file while it grows: one that exists, one that COMMAND will write, or a FIFO.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::kept::KeptFile;
use super::{Ingest, IngestError};
use crate::place;

/// Bytes per read.
const READ_BYTES: usize = 64 << 10;

/// [`SamplesFile::read`] returns after about this much, so that a session with a huge file stays
/// responsive. After less, everything that was there has been read.
pub const MOST_BYTES: u64 = 1 << 20;

/// A file or FIFO that is followed.
#[derive(Debug)]
pub struct SamplesFile {
    path: PathBuf,
    opened: Option<Opened>,
    /// Receives everything that is read, unchanged.
    copy: Option<KeptFile>,
    /// Nothing more is written that counts.
    ended: bool,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    fifo: bool,
    inode: u64,
    position: u64,
    /// A FIFO whose writers have all closed it again.
    closed: bool,
    /// Where reading ends; `None` while the generator runs, and of a FIFO.
    end: Option<u64>,
}

impl SamplesFile {
    /// Follows `path`, which need not exist yet.
    ///
    /// # Errors
    ///
    /// When it exists and cannot be read, or when it is neither a file nor a FIFO.
    pub fn follow(path: &Path) -> Result<Self, IngestError> {
        let buffer = vec![0; READ_BYTES];
        let path = path.to_owned();
        let mut file = Self { path, opened: None, copy: None, ended: false, buffer };
        file.open()?;
        Ok(file)
    }

    /// From now on, also writes what is read to `copy`.
    #[must_use]
    pub fn copied_to(self, copy: KeptFile) -> Self {
        Self { copy: Some(copy), ..self }
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> IngestError {
        IngestError::Unreadable(format!("{}: {error}", self.path.display()))
    }

    fn open(&mut self) -> Result<(), IngestError> {
        // Non-blocking: a FIFO without a writer must not hold up the run, nor may a terminal or a
        // device at this path.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = match place::open_to_read(&self.path, flags) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.unreadable(error)),
        };
        let meta = file.metadata().map_err(|error| self.unreadable(error))?;
        let fifo = meta.file_type().is_fifo();
        if !fifo && !meta.is_file() {
            return Err(self.unreadable("it is neither a file nor a FIFO"));
        }
        let end = (self.ended && !fifo).then_some(meta.len());
        let inode = meta.ino();
        self.opened = Some(Opened { file, fifo, inode, position: 0, closed: false, end });
        Ok(())
    }

    /// The generator has ended: of a file, only what is there now is read. A FIFO has no such end.
    pub fn end(&mut self) {
        self.ended = true;
        if let Some(opened) = self.opened.as_mut().filter(|opened| !opened.fifo) {
            opened.end = opened.file.metadata().ok().map(|meta| meta.len());
        }
    }

    /// Whether the file was there at any time.
    #[must_use]
    pub const fn exists(&self) -> bool {
        self.opened.is_some()
    }

    /// Whether nothing more comes, because every writer of a FIFO has closed it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.closed)
    }

    /// Whether it is a FIFO, which holds nothing that an earlier run left.
    #[must_use]
    pub fn is_fifo(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.fifo)
    }

    /// The FIFO, if it is one: a writer that finds no room in it waits.
    #[must_use]
    pub fn fifo(&self) -> Option<&File> {
        self.opened.as_ref().filter(|opened| opened.fifo).map(|opened| &opened.file)
    }

    /// Feeds what has been written since; returns how many bytes. 0 is nothing new, not the end:
    /// call it until it is 0 once more after the generator has ended.
    ///
    /// A file that was replaced or emptied (COMMAND overwrites what an earlier run left) is read
    /// from its beginning, and `ingest` starts again.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&mut self, ingest: &mut Ingest) -> Result<u64, IngestError> {
        if self.opened.is_none() {
            self.open()?;
        }
        if self.was_replaced() {
            self.opened = None;
            self.open()?;
            ingest.restart();
            if let Some(copy) = &mut self.copy {
                copy.restart();
            }
        }
        let Self { opened: Some(opened), buffer, .. } = self else { return Ok(0) };
        let mut total = 0;
        while total < MOST_BYTES {
            let left = opened.end.map_or(u64::MAX, |end| end.saturating_sub(opened.position));
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            match opened.file.read(&mut buffer[..room]) {
                Ok(0) => {
                    opened.closed = opened.fifo && opened.position > 0;
                    break;
                }
                Ok(count) => {
                    ingest.feed_in_pieces(&buffer[..count]);
                    if let Some(copy) = &mut self.copy {
                        if ingest.is_of_no_use() {
                            copy.is_of_no_use();
                        }
                        copy.keep(&buffer[..count]);
                    }
                    opened.position += count as u64;
                    total += count as u64;
                    // There was no more.
                    if count < room {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        Ok(total)
    }

    fn was_replaced(&self) -> bool {
        let Some(opened) = self.opened.as_ref().filter(|opened| !opened.fifo) else { return false };
        let shorter = |meta: &Metadata| meta.len() < opened.position;
        match std::fs::metadata(&self.path) {
            Ok(meta) => meta.ino() != opened.inode || shorter(&meta),
            // It has no name any more, and is still the file that the generator writes.
            Err(_) => opened.file.metadata().is_ok_and(|meta| shorter(&meta)),
        }
    }

    /// After the last [`SamplesFile::read`].
    ///
    /// # Errors
    ///
    /// When there never was a file.
    pub fn finish(&self) -> Result<(), IngestError> {
        if self.exists() { Ok(()) } else { Err(self.unreadable("the file does not exist")) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::loadgen::adapter;
    use crate::loadgen::kept::SAMPLES_BYTES;

    const HEADER: &str = "response-time,status-code,offset\n";

    fn ingest() -> Ingest {
        Ingest::new(adapter("hey").unwrap())
    }

    #[test]
    fn the_copy_holds_what_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("hey.csv"), dir.path().join("copy"));
        std::fs::write(&path, format!("{HEADER}9.9,200,0\n8.8,200,0\n")).unwrap();
        let source = SamplesFile::follow(&path).unwrap();
        let mut source = source.copied_to(KeptFile::new(
            File::create(&copy).unwrap(),
            SAMPLES_BYTES,
            std::sync::Arc::default(),
        ));
        let mut ingest = ingest();
        source.read(&mut ingest).unwrap();
        std::fs::write(&path, format!("{HEADER}0.1,200,0\n")).unwrap();
        while source.read(&mut ingest).unwrap() > 0 {}
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), format!("{HEADER}0.1,200,0\n"));
    }

    #[test]
    fn a_file_is_followed_from_before_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hey.csv");
        let mut source = SamplesFile::follow(&path).unwrap();
        let mut ingest = ingest();
        assert_eq!(source.read(&mut ingest), Ok(0));
        assert!(source.finish().is_err() && !source.exists());

        let mut file = File::create(&path).unwrap();
        write!(file, "{HEADER}0.1,200,0").unwrap();
        assert!(source.read(&mut ingest).unwrap() > 0);
        assert_eq!(ingest.live().count, 0);
        writeln!(file, ".5").unwrap();
        source.read(&mut ingest).unwrap();
        assert_eq!(ingest.live().count, 1);
        assert_eq!(source.finish(), Ok(()));
    }

    #[test]
    fn a_file_that_is_overwritten_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hey.csv");
        std::fs::write(&path, format!("{HEADER}0.1,200,0.5\n0.1,200,0.6\n")).unwrap();
        let mut source = SamplesFile::follow(&path).unwrap();
        let mut ingest = ingest();
        source.read(&mut ingest).unwrap();
        assert_eq!(ingest.live().count, 2);
        std::fs::write(&path, format!("{HEADER}0.1,200,0.7\n")).unwrap();
        source.read(&mut ingest).unwrap();
        assert_eq!(ingest.live().count, 1);
        // Another file under the same name.
        let other = dir.path().join("other");
        std::fs::write(&other, format!("{HEADER}{}", "0.1,200,0.8\n".repeat(5))).unwrap();
        std::fs::rename(&other, &path).unwrap();
        source.read(&mut ingest).unwrap();
        assert_eq!(ingest.live().count, 5);
    }

    #[test]
    fn after_the_end_a_file_is_read_as_far_as_it_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hey.csv");
        std::fs::write(&path, format!("{HEADER}0.1,200,0.5\n")).unwrap();
        let mut source = SamplesFile::follow(&path).unwrap();
        source.end();
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writeln!(file, "0.1,200,0.6").unwrap();
        let mut ingest = ingest();
        while source.read(&mut ingest).unwrap() > 0 {}
        assert_eq!(ingest.live().count, 1);
    }

    #[test]
    fn a_fifo_without_a_writer_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let mut source = SamplesFile::follow(&path).unwrap();
        let mut ingest = ingest();
        assert_eq!(source.read(&mut ingest), Ok(0));
        let mut writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        writeln!(writer, "{HEADER}0.1,200,0.5").unwrap();
        source.read(&mut ingest).unwrap();
        assert_eq!(source.read(&mut ingest), Ok(0));
        assert_eq!(ingest.live().count, 1);
        assert!(source.is_fifo() && !source.is_closed());
        drop(writer);
        assert_eq!(source.read(&mut ingest), Ok(0));
        assert!(source.is_closed());
    }

    #[test]
    fn a_directory_and_a_device_are_no_samples() {
        for path in ["/", "/dev/null"] {
            let error = SamplesFile::follow(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains("neither"), "{error}");
        }
    }
}
