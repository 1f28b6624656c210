//! `observer run`: the main job on the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use observer_ebpf::wire::RecordKind;

use super::duration::{parse_clock_error, parse_positive, parse_slow};
use super::probe_args::ProbeArgs;
use super::records::{parse_floor, parse_ring_bytes};
use super::{report, signals};
use crate::error::{Error, Exit, Result};
use crate::limits::{self, Needs};
use crate::loadgen::{ADAPTERS, SamplesSource, SamplesSpec};
use crate::log::{self, NOTICE};
use crate::model::SlowSpec;
use crate::session::{self, Budget, Progress, RunOptions, Session};
use crate::target::TargetArgs;

const EXAMPLES: &str = "\
Examples:
  observer run --port 8080 --samples observer-load -- observer load http://127.0.0.1:8080 --rate 500
      Watch whichever process listens on port 8080 while observer load sends requests to it.
  observer run --comm nginx --slow 50ms --samples hey -- hey -z 30s -c 20 -o csv http://127.0.0.1/
      The same with hey. Requests above 50 ms count as slow.
  observer run --cgroup /system.slice/nginx.service --samples vegeta-json:load.json --duration 1m
      Read the samples from a file that another generator writes during the run.
  observer run --comm nginx --as nobody --samples hey -- hey -z 30s -o csv http://127.0.0.1/
      Run the generator as another user than observer.
  observer run --exe /usr/sbin/nginx --wait --duration 30s
      Without a load generator: histograms of all stalls, from the moment nginx starts.
  observer run --port 8080 --counters --duration 30s
      Also count what the target's threads do: migrations, cache misses, instructions in each cycle.
  observer run --port 8080 --stacks 1ms --duration 30s
      Also record where the target's threads are when they wait for a millisecond or more; `observer
      stacks` shows it, by cause and with the names of functions.

The run ends when COMMAND exits, when the duration is over, when the target has exited, or at ^C; without
COMMAND also when the samples end (with their summary line, or with the stream). If COMMAND still runs
then, it gets SIGINT, and observer waits for the results that it prints; ^C again ends it. The run always
leaves a complete run directory, which `observer report` prints again.

Exit codes:
  0   success
  2   invalid command line
  3   not root, or a capability is missing
  4   the kernel lacks a required feature
  5   the target does not exist, or no process matches it
  6   the output directory cannot be written
  7   COMMAND could not be started
  8   the samples cannot be read
  9   the samples are empty
  10  the samples have another format
  11  no sample falls into the run: the samples are older, or use another clock
  13  COMMAND failed
  14  the samples end in the middle of a line
  15  the disk is full
  16  the output directory already exists
  17  more than a tenth of the requests failed
  18  a resource limit is too low

After codes 9 to 14 and 17 the run directory is complete; after 8 too, unless the samples could not be
opened at the start; after 15 as far as there was space.";

/// Watch TARGET while COMMAND sends requests, and split the latency of slow requests into causes.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES, mut_group("target", |group| group.required(true)))]
pub struct Args {
    /// The target.
    #[command(flatten)]
    pub target: TargetArgs,
    #[arg(long, value_name = "FORMAT[:PATH]", help = samples_help())]
    /// The load generator's samples.
    pub samples: Option<SamplesSpec>,
    /// Most that the load generator's wall clock may differ from this host's (0 for the same host)
    /// [default: 0 with COMMAND; otherwise 5ms, unless the samples name this host]
    #[arg(long, value_name = "TIME", value_parser = parse_clock_error, requires = "samples")]
    pub clock_error: Option<u64>,
    /// End the run after this time (500ms, 30s, 1m30s) [default: when COMMAND or the target exits]
    #[arg(long, value_name = "TIME", value_parser = parse_positive)]
    pub duration: Option<Duration>,
    /// Requests above this percentile (p99, p99.9) or this time (50ms) count as slow
    #[arg(long, value_name = "p99|50ms", default_value = "p99", value_parser = parse_slow)]
    pub slow: SlowSpec,
    /// The probes.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// Most CPU time that observer may add to the host, as a share of all CPUs, or none for no
    /// limit. Above it, observer detaches probes for a while and reports which
    #[arg(long, value_name = "SHARE", default_value_t)]
    pub budget: Budget,
    /// Count context switches, migrations and page faults of the target, and, where the machine has such
    /// counters, its cycles, instructions, and cache and TLB misses. Each context switch of its threads
    /// then takes 1 to 2 µs longer
    #[arg(long)]
    pub counters: bool,
    /// Record where threads of the target that were away from the CPU for at least this time (1ms) had been:
    /// their stacks in the kernel and in user space, which `observer stacks` then shows. Each context switch
    /// of the target's threads takes a microsecond or two longer
    #[arg(long, value_name = "TIME", value_parser = parse_positive)]
    pub stacks: Option<Duration>,
    /// Output directory; must not exist [default: a new one in the current directory]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Fixed minimum duration to record for this kind (runqueue=0us, fault=20us; kinds: runqueue,
    /// fault, reclaim, compaction, mm_syscall). Without it, observer raises the minimum while there
    /// are too many records
    #[arg(long, value_name = "KIND=TIME", value_parser = parse_floor)]
    pub floor: Vec<(RecordKind, u64)>,
    /// Size of the ring buffer for records, a power of two (64K to 1G)
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = parse_ring_bytes)]
    pub ring_bytes: u32,
    /// Print summary.json to standard output
    #[arg(long)]
    pub json: bool,
    /// Show COMMAND's arguments in report.html. They may hold secrets, so only run.json has them
    /// otherwise
    #[arg(long)]
    pub show_arguments: bool,
    /// Run COMMAND as USER (a name, UID or UID:GID), with the same environment [default: the user
    /// who called sudo, or else the user observer runs as]
    #[arg(long = "as", value_name = "USER", requires = "command")]
    pub user: Option<String>,
    /// The load generator; observer starts it when all probes are attached
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn samples_help() -> String {
    let formats: Vec<&str> = ADAPTERS.iter().map(|adapter| adapter.name).collect();
    format!(
        "Read samples in this format ({}) from COMMAND's standard output, from the file PATH, from \
         standard input (if PATH is -), or from a Unix socket that observer makes (if PATH is \
         unix:SOCKET)",
        formats.join(", ")
    )
}

impl Args {
    /// Checks what clap cannot check.
    ///
    /// # Errors
    /// When the samples come from COMMAND's output and there is no COMMAND, or when there is a tier for
    /// a probe that is not selected.
    pub fn check(&self) -> Result<()> {
        self.probes.check()?;
        match &self.samples {
            Some(spec)
                if spec.source == SamplesSource::CommandOutput && self.command.is_empty() =>
            {
                let message = format!(
                    "--samples {spec} reads the output of COMMAND, but there is no COMMAND: add it \
                     after --, or use --samples {spec}:PATH"
                );
                Err(Error::new(Exit::Usage, message))
            }
            _ => Ok(()),
        }
    }

    fn options(&self) -> Result<RunOptions> {
        let Some(target) = self.target.spec() else {
            return Err(Error::new(
                Exit::Usage,
                "no target: specify one with --pid, --comm, --exe, --cgroup or --port",
            ));
        };
        let mut probes = self.probes.options();
        // Why a thread is away is what the probes say that are of use beside samples.
        if self.samples.is_some() || self.stacks.is_some() {
            probes.selection = probes.selection.beside_samples();
        }
        let mut floors_ns = self.floor.clone();
        if let Some(shortest) = self.stacks {
            probes.selection = probes.selection.with("stack");
            let floor_ns = u64::try_from(shortest.as_nanos()).unwrap_or(u64::MAX);
            floors_ns.push((RecordKind::Stack, floor_ns));
        }
        Ok(RunOptions {
            target,
            wait: self.target.wait,
            probes,
            budget: self.budget,
            counters: self.counters,
            samples: self.samples.clone(),
            duration: self.duration,
            clock_error_ns: self.clock_error,
            slow: self.slow,
            out: self.out.clone(),
            command: self.command.clone(),
            user: self.user.clone(),
            ring_bytes: self.ring_bytes,
            floors_ns,
        })
    }
}

/// Runs it.
///
/// # Errors
/// See the exit codes of the help text.
pub fn run(args: &Args) -> Result<()> {
    args.check()?;
    let options = args.options()?;
    let has_stacks = options.probes.selection.contains("stack");
    let needs = Needs::of_run(args.ring_bytes).with_counters(args.counters);
    limits::check(needs.with_stacks(has_stacks))?;
    let stop = Arc::new(AtomicBool::new(false));
    signals::raise_on_interrupt(&stop)?;
    if options.wait {
        tracing::info!(target: NOTICE, "waiting for {}", options.target);
    }
    let Some(session) = Session::start(options, &stop)? else {
        return Err(Error::new(Exit::Target, "interrupted while waiting for the target"));
    };
    session.log_coverage();
    let bar = progress_bar(args.duration);
    log::set_progress(Some(bar.clone()));
    let (session, reason) = session.follow(&stop, |progress| show(&bar, progress))?;
    bar.set_message("analysing the run");
    // From here on, a signal means that the user does not want to wait for COMMAND.
    stop.store(false, Ordering::Relaxed);
    let finished = session::finish(session, reason, &stop);
    log::set_progress(None);
    bar.finish_and_clear();
    let finished = finished?;
    let (answer, page) = report::finished(&finished, args.show_arguments);
    if args.json {
        super::print_json(&finished.summary)?;
    } else {
        report::print_answer(&answer)?;
    }
    finished.complaint.map_or(page, Err)
}

fn progress_bar(duration: Option<Duration>) -> ProgressBar {
    if !log::shows_progress() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match duration {
        Some(duration) => (
            ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
            "{elapsed_precise} {wide_bar} {msg}",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed_precise} {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, progress: &Progress) {
    use std::fmt::Write as _;
    let elapsed_ms = u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX);
    bar.set_position(elapsed_ms);
    let mut message = String::new();
    if let Some(live) = progress.live {
        let p99_ms = live.p99_ns as f64 / 1e6;
        let _ = write!(message, "{:.0} req/s, p99 {p99_ms:.1} ms, ", live.rate_hz);
        if live.errors > 0 {
            let _ = write!(message, "{} failed, ", live.errors);
        }
    }
    let seconds = progress.elapsed.as_secs_f64().max(0.001);
    let _ = write!(message, "{:.0} events/s", progress.events as f64 / seconds);
    if progress.lost > 0 {
        let _ = write!(message, ", {} LOST", progress.lost);
    }
    bar.set_message(message);
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use clap::error::ErrorKind;

    use super::*;
    use crate::target::TargetSpec;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> std::result::Result<Args, ErrorKind> {
        Cli::try_parse_from(std::iter::once("run").chain(line.split_ascii_whitespace()))
            .map(|cli| cli.args)
            .map_err(|error| error.kind())
    }

    #[test]
    fn everything_can_be_said_at_once() {
        let args = parse(
            "--port 80 --wait --samples hey --duration 1m30s --slow p99.9 --out x --json \
             -- hey -o csv http://a/",
        )
        .unwrap();
        assert_eq!(args.target.spec(), Some(TargetSpec::Port(80)));
        assert!(args.target.wait && args.json);
        assert_eq!(args.samples.as_ref().unwrap().to_string(), "hey");
        assert_eq!(args.duration, Some(Duration::from_secs(90)));
        assert_eq!(args.budget, Budget::default());
        assert_eq!(args.slow.to_string(), "p99.9");
        assert_eq!(args.command, ["hey", "-o", "csv", "http://a/"]);
        assert!(args.check().is_ok());
    }

    #[test]
    fn a_target_is_needed_and_a_command_where_its_output_is() {
        assert_eq!(parse("--duration 3s").unwrap_err(), ErrorKind::MissingRequiredArgument);
        assert_eq!(parse("--pid 1 hey").unwrap_err(), ErrorKind::UnknownArgument);
        assert_eq!(parse("--pid 1 --samples nope").unwrap_err(), ErrorKind::ValueValidation);
        assert_eq!(parse("--pid 1 --duration 0s").unwrap_err(), ErrorKind::ValueValidation);
        assert_eq!(parse("--pid 1").unwrap().slow, SlowSpec::default());
        assert_eq!(parse("--pid 1 --budget none").unwrap().budget, Budget::NONE);
        assert_eq!(parse("--pid 1 --budget 1").unwrap_err(), ErrorKind::ValueValidation);

        let error = parse("--pid 1 --samples hey").unwrap().check().unwrap_err();
        assert_eq!(error.exit, Exit::Usage);
        assert!(error.to_string().contains("--samples hey:PATH"), "{error}");
        assert!(parse("--pid 1 --samples hey:a.csv").unwrap().check().is_ok());
    }

    #[test]
    fn probes_are_all_or_those_that_are_named() {
        let all = parse("--pid 1").unwrap().probes.options().selection;
        assert!(all.contains("runqueue") && all.contains("socket"));
        let some = parse("--pid 1 --probes runqueue,fault").unwrap().probes.options().selection;
        assert!(some.contains("fault") && !some.contains("socket"));
        let beside_samples = |probes: &str| {
            let run = parse(&format!("--pid 1 --samples hey:a.csv {probes}")).unwrap();
            let chosen = run.options().unwrap().probes.selection;
            ["runqueue", "irq", "request", "sleep"].map(|name| chosen.contains(name))
        };
        assert_eq!(beside_samples(""), [true, false, true, true]);
        assert_eq!(beside_samples("--probes default,irq"), [true; 4]);
        assert_eq!(beside_samples("--probes runqueue,request"), [true, false, true, false]);
        let tier = parse("--pid 1 --probes runqueue --tier fault=tp_btf").unwrap();
        assert_eq!(tier.check().unwrap_err().exit, Exit::Usage);
        assert!(parse("--pid 1 --probes fault --tier fault=tp_btf").unwrap().check().is_ok());
        assert_eq!(parse("--pid 1 --probes x").unwrap_err(), ErrorKind::ValueValidation);
    }
}
