//! Requests that the target made of other services.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use observer_ebpf::wire::{Address, OUTGOING_UNIX, OutgoingRecord};

use super::{Event, Tid};
use crate::clock::MonoNanos;

/// An address of a record with its port; an IPv4 address is one again.
#[must_use]
pub fn socket_address(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(address.0).to_canonical(), port)
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Its address.
    Tcp(SocketAddr),
    /// A Unix socket, whose path is not known.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("a Unix socket"),
        }
    }
}

/// One request that the target made of another service, as the target's socket saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRequest {
    /// The first write of it returned.
    pub sent: MonoNanos,
    /// A thread of the target had taken the first bytes of the reply.
    pub replied: MonoNanos,
    /// The thread that sent it.
    pub sender: Tid,
    /// The thread that took the reply.
    pub reader: Tid,
    /// The other service.
    pub peer: Peer,
}

impl OutgoingRequest {
    /// The request that an event of kind `outgoing_request` stands for; `None` for the other kinds.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let record: OutgoingRecord = event.record()?;
        let peer = if event.flags & OUTGOING_UNIX == 0 {
            // Ports have 16 bits, in a field of the trace that has more.
            let port = u16::try_from(record.remote_port).unwrap_or_default();
            Peer::Tcp(socket_address(record.remote_address, port))
        } else {
            Peer::Unix
        };
        Some(Self {
            sent: event.start(),
            replied: event.end,
            sender: Tid(record.sender_tid),
            reader: event.tid,
            peer,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use observer_ebpf::wire::{Address, RecordKind};

    use super::*;
    use crate::output::example;

    #[test]
    fn it_is_what_its_record_says() {
        let of = |flags, address: Ipv6Addr| {
            let event = example::event(&OutgoingRecord {
                header: example::header(RecordKind::Outgoing, flags, 5, 10_000, 3_000),
                sender_tid: 6,
                remote_port: 6_379,
                remote_address: Address(address.octets()),
            });
            OutgoingRequest::from_event(&event).expect("a request")
        };
        let request = of(0, Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped());
        assert_eq!((request.sent, request.replied), (MonoNanos(7_000), MonoNanos(10_000)));
        assert_eq!((request.sender, request.reader), (Tid(6), Tid(5)));
        assert_eq!(request.peer.to_string(), "192.0.2.1:6379");
        assert_eq!(of(0, Ipv6Addr::LOCALHOST).peer.to_string(), "[::1]:6379");
        assert_eq!(of(OUTGOING_UNIX, Ipv6Addr::UNSPECIFIED).peer.to_string(), "a Unix socket");
        assert_eq!(OutgoingRequest::from_event(&example::fault(1, 1, 1)), None);
    }
}
