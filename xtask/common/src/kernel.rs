//! The kernels that guests run, and which of them a commit is tested on.

use std::{fmt, sync::LazyLock};

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
    pub part: (u32, u32),
    /// CPUs of the guest, and how many it could have.
    pub cpus: Option<(u32, u32)>,
}

/// The turns. Each takes a few minutes on an emulated CPU, as the other steps beside it do.
pub static TURNS: LazyLock<Vec<Turn>> = LazyLock::new(|| {
    let of_group = |&(kernel, tests, parts): &(Kernel, &'static [&'static str], u32)| {
        (1..=parts).map(move |number| Turn { kernel, tests, part: (number, parts), cpus: None })
    };
    GROUPS.iter().flat_map(of_group).chain([EIGHT_CPUS]).collect()
});

/// CPUs that are added and taken away.
const EIGHT_CPUS: Turn = Turn {
    kernel: Kernel::V6_12,
    tests: &["live", "cgroups", "kernel_counters"],
    part: (1, 1),
    cpus: Some((8, 256)),
};

/// Test programs whose tests are so many that each turn has a part of them, and how many parts there are.
const GROUPS: &[(Kernel, &[&str], u32)] = &[
    (Kernel::V6_1, &["tiers"], 4),
    (Kernel::V6_1, COUNTS, 20),
    (Kernel::V6_1, TARGETS, 20),
    (Kernel::V6_12, COUNTS, 20),
    (Kernel::V6_12, TARGETS, 20),
    (Kernel::V6_1Rt, COUNTS, 20),
    (Kernel::V6_1Rt, TARGETS, 20),
    (Kernel::V6_12Rt, COUNTS, 20),
    (Kernel::V6_12Rt, TARGETS, 20),
];

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
const TARGETS: &[&str] = &[
    "target",
    "cpu_limits",
    "descriptors",
    "counters",
    "memory_limits",
    "network_conditions",
    "daemon",
    "doctor",
    "edge_tasks",
    "records",
    "stacks",
];

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
        let (number, parts) = self.part;
        arguments.push(format!("--part={number}/{parts}"));
        if let Some((cpus, possible)) = self.cpus {
            arguments.extend([format!("--cpus={cpus}"), format!("--possible-cpus={possible}")]);
        }
        arguments
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "kernel {}", self.kernel)?;
        if let Some((cpus, possible)) = self.cpus {
            write!(formatter, " with {cpus} of {possible} CPUs")?;
        }
        let (number, parts) = self.part;
        write!(formatter, ": {}, part {number} of {parts}", self.tests.join(", "))
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
        for turn in TURNS.iter() {
            assert!(seen.contains(&turn), "{turn}");
        }
        for kernel in Kernel::value_variants() {
            assert!(TURNS.iter().any(|turn| turn.kernel == *kernel), "{kernel}");
        }
        assert_eq!(Turn::of("no hash"), &TURNS[0]);
    }
}
