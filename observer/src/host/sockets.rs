//! Counting the IP sockets that processes hold.
//!
//! `/proc/PID/fd` names every socket by inode but not its family, and `/proc/net/tcp` does not show
//! a socket that is neither bound nor connected. The kernel tells the protocol of each descriptor in
//! the attribute `system.sockprotoname` (net/socket.c), which any thread's directory gives without
//! touching the socket.

use std::collections::BTreeSet;
use std::path::Path;

use super::{network, process};
use crate::model::Tgid;
use crate::text::until_nul;

/// Maximum number of sockets to examine: one takes about 10 µs, so this many take less than
/// three seconds.
pub const SOCKETS_MAX: usize = 262_144;

/// Names of the protocols of `AF_INET` and `AF_INET6` (`struct proto`), without the suffix of the
/// latter.
const IP_PROTOCOLS: [&str; 13] = [
    "TCP",
    "UDP",
    "UDP-Lite",
    "UDPLITE",
    "RAW",
    "PING",
    "MPTCP",
    "SCTP",
    "SCTP-SEQPACKET",
    "DCCP",
    "L2TP/IP",
    "INET_SMC",
    "INET6_SMC",
];

/// The IP sockets of some processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketCensus {
    /// Inodes: a socket held through several descriptors or by several processes counts once.
    pub sockets: BTreeSet<u64>,
    /// Living processes whose descriptors may not be read.
    pub unreadable_processes: u32,
    /// Sockets whose protocol may not be read. (Those that were closed meanwhile are no error.)
    pub unknown: u32,
    /// Sockets that were not examined because of [`SOCKETS_MAX`].
    pub over_limit: u32,
}

impl SocketCensus {
    /// Nothing was left out.
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.unreadable_processes == 0 && self.unknown == 0 && self.over_limit == 0
    }
}

/// Whether a descriptor of a task is an IP socket; an error when the kernel does not say.
fn is_ip_socket(task: Tgid, descriptor: i32) -> rustix::io::Result<bool> {
    use rustix::io::Errno;
    let mut name = [0u8; 64];
    let path = format!("/proc/{}/fd/{descriptor}", task.0);
    match rustix::fs::getxattr(Path::new(&path), c"system.sockprotoname", &mut name[..]) {
        Ok(length) => {
            let name = until_nul(&name[..length]);
            Ok(IP_PROTOCOLS.contains(&name.strip_suffix("v6").unwrap_or(&name)))
        }
        // It was closed meanwhile, or is something else now.
        Err(Errno::NOENT | Errno::SRCH | Errno::OPNOTSUPP | Errno::NODATA) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The IP sockets (`AF_INET`, `AF_INET6`, any type, any state, unbound ones too) that the
/// processes hold now, in the descriptors of any of their threads.
pub fn ip_sockets_of(tgids: impl IntoIterator<Item = Tgid>) -> SocketCensus {
    let mut census = SocketCensus::default();
    let mut seen = BTreeSet::new();
    for tgid in tgids {
        for task in process::descriptor_tables(tgid) {
            let Some(descriptors) = network::descriptors_of(task) else {
                census.unreadable_processes += u32::from(process::Process::read(task).is_some());
                continue;
            };
            for (descriptor, inode) in descriptors {
                if seen.len() >= SOCKETS_MAX {
                    census.over_limit += 1;
                } else if seen.insert(inode) {
                    match is_ip_socket(task, descriptor) {
                        Ok(true) => _ = census.sockets.insert(inode),
                        Ok(false) => {}
                        Err(_) => census.unknown += 1,
                    }
                }
            }
        }
    }
    census
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use rustix::net::{AddressFamily, SocketType, ipproto, socket};

    use super::*;

    fn inode(descriptor: &impl AsRawFd) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).unwrap();
        network::socket_inode(link.to_str().unwrap()).unwrap()
    }

    #[test]
    fn unbound_bound_and_connected_sockets_count_and_unix_ones_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unbound = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        let again = unbound.try_clone().unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        let other = UnixDatagram::unbound().unwrap();

        let census = ip_sockets_of([Tgid(std::process::id())]);
        assert!(census.is_exact());
        for expected in [&inode(&listener), &inode(&client), &inode(&server), &inode(&datagram)] {
            assert!(census.sockets.contains(expected));
        }
        assert!(census.sockets.contains(&inode(&unbound)));
        assert_eq!(inode(&unbound), inode(&again));
        for stranger in [&inode(&left), &inode(&right), &inode(&other)] {
            assert!(!census.sockets.contains(stranger));
        }
    }

    #[test]
    fn every_protocol_that_this_kernel_has_is_known() {
        let (stream, datagram) = (SocketType::STREAM, SocketType::DGRAM);
        let (seqpacket, raw) = (SocketType::SEQPACKET, SocketType::RAW);
        let kinds = [
            (stream, None),
            (datagram, None),
            (stream, Some(ipproto::MPTCP)),
            (datagram, Some(ipproto::UDPLITE)),
            (stream, Some(ipproto::SCTP)),
            (seqpacket, Some(ipproto::SCTP)),
            (raw, Some(ipproto::UDP)),
        ];
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            for (kind, protocol) in kinds {
                let Ok(socket) = socket(family, kind, protocol) else { continue };
                let own = Tgid(std::process::id());
                let found = is_ip_socket(own, socket.as_raw_fd());
                assert_eq!(found, Ok(true), "{family:?} {kind:?} {protocol:?}");
            }
        }
    }

    #[test]
    fn a_process_that_is_gone_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tgid = Tgid(child.id());
        child.wait().unwrap();
        assert_eq!(ip_sockets_of([tgid]), SocketCensus::default());
    }

    #[test]
    fn a_table_that_a_thread_has_for_itself_is_counted() {
        let own = Tgid(std::process::id());
        let (send, receive) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: descriptors of the copied table are closed with the thread; nothing else is
            // done in it.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }.unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let tid = rustix::thread::gettid().as_raw_nonzero().get();
            let link = format!("/proc/{tid}/fd/{}", socket.as_raw_fd());
            let link = fs::read_link(link).unwrap();
            send.send(network::socket_inode(link.to_str().unwrap()).unwrap()).unwrap();
            let _ = ended.recv();
        });
        let inode = receive.recv().unwrap();
        assert!(ip_sockets_of([own]).sockets.contains(&inode));
        drop(end);
        thread.join().unwrap();
        assert!(!ip_sockets_of([own]).sockets.contains(&inode));
    }
}
