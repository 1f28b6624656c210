//! The command line.

pub mod load;

use std::process::ExitCode;

/// Parses the command line, runs it, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
