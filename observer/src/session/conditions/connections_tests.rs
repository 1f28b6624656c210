use std::net::{TcpListener, TcpStream};

use super::*;
use crate::session::conditions::namespaces::tests::Holder;

fn watched() -> Watched {
    Watched {
        summary: ConnectionsSummary::default(),
        ports: BTreeMap::new(),
        peers: BTreeMap::new(),
        half_closed: HashMap::new(),
        is_first: true,
    }
}

/// A reading of a target that listens on port 80, in a namespace where somebody else listens on 90.
fn reading() -> Reading {
    Reading { target_ports: [80].into(), listening: [80, 90].into(), ..Reading::default() }
}

fn socket(state: TcpState, local: u16, peer: &str) -> TcpSocket {
    TcpSocket {
        state,
        local: SocketAddr::from(([10, 0, 0, 1], local)),
        peer: peer.parse().unwrap(),
        inode: 0,
        queue: 0,
        limit: None,
        dropped: None,
    }
}

#[test]
fn connections_are_told_apart_by_who_made_them() {
    let mut watched = watched();
    let mut reading = reading();
    for (state, local, peer) in [
        (TcpState::TIME_WAIT, 80, "10.0.0.2:40000"),
        (TcpState::TIME_WAIT, 80, "10.0.0.3:40000"),
        (TcpState::TIME_WAIT, 90, "10.0.0.3:40000"),
        (TcpState::TIME_WAIT, 40_001, "10.0.0.9:5432"),
        (TcpState::TIME_WAIT, 40_002, "10.0.0.9:5432"),
        (TcpState::TIME_WAIT, 40_003, "10.0.0.1:80"),
        (TcpState::TIME_WAIT, 40_004, "0.0.0.0:0"),
    ] {
        reading.add(&socket(state, local, peer));
    }
    watched.take(reading, &BTreeSet::new());
    let summary = watched.summary();
    let [port] = &summary.ports[..] else { panic!("{summary:?}") };
    assert_eq!((port.port, &port.states), (80, &[("time_wait".to_owned(), 2)].into()));
    let [own, other] = &summary.peers[..] else { panic!("{summary:?}") };
    assert_eq!((&*own.peer, own.most, own.to_target), ("10.0.0.1:80", 1, true));
    assert_eq!((&*other.peer, &*other.from), ("10.0.0.9:5432", "10.0.0.1"));
    assert_eq!((other.most, other.time_wait_most, other.to_target), (2, 2, false));
    // They are gone, and what was most stays.
    watched.take(self::reading(), &BTreeSet::new());
    let summary = watched.summary();
    assert_eq!((summary.peers[1].most, summary.peers[1].states.len()), (2, 0));
    assert_eq!((summary.ports[0].port, summary.ports[0].states.len()), (80, 0));
}

#[test]
fn the_peers_with_the_most_connections_are_kept_and_the_others_counted() {
    let mut watched = watched();
    let mut reading = reading();
    let peers = KEPT_MAX + 5;
    for peer in 1..=peers {
        for nth in 0..=peer / 2 {
            let local = 40_000 + u16::try_from(nth).unwrap();
            reading.add(&socket(TcpState::TIME_WAIT, local, &format!("10.0.1.{peer}:443")));
        }
    }
    watched.take(reading, &BTreeSet::new());
    let summary = watched.summary();
    assert_eq!((summary.peers.len(), summary.beyond), (KEPT_MAX, 5));
    assert!(summary.peers.iter().all(|peer| peer.most >= 3), "{summary:?}");
    let mut full = self::reading();
    for peer in 0..PEERS_READ + 7 {
        let address = SocketAddr::from(([11, 0, (peer >> 8) as u8, peer as u8], 443));
        full.add(&socket(TcpState::TIME_WAIT, 40_000, &address.to_string()));
    }
    assert_eq!((full.peers.len(), full.beyond.len()), (PEERS_READ, 7));
    for port in 0..=HALF_CLOSED_READ {
        full.add(&socket(TcpState::CLOSE_WAIT, 80, &format!("10.0.0.2:{port}")));
    }
    assert_eq!(full.half_closed.len(), HALF_CLOSED_READ);
}

#[test]
fn half_closed_connections_count_once_they_were_held() {
    let mut watched = watched();
    let with = |peers: &[u16]| {
        let mut reading = reading();
        for port in peers {
            reading.add(&socket(TcpState::CLOSE_WAIT, 80, &format!("10.0.0.2:{port}")));
        }
        reading
    };
    watched.take(with(&[1, 2]), &BTreeSet::new());
    assert_eq!(watched.summary().ports[0].close_wait_held, 0);
    // As if that was long ago.
    let long_ago = Instant::now().checked_sub(HELD).unwrap();
    watched.half_closed.values_mut().for_each(|since| *since = long_ago);
    watched.take(with(&[2, 3]), &BTreeSet::new());
    let port = watched.summary().ports[0].clone();
    assert_eq!((port.close_wait_first, port.close_wait_held, port.states["close_wait"]), (2, 1, 2));
    watched.take(with(&[]), &BTreeSet::new());
    assert_eq!(watched.summary().ports[0].close_wait_held, 0);
}

#[test]
fn half_closed_connections_of_other_programs_do_not_count() {
    let mut reading = reading();
    reading.add(&socket(TcpState::CLOSE_WAIT, 40_000, "10.0.0.9:5432"));
    reading.add(&socket(TcpState::CLOSE_WAIT, 80, "10.0.0.2:1"));
    keep_own(&mut reading, &BTreeSet::new());
    assert_eq!(reading.half_closed.len(), 1);
    assert_eq!(reading.half_closed[0].0.0.port(), 80);
}

#[test]
fn the_connections_at_a_port_of_the_target_are_found() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
    let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
    let target = Holder::of(&listener);
    let mut watch = ConnectionWatch::start();
    watch.look(&target.membership);
    let found = |watch: &ConnectionWatch| {
        let mut conditions = Conditions::default();
        watch.note(&mut conditions);
        let [connections] = &conditions.connections[..] else { panic!("{conditions:?}") };
        let [port] = &connections.ports[..] else { panic!("{connections:?}") };
        assert_eq!(port.port, at.port());
        port.states.clone()
    };
    assert_eq!(found(&watch), [("established".to_owned(), 3)].into());
    drop(clients);
    watch.look(&target.membership);
    assert_eq!(found(&watch), [("close_wait".to_owned(), 3)].into());
    drop(accepted);
}
