//! Reading the generator's samples while it runs: from COMMAND's output, a file that grows, a FIFO
//! or standard input. The input is kept unchanged.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::loadgen::{
    ClockError, Ingest, IngestError, Live, SamplesFile, SamplesSource, SamplesSpec,
};

/// Time between two checks of a file that may grow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long to continue reading after the generator's end, to allow for delays of a pipe and a busy
/// host.
const LAST_READ: Duration = Duration::from_secs(2);

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
    /// A pipe, and the copy kept of it.
    Stream(File, File),
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
        clock_error: ClockError,
        command_output: Option<OwnedFd>,
        copy: File,
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
        let ingest = Arc::new(Mutex::new(Ingest::new(spec.adapter).with_clock_error(clock_error)));
        let thread = {
            let (stop, ingest) = (Arc::clone(&stop), Arc::clone(&ingest));
            std::thread::Builder::new()
                .name("observer-samples".into())
                .spawn(move || match source {
                    Source::Stream(stream, copy) => read_stream(stream, &stop, &ingest, copy),
                    Source::Followed(file) => follow(file, &stop, &ingest),
                })
                .map_err(unreadable)?
        };
        Ok(Self { stop, ingest, thread })
    }

    /// Progress so far.
    #[must_use]
    pub(super) fn live(&self) -> Live {
        lock(&self.ingest).live()
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

fn unreadable(error: impl std::fmt::Display) -> IngestError {
    IngestError::Unreadable(error.to_string())
}

fn read_stream(
    mut stream: File,
    stop: &AtomicBool,
    ingest: &Mutex<Ingest>,
    mut copy: File,
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
            Ok(length) => {
                lock(ingest).feed(&buffer[..length]);
                // The copy is for users only; if there is no room for it, the run continues.
                let _ = copy.write_all(&buffer[..length]);
            }
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
    loop {
        let last = stop.load(Ordering::Relaxed);
        if file.read(&mut lock(ingest))? == 0 {
            if last {
                return file.finish();
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}
