//! `cargo xtask test`: everything that must hold before a change goes in. The goal is 15 minutes on
//! two CPUs.
//!
//! First come the tests that measure this host, one at a time. Most of them wait for the kernel, so
//! that the programs of the other tests are built beneath them, and the tests without privileges and the
//! lints run, on what the processors have left. Then a guest runs, which is emulated by one thread of this host, and beside it
//! the tests that measure nothing, in lanes.

use std::{env, process::Command, process::ExitCode, sync::mpsc, time::Instant};

use clap::Args;
use xtask_common::{
    kernel::{TURNS, Turn},
    project::{Outcome, cargo, root, test_cargo, tests_built},
    results,
    test_programs::{self, Scope, TestProgram},
    toolchain::{bpf_cargo, setup_command},
};

use crate::{
    exactness, rules,
    steps::{Step, Steps},
};

#[derive(Args)]
pub(crate) struct Options {
    /// What the guest runs: the number of a turn, from 1 [default: chosen by the commit]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=TURNS.len() as i64))]
    turn: Option<u8>,
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
    let build = Step::new("build", |_| {
        programs = test_programs::build(Scope::Integration)?;
        results::clear()?;
        // Created here, as this person: root would own it otherwise.
        results::write(&results::file(results::HOST), &[])
    });
    if !steps.run_over(build, set_up) {
        return false;
    }
    let turn = options.turn.map_or_else(in_turn, |number| &TURNS[usize::from(number) - 1]);
    println!(
        "\nThe guest runs {turn}. --turn chooses another one of {}, and `cargo xtask vm` runs all of them on all kernels.",
        TURNS.len()
    );
    let (built, all_built) = mpsc::channel();
    let build = Step::new("build of the unit tests", move |log| {
        let programs = test_programs::build(Scope::All)?;
        log.run(&mut test_cargo(["build", "--workspace", "--bin", VM]))?;
        // A receiver is gone only after a panic, which is a failure by itself.
        let _ = built.send(programs);
        Ok(())
    });
    let simulations = Step::new("simulations", |log| {
        let programs = test_programs::read(&test_programs::programs_file())?;
        let program = programs.iter().find(|one| one.name == SIMULATING);
        log.run(program.ok_or("their program was not built")?.command().arg(SIMULATIONS))
    });
    let beneath = [build, unprivileged(), simulations].into_iter().chain(lints()).collect();
    steps.run_beneath(beneath, |steps| {
        for program in programs.iter().filter(|one| one.is_privileged() && measures(one)) {
            steps.run(privileged(program));
        }
        // Without the programs, the failure of their build is printed.
        if let Ok(programs) = all_built.recv() {
            steps.side_by_side(lanes(&programs, turn));
        }
        steps.run(Step::new("docs/EXACTNESS.md", |_| exactness::check(&results::directory())));
    });
    true
}

/// Whether the tests of a program measure this host.
fn measures(program: &TestProgram) -> bool {
    !MEASURE_NOTHING.concat().contains(&program.name.as_str())
}

/// The guest, and in lanes beside it the tests that measure nothing.
fn lanes<'a>(programs: &'a [TestProgram], turn: &Turn) -> Vec<Vec<Step<'a>>> {
    let as_root: Vec<_> = programs.iter().filter(|program| program.is_privileged()).collect();
    let of_lane = |names: &[&str]| {
        let is_in = |one: &&&TestProgram| names.contains(&one.name.as_str());
        as_root.iter().filter(is_in).map(|one| privileged(one)).collect::<Vec<_>>()
    };
    let mut lanes = MEASURE_NOTHING.map(of_lane);
    lanes[0].insert(0, Step::command(format!("virtual machine, {turn}"), guest(turn)));
    lanes.into()
}

/// Privileged test programs that check exit codes, messages, states and counts, and no times. They run
/// beside the guest, or after it, in lanes that take about equally long; all others measure, and run alone. So do
/// `cgroups`, whose counts hold while nobody else removes a cgroup, and `generators`, whose answers a busy host
/// changes.
const MEASURE_NOTHING: [&[&str]; 7] = [
    // After the guest.
    &["edge_sockets", "edge_memory", "loss", UNIT_TESTS, GUEST],
    &["choice", "descriptors"],
    &["faults", "run", "uprobe"],
    // `edge_tables` raises pid_max, and with it what observer needs; `hardening` gives it no more than that.
    &["hardening", "edge_tables", "doctor", "cpu_limits", "time_namespace"],
    &["live", "cli", "target", "logging"],
    &["command", "memory_limits", "network_conditions", "go_binaries"],
    &["examples", "daemon"],
];

/// The test programs of the tests' own library and of the guests' first process.
const UNIT_TESTS: &str = "observer_tests";
const GUEST: &str = "observer-guest";

/// Unit tests that take most of the time of all, need nothing but a processor, and do not look at a
/// clock: the module of the unit tests of this package.
const SIMULATIONS: &str = "correlate::";
const SIMULATING: &str = "observer";

/// Program of the guests.
const VM: &str = "xtask-vm";

/// The turn of this commit.
fn in_turn() -> &'static Turn {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output();
    let output = output.map(|output| output.stdout).unwrap_or_default();
    Turn::of(&String::from_utf8_lossy(&output))
}

/// A guest with the tests of a turn.
fn guest(turn: &Turn) -> Command {
    let mut command = Command::new(tests_built().join(VM));
    command.args(turn.arguments());
    command.arg("--built").arg(test_programs::programs_file()).current_dir(root());
    // CI has Debian's packages. On another distribution the other tests are still worth running, and
    // the output says what is missing.
    if env::var_os("CI").is_none() {
        command.arg("--allow-missing");
    }
    command
}

/// The tests that need no privileges, when they are built.
fn unprivileged() -> Step<'static> {
    Step::new("tests without privileges", |log| {
        let mut failed = Vec::new();
        let programs = test_programs::read(&test_programs::programs_file())?;
        for program in programs.iter().filter(|program| !program.is_privileged()) {
            log.line(&format!("    {}", program.name));
            let mut command = program.command();
            if program.name == SIMULATING {
                command.args(["--skip", SIMULATIONS]);
            }
            failed.extend(log.run(&mut command).err());
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    })
}

/// The lints, the pages of the documentation, and the licences.
fn lints() -> Vec<Step<'static>> {
    let mut clippy = test_cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    // Lints of user space need no BPF programs. Clippy has build scripts of its own, so that they would
    // be built a second time.
    clippy.env("AYA_BUILD_SKIP", "1");
    let mut bpf = bpf_cargo("clippy", &test_programs::bpf_target());
    bpf.args(["--", "-D", "warnings"]);
    let mut doc = test_cargo(["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let mut deny = Command::new("cargo");
    deny.args(["deny", "--color=never", "check", "licenses", "bans", "sources"])
        .current_dir(root());
    vec![
        Step::command("lints, user space", clippy),
        Step::command("documentation", doc),
        Step::command("lints, BPF target", bpf),
        Step::command("licences and origins of the crates", deny),
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
    use super::*;

    #[test]
    fn test_programs_that_are_named_exist() {
        let of_turns = TURNS.iter().flat_map(|turn| turn.tests);
        let measure_nothing = MEASURE_NOTHING.into_iter().flatten();
        let measure_nothing = measure_nothing.filter(|name| ![UNIT_TESTS, GUEST].contains(name));
        for name in measure_nothing.chain(of_turns) {
            let path = root().join("tests/tests").join(name).with_extension("rs");
            assert!(path.is_file(), "{} is not there", path.display());
        }
    }
}
