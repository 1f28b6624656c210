//! Writing a trace.

use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::SchemaRef;

use super::{Columns, Row, TraceError, schema};

/// Rows that make a batch of themselves; [`TraceWriter::flush`] makes smaller ones.
pub const BATCH_ROWS: usize = 8_192;

/// Appends rows to an Arrow IPC stream.
///
/// A row is in the file once its batch is full or [`TraceWriter::flush`] was called; call that
/// about once a second. After a failed write (a full disk) the stream is left as it is, readable
/// up to its last whole batch, and every later call fails with [`TraceError::Broken`].
pub struct TraceWriter<R: Row, W: Write> {
    stream: StreamWriter<BufWriter<W>>,
    schema: SchemaRef,
    columns: R::Columns,
    pending: usize,
    broken: bool,
    row: PhantomData<fn(R)>,
}

impl<R: Row, W: Write> TraceWriter<R, W> {
    /// Starts a stream: writes its schema.
    ///
    /// # Errors
    /// When the schema cannot be written.
    pub fn new(sink: W) -> Result<Self, TraceError> {
        let schema = Arc::new(schema::<R>());
        let mut stream = StreamWriter::try_new(BufWriter::with_capacity(1 << 18, sink), &schema)?;
        stream.flush()?;
        Ok(Self {
            stream,
            schema,
            columns: R::Columns::default(),
            pending: 0,
            broken: false,
            row: PhantomData,
        })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// When a batch was due and could not be written.
    pub fn append(&mut self, row: &R) -> Result<(), TraceError> {
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
