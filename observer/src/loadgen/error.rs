//! What can be wrong with samples, and what the person is told.

use crate::error::{Error, Exit};

/// Why there are no samples to work with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// Nothing was written.
    #[error("no samples: nothing was written")]
    Empty,
    /// A header or an end mark, but no request.
    #[error("no samples: a header and no request ({hint})")]
    HeaderOnly {
        /// What that means for this generator.
        hint: &'static str,
    },
    /// The stream ends inside its first record.
    #[error("the samples end in the middle of the first record: nothing whole to use")]
    Truncated,
    /// Not the format that was named.
    #[error("the samples are not {expected}: {detail}{}", suggestion(*.looks_like))]
    WrongFormat {
        /// The adapter that was asked for.
        expected: &'static str,
        /// What was found.
        detail: String,
        /// The adapter that recognises it.
        looks_like: Option<&'static str>,
    },
    /// The format, in a version this program does not know.
    #[error("the samples are version {found} of the format, this program reads version {known}")]
    Version {
        /// In the header.
        found: u64,
        /// The one understood here.
        known: u64,
    },
    /// The monotonic clock of another boot, or another host.
    #[error(
        "the samples' monotonic clock is of another host or boot (boot id {found}, here {here}): \
         write them here, or on clock \"realtime\""
    )]
    OtherBoot {
        /// In the header.
        found: String,
        /// Of this host.
        here: String,
    },
    /// The times do not meet the run.
    #[error("the samples lie on another clock: none of {count} falls into the run ({detail})")]
    OtherClock {
        /// Samples read.
        count: u64,
        /// How far off they are.
        detail: String,
    },
    /// A relative clock, and nothing seen of the generator's start.
    #[error(
        "the samples count from the generator's own start, which was not seen: let observer start \
         the generator (-- COMMAND)"
    )]
    NoAnchor,
    /// The source cannot be read.
    #[error("cannot read the samples: {0}")]
    Unreadable(String),
}

fn suggestion(adapter: Option<&'static str>) -> String {
    adapter.map_or_else(String::new, |name| format!("; it looks like --samples {name}"))
}

impl IngestError {
    /// The exit code it stands for.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Empty | Self::HeaderOnly { .. } => Exit::SamplesEmpty,
            Self::Truncated => Exit::SamplesTruncated,
            Self::WrongFormat { .. } | Self::Version { .. } => Exit::SamplesFormat,
            Self::OtherBoot { .. } | Self::OtherClock { .. } | Self::NoAnchor => Exit::SamplesClock,
            Self::Unreadable(_) => Exit::SamplesUnreadable,
        }
    }

    /// As the one line for the person; `source` is the file, or `COMMAND's output`.
    #[must_use]
    pub fn at(&self, source: &str) -> Error {
        Error::new(self.exit(), format!("{source}: {self}"))
    }
}
