//! What happened in the network of the target, in words. What makes requests wait for longest comes first.

use super::connections;
use crate::model::{Conditions, ListenerSummary, NetworkSummary, Owner, Summary};
use crate::output::text::{clean, count, duration, percent};

/// Characters of the name of a namespace.
pub(super) const NAME_CHARACTERS: usize = 64;
/// Ports that are shown.
const SHOWN: usize = 4;
/// A queue that was filled up to this part of its limit was close to overflowing: it is looked at once a
/// second only, and was fuller in between.
const NEARLY_FULL: f64 = 0.5;
/// A share of segments that were sent again that can be seen in a p99: a request of ten segments has one
/// of them in one of a hundred cases.
const RESENT_SHARE: f64 = 0.001;
/// Fewer connections that were reset or refused are usual, for example when a client ends.
const RESETS: u64 = 10;

/// Connections that wait for less are accepted soon enough.
const ACCEPTED_SOON_NS: u64 = 1_000_000;

/// A paragraph for each thing that happened; empty where nothing did.
pub(super) fn paragraphs(summary: &Summary) -> Vec<String> {
    let mut paragraphs: Vec<String> = accepted(summary).into_iter().collect();
    paragraphs.extend(of_conditions(&summary.conditions));
    paragraphs
}

/// How long connections waited for the service to accept them.
fn accepted(summary: &Summary) -> Option<String> {
    let parts = &summary.probes.get("request")?.parts;
    let waits = parts.get("accept_queue_wait").filter(|waits| waits.max_ns >= ACCEPTED_SOON_NS)?;
    let time = |ns: u64| duration(ns as f64);
    Some(format!(
        "{} connections waited to be accepted: half of them up to {}, 99 % up to {}, the longest {}. Meanwhile the \
         threads that accept were busy, or waited themselves: let a thread do nothing else, or let several accept.",
        count(waits.count),
        time(waits.p50_ns),
        time(waits.p99_ns),
        time(waits.max_ns),
    ))
}

fn of_conditions(conditions: &Conditions) -> Vec<String> {
    let mut paragraphs = Vec::new();
    for network in &conditions.networks {
        paragraphs.extend(queues(network));
        let counts = counts(network);
        if !counts.is_empty() {
            paragraphs.extend(counts);
            paragraphs.push(scope(network));
        }
    }
    paragraphs.extend(connections::paragraphs(&conditions.connections));
    if conditions.networks_beyond > 0 {
        let beyond = count(conditions.networks_beyond);
        paragraphs
            .push(format!("{beyond} further network namespaces of the target were not looked at."));
    }
    paragraphs
}

/// Whose counts these are.
fn scope(network: &NetworkSummary) -> String {
    let which = match network.network.as_str() {
        Owner::HOST => "the host's network namespace".to_owned(),
        name => format!("the network namespace {}", clean(name, NAME_CHARACTERS)),
    };
    format!(
        "The counts that name no port are those of {which}. All its programs are counted together, so that \
         a load generator there is a part of them."
    )
}

/// `1 connection was`, `5 connections were`.
fn were(number: u64, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one} was"),
        number => format!("{} {many} were", count(number)),
    }
}

/// `once`, `5 times`.
fn times(number: u64) -> String {
    if number == 1 { "once".to_owned() } else { format!("{} times", count(number)) }
}

/// The queues of connections that wait to be accepted.
fn queues(network: &NetworkSummary) -> Vec<String> {
    let overflows = network.counted("TcpExtListenOverflows");
    let mut ports: Vec<&ListenerSummary> = network.listeners.iter().collect();
    ports.sort_by_key(|port| std::cmp::Reverse((port.dropped, port.queue_max)));
    let said = ports.iter().filter_map(|port| queue(network, port));
    let mut paragraphs: Vec<String> = said.take(SHOWN).collect();
    let drops = |port: &&&ListenerSummary| port.dropped.is_some_and(|dropped| dropped > 0);
    if overflows > 0 && !ports.iter().any(|port| drops(&port)) {
        let unknown = ports.iter().any(|port| port.dropped.is_none());
        paragraphs.push(format!(
            "A queue of connections that wait to be accepted overflowed {}: each time the kernel dropped an \
             attempt to connect. {}",
            times(overflows),
            match unknown {
                true => format!("{AGAIN} Accept faster, or make the backlog of listen(2) larger."),
                false => "None of the sockets at which the target listens was concerned.".to_owned(),
            }
        ));
    }
    paragraphs.extend(half_open(network));
    paragraphs
}

/// What the client of a dropped attempt does.
const AGAIN: &str =
    "A client whose attempt was dropped tries again after 1 s, then after 2 s more, and so on.";

