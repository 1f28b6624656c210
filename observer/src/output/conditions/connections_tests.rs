use super::*;
use crate::output::example;

#[test]
fn connections_that_are_not_closed_and_ports_that_run_short_are_said() {
    let said = paragraphs(&example::connections());
    assert_eq!(
        said,
        [
            "Port 8080: 409 connections had been closed by their clients for a second or more, and the service \
             had not closed them (CLOSE_WAIT; 3 when the run began). Each of them keeps a file descriptor. The \
             service forgets to close them, or its threads are too busy to notice.",
            "Connections from 10.0.0.5 to 10.0.0.9:5432 used up to 16,100 of 28,232 ephemeral ports (57 %; \
             net.ipv4.ip_local_port_range), 16,000 of them after their end (TIME_WAIT, 60 s). The search for a \
             free port takes longer the fewer there are, and where none is left, connecting fails \
             (EADDRNOTAVAIL). Keep connections open and use them again (a connection pool that is large enough, \
             HTTP keep-alive), or give the kernel more ports.",
        ]
    );
}

#[test]
fn few_connections_are_not_worth_a_word() {
    let mut all = example::connections();
    all[0].ports[0].close_wait_held = HALF_CLOSED - 1;
    all[0].peers[0].most = 700;
    all[0].peers[0].time_wait_most = CLOSED - 1;
    assert_eq!(paragraphs(&all), [""; 0]);
}

#[test]
fn connections_that_are_used_once_are_said() {
    let mut all = example::connections();
    all[0].ports.clear();
    all[0].peers[0].most = 5_000;
    all[0].peers[0].time_wait_most = 3_000;
    all[0].peers[0].close_wait_held = 11;
    let said = paragraphs(&all);
    assert!(said[0].starts_with("11 connections of the service to 10.0.0.9:5432 had been closed"));
    assert!(
        said[1].starts_with(
            "Up to 3,000 connections from 10.0.0.5 to 10.0.0.9:5432 were in state TIME_WAIT, which lasts 60 s: \
             about 50 a second were opened and closed again. Each new"
        ),
        "{said:?}"
    );
    all[0].peers[0].to_target = true;
    all[0].ephemeral_ports = None;
    let said = paragraphs(&all);
    assert!(
        said[1].contains("again. These are clients of the target on this host. Each"),
        "{said:?}"
    );
}

#[test]
fn a_service_that_closes_connections_and_tables_that_are_too_long_are_said() {
    let mut all = example::connections();
    all[0].peers.clear();
    all[0].ports[0].close_wait_held = 0;
    all[0].ports[0].states = [("time_wait".to_owned(), 900)].into();
    all[0].unread = 123_456;
    let said = paragraphs(&all);
    assert!(said[0].starts_with("Port 8080: 900 connections were in state TIME_WAIT at the end"));
    assert!(
        said[1].starts_with("The host's network namespace had 123,456 TCP sockets"),
        "{said:?}"
    );
    all[0].network = example::HOSTILE.into();
    assert!(paragraphs(&all)[1].contains("namespace </b><i>?[31m had"));
}
