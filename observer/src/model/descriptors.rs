//! Open descriptors of the target's processes against their limit, and open files of the host.

use serde::{Deserialize, Serialize};

/// The open descriptors of a process of the target, as they were read while it was observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DescriptorSummary {
    /// Process id.
    pub tgid: u32,
    /// Its name.
    pub name: String,
    /// Descriptors that it may have (`RLIMIT_NOFILE`, the soft limit; the last one that was read); `None`
    /// where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Open descriptors at the first reading.
    pub first: u64,
    /// At the last one.
    pub last: u64,
    /// The most of all readings.
    pub highest: u64,
    /// A reading was at the limit of that moment, or above.
    pub limit_reached: bool,
    /// It ended while it was observed.
    pub ended: bool,
    /// Time between the first and the last reading, nanoseconds.
    pub observed_ns: u64,
    /// How the number grew; `None` after fewer than seven readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<DescriptorGrowth>,
    /// Which of them are sockets; `None` where that could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<DescriptorSample>,
}

/// How the number of open descriptors grew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DescriptorGrowth {
    /// Descriptors that were opened and not closed, a second.
    pub per_s: f64,
    /// Between these bounds with a probability of 95 %.
    pub ci95_per_s: [f64; 2],
    /// There were more of them in the last part of the time than in each part before.
    pub highest_at_end: bool,
}

/// Some of a process's descriptors, spread evenly, or all if there are few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorSample {
    /// Descriptors that were looked at.
    pub looked_at: u64,
    /// Sockets among them.
    pub sockets: u64,
}

/// The open files of the whole host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFilesSummary {
    /// How many there may be (`fs.file-max`); the last one that was read.
    pub limit: u64,
    /// Open files at the first reading.
    pub first: u64,
    /// At the last one.
    pub last: u64,
    /// The most of all readings.
    pub highest: u64,
}

impl DescriptorSummary {
    /// The most that were open, as a part of the limit; 0 without a limit.
    #[must_use]
    pub fn highest_share(&self) -> f64 {
        self.limit.map_or(0.0, |limit| self.highest as f64 / limit.max(1) as f64)
    }

    /// The growth, if the number grew all the time and not by chance.
    #[must_use]
    pub fn steady_growth(&self) -> Option<DescriptorGrowth> {
        self.growth.filter(|growth| growth.ci95_per_s[0] > 0.0 && growth.highest_at_end)
    }

    /// In how many seconds after the last reading the limit is reached, if the number grows on as it did,
    /// and the bounds of that; `None` where it does not grow all the time, or the limit is not known.
    #[must_use]
    pub fn seconds_to_limit(&self) -> Option<(f64, [f64; 2])> {
        let DescriptorGrowth { per_s, ci95_per_s: [low, high], .. } = self.steady_growth()?;
        let left = self.limit?.saturating_sub(self.last) as f64;
        Some((left / per_s, [left / high, left / low]))
    }
}
