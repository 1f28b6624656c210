//! One request and its reply as plain bytes on a TCP connection.

use std::io::ErrorKind;
use std::str::FromStr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::arrivals::is_chosen;
use super::client::Failure;

/// Longest reply, bytes: a server that does not stop must not fill the memory.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// Bytes that are read at a time.
const READ_BYTES: usize = 16 << 10;

/// Bytes as they are written on the command line: UTF-8, with `\r`, `\n`, `\t`, `\\` and `\xHH` (a byte by two
/// hexadecimal digits) for what cannot be typed. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl FromStr for Text {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('\\') {
            bytes.extend_from_slice(before.as_bytes());
            let (byte, length) = unescaped(behind)?;
            bytes.push(byte);
            rest = &behind[length..];
        }
        bytes.extend_from_slice(rest.as_bytes());
        if bytes.is_empty() {
            return Err("must not be empty".into());
        }
        Ok(Self(bytes))
    }
}

/// The byte that a backslash and what follows stand for, and how many bytes of the text follow.
fn unescaped(behind: &str) -> std::result::Result<(u8, usize), String> {
    Ok(match behind.bytes().next() {
        Some(b'r') => (b'\r', 1),
        Some(b'n') => (b'\n', 1),
        Some(b't') => (b'\t', 1),
        Some(b'\\') => (b'\\', 1),
        Some(b'x') => {
            let digits =
                behind.get(1..3).filter(|two| two.bytes().all(|it| it.is_ascii_hexdigit()));
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            (byte.ok_or("\\x needs two hexadecimal digits, like \\x00")?, 3)
        }
        Some(_) => {
            let found: String = behind.chars().take(1).collect();
            return Err(format!(
                "\\{found} is no escape: use \\r, \\n, \\t, \\xHH, or \\\\ for a backslash"
            ));
        }
        None => return Err("ends with a single backslash: write \\\\ for a backslash".into()),
    })
}

/// Where a reply ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEnd {
    /// With these bytes, at their first occurrence.
    Until(Vec<u8>),
    /// After this many bytes, 1 to [`REPLY_BYTES_MAX`].
    Bytes(usize),
}

/// What is sent instead of the usual request in a share of the cases.
#[derive(Clone, Debug, PartialEq)]
pub struct Rarely {
    /// The bytes.
    pub send: Vec<u8>,
    /// Share of the requests, 0 to 1.
    pub share: f64,
    /// Decides which ones.
    pub seed: u64,
}

/// What every request sends, and what comes back.
#[derive(Clone, Debug, PartialEq)]
pub struct RawSpec {
    /// The bytes of a request.
    pub send: Vec<u8>,
    /// Others, in a share of the cases.
    pub rarely: Option<Rarely>,
    /// Where each reply ends.
    pub reply: ReplyEnd,
}

impl RawSpec {
    /// The bytes of the request of this number.
    fn request(&self, seq: u64) -> &[u8] {
        let rarely = self.rarely.as_ref();
        let chosen = rarely.filter(|rarely| is_chosen(rarely.seed, seq, rarely.share));
        chosen.map_or(&self.send, |rarely| &rarely.send)
    }
}

/// The reply of one request, as it comes.
#[derive(Debug, Default)]
struct Reply {
    /// Bytes so far; with [`ReplyEnd::Until`] the bytes themselves are kept.
    length: usize,
    kept: Vec<u8>,
}

impl Reply {
    /// Takes the bytes that have come; whether the reply is whole.
    fn take(&mut self, bytes: &[u8], end: &ReplyEnd) -> Result<bool, Failure> {
        let before = self.length;
        self.length += bytes.len();
        let end_at = match end {
            ReplyEnd::Bytes(count) => (self.length >= *count).then_some(*count),
            ReplyEnd::Until(mark) => {
                self.kept.extend_from_slice(bytes);
                // The mark may have begun in what came before.
                let from = before.saturating_sub(mark.len().saturating_sub(1));
                let behind = self.kept.get(from..).unwrap_or_default();
                let found = behind.windows(mark.len().max(1)).position(|part| part == mark);
                found.map(|at| from + at + mark.len())
            }
        };
        match end_at {
            Some(end) if end > REPLY_BYTES_MAX => Err(Failure::ReplyTooLong(REPLY_BYTES_MAX)),
            Some(end) if end < self.length => Err(Failure::ReplyGoesOn(self.length - end)),
            Some(_) => Ok(true),
            None if self.length >= REPLY_BYTES_MAX => Err(Failure::ReplyTooLong(REPLY_BYTES_MAX)),
            None => Ok(false),
        }
    }
}

/// A connection on which one request follows another.
pub(super) struct RawConnection {
    stream: TcpStream,
    spec: Arc<RawSpec>,
    buffer: Vec<u8>,
}

impl RawConnection {
    pub(super) fn new(stream: TcpStream, spec: Arc<RawSpec>) -> Self {
        Self { stream, spec, buffer: vec![0; READ_BYTES] }
    }

