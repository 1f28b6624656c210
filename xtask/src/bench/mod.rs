//! What observers cost: added nanoseconds per operation over none, all measured in one run.
//!
//! A session is one observer on some operations: the bare operation, the same with the observer
//! attached, and the bare one again. The added cost is the middle one less the mean of its two
//! neighbours, so that a machine that drifts during the run does not count for or against anyone.
//! Rounds begin with another observer each, so that none is always the first.

mod observers;
mod table;

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use clap::{Args, ValueEnum};

use self::{
    observers::{Bystander, Running, Session, sessions},
    table::Results,
};
use crate::{
    project::{Outcome, built, cargo, is_root, must, shown},
    toolchain,
};

#[derive(Args)]
pub(crate) struct Options {
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these operations
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Operation>,
    /// Only these peers (runqlat, bpftrace, perf); without it, all that are installed
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Another observer program than the one built from this tree
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
    /// Seconds an observer is given after it said that it is attached
    #[arg(long, default_value_t = 2.0)]
    settle: f64,
}

/// An operation of the workload program, a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Operation {
    Switch,
    Fault,
    Mmap,
    Madvise,
    Socket,
}

impl Operation {
    /// Its name on the command line of the workload.
    fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Fault => "fault",
            Self::Mmap => "mmap",
            Self::Madvise => "madvise",
            Self::Socket => "socket",
        }
    }

    /// Its name in the table.
    fn title(self) -> &'static str {
        match self {
            Self::Switch => "context switch (wake-up and switch)",
            Self::Fault => "minor page fault",
            Self::Mmap => "mmap or munmap",
            Self::Madvise => "madvise",
            Self::Socket => "socket and close",
        }
    }

    /// How many make a measurement of some 150 ms.
    fn count(self) -> &'static str {
        match self {
            Self::Switch => "60000",
            Self::Fault | Self::Mmap => "160000",
            Self::Madvise => "600000",
            Self::Socket => "60000",
        }
    }
}

/// A measurement is the median of so many short ones.
const REPEATS: usize = 3;

struct Workload {
    program: PathBuf,
    cpu: String,
}

impl Workload {
    fn measure(&self, operation: Operation) -> Result<f64, String> {
        let mut values = Vec::with_capacity(REPEATS);
        for _ in 0..REPEATS {
            let mut command = Command::new(&self.program);
            command.args([operation.name(), operation.count(), "--cpu", &self.cpu]);
            let output = command
                .output()
                .map_err(|error| format!("could not start {}: {error}", shown(&command)))?;
            let text = String::from_utf8_lossy(&output.stdout);
            let value = text.trim().parse::<f64>().map_err(|_| {
                let reason = String::from_utf8_lossy(&output.stderr);
                format!("{} ended with {}: {}", shown(&command), output.status, reason.trim())
            })?;
            values.push(value);
        }
        Ok(table::median(&mut values))
    }

    fn measure_all(&self, operations: &[Operation]) -> Result<Vec<f64>, String> {
        operations.iter().map(|operation| self.measure(*operation)).collect()
    }
}

pub(crate) fn run(options: &Options) -> Outcome {
    toolchain::require(false, options.peers.is_none())?;
    if !is_root() {
        return Err("the benchmark attaches observers: run it as root".to_owned());
    }
    let release = built("release");
    if options.observer.is_none() {
        must(&mut cargo(["build", "--release", "--package", "observer", "--bins"]))?;
    }
    let work = ["build", "--release", "--package", "observer-tests", "--bins"];
    must(&mut cargo(work))?;
    let observer = options.observer.clone().unwrap_or_else(|| release.join("observer"));
    let operations = if options.only.is_empty() {
        Operation::value_variants().to_vec()
    } else {
        options.only.clone()
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workload = Workload { program: release.join("bench-work"), cpu: (cpus - 1).to_string() };
    let bystander = Bystander::start()?;
    let sessions = sessions(&observer, &bystander, &operations, options.peers.as_deref())?;

    let mut results = Results::default();
    for round in 0..options.rounds as usize {
        for index in 0..sessions.len() {
            let session = &sessions[(round + index) % sessions.len()];
            eprintln!("round {} of {}: {}", round + 1, options.rounds, session.title());
            if let Err(reason) = measure(session, &workload, options.settle, &mut results) {
                // One that does not run, or saw nothing, cost nothing: such a number must not
                // stand in the table.
                eprintln!("    left out: {reason}");
                results.left_out(session.observer, &reason);
            }
        }
    }
    print!("{}", results.markdown(&table::host()));
    if options.observer.is_none() {
        println!("\n{}", drain(&release.join("drain-bench"))?);
    }
    Ok(if results.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The drain, as a paragraph: records made as fast as one CPU can, drained on another.
fn drain(program: &std::path::Path) -> Result<String, String> {
    eprintln!("drain");
    let output = Command::new(program).output().map_err(|error| format!("drain-bench: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("drain-bench: {error}: {text}"))?;
    let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
    Ok(format!(
        "Drain: {:.2} million records a second delivered and decoded, {} lost; the drain took \
         {:.2} s of CPU time for {:.1} million records, so one CPU could drain {:.0} million a \
         second.",
        number("rate_hz") / 1e6,
        number("lost"),
        number("drain_cpu_seconds"),
        number("delivered") / 1e6,
        number("capacity_hz") / 1e6,
    ))
}

fn measure(
    session: &Session,
    workload: &Workload,
    settle_s: f64,
    results: &mut Results,
) -> Result<(), String> {
    let before = workload.measure_all(&session.operations)?;
    let running = Running::start(session)?;
    thread::sleep(Duration::from_secs_f64(settle_s.clamp(0.0, 60.0)));
    let with = workload.measure_all(&session.operations)?;
    running.stop(session)?;
    let after = workload.measure_all(&session.operations)?;
    for (index, operation) in session.operations.iter().enumerate() {
        let bare = f64::midpoint(before[index], after[index]);
        results.add(*operation, session.observer, bare, with[index] - bare);
    }
    Ok(())
}
