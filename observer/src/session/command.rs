//! COMMAND: the load generator as a child process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::clock::MonoNanos;
use crate::error::{Error, Exit, Result};

/// How long COMMAND may take to end after SIGINT, and then after SIGTERM. Generators print their
/// results on SIGINT.
const GRACE: Duration = Duration::from_secs(3);

/// The running generator.
pub(super) struct Generator {
    child: Child,
    status: Option<ExitStatus>,
    /// Just before it was spawned.
    pub(super) spawned: MonoNanos,
    /// When its end was noticed.
    pub(super) exited: Option<MonoNanos>,
}

/// Whether the program exists, told before anything is started or created.
///
/// # Errors
/// [`Exit::Command`].
pub(super) fn find(program: &OsStr) -> Result<()> {
    let missing = |why: &str| {
        Err(Error::new(Exit::Command, format!("cannot run {}: {why}", program.display())))
    };
    let is_program = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if program.as_encoded_bytes().contains(&b'/') {
        let path = Path::new(program);
        return match (path.exists(), is_program(path)) {
            (_, true) => Ok(()),
            (true, false) => missing("it is not an executable file"),
            (false, _) => missing("no such file"),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|directory| is_program(&directory.join(program))) {
        Ok(())
    } else {
        missing("not found in PATH")
    }
}

impl Generator {
    /// Starts COMMAND. Its output is taken as samples, or goes to `out`.
    pub(super) fn start(
        command: &[OsString],
        output_is_samples: bool,
        out: &File,
        err: File,
    ) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(Exit::Command, format!("cannot run {}: {error}", command[0].display()))
        };
        let stdout = if output_is_samples {
            Stdio::piped()
        } else {
            Stdio::from(out.try_clone().map_err(failed)?)
        };
        let spawned = MonoNanos::now();
        let mut child = Command::new(&command[0]);
        child.args(&command[1..]).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::from(err));
        // Of its own: what a shell in COMMAND starts is ended with it, and ^C at the terminal reaches
        // it once, through `end`.
        child.process_group(0);
        let observer = rustix::process::getpid();
        let die_along = move || {
            // Killed, observer cannot end it: nothing is to keep loading a service for nobody. (The
            // thread that spawns is the main one, which lives as long as the process.)
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            if rustix::process::getppid() == Some(observer) {
                Ok(())
            } else {
                Err(std::io::Error::from(rustix::io::Errno::SRCH))
            }
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        let child = unsafe { child.pre_exec(die_along) }.spawn().map_err(failed)?;
        Ok(Self { child, status: None, spawned, exited: None })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn take_output(&mut self) -> Option<OwnedFd> {
        self.child.stdout.take().map(OwnedFd::from)
    }

    pub(super) fn has_exited(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(|error| {
                Error::new(Exit::Failure, format!("cannot wait for COMMAND: {error}"))
            })?;
            if self.status.is_some() {
                self.exited = Some(MonoNanos::now());
            }
        }
        Ok(self.status.is_some())
    }

    /// Ends it if it still runs, with all it started: SIGINT, SIGTERM, SIGKILL, each with its time.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.has_exited()? {
            return Ok(());
        }
        let group = Pid::from_raw(self.child.id() as i32);
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            // The group has its id as long as anybody is in it, and none of ours fits otherwise: an
            // id is not given out again while a group has it.
            let Some(true) = group.map(|group| kill_process_group(group, signal).is_ok()) else {
                break;
            };
            let since = Instant::now();
            while since.elapsed() < GRACE && !(self.has_exited()? && self.group_is_gone()) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.has_exited().map(|_| ())
    }

    /// Nobody is left of what COMMAND started, but for those that left its process group.
    fn group_is_gone(&self) -> bool {
        let group = Pid::from_raw(self.child.id() as i32);
        group.is_none_or(|group| test_kill_process_group(group).is_err())
    }

    /// Exit code, 128 + signal as a shell has it.
    pub(super) fn exit_code(&self) -> Option<i32> {
        let status = self.status?;
        status.code().or_else(|| status.signal().map(|signal| 128 + signal))
    }
}

impl Drop for Generator {
    /// Nothing keeps loading a service after the run that asked for it is gone.
    fn drop(&mut self) {
        let _ = self.end();
    }
}
