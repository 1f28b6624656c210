//! Connections that carry several requests at a time, as those of HTTP/2: what the target's sockets saw of
//! them are no single requests.
//!
//! Data that arrives for a request while another one is served belongs to the record of that one, and each
//! reply to the record that is open when it is written. No record shows that, but the samples do: on the
//! same connection, one begins later than another one and is answered before it. With one request at a
//! time that is impossible, and also where replies keep the order of the requests (pipelining in HTTP/1.1).

use super::matching::{NONE, PairQuality, Sides, ns};
use super::usual::Usual;
use crate::model::ServerRequest;

/// If fewer samples were overtaken, the generator's times may be wrong.
const LEAST: usize = 3;
/// So they may be if it is a smaller part of a connection's samples, which is a tenth of the slow ones
/// where these are those above p99.
const LEAST_PART: f64 = 0.001;

/// The ports of both ends.
type Connection = (u16, u16);

fn connection(request: &ServerRequest) -> Option<Connection> {
    (!request.is_unix).then_some((request.local_port, request.remote_port))
}

/// The requests of each connection, in order of begin.
pub(super) struct Connections<'a> {
    requests: &'a [ServerRequest],
    order: Vec<u32>,
}

impl<'a> Connections<'a> {
    pub(super) fn new(requests: &'a [ServerRequest]) -> Self {
        let of = |place: &u32| &requests[*place as usize];
        let count = u32::try_from(requests.len()).unwrap_or(NONE - 1);
        let mut order: Vec<u32> = (0..count).filter(|place| !of(place).is_unix).collect();
        order.sort_unstable_by_key(|place| (connection(of(place)), of(place).begin(), *place));
        Self { requests, order }
    }

    /// Whether the connection has a request that begins after `from`, and not after `until`.
    pub(super) fn begins(&self, connection: Connection, from: i64, until: i64) -> bool {
        let key = |place: &u32| {
            let request = &self.requests[*place as usize];
            (self::connection(request), ns(request.begin()))
        };
        let next = self.order.partition_point(|place| key(place) <= (Some(connection), from));
        self.order.get(next).is_some_and(|place| key(place) <= (Some(connection), until))
    }

    /// Whether the connection of this request has another one that begins after it, and not after `until`.
    pub(super) fn goes_on(&self, request: u32, until: i64) -> bool {
        let request = &self.requests[request as usize];
        let begin = ns(request.begin());
        connection(request).is_some_and(|connection| self.begins(connection, begin, until))
    }
}

/// Marks the samples of connections on which requests overtook each other. Which connection a sample had is
/// known by its port if `by_port`, otherwise by its request.
pub(super) fn mark(
    sides: &Sides<'_>,
    usual: &Usual,
    connections: &Connections<'_>,
    by_port: bool,
    request_of: &[u32],
    quality: &mut [PairQuality],
) {
    let samples = sides.samples;
    let of = |sample: &u32| {
        let request = sides.requests.get(request_of[*sample as usize] as usize);
        request.and_then(connection)
    };
    let end = |sample: &u32| ns(samples[*sample as usize].end);
    let has_port = |sample: &u32| by_port && samples[*sample as usize].local_port.is_some();
    let is_sure = |sample: &u32| {
        let is_certain = [PairQuality::Matched, PairQuality::SameThreads];
        has_port(sample) || is_certain.contains(&quality[*sample as usize])
    };
    let count = u32::try_from(samples.len()).unwrap_or(NONE - 1);
    let is_answered = |sample: &u32| samples[*sample as usize].is_answered();
    let mut order: Vec<u32> =
        (0..count).filter(|sample| is_answered(sample) && of(sample).is_some()).collect();
    order.sort_unstable_by_key(|sample| (of(sample), sides.start(*sample), *sample));

    let mut all: Vec<Carried> = Vec::new();
    for members in order.chunk_by(|one, other| of(one) == of(other)) {
        let Some(connection) = of(&members[0]) else { continue };
        // The first end of each and of those that begin after it.
        let mut first_ends = vec![i64::MAX; members.len()];
        let mut first_end = i64::MAX;
        for (member, entry) in members.iter().zip(&mut first_ends).rev() {
            if is_sure(member) {
                first_end = first_end.min(end(member));
            }
            *entry = first_end;
        }
        let is_overtaken = |sample: &&u32| {
            let unusual_ns = usual.unusual_ns();
            let margin_ns = sides.slack_ns(**sample).saturating_add(unusual_ns);
            let start = sides.start(**sample);
            let begun = start.saturating_add(margin_ns);
            let next = members.partition_point(|other| sides.start(*other) <= begun);
            let ends_behind = |first_end: &i64| *first_end < end(sample).saturating_sub(margin_ns);
            // It was sent when it began: a generator may let requests wait for a free connection.
            let arrival = start.saturating_add(usual.there_ns);
            let (from, until) =
                (arrival.saturating_sub(margin_ns), arrival.saturating_add(unusual_ns));
            first_ends.get(next).is_some_and(ends_behind)
                && connections.begins(connection, from, until)
        };
        let overtaken = members.iter().filter(is_overtaken).count();
        all.push(Carried { connection, samples: members.len(), overtaken });
    }
    drop(order);
    let found = multiplexed(&all, by_port);
    let mut ports: Vec<u16> = found.iter().map(|(_, remote)| *remote).collect();
    ports.sort_unstable();
    for sample in 0..count {
        let is_found = match of(&sample) {
            Some(connection) => found.binary_search(&connection).is_ok(),
            None => {
                let port = samples[sample as usize].local_port.filter(|_| by_port);
                port.is_some_and(|port| ports.binary_search(&port).is_ok())
            }
        };
        if is_found {
            quality[sample as usize] = PairQuality::Multiplexed;
        }
    }
}

/// The answered samples of a connection, and how many of them others overtook.
#[derive(Clone, Copy)]
struct Carried {
    connection: Connection,
    samples: usize,
    overtaken: usize,
}

impl Carried {
    fn is_multiplexed(&self) -> bool {
        self.overtaken > 0 && self.overtaken as f64 >= self.samples as f64 * LEAST_PART
    }
}

/// The connections that carried several requests at a time, of all in order. Few requests of a connection may
/// be slow, so what most of the connections to a port of the target do, all of them do. Where the
/// connections of the samples are not known by port, few of those that were overtaken are seen as well,
/// and the samples of a port are judged together.
fn multiplexed(all: &[Carried], by_port: bool) -> Vec<Connection> {
    let found = || all.iter().filter(|one| one.is_multiplexed());
    let overtaken: usize = found().map(|one| one.overtaken).sum();
    if overtaken < LEAST {
        return Vec::new();
    }
    let to_port = |one: &Carried, other: &Carried| one.connection.0 == other.connection.0;
    let of_port = all.chunk_by(to_port).flat_map(|members| {
        let samples = |counts: fn(&Carried) -> bool| -> usize {
            members.iter().filter(|one| counts(one)).map(|one| one.samples).sum()
        };
        let together = Carried {
            connection: members[0].connection,
            samples: samples(|_| true),
            overtaken: members.iter().map(|one| one.overtaken).sum(),
        };
        let all_are = match by_port {
            true => samples(Carried::is_multiplexed) * 2 > together.samples,
            false => together.is_multiplexed(),
        };
        members.iter().filter(move |one| all_are || one.is_multiplexed())
    });
    of_port.map(|one| one.connection).collect()
}

#[cfg(test)]
#[path = "multiplexed_tests.rs"]
mod tests;
