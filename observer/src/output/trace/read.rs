//! Reading a trace that may be cut anywhere and may come from an untrusted source.
//!
//! This module parses the messages itself, because the Arrow crate's stream reader panics on
//! buffers that point outside their message (arrow-ipc 60).

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Message, MessageHeader};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};

use super::TraceError;

/// Largest description of a message. One of a batch takes a few kilobytes.
const MAX_METADATA_BYTES: u32 = 1 << 20;
/// Deepest nesting of a column.
const MAX_DEPTH: u32 = 4;
/// Largest batch. A full one of this version takes one or two megabytes.
const MAX_BODY_BYTES: u64 = 1 << 28;

/// The contents of a trace.
#[derive(Debug, PartialEq)]
pub struct Loaded<R> {
    /// The complete rows.
    pub rows: Vec<R>,
    /// The stream does not end with its end mark: the writer died or the disk was full. Rows that
    /// were not flushed by then are missing.
    pub truncated: bool,
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
}

/// How reading a piece of the stream ended.
enum Piece<T> {
    Whole(T),
    /// The end mark.
    End,
    /// The input ended before the piece did.
    Cut,
}

fn damaged(problem: &str) -> TraceError {
    TraceError::Arrow(ArrowError::IpcError(problem.to_owned()))
}

/// Exactly `length` bytes. The buffer grows with the bytes that arrive, so a false length in the
/// input costs no memory.
fn bytes(input: &mut impl Read, length: u64) -> Result<Piece<Vec<u8>>, TraceError> {
    let mut bytes = Vec::new();
    input.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 == length { Piece::Whole(bytes) } else { Piece::Cut })
}

/// Four bytes, little-endian; a truncated continuation mark is still distinguished from another
/// format.
fn word(input: &mut impl Read) -> Result<Piece<u32>, TraceError> {
    let mut word = [0u8; 4];
    let mut filled = 0;
    while filled < word.len() {
        match input.read(&mut word[filled..]) {
            Ok(0) => return Ok(Piece::Cut),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Piece::Whole(u32::from_le_bytes(word)))
}

/// The description of the next message.
fn metadata(input: &mut impl Read) -> Result<Piece<Vec<u8>>, TraceError> {
    let Piece::Whole(mark) = word(input)? else { return Ok(Piece::Cut) };
    if mark != u32::MAX {
        return Err(TraceError::Schema("not an Arrow IPC stream, or damaged".to_owned()));
    }
    let Piece::Whole(length) = word(input)? else { return Ok(Piece::Cut) };
    match length {
        0 => Ok(Piece::End),
        length if length > MAX_METADATA_BYTES => Err(damaged("a message of implausible size")),
        length => bytes(input, length.into()),
    }
}

/// Parses the description of a message.
fn message(metadata: &[u8]) -> Result<Message<'_>, TraceError> {
    arrow_ipc::root_as_message(metadata).map_err(|_| damaged("a message that cannot be parsed"))
}

fn body(input: &mut impl Read, message: &Message<'_>) -> Result<Piece<Vec<u8>>, TraceError> {
    match u64::try_from(message.bodyLength()) {
        Ok(length) if length <= MAX_BODY_BYTES => bytes(input, length),
        _ => Err(damaged("a batch of implausible size")),
    }
}

/// Reads all whole rows into memory. See [`read_each`].
///
/// # Errors
/// As [`read_each`].
pub fn read<R: Reader>(input: impl Read, reader: &mut R) -> Result<Loaded<R::Row>, TraceError> {
    let mut rows = Vec::new();
    let truncated = read_each(input, reader, |batch: &mut Vec<R::Row>| rows.append(batch))?;
    Ok(Loaded { rows, truncated })
}

/// Passes on all complete rows, a batch at a time, and returns whether the stream was cut. Memory
/// is bounded by a small multiple of the input's size: lengths in the input are not trusted before
/// the bytes have been read.
///
/// # Errors
/// When the input is not such a trace, or is damaged other than by being cut.
pub fn read_each<R: Reader>(
    mut input: impl Read,
    reader: &mut R,
    mut each: impl FnMut(&mut Vec<R::Row>),
) -> Result<bool, TraceError> {
    let mut rows = Vec::new();
    let Piece::Whole(first) = metadata(&mut input)? else { return Ok(true) };
    let schema = Arc::new(schema(&message(&first)?)?);
    reader.open(&schema)?;
    loop {
        let metadata = match metadata(&mut input)? {
            Piece::Whole(metadata) => metadata,
            Piece::End => return Ok(false),
            Piece::Cut => return Ok(true),
        };
        let message = message(&metadata)?;
        match body(&mut input, &message)? {
            Piece::Whole(body) => {
                reader.read(&batch(&message, body, &schema)?, &mut rows)?;
                each(&mut rows);
                rows.clear();
            }
            _ => return Ok(true),
        }
    }
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
