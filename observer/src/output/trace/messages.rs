//! The messages of a stream, one behind the other; where they have seals, damaged ones are stepped
//! over.

use std::io::{Read, Seek, SeekFrom};

use arrow_ipc::Message;
use arrow_schema::ArrowError;

use super::TraceError;
use super::seal::{self, PREFIX_BYTES, SEAL_BYTES, Seal};

/// Largest description of a message. One of a batch takes a few kilobytes.
const MAX_METADATA_BYTES: u32 = 1 << 20;
/// Largest batch. A full one of this version takes one or two megabytes.
const MAX_BODY_BYTES: u64 = 1 << 28;
/// Bytes looked at together when the next whole message is looked for.
const SCAN_BYTES: u64 = 1 << 16;
/// After so many bytes that were read as parts of damaged messages, the rest is given up: a file can
/// be made in which each byte seems to begin one.
const WASTE_MAX: u64 = 1 << 30;
/// More rows than any stream has.
const ROWS_MAX: u64 = 1 << 48;
/// In front of each message.
const MARK: [u8; 4] = [0xff; 4];

/// Parts of a stream that are damaged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Batches that are damaged or missing between others.
    pub batches: u64,
    /// The first of them, counted from 1.
    pub first: Option<u64>,
    /// Rows that are missing because of that.
    pub rows: u64,
    /// It is not known how many rows the last ones of them had.
    pub more_rows: bool,
    /// Bytes that belong to no batch, or a batch that is there twice.
    pub stray: bool,
    /// The description of the columns is damaged, and was read from a copy.
    pub columns: bool,
}

/// The first message, which describes the columns.
pub(super) struct First {
    /// The description.
    pub(super) metadata: Vec<u8>,
    /// Whether its seal fits, if it has one.
    pub(super) seal_fits: Option<bool>,
}

/// The next message, or the end of a stream.
pub(super) enum Next {
    /// The description without its prefix, and the body.
    Message(Vec<u8>, Vec<u8>),
    /// The end mark.
    End,
    /// The input ended before its end mark.
    Cut,
}

/// What is at a place where a message should be.
enum Head {
    Whole(Vec<u8>),
    End,
    Cut,
    Bad(TraceError),
}

pub(super) fn damaged(problem: &str) -> TraceError {
    TraceError::Arrow(ArrowError::IpcError(problem.to_owned()))
}

/// Parses the description of a message.
pub(super) fn message(metadata: &[u8]) -> Result<Message<'_>, TraceError> {
    arrow_ipc::root_as_message(metadata).map_err(|_| damaged("a message that cannot be parsed"))
}

fn body_bytes(metadata: &[u8]) -> Result<u64, TraceError> {
    let size = u64::try_from(message(metadata)?.bodyLength()).ok();
    size.filter(|size| *size <= MAX_BODY_BYTES)
        .ok_or_else(|| damaged("a batch of implausible size"))
}

/// The messages of a stream.
pub(super) struct Messages<R> {
    input: R,
    /// The batch and the row that should come next.
    next_batch: u64,
    next_row: u64,
    /// Rows up to here were written, by the seals of damaged batches.
    known_rows: u64,
    wasted: u64,
    pub(super) damage: Damage,
}

impl<R: Read + Seek> Messages<R> {
    pub(super) fn new(input: R) -> Self {
        let damage = Damage::default();
        Self { input, next_batch: 0, next_row: 0, known_rows: 0, wasted: 0, damage }
    }

    /// Appends this many more bytes; `false` when there are not as many. The buffer grows with the
    /// bytes that arrive, so a false length in the input costs no memory.
    fn add(&mut self, bytes: &mut Vec<u8>, length: u64) -> std::io::Result<bool> {
        Ok(self.input.by_ref().take(length).read_to_end(bytes)? as u64 == length)
    }

