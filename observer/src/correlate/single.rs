//! Single requests: which are chosen, how each was matched, who served it, where its time went, and
//! the stalls that overlap it most.

use std::collections::{BTreeMap, HashMap};

use super::asked::Asked;
use super::blocks::Blocks;
use super::exposure::Served;
use super::handing::Handing;
use super::lines::{Line, Numbering};
use super::matching::{Matching, PairQuality, find};
use super::timeline::Timelines;
use super::worst::{Longest, is_inside, places_of_slowest};
use super::{Evidence, Ignored, account, locks};
use crate::clock::MonoNanos;
use crate::model::{
    AskedService, Cause, HandedOver, Matched, OutgoingRequest, RequestSelection, Sample, ServedBy,
    ServerRequest, SlowRequest, SlowStall, Stall, Tid, overlap_ns,
};

/// Slow requests in the results.
const REQUESTS: usize = 10;
/// Stalls of each request.
const STALLS: usize = 10;

/// The requests that a selection chose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    /// The requests, the slowest first; of equally slow ones, the earlier sample first.
    pub requests: Vec<SlowRequest>,
    /// The place of each among the samples.
    pub places: Vec<usize>,
    /// Requests that were watched from begin to end and fit the selection.
    pub total: u64,
    /// Requests that were watched from begin to end.
    pub inside: u64,
    /// Requests that were not.
    pub outside: u64,
}

/// The requests that a selection chooses, each with its account. Beside the evidence and what matching
/// needs, only the chosen ones are kept.
#[must_use]
pub fn choose(evidence: &Evidence<'_>, selection: &RequestSelection) -> Chosen {
    let fits = |sample: &Sample| {
        let is_in_flight = |at: MonoNanos| sample.begin() <= at && at < sample.end;
        sample.response_ns() >= selection.slower_than_ns.unwrap_or(0)
            && selection.at_ns.is_none_or(is_in_flight)
    };
    let (mut total, mut inside) = (0, 0);
    for sample in evidence.samples.iter().filter(|sample| is_inside(sample, evidence.window)) {
        inside += 1;
        total += u64::from(fits(sample));
    }
    let most = usize::try_from(selection.requests).unwrap_or(usize::MAX);
    let places = places_of_slowest(evidence.samples, evidence.window, most, fits);
    let requests = if places.is_empty() {
        Vec::new()
    } else {
        let by_thread = !evidence.requests.is_empty();
        let mut ignored = Ignored::default();
        let mut timelines =
            Timelines::new(evidence.stalls, evidence.window, by_thread, &mut ignored);
        let uncertainty_ns = evidence.quality.clock_uncertainty_ns;
        let matching = find(evidence.samples, evidence.requests, uncertainty_ns);
        let handing = Handing::new(evidence, &timelines);
        locks::follow(evidence, &mut timelines, &handing);
        requests(evidence, &matching, (&timelines, &handing), &Asked::new(evidence), &places)
    };
    let outside = evidence.samples.len() as u64 - inside;
    Chosen { requests, places, total, inside, outside }
}

