//! Everything that must hold before a change goes in, on the real kernel of this host.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use crate::{
    exactness,
    project::{self, Outcome, as_root, cargo, root},
    rules,
    steps::Steps,
    toolchain::{bpf_cargo, setup_command},
    vm,
};

/// The package whose tests load programs into the kernel and measure this machine: they run as
/// root, and one at a time, or they would disturb each other.
pub(crate) const PRIVILEGED_PACKAGE: &str = "observer-tests";

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
        &mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    );
    steps.command("lints, BPF target", bpf_cargo("clippy").args(["--", "-D", "warnings"]));
    steps.command(
        "documentation",
        cargo(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
    );
    true
}

fn tests(steps: &mut Steps) -> bool {
    if !steps.command("build", &mut cargo(["build", "--workspace", "--bins"])) {
        return false;
    }
    let unit = ["test", "--workspace", "--exclude", PRIVILEGED_PACKAGE, "--no-fail-fast"];
    steps.tests("tests without privileges", &mut cargo(unit));
    let mut programs = Vec::new();
    let built = steps.step("build of the privileged tests", || {
        programs = test_programs()?;
        Ok(())
    });
    let results = vm::host_results();
    steps.step("place for what the tests compare", || vm::prepare(&results));
    for program in &programs {
        run_privileged(steps, program, &results);
    }
    steps.counting("other kernels, in virtual machines", vm::every_change);
    steps.step("docs/EXACTNESS.md", || exactness::check(&vm::results()));
    built
}

fn run_privileged(steps: &mut Steps, program: &TestProgram, results: &Path) {
    let title = format!("privileged tests: {}", program.name);
    let directory = root().join("tests");
    let variables: [(&str, &OsStr); 3] = [
        ("OBSERVER_TEST_PRIVILEGED", OsStr::new("1")),
        (vm::RESULTS, results.as_os_str()),
        ("CARGO_MANIFEST_DIR", directory.as_os_str()),
    ];
    match as_root(&program.path, &variables) {
        Ok(mut command) => {
            command.arg("--test-threads=1").current_dir(&directory);
            steps.tests(&title, &mut command);
        }
        Err(message) => {
            steps.step(&title, || Err(message));
        }
    }
}

/// A program that holds tests.
#[derive(Clone)]
pub(crate) struct TestProgram {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Builds the privileged tests as this person (root would own the build directory otherwise) and
/// returns the programs to run.
fn test_programs() -> Result<Vec<TestProgram>, String> {
    let mut command = cargo(["test", "--package", PRIVILEGED_PACKAGE, "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    let programs = programs_of(&project::printed(&mut command)?);
    if programs.is_empty() {
        return Err(format!("package {PRIVILEGED_PACKAGE} has no test program"));
    }
    Ok(programs)
}

/// The test programs among what cargo says it built.
pub(crate) fn programs_of(messages: &[u8]) -> Vec<TestProgram> {
    messages.split(|byte| *byte == b'\n').filter_map(test_program).collect()
}

/// The test program that one line of cargo's messages tells of.
fn test_program(line: &[u8]) -> Option<TestProgram> {
    let message: serde_json::Value = serde_json::from_slice(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    Some(TestProgram {
        name: message["target"]["name"].as_str()?.to_owned(),
        path: Path::new(message["executable"].as_str()?).to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_run() {
        let line = |test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"run"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let program = test_program(line(true, r#""/t/run-1""#).as_bytes()).expect("a test program");
        assert_eq!((program.name.as_str(), program.path.as_path()), ("run", Path::new("/t/run-1")));
        assert!(test_program(line(false, r#""/t/observer""#).as_bytes()).is_none());
        assert!(test_program(line(true, "null").as_bytes()).is_none());
        assert!(test_program(b"{\"reason\":\"build-finished\"}").is_none());
        assert!(test_program(b"").is_none());
    }
}
