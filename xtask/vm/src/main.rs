//! `cargo xtask vm`: the privileged tests on Debian's kernels, in virtual machines, and on this host.

mod guest;
mod host;
mod initramfs;
mod matrix;
mod modules;
mod options;
mod package;
mod programs;
mod protocol;
mod selection;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use clap::Parser;
use xtask_common::{
    kernel::Kernel,
    project::{Outcome, cargo, finished, must},
    results,
    test_programs::{self, Scope},
};

use self::{
    guest::Machine,
    initramfs::Plan,
    matrix::{Column, State},
    options::Options,
    package::Image,
    programs::Programs,
};

/// Size of the disk of a guest; the file on this host is sparse.
const DISK_BYTES: u64 = 512 << 20;

fn main() -> ExitCode {
    let options = Options::parse();
    finished("cargo xtask vm", if options.bench { bench(&options) } else { run(options) })
}

fn run(mut options: Options) -> Outcome {
    let (guests, host) = options.chosen();
    if !guests.is_empty() {
        // Better before the build than after it.
        guest::check()?;
    }
    let built = match &options.built {
        Some(list) => test_programs::read(list)?,
        None => {
            println!("vm: building the programs for the guests (a few minutes the first time)");
            test_programs::build(Scope::Integration)?
        }
    };
    let mut tests = match options.exec {
        Some(_) => Vec::new(),
        None => selection::tests(&built, &options.tests)?,
    };
    if let Some(part) = options.part {
        (tests, options.arguments) = selection::part(tests, part)?;
    }
    let options = &options;
    let programs = Programs::with(tests);
    let mut columns = guest_columns(&guests, &programs, options)?;
    if options.exec.is_none() && !guests.is_empty() {
        // In the form of libtest, so that `cargo xtask test` counts the tests of guests as its own.
        println!("{}", matrix::counts(&columns, options.allow_missing).line());
    }
    if host && options.exec.is_none() {
        columns.push(host::column(&programs, &options.arguments)?);
    }
    if options.exec.is_none() {
        matrix::print(&columns);
    }
    matrix::print_faults(&columns);
    let good = matrix::good(&columns, options.allow_missing);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures the tiers in guests whose clocks count instructions: the time of an emulated CPU means
/// nothing, but the lengths of paths can be compared.
fn bench(options: &Options) -> Outcome {
    guest::check()?;
    let programs = programs::build_bench()?;
    let mut rows = Vec::new();
    let mut good = true;
    for kernel in options.chosen().0 {
        let name = kernel.to_string();
        println!("vm: {name}");
        let image = match package::obtain(kernel) {
            Ok(image) => image,
            Err(reason) => {
                println!("    {name}: not available: {reason}");
                good &= options.allow_missing;
                continue;
            }
        };
        let report = boot(&name, &image, &programs, options)?;
        for fault in &report.faults {
            println!("    {name}: {fault}");
        }
        good &= report.faults.is_empty() && !report.results.is_empty();
        rows.extend(report.results);
    }
    let path = results::vm_directory().join("bench.jsonl");
    results::write(&path, &rows)?;
    must(cargo(["run", "--quiet", "--package", "xtask-bench", "--", "--tables"]).arg(&path))?;
    println!("The rows are in {}.", path.display());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs guests, several at a time; the columns are in the order of `kernels`.
fn guest_columns(
    kernels: &[Kernel],
    programs: &Programs,
    options: &Options,
) -> Result<Vec<Column>, String> {
    // One after the other: apt has locks.
    let images: Vec<_> = kernels.iter().map(|kernel| package::obtain(*kernel)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(kernel), Some(image)) = (kernels.get(index), images.get(index)) else {
                return done;
            };
            done.push((index, guest_column(&kernel.to_string(), image, programs, options)));
        }
    };
    let mut columns = Vec::new();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs()).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            columns.extend(worker.join().map_err(|_| "a thread that ran a guest panicked")?);
        }
        Ok::<_, String>(())
    })?;
    columns.sort_by_key(|(index, _)| *index);
    columns.into_iter().map(|(_, column)| column).collect()
}

fn guest_column(
    name: &str,
    image: &Result<Image, String>,
    programs: &Programs,
    options: &Options,
) -> Result<Column, String> {
    let name = name.to_owned();
    let image = match image {
        Ok(image) => image,
        Err(reason) => {
            println!("    {name}: not available: {reason}");
            return Ok(Column { name, state: State::NotAvailable(reason.clone()) });
        }
    };
    let report = boot(&name, image, programs, options)?;
    results::write(&results::file(&name), &report.results)?;
    let state = State::Ran {
        release: report.release().unwrap_or(&image.package).to_owned(),
        counts: report.counts,
        faults: report.faults,
        results: report.results,
        seconds: report.seconds,
    };
    Ok(Column { name, state })
}

fn boot(
    name: &str,
    image: &Image,
    programs: &Programs,
    options: &Options,
) -> Result<guest::Report, String> {
    let directory = results::vm_directory();
    let logs = directory.join("logs");
    fs::create_dir_all(&logs)
        .map_err(|error| format!("cannot make {}: {error}", logs.display()))?;
    let initramfs = directory.join(format!("{name}.cpio"));
    let disk = directory.join(format!("{name}.disk"));
    let measure =
        options.bench.then(|| format!("{} {}", programs::MEASURE, options.arguments.join(" ")));
    let plan = Plan {
        swap_bytes: options.swap << 20,
        programs: &options.programs,
        exec: measure.as_deref().or(options.exec.as_deref()),
        arguments: &options.arguments,
        scale: options.scale,
        // Before the limit of the guest itself, so that the guest reports which test took so long.
        timeout_seconds: options.limit * 3 / 4,
    };
    initramfs::write(&initramfs, image, programs, &plan)?;
    make_disk(&disk)?;
    let report = guest::run(&Machine {
        name,
        kernel: &image.kernel,
        initramfs: &initramfs,
        disk: &disk,
        memory_mib: options.memory,
        // Where time is counted in instructions, Linux 6.1 does not get its second CPU to run, and 6.12
        // crashes with two sooner or later.
        cpus: if options.is_counted() { 1 } else { options.cpus },
        possible_cpus: options.possible_cpus,
        counted: options.is_counted(),
        limit: Duration::from_secs(options.limit),
        directory: &logs,
        verbose: options.exec.is_some(),
    });
    // Some hundred megabytes, written again for each guest.
    let _ = fs::remove_file(&initramfs);
    let _ = fs::remove_file(&disk);
    report
}

fn make_disk(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot make {}: {error}", path.display());
    let file = fs::File::create(path).map_err(failed)?;
    file.set_len(DISK_BYTES).map_err(failed)?;
    // Without a journal: the disk is deleted with the guest.
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^has_journal"]).arg(path);
    // Some users have no /sbin in PATH.
    let path = std::env::var("PATH").unwrap_or_default();
    must(command.env("PATH", format!("{path}:/usr/sbin:/sbin")))
}
