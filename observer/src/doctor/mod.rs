//! Whether observer would work on this host, and how well: facts gathered from the host and the
//! kernel ([`Facts`]), judged by pure functions, and printed.

mod facts;
mod judge;
mod report;

pub use facts::Facts;
pub use judge::judge;
pub use report::{Blocks, Check, NotBetter, ProbeReport, Report, State};

use crate::error::{Error, Exit, Result};

/// The part of the doctor that `run` and `daemon` begin with: the first thing that makes them
/// impossible here, as an error with the exit code the doctor would end with.
///
/// # Errors
/// When a right or something in the kernel is missing.
pub fn preflight() -> Result<()> {
    let report = Report::new(judge(&Facts::gather()), Vec::new());
    let Some(why) = report.blocked_by.first() else { return Ok(()) };
    let exit =
        if report.exit_code == Exit::Permission as u8 { Exit::Permission } else { Exit::Kernel };
    Err(Error::new(exit, format!("{why}; `observer doctor` says what to do")))
}
