//! The TCP sockets of a network namespace: the kernel's socket diagnosis where observer may use it, and
//! `/proc/PID/net/tcp` and `tcp6` elsewhere (in a daemon that has given up its rights, and without the
//! kernel's module `tcp_diag`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetResponse, StateFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sock_diag::Diag;
use super::{process, read_start};
use crate::model::Tgid;
use crate::pace::rest;

/// Lines of a table between two rests: they take about as long as a piece of work may.
const LINES_A_PIECE: usize = 32;
/// Most bytes of a file with a setting.
const SETTING_BYTES: u64 = 128;

/// States of TCP connections, by the kernel's number (include/net/tcp_states.h).
const STATES: [&str; 13] = [
    "unknown",
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "syn_recv",
];

/// State of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpState(u8);

impl TcpState {
    /// The peer has closed the connection, and the program has not.
    pub const CLOSE_WAIT: Self = Self(8);
    /// The connection is closed, and its ports are kept for a minute.
    pub const TIME_WAIT: Self = Self(6);
    /// It accepts connections.
    pub const LISTEN: Self = Self(10);

    /// Its name, in small letters.
    #[must_use]
    pub fn name(self) -> &'static str {
        STATES.get(usize::from(self.0)).copied().unwrap_or(STATES[0])
    }
}

/// A TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its state.
    pub state: TcpState,
    /// Its own address.
    pub local: SocketAddr,
    /// The address of its peer.
    pub peer: SocketAddr,
    /// Its inode; 0 for one that no program has (any more).
    pub inode: u64,
    /// Of a listening socket: connections that wait to be accepted.
    pub queue: u32,
    /// Of a listening socket: how many may wait; `None` where the kernel does not say it.
    pub limit: Option<u32>,
    /// Of a listening socket: packets that the kernel dropped, modulo 2³²; `None` where it does not say
    /// it. An attempt to connect whose last packet is dropped counts twice (`tcp_listendrop` and then
    /// `discard_and_relse` in net/ipv4/tcp_ipv4.c).
    pub dropped: Option<u32>,
}

impl TcpSocket {
    fn of_response(response: &InetResponse) -> Self {
        let (header, id) = (&response.header, &response.header.socket_id);
        let state = TcpState(header.state);
        let dropped = response.nlas.iter().find_map(|attribute| match attribute {
            Nla::MemInfo(memory) => Some(memory.drops),
            _ => None,
        });
        Self {
            state,
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            inode: u64::from(header.inode),
            queue: header.recv_queue,
            limit: (state == TcpState::LISTEN).then_some(header.send_queue),
            dropped,
        }
    }

    /// `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000081 00:00000000 00000000  0  0 4711 ...`
    fn of_line(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (local, peer) = (address(fields.nth(1)?)?, address(fields.next()?)?);
        let state = TcpState(u8::from_str_radix(fields.next()?, 16).ok()?);
        let queue = u32::from_str_radix(fields.next()?.split_once(':')?.1, 16).ok()?;
        let inode = fields.nth(4)?.parse().ok()?;
        Some(Self { state, local, peer, inode, queue, limit: None, dropped: None })
    }
}

/// `0100007F:1F90`: each word of the address as a number of this machine, in hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let digits = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// What is read of the sockets of a network namespace.
#[derive(Debug, Default)]
pub struct TcpSockets {
    diag: Option<Diag>,
    /// The largest limit that an accept queue may have; `None` when it could not be read.
    pub somaxconn: Option<u64>,
    /// First and last port from which the kernel chooses one for a connection that is made; `None` when
    /// they could not be read.
    pub ephemeral: Option<(u16, u16)>,
}

