//! Reading a trace that may be cut anywhere and may come from an untrusted source.
//!
//! This module parses the messages itself, because the Arrow crate's stream reader panics on
//! buffers that point outside their message (arrow-ipc 60).

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Message, MessageHeader};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use super::messages::{Damage, First, Messages, Next, damaged, message};
use super::{TraceError, content, is_sealed, key};

/// Deepest nesting of a column.
const MAX_DEPTH: u32 = 4;
/// The contents of a trace.
#[derive(Debug, PartialEq)]
pub struct Loaded<R> {
    /// The complete rows.
    pub rows: Vec<R>,
    /// The stream does not end with its end mark: the writer died or the disk was full. Rows that
    /// were not flushed by then are missing.
    pub truncated: bool,
    /// What was skipped.
    pub damage: Damage,
}

/// Takes rows out of batches, by the names of columns.
pub trait Reader {
    /// What a row becomes.
    type Row;

    /// Checks the stream's content.
    ///
    /// # Errors
    /// When it holds something else, or lacks a column.
    fn open(&mut self, schema: &Schema) -> Result<(), TraceError>;

    /// Decodes the rows of a batch.
    ///
    /// # Errors
    /// When a cell holds a value that no writer writes.
    fn read(&mut self, batch: &RecordBatch, into: &mut Vec<Self::Row>) -> Result<(), TraceError>;

    /// This many rows are missing here.
    fn skip(&mut self, _rows: u64) {}
}

/// How reading a stream ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Without its end mark.
    pub truncated: bool,
    /// What was skipped.
    pub damage: Damage,
}

/// Reads all whole rows into memory. See [`read_each`].
///
/// # Errors
/// As [`read_each`].
pub fn read<R: Reader>(
    input: impl Read + Seek,
    run_id: Option<&str>,
    reader: &mut R,
) -> Result<Loaded<R::Row>, TraceError> {
    let mut rows = Vec::new();
    let ended = read_each(input, run_id, reader, |batch: &mut Vec<R::Row>| rows.append(batch))?;
    Ok(Loaded { rows, truncated: ended.truncated, damage: ended.damage })
}

/// Passes on all complete rows, a batch at a time. Memory is bounded by a small multiple of the
/// input's size: lengths in the input are not trusted before the bytes have been read. Where
/// messages have seals, a damaged one is skipped, and reading goes on behind it.
///
/// # Errors
/// When the input is not such a trace, or that of another run than `run_id`; when its description of
/// the columns is damaged, and no batch has a whole copy; and, where messages have no seals, when it is
/// damaged other than by being cut.
pub fn read_each<R: Reader>(
    input: impl Read + Seek,
    run_id: Option<&str>,
    reader: &mut R,
    mut each: impl FnMut(&mut Vec<R::Row>),
) -> Result<Ended, TraceError> {
    let mut messages = Messages::new(input);
    let mut rows = Vec::new();
    let schema = match columns(&mut messages) {
        Ok(Some(schema)) => schema,
        Err(TraceError::Io(error)) => return Err(error.into()),
        found => match (messages.copy_of_columns()?, found) {
            (Some(copy), _) => schema(&message(&copy)?)?,
            (None, Err(error)) => return Err(error),
            (None, Ok(_)) => return Ok(Ended { truncated: true, ..Ended::default() }),
        },
    };
    let schema = Arc::new(schema);
    let sealed = is_sealed(&schema);
    if run_id.is_some_and(|id| schema.metadata().get(key::RUN).is_none_or(|found| found != id)) {
        return Err(TraceError::OtherRun);
    }
    reader.open(&schema)?;
    loop {
        let (next, missing) =
            if sealed { messages.next_sealed()? } else { (messages.next_plain()?, 0) };
        if missing > 0 {
            reader.skip(missing);
        }
        match next {
            Next::Message(metadata, body) => {
                reader.read(&batch(&message(&metadata)?, body, &schema)?, &mut rows)?;
                each(&mut rows);
                rows.clear();
            }
            Next::End => return Ok(Ended { truncated: false, damage: messages.damage }),
            Next::Cut => return Ok(Ended { truncated: true, damage: messages.damage }),
        }
    }
}

/// The columns, going by the first message. `None` when the input ends before it does.
fn columns(messages: &mut Messages<impl Read + Seek>) -> Result<Option<Schema>, TraceError> {
    let Some(First { metadata, seal_fits }) = messages.columns()? else { return Ok(None) };
    let schema = schema(&message(&metadata)?)?;
    // What a later version writes need not have a seal.
    let has_seal = is_sealed(&schema) && content(&schema).is_ok();
    if seal_fits == Some(false) || has_seal && seal_fits.is_none() {
        return Err(damaged("the description of its columns does not match its checksum"));
    }
    Ok(Some(schema))
}