fn queue(network: &NetworkSummary, port: &ListenerSummary) -> Option<String> {
    let dropped = port.dropped.unwrap_or(0);
    let number = port.port;
    if dropped == 0 {
        let is_full = |limit: &u64| port.queue_max as f64 >= (*limit as f64 * NEARLY_FULL).max(1.0);
        let limit = port.limit.filter(is_full)?;
        return Some(format!(
            "Port {number}: up to {} connections waited to be accepted. {}",
            count(port.queue_max),
            advice(network, limit)
        ));
    }
    let overflows = network.counted("TcpExtListenOverflows");
    let all_drops = network.listeners.iter().filter_map(|port| port.dropped).sum::<u64>();
    let packets = if dropped == 1 { "packet" } else { "packets" };
    let begin = format!(
        "Port {number}: the kernel dropped {} {packets} of connections that were to be opened",
        count(dropped)
    );
    if overflows == 0 {
        return Some(format!(
            "{begin}, but not because the queue of connections that wait to be accepted was full: the host was \
             short of memory, or they came faster than they could be answered. {AGAIN}"
        ));
    }
    let said = if all_drops == dropped && network.dropped_by_others == Some(0) {
        // All that overflowed in the namespace was this port.
        format!(
            "Port {number}: the queue of connections that wait to be accepted overflowed {}. Each time the \
             kernel dropped an attempt to connect.",
            times(overflows)
        )
    } else {
        format!("{begin}, because the queue of connections that wait to be accepted was full.")
    };
    let advice = port.limit.map(|limit| advice(network, limit)).unwrap_or_default();
    Some(format!("{said} {AGAIN} {advice}").trim_end().to_owned())
}

/// What to do about a queue that is too short.
fn advice(network: &NetworkSummary, limit: u64) -> String {
    let (from, larger) = match network.somaxconn {
        Some(most) if limit >= most => (
            "from net.core.somaxconn, if the service asked for more in listen(2)".to_owned(),
            "raise net.core.somaxconn and the backlog of listen(2)",
        ),
        Some(most) => (
            format!("the backlog of listen(2); net.core.somaxconn allows {}", count(most)),
            "make the backlog larger",
        ),
        None => (
            "the backlog of listen(2), but not more than net.core.somaxconn".to_owned(),
            "make the backlog larger",
        ),
    };
    format!(
        "The limit of the queue is {} ({from}). Accept faster (more accepting threads, less work between two \
         accepts), or {larger}.",
        count(limit)
    )
}

/// The queue of connections that are not yet open.
fn half_open(network: &NetworkSummary) -> Option<String> {
    let dropped = network.counted("TcpExtTCPReqQFullDrop");
    let cookies = network.counted("TcpExtTCPReqQFullDoCookies");
    let advice = "Make the backlog of listen(2) and net.ipv4.tcp_max_syn_backlog larger.";
    match (dropped, cookies) {
        (0, 0) => None,
        (0, cookies) => Some(format!(
            "The queue of half-open connections was full {}: the kernel answered with SYN cookies, and no \
             attempt was dropped for that. {advice}",
            times(cookies)
        )),
        (dropped, _) => Some(format!(
            "The queue of half-open connections was full, and {} dropped. {AGAIN} {advice}",
            were(dropped, "attempt to connect", "attempts to connect")
        )),
    }
}

/// What is counted for the whole namespace.
fn counts(network: &NetworkSummary) -> Vec<String> {
    [resent, timeouts, dropped, full_buffers, memory, resets, udp]
        .into_iter()
        .filter_map(|about| about(network))
        .collect()
}

fn resent(network: &NetworkSummary) -> Option<String> {
    let of = |counter| network.counted(counter);
    let (opening, again, sent) =
        (of("TcpExtTCPSynRetrans"), of("TcpRetransSegs"), of("TcpOutSegs"));
    let share = again as f64 / (sent as f64).max(1.0);
    let mut text = String::new();
    if opening > 0 {
        text = format!(
            "{} sent again, the first time after 1 s: a request on a new connection waits for that.",
            were(opening, "packet that opens a connection (SYN or SYN-ACK)", OPENING)
        );
        if of("TcpExtListenOverflows") > 0 {
            text += " Where the queue of a port overflowed, that is the reason.";
        } else {
            text += " The other side dropped or lost what was sent first, or does not answer.";
        }
    }
    let data = again.saturating_sub(opening);
    if data > 0 && share >= RESENT_SHARE {
        let besides = if text.is_empty() { "" } else { " Besides these, " };
        text += &format!(
            "{besides}{} sent again ({} of {} in all).",
            were(data, "TCP segment", "TCP segments"),
            percent(share),
            count(sent)
        );
        text += match of("TcpExtListenOverflows") {
            0 => " Look for packets that were dropped: ",
            _ => {
                " A queue that overflows can cause that too: a client whose connection was not accepted sends \
                 its request again. If it goes on without that, look for packets that were dropped: "
            }
        };
        text += "ip -s link, tc -s qdisc, ethtool -S, and the counters of the network between the hosts.";
    }
    (!text.is_empty()).then_some(text)
}

const OPENING: &str = "packets that open a connection (SYN or SYN-ACK)";

