//! The TCP connections of the target that are a sign of trouble, in words.

use super::network::NAME_CHARACTERS;
use crate::model::{ConnectionsSummary, Owner, PeerConnections, PortConnections};
use crate::output::text::{clean, count, percent};

/// Ports and peers that are shown of a namespace, of each.
const SHOWN: usize = 4;
/// Fewer connections that are half closed may be there by chance: a thread was busy, or a client has just
/// closed them.
const HALF_CLOSED: u64 = 10;
/// Connections in state TIME_WAIT that say that connections are not used again: it lasts a minute, so that
/// these are ten a second.
const CLOSED: u64 = 600;
/// How long a connection is in that state, seconds (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT_SECONDS: u64 = 60;
/// The part of the ephemeral ports above which they run short: the kernel first tries every second port
/// only, and from then on it looks longer for a free one each time.
const PORTS_SHORT: f64 = 0.5;

/// A paragraph for each thing that is to be said.
pub(super) fn paragraphs(all: &[ConnectionsSummary]) -> Vec<String> {
    let mut paragraphs = Vec::new();
    for connections in all {
        paragraphs.extend(connections.ports.iter().filter_map(leak).take(SHOWN));
        paragraphs.extend(connections.peers.iter().filter_map(leak_to_peer).take(SHOWN));
        let mut peers: Vec<&PeerConnections> = connections.peers.iter().collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.most));
        let said = peers.iter().filter_map(|peer| not_used_again(peer, connections));
        paragraphs.extend(said.take(SHOWN));
        paragraphs.extend(connections.ports.iter().filter_map(closed_by_service).take(SHOWN));
        if connections.unread > 0 {
            paragraphs.push(unread(connections));
        }
    }
    paragraphs
}

fn unread(connections: &ConnectionsSummary) -> String {
    let which = match connections.network.as_str() {
        Owner::HOST => "The host's network namespace".to_owned(),
        name => format!("The network namespace {}", clean(name, NAME_CHARACTERS)),
    };
    format!(
        "{which} had {} TCP sockets, too many to read their states without disturbing the service. ss -s shows \
         them.",
        count(connections.unread)
    )
}

/// Connections that the service has not closed after its client did.
fn leak(port: &PortConnections) -> Option<String> {
    (port.close_wait_held >= HALF_CLOSED).then(|| {
        format!(
            "Port {}: {} connections had been closed by their clients for a second or more, and the service \
             had not closed them (CLOSE_WAIT; {} when the run began). Each of them keeps a file descriptor. The \
             service forgets to close them, or its threads are too busy to notice.",
            port.port,
            count(port.close_wait_held),
            count(port.close_wait_first)
        )
    })
}

/// The same of connections that the service made.
fn leak_to_peer(peer: &PeerConnections) -> Option<String> {
    (peer.close_wait_held >= HALF_CLOSED).then(|| {
        format!(
            "{} connections of the service to {} had been closed by that side for a second or more, and the \
             service had not closed them (CLOSE_WAIT; {} when the run began). A request that is sent on one of \
             them fails. Let the connection pool give up unused connections sooner than the other side does, \
             and check for connections that are never given back.",
            count(peer.close_wait_held),
            clean(&peer.peer, NAME_CHARACTERS),
            count(peer.close_wait_first)
        )
    })
}

/// Connections to a peer that are opened and closed all the time, or that take most of the ports.
fn not_used_again(peer: &PeerConnections, of: &ConnectionsSummary) -> Option<String> {
    let share = of.ephemeral_ports.map(|ports| peer.most as f64 / ports.max(1) as f64);
    let short = share.filter(|share| *share >= PORTS_SHORT);
    if short.is_none() && peer.time_wait_most < CLOSED {
        return None;
    }
    let (from, to) = (clean(&peer.from, NAME_CHARACTERS), clean(&peer.peer, NAME_CHARACTERS));
    let who = if peer.to_target { " These are clients of the target on this host." } else { "" };
    let mut text = match short {
        Some(share) => format!(
            "Connections from {from} to {to} used up to {} of {} ephemeral ports ({}; \
             net.ipv4.ip_local_port_range), {} of them after their end (TIME_WAIT, {TIME_WAIT_SECONDS} s).{who} \
             The search for a free port takes longer the fewer there are, and where none is left, connecting \
             fails (EADDRNOTAVAIL).",
            count(peer.most),
            count(of.ephemeral_ports.unwrap_or(0)),
            percent(share),
            count(peer.time_wait_most)
        ),
        None => format!(
            "Up to {} connections from {from} to {to} were in state TIME_WAIT, which lasts \
             {TIME_WAIT_SECONDS} s: about {} a second were opened and closed again.{who} Each new connection \
             costs at least a round trip before its first request.",
            count(peer.time_wait_most),
            count(peer.time_wait_most / TIME_WAIT_SECONDS)
        ),
    };
    text += " Keep connections open and use them again (a connection pool that is large enough, HTTP keep-alive)";
    text += if short.is_some() { ", or give the kernel more ports." } else { "." };
    Some(text)
}

/// Connections that the service itself closes.
fn closed_by_service(port: &PortConnections) -> Option<String> {
    let closed = port.states.get("time_wait").copied().unwrap_or(0);
    (closed >= CLOSED).then(|| {
        format!(
            "Port {}: {} connections were in state TIME_WAIT at the end, which lasts {TIME_WAIT_SECONDS} s: the \
             service closes connections before its clients do, and they have to open new ones. Check its \
             settings for keep-alive (requests on a connection, idle time), and whether clients ask for it \
             (Connection: close).",
            port.port,
            count(closed)
        )
    })
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
