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

/// What the guest of `cargo xtask test` runs for one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Kernel of the guest.
    pub kernel: Kernel,
    /// A test program that has a turn of its own, because it takes as long on an emulated CPU as the
    /// share of a kernel; none for the share.
    pub test: Option<&'static str>,
}

impl Turn {
    /// The turn of a commit (its hash in hexadecimal): the same one each time, and over many commits
    /// each of them equally often.
    #[must_use]
    pub fn of(commit: &str) -> Self {
        let mut turns: Vec<_> =
            Kernel::value_variants().iter().map(|kernel| Self::share(*kernel)).collect();
        turns.push(Self { kernel: Kernel::V6_1, test: Some("tiers") });
        let start = commit.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        turns[start.unwrap_or(0) as usize % turns.len()]
    }

    /// The share of a kernel.
    #[must_use]
    pub const fn share(kernel: Kernel) -> Self {
        Self { kernel, test: None }
    }
}

impl fmt::Display for Turn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.test {
            None => write!(formatter, "the share of kernel {}", self.kernel),
            Some(test) => write!(formatter, "the tests `{test}` on kernel {}", self.kernel),
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
        let mut seen: Vec<_> = (0..64).map(|hash| Turn::of(&format!("{hash:08x}"))).collect();
        seen.sort();
        seen.dedup();
        for kernel in Kernel::value_variants() {
            assert!(seen.contains(&Turn::share(*kernel)), "{kernel}");
        }
        assert_eq!(seen.len(), Kernel::value_variants().len() + 1);
        assert_eq!(Turn::of("no hash"), Turn::share(Kernel::value_variants()[0]));
    }
}