    /// Prefix and description of the next message.
    fn head(&mut self) -> std::io::Result<Head> {
        let mut bytes = Vec::new();
        let whole = self.add(&mut bytes, PREFIX_BYTES as u64)?;
        // A truncated continuation mark is still distinguished from another format.
        if bytes.len() >= MARK.len() && !bytes.starts_with(&MARK) {
            let text = "not an Arrow IPC stream, or damaged".to_owned();
            return Ok(Head::Bad(TraceError::Schema(text)));
        }
        if !whole {
            return Ok(Head::Cut);
        }
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        if length == 0 {
            return Ok(Head::End);
        }
        if length > MAX_METADATA_BYTES {
            return Ok(Head::Bad(damaged("a message of implausible size")));
        }
        let whole = self.add(&mut bytes, length.into())?;
        Ok(if whole { Head::Whole(bytes) } else { Head::Cut })
    }

    /// The first message. `None` when the input ends before it does.
    pub(super) fn columns(&mut self) -> Result<Option<First>, TraceError> {
        let mut head = match self.head()? {
            Head::Whole(head) => head,
            Head::End | Head::Cut => return Ok(None),
            Head::Bad(error) => return Err(error),
        };
        let fits = seal::open(&head).is_some_and(|seal| seal.batch == 0 && seal.fits(&[]));
        let seal_fits = seal::is_there(&head).then_some(fits);
        self.next_batch = 1;
        Ok(Some(First { metadata: head.split_off(PREFIX_BYTES), seal_fits }))
    }

    /// The description of the columns from a copy in one of the batches, when the first message is
    /// damaged; `None` when there is none. Reading goes on with the first whole batch.
    pub(super) fn copy_of_columns(&mut self) -> Result<Option<Vec<u8>>, TraceError> {
        let mut from = 0;
        while self.seek_next(from)? {
            from = self.input.stream_position()?;
            let Head::Whole(head) = self.head()? else { continue };
            if let Some(copy) = seal::copy(&head) {
                let copy = copy[PREFIX_BYTES..].to_vec();
                self.seek_next(0)?;
                self.next_batch = 1;
                self.damage.columns = true;
                return Ok(Some(copy));
            }
            // An earlier writer of this version made no copies.
            if seal::open(&head).is_some_and(|seal| seal.batch.is_power_of_two()) {
                break;
            }
        }
        Ok(None)
    }

    /// The next message of a stream without seals.
    ///
    /// # Errors
    /// When it is damaged other than by being cut.
    pub(super) fn next_plain(&mut self) -> Result<Next, TraceError> {
        let mut head = match self.head()? {
            Head::Whole(head) => head,
            Head::End => return Ok(Next::End),
            Head::Cut => return Ok(Next::Cut),
            Head::Bad(error) => return Err(error),
        };
        let metadata = head.split_off(PREFIX_BYTES);
        let mut body = Vec::new();
        let size = body_bytes(&metadata)?;
        Ok(if self.add(&mut body, size)? { Next::Message(metadata, body) } else { Next::Cut })
    }

    /// The next whole message of a stream with seals, and how many rows are missing in front of it.
    ///
    /// # Errors
    /// When the input cannot be read.
    pub(super) fn next_sealed(&mut self) -> Result<(Next, u64), TraceError> {
        let mut skipped = false;
        loop {
            let from = self.input.stream_position()?;
            let is_damage = match self.head()? {
                Head::End if !self.add(&mut Vec::new(), 1)? => return Ok((Next::End, 0)),
                Head::Whole(head) => {
                    if let Some(seal) = seal::open(&head)
                        && let Ok(size) = body_bytes(&head[PREFIX_BYTES..])
                    {
                        let mut body = Vec::new();
                        if !self.add(&mut body, size)? {
                            return Ok((Next::Cut, 0));
                        }
                        if !seal.fits(&body) {
                            self.known_rows = self.known_rows.max(seal.next_row());
                            self.wasted += size;
                        } else if let Some(missing) = self.accept(&seal, skipped) {
                            let metadata = head[PREFIX_BYTES..].to_vec();
                            return Ok((Next::Message(metadata, body), missing));
                        } else {
                            continue;
                        }
                    }
                    true
                }
                Head::Cut => false,
                Head::End | Head::Bad(_) => true,
            };
            // Not counted here: the seal of the next whole message tells what is missing.
            if self.seek_next(from)? {
                skipped = true;
                continue;
            }
            return Ok((self.end_in_damage(from, is_damage)?, self.known_tail()));
        }
    }

