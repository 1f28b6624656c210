//! The programs that guests run: built for a system that has nothing.

use std::path::PathBuf;

use crate::{
    project::{self, test_cargo},
    test_programs::{self, TestProgram},
};

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

    /// The same with some of the tests.
    pub(crate) fn with_tests(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut some = self.clone();
        some.tests.retain(|test| keep(&test.name));
        some
    }
}

/// Builds all that guests run, of the tests those of these names.
pub(crate) fn build(names: &[&str]) -> Result<Programs, String> {
    among(&test_programs::build()?, names)
}

/// All that guests run, of these tests those of these names.
pub(crate) fn among(tests: &[TestProgram], names: &[&str]) -> Result<Programs, String> {
    Ok(Programs::of(TOOLS, wanted(tests, names)?))
}

/// What measures tiers.
pub(crate) const MEASURE: &str = "bench-tiers";

/// Builds what measures tiers in a guest.
pub(crate) fn build_bench() -> Result<Programs, String> {
    const WORK: &str = "bench-work";
    let mut command = test_cargo(["build", "--workspace"]);
    command.args(["--bin", "observer-guest", "--bin", MEASURE, "--bin", WORK]);
    project::must(&mut command)?;
    Ok(Programs::of(&[MEASURE, WORK], Vec::new()))
}

/// In the order of `names`.
fn wanted(programs: &[TestProgram], names: &[&str]) -> Result<Vec<TestProgram>, String> {
    let named = |name: &&str| {
        let mut privileged = programs.iter().filter(|program| program.is_privileged());
        let found = privileged.find(|program| program.name == *name);
        found.cloned().ok_or_else(|| format!("there is no privileged test program {name}"))
    };
    names.iter().map(named).collect()
}
