//! Whether observer would work on this host, and how well: facts gathered from the host and the
//! kernel ([`Facts`]), judged by pure functions, and printed.

mod facts;
mod judge;
mod probes;
mod report;

pub use facts::Facts;
pub use judge::judge;
pub use report::{Blocks, Check, NotBetter, ProbeReport, Report, State};

use crate::error::{Error, Result};

/// Looks at the host, and where programs can be loaded, attaches every probe for an instant.
#[must_use]
pub fn examine() -> Report {
    let facts = Facts::gather();
    let checks = judge(&facts);
    if checks.iter().any(|check| check.blocks.is_some()) {
        return Report::new(checks, Vec::new());
    }
    Report::new(checks, probes::try_all(&facts.support))
}

/// The part of the doctor that `run` and `daemon` begin with: the first thing that makes them
/// impossible here, as an error with the exit code the doctor would end with.
///
/// # Errors
/// When a right or something in the kernel is missing.
pub fn preflight() -> Result<()> {
    let report = Report::new(judge(&Facts::gather()), Vec::new());
    match (report.exit(), report.blocked_by.first()) {
        (Some(exit), Some(why)) => {
            Err(Error::new(exit, format!("{why}; `observer doctor` says what to do")))
        }
        _ => Ok(()),
    }
}
