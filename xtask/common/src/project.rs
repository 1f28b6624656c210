//! Paths of the workspace, and the commands that project commands start.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

/// Result of a project command; the error is one line for the user.
pub type Outcome = Result<ExitCode, String>;

/// Top directory of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
#[must_use]
pub fn target() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target)
}

/// Directory of the programs that cargo builds in `profile` ("debug" or "release").
#[must_use]
pub fn built(profile: &str) -> PathBuf {
    target().join(profile)
}

/// The cargo that runs this program, in the workspace.
pub fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Target of the programs that tests run.
const TESTED: &str = "x86_64-unknown-linux-gnu";

/// [`cargo`] with the settings of every build, lint and page of `cargo xtask test`, so that nothing
/// is built twice. Programs are linked statically: the same ones run on this host and in guests,
/// which have no libraries. They have no debug information, because guests hold them in memory.
pub fn test_cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = cargo(arguments);
    command.env("CARGO_BUILD_TARGET", TESTED);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    command.env("CARGO_INCREMENTAL", "0");
    command
}

/// Directory of the programs that [`test_cargo`] builds.
#[must_use]
pub fn tests_built() -> PathBuf {
    built(&format!("{TESTED}/debug"))
}

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program` as root: directly if this process is root, through passwordless `sudo` otherwise.
/// sudo drops the variables of a command, so they are given here.
///
/// # Errors
/// When this process is not root and sudo does not work without a password.
pub fn as_root(program: &Path, variables: &[(&str, &OsStr)]) -> Result<Command, String> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    let silent = Command::new("sudo").args(["-n", "true"]).output();
    if !silent.is_ok_and(|output| output.status.success()) {
        return Err(format!(
            "{} needs root, and sudo is missing or needs a password; run `sudo -v` first, or run this as root",
            program.display()
        ));
    }
    let kept = inherited();
    let kept = kept.iter().map(|(name, value)| (*name, value.as_os_str()));
    Ok(through_sudo(program, variables.iter().copied().chain(kept)))
}

fn through_sudo<'a>(
    program: &Path,
    variables: impl Iterator<Item = (&'a str, &'a OsStr)>,
) -> Command {
    let mut command = Command::new("sudo");
    command.args(["-n", "env"]);
    for (name, value) in variables {
        let mut assignment = OsString::from(name);
        assignment.push("=");
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program);
    command
}

/// Variables of this environment that a program started through sudo keeps.
fn inherited() -> Vec<(&'static str, OsString)> {
    ["PATH", "CI", "TERM", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| env::var_os(name).map(|value| (name, value)))
        .collect()
}

/// Runs `command` with this terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn must(command: &mut Command) -> Result<(), String> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", shown(command))) }
}

/// Runs `command` with this terminal and returns how it ended.
///
/// # Errors
/// When it cannot be started.
pub fn status(command: &mut Command) -> Result<ExitStatus, String> {
    command.status().map_err(|error| format!("could not start {}: {error}", shown(command)))
}

/// Runs `command` with this terminal; its exit code becomes that of the project command.
///
/// # Errors
/// When it cannot be started.
pub fn passed_on(command: &mut Command) -> Outcome {
    let code = status(command)?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Ends a program with the result of its project command.
#[must_use]
pub fn finished(program: &str, outcome: Outcome) -> ExitCode {
    outcome.unwrap_or_else(|message| {
        eprintln!("{program}: error: {message}");
        ExitCode::FAILURE
    })
}

/// Runs `command` and returns its standard output; its standard error goes to this terminal.
///
/// # Errors
/// When it cannot be started or fails.
pub fn printed(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("could not start {}: {error}", shown(command)))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(format!("{} ended with {}", shown(command), output.status))
    }
}

/// `command` as a user would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    let arguments = command.get_args().map(OsStr::to_string_lossy);
    [name].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_pass_sudo() {
        let variables =
            [("OBSERVER_TEST_PRIVILEGED", OsStr::new("1")), ("PATH", OsStr::new("/bin"))];
        let command = through_sudo(Path::new("/t/run-1"), variables.into_iter());
        assert_eq!(shown(&command), "sudo -n env OBSERVER_TEST_PRIVILEGED=1 PATH=/bin /t/run-1");
    }
}