fn timeouts(network: &NetworkSummary) -> Option<String> {
    let of = |counter| network.counted(counter);
    let (timeouts, ended) = (of("TcpExtTCPTimeouts"), of("TcpExtTCPAbortOnTimeout"));
    if timeouts == 0 && ended == 0 {
        return None;
    }
    let mut text = format!(
        "A sender waited until a timeout {} (200 ms or more on an open connection, 1 s on a new one): nothing \
         else had told it that a packet was lost.",
        times(timeouts)
    );
    let spurious = of("TcpExtTCPSpuriousRTOs");
    if spurious > 0 {
        text += &format!(
            " In {} of these cases nothing was lost, and the answer was only late.",
            count(spurious)
        );
    }
    if ended > 0 {
        text += &format!(" {} given up after that.", were(ended, "connection", "connections"));
    }
    Some(text)
}

/// Several counters as a list with their names: `5 TCPRcvQDrop, 1 RcvPruned`.
fn listed(network: &NetworkSummary, counters: &[&str]) -> Option<String> {
    let counted = counters.iter().map(|name| (name, network.counted(name)));
    let counted = counted.filter(|(_, number)| *number > 0);
    let listed: Vec<String> =
        counted.map(|(name, number)| format!("{} {name}", count(number))).collect();
    (!listed.is_empty()).then(|| listed.join(", "))
}

fn dropped(network: &NetworkSummary) -> Option<String> {
    let counters = [
        "TcpExtTCPBacklogDrop",
        "TcpExtTCPRcvQDrop",
        "TcpExtTCPZeroWindowDrop",
        "TcpExtRcvPruned",
        "TcpExtOfoPruned",
    ];
    listed(network, &counters).map(|listed| {
        format!(
            "The kernel dropped received TCP packets because a socket had no room for them ({listed}), and the \
             sender had to send them again. A program reads too slowly, or its receive buffer is too small \
             (net.ipv4.tcp_rmem, SO_RCVBUF)."
        )
    })
}

fn full_buffers(network: &NetworkSummary) -> Option<String> {
    let of = |counter| network.counted(counter);
    let (closed, pruned) = (of("TcpExtTCPToZeroWindowAdv"), of("TcpExtPruneCalled"));
    let mut text = String::new();
    if closed > 0 {
        text = format!(
            "A receive buffer was full {}, and the sender had to wait (zero window): a program reads more \
             slowly from its connections than data arrives.",
            times(closed)
        );
    }
    if pruned > 0 {
        let space = if text.is_empty() { "" } else { " " };
        text += &format!(
            "{space}The kernel made room in full receive buffers {} (PruneCalled), which takes CPU time.",
            times(pruned)
        );
    }
    (!text.is_empty()).then_some(text)
}

fn memory(network: &NetworkSummary) -> Option<String> {
    let of = |counter| network.counted(counter);
    let (pressure, ended) = (of("TcpExtTCPMemoryPressures"), of("TcpExtTCPAbortOnMemory"));
    let overflow = of("TcpExtTCPTimeWaitOverflow");
    let mut sentences = Vec::new();
    if pressure > 0 {
        sentences.push(format!(
            "TCP came to its limit of memory for buffers {} (net.ipv4.tcp_mem, for the whole host), and made \
             the buffers of all connections smaller.",
            times(pressure)
        ));
    }
    if ended > 0 {
        sentences.push(format!(
            "{} ended because there was no memory for it, or because too many were closed and not yet \
             delivered (net.ipv4.tcp_mem, net.ipv4.tcp_max_orphans).",
            were(ended, "connection", "connections")
        ));
    }
    if overflow > 0 {
        sentences.push(format!(
            "{} not kept in state TIME_WAIT, because there were as many as net.ipv4.tcp_max_tw_buckets allows: \
             connections are opened and closed too fast.",
            were(overflow, "closed connection", "closed connections")
        ));
    }
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

fn resets(network: &NetworkSummary) -> Option<String> {
    let of = |counter| network.counted(counter);
    let (reset, failed) = (of("TcpEstabResets"), of("TcpAttemptFails"));
    let mut sentences = Vec::new();
    if reset >= RESETS {
        sentences.push(format!("{} open TCP connections were reset.", count(reset)));
        let (on_close, on_data) = (of("TcpExtTCPAbortOnClose"), of("TcpExtTCPAbortOnData"));
        if on_close + on_data > 0 {
            sentences.push(format!(
                "In {} cases a program closed a connection before it had read everything, which loses what was \
                 on its way to the peer.",
                count(on_close + on_data)
            ));
        }
    }
    if failed >= RESETS {
        sentences.push(format!(
            "{} attempts to connect failed: they were refused, given up, or reset before the connection was open.",
            count(failed)
        ));
    }
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

fn udp(network: &NetworkSummary) -> Option<String> {
    let received = listed(network, &["UdpRcvbufErrors", "Udp6RcvbufErrors"]);
    let sent = listed(network, &["UdpSndbufErrors", "Udp6SndbufErrors"]);
    let mut sentences = Vec::new();
    if let Some(received) = received {
        sentences.push(format!(
            "The kernel dropped received UDP packets because a socket had no room for them ({received}): a \
             program reads too slowly, or its receive buffer is too small (net.core.rmem_max, SO_RCVBUF)."
        ));
    }
    if let Some(sent) = sent {
        sentences.push(format!(
            "The kernel refused to send UDP packets because a send buffer was full ({sent}; \
             net.core.wmem_max, SO_SNDBUF)."
        ));
    }
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
