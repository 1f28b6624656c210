//! The test programs of the workspace: built once, for this host and for guests.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::project::{self, as_root, root, test_cargo};

/// The folder whose tests load programs into the kernel and measure this machine: they run as root,
/// and one at a time, or they would disturb each other.
const PRIVILEGED: &str = "tests";

/// Variable by which the tests are told where to write what they compared.
const RESULTS: &str = "OBSERVER_TEST_RESULTS";

/// A program that holds tests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TestProgram {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Folder of its package.
    pub(crate) package: PathBuf,
}

/// Builds all of them, and the programs they start (in [`project::tests_built`]), as this person:
/// root would own the build directory otherwise.
pub(crate) fn build() -> Result<Vec<TestProgram>, String> {
    let mut command = test_cargo(["test", "--workspace", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics");
    let programs = programs_of(&project::printed(&mut command)?);
    if programs.iter().any(TestProgram::is_privileged) {
        Ok(programs)
    } else {
        Err(format!("the package in {PRIVILEGED}/ has no test program"))
    }
}

impl TestProgram {
    /// Whether it needs root, and the machine for itself.
    pub(crate) fn is_privileged(&self) -> bool {
        self.package == root().join(PRIVILEGED)
    }

    /// Runs it as cargo would.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.package).env("CARGO_MANIFEST_DIR", &self.package);
        command
    }

    /// Runs it as root, its tests one after the other, and appends what they compare to `results`.
    pub(crate) fn privileged_command(&self, results: &Path) -> Result<Command, String> {
        let variables: [(&str, &OsStr); 3] = [
            ("OBSERVER_TEST_PRIVILEGED", OsStr::new("1")),
            (RESULTS, results.as_os_str()),
            ("CARGO_MANIFEST_DIR", self.package.as_os_str()),
        ];
        let mut command = as_root(&self.path, &variables)?;
        command.arg("--test-threads=1").current_dir(&self.package);
        Ok(command)
    }
}

/// The test programs among what cargo says it built.
fn programs_of(messages: &[u8]) -> Vec<TestProgram> {
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
        package: Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_run_and_those_of_one_folder_as_root() {
        let line = |test: bool, executable: &str, folder: &str| {
            let manifest = root().join(folder).join("Cargo.toml");
            serde_json::json!({
                "reason": "compiler-artifact", "target": {"name": "run"}, "profile": {"test": test},
                "executable": serde_json::from_str::<serde_json::Value>(executable).expect("JSON"),
                "manifest_path": manifest,
            })
            .to_string()
        };
        let lines = [
            line(true, r#""/t/run-1""#, "tests"),
            line(false, r#""/t/observer""#, "observer"),
            line(true, "null", "observer"),
            line(true, r#""/t/unit-1""#, "observer"),
            r#"{"reason":"build-finished"}"#.to_owned(),
            String::new(),
        ];
        let programs = programs_of(lines.join("\n").as_bytes());
        let found: Vec<_> = programs
            .iter()
            .map(|program| (program.path.to_str().expect("UTF-8"), program.is_privileged()))
            .collect();
        assert_eq!(found, [("/t/run-1", true), ("/t/unit-1", false)]);
    }

    #[test]
    fn programs_run_in_their_package() {
        let program =
            TestProgram { name: "a".into(), path: "/t/a-1".into(), package: "/p/a".into() };
        let command = program.command();
        assert_eq!(command.get_current_dir(), Some(Path::new("/p/a")));
        assert!(command.get_envs().any(|(name, value)| {
            name == "CARGO_MANIFEST_DIR" && value == Some(OsStr::new("/p/a"))
        }));
    }
}
