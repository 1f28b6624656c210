//! `cargo xtask bench`: what observers cost, side by side in one run: per operation of the kernel, on
//! real services, their own CPU time, and which BPF programs take it.
//!
//! Everything measured becomes a row (`rows.rs`), and the tables are made from rows alone.

mod answer;
mod memory;
mod observers;
mod operations;
mod own;
mod programs;
mod requests;
mod rows;
mod services;
mod statistics;
mod table;
mod tiers;
mod workload;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};
use xtask_common::{
    project::{Outcome, built, cargo, finished, is_root, must},
    toolchain,
};

use self::{
    observers::Bystander,
    rows::{Row, Rows},
    workload::{Operation, Workload},
};

/// Measure the cost of observer and other tools per operation, interleaved in one run
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", version)]
struct Options {
    /// Number of times that everything is measured
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Compare with these tools only (runqlat, bpftrace, perf) [default: all that are installed]
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// An observer program other than the one built from this tree
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
    /// Length of one burst of one operation, milliseconds
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(10..=10_000))]
    burst_ms: u64,
    /// Length of the memory measurement, seconds
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(10..))]
    memory_seconds: u64,
    /// Append every measurement to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure nothing: print the tables of a file that --json wrote
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    tables: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Nanoseconds added to a context switch
    Switch,
    /// Nanoseconds added to a minor page fault
    Fault,
    /// Nanoseconds added to mmap and munmap
    Mmap,
    /// Nanoseconds added to madvise
    Madvise,
    /// Nanoseconds added to socket and close
    Socket,
    /// Nanoseconds added to a write or read of a TCP connection of others than the target
    Exchange,
    /// Nanoseconds added to a system call that no probe watches
    Getppid,
    /// Throughput and p99 of nginx under wrk
    Nginx,
    /// Throughput and p99 of redis under redis-benchmark
    Redis,
    /// CPU time of observer itself
    Own,
    /// Runs, run time and instructions of each BPF program
    Programs,
    /// Every tier of every probe that works on this kernel
    Tiers,
    /// How fast records reach user space
    Drain,
    /// Memory over a long run
    Memory,
    /// Time and memory of answers, by the number of requests
    Answer,
}

impl Part {
    const fn operation(self) -> Option<Operation> {
        match self {
            Self::Switch => Some(Operation::Switch),
            Self::Fault => Some(Operation::Fault),
            Self::Mmap => Some(Operation::Mmap),
            Self::Madvise => Some(Operation::Madvise),
            Self::Socket => Some(Operation::Socket),
            Self::Exchange => Some(Operation::Exchange),
            Self::Getppid => Some(Operation::Getppid),
            Self::Nginx
            | Self::Redis
            | Self::Own
            | Self::Programs
            | Self::Tiers
            | Self::Drain
            | Self::Memory
            | Self::Answer => None,
        }
    }
}

/// What all parts need.
struct Bench<'options> {
    options: &'options Options,
    parts: Vec<Part>,
    observer: PathBuf,
    release: PathBuf,
    cpus: usize,
    rows: Rows,
}

fn main() -> ExitCode {
    finished("cargo xtask bench", run(&Options::parse()))
}

