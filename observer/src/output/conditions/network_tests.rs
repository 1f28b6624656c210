use std::collections::BTreeMap;

use super::*;
use crate::model::DistributionSummary;
use crate::output::example;

fn network(counters: &[(&str, u64)]) -> NetworkSummary {
    let counters = counters.iter().map(|(name, rise)| ((*name).to_owned(), *rise)).collect();
    NetworkSummary { network: Owner::HOST.into(), counters, ..NetworkSummary::default() }
}

fn said(network: NetworkSummary) -> Vec<String> {
    of_conditions(&Conditions { networks: vec![network], ..Conditions::default() })
}

#[test]
fn nothing_is_said_where_nothing_happened() {
    assert_eq!(of_conditions(&Conditions::default()), [""; 0]);
    let quiet = network(&[
        ("TcpOutSegs", 1_000_000),
        ("TcpRetransSegs", 30),
        ("TcpEstabResets", 9),
        ("TcpAttemptFails", 2),
        ("TcpExtDelayedACKs", 4_000),
        ("TcpExtListenOverflows", 0),
    ]);
    let port = ListenerSummary {
        port: 80,
        sockets: 1,
        queue: 3,
        queue_max: 60,
        limit: Some(128),
        dropped: Some(0),
    };
    assert_eq!(said(NetworkSummary { listeners: vec![port], ..quiet }), [""; 0]);
}

#[test]
fn connections_that_waited_long_are_told_with_their_distribution() {
    let mut summary = example::attributed();
    let probe = summary.probes["fault"].clone();
    summary.probes.insert("request".into(), probe);
    let mut wait = |max_ns| {
        let waits = DistributionSummary {
            count: 1_200,
            sum_ns: 9_000_000_000,
            p50_ns: 40_000,
            p99_ns: 7_300_000,
            max_ns,
        };
        let request = summary.probes.get_mut("request").expect("it was inserted");
        request.parts.insert("accept_queue_wait".into(), waits);
        accepted(&summary)
    };
    assert_eq!(wait(ACCEPTED_SOON_NS - 1), None);
    assert_eq!(
        wait(12_000_000).as_deref(),
        Some(
            "1,200 connections waited to be accepted: half of them up to 40.0 µs, 99 % up to 7.30 ms, the longest \
             12.0 ms. Meanwhile the threads that accept were busy, or waited themselves: let a thread do nothing else, \
             or let several accept."
        )
    );
}

#[test]
fn a_queue_that_overflowed_comes_first_and_says_what_to_do() {
    let conditions = Conditions { networks: example::networks(), ..Conditions::default() };
    let said = of_conditions(&conditions);
    assert_eq!(
        said[0],
        "Port 8080: the queue of connections that wait to be accepted overflowed 132 times. Each time the \
         kernel dropped an attempt to connect. A client whose attempt was dropped tries again after 1 s, then after 2 s \
         more, and so on. The limit of the queue is 128 (the backlog of listen(2); net.core.somaxconn allows \
         4,096). Accept faster (more accepting threads, less work between two accepts), or make the backlog \
         larger."
    );
    assert_eq!(
        said[1],
        "140 packets that open a connection (SYN or SYN-ACK) were sent again, the first time after 1 s: a \
         request on a new connection waits for that. Where the queue of a port overflowed, that is the reason. \
         Besides these, 200 TCP segments were sent again (0.4 % of 90,000 in all). A queue that overflows \
         can cause that too: a client whose connection was not accepted sends its request again. If it goes on \
         without that, look for packets that were dropped: ip -s link, tc -s qdisc, ethtool -S, and the counters of the network between the hosts."
    );
    assert!(said[2].starts_with("A sender waited until a timeout 96 times (200 ms"), "{said:?}");
    assert!(said[3].contains("are those of the host's network namespace. All its"), "{said:?}");
    assert_eq!(said.len(), 4);
}

#[test]
fn the_limit_of_the_host_is_named_where_it_is_the_reason() {
    let mut networks = example::networks();
    networks[0].somaxconn = Some(128);
    let said_here = said(networks[0].clone());
    assert!(said_here[0].contains("or raise net.core.somaxconn and the backlog"), "{said_here:?}");
    networks[0].somaxconn = None;
    let said_here = said(networks[0].clone());
    assert!(said_here[0].contains("but not more than net.core.somaxconn)"), "{said_here:?}");
}

