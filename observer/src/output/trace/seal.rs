//! The seal of a message: checksums, and which rows the message holds.
//!
//! It lies between a message's description and its body, inside the length that the message gives
//! for its description. The Arrow format pads there, so other readers step over it.

/// Begins a seal.
pub(super) const MAGIC: [u8; 8] = *b"OBSVSEAL";
/// Whole words of eight bytes, as the body has to begin on one.
pub(super) const SEAL_BYTES: usize = 40;
/// Continuation mark and length, in front of the description.
pub(super) const PREFIX_BYTES: usize = 8;
/// The part of a seal that the checksum of the head covers; four zeros follow the checksum.
const COVERED_BYTES: usize = SEAL_BYTES - 8;
/// Where in a seal the number of bytes in front of it is.
const BEFORE_AT: usize = 24;

/// What a seal says of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    /// The row in the stream that is first in the message.
    pub(super) first_row: u64,
    /// Number of the message: the columns are 0, batches count from 1.
    pub(super) batch: u32,
    /// Rows in the message.
    pub(super) rows: u32,
    body_sum: u32,
}

impl Seal {
    /// The row after its last one.
    pub(super) fn next_row(&self) -> u64 {
        self.first_row.saturating_add(self.rows.into())
    }

    /// Whether this is the body as it was written.
    pub(super) fn fits(&self, body: &[u8]) -> bool {
        self.body_sum == crc32fast::hash(body)
    }
}

/// The four bytes there, little-endian.
fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_le_bytes(word.unwrap_or_default())
}

fn head_sum(before: &[u8], covered: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(before);
    sum.update(covered);
    sum.finalize()
}

/// Puts a seal into a whole message, the end mark excepted; in front of it, a copy of the message
/// with the columns, or nothing.
pub(super) fn seal(message: &mut Vec<u8>, copy: &[u8], first_row: u64, batch: u32, rows: u32) {
    let length = word(message, 4) as usize;
    let end = PREFIX_BYTES + length;
    message.splice(end..end, copy.iter().copied());
    let (length, end) = (length + copy.len(), end + copy.len());
    message[4..PREFIX_BYTES].copy_from_slice(&((length + SEAL_BYTES) as u32).to_le_bytes());
    let mut seal = [&MAGIC[..], &first_row.to_le_bytes()].concat();
    for number in [batch, rows, end as u32, crc32fast::hash(&message[end..])] {
        seal.extend(number.to_le_bytes());
    }
    seal.extend(head_sum(&message[..end], &seal).to_le_bytes());
    seal.resize(SEAL_BYTES, 0);
    message.splice(end..end, seal);
}

/// Whether something at the end of a message's head begins like a seal.
pub(super) fn is_there(head: &[u8]) -> bool {
    head.len().checked_sub(SEAL_BYTES).is_some_and(|at| head[at..].starts_with(&MAGIC))
}

/// The seal at the end of a message's head (prefix and description); `None` when the head is
/// damaged or has none.
pub(super) fn open(head: &[u8]) -> Option<Seal> {
    let (before, seal) = head.split_at(head.len().checked_sub(SEAL_BYTES)?);
    let (covered, rest) = seal.split_at(COVERED_BYTES);
    let whole = covered.starts_with(&MAGIC)
        && word(seal, BEFORE_AT) as usize == before.len()
        && rest[4..] == [0; 4]
        && word(rest, 0) == head_sum(before, covered);
    let first_row = u64::from(word(seal, 8)) | u64::from(word(seal, 12)) << 32;
    whole.then_some(Seal {
        first_row,
        batch: word(seal, 16),
        rows: word(seal, 20),
        body_sum: word(seal, 28),
    })
}

/// The copy of the message with the columns that lies in front of the seal of a whole message.
pub(super) fn copy(head: &[u8]) -> Option<&[u8]> {
    let before_seal = &head[..head.len().checked_sub(SEAL_BYTES)?];
    let at = before_seal.len().checked_sub(SEAL_BYTES)?;
    let start = at.checked_sub(word(before_seal, at + BEFORE_AT) as usize)?;
    let copy = &before_seal[start..];
    open(copy).filter(|seal| seal.batch == 0 && seal.fits(&[])).map(|_| copy)
}

/// Where seals may be in these bytes, each with the number of bytes that it says are in front of it.
pub(super) fn candidates(bytes: &[u8]) -> impl Iterator<Item = (usize, u32)> {
    let places = bytes.windows(SEAL_BYTES).enumerate();
    places
        .filter(|(_, seal)| seal.starts_with(&MAGIC))
        .map(|(at, seal)| (at, word(seal, BEFORE_AT)))
}
