//! The TCP sockets of a network namespace, from the kernel's socket diagnosis (sock_diag(7),
//! `inet_diag_dump_icsk` of net/ipv4/inet_diag.c). For listeners it goes through these only;
//! for `/proc/net/tcp` the kernel goes through its table of all connections, which takes milliseconds
//! even where there are none.

use std::fmt;

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use crate::pace::rest;

/// For one part of the answer: the kernel makes parts as large as the buffer of the last receive, and
/// the first ones no larger than two pages (`netlink_dump` of net/netlink/af_netlink.c).
const BUFFER_BYTES: usize = 16 << 10;

/// Why the kernel's answer cannot be used. The tables of `/proc` say the same more slowly.
#[derive(Debug)]
pub(super) enum DiagError {
    System(Errno),
    Answer(DecodeError),
    /// The kernel refuses, by this negative errno: without its module `tcp_diag`, for example.
    Refused(i32),
}

impl fmt::Display for DiagError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::Answer(error) => error.fmt(f),
            Self::Refused(errno) => Errno::from_raw_os_error(errno.saturating_neg()).fmt(f),
        }
    }
}

impl From<Errno> for DiagError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// A way to ask the kernel about the sockets of one network namespace.
#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

impl Diag {
    /// Of the network namespace of the calling thread, for ever.
    pub(super) fn here() -> Result<Self, DiagError> {
        let protocol = Some(netlink::SOCK_DIAG);
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?))
    }

    /// Calls `each` for every TCP socket in one of the states. After an error, the rest of an answer may
    /// still be on its way, so that this cannot be used again.
    pub(super) fn tcp_sockets(
        &self,
        states: &StateFlags,
        extensions: &ExtensionFlags,
        mut each: impl FnMut(&InetResponse),
    ) -> Result<(), DiagError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            self.request(InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: extensions.clone(),
                states: states.clone(),
                socket_id,
            })?;
            while self.receive(&mut buffer, &mut each)? {
                rest();
            }
        }
        Ok(())
    }

    fn request(&self, request: InetRequest) -> Result<(), DiagError> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = SockDiagMessage::InetRequest(request);
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.0, &bytes, SendFlags::empty())?;
        Ok(())
    }

    /// The next part of the answer; false at its end. The kernel fills the next part in before it hands
    /// one out, so there is nothing to wait for.
    fn receive(
        &self,
        buffer: &mut [u8],
        each: &mut impl FnMut(&InetResponse),
    ) -> Result<bool, DiagError> {
        let (length, _) = recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT)?;
        let mut left = &buffer[..length];
        while !left.is_empty() {
            let message =
                NetlinkMessage::<SockDiagMessage>::deserialize(left).map_err(DiagError::Answer)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    each(&response);
                }
                NetlinkPayload::Done(_) => return Ok(false),
                NetlinkPayload::Error(error) => return Err(DiagError::Refused(error.raw_code())),
                _ => {}
            }
            // Messages are aligned to four bytes.
            let taken = (message.header.length as usize).next_multiple_of(4);
            left = left.get(taken.max(1)..).unwrap_or_default();
        }
        Ok(true)
    }
}

/// Port and inode of all listening TCP sockets of this thread's network namespace.
pub(super) fn tcp_listeners() -> Result<Vec<(u16, u64)>, DiagError> {
    let mut found = Vec::new();
    Diag::here()?.tcp_sockets(&StateFlags::LISTEN, &ExtensionFlags::empty(), |response| {
        let header = &response.header;
        found.push((header.socket_id.source_port, u64::from(header.inode)));
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn every_listener_is_found_and_no_connection() {
        // More than one part of an answer holds. There may be no IPv6.
        let listeners: Vec<_> = (0..400)
            .filter_map(|number| TcpListener::bind(["127.0.0.1:0", "[::1]:0"][number % 2]).ok())
            .collect();
        assert!(listeners.len() > 100, "{}", listeners.len());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        let found: BTreeSet<u16> =
            tcp_listeners().unwrap().into_iter().map(|(port, _)| port).collect();
        for listener in &listeners {
            assert!(found.contains(&port(listener)), "{listener:?}");
        }
        assert!(!found.contains(&client.local_addr().unwrap().port()));
    }
}
