//! COMMAND: the load generator as a child process.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};

use crate::clock::MonoNanos;
use crate::error::{Error, Exit, Result};
use crate::log::NOTICE;

/// How long COMMAND may take to end after SIGINT, and then after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Generators print their results on SIGINT, once their last requests have ended. One that handles
/// the signal gets this time for it, longer than any of them waits for an answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// After this time the user is told what observer waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// The running generator.
pub(super) struct Generator {
    child: Child,
    status: Option<ExitStatus>,
    /// Just before it was spawned.
    pub(super) spawned: MonoNanos,
    /// When its end was noticed.
    pub(super) exited: Option<MonoNanos>,
}

/// Checks that the program exists, before anything is started or created.
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
        // COMMAND gets its own process group, so that processes started by a shell in COMMAND end
        // with it, and ^C at the terminal reaches it only once, through `end`.
        child.process_group(0);
        let observer = rustix::process::getpid();
        let die_along = move || {
            // If observer is killed, it cannot end COMMAND itself, and COMMAND must not keep
            // loading the service. (The thread that spawns is the main one, which lives as long as
            // the process.)
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

    /// Ends it and all processes it started, if it still runs: SIGINT, SIGTERM, SIGKILL, with a
    /// wait after each. With `hurry`, SIGINT is given as long as a process handles it, until the flag
    /// is raised.
    pub(super) fn end(&mut self, hurry: Option<&AtomicBool>) -> Result<()> {
        if self.has_exited()? {
            return Ok(());
        }
        let group = Pid::from_raw(self.child.id() as i32);
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            // The group keeps its id as long as it has a member, and the kernel does not assign the
            // id again during that time, so the signal cannot reach another group.
            let Some(true) = group.map(|group| kill_process_group(group, signal).is_ok()) else {
                break;
            };
            let patient = hurry.filter(|_| signal == Signal::INT);
            let (since, mut told) = (Instant::now(), false);
            while !(self.has_exited()? && self.group_is_gone()) {
                let elapsed = since.elapsed();
                if patient.is_some_and(|hurry| hurry.load(Ordering::Relaxed)) {
                    break;
                }
                if elapsed >= GRACE
                    && (patient.is_none() || elapsed >= PATIENCE || !self.handles_interrupts())
                {
                    break;
                }
                if patient.is_some() && elapsed >= SILENCE && !told {
                    told = true;
                    tracing::info!(
                        target: NOTICE,
                        "waiting for the results of COMMAND, which was interrupted; ^C ends it"
                    );
                }
                // The search for its processes costs more, and comes later.
                let pause = if elapsed < GRACE { 20 } else { 100 };
                std::thread::sleep(Duration::from_millis(pause));
            }
        }
        self.has_exited().map(|_| ())
    }

    /// Whether a process of the group has a handler for SIGINT, and so works on its end. One that
    /// ignores the signal does not.
    fn handles_interrupts(&self) -> bool {
        let group = self.child.id().to_string();
        let in_group = |stat: &str| {
            // State, parent and group follow the name, which may contain anything.
            let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
            fields.is_some_and(|mut fields| fields.nth(2) == Some(group.as_str()))
        };
        let handles = |status: &str| {
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            caught.is_some_and(|mask| mask & (1 << (libc::SIGINT - 1)) != 0)
        };
        let Ok(processes) = std::fs::read_dir("/proc") else { return false };
        processes.flatten().map(|process| process.path()).any(|process| {
            let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
            in_group(&read("stat")) && handles(&read("status"))
        })
    }

    /// Whether all processes that COMMAND started have ended, except those that left its process
    /// group.
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
    /// COMMAND must not keep loading a service after its run has gone.
    fn drop(&mut self) {
        let _ = self.end(None);
    }
}
