//! Reading the generator's samples while it runs: from COMMAND's output, a file that grows, a FIFO,
//! a Unix socket or standard input. The beginning of the input is kept unchanged; so is that of
//! output that holds no samples.

use std::cell::Cell;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::gathering::{Gathering, LONGEST_PAUSE, Stop, readable};
use crate::loadgen::kept::KeptFile;
use crate::loadgen::{
    ClockError, Ingest, IngestError, Live, MOST_BYTES, SamplesFile, SamplesSource, SamplesSpec,
};
use crate::pace::Pieces;

/// Bytes of one read of a stream, at most.
const STREAM_BYTES: usize = 1 << 16;

/// How long to wait for more once the generator has ended.
const LAST_WAIT: Duration = Duration::from_millis(50);

/// How long to continue reading after the generator's end, to allow for delays of a pipe and a busy
/// host.
const LAST_READ: Duration = Duration::from_secs(2);

/// Reads one source on a thread of its own.
pub(super) struct SampleReader {
    shared: Arc<Shared>,
    /// The file, if it did not exist at the start.
    missing: Option<PathBuf>,
    /// Removed with the reader.
    _socket: Option<SocketFile>,
    /// Progress when it could last be asked for.
    live: Cell<Live>,
    thread: JoinHandle<Result<(), IngestError>>,
}

