//! observer as a user runs it: arguments in, exit code and both outputs out.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Result;
use crate::process::{Placement, Running};

/// The result of a command.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Asserts the exit code, and, other than 0, that standard error has exactly one line from
    /// observer, the last one.
    ///
    /// # Panics
    /// When it is not so.
    #[track_caller]
    pub fn assert_code(&self, code: u8) {
        assert_eq!(self.code, Some(i32::from(code)), "{self:#?}");
        if code == 0 {
            return;
        }
        let complaints: Vec<_> =
            self.stderr.lines().filter(|line| line.starts_with("observer: ")).collect();
        assert_eq!(complaints.len(), 1, "one line says what failed: {self:#?}");
        assert_eq!(self.stderr.lines().last(), complaints.first().copied(), "{self:#?}");
        assert!(complaints[0].len() > "observer: ".len() + 10, "it says something: {self:#?}");
    }
}

/// Runs a command to its end, with nothing on standard input.
///
/// # Errors
/// When it does not start, or does not end in time (it is killed).
pub fn run(command: &mut Command, timeout: Duration) -> Result<Finished> {
    let file = || tempfile::tempfile().map_err(|error| format!("no temporary file: {error}"));
    let (mut stdout, mut stderr) = (file()?, file()?);
    let handle = |file: &fs::File| {
        file.try_clone().map_err(|error| format!("cannot copy a descriptor: {error}"))
    };
    command.stdin(Stdio::null()).stdout(handle(&stdout)?).stderr(handle(&stderr)?);
    let mut process = Running::start(command, Placement::default())?;
    let status = process.wait(timeout);
    let text = |file: &mut fs::File| -> Result<String> {
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .map_err(|error| format!("cannot read what {command:?} printed: {error}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
    match status {
        Ok(status) => Ok(Finished { code: status.code(), stdout, stderr }),
        Err(error) => Err(format!("{command:?}: {error}\n{stdout}\n{stderr}")),
    }
}

/// A command that runs a program as `nobody`, when this process is root; as itself otherwise.
///
/// # Errors
/// When the program cannot be copied to where `nobody` can run it.
pub fn as_nobody<I, S>(program: &Path, directory: &Path, arguments: I) -> Result<Command>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    if !rustix::process::geteuid().is_root() {
        let mut command = Command::new(program);
        command.args(arguments);
        return Ok(command);
    }
    // The build directory may be in a home directory that other users may not enter.
    let copy = directory.join("program-for-all");
    if !copy.exists() {
        fs::copy(program, &copy)
            .and_then(|_| fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o755)))
            .map_err(|error| format!("cannot copy {}: {error}", program.display()))?;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    command.arg(&copy).args(arguments).current_dir("/");
    Ok(command)
}

/// Gives a directory and what is in it to `nobody`.
///
/// # Errors
/// When this process may not.
pub fn give_to_nobody(directory: &Path) -> Result<()> {
    let give = |path: PathBuf| {
        std::os::unix::fs::lchown(&path, Some(65534), Some(65534))
            .map_err(|error| format!("cannot give {} away: {error}", path.display()))
    };
    let entries = fs::read_dir(directory)
        .map_err(|error| format!("cannot read {}: {error}", directory.display()))?;
    entries.flatten().try_for_each(|entry| give(entry.path()))?;
    give(directory.to_owned())
}
