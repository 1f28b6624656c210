//! The TCP connections in the network namespaces of the target, watched through a run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::Watch;
use super::namespaces::{Namespace, Namespaces};
use crate::host::network::held_by;
use crate::host::network_counters::tcp_sockets;
use crate::host::tcp_sockets::{TcpSocket, TcpState};
use crate::model::{Conditions, ConnectionsSummary, PeerConnections, PortConnections, Tgid};
use crate::pace::rest;
use crate::target::Membership;

/// A namespace with more sockets is not read: that takes a tenth of a second of CPU time. It is more than
/// the ephemeral ports that there usually are (28,232), so that one peer alone never reaches it.
const SOCKETS_MAX: u64 = 50_000;
/// Peers that are told apart at a reading.
const PEERS_READ: usize = 4_096;
/// Half-closed connections that are told apart at a reading. Of more, that many are known to be held.
const HALF_CLOSED_READ: usize = 10_000;
/// Ports and peers that are kept of a namespace, of each.
const KEPT_MAX: usize = 16;
/// A service that closes its connections does it within a moment after its client did. One that stays half
/// closed for longer is forgotten, or its thread is busy with something else.
const HELD: Duration = Duration::from_secs(1);

pub(super) struct ConnectionWatch(Namespaces<Watched>);

impl ConnectionWatch {
    pub(super) fn start() -> Self {
        Self(Namespaces::new())
    }
}

impl Watch for ConnectionWatch {
    fn look(&mut self, membership: &Membership) {
        self.0.search(membership, Watched::new);
        self.0.each(|namespace, watched, target| {
            rest();
            let Some(sockets) = namespace.members.iter().find_map(|member| tcp_sockets(*member))
            else {
                return;
            };
            if sockets > SOCKETS_MAX {
                watched.summary.unread = sockets;
                return;
            }
            if let Some(reading) = Reading::of(namespace, target) {
                watched.take(reading, target);
            }
        });
    }

    fn note(&self, conditions: &mut Conditions) {
        conditions.connections = self.0.kept().map(Watched::summary).collect();
    }
}

/// The connections from one own address to one port of a peer.
type Way = (IpAddr, SocketAddr);

/// A connection, by both of its ends.
type Ends = (SocketAddr, SocketAddr);

/// What was found at one time.
#[derive(Default)]
struct Reading {
    /// Ports at which the target listens.
    target_ports: BTreeSet<u16>,
    /// Ports at which anybody listens.
    listening: BTreeSet<u16>,
    /// Connections by state, at the ports where the target listens.
    ports: BTreeMap<u16, BTreeMap<TcpState, u64>>,
    /// Connections by state that programs of the namespace made.
    peers: HashMap<Way, BTreeMap<TcpState, u64>>,
    /// Ways for which there was no room.
    beyond: BTreeSet<Way>,
    /// Those that the peer has closed and the program has not, with the inode.
    half_closed: Vec<(Ends, u64)>,
}

impl Reading {
    /// `None` when not all sockets were found.
    fn of(namespace: &mut Namespace, target: &BTreeSet<Tgid>) -> Option<Self> {
        let mut reading = Self::default();
        for (socket, is_own) in namespace.listeners(target)? {
            reading.listening.insert(socket.local.port());
            if is_own {
                reading.target_ports.insert(socket.local.port());
            }
        }
        let Namespace { sockets, members, .. } = namespace;
        sockets.connections(members, |socket| reading.add(socket)).then_some(reading)
    }

    fn add(&mut self, socket: &TcpSocket) {
        let port = socket.local.port();
        if self.target_ports.contains(&port) {
            *self.ports.entry(port).or_default().entry(socket.state).or_default() += 1;
        } else if socket.peer.port() == 0 || self.listening.contains(&port) {
            // Bound and not connected, or accepted by another service.
            return;
        } else {
            let way = (socket.local.ip(), socket.peer);
            if self.peers.len() >= PEERS_READ && !self.peers.contains_key(&way) {
                if self.beyond.len() < PEERS_READ {
                    self.beyond.insert(way);
                }
                return;
            }
            *self.peers.entry(way).or_default().entry(socket.state).or_default() += 1;
        }
        if socket.state == TcpState::CLOSE_WAIT && self.half_closed.len() < HALF_CLOSED_READ {
            self.half_closed.push(((socket.local, socket.peer), socket.inode));
        }
    }
}

struct Watched {
    summary: ConnectionsSummary,
    ports: BTreeMap<u16, PortConnections>,
    peers: BTreeMap<Way, PeerConnections>,
    /// Connections that were half closed at the last reading, with the time at which that was first seen.
    half_closed: HashMap<Ends, Instant>,
    is_first: bool,
}

impl Watched {
    fn new(namespace: &Namespace) -> Self {
        let ephemeral = namespace.sockets.ephemeral;
        let ports = |(first, last): (u16, u16)| u64::from(last) - u64::from(first) + 1;
        Self {
            summary: ConnectionsSummary {
                network: namespace.name.clone(),
                ephemeral_ports: ephemeral.map(ports),
                ..ConnectionsSummary::default()
            },
            ports: BTreeMap::new(),
            peers: BTreeMap::new(),
            half_closed: HashMap::new(),
            is_first: true,
        }
    }

