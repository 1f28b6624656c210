//! The smallest HTTP client that can distinguish an answer from a failure.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use crate::Result;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Header lines in their original order, in lower case.
    pub headers: String,
    /// Body.
    pub body: String,
}

/// GETs a path from a server on this host, on a connection of its own.
///
/// # Errors
/// When there is no whole answer.
pub fn get(port: u16, path: &str, headers: &str) -> Result<Answer> {
    let fail = |error| format!("GET {path} from port {port}: {error}");
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(fail)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).map_err(fail)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(fail)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| format!("GET {path}: no answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(|| format!("GET {path}: no status: {head:?}"))?,
        headers: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

/// A port on which no process listens.
///
/// # Errors
/// When there is none.
pub fn free_port() -> Result<u16> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| format!("no free port: {error}"))
}
