//! What observer saw of the load generator's processes.

use crate::clock::MonoNanos;

/// A program that COMMAND, or a descendant of it, executed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneratorProcess {
    /// Its process id.
    pub tgid: u32,
    /// Its name, of at most 15 bytes; empty for a process that only forked.
    pub comm: String,
    /// When it was executed; `None` for a process that only forked.
    pub began: Option<MonoNanos>,
    /// When its last thread exited, or it executed another program.
    pub ended: Option<MonoNanos>,
    /// When it began connections, and to which ports (0: not known), in order.
    pub connects: Vec<(MonoNanos, u16)>,
    /// It may have begun more connections than those, later.
    pub more_connects: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneratorProcesses {
    /// In the order in which they were first seen.
    pub processes: Vec<GeneratorProcess>,
    /// Connections were watched.
    pub connects_known: bool,
}
