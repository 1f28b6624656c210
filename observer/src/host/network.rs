//! Who listens on a port: the kernel's socket diagnosis in observer's own network namespace, and
//! `/proc/net/tcp` and its siblings elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{process, sock_diag};
use crate::model::Tgid;
use crate::pace::rest;

/// `TCP_LISTEN` (include/net/tcp_states.h).
const TCP_LISTEN: u8 = 0x0A;
/// State of a UDP socket that is bound and not connected (`TCP_CLOSE`).
const UDP_UNCONNECTED: u8 = 0x07;

/// One line of `/proc/net/{tcp,tcp6,udp,udp6}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    port: u16,
    state: u8,
    inode: u64,
}

impl Entry {
    /// `  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 ...`
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
        let inode = fields.nth(5)?.parse().ok()?;
        let port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        Some(Self { port, state, inode })
    }
}

/// Sockets of `table` that are in `state`. `listeners_first`: the kernel prints every listener before
/// the first connection (`listening_get_first`, then `established_get_first` in
/// net/ipv4/tcp_ipv4.c), so that the first line in another state ends the search; on a host with
/// 100,000 connections that is the difference between cheap and not.
fn in_state(table: impl BufRead, state: u8, listeners_first: bool) -> impl Iterator<Item = Entry> {
    table
        .split(b'\n')
        .map_while(Result::ok)
        .skip(1)
        .filter_map(|line| Entry::parse(&String::from_utf8_lossy(&line)))
        .take_while(move |entry| entry.state == state || !listeners_first)
        .filter(move |entry| entry.state == state && entry.inode != 0)
}

/// The listening sockets of a table, or for UDP the unconnected ones.
fn read_table(tgid: Tgid, name: &str) -> Vec<Entry> {
    let tcp = name.starts_with("tcp");
    let state = if tcp { TCP_LISTEN } else { UDP_UNCONNECTED };
    let open = |tgid: Tgid| fs::File::open(format!("/proc/{}/net/{name}", tgid.0)).ok();
    open(tgid)
        .or_else(|| open(process::heir(tgid)?))
        .map(|file| in_state(BufReader::new(file), state, tcp).collect())
        .unwrap_or_default()
}

/// The TCP sockets that listen in a network namespace, in which these processes are.
fn tcp_listeners(namespace: &Path, members: &[Tgid]) -> Vec<Entry> {
    let own = fs::read_link("/proc/thread-self/ns/net");
    if own.is_ok_and(|own| own == namespace) {
        let entry = |(port, inode)| Entry { port, state: TCP_LISTEN, inode };
        match sock_diag::tcp_listeners() {
            Ok(found) => return found.into_iter().map(entry).collect(),
            Err(error) => tracing::debug!("no listening sockets by sock_diag: {error}"),
        }
    }
    read_tables(members, ["tcp", "tcp6"])
}

/// The UDP sockets that are bound and not connected, in the network namespace of these processes.
fn unconnected_udp(_: &Path, members: &[Tgid]) -> Vec<Entry> {
    read_tables(members, ["udp", "udp6"])
}

fn read_tables(members: &[Tgid], names: [&str; 2]) -> Vec<Entry> {
    let first = members.first().into_iter();
    first.flat_map(|first| names.into_iter().flat_map(|name| read_table(*first, name))).collect()
}

/// The network namespace of a process; `None` when it is gone, or has no namespaces any more.
pub(super) fn namespace(tgid: Tgid) -> Option<PathBuf> {
    let of = |tgid: Tgid| fs::read_link(format!("/proc/{}/ns/net", tgid.0)).ok();
    of(tgid).or_else(|| of(process::heir(tgid)?))
}

/// Processes by their network namespace.
fn by_namespace(processes: impl Iterator<Item = (Tgid, PathBuf)>) -> BTreeMap<PathBuf, Vec<Tgid>> {
    let mut namespaces: BTreeMap<PathBuf, Vec<Tgid>> = BTreeMap::new();
    for (tgid, namespace) in processes {
        namespaces.entry(namespace).or_default().push(tgid);
    }
    namespaces
}

