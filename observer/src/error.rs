//! What the person at the terminal is told when something cannot go on: one line (what failed, on
//! what, what to do) and an exit code that means something.

use std::fmt;

/// Exit codes of the program. 0 is success, 1 an unexpected failure, 2 wrong usage (clap's).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something unexpected failed.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Not root, or a capability is missing.
    Permission = 3,
    /// The kernel lacks what is needed (no BTF, lockdown, ring buffer).
    Kernel = 4,
    /// The target does not exist, or nothing matches it.
    Target = 5,
    /// The output cannot be written.
    Output = 6,
    /// COMMAND (the load generator) could not be started.
    Command = 7,
    /// The samples file cannot be read.
    SamplesUnreadable = 8,
    /// The samples file holds no sample.
    SamplesEmpty = 9,
    /// The samples are of another format than the one named.
    SamplesFormat = 10,
    /// The samples lie on another clock: none falls into the run.
    SamplesClock = 11,
    /// A run directory cannot be read.
    RunUnreadable = 12,
    /// COMMAND ended with a failure; the run itself is complete.
    CommandFailed = 13,
    /// The samples end in the middle of a line; what was whole was used, the run is complete.
    SamplesTruncated = 14,
    /// The disk is full; what was gathered until then is kept.
    DiskFull = 15,
    /// The output directory exists already.
    OutputExists = 16,
}

/// An error for the person: one line, and the exit code.
#[derive(Debug)]
pub struct Error {
    /// What the process ends with.
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
