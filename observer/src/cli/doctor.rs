//! `observer doctor`.

use super::probe_args::ProbeArgs;
use crate::doctor;
use crate::error::{Error, Result};
use crate::limits::{self, Needs};

const EXAMPLES: &str = "\
Examples:
  observer doctor           show what works on this host, and how to fix the rest
  observer doctor -v        also explain each line, and list all tiers of every probe
  observer doctor --tier fault=perf_event
                            check whether a probe can be attached by this tier
  observer doctor --json    print the findings as JSON

Exit codes:
  0   `observer run` works on this host
  3   not root, or a capability is missing
  4   the kernel lacks a required feature
  18  a resource limit is too low";

/// Show what this kernel supports, and whether `observer run` works on this host.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
    /// The probes, and how to attach them.
    #[command(flatten)]
    probes: ProbeArgs,
}

/// Examines the host and prints the findings.
///
/// # Errors
/// After printing, when `observer run` does not work on this host.
pub fn run(args: &Args, verbose: bool) -> Result<()> {
    limits::check(Needs::of_doctor())?;
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
            Err(Error::new(exit, format!("`observer run` does not work on this host: {why}")))
        }
    }
}
