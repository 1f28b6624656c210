//! The test programs of the workspace: built once, for this host and for guests.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::project::{self, as_root, root, target, test_cargo};

/// The folder whose tests load programs into the kernel and measure this machine. They run as root,
/// one at a time, because two would disturb each other.
const PRIVILEGED: &str = "tests";

/// Names the file to which the tests append what they compared.
const RESULTS: &str = "OBSERVER_TEST_RESULTS";

/// A program that holds tests.
#[derive(Clone, Debug, PartialEq)]
pub struct TestProgram {
    /// Name of its file in `tests/`, or of its package.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Folder of its package.
    pub package: PathBuf,
}

/// Which test programs a build makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of files in `tests/` folders, with the programs that they start. Without unit tests, for
    /// which every crate is compiled a second time.
    Integration,
    /// All of them. Cargo prints errors only, because other steps print meanwhile.
    All,
}

impl Scope {
    const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Integration => &["--test", "*"],
            Self::All => &["--quiet"],
        }
    }
}

/// Builds them and the programs that they start, as this person: otherwise root would own
/// the build directory. Leaves the list in [`programs_file`] for [`read`].
///
/// # Errors
/// When the build fails, or no privileged test program is built.
pub fn build(scope: Scope) -> Result<Vec<TestProgram>, String> {
    // Always with all packages selected, so that libraries have the same features.
    let mut command = test_cargo(["test", "--workspace", "--no-run"]);
    command.args(scope.arguments()).arg("--message-format=json-render-diagnostics");
    let messages = project::printed(&mut command)?;
    let path = programs_file();
    fs::write(&path, &messages)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    checked(&messages)
}

/// The programs of the last [`build`], from the list that it left.
///
/// # Errors
/// When there is no such list.
pub fn read(path: &Path) -> Result<Vec<TestProgram>, String> {
    let failed = |error| format!("cannot read {}: {error}", path.display());
    checked(&fs::read(path).map_err(failed)?)
}

/// Where [`build`] leaves the list of what it built.
#[must_use]
pub fn programs_file() -> PathBuf {
    target().join("test-programs.jsonl")
}

/// The target directory in which the last [`build`] built the BPF programs: where aya-build 0.2 puts
/// it, or one that does not exist yet.
#[must_use]
pub fn bpf_target() -> PathBuf {
    let messages = fs::read(programs_file()).unwrap_or_default();
    let built = messages_in(&messages).find_map(|message| {
        let is_script = message["reason"] == "build-script-executed";
        let directory = Path::new(is_script.then(|| message["out_dir"].as_str())??);
        Some(directory.join("aya-build/target/observer-ebpf")).filter(|path| path.is_dir())
    });
    built.unwrap_or_else(|| target().join("bpf"))
}

fn checked(messages: &[u8]) -> Result<Vec<TestProgram>, String> {
    let programs = programs_of(messages);
    if programs.iter().any(TestProgram::is_privileged) {
        Ok(programs)
    } else {
        Err(format!("the package in {PRIVILEGED}/ has no test program"))
    }
}

impl TestProgram {
    /// Whether it needs root and must not run beside anything else.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        self.package == root().join(PRIVILEGED)
    }

    /// The command that cargo would run.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.package).env("CARGO_MANIFEST_DIR", &self.package);
        command
    }

    /// The command that runs its tests as root, one after the other, and appends what they compare
    /// to `results`.
    ///
    /// # Errors
    /// When this process can become root neither directly nor through sudo.
    pub fn privileged_command(&self, results: &Path) -> Result<Command, String> {
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

/// Cargo's messages, one in each line.
fn messages_in(lines: &[u8]) -> impl Iterator<Item = Value> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

/// The test programs in cargo's messages.
fn programs_of(messages: &[u8]) -> Vec<TestProgram> {
    messages_in(messages).filter_map(|message| test_program(&message)).collect()
}

/// The test program in one message of cargo's.
fn test_program(message: &Value) -> Option<TestProgram> {
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
                "executable": serde_json::from_str::<Value>(executable).expect("JSON"),
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
