//! `observer doctor`.

use super::probes::ProbeArgs;
use crate::doctor;
use crate::error::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  observer doctor           what works here, and what to do about the rest
  observer doctor -v        with what each line means, and every tier of every probe
  observer doctor --tier fault=perf_event
                            whether a probe could be attached in that way
  observer doctor --json    for programs

Exit code: 0 when `observer run` would work, 3 when a right is missing, 4 when the kernel lacks
something.";

/// Arguments of `observer doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// Which probes, and how.
    #[command(flatten)]
    probes: ProbeArgs,
}

/// Looks at the host and prints what was found.
///
/// # Errors
/// After printing, when `observer run` would not work here.
pub fn run(args: &Args, verbose: bool) -> Result<()> {
    let report = doctor::examine(&args.probes.options());
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.text(verbose))?;
    }
    match report.exit() {
        None => Ok(()),
        Some(exit) => {
            let why = report.blocked_by.join("; ");
            Err(Error::new(exit, format!("`observer run` would not work here: {why}")))
        }
    }
}
