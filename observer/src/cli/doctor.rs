//! `observer doctor`.

use crate::doctor::{Facts, ProbeReport, Report, judge};
use crate::error::{Error, Exit, Result};

const EXAMPLES: &str = "\
Examples:
  observer doctor           what works here, and what to do about the rest
  observer doctor -v        with what each line means
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
}

/// Looks at the host and prints what was found. `probes` asks the kernel which tier each probe
/// would take; it is called only where programs can be loaded.
///
/// # Errors
/// After printing, when `observer run` would not work here.
pub fn run(args: &Args, verbose: bool, probes: impl FnOnce() -> Vec<ProbeReport>) -> Result<()> {
    let checks = judge(&Facts::gather());
    let blocked = checks.iter().any(|check| check.blocks.is_some());
    let report = Report::new(checks, if blocked { Vec::new() } else { probes() });
    let text = if args.json {
        serde_json::to_string_pretty(&report)
            .map_err(|error| Error::new(Exit::Failure, format!("cannot write JSON: {error}")))?
            + "\n"
    } else {
        report.text(verbose)
    };
    super::print(&text)?;
    let exit = match report.exit_code {
        0 => return Ok(()),
        code if code == Exit::Permission as u8 => Exit::Permission,
        _ => Exit::Kernel,
    };
    Err(Error::new(exit, format!("`observer run` would not work here: {}", report.blocked_by[0])))
}
