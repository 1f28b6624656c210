//! The programs that guests run: built for a system that has nothing, into a directory of their
//! own, so that the next ordinary build has nothing to do again.

use std::path::{Path, PathBuf};

use crate::{
    project::{self, cargo, root},
    test::{PRIVILEGED_PACKAGE, TestProgram, programs_of},
};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Started by the tests, or by hand.
const TOOLS: &[&str] = &["observer", "observer-work", "observer-service"];

/// What was built.
#[derive(Clone)]
pub(crate) struct Programs {
    /// The first process.
    pub(crate) guest: PathBuf,
    /// observer and what the tests start.
    pub(crate) tools: Vec<PathBuf>,
    /// The tests.
    pub(crate) tests: Vec<TestProgram>,
    /// Where the tests make their files.
    pub(crate) scratch: PathBuf,
}

impl Programs {
    /// The same with some of the tests.
    pub(crate) fn with_tests(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut some = self.clone();
        some.tests.retain(|test| keep(&test.name));
        some
    }
}

/// Builds all that guests run, of the tests those of these names.
pub(crate) fn build(names: &[&str]) -> Result<Programs, String> {
    let directory = root().join("target/vm/build");
    let bins = ["build", "--package", "observer", "--package", PRIVILEGED_PACKAGE, "--bins"];
    project::must(&mut with_static_libraries(cargo(bins), &directory))?;
    let tests = if names.is_empty() { Vec::new() } else { tests(names, &directory)? };
    let built = directory.join(TARGET).join("debug");
    let tool = |name: &&str| built.join(name);
    Ok(Programs {
        guest: built.join("observer-guest"),
        tools: TOOLS.iter().map(tool).collect(),
        tests,
        scratch: directory.join(TARGET).join("tmp"),
    })
}

fn tests(names: &[&str], directory: &Path) -> Result<Vec<TestProgram>, String> {
    let mut command = cargo(["test", "--package", PRIVILEGED_PACKAGE, "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    for name in names {
        command.args(["--test", name]);
    }
    let mut command = with_static_libraries(command, directory);
    wanted(programs_of(&project::printed(&mut command)?), names)
}

/// What measures tiers.
pub(crate) const MEASURE: &str = "bench-tiers";

/// Builds what measures tiers in a guest.
pub(crate) fn build_bench() -> Result<Programs, String> {
    const WORK: &str = "bench-work";
    let directory = root().join("target/vm/build");
    let mut command = cargo(["build", "--package", PRIVILEGED_PACKAGE]);
    command.args(["--bin", "observer-guest", "--bin", MEASURE, "--bin", WORK]);
    project::must(&mut with_static_libraries(command, &directory))?;
    let built = directory.join(TARGET).join("debug");
    Ok(Programs {
        guest: built.join("observer-guest"),
        tools: vec![built.join(MEASURE), built.join(WORK)],
        tests: Vec::new(),
        scratch: directory.join(TARGET).join("tmp"),
    })
}

/// In the order of `names`; programs that hold only unit tests of a binary are left out.
fn wanted(programs: Vec<TestProgram>, names: &[&str]) -> Result<Vec<TestProgram>, String> {
    let mut programs: Vec<_> =
        programs.into_iter().filter(|program| names.contains(&program.name.as_str())).collect();
    programs.sort_by_key(|program| names.iter().position(|name| *name == program.name));
    match names.iter().find(|name| !programs.iter().any(|program| program.name == **name)) {
        None => Ok(programs),
        Some(name) => Err(format!("package {PRIVILEGED_PACKAGE} has no test program {name}")),
    }
}

fn with_static_libraries(
    mut command: std::process::Command,
    directory: &Path,
) -> std::process::Command {
    command.args(["--target", TARGET, "--target-dir"]).arg(directory);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    // All of it goes into the memory of the guest.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    command.env("CARGO_INCREMENTAL", "0");
    command
}
