//! Which request of the target's sockets each sample of the load generator is.
//!
//! Where the sample says which port its connection had, only requests of that connection are
//! considered, otherwise all that are near in time. Each request belongs to one sample at most. Of
//! several possible pairings, that with the least unusual time outside the server is taken
//! (`pairing`); what is usual is measured first (`usual`), and with it the difference of the clocks.

use super::multiplexed::{self, Connections};
use super::pairing::{Pairs, pair};
use super::strangers::{self, Left};
use super::usual::{Usual, measure};
use crate::clock::MonoNanos;
use crate::model::{RequestsSummary, Sample, ServerRequest};

/// No request.
pub(super) const NONE: u32 = u32::MAX;
/// A write may return this long after the client has had the answer.
const RETURN_NS: u64 = 100_000;
/// If fewer than this part of the samples with a port find a request by it, the target sees other ports
/// (because of address translation), and times decide.
const LEAST_BY_PORT: f64 = 0.05;

/// Requests over Unix sockets are left out if there are so many over TCP for each sample: the service
/// asks another part of the target that way, and no load generator was seen that does.
const ENOUGH_OVER_TCP: f64 = 0.5;

/// How sure it is that a sample is a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PairQuality {
    /// There is no request for it.
    #[default]
    Unmatched,
    /// No other pairing is about as good.
    Matched,
    /// Another one is, but the same threads served both requests, at about the same time.
    SameThreads,
    /// Another one is.
    Ambiguous,
    /// No other one is, but it was unusually long on its way, and may be one of another client.
    Unusual,
    /// Its connection carried several requests at a time, which the target's sockets cannot tell apart.
    Multiplexed,
}

/// The request of each sample.
#[derive(Debug, Default)]
pub(super) struct Matching {
    request_of: Vec<u32>,
    quality: Vec<PairQuality>,
    /// The kernel's clock minus that of the samples, nanoseconds: what remained after the samples were
    /// put on the kernel's clock.
    pub(super) offset_ns: i64,
}

impl Matching {
    /// The index of a sample's request, and how sure it is.
    pub(super) fn of(&self, sample: usize) -> (Option<usize>, PairQuality) {
        let request = self.request_of.get(sample).filter(|request| **request != NONE);
        let quality = self.quality.get(sample).copied().unwrap_or_default();
        (request.map(|request| *request as usize), quality)
    }

    /// The index of a sample's request, if it is known which threads served it.
    pub(super) fn known(&self, sample: usize) -> Option<usize> {
        let quality = self.quality.get(sample)?;
        let is_known = matches!(quality, PairQuality::Matched | PairQuality::SameThreads);
        is_known.then(|| self.request_of.get(sample).map(|request| *request as usize))?
    }

    /// The samples by quality.
    pub(super) fn summary(&self) -> RequestsSummary {
        let mut summary = RequestsSummary::default();
        for quality in &self.quality {
            match quality {
                PairQuality::Matched => summary.matched += 1,
                PairQuality::SameThreads | PairQuality::Ambiguous | PairQuality::Unusual => {
                    summary.ambiguous += 1;
                }
                PairQuality::Unmatched => summary.unmatched += 1,
                PairQuality::Multiplexed => summary.multiplexed += 1,
            }
        }
        summary
    }
}

/// Both sides, as the pairing sees them: signed nanoseconds, so that differences need no care.
pub(super) struct Sides<'a> {
    pub(super) samples: &'a [Sample],
    pub(super) requests: &'a [ServerRequest],
    pub(super) uncertainty_ns: u64,
    /// Only requests of the sample's own connection are compared.
    pub(super) by_port: bool,
}

/// Times beyond this (36 years) are none.
pub(super) const MOST_NS: u64 = 1 << 60;

pub(super) fn ns(time: MonoNanos) -> i64 {
    time.0.min(MOST_NS) as i64
}

/// How much of a sample's time was outside the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outside {
    /// From the begin of the sample to the arrival of the request.
    pub(super) there_ns: i64,
    /// From the last write to the end of the sample; `None` where it says nothing, because the sample
    /// ended without the answer.
    pub(super) back_ns: Option<i64>,
}

impl Sides<'_> {
    pub(super) fn start(&self, sample: u32) -> i64 {
        ns(self.samples[sample as usize].start)
    }

    pub(super) fn begin(&self, request: u32) -> i64 {
        ns(self.requests[request as usize].begin())
    }

    /// The error that the times of this sample may have.
    pub(super) fn slack_ns(&self, sample: u32) -> i64 {
        let precision_ns = self.samples[sample as usize].precision_ns;
        let all = self.uncertainty_ns.saturating_add(precision_ns).saturating_add(RETURN_NS);
        all.min(MOST_NS) as i64
    }

    /// The first and the last begin that a request of this sample may have.
    pub(super) fn arrivals(&self, sample: u32) -> (i64, i64) {
        let slack_ns = self.slack_ns(sample);
        let Sample { start, end, .. } = &self.samples[sample as usize];
        (ns(*start) - slack_ns, ns(*end) + slack_ns)
    }

    /// The time outside the server if this sample were this request; `None` where it cannot be.
    pub(super) fn outside(&self, sample: u32, request: u32) -> Option<Outside> {
        let (first, last) = self.arrivals(sample);
        let arrival = self.begin(request);
        if arrival < first || arrival > last {
            return None;
        }
        let Sample { start, end, .. } = &self.samples[sample as usize];
        let there_ns = arrival - ns(*start);
        let is_answered = self.samples[sample as usize].is_answered();
        let ServerRequest { first_send, .. } = &self.requests[request as usize];
        let sent = self.requests[request as usize].end();
        let back_ns = match (first_send, sent) {
            (Some(first_send), Some(sent)) => {
                let is_late = ns(*first_send) > last;
                // If the connection is known, the write returned late because the client preempted
                // the sender.
                if is_late && is_answered && !self.by_port {
                    return None;
                }
                let back_ns = ns(*end) - ns(sent);
                (is_answered || back_ns >= 0).then_some(back_ns)
            }
            _ if is_answered => return None,
            _ => None,
        };
        Some(Outside { there_ns, back_ns })
    }
}

