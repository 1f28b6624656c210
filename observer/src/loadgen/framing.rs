//! Cuts a byte stream into whole records, whatever the pieces it comes in.

use bytes::BytesMut;

/// How the records of a format are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One record a line.
    Lines,
    /// RFC 4180: a line end inside double quotes belongs to the field.
    Csv,
}

/// Longest record; a longer one is skipped and counted. Response bodies may be in the records
/// (vegeta without `-max-body 0`), so this is not small.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// Fed pieces are worked through in steps of this size, so that memory stays near the size of one
/// record even when a whole file comes in one piece.
const STEP_BYTES: usize = 64 << 10;

/// The cutter.
#[derive(Debug)]
pub(super) struct Framer {
    framing: Framing,
    pending: BytesMut,
    scanned: usize,
    in_quotes: bool,
    discarding: bool,
    /// Records longer than the limit.
    pub(super) too_long: u64,
    limit: usize,
}

impl Framer {
    pub(super) fn new(framing: Framing) -> Self {
        Self::with_limit(framing, MAX_RECORD_BYTES)
    }

    pub(super) fn with_limit(framing: Framing, limit: usize) -> Self {
        Self {
            framing,
            pending: BytesMut::new(),
            scanned: 0,
            in_quotes: false,
            discarding: false,
            too_long: 0,
            limit,
        }
    }

    /// Takes a piece and passes on every complete record in it, several at a time.
    pub(super) fn push(&mut self, piece: &[u8], mut block: impl FnMut(&[u8])) {
        for step in piece.chunks(STEP_BYTES) {
            self.step(step, &mut block);
        }
    }

    fn step(&mut self, mut piece: &[u8], block: &mut impl FnMut(&[u8])) {
        if self.discarding {
            // The quotes of a record that was skipped cannot be trusted: reading resumes at the
            // next line end.
            let Some(end) = piece.iter().position(|byte| *byte == b'\n') else { return };
            self.discarding = false;
            piece = &piece[end + 1..];
        }
        self.pending.extend_from_slice(piece);
        let mut whole = 0;
        for (index, byte) in self.pending.iter().enumerate().skip(self.scanned) {
            match byte {
                b'"' if self.framing == Framing::Csv => self.in_quotes = !self.in_quotes,
                b'\n' if !self.in_quotes => whole = index + 1,
                _ => {}
            }
        }
        if whole > 0 {
            let ready = self.pending.split_to(whole);
            block(&ready);
        }
        self.scanned = self.pending.len();
        if self.pending.len() > self.limit {
            self.too_long += 1;
            self.pending = BytesMut::new();
            self.scanned = 0;
            self.in_quotes = false;
            self.discarding = true;
        }
    }

    /// The rest at the end of the input: a record without its end.
    pub(super) fn take_rest(&mut self) -> BytesMut {
        self.pending.split()
    }

    /// Whether the stream ended inside a record that was skipped as too long.
    pub(super) const fn is_discarding(&self) -> bool {
        self.discarding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(framing: Framing, pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let mut framer = Framer::new(framing);
        let mut whole = Vec::new();
        for piece in pieces {
            framer.push(piece, |block| {
                assert_eq!(block.last(), Some(&b'\n'));
                whole.extend_from_slice(block);
            });
        }
        (whole, framer.take_rest().to_vec())
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = b"a,\"x\ny\",b\nc,d\ne";
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        let expected = (b"a,\"x\ny\",b\nc,d\n".to_vec(), b"e".to_vec());
        assert_eq!(cut(Framing::Csv, &[text]), expected);
        assert_eq!(cut(Framing::Csv, &bytes), expected);
    }

    #[test]
    fn a_quote_means_nothing_between_lines() {
        let (whole, rest) = cut(Framing::Lines, &[b"a\"b\nc\"", b"d\n"]);
        assert_eq!(whole, b"a\"b\nc\"d\n");
        assert_eq!(rest, b"");
    }

    #[test]
    fn an_overlong_record_is_counted_and_reading_resumes_after_it() {
        let mut framer = Framer::with_limit(Framing::Csv, 8);
        let mut whole = Vec::new();
        for piece in [&b"ok\n"[..], b"\"0123456789", b"abc", b"\nnext\n"] {
            framer.push(piece, |block| whole.extend_from_slice(block));
        }
        assert_eq!(whole, b"ok\nnext\n");
        assert_eq!(framer.too_long, 1);
        assert!(!framer.is_discarding());
        assert!(framer.take_rest().is_empty());
    }
}
