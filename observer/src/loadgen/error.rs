//! What can be wrong with samples, and the messages about it.

use crate::error::{Error, Exit};

/// Why there are no usable samples.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IngestError {
    /// Nothing was written.
    #[error("no samples: the generator wrote nothing")]
    Empty,
    /// A header or an end mark, but no request.
    #[error("no samples: there is a header but no request ({hint})")]
    HeaderOnly {
        /// What this means for the generator.
        hint: &'static str,
    },
    /// The stream ends inside its first record.
    #[error("the samples end in the middle of the first record: there is no complete record")]
    Truncated,
    /// Not the format that was named.
    #[error("not {expected} sample format: {detail}{}", suggestion(*.looks_like))]
    WrongFormat {
        /// The adapter that was asked for.
        expected: &'static str,
        /// What was found.
        detail: String,
        /// The adapter that recognises it.
        looks_like: Option<&'static str>,
    },
    /// The format, in a version this program does not know.
    #[error("the samples have version {found} of the format; this program reads version {known}")]
    Version {
        /// In the header.
        found: u64,
        /// The one understood here.
        known: u64,
    },
    /// The monotonic clock of another boot, or another host.
    #[error(
        "the samples use the monotonic clock of another host or boot (boot id {found}, here \
         {here}): write them on this host, or with clock \"realtime\""
    )]
    OtherBoot {
        /// In the header.
        found: String,
        /// Of this host.
        here: String,
    },
    /// All samples are older than the run.
    #[error(
        "no sample is of this run: all {count} were sent before it began ({detail}); start the \
         generator during the run"
    )]
    BeforeRun {
        /// Samples read.
        count: u64,
        /// How far off they are.
        detail: String,
    },
    /// No sample is within the run.
    #[error("the samples use another clock: none of {count} is within the run ({detail})")]
    OtherClock {
        /// Samples read.
        count: u64,
        /// How far off they are.
        detail: String,
    },
    /// A relative clock, and nothing seen of the generator's start.
    #[error(
        "the samples count from the start of the generator, which observer did not see: let \
         observer start the generator (-- COMMAND)"
    )]
    NoAnchor,
    /// The source cannot be read.
    #[error("cannot read the samples: {0}")]
    Unreadable(String),
}

fn suggestion(adapter: Option<&'static str>) -> String {
    adapter.map_or_else(String::new, |name| format!("; it looks like {name}: try --samples {name}"))
}

impl IngestError {
    /// The exit code for this error.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Empty | Self::HeaderOnly { .. } => Exit::SamplesEmpty,
            Self::Truncated => Exit::SamplesTruncated,
            Self::WrongFormat { .. } | Self::Version { .. } => Exit::SamplesFormat,
            Self::OtherBoot { .. }
            | Self::BeforeRun { .. }
            | Self::OtherClock { .. }
            | Self::NoAnchor => Exit::SamplesClock,
            Self::Unreadable(_) => Exit::SamplesUnreadable,
        }
    }

    /// The one-line message; `source` is the file, or `COMMAND's output`.
    #[must_use]
    pub fn at(&self, source: &str) -> Error {
        Error::new(self.exit(), format!("{source}: {self}"))
    }
}
