//! What the kernel counts for a network namespace: `/proc/PID/net/snmp`, `netstat` and `snmp6`.

use std::collections::BTreeMap;

use super::{process, read_start};
use crate::model::Tgid;

/// Most bytes that are read of a file. The kernel's have at most a few thousand.
const FILE_BYTES: u64 = 65_536;

/// The counters that are read, by group and name; nstat(8) writes both as one word. Which of them a
/// kernel has depends on its version.
const COUNTERS: &[(&str, &str)] = &[
    // Connections that could not be made.
    ("TcpExt", "ListenOverflows"),
    ("TcpExt", "ListenDrops"),
    ("TcpExt", "TCPReqQFullDrop"),
    ("TcpExt", "TCPReqQFullDoCookies"),
    ("TcpExt", "TCPSynRetrans"),
    ("Tcp", "AttemptFails"),
    ("Tcp", "ActiveOpens"),
    ("Tcp", "PassiveOpens"),
    // What was sent again.
    ("Tcp", "OutSegs"),
    ("Tcp", "RetransSegs"),
    ("TcpExt", "TCPTimeouts"),
    ("TcpExt", "TCPLostRetransmit"),
    ("TcpExt", "TCPSpuriousRTOs"),
    ("TcpExt", "TCPAbortOnTimeout"),
    ("Tcp", "InErrs"),
    // What was dropped because there was no room for it.
    ("TcpExt", "TCPBacklogDrop"),
    ("TcpExt", "TCPRcvQDrop"),
    ("TcpExt", "TCPZeroWindowDrop"),
    ("TcpExt", "PruneCalled"),
    ("TcpExt", "RcvPruned"),
    ("TcpExt", "OfoPruned"),
    ("TcpExt", "TCPRcvCollapsed"),
    ("TcpExt", "TCPToZeroWindowAdv"),
    ("TcpExt", "TCPWantZeroWindowAdv"),
    ("TcpExt", "TCPMemoryPressures"),
    ("TcpExt", "TCPAbortOnMemory"),
    ("TcpExt", "TCPTimeWaitOverflow"),
    // Connections that ended by a reset.
    ("Tcp", "EstabResets"),
    ("Tcp", "OutRsts"),
    ("TcpExt", "TCPAbortOnData"),
    ("TcpExt", "TCPAbortOnClose"),
    ("TcpExt", "DelayedACKs"),
    ("Udp", "InErrors"),
    ("Udp", "RcvbufErrors"),
    ("Udp", "SndbufErrors"),
    ("Udp6", "InErrors"),
    ("Udp6", "RcvbufErrors"),
    ("Udp6", "SndbufErrors"),
];

/// Values by name, as nstat(8) writes it: `TcpExtListenOverflows`.
pub type Counters = BTreeMap<String, u64>;

/// The counters of the network namespace of a process; `None` when it is gone.
#[must_use]
pub fn read(tgid: Tgid) -> Option<Counters> {
    let snmp = of_process(tgid, "snmp")?;
    let mut counters = Counters::new();
    take_pairs(&snmp, &mut counters);
    take_pairs(&of_process(tgid, "netstat").unwrap_or_default(), &mut counters);
    take_lines(&of_process(tgid, "snmp6").unwrap_or_default(), &mut counters);
    Some(counters)
}

/// The TCP sockets in the network namespace of a process, about as many as its tables have lines. It is
/// read from two lines, whatever their number. `None` when the process is gone.
#[must_use]
pub fn tcp_sockets(tgid: Tgid) -> Option<u64> {
    let of_ip = of_process(tgid, "sockstat")?;
    Some(socket_count(&of_ip) + socket_count(&of_process(tgid, "sockstat6").unwrap_or_default()))
}

/// A file of the network namespace of a process, also where its first thread has exited.
fn of_process(tgid: Tgid, name: &str) -> Option<String> {
    let of = |tgid: Tgid| read_start(format!("/proc/{}/net/{name}", tgid.0), FILE_BYTES).ok();
    let bytes = of(tgid).or_else(|| of(process::heir(tgid)?))?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// `snmp` and `netstat`: of each group a line of names and a line of values.
fn take_pairs(text: &str, counters: &mut Counters) {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let (Some((group, names)), Some((same, values))) =
            (names.split_once(':'), values.split_once(':'))
        else {
            return;
        };
        if group != same {
            return;
        }
        let (names, values) = (names.split_ascii_whitespace(), values.split_ascii_whitespace());
        for (name, value) in names.zip(values) {
            if COUNTERS.contains(&(group, name))
                && let Ok(value) = value.parse()
            {
                counters.insert(format!("{group}{name}"), value);
            }
        }
    }
}

/// `snmp6`: a name and a value in each line.
fn take_lines(text: &str, counters: &mut Counters) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let Some(name_in_group) = name.strip_prefix("Udp6") else { continue };
        if COUNTERS.contains(&("Udp6", name_in_group))
            && let Ok(value) = value.parse()
        {
            counters.insert(name.to_owned(), value);
        }
    }
}

