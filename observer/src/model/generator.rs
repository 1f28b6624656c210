//! What observer saw of the load generator's processes.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::clock::MonoNanos;

/// A program that COMMAND, or a descendant of it, executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorProcess {
    /// Its process id.
    pub tgid: u32,
    /// Its name, of at most 15 bytes; empty for a process that only forked.
    pub comm: String,
    /// When it was executed; `None` for a process that only forked.
    #[serde(rename = "began_ns")]
    pub began: Option<MonoNanos>,
    /// When its last thread exited, or it executed another program.
    #[serde(rename = "ended_ns")]
    pub ended: Option<MonoNanos>,
    /// When it began connections, and to which ports (0: not known), in order.
    #[serde(rename = "connects_ns")]
    pub connects: Vec<(MonoNanos, u16)>,
    /// It may have begun more connections than those, later.
    pub more_connects: bool,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorProcesses {
    /// In the order in which they were first seen.
    pub processes: Vec<GeneratorProcess>,
    /// Connections were watched.
    pub connects_known: bool,
}

/// What observer saw of the generator from outside. Generators whose times count from an unknown zero
/// need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelAnchor {
    /// Just before COMMAND was spawned; `None` without COMMAND.
    #[serde(rename = "spawned_ns")]
    pub spawned: Option<MonoNanos>,
    /// When nothing of COMMAND was left; `None` while it runs.
    #[serde(rename = "exited_ns")]
    pub exited: Option<MonoNanos>,
    /// What it started; `None` when that was too much to follow.
    pub processes: Option<GeneratorProcesses>,
    /// The ports of the target, where they are known.
    pub ports: BTreeSet<u16>,
}
