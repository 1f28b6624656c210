//! Counting the IP sockets that processes hold.
//!
//! `/proc/PID/fd` names every socket by inode but not its family, and `/proc/net/tcp` does not show
//! a socket that is neither bound nor connected. So each descriptor is duplicated for an instant
//! (`pidfd_getfd`) and its family is read (`SO_DOMAIN`), which is exact. Where that is not allowed
//! (Yama at level 3, kernels before 5.6) the tables under `/proc/PID/net` are used and the answer
//! says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_cookie, socket_domain, socket_type};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::network::socket_descriptors;
use crate::model::Tgid;

/// Maximum number of sockets to examine: one takes about 2 µs, so this many take about half a
/// second.
pub const SOCKETS_MAX: usize = 262_144;

/// What one socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpSocket {
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// `SOCK_STREAM`, ...; 0 when unknown.
    pub socket_type: u32,
    /// The kernel's socket cookie, as `bpf_get_socket_cookie` gives it; 0 when unknown.
    pub cookie: u64,
}

/// The IP sockets of some processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketCensus {
    /// By inode: a socket held through several descriptors or by several processes counts once.
    pub sockets: BTreeMap<u64, IpSocket>,
    /// Processes that were gone, or whose descriptors may not be read.
    pub unreadable_processes: u32,
    /// Sockets found in the tables under `/proc/PID/net`, which do not show unbound ones.
    pub from_tables: u32,
    /// Sockets that were closed while they were examined, or whose family stayed unknown.
    pub unknown: u32,
    /// Sockets that were not examined because of [`SOCKETS_MAX`].
    pub over_limit: u32,
}

impl SocketCensus {
    /// Inodes alone.
    #[must_use]
    pub fn inodes(&self) -> BTreeSet<u64> {
        self.sockets.keys().copied().collect()
    }

    /// Nothing was guessed or left out (sockets closed meanwhile are no error).
    #[must_use]
    pub const fn is_exact(&self) -> bool {
        self.unreadable_processes == 0 && self.from_tables == 0 && self.over_limit == 0
    }
}

enum Asked {
    Ip(IpSocket),
    Other,
    Closed,
    Refused,
}

fn ask(pidfd: Option<&OwnedFd>, descriptor: i32) -> Asked {
    let Some(pidfd) = pidfd else { return Asked::Refused };
    let socket = match pidfd_getfd(pidfd, descriptor, PidfdGetfdFlags::empty()) {
        Ok(socket) => socket,
        Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => return Asked::Closed,
        Err(_) => return Asked::Refused,
    };
    match socket_domain(&socket) {
        Ok(family) if family == AddressFamily::INET || family == AddressFamily::INET6 => {
            Asked::Ip(IpSocket {
                family: u32::from(family.as_raw()),
                socket_type: socket_type(&socket).map_or(0, |kind| kind.as_raw()),
                cookie: socket_cookie(&socket).unwrap_or(0),
            })
        }
        Ok(_) => Asked::Other,
        // The descriptor number was closed and given to something that is no socket.
        Err(_) => Asked::Closed,
    }
}

/// `SOCK_STREAM`, `SOCK_DGRAM`, `SOCK_RAW`.
const TABLES: [(&str, u32); 12] = [
    ("tcp", 1),
    ("tcp6", 1),
    ("udp", 2),
    ("udp6", 2),
    ("udplite", 2),
    ("udplite6", 2),
    ("icmp", 2),
    ("icmp6", 2),
    ("raw", 3),
    ("raw6", 3),
    ("mptcp", 1),
    ("dccp", 6),
];

/// Inode column of a table under `/proc/PID/net`: all of them share the first ten columns.
fn table_inodes(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.lines().skip(1).filter_map(|line| {
        line.split_ascii_whitespace().nth(9)?.parse().ok().filter(|&inode| inode != 0)
    })
}

fn sockets_in_tables(tgid: Tgid) -> BTreeMap<u64, IpSocket> {
    let mut sockets = BTreeMap::new();
    for (table, socket_type) in TABLES {
        let Ok(text) = fs::read_to_string(format!("/proc/{}/net/{table}", tgid.0)) else {
            continue;
        };
        let family = if table.ends_with('6') { AddressFamily::INET6 } else { AddressFamily::INET };
        let family = u32::from(family.as_raw());
        let socket = IpSocket { family, socket_type, cookie: 0 };
        sockets.extend(table_inodes(&text).map(|inode| (inode, socket)));
    }
    sockets
}

/// The IP sockets (`AF_INET`, `AF_INET6`, any type, any state, unbound ones too) that the
/// processes hold now.
pub fn ip_sockets_of(tgids: impl IntoIterator<Item = Tgid>) -> SocketCensus {
    let mut census = SocketCensus::default();
    let mut seen = BTreeSet::new();
    for tgid in tgids {
        let Some(descriptors) = socket_descriptors(tgid) else {
            census.unreadable_processes += 1;
            continue;
        };
        let pidfd = i32::try_from(tgid.0)
            .ok()
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let mut refused = Vec::new();
        for (descriptor, inode) in descriptors {
            if seen.len() >= SOCKETS_MAX {
                census.over_limit += 1;
                continue;
            }
            if !seen.insert(inode) {
                continue;
            }
            match ask(pidfd.as_ref(), descriptor) {
                Asked::Ip(socket) => {
                    census.sockets.insert(inode, socket);
                }
                Asked::Other => {}
                Asked::Closed => census.unknown += 1,
                Asked::Refused => refused.push(inode),
            }
        }
        if !refused.is_empty() {
            let tables = sockets_in_tables(tgid);
            for inode in refused {
                census.from_tables += 1;
                if let Some(socket) = tables.get(&inode) {
                    census.sockets.insert(inode, *socket);
                }
            }
        }
    }
    census
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use rustix::net::{SocketType, socket};

    use super::*;

    fn inode(descriptor: &impl AsRawFd) -> u64 {
        let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).unwrap();
        super::super::network::socket_inode(link.to_str().unwrap()).unwrap()
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

        let census = ip_sockets_of([Tgid(std::process::id())]);
        assert!(census.is_exact());
        for expected in [inode(&listener), inode(&client), inode(&server), inode(&datagram)] {
            assert!(census.sockets.contains_key(&expected));
        }
        let found = census.sockets[&inode(&unbound)];
        assert_eq!((found.family, found.socket_type), (libc::AF_INET6 as u32, 1));
        assert_eq!(found.cookie, socket_cookie(&unbound).unwrap());
        assert_eq!(inode(&unbound), inode(&again));
        assert!(!census.sockets.contains_key(&inode(&left)));
        assert!(!census.sockets.contains_key(&inode(&right)));
    }

    #[test]
    fn the_tables_show_all_but_the_unbound() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let unbound = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        let sockets = sockets_in_tables(Tgid(std::process::id()));
        assert_eq!(sockets[&inode(&listener)].family, libc::AF_INET6 as u32);
        assert_eq!(sockets[&inode(&datagram)].socket_type, 2);
        assert!(!sockets.contains_key(&inode(&unbound)));
    }

    #[test]
    fn a_process_that_is_gone_is_counted() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tgid = Tgid(child.id());
        child.wait().unwrap();
        let census = ip_sockets_of([tgid]);
        assert_eq!(census.unreadable_processes, 1);
        assert!(!census.is_exact());
    }
}
