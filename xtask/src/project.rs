//! Where things lie, and the commands started most.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

/// What every project command ends with; the error is one line for the person.
pub(crate) type Outcome = Result<ExitCode, String>;

/// Top of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds in `profile` ("debug" or "release").
pub(crate) fn built(profile: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target).join(profile)
}

/// The cargo that runs this program, in the workspace.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// What the programs of the tests are built for.
const TESTED: &str = "x86_64-unknown-linux-gnu";

/// [`cargo`] for what the tests run: linked statically, so that one build serves this host and
/// guests, which have no libraries. Without debug information: guests hold all of it in memory.
pub(crate) fn test_cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = cargo(arguments);
    command.env("CARGO_BUILD_TARGET", TESTED);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
    command.env("CARGO_INCREMENTAL", "0");
    command
}

/// Where [`test_cargo`] puts programs.
pub(crate) fn tests_built() -> PathBuf {
    built(&format!("{TESTED}/debug"))
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes no argument, touches no memory, and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// `program` as root: itself where this is root, through a `sudo` that asks nothing elsewhere.
/// Variables set on the command itself would not pass sudo, so they are given here.
pub(crate) fn as_root(program: &Path, variables: &[(&str, &OsStr)]) -> Result<Command, String> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(variables.iter().copied());
        return Ok(command);
    }
    let silent = Command::new("sudo").args(["-n", "true"]).output();
    if !silent.is_ok_and(|output| output.status.success()) {
        return Err(format!(
            "{} needs root, and sudo is missing or wants a password; run `sudo -v` first, or run this as root",
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

/// What a program started through sudo keeps of this environment.
fn inherited() -> Vec<(&'static str, OsString)> {
    ["PATH", "CI", "TERM", "RUST_BACKTRACE"]
        .into_iter()
        .filter_map(|name| env::var_os(name).map(|value| (name, value)))
        .collect()
}

/// Runs `command` with this terminal; its failure is the error.
pub(crate) fn must(command: &mut Command) -> Result<(), String> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", shown(command))) }
}

/// Runs `command` with this terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, String> {
    command.status().map_err(|error| format!("could not start {}: {error}", shown(command)))
}

/// Runs `command` and returns what it printed; what it complains of goes to this terminal.
pub(crate) fn printed(command: &mut Command) -> Result<Vec<u8>, String> {
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

/// `command` as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
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
