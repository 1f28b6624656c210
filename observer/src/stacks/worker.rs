//! The process that reads the symbol tables of one file, and whoever asks it.
//!
//! A file of the target may be made to harm its reader: to take all its memory, to never end, to crash
//! it, or to make it execute what its author wants. It may also become shorter while it is read, which ends
//! the process that has mapped it. So observer reads each file in a process of its own, which has no
//! capabilities by then and may only compute and answer (`crate::call_filter`). If it ends, the functions of
//! that file are not known.
//!
//! Its standard input is the file, and its standard output a socket: first it reads the offsets there,
//! up to the end, and then it writes what it found; both are JSON.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::CapabilitySet;

use super::symbolize::{ElfFile, Symbol};
use crate::call_filter;
use crate::error::{Error, Exit, Result};
use crate::privileges::keep_only;
use crate::text;

/// The hidden subcommand.
pub const NAME: &str = "symbolize-file";

/// Time for one file, also of the CPU.
pub const FILE_TIME: Duration = Duration::from_secs(10);
/// Memory of the process, besides the file, which is mapped twice.
const MEMORY_BYTES: u64 = 1 << 30;
/// Offsets of one request, as JSON.
const REQUEST_BYTES: u64 = 16 << 20;
/// An answer has no more than so many bytes for each offset: a name of 160 characters in JSON.
const SYMBOL_BYTES: usize = 1_024;
/// Characters of an error.
const ERROR_CHARACTERS: usize = 200;
/// After its answer the process may take so long to end.
const END_TIME: Duration = Duration::from_secs(1);

/// What the process answers.
pub type Answer = std::result::Result<Vec<Option<Symbol>>, String>;

/// The whole life of the process.
///
/// # Errors
/// When it cannot be asked, or cannot answer.
pub fn run() -> Result<()> {
    answer().map_err(|error| {
        Error::new(Exit::Failure, format!("cannot look up the functions of a file: {error}"))
    })
}

fn answer() -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Where memory is short, it ends, and not the run. This is always allowed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut connection = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut request = Vec::new();
    (&connection).take(REQUEST_BYTES).read_to_end(&mut request)?;
    let offsets: Vec<u64> = serde_json::from_slice(&request)?;
    let answer: Answer = confined(Path::new("/proc/self/fd/0"))
        .map_err(|error| error.to_string())
        .and_then(|file| file?.symbols(&offsets));
    connection.write_all(&serde_json::to_vec(&answer)?)
}

/// Opens the file, and gives up everything that is not needed to read it.
fn confined(path: &Path) -> io::Result<std::result::Result<ElfFile, String>> {
    let file_bytes = path.metadata()?.len();
    let seconds = FILE_TIME.as_secs();
    for (resource, most) in [
        (Resource::As, MEMORY_BYTES.saturating_add(file_bytes.saturating_mul(2))),
        (Resource::Data, MEMORY_BYTES),
        (Resource::Cpu, seconds),
        (Resource::Core, 0),
    ] {
        let most = getrlimit(resource).maximum.map_or(most, |highest| highest.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    let file = ElfFile::open(path);
    keep_only(CapabilitySet::empty())?;
    call_filter::apply_to_reader().map_err(io::Error::other)?;
    Ok(file)
}

/// The functions at these offsets of a file, `None` where there is no function, within the given time.
///
/// # Errors
/// When the file is no ELF file or is damaged, or the process that reads it ended or took too long: why,
/// in one line.
pub fn symbols(file: &File, offsets: &[u64], time: Duration) -> Answer {
    symbols_by(Path::new("/proc/self/exe"), file, offsets, time)
}

/// The same with another program that knows the subcommand.
///
/// # Errors
/// Those of [`symbols`].
pub fn symbols_by(program: &Path, file: &File, offsets: &[u64], time: Duration) -> Answer {
    let deadline = Instant::now() + time;
    let started = start(program, file);
    let (connection, mut child) =
        started.map_err(|error| format!("the process that reads it cannot be started: {error}"))?;
    let answer = ask(&connection, offsets, deadline);
    drop(connection);
    let ended = end(&mut child, if answer.is_ok() { END_TIME } else { Duration::ZERO });
    let answer = answer.map_err(|error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            format!("the process that reads it took more than {} s", time.as_secs())
        }
        _ => format!("the process that reads it cannot be asked: {error}"),
    })?;
    let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else {
        return Err(format!("the process that reads it ended early ({ended})"));
    };
    let symbols = answer.map_err(|error| text::clean(&error, ERROR_CHARACTERS))?;
    if symbols.len() != offsets.len() {
        return Err("the process that reads it gave a wrong answer".to_owned());
    }
    Ok(symbols.into_iter().map(|symbol| symbol.map(Symbol::cleaned)).collect())
}

fn start(program: &Path, file: &File) -> io::Result<(UnixStream, Child)> {
    let (connection, its_end) = UnixStream::pair()?;
    // A group of its own: ^C at the terminal is for observer.
    let child = Command::new(program)
        .arg(NAME)
        .env_clear()
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(OwnedFd::from(its_end))
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    Ok((connection, child))
}

/// Sends the offsets, and reads the answer up to its end.
fn ask(mut connection: &UnixStream, offsets: &[u64], deadline: Instant) -> io::Result<Vec<u8>> {
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(ErrorKind::TimedOut)) } else { Ok(Some(left)) }
    };
    connection.set_write_timeout(left()?)?;
    match connection.write_all(&serde_json::to_vec(offsets)?) {
        // It has ended, which its answer or its status says better.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    // Fails when it has ended.
    let _ = connection.shutdown(Shutdown::Write);
    let most = SYMBOL_BYTES * (offsets.len() + 1);
    let (mut answer, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        connection.set_read_timeout(left()?)?;
        match connection.read(&mut piece) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // It ended and did not read all.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(answer),
            Err(error) => return Err(error),
        }
        if answer.len() > most {
            return Err(io::Error::other("its answer is too long"));
        }
    }
}

/// Waits for the end of the process, and kills it when that takes longer; how it ended.
fn end(child: &mut Child, time: Duration) -> String {
    let since = Instant::now();
    while since.elapsed() < time && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Without effect on one that has ended.
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}