/// What the reading thread and the session share.
struct Shared {
    /// The generator has ended: what is left is read, and nothing is waited for.
    stop: Stop,
    /// The samples have ended: their end mark or the end of the stream was read.
    ended: AtomicBool,
    ingest: Mutex<Ingest>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ingest> {
        // A panic elsewhere does not make the rows already read wrong.
        self.ingest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what was read, and keeps its beginning.
    fn take(&self, bytes: &[u8], copy: &mut KeptFile) {
        // Many rows are not kept waiting.
        let _pieces = (bytes.len() < STREAM_BYTES).then(Pieces::begin);
        let mut ingest = self.lock();
        ingest.feed_in_pieces(bytes);
        if ingest.is_of_no_use() {
            copy.is_of_no_use();
        }
        if ingest.ends() > 0 {
            self.end();
        }
        drop(ingest);
        copy.keep(bytes);
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// The socket of this run.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn bind(path: &Path) -> Result<(UnixListener, Self), IngestError> {
        let failed = |error: std::io::Error| {
            let advice = match error.kind() {
                ErrorKind::AddrInUse => "; remove it, or choose another path",
                _ => "",
            };
            unreadable(format!("cannot make the socket {}: {error}{advice}", path.display()))
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
        let file = Self { path: path.to_owned(), inode };
        // The usual mask leaves writing, which connecting needs, to the owner alone anyway.
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok((listener, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if is_ours {
            // A socket that stays behind is refused by name at the next run.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

enum Source {
    /// A pipe, and the copy kept of it.
    Stream(File, KeptFile),
    /// Connections to a socket, and the copy kept of what they bring.
    Socket(UnixListener, KeptFile),
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
        room_for: usize,
        command_output: Option<OwnedFd>,
        copy: KeptFile,
    ) -> Result<Self, IngestError> {
        let (mut socket, mut missing) = (None, None);
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
                let file = SamplesFile::follow(path)?;
                missing = (!file.exists()).then(|| path.clone());
                Source::Followed(file.copied_to(copy))
            }
            SamplesSource::Socket(path) => {
                let (listener, file) = SocketFile::bind(path)?;
                socket = Some(file);
                Source::Socket(listener, copy)
            }
        };
        let ingest =
            Ingest::new(spec.adapter).with_clock_error(clock_error).with_room_for(room_for);
        let shared = Arc::new(Shared {
            stop: Stop::new().map_err(unreadable)?,
            ended: AtomicBool::new(false),
            ingest: Mutex::new(ingest),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("observer-samples".into())
                .spawn(move || match source {
                    Source::Stream(stream, mut copy) => {
                        read_stream(stream, &shared.stop, |bytes| shared.take(bytes, &mut copy))?;
                        shared.end();
                        Ok(())
                    }
                    Source::Socket(listener, copy) => read_socket(&listener, &shared, copy),
                    Source::Followed(file) => follow(file, &shared),
                })
                .map_err(unreadable)?
        };
        Ok(Self { shared, missing, _socket: socket, live: Cell::default(), thread })
    }

    /// The file of the samples, if it did not exist when reading was started.
    #[must_use]
    pub(super) fn missing(&self) -> Option<&Path> {
        self.missing.as_deref()
    }

    /// Progress so far. Does not wait for the reading thread, which an endless stream keeps busy.
    #[must_use]
    pub(super) fn live(&self) -> Live {
        match self.shared.ingest.try_lock() {
            Ok(ingest) => self.live.set(ingest.live()),
            Err(TryLockError::Poisoned(ingest)) => self.live.set(ingest.into_inner().live()),
            Err(TryLockError::WouldBlock) => {}
        }
        self.live.get()
    }

    /// Whether the samples have ended.
    #[must_use]
    pub(super) fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Reads the remaining input and returns the rows.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub(super) fn finish(self) -> Result<Ingest, IngestError> {
        self.shared.stop.raise();
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(IngestError::Unreadable("the reading thread failed".into())),
        }
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => Ok(shared.ingest.into_inner().unwrap_or_else(PoisonError::into_inner)),
            Err(_) => Err(IngestError::Unreadable("the reading thread is still there".into())),
        }
    }
}

/// Keeps the beginning of output that holds no samples, on a thread of its own.
pub(super) struct OutputKeeper {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

impl OutputKeeper {
    /// Starts reading.
    ///
    /// # Errors
    /// When the system cannot start another thread, or has no descriptor left.
    pub(super) fn start(output: OwnedFd, mut copy: KeptFile) -> std::io::Result<Self> {
        let stop = Arc::new(Stop::new()?);
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
        self.stop.raise();
        let _ = self.thread.join();
    }
}

fn unreadable(error: impl std::fmt::Display) -> IngestError {
    IngestError::Unreadable(error.to_string())
}

fn read_stream(
    mut stream: File,
    stop: &Stop,
    mut take: impl FnMut(&[u8]),
) -> Result<(), IngestError> {
    let mut buffer = vec![0; STREAM_BYTES];
    let mut gathering = Gathering::of(&stream);
    let mut stopped = None;
    loop {
        // Read before looking: what was there before the stop is then read for sure.
        let last = stop.is_raised();
        let since = last.then(|| stopped.get_or_insert_with(Instant::now).elapsed());
        let readable = if last { readable(&stream, LAST_WAIT) } else { stop.wait_for(&stream) };
        // Another process may hold COMMAND's output open, and even write to it, but nothing more
        // comes from COMMAND.
        if since.is_some_and(|since| !readable || since >= LAST_READ) {
            return Ok(());
        }
        if !readable {
            continue;
        }
        let begun = Instant::now();
        if !last && !gathering.pause().is_zero() {
            stop.gather(&stream, gathering.pause());
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                gathering.note(length, begun.elapsed(), length == buffer.len());
                take(&buffer[..length]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
}

/// Reads one connection after the other: COMMAND may start several generators.
fn read_socket(
    listener: &UnixListener,
    shared: &Shared,
    mut copy: KeptFile,
) -> Result<(), IngestError> {
    loop {
        let last = shared.stop.is_raised();
        let readable =
            if last { readable(listener, LAST_WAIT) } else { shared.stop.wait_for(listener) };
        if readable {
            let (stream, _) = listener.accept().map_err(unreadable)?;
            let stream = File::from(OwnedFd::from(stream));
            read_stream(stream, &shared.stop, |bytes| shared.take(bytes, &mut copy))?;
            shared.end();
        } else if last {
            return Ok(());
        }
    }
}

fn follow(mut file: SamplesFile, shared: &Shared) -> Result<(), IngestError> {
    let mut stopped: Option<Instant> = None;
    // End marks in a file that an earlier run left are not the end of this one.
    let mut old_ends = None;
    // A FIFO's, once there is one. A file has room for everything.
    let mut gathering = None;
    let mut begun = Instant::now();
    // What was there before is read in one go.
    let mut last_count = MOST_BYTES;
    loop {
        if stopped.is_none() && shared.stop.is_raised() {
            stopped = Some(Instant::now());
            file.end();
        }
        let (count, ends) = {
            let _pieces = (last_count < STREAM_BYTES as u64).then(Pieces::begin);
            let mut ingest = shared.lock();
            (file.read(&mut ingest)?, ingest.ends())
        };
        last_count = count;
        if count < MOST_BYTES {
            let old = old_ends.get_or_insert(if file.is_fifo() { 0 } else { ends });
            // A file that was replaced holds none of them any more.
            *old = ends.min(*old);
            if ends > *old || file.is_closed() {
                shared.end();
            }
        }
        // Another process may go on writing to a FIFO, and nothing of that belongs to the run.
        let over = |since: Instant| count == 0 || (file.is_fifo() && since.elapsed() >= LAST_READ);
        if stopped.is_some_and(over) {
            return file.finish();
        }
        if stopped.is_some() || count >= MOST_BYTES {
            continue;
        }
        if let Some(fifo) = file.fifo() {
            let fifo = gathering.get_or_insert_with(|| Gathering::of(fifo));
            fifo.note(count as usize, begun.elapsed(), false);
        }
        begun = Instant::now();
        shared.stop.pause(gathering.as_ref().map_or(LONGEST_PAUSE, Gathering::pause));
    }
}
