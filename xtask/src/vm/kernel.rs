//! The kernels of the matrix.

use std::fmt;

use clap::ValueEnum;

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
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

impl Kernel {
    /// The series, as it begins the release.
    pub(crate) const fn version(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_1Rt => "6.1",
            Self::V6_12 | Self::V6_12Rt => "6.12",
        }
    }

    /// As it stands in the name of the package.
    pub(crate) const fn flavour(self) -> &'static str {
        match self {
            Self::V6_1 | Self::V6_12 => "cloud",
            Self::V6_1Rt | Self::V6_12Rt => "rt",
        }
    }

    /// What such packages are called behind `linux-image-`.
    pub(crate) fn pattern(self) -> String {
        format!("{}.*-{}-amd64", self.version(), self.flavour())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        formatter.write_str(value.as_ref().map_or("?", |value| value.get_name()))
    }
}
