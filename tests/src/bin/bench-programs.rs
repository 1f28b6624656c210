//! What each BPF program takes: runs and time a run for each operation of `bench-work`, and sizes.
//!
//! Measuring the time of a run costs time itself; an attached program that does nothing shows how
//! much. With `--empty HOOK` only that program is attached: it shows the cost of the hook itself.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use observer::cli::probe_args::ProbeArgs;
use observer::kernel::{Kernel, LoadOptions, ProgramProfile, RING_BYTES, RunTimeStatistics};

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
        programs.push(empty.profile());
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

/// A program of two instructions on a raw tracepoint.
struct Empty {
    program: OwnedFd,
    _link: OwnedFd,
}

/// Numbers of include/uapi/linux/bpf.h.
mod bpf {
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    pub(super) const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
    /// `r0 = 0` and `exit`.
    pub(super) const NOTHING: [u64; 2] = [0xb7, 0x95];

    /// The head of `union bpf_attr` for a load.
    #[repr(C)]
    pub(super) struct Load {
        pub(super) program_type: u32,
        pub(super) instruction_count: u32,
        pub(super) instructions: u64,
        pub(super) license: u64,
    }

    /// The head of `union bpf_attr` for opening a raw tracepoint.
    #[repr(C)]
    pub(super) struct Open {
        pub(super) name: u64,
        pub(super) program: u32,
        pub(super) padding: u32,
    }
}

/// bpf(2) for commands that return a descriptor.
fn bpf_descriptor<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes of the attributes, which the caller made for `command`,
    // and takes what lies beyond for zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    if result < 0 {
        return Err(Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

impl Empty {
    fn attach(hook: &str) -> Result<Self> {
        let program = bpf_descriptor(
            bpf::PROG_LOAD,
            &bpf::Load {
                program_type: bpf::PROG_TYPE_RAW_TRACEPOINT,
                instruction_count: bpf::NOTHING.len() as u32,
                instructions: bpf::NOTHING.as_ptr() as u64,
                license: c"MIT".as_ptr() as u64,
            },
        )?;
        let name = std::ffi::CString::new(hook)?;
        let link = bpf_descriptor(
            bpf::RAW_TRACEPOINT_OPEN,
            &bpf::Open {
                name: name.as_ptr() as u64,
                program: program.as_raw_fd().cast_unsigned(),
                padding: 0,
            },
        )
        .map_err(|error| Error::other(format!("raw tracepoint {hook}: {error}")))?;
        Ok(Self { program, _link: link })
    }

    fn profile(&self) -> ProgramProfile {
        let mut told = String::new();
        // A program that cannot be read is reported with 0 runs.
        let _ = File::open(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd()))
            .and_then(|mut file| file.read_to_string(&mut told));
        let field = |name: &str| {
            told.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                .unwrap_or(0u64)
        };
        ProgramProfile {
            name: "(empty)".to_owned(),
            runs: field("run_cnt:"),
            run_time_ns: field("run_time_ns:"),
            verified_instructions: field("verified_insns:") as u32,
            translated_bytes: size_of_val(&bpf::NOTHING) as u32,
            jited_bytes: 0,
        }
    }
}
