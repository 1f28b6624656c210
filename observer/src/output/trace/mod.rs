//! Trace dumps: events and samples as Arrow IPC streams.
//!
//! A stream is append-only, so a crash costs what was not flushed and at most one torn batch,
//! which the reader leaves out. Text columns are plain, not dictionary-encoded: a dictionary would
//! let a small hostile file blow up in memory when it is read.

mod column;
mod event;
mod read;
mod sample;
mod write;

use arrow_schema::{ArrowError, DataType};

pub use event::EventColumns;
pub use read::{Loaded, read, read_each};
pub use sample::SampleColumns;
pub use write::{BATCH_ROWS, TraceWriter};

/// Version of both trace formats, in the schema's metadata under `observer.trace_version`.
/// Version 2 added changes of floors to the events.
pub const TRACE_VERSION: u32 = 2;

/// Metadata keys of the schema.
pub(crate) mod key {
    /// [`super::TRACE_VERSION`].
    pub(crate) const VERSION: &str = "observer.trace_version";
    /// `events` or `samples`.
    pub(crate) const CONTENT: &str = "observer.content";
    /// The clock of all times.
    pub(crate) const CLOCK: &str = "observer.clock";
    /// Version of the program that wrote it.
    pub(crate) const PROGRAM: &str = "observer.version";
}

/// One column, as documented in docs/TRACE_FORMAT.md.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name, with its unit.
    pub name: &'static str,
    /// Arrow type.
    pub data_type: fn() -> DataType,
    /// Empty where it does not apply.
    pub nullable: bool,
    /// What it holds.
    pub help: &'static str,
}

/// Something that is kept in a trace, a row each.
pub trait Row: Sized {
    /// `events` or `samples`.
    const CONTENT: &'static str;
    /// The columns, in order.
    const COLUMNS: &'static [Column];
    /// Builders of the columns.
    type Columns: Columns<Self>;

    /// Decodes the rows of a batch whose schema was checked.
    ///
    /// # Errors
    /// [`TraceError::Value`] where a cell holds what no writer of this version writes.
    fn decode(batch: &arrow_array::RecordBatch, into: &mut Vec<Self>) -> Result<(), TraceError>;
}

/// Builders of the columns of a [`Row`].
pub trait Columns<R>: Default {
    /// Appends one row.
    fn push(&mut self, row: &R);
    /// The arrays, in the order of the row's columns; leaves the builders empty.
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
    /// A cell that no writer of this version writes.
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
    /// No room on the disk (or no more of this user's share).
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let Self::Io(error) = self else { return false };
        crate::output::is_disk_full(error)
    }
}

/// The schema of a row type, metadata included.
#[must_use]
pub fn schema<R: Row>() -> arrow_schema::Schema {
    let fields: Vec<_> = R::COLUMNS
        .iter()
        .map(|column| arrow_schema::Field::new(column.name, (column.data_type)(), column.nullable))
        .collect();
    arrow_schema::Schema::new(fields).with_metadata(
        [
            (key::VERSION, TRACE_VERSION.to_string()),
            (key::CONTENT, R::CONTENT.to_owned()),
            (key::CLOCK, "CLOCK_MONOTONIC".to_owned()),
            (key::PROGRAM, env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    )
}

/// The columns of a row type as a Markdown table.
#[must_use]
pub fn columns_markdown<R: Row>() -> String {
    let mut text = String::from("| column | type | empty | content |\n| --- | --- | --- | --- |\n");
    for column in R::COLUMNS {
        let empty = if column.nullable { "where it does not apply" } else { "never" };
        let data_type = (column.data_type)();
        text += &format!("| `{}` | {data_type} | {empty} | {} |\n", column.name, column.help);
    }
    text
}

#[cfg(test)]
mod tests;
