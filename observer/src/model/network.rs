//! What the kernel counted about the network of the target, and the state of its TCP connections.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A network namespace in which processes of the target are, and what the kernel counted for it while it
/// was observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSummary {
    /// The namespace, as in [`super::Owner::network`].
    pub network: String,
    /// Time between the first and the last reading, nanoseconds.
    pub observed_ns: u64,
    /// By how much counters rose, by the name that nstat(8) gives them (`TcpExtListenOverflows`). All
    /// programs of the namespace are counted together. What the kernel does not count is missing.
    pub counters: BTreeMap<String, u64>,
    /// The ports at which the target accepts TCP connections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerSummary>,
    /// Further such ports.
    #[serde(default)]
    pub listeners_beyond: u64,
    /// Packets that the kernel dropped at listening TCP sockets of others in the namespace; `None` where it
    /// does not say it for each socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_by_others: Option<u64>,
    /// The largest limit that an accept queue may have (`net.core.somaxconn`); `None` when it could not be
    /// read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub somaxconn: Option<u64>,
}

impl NetworkSummary {
    /// How much a counter rose, by the name that nstat(8) gives it; 0 where the kernel does not count it.
    #[must_use]
    pub fn counted(&self, counter: &str) -> u64 {
        self.counters.get(counter).copied().unwrap_or(0)
    }
}

/// The sockets of the target that listen on one TCP port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerSummary {
    /// The port.
    pub port: u16,
    /// How many sockets listened on it at the last reading: several with `SO_REUSEPORT`, or one for each address.
    pub sockets: u64,
    /// Connections that waited to be accepted at the last reading.
    pub queue: u64,
    /// The most that waited at one socket at any reading.
    pub queue_max: u64,
    /// The limit of the queue of each socket (the smallest one); `None` where the kernel does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Packets that the kernel dropped at these sockets: at least one for each attempt to connect that was
    /// dropped. `None` where it does not say it for each socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

/// The TCP connections in a network namespace of the target, as last read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionsSummary {
    /// The namespace, as in [`super::Owner::network`].
    pub network: String,
    /// Connections at the ports where the target listens, by port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConnections>,
    /// Connections that programs of the namespace made, by peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerConnections>,
    /// Further ports and peers.
    #[serde(default)]
    pub beyond: u64,
    /// Ports from which the kernel chooses one for a connection that is made
    /// (`net.ipv4.ip_local_port_range`); `None` when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_ports: Option<u64>,
    /// Sockets at the last reading that was left out because they were too many; 0 when none was.
    #[serde(default)]
    pub unread: u64,
}

/// The connections at a port where the target listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConnections {
    /// The port.
    pub port: u16,
    /// How many there were at the last reading, by state (`established`, `close_wait`).
    pub states: BTreeMap<String, u64>,
    /// In state `close_wait` at the first reading.
    pub close_wait_first: u64,
    /// In state `close_wait` at the last reading and for at least a second before.
    pub close_wait_held: u64,
}

/// The connections from one address of the namespace to one port of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerConnections {
    /// Its address and port.
    pub peer: String,
    /// The own address.
    pub from: String,
    /// How many there were at the last reading, by state.
    pub states: BTreeMap<String, u64>,
    /// The most that there were at any reading: as many local ports were taken.
    pub most: u64,
    /// The most in state `time_wait` at any reading.
    pub time_wait_most: u64,
    /// The target's, in state `close_wait` at the first reading.
    pub close_wait_first: u64,
    /// The target's, in state `close_wait` at the last reading and for at least a second before.
    pub close_wait_held: u64,
    /// The target itself listens at the port of the peer: these are clients of the target.
    pub to_target: bool,
}
