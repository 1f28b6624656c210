//! `cargo xtask vm`: the privileged tests on Debian's kernels, in virtual machines, beside this
//! host's own.

mod cpio;
mod guest;
mod host;
mod initramfs;
mod kernel;
mod matrix;
mod modules;
mod package;
mod programs;
mod protocol;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use clap::{Args, ValueEnum, builder::PossibleValue};

pub(crate) use self::host::prepare;
use self::{
    guest::Machine,
    initramfs::Plan,
    kernel::Kernel,
    matrix::{Column, State},
    package::Image,
    programs::Programs,
};
use crate::{
    project::{Outcome, must, root},
    steps::Counts,
    test_programs::TestProgram,
};

/// Tests that make sense in a guest, the most telling first.
const TESTS: &[&str] = &[
    "exactness",
    "books",
    "tiers",
    "records",
    "traps_runqueue",
    "traps_tasks",
    "traps_memory",
    "traps_tables",
    "pressure",
    "loss",
    "choice",
    "command",
    "doctor",
    "target",
    "run",
    "daemon",
];

/// Those that take long on an emulated CPU, and the kernels that run them with every change all the
/// same: between them, every tier and what a host cannot show. All kernels run all of them when
/// `cargo xtask vm` is asked.
const SLOW: &[(&str, &[Kernel])] = &[
    ("tiers", &[Kernel::V6_1]),
    ("records", &[Kernel::V6_12]),
    ("traps_runqueue", &[Kernel::V6_12]),
    ("traps_tasks", &[Kernel::V6_12]),
    ("traps_memory", &[Kernel::V6_1]),
    ("traps_tables", &[]),
    ("pressure", &[Kernel::V6_1]),
    ("loss", &[]),
    ("choice", &[]),
    ("command", &[]),
    ("run", &[]),
];

/// The kernels of every change (`cargo xtask test`).
pub(crate) const EVERY_CHANGE: &[Kernel] = &[Kernel::V6_1, Kernel::V6_12, Kernel::V6_12Rt];

/// Size of the disk of a guest; the file on this host is sparse.
const DISK_BYTES: u64 = 512 << 20;

/// Percentage of the usual work that tests do in a guest: an emulated CPU is slow.
const GUEST_SCALE: u32 = 50;

/// Twice what all tests take in a guest with PREEMPT_RT beside another one.
const GUEST_LIMIT_SECONDS: u64 = 2400;

/// Examples of the help.
const EXAMPLES: &str = "\
Examples:
  cargo xtask vm                                    the kernels that CI runs, and this host's
  cargo xtask vm --kernel 6.1-rt                    one kernel
  cargo xtask vm --kernel all                       every kernel
  cargo xtask vm --kernel 6.1 --test exactness -- reclaim
                                                    tests of one program by name
  cargo xtask vm --kernel all --exec 'observer doctor'
                                                    what it would do on each of them
  cargo xtask vm --kernel 6.12 --memory 256         little memory, so that all of it is reclaimed
  cargo xtask vm --bench --kernel 6.12 -- --rounds 2
                                                    what each tier of each probe costs there

Kernels are Debian packages, found by apt, fetched once, and kept in ~/.cache/observer/kernels.
What each guest printed is in target/vm/logs, what its tests compared in target/vm/results.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// A kernel to test, more than once for several [default: 6.1, 6.12, 6.12-rt and host]
    #[arg(long = "kernel", value_enum, value_name = "KERNEL", hide_default_value = true)]
    kernels: Vec<Choice>,
    /// Only this test program, more than once for several
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// Instead of the tests, have `sh` run this in each guest and show what it prints; `observer` and
    /// the tests' own programs are in its PATH
    #[arg(long, value_name = "COMMAND", conflicts_with = "tests")]
    exec: Option<String>,
    /// Memory of a guest, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(192..))]
    memory: u32,
    /// Swap of a guest on compressed memory, MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    swap: u64,
    /// CPUs of a guest; with --bench it is always one
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// How many guests run at a time [default: one for each CPU of the host, two at most]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    jobs: Option<u32>,
    /// A guest is ended after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = GUEST_LIMIT_SECONDS)]
    limit: u64,
    /// Percentage of the usual work that the tests do in a guest, which is slow
    #[arg(long, value_name = "PERCENT", default_value_t = GUEST_SCALE, value_parser = clap::value_parser!(u32).range(1..))]
    scale: u32,
    /// Only report a kernel that cannot be had, do not fail
    #[arg(long)]
    allow_missing: bool,
    /// Measure the tiers of every probe instead of running the tests; ARGUMENTs go to bench-tiers
    #[arg(long, conflicts_with_all = ["tests", "scale", "exec"])]
    bench: bool,
    /// Given to the test programs, as by `cargo test`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// What `--kernel` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Guest(Kernel),
    Host,
    All,
}

