//! Writing a trace.

use std::io::{BufWriter, Write};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::SchemaRef;

use super::{Columns, TraceError};

/// Bytes that are collected before they are written to the file.
const BUFFER_BYTES: usize = 1 << 16;

/// Rows of a full batch; [`TraceWriter::flush`] writes smaller ones.
pub const BATCH_ROWS: usize = 8_192;

/// Appends rows to an Arrow IPC stream.
///
/// A row is in the file once its batch is full or [`TraceWriter::flush`] was called; call that
/// about once a second. After a failed write (a full disk) the stream is left as it is, readable
/// up to its last whole batch, and every later call fails with [`TraceError::Broken`].
pub struct TraceWriter<C: Columns, W: Write> {
    stream: StreamWriter<BufWriter<W>>,
    schema: SchemaRef,
    columns: C,
    pending: usize,
    broken: bool,
}

impl<C: Columns, W: Write> TraceWriter<C, W> {
    /// Starts a stream: writes its schema.
    ///
    /// # Errors
    /// When the schema cannot be written.
    pub fn new(sink: W, columns: C) -> Result<Self, TraceError> {
        let schema = Arc::new(columns.schema());
        let sink = BufWriter::with_capacity(BUFFER_BYTES, sink);
        let mut stream = StreamWriter::try_new(sink, &schema)?;
        stream.flush()?;
        Ok(Self { stream, schema, columns, pending: 0, broken: false })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// When a batch was due and could not be written.
    pub fn append(&mut self, row: &C::Row) -> Result<(), TraceError> {
        if self.broken {
            return Err(TraceError::Broken);
        }
        self.columns.push(row);
        self.pending += 1;
        if self.pending >= BATCH_ROWS { self.write_batch() } else { Ok(()) }
    }

    fn write_batch(&mut self) -> Result<(), TraceError> {
        if self.broken {
            return Err(TraceError::Broken);
        }
        if self.pending == 0 {
            return Ok(());
        }
        self.pending = 0;
        let arrays = self.columns.finish();
        let written = RecordBatch::try_new(self.schema.clone(), arrays)
            .and_then(|batch| self.stream.write(&batch));
        self.note(written)
    }

    fn note(&mut self, written: Result<(), arrow_schema::ArrowError>) -> Result<(), TraceError> {
        self.broken |= written.is_err();
        written.map_err(TraceError::from)
    }

    /// Puts everything appended so far into the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.write_batch()?;
        let flushed = self.stream.flush();
        self.note(flushed)
    }

    /// Flushes, and marks the end of the stream: a reader then knows that nothing is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(), TraceError> {
        self.flush()?;
        let finished = self.stream.finish();
        self.note(finished)
    }
}
