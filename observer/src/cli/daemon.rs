//! `observer daemon` on the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::probe_args::ProbeArgs;
use super::{records, signals};
use crate::error::{Error, Exit, Result};
use crate::limits::{self, Needs};
use crate::log::NOTICE;
use crate::probe::{ProbeOptions, Selection};
use crate::session::{Budget, DaemonOptions, log_coverage, serve};
use crate::target::TargetArgs;

/// The probe whose records are of use only with the stacks that they name.
const STACK: &str = "stack";

const EXAMPLES: &str = "\
Examples:
  observer daemon
      Serve histograms of all tasks, per cgroup, on http://127.0.0.1:9808/metrics.
  observer daemon --comm nginx --wait
      Also watch nginx separately, from the moment it starts.
  observer daemon --listen [::1]:9900 --cgroup /system.slice/nginx.service
      Listen on another address, and watch a cgroup separately.
  observer daemon --comm nginx --counters
      Also count context switches, migrations, and cache and TLB misses of nginx.

SIGTERM stops the daemon cleanly. docs/METRICS.md describes the metrics.

Exit codes:
  0   stopped as asked
  2   invalid command line
  3   not root, or a capability is missing
  4   the kernel lacks a required feature
  5   the target does not exist
  6   the directory for the trace cannot be written
  15  the disk is full
  16  the directory for the trace already exists
  18  a resource limit is too low
  19  the address is in use, or not one of this host";

/// Serve histograms of all kernel stalls as OpenMetrics, until SIGTERM or ^C.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Address and port to listen on; anyone who can reach it can read the metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9808")]
    pub listen: SocketAddr,
    /// The target, if there is one.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Also write each stall of the target to this new directory, which `observer report` reads
    #[arg(long, value_name = "DIR", requires = "target")]
    pub trace: Option<PathBuf>,
    /// Disk space for that trace; the oldest part is removed to make room for the newest
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "256M",
        requires = "trace",
        value_parser = records::parse_trace_bytes
    )]
    pub trace_bytes: u64,
    /// The probes.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Count context switches, migrations and page faults of the target, and, where the machine has such
    /// counters, its cycles, instructions, and cache and TLB misses. Each context switch of its threads
    /// then takes 1 to 2 µs longer
    #[arg(long, requires = "target")]
    pub counters: bool,
    /// What observer may add to the host, as a share of all CPU time, or `none`. Above it, probes are
    /// detached until they cost less; the results tell which, and when
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub budget: Budget,
}

/// The chosen probes, without stacks: nothing of the daemon reads them.
///
/// # Errors
/// When stacks were asked for by name, or a tier is that of a probe that is not selected.
fn probes(args: &ProbeArgs) -> Result<ProbeOptions> {
    args.check()?;
    let mut probes = args.options();
    if probes.selection.contains(STACK) && probes.selection != Selection::ALL {
        return Err(Error::new(
            Exit::Usage,
            "the daemon does not record stacks: leave the probe stack out of --probes, and use \
             `observer run --stacks TIME`",
        ));
    }
    probes.selection = probes.selection.without(STACK);
    Ok(probes)
}

/// Runs it.
///
/// # Errors
/// When the kernel, the target or the address will not do.
pub fn run(args: &Args) -> Result<()> {
    let probes = probes(&args.probes)?;
    limits::check(Needs::of_daemon().with_counters(args.counters))?;
    let stop = Arc::new(AtomicBool::new(false));
    signals::raise_on_interrupt(&stop)?;
    let options = DaemonOptions {
        listen: args.listen,
        target: args.target.spec(),
        wait: args.target.wait,
        probes,
        budget: args.budget,
        counters: args.counters,
        trace: args.trace.clone(),
        trace_bytes: args.trace_bytes,
    };
    if !args.listen.ip().is_loopback() {
        tracing::warn!(
            "{} is not a loopback address: anyone who can reach it can read the metrics",
            args.listen
        );
    }
    if let Some(target) = options.target.as_ref().filter(|_| options.wait) {
        tracing::info!(target: NOTICE, "waiting for {target} if it is not running yet");
    }
    serve(&options, &stop, |address, kernel| {
        log_coverage(kernel);
        tracing::info!(target: NOTICE, "serving http://{address}/metrics");
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_target_is_optional_and_the_default_is_local() {
        let args = Cli::try_parse_from(["daemon"]).unwrap().args;
        assert!(args.listen.ip().is_loopback());
        assert_eq!(args.target.spec(), None);
        let args = Cli::try_parse_from(["daemon", "--listen", "[::1]:1", "--port", "80"]).unwrap();
        assert!(args.args.target.spec().is_some());
        assert!(Cli::try_parse_from(["daemon", "--listen", "9808"]).is_err());
    }
}