/// Processes by their network namespace (`net:[4026531840]`), without those that are gone.
#[must_use]
pub fn namespaces_of(tgids: &BTreeSet<Tgid>) -> BTreeMap<PathBuf, Vec<Tgid>> {
    let tgids = tgids.iter().inspect(|_| rest());
    by_namespace(tgids.filter_map(|&tgid| Some((tgid, namespace(tgid)?))))
}

/// Which of these sockets one of the processes holds, by inode.
#[must_use]
pub fn held_by(tgids: &BTreeSet<Tgid>, inodes: &BTreeSet<u64>) -> BTreeSet<u64> {
    let mut held = BTreeSet::new();
    for tgid in tgids {
        rest();
        let sockets = socket_descriptors(*tgid).into_iter().flatten();
        held.extend(sockets.map(|(_, inode)| inode).filter(|inode| inodes.contains(inode)));
        if held.len() == inodes.len() {
            break;
        }
    }
    held
}

/// Inode of the socket a link of `/proc/PID/fd` leads to (`socket:[4711]`).
#[must_use]
pub fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Descriptors of a process that are sockets, with the socket's inode. `None` when the process is
/// gone or may not be inspected.
#[must_use]
pub fn socket_descriptors(tgid: Tgid) -> Option<Vec<(i32, u64)>> {
    let of_first = descriptors_of(tgid);
    if of_first.as_ref().is_some_and(|sockets| !sockets.is_empty()) {
        return of_first;
    }
    // The first thread has none, or has exited and shows none.
    process::heir(tgid).map_or(of_first, descriptors_of)
}

/// The same of one thread.
pub(super) fn descriptors_of(tgid: Tgid) -> Option<Vec<(i32, u64)>> {
    let entries = fs::read_dir(format!("/proc/{}/fd", tgid.0)).ok()?;
    Some(
        entries
            .filter_map(|entry| {
                rest();
                let entry = entry.ok()?;
                let link = fs::read_link(entry.path()).ok()?;
                let inode = socket_inode(link.to_str()?)?;
                Some((entry.file_name().to_str()?.parse().ok()?, inode))
            })
            .collect(),
    )
}

/// Which of the processes have one of the sockets in their descriptors.
fn holders(ids: impl Iterator<Item = Tgid>, inodes: &BTreeSet<u64>) -> BTreeSet<Tgid> {
    ids.filter(|&tgid| {
        rest();
        socket_descriptors(tgid)
            .is_some_and(|sockets| sockets.iter().any(|(_, inode)| inodes.contains(inode)))
    })
    .collect()
}

/// Finds the processes that listen on a port, again and again.
///
/// Who holds a socket shows only in the descriptors of all processes, and reading them takes long.
/// Therefore, while the sockets on the port are the same ones, only new processes and those that held
/// a socket are checked. All are checked again after a minute: a socket may be handed over, and an
/// older process may change its namespace.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Sockets that listen on the port, by inode.
    sockets: BTreeSet<u64>,
    /// Processes that hold one of them.
    holders: BTreeSet<Tgid>,
    /// Processes that were checked.
    checked: HashMap<Tgid, Checked>,
    /// When all of them were.
    all_checked: Option<Instant>,
}

/// A process that was checked.
#[derive(Debug)]
struct Checked {
    first: Instant,
    namespace: PathBuf,
}

impl Listeners {
    /// Between two checks of all processes.
    const INTERVAL: Duration = Duration::from_secs(60);
    /// A process may enter another namespace before it executes its program.
    const SETTLING: Duration = Duration::from_secs(5);