impl TcpSockets {
    /// Those of the network namespace in which these processes are, and the settings there.
    #[must_use]
    pub fn of(members: &[Tgid], namespace: &Path) -> Self {
        let own = fs::read_link("/proc/thread-self/ns/net");
        if own.is_ok_and(|own| own == namespace) {
            return Self::here();
        }
        let of = |tgid: Tgid| File::open(format!("/proc/{}/ns/net", tgid.0)).ok();
        let mut links =
            members.iter().filter_map(|&tgid| of(tgid).or_else(|| of(process::heir(tgid)?)));
        let Some(namespace) = links.next() else { return Self::default() };
        // A thread of its own, because it stays there. The socket that it leaves belongs to that
        // namespace.
        let visit = move || {
            let kind = Some(LinkNameSpaceType::Network);
            match move_into_link_name_space(namespace.as_fd(), kind) {
                Ok(()) => Self::here(),
                Err(error) => {
                    tracing::debug!("cannot enter the network namespace of the target: {error}");
                    Self::default()
                }
            }
        };
        let visitor = std::thread::Builder::new().name("network".into()).spawn(visit);
        visitor.ok().and_then(|visitor| visitor.join().ok()).unwrap_or_default()
    }

    /// Those of the network namespace of this thread.
    fn here() -> Self {
        let setting = |name: &str| {
            let bytes = read_start(Path::new("/proc/sys/net").join(name), SETTING_BYTES).ok()?;
            String::from_utf8(bytes).ok()
        };
        Self {
            diag: Diag::here().ok(),
            somaxconn: setting("core/somaxconn").and_then(|text| text.trim().parse().ok()),
            ephemeral: setting("ipv4/ip_local_port_range").as_deref().and_then(range),
        }
    }

    /// Calls `each` for each listening socket. `members` are processes in the namespace. False when not
    /// all of them were found.
    #[must_use]
    pub fn listeners(&mut self, members: &[Tgid], mut each: impl FnMut(&TcpSocket)) -> bool {
        // The packets that were dropped are a part of what is said about memory.
        let asked = self.ask(&StateFlags::LISTEN, &ExtensionFlags::SKMEMINFO, &mut each);
        asked.unwrap_or_else(|| {
            tables(members, |socket| {
                let listens = socket.state == TcpState::LISTEN;
                if listens {
                    each(socket);
                }
                // The kernel prints every listener before the first connection.
                listens
            })
        })
    }

    /// Calls `each` for each socket that is no listening one. `members` are processes in the namespace.
    /// False when not all of them were found.
    #[must_use]
    pub fn connections(&mut self, members: &[Tgid], mut each: impl FnMut(&TcpSocket)) -> bool {
        let states = StateFlags::all() - StateFlags::LISTEN;
        let asked = self.ask(&states, &ExtensionFlags::empty(), &mut each);
        asked.unwrap_or_else(|| {
            tables(members, |socket| {
                if socket.state != TcpState::LISTEN {
                    each(socket);
                }
                true
            })
        })
    }

    /// Asks the kernel's socket diagnosis; whether its answer was complete. `None` when it cannot be
    /// used.
    fn ask(
        &mut self,
        states: &StateFlags,
        extensions: &ExtensionFlags,
        each: &mut impl FnMut(&TcpSocket),
    ) -> Option<bool> {
        let mut has_begun = false;
        let asked = self.diag.as_ref()?.tcp_sockets(states, extensions, |response| {
            has_begun = true;
            each(&TcpSocket::of_response(response));
        });
        let Err(error) = asked else { return Some(true) };
        tracing::debug!("no TCP sockets by sock_diag: {error}");
        self.diag = None;
        has_begun.then_some(false)
    }
}

/// Two ports with a tab between them.
fn range(text: &str) -> Option<(u16, u16)> {
    let mut words = text.split_ascii_whitespace();
    let (first, last) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (first <= last).then_some((first, last))
}

/// Calls `each` for each line of both tables, until it says that no other line of a table matters. False
/// when there is no table.
fn tables(members: &[Tgid], mut each: impl FnMut(&TcpSocket) -> bool) -> bool {
    let mut found = false;
    for name in ["tcp", "tcp6"] {
        let open = |tgid: Tgid| File::open(format!("/proc/{}/net/{name}", tgid.0)).ok();
        let mut files =
            members.iter().filter_map(|&tgid| open(tgid).or_else(|| open(process::heir(tgid)?)));
        if let Some(file) = files.next() {
            found = true;
            table(BufReader::new(file), &mut each);
        }
    }
    found
}

