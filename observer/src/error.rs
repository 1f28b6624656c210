//! Errors of the command line: one line (what failed, on what, what to do) and a documented exit
//! code.

use std::fmt;

/// Exit codes of the program. 0 is success; clap uses 2 as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something unexpected failed.
    Failure = 1,
    /// The command line is invalid.
    Usage = 2,
    /// Not root, or a capability is missing.
    Permission = 3,
    /// The kernel lacks a required feature (BTF, ring buffer), or lockdown forbids it.
    Kernel = 4,
    /// The target does not exist, or no process matches it.
    Target = 5,
    /// The output cannot be written.
    Output = 6,
    /// COMMAND (the load generator) could not be started.
    Command = 7,
    /// The samples file cannot be read.
    SamplesUnreadable = 8,
    /// The samples are empty.
    SamplesEmpty = 9,
    /// The samples have another format than the one named.
    SamplesFormat = 10,
    /// No sample falls into the run: the samples use another clock.
    SamplesClock = 11,
    /// A run directory cannot be read.
    RunUnreadable = 12,
    /// COMMAND failed; the run itself is complete.
    CommandFailed = 13,
    /// The samples end in the middle of a line; the complete lines were used, and the run is complete.
    SamplesTruncated = 14,
    /// The disk is full; everything written until then is kept.
    DiskFull = 15,
    /// The output directory already exists.
    OutputExists = 16,
    /// More than a tenth of the requests failed; the run is complete.
    RequestsFailed = 17,
    /// A resource limit of the process (setrlimit(2)) is too low.
    Limit = 18,
    /// The address to listen on is in use, or cannot be used.
    Address = 19,
    /// A drill was missed or failed, or none counts.
    DrillMissed = 20,
    /// Ended by SIGINT or SIGTERM; the code that shells use for SIGINT.
    Interrupted = 130,
}

/// An error for the user: one line, and the exit code.
#[derive(Debug)]
pub struct Error {
    /// Exit code of the process.
    pub exit: Exit,
    message: String,
}

impl Error {
    /// `message` says what failed, on what, and what to do; one line.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Result of everything the command line calls.
pub type Result<T> = std::result::Result<T, Error>;