    fn take(&mut self, mut reading: Reading, target: &BTreeSet<Tgid>) {
        keep_own(&mut reading, target);
        self.summary.unread = 0;
        self.ports.values_mut().for_each(|port| {
            *port = PortConnections {
                port: port.port,
                close_wait_first: port.close_wait_first,
                ..PortConnections::default()
            };
        });
        for (number, states) in &reading.ports {
            let port = self.ports.entry(*number).or_default();
            (port.port, port.states) = (*number, named(states));
        }
        self.take_peers(&reading);
        let now = Instant::now();
        let before = std::mem::take(&mut self.half_closed);
        for (ends, _) in &reading.half_closed {
            let since = before.get(ends).copied().unwrap_or(now);
            self.half_closed.insert(*ends, since);
            let is_held = u64::from(now - since >= HELD);
            let is_first = u64::from(self.is_first);
            let (local, peer) = ends;
            let counts = match self.ports.get_mut(&local.port()) {
                Some(port) => Some((&mut port.close_wait_first, &mut port.close_wait_held)),
                None => self
                    .peers
                    .get_mut(&(local.ip(), *peer))
                    .map(|way| (&mut way.close_wait_first, &mut way.close_wait_held)),
            };
            if let Some((first, held)) = counts {
                *first += is_first;
                *held += is_held;
            }
        }
        self.is_first = false;
    }

    /// Of the peers, those with the most connections at this reading or an earlier one.
    fn take_peers(&mut self, reading: &Reading) {
        for way in self.peers.values_mut() {
            (way.states, way.close_wait_held) = (BTreeMap::new(), 0);
        }
        let of_own_port = |(from, peer): &Way| {
            let is_here = peer.ip().is_loopback() || peer.ip() == *from;
            is_here && reading.target_ports.contains(&peer.port())
        };
        for (way, states) in &reading.peers {
            let to_target = of_own_port(way);
            let entry = self.peers.entry(*way).or_insert_with(|| PeerConnections {
                peer: way.1.to_string(),
                from: way.0.to_string(),
                to_target,
                ..PeerConnections::default()
            });
            entry.states = named(states);
            entry.to_target |= to_target;
            entry.most = entry.most.max(states.values().sum());
            let time_wait = states.get(&TcpState::TIME_WAIT).copied().unwrap_or(0);
            entry.time_wait_most = entry.time_wait_most.max(time_wait);
        }
        let mut beyond = reading.beyond.len();
        if self.peers.len() > KEPT_MAX {
            let mut most: Vec<u64> = self.peers.values().map(|way| way.most).collect();
            most.sort_unstable_by(|one, other| other.cmp(one));
            let least = most[KEPT_MAX - 1];
            let mut room = KEPT_MAX - most.iter().filter(|most| **most > least).count();
            self.peers.retain(|_, way| {
                let stays = way.most > least || way.most == least && room > 0;
                room -= usize::from(stays && way.most == least);
                beyond += usize::from(!stays);
                stays
            });
        }
        self.summary.beyond = self.summary.beyond.max(beyond as u64);
    }

    fn summary(&self) -> ConnectionsSummary {
        let mut ports: Vec<_> = self.ports.values().cloned().collect();
        let beyond = ports.len().saturating_sub(KEPT_MAX) as u64;
        if beyond > 0 {
            let connections = |port: &PortConnections| port.states.values().sum::<u64>();
            ports.sort_by_key(|port| std::cmp::Reverse(connections(port)));
            ports.truncate(KEPT_MAX);
        }
        ConnectionsSummary {
            ports,
            peers: self.peers.values().cloned().collect(),
            beyond: self.summary.beyond + beyond,
            ..self.summary.clone()
        }
    }
}

/// Leaves out half-closed connections to peers that are not the target's. Whose they are shows only in the
/// descriptors of its processes, which are read where there is any.
fn keep_own(reading: &mut Reading, target: &BTreeSet<Tgid>) {
    let target_ports = &reading.target_ports;
    let is_made = |ends: &Ends| !target_ports.contains(&ends.0.port());
    let made = reading.half_closed.iter().filter(|(ends, _)| is_made(ends));
    let inodes: BTreeSet<u64> = made.map(|(_, inode)| *inode).collect();
    if inodes.is_empty() {
        return;
    }
    let held = held_by(target, &inodes);
    reading.half_closed.retain(|(ends, inode)| !is_made(ends) || held.contains(inode));
}

/// Two numbers of the kernel may have one name.
fn named(states: &BTreeMap<TcpState, u64>) -> BTreeMap<String, u64> {
    let mut named = BTreeMap::new();
    for (state, count) in states {
        *named.entry(state.name().to_owned()).or_default() += count;
    }
    named
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
