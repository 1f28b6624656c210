//! Reading the generator's samples while it runs: from COMMAND's output, a file that grows, a
//! FIFO or standard input. What comes is kept as it came.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::loadgen::{Ingest, IngestError, Live, SamplesSource, SamplesSpec};

/// Time between two looks at a file that may grow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Reads one source on a thread of its own.
pub(super) struct SampleReader {
    stop: Arc<AtomicBool>,
    ingest: Arc<Mutex<Ingest>>,
    thread: JoinHandle<Result<(), IngestError>>,
}

fn lock(ingest: &Mutex<Ingest>) -> MutexGuard<'_, Ingest> {
    // A panic elsewhere does not make the rows already read wrong.
    ingest.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Source {
    Descriptor(File),
    Path(PathBuf),
}

impl SampleReader {
    /// Starts reading. `command_output` is COMMAND's standard output, used when the samples come
    /// from there. A copy of every byte goes to `copy`.
    ///
    /// # Errors
    /// When the system has no thread or descriptor to give.
    pub(super) fn start(
        spec: &SamplesSpec,
        command_output: Option<OwnedFd>,
        copy: File,
    ) -> std::io::Result<Self> {
        let source = match &spec.source {
            SamplesSource::CommandOutput => {
                let output = command_output.ok_or(std::io::ErrorKind::NotConnected)?;
                Source::Descriptor(File::from(output))
            }
            SamplesSource::Stdin => {
                Source::Descriptor(File::from(std::io::stdin().as_fd().try_clone_to_owned()?))
            }
            SamplesSource::Path(path) => Source::Path(path.clone()),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let ingest = Arc::new(Mutex::new(Ingest::new(spec.adapter)));
        let thread = {
            let (stop, ingest) = (Arc::clone(&stop), Arc::clone(&ingest));
            std::thread::Builder::new()
                .name("observer-samples".into())
                .spawn(move || read_all(source, &stop, &ingest, copy))?
        };
        Ok(Self { stop, ingest, thread })
    }

    /// Progress so far.
    #[must_use]
    pub(super) fn live(&self) -> Live {
        lock(&self.ingest).live()
    }

    /// Reads to the end of what is there and hands the rows over.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub(super) fn finish(self) -> Result<Ingest, IngestError> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(IngestError::Unreadable("the reading thread failed".into())),
        }
        match Arc::try_unwrap(self.ingest) {
            Ok(ingest) => Ok(ingest.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Err(_) => Err(IngestError::Unreadable("the reading thread is still there".into())),
        }
    }
}

fn read_all(
    source: Source,
    stop: &AtomicBool,
    ingest: &Mutex<Ingest>,
    mut copy: File,
) -> Result<(), IngestError> {
    let (mut file, grows) = match source {
        Source::Descriptor(file) => (file, false),
        Source::Path(path) => (open_when_there(&path, stop)?, true),
    };
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Read before looking: what was there before the stop is then read for sure.
        let last = stop.load(Ordering::Relaxed);
        if !readable(&file) {
            if last {
                return Ok(());
            }
            continue;
        }
        match file.read(&mut buffer) {
            // The end of a pipe is the end; a file may still grow.
            Ok(0) if !grows || last => return Ok(()),
            Ok(0) => std::thread::sleep(LOOK_INTERVAL),
            Ok(length) => {
                lock(ingest).feed(&buffer[..length]);
                // The copy serves people; without room for it the run goes on.
                let _ = copy.write_all(&buffer[..length]);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(IngestError::Unreadable(error.to_string())),
        }
    }
}

/// Opens the file as soon as it exists; after the stop it must.
fn open_when_there(path: &PathBuf, stop: &AtomicBool) -> Result<File, IngestError> {
    loop {
        let last = stop.load(Ordering::Relaxed);
        // Not blocking: opening a FIFO would otherwise wait for its writer, past ^C.
        match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) => {
                if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
                    return Err(IngestError::Unreadable("it is a directory".into()));
                }
                return Ok(file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !last => {
                std::thread::sleep(LOOK_INTERVAL);
            }
            Err(error) => return Err(IngestError::Unreadable(error.to_string())),
        }
    }
}

/// Waits a little for something to read. A regular file is always readable.
fn readable(file: &File) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut poll_fd = [PollFd::new(file, PollFlags::IN)];
    poll(&mut poll_fd, Some(&timeout)).is_ok_and(|ready| ready > 0)
}
