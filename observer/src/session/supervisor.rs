//! The process between observer and COMMAND, which ends everything that COMMAND started.
//!
//! It is the subreaper of all processes that descend from it: one that leaves its process group or
//! session, or whose parents have ended, becomes its child. So nothing is left of COMMAND exactly
//! when it has no child. It outlives an observer that is killed, and notices that by the end of the
//! connection.

use std::ffi::{CStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid, WaitOptions, getpid, kill_process_group, wait};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::identity::Identity;
use crate::clock::MonoNanos;
use crate::host::descendants::signal_descendants;
use crate::model::Tgid;

/// The name under which observer starts itself as this process (`argv[0]`), and the name of the
/// process. It is not `observer`, so that a signal to all processes of that name does not reach it.
pub const NAME: &CStr = c"load-supervisor";

/// How long COMMAND's processes may take to end by SIGTERM when observer has died.
const LAST_GRACE: Duration = Duration::from_secs(1);
/// Between two looks at what is left.
const PAUSE: Duration = Duration::from_millis(5);

/// The first line from observer: what to start.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// COMMAND.
    pub(super) words: Vec<OsString>,
    /// Who it runs as; `None` for observer's own user.
    pub(super) user: Option<Identity>,
}

/// A later byte from observer: how to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum End {
    /// SIGINT to COMMAND's process group, like ^C at a terminal.
    Interrupt = b'i',
    /// SIGTERM to all processes.
    Terminate = b't',
    /// SIGKILL to all processes, until none is left.
    Kill = b'k',
}

/// What observer is told, a line each. The connection ends when no process is left.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    /// COMMAND runs.
    Started {
        /// Its process id.
        pid: u32,
        /// Just before it was spawned.
        at: MonoNanos,
    },
    /// COMMAND could not be started.
    NotStarted(String),
    /// COMMAND has ended; processes that it started may still run.
    Exited {
        /// As from wait(2).
        status: i32,
    },
}

/// The whole life of the process.
#[must_use]
pub fn main() -> ExitCode {
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn supervise() -> std::io::Result<()> {
    rustix::thread::set_name(NAME)?;
    rustix::process::set_child_subreaper(Some(getpid()))?;
    let connection = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&request, connection))
}

async fn serve(request: &Request, connection: UnixStream) -> std::io::Result<()> {
    // Signals to the terminal's processes are not for this one. The handlers stay when these are
    // dropped; COMMAND does not inherit them.
    let quiet = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    quiet.into_iter().try_for_each(|kind| signal(kind).map(drop))?;
    let mut child_ended = signal(SignalKind::child())?;
    connection.set_nonblocking(true)?;
    let mut tell = connection.try_clone()?;
    let mut orders = tokio::net::UnixStream::from_std(connection)?;
    let at = MonoNanos::now();
    let command = match start(request) {
        Ok(command) => command,
        Err(error) => return say(&mut tell, &Told::NotStarted(error.to_string())),
    };
    say(&mut tell, &Told::Started { pid: command.as_raw_nonzero().get().unsigned_abs(), at })?;
    // Otherwise the end of COMMAND's output would not be seen before the end of this process.
    let nowhere = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    rustix::stdio::dup2_stderr(&nowhere)?;
    while reap(command, &mut tell) {
        let order = tokio::select! {
            _ = child_ended.recv() => continue,
            order = orders.read_u8() => order,
        };
        match order.ok() {
            Some(order) if order == End::Interrupt as u8 => {
                // Without effect on a group whose processes have all ended.
                let _ = kill_process_group(command, Signal::INT);
            }
            Some(order) if order == End::Terminate as u8 => signal_all(Signal::TERM),
            Some(_) => kill_all(command, &mut tell),
            // observer has died.
            None => {
                signal_all(Signal::TERM);
                let since = std::time::Instant::now();
                while since.elapsed() < LAST_GRACE && reap(command, &mut tell) {
                    std::thread::sleep(PAUSE);
                }
                kill_all(command, &mut tell);
            }
        }
    }
    Ok(())
}

/// Starts COMMAND in a process group of its own, so that ^C at the terminal reaches it only once,
/// through observer.
fn start(request: &Request) -> std::io::Result<Pid> {
    let Some((program, arguments)) = request.words.split_first() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let supervisor = getpid();
    let user = request.user.as_ref().map(|user| {
        let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        (Uid::from_raw(user.uid), Gid::from_raw(user.gid), groups)
    });
    let prepare = move || {
        // After fork there is only this thread. The groups go first, while it may still change them.
        if let Some((uid, gid, groups)) = &user {
            set_thread_groups(groups)?;
            set_thread_res_gid(*gid, *gid, *gid)?;
            set_thread_res_uid(*uid, *uid, *uid)?;
        }
        // Should this process be killed, observer ends the others.
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        if rustix::process::getppid() == Some(supervisor) {
            Ok(())
        } else {
            Err(std::io::Error::from(rustix::io::Errno::SRCH))
        }
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).process_group(0);
    // SAFETY: between fork and exec only system calls are made; nothing is allocated.
    let child = unsafe { command.pre_exec(prepare) }.spawn()?;
    Ok(Pid::from_child(&child))
}

fn say(tell: &mut UnixStream, told: &Told) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(told)?;
    line.push(b'\n');
    tell.write_all(&line)
}

/// Collects the children that have ended; whether any is left.
fn reap(command: Pid, tell: &mut UnixStream) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == command => {
                let told = Told::Exited { status: status.as_raw() };
                // observer may have died.
                let _ = say(tell, &told);
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn signal_all(signal: Signal) {
    signal_descendants(Tgid(std::process::id()), signal);
}

/// Kills until nothing is left: what starts meanwhile too.
fn kill_all(command: Pid, tell: &mut UnixStream) {
    let mut pause = PAUSE;
    while reap(command, tell) {
        signal_all(Signal::KILL);
        std::thread::sleep(pause);
        // A process that sleeps in the kernel for long may take its time.
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