/// The slowest requests wholly within the window.
pub(super) fn slowest_requests(
    evidence: &Evidence<'_>,
    matching: &Matching,
    threads: (&Timelines, &Handing<'_>),
    asked: &Asked<'_>,
) -> Vec<SlowRequest> {
    let places = places_of_slowest(evidence.samples, evidence.window, REQUESTS, |_| true);
    requests(evidence, matching, threads, asked, &places)
}

/// The samples at these places, with all that is known about each.
fn requests(
    evidence: &Evidence<'_>,
    matching: &Matching,
    threads: (&Timelines, &Handing<'_>),
    asked: &Asked<'_>,
    places: &[usize],
) -> Vec<SlowRequest> {
    let blocks = Blocks::new(evidence, matching);
    let services = |place: usize| {
        let of = |one: &OutgoingRequest| AskedService {
            peer: one.peer.to_string(),
            sent_ns: one.sent,
            replied_ns: one.replied,
        };
        asked.services(place).into_iter().rev().map(of).collect()
    };
    let mut requests: Vec<SlowRequest> = places
        .iter()
        .map(|place| {
            let sample = &evidence.samples[*place];
            let known = matching.known(*place);
            let request = known.and_then(|at| evidence.requests.get(at));
            SlowRequest {
                asked: known.map_or_else(Vec::new, services),
                matched: Some(matched(evidence, matching, &blocks, *place)),
                served: request.map(|request| served(evidence, threads.1, request)),
                ..SlowRequest::new(sample)
            }
        })
        .collect();
    let accounts = accounts(evidence, matching, threads, places);
    let longest = longest_stalls(evidence, places, &requests);
    for ((request, account_ns), longest) in requests.iter_mut().zip(accounts).zip(longest) {
        let (kept, more_stalls) = longest.finish();
        request.account_ns = account_ns;
        request.stalls = kept.into_iter().map(|(stall, ns)| SlowStall::new(stall, ns)).collect();
        request.more_stalls = more_stalls;
    }
    requests
}

fn served(evidence: &Evidence<'_>, handing: &Handing<'_>, request: &ServerRequest) -> ServedBy {
    let route = handing.route(request);
    let start = evidence.window.0;
    let handed = route.0.iter().map(|leg| HandedOver {
        tid: Tid(leg.tid),
        from_ns: MonoNanos(start.0.saturating_add(leg.from)),
    });
    ServedBy { handed: handed.collect(), ..ServedBy::new(request) }
}

fn matched(evidence: &Evidence<'_>, matching: &Matching, blocks: &Blocks, place: usize) -> Matched {
    let sample = &evidence.samples[place];
    let (request, quality) = matching.of(place);
    let port = request.and_then(|at| evidence.requests.get(at)).map(|request| request.remote_port);
    match quality {
        PairQuality::Matched if port.is_some() && port == sample.local_port => Matched::Connection,
        PairQuality::Matched => Matched::Time,
        PairQuality::SameThreads => Matched::SameThreads,
        PairQuality::Ambiguous | PairQuality::Unusual => Matched::Ambiguous,
        PairQuality::Multiplexed => Matched::Multiplexed,
        PairQuality::Unmatched if evidence.requests.is_empty() => Matched::NoRequests,
        PairQuality::Unmatched if !blocks.has(sample) => Matched::NotRecorded,
        PairQuality::Unmatched => Matched::Unmatched,
    }
}

/// The account of each sample whose serving threads are known. Where it is not known when these slept,
/// the time that no record covers is unexplained.
fn accounts(
    evidence: &Evidence<'_>,
    matching: &Matching,
    (timelines, handing): (&Timelines, &Handing<'_>),
    places: &[usize],
) -> Vec<Option<BTreeMap<Cause, u64>>> {
    let window = evidence.window;
    let has_sleeps = evidence.quality.has_sleeps();
    let mut numbering = Numbering::new(window, matching.offset_ns);
    let mut served = |place: &usize| {
        let sample = &evidence.samples[*place];
        let request = matching.known(*place)?;
        // A generator may say that it sent a request before its time, or after its end.
        let begin = sample.begin();
        let end = sample.end.max(begin);
        let start = sample.start.clamp(begin, end);
        let sent = Sample { start, end, error: None, ..sample.clone() };
        Some(Served {
            start: start.since(window.0),
            end: end.since(window.0),
            lateness_ns: start.since(begin),
            request: Some(request as u32),
            parts: numbering.parts(&sent, evidence.requests, request, Some(handing)),
        })
    };
    let served: Vec<Option<Served>> = places.iter().map(&mut served).collect();
    if served.iter().all(Option::is_none) {
        return vec![None; places.len()];
    }
    let mut lines = numbering.finish();
    // With it, all of a line's time has a cause.
    if !lines.contains(&Line::Outside) {
        lines.push(Line::Outside);
    }
    let stalls = timelines.on_lines(&lines, &handing.siblings, &handing.asides);
    let account = |served: Served| {
        let mut parts = account::parts(&served, &stalls);
        if !has_sleeps && let Some(rest_ns) = parts.remove(&Cause::SERVICE_CPU) {
            *parts.entry(Cause::UNEXPLAINED).or_default() += rest_ns;
        }
        parts
    };
    served.into_iter().map(|served| served.map(account)).collect()
}

/// Of each request, the stalls that overlap it most.
fn longest_stalls<'a>(
    evidence: &Evidence<'a>,
    places: &[usize],
    requests: &[SlowRequest],
) -> Vec<Longest<&'a Stall>> {
    let mut by_thread: HashMap<Tid, Vec<Interval>> = HashMap::new();
    let mut of_all_threads = Vec::new();
    for (number, (place, request)) in places.iter().zip(requests).enumerate() {
        let sample = &evidence.samples[*place];
        let Some(served) = &request.served else {
            of_all_threads.push(Interval::new(sample.begin(), sample.end, number));
            continue;
        };
        let begin = served.arrival_ns.unwrap_or(served.read_ns).min(served.read_ns);
        let end = served.last_send_ns.unwrap_or(sample.end).max(served.read_ns);
        let interval = Interval::new(begin, end, number);
        for tid in served.all_threads() {
            by_thread.entry(tid).or_default().push(interval);
        }
    }
    let of_all_threads = Intervals::new(of_all_threads);
    let by_thread: HashMap<Tid, Intervals> =
        by_thread.into_iter().map(|(tid, of_thread)| (tid, Intervals::new(of_thread))).collect();
    let mut longest: Vec<Longest<&Stall>> = vec![Longest::new(STALLS); requests.len()];
    for stall in evidence.stalls {
        let of_thread = by_thread.get(&stall.tid).into_iter();
        for intervals in of_thread.chain([&of_all_threads]) {
            for number in intervals.overlapping(stall.start, stall.end) {
                let sample = &evidence.samples[places[number]];
                let served = requests[number].served.as_ref();
                longest[number].add(stall, overlap_ns(sample, served, stall));
            }
        }
    }
    longest
}

/// The time of a request, by its number among the chosen.
#[derive(Clone, Copy, Debug)]
struct Interval {
    begin: MonoNanos,
    end: MonoNanos,
    number: usize,
}

impl Interval {
    const fn new(begin: MonoNanos, end: MonoNanos, number: usize) -> Self {
        Self { begin, end, number }
    }
}

/// Intervals in order of begin, each with the latest end up to it: what overlaps a stall lies between two
/// binary searches.
#[derive(Debug)]
struct Intervals(Vec<Interval>);

impl Intervals {
    fn new(mut intervals: Vec<Interval>) -> Self {
        intervals.sort_unstable_by_key(|interval| (interval.begin, interval.number));
        let mut latest = MonoNanos::default();
        for interval in &mut intervals {
            latest = latest.max(interval.end);
            interval.end = latest;
        }
        Self(intervals)
    }

    /// The numbers of all that overlap, and perhaps of some others.
    fn overlapping(&self, start: MonoNanos, end: MonoNanos) -> impl Iterator<Item = usize> {
        let from = self.0.partition_point(|interval| interval.end <= start);
        let until = self.0.partition_point(|interval| interval.begin < end);
        self.0.get(from..until).unwrap_or_default().iter().map(|interval| interval.number)
    }
}
