//! Reading a trace that may be cut anywhere, and that anybody may have written.
//!
//! The messages are taken apart here rather than by the Arrow crate's stream reader, because that
//! one panics on buffers that point outside their message (arrow-ipc 60).

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Message, MessageHeader};
use arrow_schema::{ArrowError, SchemaRef};

use super::{Row, TRACE_VERSION, TraceError, key, schema};

/// Largest description of a message. One of a batch takes a few kilobytes.
const MAX_METADATA_BYTES: u32 = 1 << 20;
/// Largest batch. A full one of this version takes one or two megabytes.
const MAX_BODY_BYTES: u64 = 1 << 28;

/// What a trace held.
#[derive(Debug, PartialEq)]
pub struct Loaded<R> {
    /// The rows that are whole.
    pub rows: Vec<R>,
    /// The stream does not end with its end mark: the writer died or the disk was full. What was
    /// not flushed by then is missing.
    pub truncated: bool,
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

/// Exactly `length` bytes. Grows with the bytes that arrive, so a claimed length costs nothing.
fn bytes(input: &mut impl Read, length: u64) -> Result<Piece<Vec<u8>>, TraceError> {
    let mut bytes = Vec::new();
    input.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(if bytes.len() as u64 == length { Piece::Whole(bytes) } else { Piece::Cut })
}

/// Four bytes, little-endian; a cut continuation mark is still told from another format.
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

/// The message a description describes.
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
pub fn read<R: Row>(input: impl Read) -> Result<Loaded<R>, TraceError> {
    let mut rows = Vec::new();
    let truncated = read_each(input, |batch: &mut Vec<R>| rows.append(batch))?;
    Ok(Loaded { rows, truncated })
}

/// Hands over all whole rows, a batch at a time; whether the stream was cut. Memory is bounded by a small multiple of the input's size: lengths
/// claimed in it are not believed before the bytes have been seen.
///
/// # Errors
/// When the input is not a trace of this content and version, or is damaged other than by being
/// cut.
pub fn read_each<R: Row>(
    mut input: impl Read,
    mut each: impl FnMut(&mut Vec<R>),
) -> Result<bool, TraceError> {
    let mut rows = Vec::new();
    let Piece::Whole(first) = metadata(&mut input)? else { return Ok(true) };
    check_schema::<R>(&message(&first)?)?;
    let schema = Arc::new(schema::<R>());
    loop {
        let metadata = match metadata(&mut input)? {
            Piece::Whole(metadata) => metadata,
            Piece::End => return Ok(false),
            Piece::Cut => return Ok(true),
        };
        let message = message(&metadata)?;
        match body(&mut input, &message)? {
            Piece::Whole(body) => {
                R::decode(&batch(&message, body, &schema)?, &mut rows)?;
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
    // Every row type has columns of eight bytes a row, never empty.
    let Some(rows) = u64::try_from(batch.length()).ok().filter(|rows| *rows <= size / 8) else {
        return false;
    };
    let mut buffers = buffers.iter();
    // The length of the next buffer, if it is inside.
    let mut next = || {
        let buffer = buffers.next()?;
        let offset = u64::try_from(buffer.offset()).ok().filter(|offset| offset % 8 == 0)?;
        let length = u64::try_from(buffer.length()).ok()?;
        offset.checked_add(length).is_some_and(|end| end <= size).then_some(length)
    };
    let mut column = |field: &arrow_schema::Field, node: &arrow_ipc::FieldNode| {
        let validity = next()?;
        let bits = rows.div_ceil(8);
        let valid = node.length() == batch.length()
            && (node.null_count() == 0
                || (1..=node.length()).contains(&node.null_count()) && validity >= bits);
        let values = next()?;
        let fits = match field.data_type().primitive_width() {
            Some(width) => {
                let width = width as u64;
                values % width == 0 && values >= rows * width
            }
            None if *field.data_type() == arrow_schema::DataType::Boolean => values >= bits,
            // Text: offsets, then the bytes.
            None => next().is_some() && values % 4 == 0 && values >= (rows + 1) * 4,
        };
        (valid && fits).then_some(())
    };
    nodes.len() == schema.fields().len()
        && schema.fields().iter().zip(nodes).all(|(field, node)| column(field, node).is_some())
}

fn check_schema<R: Row>(message: &Message<'_>) -> Result<(), TraceError> {
    let found = match message.header_as_schema() {
        Some(found) if message.header_type() == MessageHeader::Schema => found,
        _ => return Err(damaged("a stream that does not begin with its schema")),
    };
    let found = arrow_ipc::convert::try_fb_to_schema(found)?;
    let metadata = |key: &str| found.metadata().get(key).map(String::as_str);
    let Some(content) = metadata(key::CONTENT) else {
        return Err(TraceError::Schema("an Arrow stream, but not one of observer's".to_owned()));
    };
    if content != R::CONTENT {
        let content: String = content.chars().take(40).collect();
        return Err(TraceError::Schema(format!(
            "holds {content:?} where {} were expected",
            R::CONTENT
        )));
    }
    let version = metadata(key::VERSION).and_then(|version| version.parse::<u32>().ok());
    match version {
        Some(TRACE_VERSION) => {}
        Some(version) if version > TRACE_VERSION => {
            return Err(TraceError::Schema(format!(
                "trace version {version} is newer than this observer reads ({TRACE_VERSION}); use \
                 a newer observer"
            )));
        }
        _ => return Err(TraceError::Schema("has no known trace version".to_owned())),
    }
    let wanted = schema::<R>();
    let same = wanted.fields().len() == found.fields().len()
        && wanted.fields().iter().zip(found.fields()).all(|(wanted, found)| {
            wanted.name() == found.name() && wanted.data_type() == found.data_type()
        });
    if !same {
        return Err(TraceError::Schema("has other columns than its version says".to_owned()));
    }
    Ok(())
}
