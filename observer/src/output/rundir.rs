//! The run directory: created once, never overwritten, readable by its owner only.
//!
//! All files are reached through the directory's descriptor and never through a symbolic link, and no
//! other user can lead the way to the directory elsewhere ([`place`]).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::event_files::StreamRows;
use super::is_disk_full;
use super::json_seal::{is_json_whole, seal_json};
use super::trace::{Loaded, SampleColumns, SampleReader, TraceError, TraceWriter, read};
use crate::error::{Error, Exit, Result};
use crate::model::{
    RUN_SCHEMA, RunInfo, STACKS_SCHEMA, SUMMARY_SCHEMA, Sample, Stacks, Summary, files,
};
use crate::pace::rest;
use crate::place;

/// Writer of `samples.arrows`.
pub type SampleWriter = TraceWriter<SampleColumns, File>;

/// Largest JSON file that is read. A run's own take kilobytes.
const MAX_JSON_BYTES: u64 = 1 << 26;
/// Largest file of stacks that is read. One with as many stacks as may be takes tens of megabytes.
const MAX_STACKS_BYTES: u64 = 1 << 28;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Room kept for the answer, should the trace fill the disk.
const RESERVE_BYTES: u64 = 512 << 10;

/// A run directory, open.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    pub(super) directory: OwnedFd,
    known: Mutex<Known>,
    /// A file without a name that takes up [`RESERVE_BYTES`]: gone with the process.
    reserve: Mutex<Option<OwnedFd>>,
}

/// What is known about the run in a directory.
#[derive(Debug, Default)]
struct Known {
    /// Made with the directory; of one that was opened, as `run.json` says.
    run_id: Option<String>,
    /// Rows by stream that `run.json` lists.
    streams: StreamRows,
    /// What is wrong with the JSON files.
    damage: BTreeSet<String>,
}