    /// Rows missing in front of a whole message; `None` when it was there before.
    fn accept(&mut self, seal: &Seal, skipped: bool) -> Option<u64> {
        let batch = u64::from(seal.batch);
        self.damage.stray |= skipped && batch == self.next_batch;
        let is_later = batch >= self.next_batch && seal.first_row >= self.next_row;
        if !is_later || seal.first_row > ROWS_MAX {
            self.damage.stray = true;
            return None;
        }
        let missing = seal.first_row - self.next_row;
        self.note_missing(batch - self.next_batch, missing);
        self.next_batch = batch + 1;
        self.next_row = seal.next_row();
        Some(missing)
    }

    fn note_missing(&mut self, batches: u64, rows: u64) {
        if batches > 0 {
            self.damage.first.get_or_insert(self.next_batch);
        }
        self.damage.batches += batches;
        self.damage.rows = self.damage.rows.saturating_add(rows);
    }

    /// Rows that were in damaged batches at the end of the stream.
    fn known_tail(&self) -> u64 {
        self.known_rows.saturating_sub(self.next_row)
    }

    /// There is no whole message from here on.
    fn end_in_damage(&mut self, from: u64, is_damage: bool) -> Result<Next, TraceError> {
        let end = self.input.seek(SeekFrom::End(0))?;
        // An end mark that is damaged itself costs no row.
        if end - from <= PREFIX_BYTES as u64 {
            return Ok(Next::Cut);
        }
        let mut last = Vec::new();
        self.input.seek(SeekFrom::End(-(PREFIX_BYTES as i64)))?;
        self.add(&mut last, PREFIX_BYTES as u64)?;
        let has_end = last == [&MARK[..], &[0; 4]].concat();
        if is_damage || has_end {
            let rows = self.known_tail();
            self.note_missing(1, rows);
            self.damage.more_rows = rows == 0;
        }
        Ok(if has_end { Next::End } else { Next::Cut })
    }

    /// Goes to the next message behind this place whose head is whole; `false` when there is none.
    fn seek_next(&mut self, from: u64) -> std::io::Result<bool> {
        let mut at = from;
        let mut seen = Vec::new();
        while self.wasted <= WASTE_MAX {
            self.input.seek(SeekFrom::Start(at + seen.len() as u64))?;
            let more = self.add(&mut seen, SCAN_BYTES)?;
            for (place, before) in seal::candidates(&seen) {
                let start = (at + place as u64).saturating_sub(before.into());
                if start <= from || before > MAX_METADATA_BYTES {
                    continue;
                }
                let mut head = Vec::new();
                self.input.seek(SeekFrom::Start(start))?;
                let whole = self.add(&mut head, u64::from(before) + SEAL_BYTES as u64)?;
                self.wasted += head.len() as u64;
                // Number 0 is a copy of the columns, inside the batch that has it.
                let is_batch = |seal: Seal| seal.batch > 0;
                if whole && head.starts_with(&MARK) && seal::open(&head).is_some_and(is_batch) {
                    self.input.seek(SeekFrom::Start(start))?;
                    return Ok(true);
                }
            }
            if !more {
                break;
            }
            // A seal may lie on the border.
            let done = seen.len() - (SEAL_BYTES - 1);
            seen.drain(..done);
            at += done as u64;
        }
        Ok(false)
    }
}
