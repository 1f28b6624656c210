//! What each BPF program takes: runs and time a run for each operation of `bench-work`, and sizes.
//!
//! Measuring the time of a run costs time itself; an attached program that does nothing shows how
//! much. With `--empty HOOK` only that program is attached: it shows the cost of the hook itself.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use observer::cli::probe_args::ProbeArgs;
use observer::kernel::{Kernel, LoadOptions, ProgramProfile, RING_BYTES, RunTimeStatistics};
use observer_tests::bpf::Empty;

/// Profiles the BPF programs, one JSON array of rows on standard output.
#[derive(Parser)]
struct Args {
    /// Attach a program that does nothing to this raw tracepoint, and stay until a signal
    #[arg(long, value_name = "HOOK")]
    empty: Option<String>,
    /// Which probes, by which tiers.
    #[command(flatten)]
    probes: ProbeArgs,
    /// Length of one burst of one operation
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// The processor of the workload
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// The operations
    #[arg(default_value = "switch,fault,mmap,madvise,socket,getppid", value_delimiter = ',')]
    operations: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.empty {
        Some(hook) => Empty::attach(hook).map(|_empty| {
            println!("attached: it runs until a signal");
            loop {
                std::thread::park();
            }
        }),
        None => profile(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-programs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn profile(args: &Args) -> Result<()> {
    let options = LoadOptions {
        has_target: true,
        ring_bytes: RING_BYTES,
        probes: args.probes.options(),
        by_cgroup: false,
    };
    let kernel = Kernel::attach(&options).map_err(Error::other)?;
    let empty = Empty::attach("sys_enter")?;
    let look = || {
        let mut programs = kernel.profile();
        programs.push(profile_of(&empty));
        programs
    };
    let mut rows = Vec::new();
    for operation in &args.operations {
        let statistics = RunTimeStatistics::start()
            .ok_or_else(|| Error::other("this kernel has no BPF statistics"))?;
        let before = look();
        let operations = work(args, operation)?;
        let after = look();
        drop(statistics);
        for (before, after) in before.into_iter().zip(after) {
            rows.push(serde_json::json!({
                "operation": operation,
                "operations": operations,
                "program": after.name,
                "runs": after.runs - before.runs,
                "run_time_ns": after.run_time_ns - before.run_time_ns,
                "verified_instructions": after.verified_instructions,
                "translated_bytes": after.translated_bytes,
                "jited_bytes": after.jited_bytes,
            }));
        }
    }
    println!("{}", serde_json::Value::Array(rows));
    Ok(())
}

/// Makes one burst and returns how many operations were done.
fn work(args: &Args, operation: &str) -> Result<u64> {
    let program: PathBuf = std::env::current_exe()?.with_file_name("bench-work");
    let output = Command::new(program)
        .args([operation, &args.milliseconds.to_string(), "--cpu", &args.cpu.to_string()])
        .output()?;
    let burst: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    burst["operations"].as_u64().ok_or_else(|| Error::other("bench-work reported no operations"))
}

/// What the kernel counted of the program that does nothing.
fn profile_of(empty: &Empty) -> ProgramProfile {
    let mut told = String::new();
    // A program that cannot be read is reported with 0 runs.
    let _ = File::open(format!("/proc/self/fdinfo/{}", empty.program.as_raw_fd()))
        .and_then(|mut file| file.read_to_string(&mut told));
    let field = |name: &str| {
        told.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0u64)
    };
    ProgramProfile {
        name: "(empty)".to_owned(),
        runs: field("run_cnt:"),
        run_time_ns: field("run_time_ns:"),
        verified_instructions: field("verified_insns:") as u32,
        translated_bytes: size_of_val(&Empty::INSTRUCTIONS) as u32,
        jited_bytes: 0,
    }
}