/// Indices of both sides in order of the connection (where connections are compared) and of time.
pub(super) struct Orders {
    pub(super) samples: Vec<u32>,
    pub(super) requests: Vec<u32>,
}

impl Orders {
    fn new(sides: &Sides<'_>, samples: Vec<u32>, requests: Vec<u32>) -> Self {
        let mut orders = Self { samples, requests };
        orders.samples.sort_unstable_by_key(|index| {
            (sample_port(sides, *index), sides.start(*index), *index)
        });
        orders.requests.sort_unstable_by_key(|index| {
            (request_port(sides, *index), sides.begin(*index), *index)
        });
        orders
    }

    /// The requests that a sample is compared with.
    pub(super) fn requests_for(&self, sides: &Sides<'_>, sample: u32) -> &[u32] {
        let port = sample_port(sides, sample);
        let requests = &self.requests;
        let from = requests.partition_point(|request| request_port(sides, *request) < port);
        let length =
            requests[from..].partition_point(|request| request_port(sides, *request) == port);
        &requests[from..from + length]
    }

    fn match_up(&self, sides: &Sides<'_>, usual: &Usual, pairs: &mut Pairs) {
        let port = |one: &u32, other: &u32| sample_port(sides, *one) == sample_port(sides, *other);
        for samples in self.samples.chunk_by(port) {
            let requests = self.requests_for(sides, samples[0]);
            pair(sides, usual, samples, requests, pairs);
        }
    }
}

/// The connection of a sample; the same for all where only times are compared.
fn sample_port(sides: &Sides<'_>, sample: u32) -> u16 {
    let port = sides.samples[sample as usize].local_port;
    port.filter(|_| sides.by_port).unwrap_or(0)
}

fn request_port(sides: &Sides<'_>, request: u32) -> u16 {
    if sides.by_port { sides.requests[request as usize].remote_port } else { 0 }
}

/// The requests that samples may be.
pub(super) fn asked(samples: &[Sample], requests: &[ServerRequest]) -> Vec<u32> {
    let over_tcp = requests.iter().filter(|request| !request.is_unix).count() as f64;
    let only_tcp = over_tcp >= ENOUGH_OVER_TCP * samples.len() as f64;
    let of_samples = |request: &u32| !(only_tcp && requests[*request as usize].is_unix);
    (0..u32::try_from(requests.len()).unwrap_or(NONE - 1)).filter(of_samples).collect()
}

/// Finds the request of each sample. `uncertainty_ns` is by how much the clocks may differ.
pub(super) fn find(
    samples: &[Sample],
    requests: &[ServerRequest],
    uncertainty_ns: u64,
) -> Matching {
    if requests.is_empty() {
        return Matching::default();
    }
    let mut pairs = Pairs::new(samples.len(), requests.len());
    let mut usual = None;
    let mut sides = Sides { samples, requests, uncertainty_ns, by_port: true };
    let all = |length: usize| 0..u32::try_from(length).unwrap_or(NONE - 1);
    let is_forward = |sample: &u32| {
        let Sample { start, end, .. } = &samples[*sample as usize];
        start <= end
    };
    let has_port = |sample: &u32| samples[*sample as usize].local_port.is_some();
    let with_port: Vec<u32> = all(samples.len()).filter(is_forward).filter(has_port).collect();
    let asked = asked(samples, requests);
    let most = with_port.len().min(asked.len());
    if most > 0 {
        let orders = Orders::new(&sides, with_port, asked.clone());
        usual = measure(&sides, &orders);
        if let Some(usual) = &usual {
            orders.match_up(&sides, usual, &mut pairs);
        }
    }
    let ports_are_known = pairs.len() as f64 > most as f64 * LEAST_BY_PORT;
    if !ports_are_known {
        usual = None;
    }
    sides.by_port = false;
    // The second time, few are left, so that a request that was long on its way is found as well.
    for _ in 0..2 {
        let is_open = |sample: &u32| {
            pairs.request_of(*sample) == NONE && !(ports_are_known && has_port(sample))
        };
        let rest: Vec<u32> = all(samples.len()).filter(is_forward).filter(is_open).collect();
        let free: Vec<u32> =
            asked.iter().copied().filter(|request| !pairs.is_taken(*request)).collect();
        if rest.is_empty() || free.is_empty() {
            break;
        }
        let orders = Orders::new(&sides, rest, free);
        usual = usual.or_else(|| measure(&sides, &orders));
        let Some(usual) = &usual else { break };
        orders.match_up(&sides, usual, &mut pairs);
    }
    let most = i64::try_from(uncertainty_ns).unwrap_or(i64::MAX);
    let offset_ns = usual.map_or(0, |usual| usual.offset_ns().clamp(-most, most));
    let free: Vec<u32> =
        asked.iter().copied().filter(|request| !pairs.is_taken(*request)).collect();
    let (request_of, mut quality) = pairs.finish();
    if let Some(usual) = &usual {
        let connections = Connections::new(requests);
        let by_port = ports_are_known;
        multiplexed::mark(&sides, usual, &connections, by_port, &request_of, &mut quality);
        let left = Left::new(&sides, free.into_iter(), &request_of);
        strangers::settle(&sides, &left, &connections, &request_of, &mut quality);
    }
    Matching { request_of, quality, offset_ns }
}

#[cfg(test)]
#[path = "matching_tests.rs"]
mod tests;