#[test]
fn drops_for_other_reasons_and_of_other_sockets_are_told_apart() {
    let mut networks = example::networks();
    let first = |networks: &[NetworkSummary]| said(networks[0].clone())[0].clone();
    networks[0].dropped_by_others = Some(3);
    let shared = first(&networks);
    assert!(shared.starts_with("Port 8080: the kernel dropped 140 packets of"), "{shared}");
    assert!(shared.contains("because the queue") && shared.contains("is 128"), "{shared}");
    networks[0].dropped_by_others = None;
    assert_eq!(first(&networks), shared);
    networks[0].counters.insert("TcpExtListenOverflows".into(), 0);
    let other = first(&networks);
    assert!(other.contains("but not because the queue") && !other.contains("limit"), "{other}");
    networks[0].counters.insert("TcpExtListenOverflows".into(), 140);
    networks[0].listeners[0].dropped = Some(0);
    networks[0].listeners[0].queue_max = 0;
    assert!(first(&networks).contains("None of the sockets at which the target listens"));
    // Without the kernel's socket diagnosis.
    networks[0].listeners[0].dropped = None;
    networks[0].listeners[0].limit = None;
    let unknown = first(&networks);
    assert!(unknown.contains("overflowed 140 times") && unknown.contains("backlog"), "{unknown}");
}

#[test]
fn a_queue_that_was_nearly_full_is_said() {
    let mut quiet = network(&[]);
    let port =
        ListenerSummary { port: 80, sockets: 1, queue_max: 64, ..ListenerSummary::default() };
    quiet.listeners = vec![ListenerSummary { limit: Some(128), dropped: Some(0), ..port }];
    assert!(said(quiet)[0].starts_with("Port 80: up to 64 connections waited to be accepted. The"));
}

#[test]
fn each_counter_has_its_words() {
    for (counters, expected) in [
        (&[("TcpExtTCPReqQFullDrop", 1)][..], "1 attempt to connect was dropped"),
        (
            &[("TcpExtTCPReqQFullDoCookies", 2)],
            "full 2 times: the kernel answered with SYN cookies",
        ),
        (&[("TcpExtTCPSynRetrans", 1), ("TcpRetransSegs", 1)], "or does not answer."),
        (&[("TcpRetransSegs", 2), ("TcpOutSegs", 100)], "again (2.0 % of 100 in all). Look for"),
        (&[("TcpExtTCPTimeouts", 1), ("TcpExtTCPSpuriousRTOs", 1)], "In 1 of these cases nothing"),
        (&[("TcpExtTCPAbortOnTimeout", 4)], "4 connections were given up after that"),
        (
            &[("TcpExtTCPRcvQDrop", 5), ("TcpExtOfoPruned", 2)],
            "(5 TcpExtTCPRcvQDrop, 2 TcpExtOfoPruned)",
        ),
        (
            &[("TcpExtTCPToZeroWindowAdv", 1)],
            "was full once, and the sender had to wait (zero window)",
        ),
        (&[("TcpExtPruneCalled", 3)], "made room in full receive buffers 3 times"),
        (
            &[("TcpExtTCPMemoryPressures", 3)],
            "limit of memory for buffers 3 times (net.ipv4.tcp_mem",
        ),
        (&[("TcpExtTCPAbortOnMemory", 3)], "3 connections were ended because"),
        (&[("TcpExtTCPTimeWaitOverflow", 3)], "net.ipv4.tcp_max_tw_buckets"),
        (&[("TcpEstabResets", 30), ("TcpExtTCPAbortOnClose", 7)], "In 7 cases a program closed"),
        (&[("TcpAttemptFails", 30)], "30 attempts to connect failed"),
        (&[("UdpRcvbufErrors", 30)], "(30 UdpRcvbufErrors): a program reads too slowly"),
        (&[("Udp6SndbufErrors", 30)], "(30 Udp6SndbufErrors; net.core.wmem_max"),
    ] {
        let said = said(network(counters)).join("\n");
        assert!(said.contains(expected), "{counters:?}: {said}");
    }
}

#[test]
fn a_namespace_is_named_and_those_that_were_left_out_are_counted() {
    let name = format!("net:[1]{}", example::HOSTILE);
    let other = NetworkSummary { network: name, ..network(&[("TcpExtTCPTimeouts", 1)]) };
    let conditions =
        Conditions { networks: vec![other], networks_beyond: 3, ..Conditions::default() };
    let said = of_conditions(&conditions);
    assert!(said[1].contains("of the network namespace net:[1]</b><i>?[31m. All"), "{said:?}");
    assert_eq!(said[2], "3 further network namespaces of the target were not looked at.");
    let counters: BTreeMap<String, u64> = [("A".to_owned(), 5)].into();
    assert_eq!(NetworkSummary { counters, ..network(&[]) }.counted("B"), 0);
}
