//! The `observer` program: parses the command line, runs it, and returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    observer::cli::main()
}
