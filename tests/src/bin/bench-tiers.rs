//! What each tier of each probe adds to an operation, without a shell, so that it runs in a guest
//! that has nothing else: one JSON row a line on standard output, and in the file that
//! `OBSERVER_TEST_RESULTS` names.
//!
//! As everywhere in the benchmark: bare, attached twice, bare again, in one process that does the
//! operations; the faster of each two, of a low quantile of short slices.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Error, Result, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use clap::Parser;
use observer::host::system;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES};
use observer::model::ProbeState;
use observer::probe::{ForcedTier, PROBES, Probe, ProbeOptions, Selection, ThreadState, Tier};
use serde_json::{Value, json};

/// Measures every tier that this kernel offers.
#[derive(Parser)]
struct Args {
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one burst of one operation
    #[arg(long, default_value_t = 100)]
    milliseconds: u64,
    /// The processor of the workload
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Only this probe
    #[arg(long)]
    probe: Option<String>,
    /// Only this tier
    #[arg(long)]
    tier: Option<String>,
    /// Count for the host alone, as a run does, and not by cgroup
    #[arg(long)]
    without_cgroups: bool,
    /// Where the state of threads is kept (auto, tables, storage); with several, each in turn
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    thread_state: Vec<ThreadState>,
}

/// The operations that take the path of each probe. The other two probes watch rare events.
const OPERATIONS: [(&str, &[&str]); 5] = [
    ("runqueue", &["switch"]),
    ("fault", &["fault"]),
    ("mm_syscall", &["mmap", "madvise", "getppid"]),
    ("socket", &["socket", "getppid"]),
    ("request", &["exchange"]),
];

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-tiers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<()> {
    let mut results = std::env::var_os("OBSERVER_TEST_RESULTS")
        .map(|path| OpenOptions::new().create(true).append(true).open(path))
        .transpose()?;
    let kernel = system::uname().release;
    for round in 0..args.rounds {
        let mut work = Work::start(args)?;
        for probe in PROBES {
            if args.probe.as_ref().is_some_and(|only| only != probe.name) {
                continue;
            }
            let of_probe = OPERATIONS.iter().find(|(name, _)| *name == probe.name);
            let Some((_, operations)) = of_probe else { continue };
            let places = &args.thread_state;
            let wanted = |tier: &&Tier| args.tier.as_ref().is_none_or(|only| only == tier.name);
            let tiers = probe.tiers.iter().filter(wanted);
            let ways = tiers.flat_map(|tier| places.iter().map(move |at| (tier, *at)));
            for (tier, at) in ways {
                let name = match at {
                    ThreadState::Auto => tier.name.to_owned(),
                    ThreadState::Tables => format!("{}, tables", tier.name),
                    ThreadState::Storage => format!("{}, storage", tier.name),
                };
                let way = (tier.name, at, !args.without_cgroups);
                match tier_rows(&mut work, probe, operations, way)? {
                    Ok(rows) => {
                        for row in rows {
                            tell(row, &kernel, probe, &name, results.as_mut())?;
                        }
                    }
                    // The reason does not change from round to round.
                    Err(reason) if round == 0 => {
                        let row = json!({"part": "no_tier", "reason": reason});
                        tell(row, &kernel, probe, &name, results.as_mut())?;
                    }
                    Err(_) => {}
                }
            }
        }
    }
    Ok(())
}

/// One row for each operation, or why the tier is not available.
fn tier_rows(
    work: &mut Work,
    probe: &Probe,
    operations: &[&str],
    (tier, thread_state, by_cgroup): (&str, ThreadState, bool),
) -> Result<std::result::Result<Vec<Value>, String>> {
    let forced: ForcedTier =
        format!("{}={tier}", probe.name).parse().map_err(|error: String| Error::other(error))?;
    let selection: Selection = probe.name.parse().map_err(|error: String| Error::other(error))?;
    let tiers = [forced].into_iter().collect();
    let probes = ProbeOptions { selection, tiers, thread_state, ..Default::default() };
    let before = work.bursts(operations)?;
    // It follows the target alone; what it does at the connections of others is less.
    let has_target = probe.name == "request";
    let options = LoadOptions { has_target, ring_bytes: RING_BYTES, probes, by_cgroup };
    let kernel = match Kernel::attach(&options) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Some(coverage) = kernel.coverage().remove(probe.name)
        && coverage.state != ProbeState::Attached
    {
        return Ok(Err(coverage.reason.unwrap_or_default()));
    }
    kernel.targets().set(work.child.id(), has_target);
    let with = [work.bursts(operations)?, work.bursts(operations)?];
    drop(kernel);
    let after = work.bursts(operations)?;
    let rows = operations.iter().enumerate().map(|(index, operation)| {
        json!({
            "part": "tier",
            "operation": operation,
            "bare_ns": before[index].min(after[index]),
            "with_ns": with[0][index].min(with[1][index]),
        })
    });
    Ok(Ok(rows.collect()))
}

fn tell(
    mut row: Value,
    kernel: &str,
    probe: &Probe,
    tier: &str,
    results: Option<&mut File>,
) -> Result<()> {
    row["kernel"] = kernel.into();
    row["probe"] = probe.name.into();
    row["tier"] = tier.into();
    println!("{row}");
    results.map_or(Ok(()), |results| writeln!(results, "{row}"))
}

/// The process that does the operations.
struct Work {
    child: Child,
    pipes: Option<(ChildStdin, BufReader<ChildStdout>)>,
    milliseconds: u64,
}

impl Work {
    fn start(args: &Args) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?.with_file_name("bench-work"))
            .args(["--serve", "--cpu", &args.cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        Ok(Self { child, pipes, milliseconds: args.milliseconds })
    }

    fn bursts(&mut self, operations: &[&str]) -> Result<Vec<f64>> {
        let (to, from) = self.pipes.as_mut().ok_or_else(|| Error::other("bench-work has ended"))?;
        let burst = |operation: &&str| {
            writeln!(to, "{operation} {}", self.milliseconds)?;
            let mut line = String::new();
            from.read_line(&mut line)?;
            let told: Value = serde_json::from_str(&line)?;
            told["p25_ns"].as_f64().ok_or_else(|| Error::other("bench-work reported no time"))
        };
        operations.iter().map(burst).collect()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Without input it ends by itself; a failure leaves a zombie until this process ends.
        drop(self.pipes.take());
        let _ = self.child.wait();
    }
}
