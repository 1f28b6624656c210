//! Whether observer would work on this host, and how well: facts gathered from the host and the
//! kernel ([`Facts`]), judged by pure functions, and printed.

mod facts;
mod judge;
mod probes;
mod report;

pub use facts::Facts;
pub use judge::judge;
pub use report::{Blocks, Check, ProbeReport, Report, State, TierReport, TierState};

use std::path::Path;

use probes::Tried;

use crate::error::{Error, Result};
use crate::kernel::support::KernelSupport;
use crate::probe::ProbeOptions;

/// Looks at the host, and where programs can be loaded, attaches every probe for an instant.
#[must_use]
pub fn examine(probes: &ProbeOptions) -> Report {
    let facts = Facts::gather(probes.btf.as_deref(), KernelSupport::probe());
    let mut checks = judge(&facts);
    if checks.iter().any(|check| check.blocks.is_some()) {
        return Report::new(checks, Vec::new());
    }
    let Tried { probes, verifier_logs, programs, refused } = probes::try_all(probes);
    checks.extend(refused.map(|value| Check {
        id: "bpf",
        state: State::Missing,
        value,
        means: "no program can be loaded".to_owned(),
        todo: Some("run it outside of what forbids bpf(2), such as a container's filter".into()),
        blocks: Some(Blocks::Permission),
    }));
    let mut report = Report::new(checks, probes);
    report.verifier_logs = verifier_logs;
    report.programs = programs;
    report
}

/// The part of the doctor that `run` and `daemon` begin with: the first thing that makes them
/// impossible here, as an error with the exit code the doctor would end with. `btf` is a file to
/// be used instead of the kernel's own types.
///
/// # Errors
/// When a right or something in the kernel is missing.
pub fn preflight(btf: Option<&Path>) -> Result<()> {
    let facts = Facts::gather(btf, KernelSupport::required());
    let report = Report::new(judge(&facts), Vec::new());
    match (report.exit(), report.blocked_by.first()) {
        (Some(exit), Some(why)) => {
            Err(Error::new(exit, format!("{why}; `observer doctor` says what to do")))
        }
        _ => Ok(()),
    }
}