fn run(options: &Options) -> Outcome {
    if let Some(path) = &options.tables {
        println!("{}", markdown(&Rows::read(path)?));
        return Ok(ExitCode::SUCCESS);
    }
    toolchain::require(false, options.peers.is_none())?;
    if !is_root() {
        return Err("the benchmark attaches observers: run it as root".to_owned());
    }
    let release = built("release");
    // In one build: built separately, their libraries would have other features.
    let build = ["build", "--release", "--package", "observer", "--package", "observer-tests"];
    must(cargo(build).arg("--bins"))?;
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    leave_cpu(cpus)?;
    let parts = match options.only.as_slice() {
        [] => Part::value_variants().to_vec(),
        only => only.to_vec(),
    };
    let mut bench = Bench {
        options,
        parts,
        observer: options.observer.clone().unwrap_or_else(|| release.join("observer")),
        release,
        cpus,
        rows: Rows::new(options.json.as_deref())?,
    };
    bench.rows.push(Row::Host { text: table::host() })?;
    for part in Part::value_variants() {
        if bench.parts.contains(part) {
            bench.measure(*part)?;
        }
    }
    print!("{}", markdown(&bench.rows));
    let complete = !bench.rows.iter().any(|row| matches!(row, Row::LeftOut { .. }));
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reserves the last processor for the workloads: this process, and the observers that it starts,
/// run on the others.
fn leave_cpu(cpus: usize) -> Result<(), String> {
    if cpus < 2 {
        eprintln!("one processor only: observers' own threads count as added cost");
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in 0..(cpus - 1).min(CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(|error| format!("cannot leave a processor free: {error}"))
}

impl Bench<'_> {
    fn program(&self, name: &str) -> PathBuf {
        self.release.join(name)
    }

    /// The processor of the workloads; nothing else of this run is on it.
    const fn cpu(&self) -> usize {
        self.cpus - 1
    }

    fn workload(&self) -> Result<Workload, String> {
        let burst = Duration::from_millis(self.options.burst_ms);
        Workload::start(&self.program("bench-work"), self.cpu(), burst)
    }

    fn measure(&mut self, part: Part) -> Result<(), String> {
        // These are not ratios of two short measurements, so a third of the rounds is enough.
        let few = self.options.rounds.div_ceil(3);
        match part {
            // One run measures all operations that were asked for: at the first of them.
            _ if part.operation().is_some() => {
                let first = self.parts.iter().find(|one| one.operation().is_some());
                if first == Some(&part) { self.operations() } else { Ok(()) }
            }
            Part::Nginx => self.service(services::Kind::Nginx),
            Part::Redis => self.service(services::Kind::Redis),
            Part::Own => (0..few).try_for_each(|_| {
                let mut workload = self.workload()?;
                own::measure(&self.observer, &mut workload, &mut self.rows)?;
                drop(workload);
                let service = self.program("observer-service");
                requests::measure(&self.observer, &service, &mut self.rows)
            }),
            Part::Programs => (0..few).try_for_each(|_| {
                eprintln!("programs");
                programs::measure(&self.program("bench-programs"), self.cpu(), &mut self.rows)
            }),
            Part::Memory => {
                let mut workload = self.workload()?;
                let seconds = self.options.memory_seconds;
                memory::measure(&self.observer, &mut workload, seconds, &mut self.rows)
            }
            Part::Answer => {
                let program = self.program("answer-bench");
                (0..few).try_for_each(|_| answer::measure(&program, &mut self.rows))
            }
            Part::Tiers => {
                eprintln!("tiers");
                let (rounds, cpu) = (self.options.rounds, self.cpu());
                tiers::measure(&self.program("bench-tiers"), cpu, rounds, &mut self.rows)
            }
            _ => self.drain(),
        }
    }

    fn service(&mut self, kind: services::Kind) -> Result<(), String> {
        let bpftrace = observers::peers(self.options.peers.as_deref())?.contains(&"bpftrace");
        let cpus = (self.cpu(), self.cpus);
        let rounds = self.options.rounds as usize;
        services::measure(kind, &self.observer, rounds, cpus, bpftrace, &mut self.rows)
    }

    fn operations(&mut self) -> Result<(), String> {
        let operations: Vec<_> = self.parts.iter().filter_map(|part| part.operation()).collect();
        if operations.is_empty() {
            return Ok(());
        }
        let peers = observers::peers(self.options.peers.as_deref())?;
        let bystander = Bystander::start()?;
        let programs = self.program("bench-programs");
        let sessions =
            operations::sessions(&self.observer, &programs, &bystander, &operations, &peers)?;
        for round in 0..self.options.rounds as usize {
            // A new one each round: where its memory lies is part of what is averaged over.
            let mut workload = self.workload()?;
            for index in 0..sessions.len() {
                let session = &sessions[(round + index) % sessions.len()];
                eprintln!("round {} of {}: {}", round + 1, self.options.rounds, session.title());
                operations::measure(session, &mut workload, &mut self.rows)?;
            }
        }
        Ok(())
    }

    /// Records at ever higher rates, until some are lost.
    fn drain(&mut self) -> Result<(), String> {
        eprintln!("drain");
        let figures = json_of(&self.program("drain-bench"), &[])?;
        let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
        self.rows.push(Row::Drain {
            sustained_hz: number("sustained_hz"),
            until_loss: figures["until_loss"].as_bool().unwrap_or(false),
            cpu_seconds_per_million: number("cpu_seconds_per_million"),
            delivered: number("delivered"),
            wakeups: number("wakeups"),
        })
    }
}

/// What a program prints, as JSON.
fn json_of(program: &Path, arguments: &[&str]) -> Result<serde_json::Value, String> {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_slice(&output.stdout).map_err(|error| {
        format!("{name}: {error}: {}", String::from_utf8_lossy(&output.stderr).trim())
    })
}

/// All tables.
fn markdown(rows: &Rows) -> String {
    let mut page = String::new();
    let hosts = rows.iter().filter_map(|row| match row {
        Row::Host { text } => Some(text.as_str()),
        _ => None,
    });
    // Runs on one machine say the same.
    let mut hosts: Vec<_> = hosts.collect();
    hosts.dedup();
    if !hosts.is_empty() {
        page.push_str(&format!("{}\n\n", hosts.join("; ")));
    }
    for part in [
        operations::markdown,
        services::markdown,
        own::markdown,
        requests::markdown,
        programs::markdown,
        memory::markdown,
        tiers::markdown,
        answer::markdown,
    ] {
        page.push_str(&part(rows));
    }
    for row in rows.iter() {
        match row {
            Row::Drain {
                sustained_hz,
                until_loss,
                cpu_seconds_per_million,
                delivered,
                wakeups,
            } => {
                let end = if *until_loss {
                    "a higher rate lost records"
                } else {
                    "no more could be made"
                };
                page.push_str(&format!(
                    "\nDrain: {:.2} million records a second sustained without loss ({end}); \
                     {cpu_seconds_per_million:.3} s of CPU time for a million records; {wakeups} \
                     wake-ups for {:.1} million.\n",
                    sustained_hz / 1e6,
                    delivered / 1e6,
                ));
            }
            Row::LeftOut { observer, reason } => {
                page.push_str(&format!("\nLeft out once, {observer}: {reason}\n"));
            }
            _ => {}
        }
    }
    page
}
