//! The kernels that guests run, and which of them a commit is tested on.

use std::fmt;

use clap::ValueEnum;

/// A kernel of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kernel {
    /// Debian 12's own, cloud flavour
    #[value(name = "6.1")]
    V6_1,
    /// As backported to Debian 12, cloud flavour
    #[value(name = "6.12")]
    V6_12,
    /// 6.1 with PREEMPT_RT
    #[value(name = "6.1-rt")]
    V6_1Rt,
    /// 6.12 with PREEMPT_RT
    #[value(name = "6.12-rt")]
    V6_12Rt,
}

/// What the guest of `cargo xtask test` runs for one commit. A plain `cargo xtask vm` runs the tests of
/// all turns on every kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Kernel of the guest.
    pub kernel: Kernel,
    /// The test programs.
    pub tests: &'static [&'static str],
    /// Which part of their tests, from 1, of how many.
    pub part: Option<(u32, u32)>,
    /// Parts of the names of their tests; all tests where there are none.
    pub names: &'static [&'static str],
    /// CPUs of the guest, and how many it could have.
    pub cpus: Option<(u32, u32)>,
}

/// The turns. Each takes a few minutes on an emulated CPU, as the other steps beside it do.
pub const TURNS: &[Turn] = &{
    let mut turns = [OTHERS[0]; GROUPS.len() * PARTS as usize + OTHERS.len()];
    let mut next = 0;
    while next < OTHERS.len() {
        turns[next] = OTHERS[next];
        next += 1;
    }
    let mut group = 0;
    while group < GROUPS.len() {
        let (kernel, tests) = GROUPS[group];
        let mut number = 1;
        while number <= PARTS {
            turns[next] = part(kernel, tests, number);
            next += 1;
            number += 1;
        }
        group += 1;
    }
    turns
};

/// Turns with all tests of some programs, or with tests of certain names.
const OTHERS: &[Turn] = &[
    Turn { names: &["runqueue", "fault", "softirq"], ..turn(Kernel::V6_1, &["tiers"]) },
    Turn { names: &["reclaim", "mm_syscall"], ..turn(Kernel::V6_1, &["tiers"]) },
    Turn { names: &["socket", "task", "request", "sleep"], ..turn(Kernel::V6_1, &["tiers"]) },
    Turn { cpus: Some((8, 256)), ..turn(Kernel::V6_12, &["live", "cgroups", "kernel_counters"]) },
];

/// Test programs whose tests are so many that each turn has a part of them.
const GROUPS: &[(Kernel, &[&str])] = &[
    (Kernel::V6_1, COUNTS),
    (Kernel::V6_1, TARGETS),
    (Kernel::V6_12, COUNTS),
    (Kernel::V6_12, TARGETS),
    (Kernel::V6_1Rt, COUNTS),
    (Kernel::V6_1Rt, TARGETS),
    (Kernel::V6_12Rt, COUNTS),
    (Kernel::V6_12Rt, TARGETS),
];
const PARTS: u32 = 8;

/// Test programs that compare counts and times.
const COUNTS: &[&str] = &[
    "exactness",
    "kernel_counters",
    "edge_memory",
    "edge_runqueue",
    "edge_sockets",
    "pressure",
    "uprobe",
];

/// Test programs about targets, and about what is recorded of them.
const TARGETS: &[&str] = &["target", "daemon", "doctor", "edge_tasks", "records"];

const fn part(kernel: Kernel, tests: &'static [&'static str], number: u32) -> Turn {
    Turn { part: Some((number, PARTS)), ..turn(kernel, tests) }
}

const fn turn(kernel: Kernel, tests: &'static [&'static str]) -> Turn {
    Turn { kernel, tests, part: None, names: &[], cpus: None }
}

impl Turn {
    /// The turn of a commit (its hash in hexadecimal): the same one each time, and over many commits
    /// each of them equally often.
    #[must_use]
    pub fn of(commit: &str) -> &'static Self {
        let start = commit.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        &TURNS[start.unwrap_or(0) as usize % TURNS.len()]
    }

    /// The arguments of `cargo xtask vm` that run it.
    #[must_use]
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--kernel".to_owned(), self.kernel.to_string()];
        for test in self.tests {
            arguments.extend(["--test".to_owned(), (*test).to_owned()]);
        }
        if let Some((number, parts)) = self.part {
            arguments.push(format!("--part={number}/{parts}"));
        }
        if let Some((cpus, possible)) = self.cpus {
            arguments.extend([format!("--cpus={cpus}"), format!("--possible-cpus={possible}")]);
        }
        arguments
    }

    /// What follows them: the names.
    #[must_use]
    pub fn last_arguments(&self) -> Vec<&str> {
        let before = (!self.names.is_empty()).then_some("--");
        before.into_iter().chain(self.names.iter().copied()).collect()
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kernel {}", self.kernel)?;
        if let Some((cpus, possible)) = self.cpus {
            write!(formatter, " with {cpus} of {possible} CPUs")?;
        }
        write!(formatter, ": {}", self.tests.join(", "))?;
        if let Some((number, parts)) = self.part {
            write!(formatter, ", part {number} of {parts}")?;
        }
        if self.names.is_empty() {
            Ok(())
        } else {
            write!(formatter, " ({})", self.names.join(", "))
        }
    }
}

impl Kernel {
    /// The series with which its release begins.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_1Rt => "6.1",
            Self::V6_12 | Self::V6_12Rt => "6.12",
        }
    }

    /// The flavour in the name of its package.
    #[must_use]
    pub const fn flavour(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_12 => "cloud",
            Self::V6_1Rt | Self::V6_12Rt => "rt",
        }
    }

    /// Names of its packages after `linux-image-`.
    #[must_use]
    pub fn pattern(self) -> String {
        format!("{}.*-{}-amd64", self.version(), self.flavour())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        formatter.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_has_one_turn_and_commits_have_all_of_them() {
        let commit = "95342fc0a8f1c2d3";
        assert_eq!(Turn::of(commit), Turn::of(commit));
        let seen: Vec<_> = (0..TURNS.len()).map(|hash| Turn::of(&format!("{hash:08x}"))).collect();
        for turn in TURNS {
            assert!(seen.contains(&turn), "{turn}");
        }
        for kernel in Kernel::value_variants() {
            assert!(TURNS.iter().any(|turn| turn.kernel == *kernel), "{kernel}");
        }
        assert_eq!(Turn::of("no hash"), &TURNS[0]);
    }
}
