//! Writing a trace.

use std::io::Write;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::SchemaRef;

use super::{Columns, TraceError, key, seal};

/// Memory that a stream keeps between two batches.
const BUFFER_BYTES: usize = 1 << 16;

/// Rows of a full batch; [`TraceWriter::flush`] writes smaller ones.
pub const BATCH_ROWS: usize = 8_192;

/// Appends rows to an Arrow IPC stream.
///
/// A row is in the file once its batch is full or [`TraceWriter::flush`] was called; call that
/// about once a second. After a failed write (a full disk) the stream is left as it is, readable
/// up to its last whole batch, and every later call fails with [`TraceError::Broken`].
pub struct TraceWriter<C: Columns, W: Write> {
    /// Encodes one message at a time.
    stream: StreamWriter<Vec<u8>>,
    sink: W,
    /// Rows and batches written so far.
    rows: u64,
    batches: u32,
    schema: SchemaRef,
    /// The message that describes the columns, with its seal.
    described: Vec<u8>,
    columns: C,
    pending: usize,
    broken: bool,
}

impl<C: Columns, W: Write> TraceWriter<C, W> {
    /// Starts a stream: writes its schema, with the id of the run that it is part of.
    ///
    /// # Errors
    /// When the schema cannot be written.
    pub fn new(sink: W, columns: C, run_id: Option<&str>) -> Result<Self, TraceError> {
        let mut schema = columns.schema();
        let run_id = run_id.map(|id| (key::RUN.to_owned(), id.to_owned()));
        schema.metadata.extend(run_id);
        let schema = Arc::new(schema);
        let stream = StreamWriter::try_new(Vec::new(), &schema)?;
        let (rows, batches, pending, broken) = (0, 0, 0, false);
        let described = Vec::new();
        let mut writer =
            Self { stream, sink, rows, batches, schema, described, columns, pending, broken };
        writer.put_message(0)?;
        Ok(writer)
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
        let pending = std::mem::take(&mut self.pending);
        let arrays = self.columns.finish();
        let written = RecordBatch::try_new(self.schema.clone(), arrays)
            .and_then(|batch| self.stream.write(&batch));
        self.note(written)?;
        self.put_message(pending)
    }

    /// Writes the message of this many rows that was just encoded.
    fn put_message(&mut self, rows: usize) -> Result<(), TraceError> {
        let message = self.stream.get_mut();
        let is_first = self.batches == 0;
        // A stream whose columns are damaged can be read by the copies. However long it is, they are
        // few.
        let has_copy = self.batches.is_power_of_two();
        let copy = if has_copy { self.described.as_slice() } else { &[] };
        seal::seal(message, copy, self.rows, self.batches, rows as u32);
        if is_first {
            self.described.clone_from(message);
        }
        let written = self.sink.write_all(message);
        message.clear();
        message.shrink_to(BUFFER_BYTES);
        self.rows += rows as u64;
        self.batches += 1;
        self.note(written.map_err(Into::into))
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
        let flushed = self.sink.flush();
        self.note(flushed.map_err(Into::into))
    }

    /// Flushes, and marks the end of the stream: a reader then knows that nothing is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(), TraceError> {
        self.flush()?;
        let finished = self.stream.finish();
        self.note(finished)?;
        let ended = self.sink.write_all(self.stream.get_ref()).and_then(|()| self.sink.flush());
        self.note(ended.map_err(Into::into))
    }
}
