//! The network of the target, compared with what the kernel counts for its namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use observer::model::{Conditions, EndReason, NetworkSummary};
use observer::output::rundir::RunDir;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::trial::{directory, in_guest, programs};
use observer_tests::watch::{Watch, Work};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The limit of the queue of the service; it holds one more.
const BACKLOG: usize = 15;
/// Connections that fit.
const FIT: usize = BACKLOG + 1;
/// Connections that do not.
const REFUSED: usize = 3;
/// Of those that fit, how many are reset. The others are closed.
const RESET: usize = 4;
const PORT: u16 = 8080;

/// A service that is alone in a network namespace, and observer on it.
fn service(files: &std::path::Path) -> (Work, Watch, [Counters; 2]) {
    let backlog = BACKLOG.to_string();
    let arguments = ["listen-slowly", "--backlog", &backlog];
    let work = Work::start(&programs(), &arguments, Placement::default()).expect("it listens");
    let before = counters(work.id());
    let target = ["--pid", &work.id().to_string()];
    let watch = Watch::start(&programs(), &target, files).expect("it attaches");
    let begun = counters(work.id());
    (work, watch, [before, begun])
}

type Counters = BTreeMap<String, u64>;

/// All counters of the namespace of a process, by group and name in one word.
fn counters(pid: u32) -> Counters {
    let mut counters = Counters::new();
    for name in ["snmp", "netstat"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).expect("counters");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        for pair in lines.chunks_exact(2) {
            let group = pair[0][0].trim_end_matches(':');
            for (name, value) in pair[0].iter().zip(&pair[1]).skip(1) {
                // A few are no counts, and may be negative.
                counters.insert(format!("{group}{name}"), value.parse().unwrap_or(0));
            }
        }
    }
    let of_ipv6 = fs::read_to_string(format!("/proc/{pid}/net/snmp6")).unwrap_or_default();
    for line in of_ipv6.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, value) = (words.next().expect("a name"), words.next().expect("a value"));
        counters.insert(name.to_owned(), value.parse().expect("a number"));
    }
    counters
}

/// Runs `work` in the network namespace of a process.
fn inside<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let enter = || {
            let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("a namespace");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter it");
            work()
        };
        scope.spawn(enter).join().expect("no panic")
    })
}

/// Clients that fill the queue of the service, and others for which it has no room.
fn clients(pid: u32) -> (Vec<TcpStream>, Vec<OwnedFd>) {
    let service = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let begin_to_connect = |_| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None);
        let socket = socket.expect("a socket");
        assert_eq!(connect(&socket, &service), Err(Errno::INPROGRESS));
        socket
    };
    inside(pid, || {
        let fit = (0..FIT).map(|_| TcpStream::connect(service).expect("there is room")).collect();
        (fit, (0..REFUSED).map(begin_to_connect).collect())
    })
}

/// Waits until something is so.
fn wait_until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What observer has read so far.
fn so_far(watch: &Watch) -> Conditions {
    let run = RunDir::open(&watch.run).expect("a directory");
    run.read_run().expect("run.json").conditions
}

fn only_one(conditions: &Conditions) -> &NetworkSummary {
    assert_eq!((conditions.networks.len(), conditions.networks_beyond), (1, 0), "{conditions:?}");
    &conditions.networks[0]
}