/// The error of a failed write: a full disk has an exit code of its own.
fn write_exit(problem: &(dyn std::error::Error + 'static)) -> Exit {
    let full = if let Some(errno) = problem.downcast_ref::<Errno>() {
        is_disk_full(&std::io::Error::from(*errno))
    } else if let Some(error) = problem.downcast_ref::<std::io::Error>() {
        is_disk_full(error)
    } else {
        problem.downcast_ref::<TraceError>().is_some_and(TraceError::is_disk_full)
    };
    if full { Exit::DiskFull } else { Exit::Output }
}

fn output_error(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::new(Exit::Output, format!("cannot make output directory {}: {problem}", path.display()))
}

fn exists(path: &Path) -> Error {
    let text =
        format!("{} exists and is never overwritten: choose another directory", path.display());
    Error::new(Exit::OutputExists, text)
}

impl RunDir {
    /// Makes the directory a run writes into, mode 0700: `out`, or one named after the time (UTC)
    /// in the current directory.
    ///
    /// # Errors
    /// [`Exit::OutputExists`] when it exists already, [`Exit::Output`] when it cannot be made.
    pub fn create(out: Option<&Path>) -> Result<Self> {
        if let Some(out) = out {
            return Self::create_at(out);
        }
        let stem = default_name(time::OffsetDateTime::now_utc());
        // A second run within the same second takes the next free name.
        for attempt in 1..10 {
            let path = PathBuf::from(if attempt == 1 {
                stem.clone()
            } else {
                format!("{stem}-{attempt}")
            });
            if fs::statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                return Self::create_at(&path);
            }
        }
        Self::create_at(Path::new(&stem))
    }

    /// Whether [`RunDir::create`] may succeed: it comes later, when the user has waited for more.
    ///
    /// # Errors
    /// Those of [`RunDir::create`], as far as they can be known.
    pub fn check(out: Option<&Path>) -> Result<()> {
        let Some(out) = out else { return Ok(()) };
        let (parent, name) = place::parent(out).map_err(|error| output_error(out, error))?;
        match fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(exists(out)),
            Err(_) => Ok(()),
        }
    }

    fn create_at(out: &Path) -> Result<Self> {
        let (parent, name) = place::parent(out).map_err(|error| output_error(out, error))?;
        fs::mkdirat(&parent, name, Mode::RWXU).map_err(|errno| match errno {
            Errno::EXIST => exists(out),
            errno => {
                let mut error = output_error(out, errno);
                error.exit = write_exit(&errno);
                error
            }
        })?;
        let directory = open_own(&parent, name).map_err(|errno| output_error(out, errno))?;
        let path = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
        let run_id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").ok();
        let run_id = run_id.map(|id| id.trim().to_owned());
        let known = Mutex::new(Known { run_id, ..Known::default() });
        let made = Self { path, directory, known, reserve: Mutex::new(None) };
        made.reserve();
        Ok(made)
    }

    /// Its path, absolute if possible.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its streams carry to tell them from those of other runs; `None` for runs of older
    /// versions, and before `run.json` has been read.
    #[must_use]
    pub fn run_id(&self) -> Option<String> {
        self.known().run_id.clone()
    }

    /// The streams of events that `run.json` lists, once it has been read.
    pub(super) fn wanted_streams(&self) -> StreamRows {
        self.known().streams.clone()
    }

    /// Removes a directory just made, in which nothing could be begun.
    pub fn discard(self) {
        let loadgen = [files::LOADGEN_OUT, files::LOADGEN_ERR, files::LOADGEN_SAMPLES];
        let streams = self.event_files().unwrap_or_default();
        let streams = streams.iter().map(|file| file.name.as_str());
        for name in [files::RUN].into_iter().chain(loadgen).chain(streams) {
            let _ = fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
        // Fails if the directory contains other files, which must stay.
        let _ = std::fs::remove_dir(&self.path);
    }

    fn write_error(&self, name: &str, problem: impl std::error::Error + 'static) -> Error {
        let path = self.path.join(name);
        let exit = write_exit(&problem);
        Error::new(exit, format!("cannot write {}: {problem}", path.display()))
    }

    /// Reserves room for the answer. If the file system cannot, the answer is written without a
    /// reserve.
    fn reserve(&self) {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = fs::openat(&self.directory, ".", flags, Mode::RUSR | Mode::WUSR);
        let kept = file.ok().filter(|file| {
            fs::fallocate(file, fs::FallocateFlags::empty(), 0, RESERVE_BYTES).is_ok()
        });
        *self.reserve.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// Gives the room back, for the answer.
    pub fn release_reserve(&self) {
        *self.reserve.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A new file of the run, mode 0600.
    ///
    /// # Errors
    /// [`Exit::Output`] when it exists or cannot be made.
    pub fn create_file(&self, name: &str) -> Result<File> {
        create_new(&self.directory, name).map_err(|errno| self.write_error(name, errno))
    }

    /// Starts `samples.arrows`.
    ///
    /// # Errors
    /// [`Exit::Output`].
    pub fn create_samples(&self) -> Result<SampleWriter> {
        let file = self.create_file(files::SAMPLES)?;
        TraceWriter::new(file, SampleColumns::default(), self.run_id().as_deref())
            .map_err(|error| self.write_error(files::SAMPLES, error))
    }

    /// Writes or replaces a file at once: a reader sees the old content or the new, never half.
    ///
    /// # Errors
    /// [`Exit::Output`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let temporary = format!(".{name}.new");
        let written = || -> std::io::Result<()> {
            // Left over by a crash between the two steps below.
            match fs::unlinkat(&self.directory, temporary.as_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            let mut file = create_new(&self.directory, &temporary)?;
            file.write_all(content)?;
            // Without it, a power cut can leave the new name with no content (ext4 delays
            // allocation).
            file.sync_data()?;
            fs::renameat(&self.directory, temporary.as_str(), &self.directory, name)?;
            Ok(())
        };
        written().map_err(|error| {
            // Half a file is of no use. An error while removing it changes nothing.
            let _ = fs::unlinkat(&self.directory, temporary.as_str(), AtFlags::empty());
            self.write_error(name, error)
        })
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let mut text =
            serde_json::to_vec_pretty(value).map_err(|error| self.write_error(name, error))?;
        seal_json(&mut text);
        rest();
        self.write(name, &text)
    }

    /// Writes or replaces `run.json`.
    ///
    /// # Errors
    /// [`Exit::Output`].
    pub fn write_run(&self, run: &RunInfo) -> Result<()> {
        self.write_json(files::RUN, run)
    }

    /// Writes or replaces `summary.json`.
    ///
    /// # Errors
    /// [`Exit::Output`].
    pub fn write_summary(&self, summary: &Summary) -> Result<()> {
        self.write_json(files::SUMMARY, summary)
    }

    /// Writes or replaces `stacks.json`.
    ///
    /// # Errors
    /// [`Exit::Output`].
    pub fn write_stacks(&self, stacks: &Stacks) -> Result<()> {
        self.write_json(files::STACKS, stacks)
    }

    /// Opens a run directory to read it.
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`].
    pub fn open(path: &Path) -> Result<Self> {
        let directory = fs::open(path, DIRECTORY, Mode::empty()).map_err(|errno| {
            let what = match errno {
                Errno::NOENT => "it does not exist".to_owned(),
                Errno::NOTDIR => "it is not a directory; name the directory of a run".to_owned(),
                Errno::ACCESS => "permission denied; run as the user who made it".to_owned(),
                errno => errno.to_string(),
            };
            Error::new(Exit::RunUnreadable, format!("cannot read run {}: {what}", path.display()))
        })?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let known = Mutex::default();
        Ok(Self { path, directory, known, reserve: Mutex::new(None) })
    }

    /// What a reader should know about who may have changed the run, and about damage of the JSON
    /// files read so far, one sentence each.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = place::doubts(&self.directory)
            .unwrap_or_else(|errno| vec![self.read_error(".", errno).to_string()]);
        doubts.extend(self.known().damage.iter().cloned());
        doubts
    }

    pub(super) fn read_error(&self, name: &str, problem: impl std::fmt::Display) -> Error {
        let path = self.path.join(name);
        Error::new(Exit::RunUnreadable, format!("cannot read {}: {problem}", path.display()))
    }

    /// Opens a file of the run; `None` when there is none.
    pub(super) fn open_file(&self, name: &str) -> Result<Option<File>> {
        // Non-blocking: a FIFO in its place would otherwise hang the program.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.read_error(name, "it is a symbolic link")),
            Err(errno) => return Err(self.read_error(name, errno)),
        };
        let stat = fs::fstat(&file).map_err(|errno| self.read_error(name, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.read_error(name, "it is not a regular file"));
        }
        Ok(Some(File::from(file)))
    }

    /// A file that the load generator filled; `None` when there is none.
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`].
    pub fn open_raw(&self, name: &str) -> Result<Option<File>> {
        self.open_file(name)
    }

    fn read_json<T: DeserializeOwned>(
        &self,
        name: &str,
        newest: u32,
        most_bytes: u64,
    ) -> Result<Option<T>> {
        #[derive(serde::Deserialize)]
        struct Version {
            schema: u32,
        }
        let Some(file) = self.open_file(name)? else { return Ok(None) };
        let mut text = Vec::new();
        file.take(most_bytes + 1)
            .read_to_end(&mut text)
            .map_err(|error| self.read_error(name, error))?;
        if text.len() as u64 > most_bytes {
            return Err(self.read_error(name, "it is too large to be a file of a run"));
        }
        if !is_json_whole(&text) {
            self.known().damage.insert(format!(
                "{name} is damaged: it does not match its checksum, so what it says may be wrong"
            ));
        }
        let version: Version =
            serde_json::from_slice(&text).map_err(|error| self.read_error(name, error))?;
        if version.schema > newest {
            let problem = format!(
                "its schema {} is newer than this observer reads ({newest}); use a newer observer",
                version.schema
            );
            return Err(self.read_error(name, problem));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| self.read_error(name, error))
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`], also when there is none: then it is no run directory.
    pub fn read_run(&self) -> Result<RunInfo> {
        let run = self.read_json(files::RUN, RUN_SCHEMA, MAX_JSON_BYTES)?;
        let run: RunInfo = run.ok_or_else(|| {
            Error::new(
                Exit::RunUnreadable,
                format!("{} is not a run directory: it has no run.json", self.path.display()),
            )
        })?;
        let mut known = self.known();
        known.run_id.clone_from(&run.run_id);
        known.streams.clone_from(&run.streams);
        drop(known);
        Ok(run)
    }

    /// Reads `summary.json`; `None` when the run did not get that far, or when damage makes it
    /// unreadable ([`RunDir::doubts`] says so then).
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`] when there is one and it is unreadable for another reason.
    pub fn read_summary(&self) -> Result<Option<Summary>> {
        self.read_undamaged(files::SUMMARY, SUMMARY_SCHEMA, MAX_JSON_BYTES)
    }

    /// Reads `stacks.json`; `None` when the run kept no stacks or did not get that far, or when damage
    /// makes it unreadable ([`RunDir::doubts`] says so then).
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`] when there is one and it is unreadable for another reason.
    pub fn read_stacks(&self) -> Result<Option<Stacks>> {
        self.read_undamaged(files::STACKS, STACKS_SCHEMA, MAX_STACKS_BYTES)
    }

    fn read_undamaged<T: DeserializeOwned>(
        &self,
        name: &str,
        newest: u32,
        most_bytes: u64,
    ) -> Result<Option<T>> {
        let read = self.read_json(name, newest, most_bytes);
        let is_damaged = || self.known().damage.iter().any(|damage| damage.starts_with(name));
        if read.is_err() && is_damaged() { Ok(None) } else { read }
    }

    /// Reads `samples.arrows`; `None` when there is none.
    ///
    /// # Errors
    /// [`Exit::RunUnreadable`] when it is damaged other than by being cut.
    pub fn read_samples(&self) -> Result<Option<Loaded<Sample>>> {
        let Some(file) = self.open_file(files::SAMPLES)? else { return Ok(None) };
        let input = std::io::BufReader::with_capacity(1 << 18, file);
        read(input, self.run_id().as_deref(), &mut SampleReader)
            .map(Some)
            .map_err(|error| self.read_error(files::SAMPLES, error))
    }
}

/// A new file at a path that the user named, mode 0600; never overwrites.
///
/// # Errors
/// [`Exit::Output`] when it exists or cannot be made.
pub fn create_private_file(path: &Path) -> Result<File> {
    let made = place::parent(path).and_then(|(parent, name)| Ok(create_new(parent, name)?));
    made.map_err(|error| {
        let what = match error.kind() {
            ErrorKind::AlreadyExists => {
                "it exists and is never overwritten; choose another name".to_owned()
            }
            _ => error.to_string(),
        };
        Error::new(Exit::Output, format!("cannot write {}: {what}", path.display()))
    })
}

pub(super) fn create_new(
    directory: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg,
) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Opens the directory just made; fails if something else took its place.
fn open_own(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let directory = fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = fs::fstat(&directory)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::PERM);
    }
    Ok(directory)
}

fn default_name(now: time::OffsetDateTime) -> String {
    let (date, clock) = (now.date(), now.time());
    format!(
        "observer-run-{:04}{:02}{:02}-{:02}{:02}{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

#[cfg(test)]
#[path = "rundir_tests.rs"]
mod tests;