fn table(table: impl BufRead, each: &mut impl FnMut(&TcpSocket) -> bool) {
    let lines = table.split(b'\n').map_while(Result::ok).skip(1).enumerate();
    for (number, line) in lines {
        if number % LINES_A_PIECE == 0 {
            rest();
        }
        let socket = std::str::from_utf8(&line).ok().and_then(TcpSocket::of_line);
        if socket.is_some_and(|socket| !each(&socket)) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000081 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 0100007F:9C40 08 00000000:00000001 00:00000000 00000000     0        0 4713 1 0000000000000000 20 4 30 10 -1
   2: 0100007F:9C42 0100007F:1F90 06 00000000:00000000 03:00001000 00000000     0        0 0 3 0000000000000000
garbage
   3: 0100007F
   4: XX00007F:1F90 0100007F:9C40 08 00000000:00000001 00:00000000 00000000     0        0 4713 1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:9C44 01 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0
";

    fn parse(text: &str) -> Vec<TcpSocket> {
        let mut found = Vec::new();
        table(text.as_bytes(), &mut |socket| {
            found.push(*socket);
            true
        });
        found
    }

    #[test]
    fn lines_of_the_tables_are_sockets_and_other_lines_are_not() {
        let found = parse(TCP);
        let states: Vec<_> = found.iter().map(|socket| socket.state.name()).collect();
        assert_eq!(states, ["listen", "close_wait", "time_wait"]);
        assert_eq!((found[0].queue, found[0].inode, found[0].limit), (129, 4_711, None));
        assert_eq!(found[1].local.to_string(), "127.0.0.1:8080");
        assert_eq!(found[1].peer.to_string(), "127.0.0.1:40000");
        let of_ipv6 = parse(TCP6);
        assert_eq!(of_ipv6[0].local.to_string(), "127.0.0.1:8080", "an IPv4 client");
        assert_eq!([TcpState(12).name(), TcpState(200).name()], ["syn_recv", "unknown"]);
    }

    #[test]
    fn reading_ends_where_the_caller_says() {
        let mut seen = 0;
        table(TCP.as_bytes(), &mut |_| {
            seen += 1;
            false
        });
        assert_eq!(seen, 1);
    }

    #[test]
    fn settings_are_two_ports() {
        assert_eq!(range("32768\t60999\n"), Some((32_768, 60_999)));
        for text in ["", "1", "9 8", "x 9", "1 99999"] {
            assert_eq!(range(text), None, "{text:?}");
        }
    }

    #[test]
    fn both_ways_find_the_same_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        // Not accepted.
        let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
        let own = Tgid(std::process::id());
        let namespace = fs::read_link("/proc/self/ns/net").unwrap();
        let by_diag = TcpSockets::of(&[own], &namespace);
        assert!(by_diag.diag.is_some() && by_diag.somaxconn.is_some());
        assert!(by_diag.ephemeral.is_some());
        for mut sockets in [by_diag, TcpSockets::default()] {
            let mut listeners = Vec::new();
            assert!(sockets.listeners(&[own], |socket| listeners.push(*socket)));
            let found = listeners.iter().find(|socket| socket.local == at).unwrap();
            assert_eq!((found.state, found.queue), (TcpState::LISTEN, 3));
            assert_eq!(found.limit.is_some(), sockets.diag.is_some());
            assert_eq!(found.dropped, sockets.diag.is_some().then_some(0));
            let mut has_each_once = || {
                let mut connections = Vec::new();
                assert!(sockets.connections(&[own], |socket| connections.push(*socket)));
                assert!(connections.iter().all(|socket| socket.state != TcpState::LISTEN));
                clients.iter().all(|client| {
                    let local = client.local_addr().unwrap();
                    let of_client: Vec<_> =
                        connections.iter().filter(|socket| socket.local == local).collect();
                    assert!(of_client.iter().all(|socket| socket.peer == at && socket.inode > 0));
                    of_client.len() == 1
                })
            };
            // While other sockets come and go, the kernel may list one twice or not at all.
            assert!((0..100).any(|_| has_each_once()));
        }
    }
}
