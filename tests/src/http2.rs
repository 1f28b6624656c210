//! The smallest HTTP/2 client: several requests at a time over one connection without TLS.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::Result;

/// For a server that has to wait for a CPU.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Flags of frames. `ACK` is that of `SETTINGS` and `PING`.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// The header `:status: 200` as it is compressed (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// The client's port.
    pub local_port: u16,
    next: u32,
    answered: BTreeSet<u32>,
}

impl Connection {
    /// Connects to a server on this host, which is known to speak HTTP/2.
    ///
    /// # Errors
    /// When no process listens.
    pub fn open(port: u16) -> Result<Self> {
        let fail = |error| format!("cannot connect to port {port}: {error}");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(fail)?;
        stream.set_nodelay(true).map_err(fail)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
        let local_port = stream.local_addr().map_err(fail)?.port();
        let mut connection = Self { stream, local_port, next: 1, answered: BTreeSet::new() };
        let settings = frame(SETTINGS, 0, 0, &[]);
        connection.send(&[PREFACE, &settings].concat())?;
        Ok(connection)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
    }

    /// Sends a GET for a path of less than 127 bytes; returns the number of its stream.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn get(&mut self, path: &str) -> Result<u32> {
        let stream = self.next;
        self.next += 2;
        // `:method: GET` and `:scheme: http` are known by number, and so are the names of the others.
        let mut block = vec![0x82, 0x86];
        for (name, value) in [(0x04, path), (0x01, "localhost")] {
            block.extend([name, value.len() as u8]);
            block.extend(value.as_bytes());
        }
        self.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &block))?;
        Ok(stream)
    }

    /// Waits for the end of the answer on a stream.
    ///
    /// # Errors
    /// When it is not 200, or the server ends the stream or the connection.
    pub fn wait_for(&mut self, stream: u32) -> Result<()> {
        while !self.answered.remove(&stream) {
            self.take_frame()?;
        }
        Ok(())
    }

    fn take_frame(&mut self) -> Result<()> {
        let fail = |error| format!("no whole frame: {error}");
        let mut header = [0; 9];
        self.stream.read_exact(&mut header).map_err(fail)?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).map_err(fail)?;
        match kind {
            RST_STREAM | GOAWAY => Err(format!("the server ends stream {stream}: {payload:?}")),
            HEADERS if payload.first() != Some(&STATUS_200) => {
                Err(format!("the answer on stream {stream} is not 200: {payload:?}"))
            }
            DATA | HEADERS if flags & END_STREAM != 0 => {
                self.answered.insert(stream);
                Ok(())
            }
            SETTINGS | PING if flags & ACK == 0 => {
                let echo = if kind == PING { &payload[..] } else { &[] };
                self.send(&frame(kind, ACK, 0, echo))
            }
            _ => Ok(()),
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
