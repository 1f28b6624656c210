use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use super::*;
use crate::host::tcp_sockets::TcpState;
use crate::session::conditions::namespaces::tests::Holder;

fn watched() -> Watched {
    Watched {
        counters: None,
        read_at: MonoNanos::now(),
        dropped: None,
        ports: BTreeMap::new(),
        summary: NetworkSummary { dropped_by_others: Some(0), ..NetworkSummary::default() },
    }
}

fn counters(pairs: &[(&str, u64)]) -> Counters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn listener(port: u16, inode: u64, queue: u32, dropped: u32) -> TcpSocket {
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    TcpSocket {
        state: TcpState::LISTEN,
        local: any(port),
        peer: any(0),
        inode,
        queue,
        limit: Some(128),
        dropped: Some(dropped),
    }
}

#[test]
fn counters_count_from_the_first_reading() {
    let mut watched = watched();
    watched.take_counters(counters(&[("TcpOutSegs", 100), ("TcpRetransSegs", 7)]));
    assert_eq!(watched.summary.counters["TcpOutSegs"], 0);
    watched.take_counters(counters(&[("TcpOutSegs", 150), ("TcpRetransSegs", 7)]));
    watched.take_counters(counters(&[("TcpOutSegs", 151), ("TcpRetransSegs", 9)]));
    assert_eq!(watched.summary.counters, counters(&[("TcpOutSegs", 51), ("TcpRetransSegs", 2)]));
    assert!(watched.summary.observed_ns > 0);
    // Another namespace has the name now.
    watched.take_counters(counters(&[("TcpOutSegs", 3)]));
    assert_eq!(watched.summary.counters["TcpOutSegs"], 54);
    assert_eq!(watched.summary.counted("TcpExtListenDrops"), 0);
}

#[test]
fn what_a_socket_dropped_before_the_first_reading_does_not_count() {
    let mut watched = watched();
    watched.take_listeners(&[(listener(80, 1, 5, 1_000), true), (listener(90, 2, 0, 4), false)]);
    watched.take_listeners(&[(listener(80, 1, 129, 1_003), true), (listener(90, 2, 0, 9), false)]);
    // A second socket is new, so that all of its drops are.
    watched.take_listeners(&[(listener(80, 1, 2, 1_003), true), (listener(80, 3, 1, 6), true)]);
    let summary = watched.summary();
    assert_eq!(summary.dropped_by_others, Some(5));
    let [port] = &summary.listeners[..] else { panic!("{summary:?}") };
    let expected = ListenerSummary {
        port: 80,
        sockets: 2,
        queue: 3,
        queue_max: 129,
        limit: Some(128),
        dropped: Some(9),
    };
    assert_eq!(*port, expected);
    // It is closed; and the kernel's counter starts again at 0 after 2^32.
    watched.take_listeners(&[(listener(90, 2, 0, u32::MAX), false)]);
    watched.take_listeners(&[(listener(90, 2, 1, 1), true)]);
    let summary = watched.summary();
    assert_eq!((summary.listeners[0].sockets, summary.listeners[0].dropped), (0, Some(9)));
    assert_eq!((summary.listeners[1].port, summary.listeners[1].dropped), (90, Some(2)));
}

#[test]
fn where_the_kernel_does_not_say_drops_and_limits_nothing_is_made_up() {
    let mut watched = watched();
    let socket = TcpSocket { limit: None, dropped: None, ..listener(80, 1, 5, 0) };
    watched.take_listeners(&[(socket, true)]);
    watched.take_listeners(&[(socket, true)]);
    let port = watched.summary().listeners[0].clone();
    assert_eq!((port.limit, port.dropped, port.queue_max), (None, None, 5));
}

#[test]
fn the_ports_with_the_longest_queues_are_kept() {
    let mut watched = watched();
    let ports = PORTS_MAX as u32 + 3;
    let all: Vec<_> = (1..=ports)
        .map(|nth| (listener(u16::try_from(nth).unwrap(), nth.into(), nth, 0), true))
        .collect();
    watched.take_listeners(&all);
    let summary = watched.summary();
    assert_eq!((summary.listeners.len(), summary.listeners_beyond), (PORTS_MAX, 3));
    assert!(summary.listeners.iter().all(|port| port.queue_max > 3), "{summary:?}");
}

#[test]
fn a_process_is_found_in_its_namespace_with_its_own_listeners() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = Holder::of(&listener);
    let mut watch = NetworkWatch::start();
    watch.look(&target.membership);
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", port))).collect();
    watch.look(&target.membership);
    let mut conditions = Conditions::default();
    watch.note(&mut conditions);
    let [network] = &conditions.networks[..] else { panic!("{conditions:?}") };
    assert!(network.counted("TcpOutSegs") >= clients.len() as u64, "{network:?}");
    let [found] = &network.listeners[..] else { panic!("{network:?}") };
    assert_eq!((found.port, found.sockets, found.queue, found.queue_max), (port, 1, 3, 3));
    assert!(found.limit.is_some() && found.dropped == Some(0), "{found:?}");
    // What was read stays when the process is gone.
    let empty = target.end();
    watch.look(&empty);
    let mut after = Conditions::default();
    watch.note(&mut after);
    assert_eq!(after.networks[0].counters, conditions.networks[0].counters);
}