#[test]
fn the_network_of_the_target_is_counted_as_the_kernel_does() {
    let Some(_guard) = privileged::ready("network of the target") else { return };
    let files = directory();
    let (mut work, watch, [before, begun]) = service(files.path());
    let pid = work.id();

    let (fit, refused) = clients(pid);
    let retransmits = || counters(pid)["TcpExtTCPSynRetrans"] - begun["TcpExtTCPSynRetrans"];
    wait_until("each refused client tries again", || {
        (retransmits() >= REFUSED as u64).then_some(())
    });
    wait_until("observer sees the full queue", || {
        let conditions = so_far(&watch);
        let port = conditions.networks.first()?.listeners.first()?.clone();
        (port.queue_max == FIT as u64).then_some(())
    });
    drop(refused);
    work.begin().expect("it accepts");
    assert_eq!(work.counts().expect("its counts")["accepted"], FIT);
    for (number, client) in fit.into_iter().enumerate() {
        if number < RESET {
            set_socket_linger(&client, Some(Duration::ZERO)).expect("an option");
        }
        drop(client);
    }
    let held = (FIT - RESET) as u64;
    wait_until("observer sees that the service does not close its connections", || {
        let conditions = so_far(&watch);
        let port = conditions.connections.first()?.ports.first()?.clone();
        (port.close_wait_held == held).then_some(())
    });
    let ending = counters(pid);
    let run = watch.run.clone();
    let (summary, info) = watch.finish().expect("a run");
    let after = counters(pid);

    let network = only_one(&summary.conditions);
    // The kernel's counters, read around observer's readings and between them.
    for (name, found) in &network.counters {
        let (least, most) = (ending[name] - begun[name], after[name] - before[name]);
        assert!((least..=most).contains(found), "{name}: {least} <= {found} <= {most}");
        if *found > 0 {
            println!("{name}: {least} <= {found} <= {most}");
        }
    }
    let counted = |name| network.counted(name);
    // Nothing else drops attempts to connect here. Each of them came at least twice.
    assert_eq!(counted("TcpExtListenOverflows"), counted("TcpExtListenDrops"));
    assert!(counted("TcpExtListenOverflows") >= 2 * REFUSED as u64, "{network:?}");
    assert!(counted("TcpExtTCPSynRetrans") >= REFUSED as u64, "{network:?}");
    assert_eq!(counted("TcpPassiveOpens"), FIT as u64);
    assert_eq!(counted("TcpActiveOpens"), (FIT + REFUSED) as u64);
    assert!(counted("TcpEstabResets") >= RESET as u64, "{network:?}");
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
    assert_eq!(network.network, link.to_string_lossy());

    let [port] = &network.listeners[..] else { panic!("{network:?}") };
    assert_eq!((port.port, port.sockets, port.queue), (PORT, 1, 0));
    assert_eq!(port.queue_max, FIT as u64);
    // The kernels of the guests lack the module.
    let has_diag = port.limit.is_some();
    assert!(has_diag || in_guest(), "{network:?}");
    if has_diag {
        assert_eq!(port.limit, Some(BACKLOG as u64));
        assert_eq!(network.dropped_by_others, Some(0));
        assert!(port.dropped >= Some(counted("TcpExtListenDrops")), "{network:?}");
    }
    let [connections] = &summary.conditions.connections[..] else { panic!("{summary:?}") };
    let [port] = &connections.ports[..] else { panic!("{connections:?}") };
    assert_eq!(port.states, [("close_wait".to_owned(), held)].into());
    assert_eq!((port.close_wait_first, port.close_wait_held), (0, held));
    let [clients] = &connections.peers[..] else { panic!("{connections:?}") };
    assert_eq!((&*clients.peer, &*clients.from), ("127.0.0.1:8080", "127.0.0.1"));
    assert!(clients.to_target && clients.most >= held, "{clients:?}");
    assert_eq!((&info.conditions, connections.unread), (&summary.conditions, 0));

    let report = Command::new(programs().observer).arg("report").arg(&run).output();
    let report = String::from_utf8(report.expect("a report").stdout).expect("UTF-8");
    let report = report.split_whitespace().collect::<Vec<_>>().join(" ");
    let overflowed = format!("overflowed {} times", counted("TcpExtListenOverflows"));
    assert!(report.contains(&overflowed), "{report}");
    let leaked = format!("Port 8080: {held} connections had been closed by their clients");
    assert!(report.contains(&leaked), "{report}");
    work.end().expect("it ends");
}

#[test]
fn the_last_reading_counts_of_a_namespace_that_ends_with_the_target() {
    let Some(_guard) = privileged::ready("network of a target that ends") else { return };
    let files = directory();
    let (work, mut watch, [before, _]) = service(files.path());
    let (fit, refused) = clients(work.id());
    let read = wait_until("the counters are read while the run goes on", || {
        let overflows = so_far(&watch).networks.first()?.counted("TcpExtListenOverflows");
        (overflows > 0).then_some(overflows)
    });
    let after = counters(work.id());
    drop((fit, refused, work));
    watch.process.wait(Duration::from_secs(120)).expect("it ends with its target");
    let (summary, info) = watch.finish().expect("a run");
    assert_eq!(info.end_reason, EndReason::TargetExit);
    let network = only_one(&summary.conditions);
    let found = network.counted("TcpExtListenOverflows");
    let name = "TcpExtListenOverflows";
    println!("{read} <= {found}, and {} a moment before its end", after[name] - before[name]);
    assert!(found >= read, "{network:?}");
    assert_eq!(network.listeners.len(), 1, "{network:?}");
}
