//! Everything that must hold before a change goes in, on the real kernel of this host.

use std::{process::ExitCode, time::Instant};

use crate::{
    exactness,
    project::{Outcome, cargo, root, test_cargo},
    rules,
    steps::{Steps, counted},
    test_programs,
    toolchain::{bpf_cargo, setup_command},
    vm,
};

pub(crate) fn run() -> Outcome {
    let started = Instant::now();
    let mut steps = Steps::default();
    let done = lints(&mut steps) && tests(&mut steps);
    let good = steps.finish(started);
    Ok(if done && good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// False when the rest cannot run; a lint that complains does not hold the tests up.
fn lints(steps: &mut Steps) -> bool {
    steps.step("rules of the house", || rules::check(&root()));
    steps.command("format", &mut cargo(["fmt", "--all", "--check"]));
    if !steps.command("set-up", &mut setup_command(true, false)) {
        return false;
    }
    steps.command(
        "lints, user space",
        &mut test_cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    steps.command("lints, BPF target", bpf_cargo("clippy").args(["--", "-D", "warnings"]));
    steps.command(
        "documentation",
        test_cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    );
    true
}

fn tests(steps: &mut Steps) -> bool {
    let mut programs = Vec::new();
    let built = steps.step("build", || {
        programs = test_programs::build()?;
        Ok(())
    });
    if !built {
        return false;
    }
    let (privileged, others): (Vec<_>, Vec<_>) =
        programs.into_iter().partition(test_programs::TestProgram::is_privileged);
    for program in &others {
        let title = format!("tests without privileges: {}", program.name);
        steps.tests(&title, &mut program.command());
    }
    let results = vm::host_results();
    steps.step("place for what the tests compare", || vm::prepare(&results));
    for program in &privileged {
        let title = format!("privileged tests: {}", program.name);
        steps
            .counting(&title, |counts| counted(&mut program.privileged_command(&results)?, counts));
    }
    steps.counting("other kernels, in virtual machines", |counts| {
        vm::every_change(&privileged, counts)
    });
    let kernels: Vec<String> = vm::EVERY_CHANGE.iter().map(ToString::to_string).collect();
    steps.step("docs/EXACTNESS.md", || exactness::check(&vm::results(), &kernels));
    true
}