impl ValueEnum for Choice {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: &[Choice] = &[
            Choice::Guest(Kernel::V6_1),
            Choice::Guest(Kernel::V6_12),
            Choice::Guest(Kernel::V6_1Rt),
            Choice::Guest(Kernel::V6_12Rt),
            Choice::Host,
            Choice::All,
        ];
        ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Guest(kernel) => kernel.to_possible_value(),
            Self::Host => {
                Some(PossibleValue::new("host").help("This host's, without a virtual machine"))
            }
            Self::All => Some(PossibleValue::new("all").help("All of these")),
        }
    }
}

/// The guests that were asked for, each once, and whether the host was.
fn chosen(choices: &[Choice]) -> (Vec<Kernel>, bool) {
    if choices.is_empty() {
        return (EVERY_CHANGE.to_vec(), true);
    }
    let all = choices.contains(&Choice::All);
    let guests = Kernel::value_variants()
        .iter()
        .copied()
        .filter(|kernel| all || choices.contains(&Choice::Guest(*kernel)))
        .collect();
    (guests, all || choices.contains(&Choice::Host))
}

pub(crate) fn run(options: &Options) -> Outcome {
    let (guests, host) = chosen(&options.kernels);
    if options.bench {
        return bench(&guests, options);
    }
    let names: Vec<&str> = match (&options.exec, options.tests.as_slice()) {
        (Some(_), _) => Vec::new(),
        (None, []) => TESTS.to_vec(),
        (None, tests) => tests.iter().map(String::as_str).collect(),
    };
    if !guests.is_empty() {
        // Where it is missing, better said before the build than after it.
        guest::check()?;
    }
    println!("vm: building the programs that guests run (the first time takes a few minutes)");
    let programs = programs::build(&names)?;
    let mut columns = guest_columns(&guests, &programs, options, &|_, _| true)?;
    if host && options.exec.is_none() {
        columns.push(host::column(&directory(), &programs, &options.arguments)?);
    }
    if options.exec.is_none() {
        matrix::print(&columns);
    }
    matrix::print_faults(&columns);
    let good = matrix::good(&columns, options.allow_missing);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures the tiers in guests whose clocks count instructions: an emulated processor has no time
/// of its own that would mean anything, and the lengths of paths can be compared.
fn bench(kernels: &[Kernel], options: &Options) -> Outcome {
    guest::check()?;
    let programs = programs::build_bench()?;
    let mut rows = Vec::new();
    let mut good = true;
    for kernel in kernels {
        let name = kernel.to_string();
        println!("vm: {name}");
        let image = match package::obtain(*kernel) {
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
    let path = directory().join("bench.jsonl");
    println!("{}", crate::bench::guests(&rows, &path)?);
    println!("The rows are in {}.", path.display());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What `cargo xtask test` does with guests: the kernels of every change, beside the results that
/// the host's own tests have left. The guests' tests are among `tests`; they are added to `counts`.
pub(crate) fn every_change(tests: &[TestProgram], counts: &mut Counts) -> Result<(), String> {
    guest::check()?;
    let runs = |kernel: Kernel, name: &str| {
        let slow = SLOW.iter().find(|(slow, _)| *slow == name);
        slow.is_none_or(|(_, kernels)| kernels.contains(&kernel))
    };
    let any = |name: &&str| EVERY_CHANGE.iter().any(|kernel| runs(*kernel, name));
    let names: Vec<&str> = TESTS.iter().copied().filter(any).collect();
    let programs = programs::among(tests, &names)?;
    let options = Options::of_every_change();
    let mut columns = guest_columns(EVERY_CHANGE, &programs, &options, &runs)?;
    columns.push(host::finished(&directory()));
    matrix::print(&columns);
    matrix::print_faults(&columns);
    let sum = matrix::counts(&columns, options.allow_missing);
    counts.passed += sum.passed;
    counts.failed += sum.failed;
    if matrix::good(&columns, options.allow_missing) {
        return Ok(());
    }
    Err("not every kernel passed".to_owned())
}

/// Where the results of all kernels are.
pub(crate) fn results() -> PathBuf {
    directory().join("results")
}

/// Where the tests of this host are to write what they compared.
pub(crate) fn host_results() -> PathBuf {
    matrix::results_file(&directory(), host::NAME)
}

impl Options {
    /// A guest takes one CPU of the host; with more guests the tests of each would wait longer than
    /// some of them allow.
    fn jobs(&self) -> u32 {
        let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.jobs.unwrap_or(if cpus > 1 { 2 } else { 1 })
    }

    fn of_every_change() -> Self {
        Self {
            kernels: Vec::new(),
            tests: Vec::new(),
            exec: None,
            memory: 1024,
            swap: 256,
            cpus: 2,
            jobs: None,
            limit: GUEST_LIMIT_SECONDS,
            scale: GUEST_SCALE,
            // On a distribution without Debian's kernels the rest is worth having all the same, and
            // the table says what is missing. CI has them.
            allow_missing: env::var_os("CI").is_none(),
            bench: false,
            arguments: Vec::new(),
        }
    }
}

fn directory() -> PathBuf {
    root().join("target/vm")
}

/// Runs guests, some at a time; the columns are in the order of `kernels`.
/// `runs` tells which kernel runs which test.
fn guest_columns(
    kernels: &[Kernel],
    programs: &Programs,
    options: &Options,
    runs: &(dyn Fn(Kernel, &str) -> bool + Sync),
) -> Result<Vec<Column>, String> {
    // One after the other: apt has locks, and a missing network is better told once.
    let images: Vec<_> = kernels.iter().map(|kernel| package::obtain(*kernel)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (Some(kernel), Some(image)) = (kernels.get(index), images.get(index)) else {
                return done;
            };
            let programs = programs.with_tests(|name| runs(*kernel, name));
            done.push((index, guest_column(&kernel.to_string(), image, &programs, options)));
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
    matrix::write_results(&matrix::results_file(&directory(), &name), &report.results)?;
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
    let directory = directory();
    let logs = directory.join("logs");
    fs::create_dir_all(&logs)
        .map_err(|error| format!("cannot make {}: {error}", logs.display()))?;
    let initramfs = directory.join(format!("{name}.cpio"));
    let disk = directory.join(format!("{name}.disk"));
    let measure =
        options.bench.then(|| format!("{} {}", programs::MEASURE, options.arguments.join(" ")));
    let plan = Plan {
        swap_bytes: options.swap << 20,
        exec: measure.as_deref().or(options.exec.as_deref()),
        arguments: &options.arguments,
        scale: options.scale,
        // Earlier than the guest itself, so that the guest can tell which one took so long.
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
        // Linux 6.1 does not get its second CPU to run where time is counted in instructions.
        cpus: if options.bench { 1 } else { options.cpus },
        counted: options.bench,
        limit: Duration::from_secs(options.limit),
        directory: &logs,
        verbose: options.exec.is_some(),
    });
    // Some hundred megabytes, made anew each time.
    let _ = fs::remove_file(&initramfs);
    let _ = fs::remove_file(&disk);
    report
}

fn make_disk(path: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("cannot make {}: {error}", path.display());
    let file = fs::File::create(path).map_err(told)?;
    file.set_len(DISK_BYTES).map_err(told)?;
    // Without a journal: it is thrown away with the guest.
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-O", "^has_journal"]).arg(path);
    // Where people have no /sbin in PATH, it is there all the same.
    let path = std::env::var("PATH").unwrap_or_default();
    must(command.env("PATH", format!("{path}:/usr/sbin:/sbin")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_chosen_once_and_in_their_order() {
        let guest = Choice::Guest;
        assert_eq!(chosen(&[]), (EVERY_CHANGE.to_vec(), true));
        assert_eq!(
            chosen(&[guest(Kernel::V6_12), guest(Kernel::V6_1), guest(Kernel::V6_12)]),
            (vec![Kernel::V6_1, Kernel::V6_12], false)
        );
        assert_eq!(chosen(&[Choice::Host]), (Vec::new(), true));
        assert_eq!(chosen(&[Choice::All]), (Kernel::value_variants().to_vec(), true));
    }

    #[test]
    fn every_choice_has_a_name_and_every_kernel_is_a_choice() {
        let names: Vec<_> = Choice::value_variants()
            .iter()
            .filter_map(Choice::to_possible_value)
            .map(|value| value.get_name().to_owned())
            .collect();
        assert_eq!(names, ["6.1", "6.12", "6.1-rt", "6.12-rt", "host", "all"]);
        let kernels = Kernel::value_variants().iter().map(|kernel| Choice::Guest(*kernel));
        assert!(kernels.into_iter().all(|choice| Choice::value_variants().contains(&choice)));
    }

    #[test]
    fn every_change_uses_the_defaults_of_the_command() {
        use clap::Parser;
        #[derive(Parser)]
        struct Command {
            #[command(flatten)]
            options: Options,
        }
        let given = Command::parse_from(["vm"]).options;
        let own = Options::of_every_change();
        assert_eq!(
            (given.memory, given.swap, given.cpus, given.limit, given.scale),
            (own.memory, own.swap, own.cpus, own.limit, own.scale)
        );
    }
}