    /// Processes that hold a listening TCP socket on `port`, in any network namespace; where there is
    /// none, those that hold an unconnected UDP socket bound to it.
    ///
    /// Process 1 is left out while others hold the socket too: a service manager keeps the sockets it
    /// hands over, and taking it for the service would make every process of the host its child.
    pub fn find(&mut self, port: u16) -> BTreeSet<Tgid> {
        let ids = process::all_ids();
        let now = Instant::now();
        if self.all_checked.is_none_or(|at| now - at >= Self::INTERVAL) {
            self.checked.clear();
            self.all_checked = Some(now);
        }
        let present: Vec<_> =
            ids.iter().filter_map(|&tgid| Some((tgid, self.namespace_of(tgid)?))).collect();
        let namespaces = by_namespace(present.iter().cloned());
        let on_port = |listening: fn(&Path, &[Tgid]) -> Vec<Entry>| -> Vec<_> {
            let inodes = |namespace, members| -> BTreeSet<u64> {
                rest();
                let entries = listening(namespace, members).into_iter();
                entries.filter(|entry| entry.port == port).map(|entry| entry.inode).collect()
            };
            namespaces
                .iter()
                .map(|(namespace, members)| (members.as_slice(), inodes(namespace, members)))
                .filter(|(_, inodes)| !inodes.is_empty())
                .collect()
        };
        let mut found = self.holders_of(&on_port(tcp_listeners), &ids);
        if found.is_empty() {
            found = self.holders_of(&on_port(unconnected_udp), &ids);
        }
        let before = std::mem::take(&mut self.checked);
        let first = |tgid: &Tgid| before.get(tgid).map_or(now, |known| known.first);
        let checked = |(tgid, namespace)| (tgid, Checked { first: first(&tgid), namespace });
        self.checked = present.into_iter().map(checked).collect();
        self.holders.clone_from(&found);
        if found.len() > 1 {
            found.remove(&Tgid(1));
        }
        found
    }

    fn namespace_of(&self, tgid: Tgid) -> Option<PathBuf> {
        rest();
        let known = self.checked.get(&tgid);
        let settled = known.filter(|known| known.first.elapsed() >= Self::SETTLING);
        settled.map_or_else(|| namespace(tgid), |known| Some(known.namespace.clone()))
    }

    /// Who holds the sockets, which are given for the members of each network namespace.
    fn holders_of(&mut self, sockets: &[(&[Tgid], BTreeSet<u64>)], ids: &[Tgid]) -> BTreeSet<Tgid> {
        let inodes: BTreeSet<u64> =
            sockets.iter().flat_map(|(_, inodes)| inodes).copied().collect();
        if inodes.is_empty() {
            return BTreeSet::new();
        }
        let mut found = BTreeSet::new();
        if inodes == self.sockets {
            let is_known =
                |tgid: &Tgid| self.checked.contains_key(tgid) && !self.holders.contains(tgid);
            found = holders_in(sockets, ids, |tgid| !is_known(tgid));
        }
        if found.is_empty() {
            found = holders_in(sockets, ids, |_| true);
        }
        self.sockets = inodes;
        found
    }
}

fn holders_in(
    sockets: &[(&[Tgid], BTreeSet<u64>)],
    ids: &[Tgid],
    is_checked: impl Fn(&Tgid) -> bool,
) -> BTreeSet<Tgid> {
    let mut found = BTreeSet::new();
    for (members, inodes) in sockets {
        let mut here = holders(members.iter().copied().filter(&is_checked), inodes);
        if here.is_empty() {
            // A socket may be held from outside its namespace (handed over, or setns).
            here = holders(ids.iter().copied().filter(&is_checked), inodes);
        }
        found.extend(here);
    }
    found
}

