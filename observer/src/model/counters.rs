//! What the counters of the kernel and of the processor say of the target's threads (perf events).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The counters, while they counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersSummary {
    /// Time between the first and the last reading, nanoseconds.
    pub observed_ns: u64,
    /// What was counted.
    pub by: Vec<CounterSummary>,
    /// What was not, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<CounterGap>,
    /// Threads that were there already and got counters. Those that they started later, children of children too,
    /// count with them.
    pub threads: u64,
    /// Threads that were there already and got no counters, by why. Those that they started later are not counted
    /// either.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub threads_not_counted: BTreeMap<WhyNot, u64>,
    /// Threads that were started while their process got its counters, so that it is not known whether they count.
    #[serde(default)]
    pub threads_unsure: u64,
    /// Processes that joined the target during the run without being forked by it: they count from the moment at
    /// which they were found.
    #[serde(default)]
    pub processes_late: u64,
}

/// One counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterSummary {
    /// Its name: `context_switches`.
    pub name: String,
    /// What it counted. If it had to share the processor's registers with others (`running_ns` is less than
    /// `enabled_ns`), this is what it would have counted all the time, as far as its part of the time tells.
    pub count: u64,
    /// Time for which the threads ran: their CPU time, nanoseconds.
    pub enabled_ns: u64,
    /// Of it, time in which it counted.
    pub running_ns: u64,
}

/// A counter that did not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterGap {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: WhyNot,
}

/// Why something was not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhyNot {
    /// The machine or its kernel has no such counter.
    Unsupported,
    /// The kernel does not allow it.
    Refused,
    /// No file descriptor was left.
    NoDescriptors,
    /// Anything else.
    Failed,
}

impl CountersSummary {
    /// CPU time of the threads that are counted, nanoseconds.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.by.iter().map(|counter| counter.enabled_ns).max().unwrap_or(0)
    }

    /// A counter by name; `None` where it did not count.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&CounterSummary> {
        self.by.iter().find(|counter| counter.name == name)
    }
}
