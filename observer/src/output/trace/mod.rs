//! Trace dumps: events and samples as Arrow IPC streams, one stream a kind of event.
//!
//! A stream is append-only, so a crash loses the rows that were not flushed and at most one
//! incomplete batch, which the reader ignores. Columns are read by name: a stream of another
//! version may have more of them, and those that this version does not know are skipped. Text
//! columns are plain, not dictionary-encoded: a dictionary would let a small hostile file blow up
//! in memory when it is read.

mod column;
mod event;
mod messages;
mod read;
mod sample;
mod seal;
mod write;

use arrow_schema::{ArrowError, Schema};

pub use event::{EventColumns, EventReader, TraceEvent, common_markdown, fields_markdown};
pub use messages::Damage;
pub use read::{Ended, Loaded, Reader, read, read_each};
pub use sample::{SampleColumns, SampleReader, columns_markdown};
pub use write::{BATCH_ROWS, TraceWriter};

/// Version of the trace formats, in the schema's metadata under `observer.trace_version`.
/// Version 2 added changes of floors to the events; version 3 gave each kind of event a stream of
/// its own; version 4 seals each message with checksums. Columns may be added within a version.
pub const TRACE_VERSION: u32 = 4;
/// The first version with seals. No single damaged bit makes an older version of it.
const SEALED_VERSION: u32 = 4;

/// Metadata keys of the schema.
pub(crate) mod key {
    /// [`super::TRACE_VERSION`].
    pub(crate) const VERSION: &str = "observer.trace_version";
    /// `event` (of one kind), `events` (of all kinds, version 2 and before) or `samples`.
    pub(crate) const CONTENT: &str = "observer.content";
    /// The kind of event.
    pub(crate) const KIND: &str = "observer.kind";
    /// The clock of all times.
    pub(crate) const CLOCK: &str = "observer.clock";
    /// The run that the stream is part of, as in `run.json`.
    pub(crate) const RUN: &str = "observer.run_id";
    /// Version of the program that wrote it.
    pub(crate) const PROGRAM: &str = "observer.version";
}

/// Builders of the columns of a stream.
pub trait Columns {
    /// What becomes a row.
    type Row;

    /// The columns, with the stream's metadata.
    fn schema(&self) -> Schema;
    /// Appends one row.
    fn push(&mut self, row: &Self::Row);
    /// The arrays, in the order of the schema; leaves the builders empty.
    fn finish(&mut self) -> Vec<arrow_array::ArrayRef>;
}

/// Why a trace could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Writing or reading failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The stream is not an Arrow IPC stream, or is damaged.
    #[error("not a readable Arrow stream: {0}")]
    Arrow(ArrowError),
    /// An Arrow stream, but not of this content and version.
    #[error("{0}")]
    Schema(String),
    /// A stream of another run.
    #[error("it was written by another run, so it is left out")]
    OtherRun,
    /// A stream of events of a kind that this version does not know.
    #[error("events of kind {0:?}, which this observer does not know; use a newer observer")]
    UnknownKind(String),
    /// A cell with a value that no writer of this version writes.
    #[error("column {column}, row {row}: {problem}")]
    Value {
        /// The column.
        column: &'static str,
        /// The row in its batch.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An earlier write failed; the stream ends there.
    #[error("an earlier write failed, so nothing more is written")]
    Broken,
}

impl From<ArrowError> for TraceError {
    fn from(error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, source) => Self::Io(source),
            other => Self::Arrow(other),
        }
    }
}

impl TraceError {
    /// No room on the disk, or this user's quota is used up.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let Self::Io(error) = self else { return false };
        crate::output::is_disk_full(error)
    }
}

/// The metadata of a stream of this content.
fn metadata(content: &str) -> std::collections::HashMap<String, String> {
    [
        (key::VERSION, TRACE_VERSION.to_string()),
        (key::CONTENT, content.to_owned()),
        (key::CLOCK, "CLOCK_MONOTONIC".to_owned()),
        (key::PROGRAM, env!("CARGO_PKG_VERSION").to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The content that a stream's metadata names, if its version can be read.
fn content(schema: &Schema) -> Result<&str, TraceError> {
    let metadata = |key: &str| schema.metadata().get(key).map(String::as_str);
    let Some(content) = metadata(key::CONTENT) else {
        return Err(TraceError::Schema("an Arrow stream, but not one of observer's".to_owned()));
    };
    match metadata(key::VERSION).and_then(|version| version.parse::<u32>().ok()) {
        Some(1..=TRACE_VERSION) => Ok(content),
        Some(version) if version > TRACE_VERSION => Err(TraceError::Schema(format!(
            "trace version {version} is newer than this observer reads ({TRACE_VERSION}); use a \
             newer observer"
        ))),
        _ => Err(TraceError::Schema("has no known trace version".to_owned())),
    }
}

/// Whether the messages of a stream have seals.
fn is_sealed(schema: &Schema) -> bool {
    let version = schema.metadata().get(key::VERSION).and_then(|version| version.parse().ok());
    version.is_some_and(|version: u32| version >= SEALED_VERSION)
}

/// A stream that holds something else.
fn other_content(found: &str, wanted: &str) -> TraceError {
    let found = crate::text::clean(found, 40);
    TraceError::Schema(format!("holds {found:?} where {wanted} were expected"))
}

#[cfg(test)]
mod tests;