/// The TCP ports on which these processes listen.
#[must_use]
pub fn listened_ports(tgids: &BTreeSet<Tgid>) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for (namespace, members) in namespaces_of(tgids) {
        let sockets = members.iter().filter_map(|&tgid| socket_descriptors(tgid)).flatten();
        let inodes: BTreeSet<u64> = sockets.map(|(_, inode)| inode).collect();
        let entries = tcp_listeners(&namespace, &members).into_iter();
        let held = entries.filter(|entry| inodes.contains(&entry.inode));
        ports.extend(held.map(|entry| entry.port));
    }
    ports
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::process::Command;

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0000000000000000 100 0 0 10 0
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn only_listeners_on_the_port_are_taken() {
        let find = |text: &'static str, port| {
            let entries = in_state(text.as_bytes(), TCP_LISTEN, true);
            let on_port = entries.filter(|entry| entry.port == port);
            on_port.map(|entry| entry.inode).collect::<BTreeSet<_>>()
        };
        // 4714 stands after the first connection, where the kernel never prints a listener.
        assert_eq!(find(TCP, 8080), BTreeSet::from([4711]));
        assert_eq!(find(TCP, 80), BTreeSet::from([4712]));
        assert_eq!(find(TCP, 81), BTreeSet::new());
        assert_eq!(find(TCP6, 8080), BTreeSet::from([99]));
        assert_eq!(in_state(TCP.as_bytes(), TCP_LISTEN, false).count(), 3);
    }

    #[test]
    fn damaged_lines_are_skipped() {
        for line in ["", "0:", "0: 0100007F 0:0 0A", "0: x:zz 0:0 0A a b c d e 1", "garbage"] {
            assert_eq!(Entry::parse(line), None, "{line:?}");
        }
        assert_eq!(socket_inode("socket:[12]"), Some(12));
        for link in ["pipe:[12]", "socket:[x]", "socket:[12", "/dev/null"] {
            assert_eq!(socket_inode(link), None);
        }
    }

    fn listeners(port: u16) -> BTreeSet<Tgid> {
        Listeners::default().find(port)
    }

    fn me() -> Tgid {
        Tgid(std::process::id())
    }

    #[test]
    fn a_listener_of_this_process_is_found_and_a_client_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(listeners(port).contains(&me()));
        let client_port = client.local_addr().unwrap().port();
        assert!(!listeners(client_port).contains(&me()));
        let ports = listened_ports(&BTreeSet::from([me()]));
        assert!(ports.contains(&port) && !ports.contains(&client_port));
        drop((client, listener));
        assert!(!listeners(port).contains(&me()));
    }

    #[test]
    fn both_ways_find_the_same_listeners() {
        let listeners: Vec<_> = ["127.0.0.1:0", "[::1]:0"]
            .into_iter()
            .filter_map(|on| TcpListener::bind(on).ok())
            .collect();
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let on_ports = |entries: Vec<Entry>| -> BTreeSet<(u16, u64)> {
            let mine = entries.into_iter().filter(|entry| ports.contains(&entry.port));
            mine.map(|entry| (entry.port, entry.inode)).collect()
        };
        let found = on_ports(tcp_listeners(&own, &[me()]));
        assert_eq!(found.len(), listeners.len());
        assert_eq!(found, on_ports(read_tables(&[me()], ["tcp", "tcp6"])));
    }

    #[test]
    fn without_a_tcp_listener_a_bound_udp_socket_counts() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listeners(port).contains(&me()));
    }

    #[test]
    fn later_searches_find_who_is_new_and_who_took_over() {
        let mut listeners = Listeners::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Other tests may start a process, which has all descriptors until it executes its program.
        let mut find = |of: [Tgid; 2]| -> BTreeSet<Tgid> {
            listeners.find(port).intersection(&of.into()).copied().collect()
        };
        assert_eq!(find([me(), Tgid(0)]), BTreeSet::from([me()]));
        // A child that inherits the socket.
        let inherited = listener.try_clone().unwrap();
        let mut child =
            Command::new("sleep").arg("60").stdin(OwnedFd::from(inherited)).spawn().unwrap();
        let both = [me(), Tgid(child.id())];
        assert_eq!(find(both), both.into());
        assert_eq!(find(both), both.into());
        // Held by the child alone, which was checked before.
        drop(listener);
        assert_eq!(find(both), BTreeSet::from([Tgid(child.id())]));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!find(both).contains(&Tgid(child.id())));
    }
}
