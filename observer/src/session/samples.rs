//! Reading the generator's samples while it runs: from COMMAND's output, a file that grows, a FIFO
//! or standard input. The beginning of the input is kept unchanged; so is that of output that holds
//! no samples.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::loadgen::kept::KeptFile;
use crate::loadgen::{Ingest, IngestError, Live, SamplesFile, SamplesSource, SamplesSpec};

/// Time between two checks of a file that may grow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long to continue reading after the generator's end, to allow for delays of a pipe and a busy
/// host.
const LAST_READ: Duration = Duration::from_secs(2);

/// Reads one source on a thread of its own.
pub(super) struct SampleReader {
    stop: Arc<AtomicBool>,
    ingest: Arc<Mutex<Ingest>>,
    /// Progress when it could last be asked for.
    live: Cell<Live>,
    thread: JoinHandle<Result<(), IngestError>>,
}

fn lock(ingest: &Mutex<Ingest>) -> MutexGuard<'_, Ingest> {
    // A panic elsewhere does not make the rows already read wrong.
    ingest.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Source {
    /// A pipe, and the copy kept of it.
    Stream(File, KeptFile),
    /// A file or FIFO that another program keeps.
    Followed(SamplesFile),
}

impl SampleReader {
    /// Starts reading. `command_output` is COMMAND's standard output, used when the samples come
    /// from there. What is read is copied to `copy`.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub(super) fn start(
        spec: &SamplesSpec,
        command_output: Option<OwnedFd>,
        copy: KeptFile,
    ) -> Result<Self, IngestError> {
        let source = match &spec.source {
            SamplesSource::CommandOutput => {
                let output = command_output
                    .ok_or_else(|| IngestError::Unreadable("COMMAND has no output".into()))?;
                Source::Stream(File::from(output), copy)
            }
            SamplesSource::Stdin => {
                let stdin = std::io::stdin().as_fd().try_clone_to_owned().map_err(unreadable)?;
                Source::Stream(File::from(stdin), copy)
            }
            SamplesSource::Path(path) => {
                Source::Followed(SamplesFile::follow(path)?.copied_to(copy))
            }
        };
        let stop = Arc::new(AtomicBool::new(false));
        let ingest = Arc::new(Mutex::new(Ingest::new(spec.adapter)));
        let thread = {
            let (stop, ingest) = (Arc::clone(&stop), Arc::clone(&ingest));
            std::thread::Builder::new()
                .name("observer-samples".into())
                .spawn(move || match source {
                    Source::Stream(stream, mut copy) => read_stream(stream, &stop, |bytes| {
                        let mut ingest = lock(&ingest);
                        ingest.feed(bytes);
                        if ingest.is_of_no_use() {
                            copy.is_of_no_use();
                        }
                        drop(ingest);
                        copy.keep(bytes);
                    }),
                    Source::Followed(file) => follow(file, &stop, &ingest),
                })
                .map_err(unreadable)?
        };
        Ok(Self { stop, ingest, live: Cell::default(), thread })
    }

    /// Progress so far. Does not wait for the reading thread, which an endless stream keeps busy.
    #[must_use]
    pub(super) fn live(&self) -> Live {
        match self.ingest.try_lock() {
            Ok(ingest) => self.live.set(ingest.live()),
            Err(TryLockError::Poisoned(ingest)) => self.live.set(ingest.into_inner().live()),
            Err(TryLockError::WouldBlock) => {}
        }
        self.live.get()
    }

    /// Reads the remaining input and returns the rows.
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

/// Keeps the beginning of output that holds no samples, on a thread of its own.
pub(super) struct OutputKeeper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl OutputKeeper {
    /// Starts reading.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(super) fn start(output: OwnedFd, mut copy: KeptFile) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("observer-output".into()).spawn(move || {
                // It is for users only: what cannot be read is missing, and the run continues.
                let _ = read_stream(File::from(output), &stopped, |bytes| copy.keep(bytes));
                copy.say_cut();
            })?;
        Ok(Self { stop, thread })
    }

    /// Reads what is left.
    pub(super) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

fn unreadable(error: impl std::fmt::Display) -> IngestError {
    IngestError::Unreadable(error.to_string())
}

fn read_stream(
    mut stream: File,
    stop: &AtomicBool,
    mut take: impl FnMut(&[u8]),
) -> Result<(), IngestError> {
    let mut buffer = vec![0; 1 << 16];
    let mut stopped = None;
    loop {
        // Read before looking: what was there before the stop is then read for sure.
        let last = stop.load(Ordering::Relaxed);
        let since = last.then(|| stopped.get_or_insert_with(Instant::now).elapsed());
        let readable = readable(&stream);
        // Another process may hold COMMAND's output open, and even write to it, but nothing more
        // comes from COMMAND.
        if since.is_some_and(|since| !readable || since >= LAST_READ) {
            return Ok(());
        }
        if !readable {
            continue;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Waits a little for something to read, or for the end.
fn readable(stream: &File) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let mut poll_fd = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut poll_fd, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

fn follow(
    mut file: SamplesFile,
    stop: &AtomicBool,
    ingest: &Mutex<Ingest>,
) -> Result<(), IngestError> {
    let mut stopped: Option<Instant> = None;
    loop {
        if stopped.is_none() && stop.load(Ordering::Relaxed) {
            stopped = Some(Instant::now());
            file.end();
        }
        let read = file.read(&mut lock(ingest))?;
        // Another process may go on writing to a FIFO, and nothing of that belongs to the run.
        let over = |since: Instant| read == 0 || (file.is_fifo() && since.elapsed() >= LAST_READ);
        if stopped.is_some_and(over) {
            return file.finish();
        }
        if read == 0 {
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}
