//! As much of HTTP/1.1 as the drill's own load generator uses: requests without a body, keep-alive.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest request head; a longer one ends its connection.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A client that stops in the middle of a request does not keep a thread for longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The header in which a proxy tells the port of its own client.
pub(in crate::drill) const CLIENT_PORT: &str = "X-Client-Port";

/// A connection, with what was read of its next request.
pub(super) struct Connection {
    stream: TcpStream,
    port: u16,
    head: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let port = stream.peer_addr()?.port();
        Ok(Self { stream, port, head: Vec::new() })
    }

    /// Port of the client's end; of the last request's client behind a proxy that tells it.
    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads up to the end of a request. `false`: the connection is over.
    pub(super) fn read_request(&mut self) -> bool {
        loop {
            if let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") {
                if let Some(port) = client_port(&self.head[..end]) {
                    self.port = port;
                }
                // What follows is the next request.
                self.head.drain(..end + 4);
                return true;
            }
            let mut bytes = [0u8; 2048];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return false,
                Ok(read) => self.head.extend_from_slice(&bytes[..read]),
            }
            if self.head.len() > HEAD_BYTES_MAX {
                return false;
            }
        }
    }

    /// Whether a whole request waits in memory, for which no socket becomes readable.
    pub(super) fn has_request(&self) -> bool {
        self.head.windows(4).any(|window| window == b"\r\n\r\n")
    }

    pub(super) fn answer(&self, status: u16) -> io::Result<()> {
        let reason = if status == 200 { "OK" } else { "Internal Server Error" };
        let answer = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
        );
        (&self.stream).write_all(answer.as_bytes())
    }
}

/// What the header [`CLIENT_PORT`] says.
fn client_port(head: &[u8]) -> Option<u16> {
    let lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut headers = lines.filter_map(|line| line.split_once(':'));
    let (_, port) = headers.find(|(name, _)| name.eq_ignore_ascii_case(CLIENT_PORT))?;
    port.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (TcpStream, Connection) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, Connection::new(listener.accept().unwrap().0).unwrap())
    }

    #[test]
    fn requests_are_read_one_by_one_however_they_arrive() {
        let (mut client, mut connection) = pair();
        assert_eq!(connection.port(), client.local_addr().unwrap().port());
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT").unwrap();
        assert!(connection.read_request() && !connection.has_request());
        client.write_all(b"TP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n").unwrap();
        assert!(connection.read_request());
        connection.answer(200).unwrap();
        while !connection.has_request() {
            assert!(connection.read_request());
            client.write_all(b"GET /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\n\r\n").unwrap();
        }
        drop(client);
        assert!(connection.read_request());
    }

    #[test]
    fn a_proxy_tells_the_port_of_its_client() {
        let (mut client, mut connection) = pair();
        client.write_all(b"GET / HTTP/1.0\r\nHost: a\r\nx-client-port: 4711\r\n\r\n").unwrap();
        assert!(connection.read_request());
        assert_eq!(connection.port(), 4711);
        assert_eq!(client_port(b"GET / HTTP/1.1\r\nX-Client-Port: 70000"), None);
        assert_eq!(client_port(b"GET / HTTP/1.1\r\nHost: a:7"), None);
    }

    #[test]
    fn an_endless_head_ends_the_connection() {
        let (mut client, mut connection) = pair();
        client.write_all(&vec![b'x'; HEAD_BYTES_MAX + 1]).unwrap();
        assert!(!connection.read_request());
    }
}
