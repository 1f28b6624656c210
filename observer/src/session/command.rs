//! COMMAND: the load generator, which a process of its own starts and ends ([`super::supervisor`]).

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions, getpid, wait};

use super::identity::Identity;
use super::supervisor::{self, End, Request, Told};
use crate::clock::MonoNanos;
use crate::error::{Error, Exit, Result};
use crate::host::descendants::signal_descendants;
use crate::host::{is_program, process};
use crate::log::NOTICE;
use crate::model::Tgid;

/// How long COMMAND may take to end after SIGINT, and then after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Generators print their results on SIGINT, once their last requests have ended. One that handles
/// the signal gets this time for it, longer than any of them waits for an answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// After this time the user is told what observer waits for.
const SILENCE: Duration = Duration::from_secs(1);

/// The running generator.
pub(super) struct Generator {
    supervisor: Child,
    /// Takes orders.
    connection: UnixStream,
    /// What the supervisor says; closed when it has ended.
    told: Receiver<Told>,
    pid: u32,
    status: Option<ExitStatus>,
    /// The supervisor has ended, and with it everything that COMMAND started.
    gone: bool,
    /// Just before it was spawned.
    pub(super) spawned: MonoNanos,
}

/// Checks that the program exists, before anything is started or created.
///
/// # Errors
/// [`Exit::Command`].
pub(super) fn find(program: &OsStr) -> Result<()> {
    let missing = |why: &str| {
        Err(Error::new(Exit::Command, format!("cannot run {}: {why}", program.display())))
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
    /// Starts COMMAND as this user, or as observer's own. When it exits, the calling thread is woken if
    /// it is parked.
    pub(super) fn start(command: &[OsString], user: Option<Identity>) -> Result<Self> {
        let who = user.as_ref().map(|user| format!(" as {}", user.name)).unwrap_or_default();
        let failed = |error: &dyn std::fmt::Display| {
            let program = command[0].display();
            Error::new(Exit::Command, format!("cannot run {program}{who}: {error}"))
        };
        // Should the supervisor be killed, what it held becomes a child of this process.
        rustix::process::set_child_subreaper(Some(getpid())).map_err(|error| failed(&error))?;
        let (connection, its_end) = UnixStream::pair().map_err(|error| failed(&error))?;
        let supervisor = Command::new("/proc/self/exe")
            .arg0(OsStr::from_bytes(supervisor::NAME.to_bytes()))
            .stdin(OwnedFd::from(its_end))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&error))?;
        let (sender, told) = mpsc::channel();
        let mut generator = Self {
            supervisor,
            connection,
            told,
            pid: 0,
            status: None,
            gone: false,
            spawned: MonoNanos::now(),
        };
        match generator.begin(&Request { words: command.to_vec(), user }, sender) {
            Ok(Told::Started { pid, at }) => {
                (generator.pid, generator.spawned) = (pid, at);
                Ok(generator)
            }
            Ok(Told::NotStarted(error)) => Err(failed(&error)),
            Ok(Told::Exited { .. }) => Err(failed(&"its supervisor failed")),
            Err(error) => Err(failed(&format!("its supervisor failed: {error}"))),
        }
    }

    /// Asks for the start, waits for what comes of it, and has the rest sent to `sender`.
    fn begin(&mut self, request: &Request, sender: Sender<Told>) -> std::io::Result<Told> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.connection.write_all(&line)?;
        let mut lines = BufReader::new(self.connection.try_clone()?).lines();
        let answer = lines.next().unwrap_or_else(|| Err(ErrorKind::UnexpectedEof.into()))?;
        let caller = std::thread::current();
        let listen = move || {
            for line in lines.map_while(std::io::Result::ok) {
                // Both fail only where the listener is of no use any more.
                let _ = serde_json::from_str(&line).map(|told| sender.send(told));
                caller.unpark();
            }
            drop(sender);
            caller.unpark();
        };
        std::thread::Builder::new().name("observer-listen".into()).spawn(listen)?;
        Ok(serde_json::from_str(&answer)?)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The process that holds it.
    pub(super) fn supervisor(&self) -> u32 {
        self.supervisor.id()
    }

    pub(super) fn take_output(&mut self) -> Option<OwnedFd> {
        self.supervisor.stdout.take().map(OwnedFd::from)
    }

    pub(super) fn take_errors(&mut self) -> Option<OwnedFd> {
        self.supervisor.stderr.take().map(OwnedFd::from)
    }

    /// Takes in what the supervisor said since.
    fn hear(&mut self) -> Result<()> {
        while !self.gone {
            match self.told.try_recv() {
                Ok(Told::Exited { status }) => self.status = Some(ExitStatus::from_raw(status)),
                Ok(Told::Started { .. } | Told::NotStarted(_)) => {}
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => self.bury()?,
            }
        }
        Ok(())
    }

    /// The supervisor has ended: because nothing is left, or because it was killed.
    fn bury(&mut self) -> Result<()> {
        self.gone = true;
        // Where the listener could not be started, the supervisor still runs: this ends it.
        let _ = self.connection.shutdown(Shutdown::Both);
        let how = self.supervisor.wait().map_err(|error| {
            Error::new(Exit::Failure, format!("cannot wait for COMMAND: {error}"))
        })?;
        if how.success() {
            return Ok(());
        }
        tracing::warn!("the process that held COMMAND was killed ({how}), so COMMAND was ended");
        let since = Instant::now();
        // Fails when there is no child any more.
        while since.elapsed() < GRACE
            && let Ok(ended) = wait(WaitOptions::NOHANG)
        {
            if ended.is_none() {
                signal_descendants(Tgid(std::process::id()), Signal::KILL);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    pub(super) fn has_exited(&mut self) -> Result<bool> {
        self.hear()?;
        Ok(self.status.is_some() || self.gone)
    }

    /// Ends it and all processes it started: SIGINT if it still runs, SIGTERM, SIGKILL, with a wait
    /// after each. With `hurry`, the wait after SIGINT goes on as long as a process handles it, until
    /// the flag is raised.
    pub(super) fn end(&mut self, hurry: Option<&AtomicBool>) -> Result<()> {
        let steps = [End::Interrupt, End::Terminate, End::Kill];
        let ended = self.has_exited()?;
        for step in steps.into_iter().skip(usize::from(ended)) {
            if self.gone {
                break;
            }
            // Fails when the supervisor has ended, which `hear` finds.
            let _ = self.connection.write_all(&[step as u8]);
            match hurry.filter(|_| step == End::Interrupt) {
                Some(hurry) => self.wait_for_results(hurry)?,
                None => {
                    let since = Instant::now();
                    while since.elapsed() < GRACE && !self.gone {
                        std::thread::sleep(Duration::from_millis(20));
                        self.hear()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn wait_for_results(&mut self, hurry: &AtomicBool) -> Result<()> {
        let (since, mut told) = (Instant::now(), false);
        while !self.gone && !hurry.load(Ordering::Relaxed) {
            let elapsed = since.elapsed();
            if elapsed >= PATIENCE || elapsed >= GRACE && !self.handles_interrupts() {
                break;
            }
            if elapsed >= SILENCE && !told {
                told = true;
                tracing::info!(
                    target: NOTICE,
                    "waiting for the results of COMMAND, which was interrupted; ^C ends it"
                );
            }
            // The search for its processes costs more, and comes later.
            let pause = if elapsed < GRACE { 20 } else { 100 };
            std::thread::sleep(Duration::from_millis(pause));
            self.hear()?;
        }
        Ok(())
    }

    /// Whether a process of the group has a handler for SIGINT, and so works on its end. One that
    /// ignores the signal does not.
    fn handles_interrupts(&self) -> bool {
        let in_group =
            |tgid: &Tgid| process::stat(*tgid).is_some_and(|stat| stat.group == self.pid);
        let handles = |tgid: Tgid| {
            let caught = process::status(tgid).map_or(0, |status| status.caught_signals);
            caught & (1 << (libc::SIGINT - 1)) != 0
        };
        process::all_ids().into_iter().filter(in_group).any(handles)
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
