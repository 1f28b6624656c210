//! What the kernel counts for the network namespaces of the target, and the accept queues of its
//! listening sockets, watched through a run.

use std::collections::BTreeMap;

use super::Watch;
use super::namespaces::{Namespace, Namespaces};
use crate::clock::MonoNanos;
use crate::host::network_counters::{self, Counters};
use crate::host::tcp_sockets::TcpSocket;
use crate::model::{Conditions, ListenerSummary, NetworkSummary};
use crate::pace::rest;
use crate::target::Membership;

/// Ports that are kept of a namespace.
const PORTS_MAX: usize = 32;

pub(super) struct NetworkWatch(Namespaces<Watched>);

impl NetworkWatch {
    pub(super) fn start() -> Self {
        Self(Namespaces::new())
    }
}

/// What a namespace counts after the last reading before its last process ends is not known.
impl Watch for NetworkWatch {
    fn look(&mut self, membership: &Membership) {
        self.0.search(membership, Watched::new);
        self.0.each(|namespace, watched, target| {
            rest();
            let mut members = namespace.members.iter();
            if let Some(counters) = members.find_map(|member| network_counters::read(*member)) {
                watched.take_counters(counters);
            }
            rest();
            if let Some(listeners) = namespace.listeners(target) {
                watched.take_listeners(&listeners);
            }
        });
    }

    fn note(&self, conditions: &mut Conditions) {
        conditions.networks = self.0.kept().map(Watched::summary).collect();
        conditions.networks_beyond = self.0.beyond;
    }
}

struct Watched {
    /// As last read; `None` before.
    counters: Option<Counters>,
    read_at: MonoNanos,
    /// What each listening socket of the namespace had dropped, by inode; `None` before the first reading.
    dropped: Option<BTreeMap<u64, u32>>,
    ports: BTreeMap<u16, ListenerSummary>,
    /// What it comes to so far, without the ports.
    summary: NetworkSummary,
}

impl Watched {
    fn new(namespace: &Namespace) -> Self {
        let (network, somaxconn) = (namespace.name.clone(), namespace.sockets.somaxconn);
        Self {
            counters: None,
            read_at: MonoNanos::now(),
            dropped: None,
            ports: BTreeMap::new(),
            summary: NetworkSummary {
                network,
                somaxconn,
                // Until a socket does not say it.
                dropped_by_others: Some(0),
                ..NetworkSummary::default()
            },
        }
    }

    /// Takes in what the kernel counted since the last reading.
    fn take_counters(&mut self, now: Counters) {
        let read_at = MonoNanos::now();
        if let Some(before) = &self.counters {
            self.summary.observed_ns += read_at.since(self.read_at);
            for (name, now) in &now {
                // The name of a namespace that is gone may be another one's now, which counts from 0.
                let rise = before.get(name).map_or(0, |old| now.checked_sub(*old).unwrap_or(*now));
                let sum = self.summary.counters.entry(name.clone()).or_default();
                *sum = sum.saturating_add(rise);
            }
        } else {
            self.summary.counters = now.keys().map(|name| (name.clone(), 0)).collect();
        }
        (self.counters, self.read_at) = (Some(now), read_at);
    }

    /// Takes in the listening sockets of the namespace, each with whether it is one of the target's.
    fn take_listeners(&mut self, listeners: &[(TcpSocket, bool)]) {
        // A port at which no process listens any more keeps its sums.
        for port in self.ports.values_mut() {
            (port.sockets, port.queue) = (0, 0);
        }
        let mut dropped = BTreeMap::new();
        let mut others = self.summary.dropped_by_others;
        for (socket, is_own) in listeners {
            if let Some(now) = socket.dropped {
                dropped.insert(socket.inode, now);
            }
            let rise = socket.dropped.map(|now| u64::from(self.rise(socket.inode, now)));
            if *is_own {
                add(self.ports.entry(socket.local.port()).or_default(), socket, rise);
            } else {
                others = others.zip(rise).map(|(others, rise)| others + rise);
            }
        }
        self.dropped = Some(dropped);
        self.summary.dropped_by_others = others;
    }

    /// How many packets were dropped at a socket since the last reading. A socket is new where it was not
    /// there at the last reading, and has dropped nothing before; what one had dropped at the first
    /// reading does not count.
    fn rise(&self, inode: u64, now: u32) -> u32 {
        let before = self.dropped.as_ref().map(|before| before.get(&inode).copied().unwrap_or(0));
        before.map_or(0, |before| now.wrapping_sub(before))
    }

    fn summary(&self) -> NetworkSummary {
        let mut listeners: Vec<_> = self.ports.values().cloned().collect();
        let listeners_beyond = listeners.len().saturating_sub(PORTS_MAX) as u64;
        if listeners_beyond > 0 {
            // Those whose queues were the longest are kept.
            listeners.sort_by_key(|port| std::cmp::Reverse((port.dropped, port.queue_max)));
            listeners.truncate(PORTS_MAX);
        }
        NetworkSummary { listeners, listeners_beyond, ..self.summary.clone() }
    }
}

/// Adds a listening socket to those of its port.
fn add(port: &mut ListenerSummary, socket: &TcpSocket, dropped: Option<u64>) {
    let (queue, limit) = (u64::from(socket.queue), socket.limit.map(u64::from));
    // The first socket of this reading says the limit anew: it may listen again with another one.
    port.limit = if port.sockets == 0 { limit } else { port.limit.min(limit) };
    port.port = socket.local.port();
    port.sockets += 1;
    port.queue += queue;
    port.queue_max = port.queue_max.max(queue);
    if let Some(dropped) = dropped {
        port.dropped = Some(port.dropped.unwrap_or(0) + dropped);
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
