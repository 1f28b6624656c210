//! The programs that guests run, linked statically because guests have no libraries.

use std::path::PathBuf;

use xtask_common::{
    project::{self, test_cargo},
    test_programs::TestProgram,
};

/// Started by the tests, or by hand.
const TOOLS: &[&str] = &["observer", "observer-work", "observer-service"];

/// Programs that were built.
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
    /// observer and what the tests start, with these tests.
    pub(crate) fn with(tests: Vec<TestProgram>) -> Self {
        Self::of(TOOLS, tests)
    }

    fn of(tools: &[&str], tests: Vec<TestProgram>) -> Self {
        let built = project::tests_built();
        Self {
            guest: built.join("observer-guest"),
            tools: tools.iter().map(|tool| built.join(tool)).collect(),
            tests,
            // Where cargo's CARGO_TARGET_TMPDIR is, which tests were built with.
            scratch: built.with_file_name("tmp"),
        }
    }
}

/// The program that measures tiers.
pub(crate) const MEASURE: &str = "bench-tiers";

/// Builds the programs that measure tiers in a guest.
pub(crate) fn build_bench() -> Result<Programs, String> {
    const WORK: &str = "bench-work";
    let mut command = test_cargo(["build", "--workspace"]);
    command.args(["--bin", "observer-guest", "--bin", MEASURE, "--bin", WORK]);
    project::must(&mut command)?;
    Ok(Programs::of(&[MEASURE, WORK], Vec::new()))
}
