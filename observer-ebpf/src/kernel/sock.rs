//! Sockets.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use observer_ebpf::wire::Address;

use super::{AF_INET, AF_INET6, Pointer};
use crate::{atomic, config};

const AF_UNIX: u16 = 1;

/// A kernel `struct sock`.
#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(super) Pointer);

impl Sock {
    /// A number made of its address, which no other socket has at the same time.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        atomic::swapped_address(self.0.address)
    }

    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        const IPPROTO_TCP: u16 = 6;
        self.0.load::<u16>(config::off_sock_protocol()) == IPPROTO_TCP && {
            let family = self.0.load::<u16>(config::off_sock_family());
            family == AF_INET || family == AF_INET6
        }
    }

    /// Whether it is a stream between processes of this host, on a kernel of which enough is known.
    #[inline(always)]
    pub(crate) fn is_unix_stream(self) -> bool {
        const SOCK_STREAM: u16 = 1;
        config::off_unix_peer() != 0
            && config::off_socket_inode() != 0
            && self.0.load::<u16>(config::off_sock_family()) == AF_UNIX
            && self.0.load::<u16>(config::off_sock_type()) == SOCK_STREAM
    }

    /// Whether a Unix socket came from a listening one. It shares the address of that one
    /// (`unix_stream_connect`, net/unix/af_unix.c), so that this is referred to more than once as long
    /// as the other is there. The connecting end has no address, or one of its own.
    #[inline(always)]
    pub(crate) fn is_accepted_unix(self) -> bool {
        let untyped = Pointer { typed: false, ..self.0 };
        let address = untyped.follow(config::off_unix_address());
        if address.address.is_null() {
            return false;
        }
        let peer = untyped.follow(config::off_unix_peer());
        // `unix_address::refcnt` comes first.
        address.load::<u32>(0) > 1 || peer.follow(config::off_unix_address()).address.is_null()
    }

    /// Process that listened for this accepted Unix socket: the connecting end keeps it for
    /// SO_PEERCRED. 0 if the other end is gone.
    #[inline(always)]
    pub(crate) fn unix_listener(self) -> u32 {
        let untyped = Pointer { typed: false, ..self.0 };
        let peer = untyped.follow(config::off_unix_peer());
        peer.follow(config::off_sock_peer_pid()).load(config::off_pid_numbers())
    }

    /// Inode number of a Unix socket, which the next one at the same address does not have; 0 before it
    /// was accepted.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        let untyped = Pointer { typed: false, ..self.0 };
        let socket = untyped.follow(config::off_sock_socket());
        if socket.address.is_null() { 0 } else { socket.load(config::off_socket_inode()) }
    }

    /// Whether a Unix socket holds data that was not read.
    #[inline(always)]
    pub(crate) fn has_queued(self) -> bool {
        self.0.load::<u32>(config::off_sock_queue_length()) != 0
    }

    /// Its state (include/net/tcp_states.h).
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        self.0.load(config::off_sock_state())
    }

    /// The port at this end.
    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        self.0.load(config::off_sock_number())
    }

    /// The port at the other end.
    #[inline(always)]
    pub(crate) fn remote_port(self) -> u16 {
        u16::from_be(self.0.load(config::off_sock_port()))
    }

    /// The address at the other end.
    #[inline(always)]
    pub(crate) fn remote_address(self) -> Address {
        let untyped = Pointer { typed: false, ..self.0 };
        let is_v6 = self.0.load::<u16>(config::off_sock_family()) == AF_INET6;
        if is_v6 && config::off_sock_address6() != 0 {
            return Address(untyped.load(config::off_sock_address6()));
        }
        let mut address = [0; 16];
        (address[10], address[11]) = (0xff, 0xff);
        let [a, b, c, d] = untyped.load::<[u8; 4]>(config::off_sock_address());
        (address[12], address[13], address[14], address[15]) = (a, b, c, d);
        Address(address)
    }

    /// Whether a TCP socket holds data that was not read.
    #[inline(always)]
    pub(crate) fn has_unread(self) -> bool {
        let mut tcp = self.0;
        if self.0.typed {
            // A `struct tcp_sock` begins with its `struct sock`; the verifier wants to be told.
            // SAFETY: the verifier checks that it is a socket; the helper returns null for others.
            let cast = unsafe { bpf_skc_to_tcp_sock(self.0.address.cast_mut().cast()) };
            if cast.is_null() {
                return false;
            }
            tcp.address = cast.cast_const().cast();
        }
        let received = tcp.load::<u32>(config::off_tcp_received());
        received != tcp.load::<u32>(config::off_tcp_copied())
    }
}
