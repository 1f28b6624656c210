//! Why a target cannot be watched.

use std::path::PathBuf;

use crate::error::{Error, Exit};
use crate::model::Tgid;

/// Why there is no target process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// `--pid`: there is none.
    #[error("no process with id {}; is it still running?", .0.0)]
    NoSuchProcess(Tgid),
    /// `--pid`: the id of a thread.
    #[error("{tid} is a thread of process {process}; use --pid {process}", tid = .tid.0, process = .process.0)]
    IsThread {
        /// The id given.
        tid: Tgid,
        /// Its process.
        process: Tgid,
    },
    /// `--pid`: a kernel thread.
    #[error("process {id} ({1}) is a kernel thread and serves no requests; name another target", id = .0.0)]
    KernelThread(Tgid, String),
    /// `--pid`: observer's own.
    #[error("process {} is observer itself; name another target", .0.0)]
    Itself(Tgid),
    /// `--comm`: no process has this name.
    #[error(
        "no process has the command name {0:?}; see `ps -e -o comm`, or add --wait to wait for it"
    )]
    NoCommand(String),
    /// `--exe`: the file does not exist.
    #[error("no program {0} and no process that runs it; check the path, or add --wait")]
    NoProgram(PathBuf),
    /// `--exe`: the file exists and no process runs it.
    #[error("no process runs {0}; start it, or add --wait to wait for it")]
    NotRunning(PathBuf),
    /// `--cgroup`: no such cgroup.
    #[error("{0} is no cgroup of this host; see /proc/PID/cgroup, or add --wait to wait for it")]
    NoCgroup(PathBuf),
    /// `--cgroup`: it contains no process.
    #[error("no process in cgroup {0}; start the service, or add --wait to wait for it")]
    EmptyCgroup(PathBuf),
    /// `--port`: no process listens.
    #[error("no process listens on port {0}; start the service, or add --wait to wait for it")]
    NoListener(u16),
    /// `--port`: only the service manager holds the socket.
    #[error(
        "only the service manager (process 1) listens on port {0}: it starts the service at the \
         first connection; connect once, or add --wait"
    )]
    SocketActivated(u16),
    /// Something matched, and exited at once.
    #[error("the target exited while it was looked at; is it restarting?")]
    Vanished,
}

impl TargetError {
    /// Whether waiting can help.
    #[must_use]
    pub const fn may_appear(&self) -> bool {
        match self {
            Self::NoSuchProcess(_)
            | Self::IsThread { .. }
            | Self::KernelThread(..)
            | Self::Itself(_) => false,
            Self::NoCommand(_)
            | Self::NoProgram(_)
            | Self::NotRunning(_)
            | Self::NoCgroup(_)
            | Self::EmptyCgroup(_)
            | Self::NoListener(_)
            | Self::SocketActivated(_)
            | Self::Vanished => true,
        }
    }
}

impl From<TargetError> for Error {
    fn from(error: TargetError) -> Self {
        Self::new(Exit::Target, error.to_string())
    }
}