fn batch(
    message: &Message<'_>,
    body: Vec<u8>,
    schema: &SchemaRef,
) -> Result<RecordBatch, TraceError> {
    let batch =
        message.header_as_record_batch().ok_or_else(|| damaged("a message that is no batch"))?;
    if batch.compression().is_some() {
        return Err(damaged("a compressed batch, which no observer writes"));
    }
    if !plausible(&batch, body.len() as u64, schema) {
        return Err(damaged("a batch whose parts do not fit it"));
    }
    let decoded = RecordBatchDecoder::try_new(
        &body.into(),
        batch,
        schema.clone(),
        &HashMap::new(),
        &message.version(),
    )?
    .read_record_batch()?;
    Ok(decoded)
}

/// Whether the parts of a batch lie inside its body and have the sizes its row count asks for.
fn plausible(batch: &arrow_ipc::RecordBatch<'_>, size: u64, schema: &SchemaRef) -> bool {
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else { return false };
    // Every stream has columns of eight bytes a row, never empty.
    let Some(rows) = u64::try_from(batch.length()).ok().filter(|rows| *rows <= size / 8) else {
        return false;
    };
    let mut parts = Parts { nodes: nodes.iter(), buffers: buffers.iter(), size };
    schema.fields().iter().all(|field| parts.column(field, rows, 0).is_some())
        && parts.nodes.next().is_none()
}

/// The parts of a batch that no column has claimed yet.
struct Parts<N, B> {
    nodes: N,
    buffers: B,
    size: u64,
}

impl<'a, N, B> Parts<N, B>
where
    N: Iterator<Item = &'a arrow_ipc::FieldNode> + Clone,
    B: Iterator<Item = &'a arrow_ipc::Buffer>,
{
    /// The length of the next buffer, if it is inside.
    fn buffer(&mut self) -> Option<u64> {
        let buffer = self.buffers.next()?;
        let offset = u64::try_from(buffer.offset()).ok().filter(|offset| offset % 8 == 0)?;
        let length = u64::try_from(buffer.length()).ok()?;
        offset.checked_add(length).is_some_and(|end| end <= self.size).then_some(length)
    }

    /// The next buffer, if it holds this many values of this many bytes.
    fn values(&mut self, count: u64, width: u64) -> Option<()> {
        let length = self.buffer()?;
        (length % width == 0 && length >= count.checked_mul(width)?).then_some(())
    }

    /// Claims the parts of a column of this many rows; `None` when they do not fit, or it is of a
    /// type that no version of observer writes.
    fn column(&mut self, field: &Field, rows: u64, depth: u32) -> Option<()> {
        let node = self.nodes.next()?;
        let validity = self.buffer()?;
        let bits = rows.div_ceil(8);
        let nulls = u64::try_from(node.null_count()).ok()?;
        if u64::try_from(node.length()).ok()? != rows
            || nulls > rows
            || (nulls > 0 && validity < bits)
            || depth > MAX_DEPTH
        {
            return None;
        }
        match field.data_type() {
            DataType::Boolean => self.values(bits, 1),
            DataType::Utf8 | DataType::Binary => {
                self.values(rows + 1, 4)?;
                self.values(0, 1)
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.values(rows + 1, 8)?;
                self.values(0, 1)
            }
            DataType::FixedSizeBinary(width) => {
                self.values(rows, u64::try_from(*width).ok().filter(|width| *width > 0)?)
            }
            DataType::List(item) => {
                self.values(rows + 1, 4)?;
                self.items(item, depth)
            }
            DataType::LargeList(item) => {
                self.values(rows + 1, 8)?;
                self.items(item, depth)
            }
            DataType::Struct(fields) => fields
                .iter()
                .all(|field| self.column(field, rows, depth + 1).is_some())
                .then_some(()),
            other => self.values(rows, other.primitive_width()? as u64),
        }
    }

    /// Claims the column of a list's items; their number is in its own node.
    fn items(&mut self, item: &Field, depth: u32) -> Option<()> {
        let count = u64::try_from(self.nodes.clone().next()?.length()).ok()?;
        // A bit an item at least.
        if count > self.size.saturating_mul(8) {
            return None;
        }
        self.column(item, count, depth + 1)
    }
}

fn schema(message: &Message<'_>) -> Result<Schema, TraceError> {
    match message.header_as_schema() {
        Some(found) if message.header_type() == MessageHeader::Schema => {
            Ok(arrow_ipc::convert::try_fb_to_schema(found)?)
        }
        _ => Err(damaged("a stream that does not begin with its schema")),
    }
}
