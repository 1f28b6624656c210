//! Metrics of the network of the target.

use super::{Fill, Kind, Metric};
use crate::aggregate::Snapshot;
use crate::model::ListenerSummary;

/// A counter of the network namespaces of the target: its name, its meaning, and by what name nstat(8)
/// knows it.
macro_rules! network_counter {
    ($name:literal, $counter:literal, $help:literal) => {
        Metric {
            name: $name,
            kind: Kind::Counter,
            unit: None,
            labels: &["network"],
            help: concat!($help, " (", $counter, ", of all programs of the network namespace)"),
            fill: Fill::Own(|snapshot, family| {
                snapshot.conditions.networks.iter().try_for_each(|network| {
                    // What the kernel does not count has no sample.
                    let count = network.counters.get($counter);
                    count.map_or(Ok(()), |count| family.counter([&network.network], *count))
                })
            }),
        }
    };
}

/// In the order of the document.
pub(super) static METRICS: &[Metric] = &[
    network_counter!(
        "observer_target_network_listen_overflows",
        "TcpExtListenOverflows",
        "Attempts to connect that were dropped because an accept queue was full"
    ),
    network_counter!(
        "observer_target_network_syn_retransmits",
        "TcpExtTCPSynRetrans",
        "Packets that open a connection that were sent again"
    ),
    network_counter!(
        "observer_target_network_segments_sent",
        "TcpOutSegs",
        "TCP segments that were sent"
    ),
    network_counter!(
        "observer_target_network_segments_retransmitted",
        "TcpRetransSegs",
        "TCP segments that were sent again"
    ),
    network_counter!(
        "observer_target_network_retransmission_timeouts",
        "TcpExtTCPTimeouts",
        "Times that a sender waited until a timeout before it sent again"
    ),
    network_counter!(
        "observer_target_network_zero_windows",
        "TcpExtTCPToZeroWindowAdv",
        "Times that a full receive buffer stopped the sender"
    ),
    network_counter!(
        "observer_target_network_connections_reset",
        "TcpEstabResets",
        "Open TCP connections that were reset"
    ),
    Metric {
        name: "observer_target_listen_dropped_packets",
        kind: Kind::Counter,
        unit: None,
        labels: &["network", "port"],
        help: "Packets that the kernel dropped at a port where the target listens: at least one for each attempt \
               to connect that was dropped",
        fill: Fill::Own(|snapshot, family| {
            listeners(snapshot).try_for_each(|(network, port)| {
                let labels = [network, &port.port.to_string()];
                port.dropped.map_or(Ok(()), |dropped| family.counter(labels, dropped))
            })
        }),
    },
    Metric {
        name: "observer_target_listen_queue_connections",
        kind: Kind::Gauge,
        unit: None,
        labels: &["network", "port"],
        help: "Connections that wait to be accepted at a port of the target",
        fill: Fill::Own(|snapshot, family| {
            listeners(snapshot).try_for_each(|(network, port)| {
                let queue = i64::try_from(port.queue).unwrap_or(i64::MAX);
                family.gauge([network, &port.port.to_string()], queue)
            })
        }),
    },
    Metric {
        name: "observer_target_listen_queue_limit_connections",
        kind: Kind::Gauge,
        unit: None,
        labels: &["network", "port"],
        help: "Connections that may wait to be accepted at each socket of a port of the target",
        fill: Fill::Own(|snapshot, family| {
            listeners(snapshot).try_for_each(|(network, port)| {
                let limit = port.limit.and_then(|limit| i64::try_from(limit).ok());
                let labels = [network, &port.port.to_string()];
                limit.map_or(Ok(()), |limit| family.gauge(labels, limit))
            })
        }),
    },
    Metric {
        name: "observer_target_connections",
        kind: Kind::Gauge,
        unit: None,
        labels: &["network", "port", "state"],
        help: "TCP connections at a port where the target listens, by state",
        fill: Fill::Own(|snapshot, family| {
            snapshot.conditions.connections.iter().try_for_each(|connections| {
                connections.ports.iter().try_for_each(|port| {
                    port.states.iter().try_for_each(|(state, count)| {
                        let count = i64::try_from(*count).unwrap_or(i64::MAX);
                        let number = port.port.to_string();
                        family.gauge([&connections.network, &number, state], count)
                    })
                })
            })
        }),
    },
];

/// The ports at which the target listens, each with its network namespace.
fn listeners(snapshot: &Snapshot) -> impl Iterator<Item = (&str, &ListenerSummary)> {
    let networks = snapshot.conditions.networks.iter();
    networks
        .flat_map(|network| network.listeners.iter().map(|port| (network.network.as_str(), port)))
}