    /// Sends the request of this number and reads the whole reply.
    pub(super) async fn exchange(&mut self, seq: u64) -> Result<(), Failure> {
        self.stream.write_all(self.spec.request(seq)).await.map_err(Failure::Socket)?;
        let mut reply = Reply::default();
        loop {
            let read = self.stream.read(&mut self.buffer).await.map_err(Failure::Socket)?;
            if read == 0 {
                return Err(Failure::Socket(ErrorKind::UnexpectedEof.into()));
            }
            let bytes = self.buffer.get(..read).unwrap_or_default();
            if reply.take(bytes, &self.spec.reply)? {
                return Ok(());
            }
        }
    }

    /// Whether another request can be sent on it: the server has not closed it, and nothing has come that no
    /// request asked for.
    pub(super) fn is_usable(&mut self) -> bool {
        let read = self.stream.try_read(&mut self.buffer);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> std::result::Result<Vec<u8>, String> {
        text.parse::<Text>().map(|text| text.0)
    }

    #[test]
    fn escapes_are_the_bytes_that_they_stand_for() {
        assert_eq!(text(r"PING\r\n").unwrap(), b"PING\r\n");
        assert_eq!(text(r"\t\\n\x00\xfFé").unwrap(), b"\t\\n\x00\xff\xc3\xa9");
        assert_eq!(text("plain").unwrap(), b"plain");
    }

    #[test]
    fn a_text_that_says_nothing_certain_is_refused_in_one_line() {
        for (bad, says) in [
            ("", "empty"),
            (r"a\", "single backslash"),
            (r"\q", r"\q is no escape"),
            (r"\é", r"\é is no escape"),
            (r"\x", "two hexadecimal digits"),
            (r"\x1", "two hexadecimal digits"),
            (r"\x+1", "two hexadecimal digits"),
            (r"\x1é", "two hexadecimal digits"),
        ] {
            let error = text(bad).unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{bad}: {error}");
        }
    }

    /// Gives the reply piece by piece: after how many pieces it is whole, or why it failed.
    fn taken(pieces: &[&[u8]], end: &ReplyEnd) -> std::result::Result<Option<usize>, &'static str> {
        let mut reply = Reply::default();
        for (at, piece) in pieces.iter().enumerate() {
            if reply.take(piece, end).map_err(|failure| failure.kind())? {
                return Ok(Some(at + 1));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_reply_ends_where_it_is_said_however_it_comes() {
        let line = ReplyEnd::Until(b"\r\n".to_vec());
        assert_eq!(taken(&[b"+PONG\r\n"], &line), Ok(Some(1)));
        assert_eq!(taken(&[b"+PO", b"NG\r", b"\n"], &line), Ok(Some(3)));
        assert_eq!(taken(&[b"+PONG\r", b"x\n"], &line), Ok(None));
        assert_eq!(taken(&[b"+PONG\r\n+"], &line), Err("reply_goes_on"));
        let four = ReplyEnd::Bytes(4);
        assert_eq!(taken(&[b"ab", b"c", b"d"], &four), Ok(Some(3)));
        assert_eq!(taken(&[b"abc"], &four), Ok(None));
        assert_eq!(taken(&[b"ab", b"cde"], &four), Err("reply_goes_on"));
    }

    #[test]
    fn a_reply_without_an_end_is_given_up() {
        let line = ReplyEnd::Until(b"\n".to_vec());
        let piece = vec![b'x'; REPLY_BYTES_MAX / 4];
        assert_eq!(taken(&[&piece, &piece, &piece], &line), Ok(None));
        assert_eq!(taken(&[&piece, &piece, &piece, &piece], &line), Err("reply_too_long"));
        let mut whole = vec![b'x'; REPLY_BYTES_MAX - 1];
        whole.push(b'\n');
        assert_eq!(taken(&[&whole], &line), Ok(Some(1)));
        assert_eq!(taken(&[&whole], &ReplyEnd::Bytes(REPLY_BYTES_MAX)), Ok(Some(1)));
    }

    #[test]
    fn a_share_of_the_requests_is_another_one() {
        let mut spec = RawSpec {
            send: b"usual".to_vec(),
            rarely: Some(Rarely { send: b"rare".to_vec(), share: 0.03, seed: 5 }),
            reply: ReplyEnd::Bytes(1),
        };
        let rare = |spec: &RawSpec| -> Vec<u64> {
            (0..100_000).filter(|seq| spec.request(*seq) == b"rare").collect()
        };
        let first = rare(&spec);
        // 3,000 expected, standard deviation 54.
        assert!(first.len().abs_diff(3_000) < 300, "{}", first.len());
        assert_eq!(first, rare(&spec));
        spec.rarely.as_mut().unwrap().seed = 6;
        assert_ne!(first, rare(&spec));
        spec.rarely = None;
        assert!(rare(&spec).is_empty());
    }
}
