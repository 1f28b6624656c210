//! Checks whether observer works on this host, and how well: gathers facts about the host and the
//! kernel ([`Facts`]), judges them by pure functions, and reports the findings.

mod facts;
mod judge;
mod report;
mod try_attach;

pub use facts::Facts;
pub use judge::judge;
pub use report::{Blocks, Check, ProbeReport, Report, State, TierReport, TierState};

use try_attach::Tried;

use crate::error::{Error, Result};
use crate::kernel::ThreadPlaces;
use crate::kernel::support::KernelSupport;
use crate::probe::ProbeOptions;

/// Examines the host and, if programs can be loaded, attaches every probe for a moment.
#[must_use]
pub fn examine(probes: &ProbeOptions) -> Report {
    let places = ThreadPlaces::of_host(probes);
    let mut facts = Facts::gather(probes, KernelSupport::probe(), places);
    facts.counters = crate::host::perf_counters::try_all();
    let mut checks = judge(&facts);
    if checks.iter().any(|check| check.blocks.is_some()) {
        return Report::new(checks, Vec::new());
    }
    let tried = try_attach::try_all(probes);
    let Tried { probes, verifier_logs, programs, loaded, refused } = tried;
    if let Some((places, missing)) = loaded {
        facts.add_loaded(places, missing);
        checks = judge(&facts);
    }
    checks.extend(refused.map(|value| Check {
        id: "bpf",
        state: State::Missing,
        value,
        means: "the kernel loads no BPF program".to_owned(),
        todo: Some("run observer outside of whatever forbids bpf(2), such as the filter of a container".into()),
        blocks: Some(Blocks::Permission),
    }));
    let mut report = Report::new(checks, probes);
    report.verifier_logs = verifier_logs;
    report.programs = programs;
    report
}

/// The checks with which `run` and `daemon` begin. Returns the first problem that prevents them, with
/// the exit code of the doctor. They depend on the probes that were chosen.
///
/// # Errors
/// When a privilege or a kernel feature is missing.
pub fn preflight(probes: &ProbeOptions) -> Result<()> {
    let places = ThreadPlaces::tables("not looked at");
    let facts = Facts::gather(probes, KernelSupport::required(), places);
    let report = Report::new(judge(&facts), Vec::new());
    match (report.exit(), report.blocked_by.first()) {
        (Some(exit), Some(why)) => {
            Err(Error::new(exit, format!("{why}; `observer doctor` shows what to do")))
        }
        _ => Ok(()),
    }
}
