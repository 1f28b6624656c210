//! The smallest HTTP client that can distinguish an answer from a failure.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

use crate::Result;

/// For a server that has to wait for a CPU.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

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
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;
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

/// A port on which no process listens, and that no other program is given meanwhile: a socket is bound to
/// it. A server that is told to listen on it can do so, because servers set `SO_REUSEADDR`.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    /// One that was free.
    ///
    /// # Errors
    /// When there is none.
    pub fn new() -> Result<Self> {
        let reserve = || -> rustix::io::Result<Self> {
            let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
            let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
            set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
            let number = SocketAddrV4::try_from(getsockname(&socket)?)?.port();
            Ok(Self { number, _socket: socket })
        };
        reserve().map_err(|error| format!("no free port: {error}"))
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_reserved_port_is_for_one_server() {
        let port = ReservedPort::new().expect("a port");
        let address = (Ipv4Addr::LOCALHOST, port.number());
        assert!(TcpStream::connect(address).is_err(), "no process listens");
        let server = TcpListener::bind(address).expect("a server listens on it");
        assert!(TcpStream::connect(address).is_ok());
        assert!(TcpListener::bind(address).is_err(), "a second one does not");
        drop(server);
        assert_ne!(ReservedPort::new().expect("a port").number(), port.number());
    }
}
