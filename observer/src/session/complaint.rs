//! What is wrong with a run that is complete: the one line on standard error.

use super::{RunOptions, source_name};
use crate::error::{Error, Exit};
use crate::loadgen::{IngestError, Ingested};
use crate::model::{EndReason, RunInfo, Summary};
use crate::output::rundir::RunDir;

/// The one line about a disk that was full.
pub(super) fn disk_full(directory: &RunDir) -> Error {
    let text = format!(
        "the disk of {} was full, or a file reached its largest size (ulimit -f): the trace ends \
         early, but the answer is complete (all data written so far is kept); make room or choose \
         another --out",
        directory.path().display()
    );
    Error::new(Exit::DiskFull, text)
}

/// So many requests failed that this is the answer.
pub(super) fn failed_requests(summary: &Summary) -> Option<Error> {
    let reason = summary.verdict.reasons.iter().find(|reason| reason.code == "requests_failed")?;
    Some(Error::new(Exit::RequestsFailed, reason.text.trim_end_matches('.')))
}

/// The one line on standard error for a run that is complete and still not what was asked for.
pub(super) fn complaint(
    options: &RunOptions,
    info: &RunInfo,
    ingested: Option<&Ingested>,
    problem: Option<&IngestError>,
) -> Option<Error> {
    let source = options.samples.as_ref().map(source_name).unwrap_or_default();
    // If observer ended COMMAND, its failure is expected.
    let command_failed = info.end_reason == EndReason::CommandExit
        && info.command_exit.is_some_and(|code| code != 0);
    if let Some(error) = problem
        && !(command_failed && matches!(error, IngestError::Empty))
    {
        return Some(error.at(&source));
    }
    if command_failed {
        let code = info.command_exit.unwrap_or_default();
        let text = format!("COMMAND failed with code {code}; see loadgen.err in the run directory");
        return Some(Error::new(Exit::CommandFailed, text));
    }
    let interrupted = !matches!(info.end_reason, EndReason::CommandExit | EndReason::SamplesEnd);
    if ingested.is_some_and(|ingested| ingested.truncated) && !interrupted {
        return Some(Error::new(
            Exit::SamplesTruncated,
            format!("{source}: the samples end in the middle; the complete records were used"),
        ));
    }
    None
}
