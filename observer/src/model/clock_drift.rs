//! How the clock of a load generator moved against the kernel's.

use serde::{Deserialize, Serialize};

/// How the clock of the load generator moved against the kernel's during the run. It was taken out of the
/// times of the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClockDrift {
    /// How much faster it ran on average, without steps, parts per million; negative where it ran slower.
    pub ppm: f64,
    /// How often it was set, so that it stepped.
    pub steps: u64,
    /// The kernel's clock minus that of the samples, early in the run, nanoseconds.
    pub offset_first_ns: i64,
    /// The same late in the run.
    pub offset_last_ns: i64,
    /// Both may be wrong by this, because one way may take longer than the other one, nanoseconds.
    pub error_ns: u64,
}

impl ClockDrift {
    /// For users, without a subject.
    #[must_use]
    pub fn text(&self) -> String {
        let steps = match self.steps {
            0 => String::new(),
            1 => " and was set once".to_owned(),
            several => format!(" and was set {several} times"),
        };
        let ran = if self.ppm < 0.0 { "slower" } else { "faster" };
        format!("ran {:.1} ppm {ran}{steps}", self.ppm.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_how_fast_the_clock_was_and_how_often_it_was_set() {
        let of = |ppm, steps| ClockDrift { ppm, steps, ..ClockDrift::default() }.text();
        assert_eq!(of(20.04, 0), "ran 20.0 ppm faster");
        assert_eq!(of(-50.0, 1), "ran 50.0 ppm slower and was set once");
        assert_eq!(of(0.0, 3), "ran 0.0 ppm faster and was set 3 times");
    }
}
