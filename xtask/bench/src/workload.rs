//! The operations, and the process that does them.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// An operation of the workload program, a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Operation {
    Switch,
    Fault,
    Mmap,
    Madvise,
    Socket,
    Exchange,
    Getppid,
}

/// Those that have a probe.
pub(crate) const OPERATIONS: [Operation; 5] =
    [Operation::Switch, Operation::Fault, Operation::Mmap, Operation::Madvise, Operation::Socket];

/// The goal for the added cost of one operation.
pub(crate) struct Goal {
    /// The probe that sits in it.
    pub(crate) probe: &'static str,
    pub(crate) added_ns: f64,
    /// Part of the best peer's cost.
    pub(crate) of_peer: f64,
}

impl Operation {
    /// Its name on the command line of the workload.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Fault => "fault",
            Self::Mmap => "mmap",
            Self::Madvise => "madvise",
            Self::Socket => "socket",
            Self::Exchange => "exchange",
            Self::Getppid => "getppid",
        }
    }

    /// Its name in the table.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Switch => "context switch (wake-up and switch)",
            Self::Fault => "minor page fault",
            Self::Mmap => "mmap or munmap",
            Self::Madvise => "madvise",
            Self::Socket => "socket and close",
            Self::Exchange => "write or read of a TCP connection",
            Self::Getppid => "a system call of no probe (getppid)",
        }
    }

    pub(crate) const fn goal(self) -> Option<Goal> {
        let (probe, added_ns, of_peer) = match self {
            Self::Switch => ("runqueue", 100.0, 0.4),
            Self::Fault => ("fault", 120.0, 0.5),
            Self::Mmap | Self::Madvise => ("mm_syscall", 150.0, 0.5),
            Self::Socket => ("socket", 200.0, 0.5),
            Self::Exchange => ("request", 150.0, 1.0),
            Self::Getppid => return None,
        };
        Some(Goal { probe, added_ns, of_peer })
    }
}

/// One process that makes all bursts of a comparison.
pub(crate) struct Workload {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    burst: Duration,
}

/// The result of a burst.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Burst {
    /// A quarter of the slices took less per operation. Whatever else the machine does makes a
    /// slice slower, never faster.
    pub(crate) p25_ns: f64,
    /// How many were done.
    pub(crate) operations: u64,
}

impl Workload {
    pub(crate) fn start(program: &Path, cpu: usize, burst: Duration) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(["--serve", "--cpu", &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("could not start {}: {error}", program.display()))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes to the workload".to_owned());
        };
        Ok(Self { child, to: Some(to), from: BufReader::new(from), burst })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// One burst of the usual length.
    pub(crate) fn measure(&mut self, operation: Operation) -> Result<f64, String> {
        Ok(self.burst(operation, self.burst)?.p25_ns)
    }

    pub(crate) fn measure_all(&mut self, operations: &[Operation]) -> Result<Vec<f64>, String> {
        operations.iter().map(|operation| self.measure(*operation)).collect()
    }

    /// One burst of this length.
    pub(crate) fn burst(
        &mut self,
        operation: Operation,
        length: Duration,
    ) -> Result<Burst, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the workload failed: {error}");
        let to = self.to.as_mut().ok_or_else(|| failed(&"it has ended"))?;
        writeln!(to, "{} {}", operation.name(), length.as_millis())
            .map_err(|error| failed(&error))?;
        let mut line = String::new();
        self.from.read_line(&mut line).map_err(|error| failed(&error))?;
        serde_json::from_str(&line).map_err(|error| failed(&error))
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Without input it ends by itself.
        drop(self.to.take());
        let _ = self.child.wait();
    }
}
