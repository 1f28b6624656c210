//! `cargo xtask test`: everything that must hold before a change goes in, in less than 15 minutes on
//! two CPUs.
//!
//! A guest is emulated by one thread of this host, so lints and the tests that measure nothing run
//! beside it; most of the latter wait for the kernel. Tests that measure this host run afterwards,
//! alone.

use std::{env, process::Command, process::ExitCode, thread, time::Instant};

use clap::Args;
use xtask_common::{
    kernel::{Kernel, Turn},
    project::{Outcome, cargo, root, test_cargo, tests_built},
    results,
    test_programs::{self, TestProgram},
    toolchain::{bpf_cargo, setup_command},
};

use crate::{
    exactness, rules,
    steps::{Step, Steps},
};

#[derive(Args)]
pub(crate) struct Options {
    /// Kernel of the guest, which runs its share [default: a turn chosen by the commit]
    #[arg(long, value_enum, value_name = "KERNEL")]
    kernel: Option<Kernel>,
}

pub(crate) fn run(options: &Options) -> Outcome {
    let started = Instant::now();
    let mut steps = Steps::default();
    let done = all(&mut steps, options);
    let good = steps.finish(started);
    Ok(if done && good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// False when a step failed that all later ones need; other failures stop nothing.
fn all(steps: &mut Steps, options: &Options) -> bool {
    steps.run(Step::new("rules of the house", |log| {
        let findings = rules::check(&root())?;
        findings.iter().for_each(|finding| log.line(&format!("    {finding}")));
        rules::verdict(&findings)
    }));
    steps.run(Step::command("format", cargo(["fmt", "--all", "--check"])));
    if !steps.run(Step::command("set-up of the build", setup_command(false, false))) {
        return false;
    }
    let mut programs = Vec::new();
    let set_up = Step::command("set-up of the tests", setup_command(true, false));
    let build = Step::new("build", |log| {
        programs = test_programs::build()?;
        // With all packages selected, so that libraries have the same features as above.
        log.run(&mut test_cargo(["build", "--workspace", "--bin", VM]))?;
        results::clear()?;
        // Created here, as this person: root would own it otherwise.
        results::write(&results::file(results::HOST), &[])
    });
    if !steps.run_over(build, set_up) {
        return false;
    }
    let (as_root, others): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(TestProgram::is_privileged);
    let (quick, measuring): (Vec<_>, Vec<_>) =
        as_root.into_iter().partition(|one| MEASURE_NOTHING.contains(&one.name.as_str()));
    let turn = options.kernel.map_or_else(in_turn, Turn::share);
    println!(
        "\nThe guest runs {turn}, chosen by {}; --kernel chooses another, and `cargo xtask vm` runs all \
         of them.",
        if options.kernel.is_some() { "--kernel" } else { "the commit" }
    );
    steps.side_by_side(vec![
        vec![Step::command(format!("{turn} in a virtual machine"), guest(turn))],
        lints(&others),
        quick.iter().map(privileged).collect(),
    ]);
    for program in &measuring {
        steps.run(privileged(program));
    }
    steps.run(Step::new("docs/EXACTNESS.md", |_| exactness::check(&results::directory())));
    true
}

/// Privileged test programs that check exit codes, messages and states only. They run beside the guest;
/// all others measure time or counts, and run alone.
const MEASURE_NOTHING: &[&str] = &[
    "choice",
    "cli",
    "command",
    "doctor",
    "edge_sockets",
    "examples",
    "faults",
    "hardening",
    "logging",
    "target",
    "uprobe",
];

/// Program of the guests.
const VM: &str = "xtask-vm";

/// The turn of this commit.
fn in_turn() -> Turn {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    Turn::of(&String::from_utf8_lossy(&output))
}

/// A guest with the tests of a turn.
fn guest(turn: Turn) -> Command {
    let mut command = Command::new(tests_built().join(VM));
    command.args(["--kernel", &turn.kernel.to_string()]);
    match turn.test {
        None => command.arg("--share"),
        Some(test) => command.args(["--test", test]),
    };
    command.arg("--built").arg(test_programs::programs_file()).current_dir(root());
    // CI has Debian's packages. On another distribution the other tests are still worth running, and
    // the output says what is missing.
    if env::var_os("CI").is_none() {
        command.arg("--allow-missing");
    }
    command
}

/// The tests that need no privileges, and the lints. They leave one CPU to the guest.
fn lints(others: &[TestProgram]) -> Vec<Step<'_>> {
    let cpus = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = format!("--jobs={}", (cpus - 1).max(1));
    let jobs = jobs.as_str();
    let clippy = ["clippy", jobs, "--workspace", "--all-targets", "--", "-D", "warnings"];
    let mut bpf = bpf_cargo("clippy", &test_programs::bpf_target());
    bpf.args([jobs, "--", "-D", "warnings"]);
    let mut doc = test_cargo(["doc", jobs, "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let tests = Step::new("tests without privileges", move |log| {
        let mut failed = Vec::new();
        for program in others {
            log.line(&format!("    {}", program.name));
            failed.extend(log.run(&mut program.command()).err());
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    });
    let mut deny = Command::new("cargo");
    deny.args(["deny", "--color=never", "check", "licenses", "bans", "sources"])
        .current_dir(root());
    vec![
        tests,
        Step::command("licences and origins of the crates", deny),
        Step::command("lints, user space", test_cargo(clippy)),
        Step::command("documentation", doc),
        Step::command("lints, BPF target", bpf),
    ]
}

/// The tests of one program, as root.
fn privileged(program: &TestProgram) -> Step<'_> {
    Step::new(format!("privileged tests: {}", program.name), |log| {
        log.run(&mut program.privileged_command(&results::file(results::HOST))?)
    })
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn test_programs_that_measure_nothing_exist() {
        for name in MEASURE_NOTHING {
            let path = root().join("tests/tests").join(name).with_extension("rs");
            assert!(path.is_file(), "{} is not there", path.display());
        }
    }

    #[test]
    fn every_kernel_has_a_name_that_the_guest_command_takes() {
        for kernel in Kernel::value_variants() {
            let command = guest(Turn::share(*kernel));
            let arguments: Vec<_> = command.get_args().filter_map(|word| word.to_str()).collect();
            let at = arguments.iter().position(|word| *word == "--kernel").expect("a kernel");
            assert_eq!(Kernel::from_str(arguments[at + 1], false), Ok(*kernel));
        }
    }
}
