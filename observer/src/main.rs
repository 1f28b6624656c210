//! The `observer` program: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    observer::cli::main()
}