/// `TCP: inuse 5 orphan 0 tw 3 alloc 6 mem 2`, and `TCP6: inuse 1`.
fn socket_count(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP")?.split_once(": "));
    let Some((_, numbers)) = line else { return 0 };
    let words: Vec<&str> = numbers.split_ascii_whitespace().collect();
    let counted = words.chunks_exact(2).filter(|pair| ["inuse", "tw", "orphan"].contains(&pair[0]));
    counted.filter_map(|pair| pair[1].parse::<u64>().ok()).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Files of two kernels, as they were read. The older one counts nothing yet, and has fewer columns.
    const NETSTAT_6_1: &str = include_str!("network_counters/netstat-6.1");
    const NETSTAT_6_18: &str = include_str!("network_counters/netstat-6.18");
    const SNMP_6_1: &str = include_str!("network_counters/snmp-6.1");
    const SNMP_6_18: &str = include_str!("network_counters/snmp-6.18");

    fn pairs(text: &str) -> Counters {
        let mut counters = Counters::new();
        take_pairs(text, &mut counters);
        counters
    }

    #[test]
    fn counters_have_the_values_below_their_names() {
        let netstat = pairs(NETSTAT_6_18);
        assert_eq!(netstat["TcpExtListenOverflows"], 234);
        assert_eq!(netstat["TcpExtTCPSynRetrans"], 216);
        assert_eq!(netstat["TcpExtTCPTimeouts"], 219);
        assert_eq!(netstat["TcpExtTCPToZeroWindowAdv"], 4_345);
        assert!(!netstat.contains_key("TcpExtTW"), "it is not asked for");
        assert!(netstat.keys().all(|name| name.starts_with("TcpExt")), "{netstat:?}");
        let snmp = pairs(SNMP_6_18);
        assert_eq!(snmp["TcpRetransSegs"], 919);
        assert_eq!(snmp["TcpOutRsts"], 7_554);
        assert_eq!(snmp["UdpRcvbufErrors"], 0);
        let of_6_1 = [pairs(NETSTAT_6_1), pairs(SNMP_6_1)];
        assert_eq!([&netstat, &snmp].map(Counters::len), of_6_1.each_ref().map(Counters::len));
        let in_pairs = COUNTERS.iter().filter(|(group, _)| *group != "Udp6").count();
        assert_eq!(netstat.len() + snmp.len(), in_pairs, "these kernels have all of them");
    }

    #[test]
    fn what_a_kernel_does_not_count_is_missing() {
        let older = "TcpExt: ListenOverflows ListenDrops TCPTimeouts\nTcpExt: 1 2 3\n";
        let older = pairs(older);
        assert_eq!(older.get("TcpExtListenDrops"), Some(&2));
        assert_eq!(older.get("TcpExtTCPRcvQDrop"), None);
        let mut of_ipv6 = Counters::new();
        take_lines("Ip6InReceives 5\nUdp6RcvbufErrors                \t7\nUdp6\n", &mut of_ipv6);
        assert_eq!(of_ipv6, BTreeMap::from([("Udp6RcvbufErrors".into(), 7)]));
    }

    #[test]
    fn nonsense_gives_nothing() {
        for text in [
            "",
            "\n\n\n",
            "TcpExt ListenDrops\nTcpExt 5",
            "TcpExt: ListenDrops\nTcp: 5",
            "TcpExt: ListenDrops",
            "TcpExt: ListenDrops\nTcpExt: -5",
            "TcpExt: ListenDrops\nTcpExt: 99999999999999999999999",
            "TcpExt: ListenDrops\nTcpExt:",
            "TcpExt: \u{1b}[31mListenDrops\nTcpExt: 5",
        ] {
            assert_eq!(pairs(text), Counters::new(), "{text:?}");
        }
    }

    #[test]
    fn sockets_are_counted_without_their_tables() {
        let sockstat =
            "sockets: used 288\nTCP: inuse 5 orphan 1 tw 3 alloc 60 mem 2\nUDP: inuse 3 mem 4\n";
        assert_eq!(socket_count(sockstat), 9);
        assert_eq!(socket_count("TCP6: inuse 2\nUDP6: inuse 1\n"), 2);
        assert_eq!(
            [socket_count(""), socket_count("TCP: inuse x tw"), socket_count("TCP")],
            [0; 3]
        );
        assert!(tcp_sockets(Tgid(std::process::id())).is_some());
    }

    #[test]
    fn this_kernel_counts_and_a_process_that_is_gone_has_no_counters() {
        let counters = read(Tgid(std::process::id())).unwrap();
        assert!(counters.contains_key("TcpOutSegs"), "{counters:?}");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(read(Tgid(child.id())), None);
    }
}
