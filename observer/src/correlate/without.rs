//! What the latency would have been without a cause: its stalls are taken away, and the queue of each
//! thread that served requests is replayed.
//!
//! A thread takes one request after the other, so each begins when it has arrived and the one before it
//! is done (D. V. Lindley, The theory of queues with a single server, Mathematical Proceedings of the
//! Cambridge Philosophical Society 48, 1952). The arrivals are those that were measured: a client that
//! waits for its answer before it sends again would have sent more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::Evidence;
use super::bootstrap::interval95;
use super::handing::Handing;
use super::matching::Matching;
use super::timeline::{Timeline, Timelines};
use crate::clock::MonoNanos;
use crate::model::{Cause, CauseSummary, Sample, ServerRequest, Tid, Without};

/// Resamples of blocks of time.
const RESAMPLES: usize = 400;
/// The quantile.
const P99: f64 = 0.99;
/// Samples that are needed to speak of it.
const LEAST_SAMPLES: usize = 100;

/// The requests of the run, ready to be replayed.
pub(super) struct Replay<'a> {
    evidence: &'a Evidence<'a>,
    timelines: &'a Timelines,
    handing: Handing<'a>,
    /// Indices of the answered requests by the thread that answered, in the order of its answers.
    by_thread: BTreeMap<Tid, Vec<u32>>,
    /// Each sample whose request was answered, with that request.
    samples: Vec<(u32, u32)>,
    block_ns: u64,
}

/// A request since the start of the window, nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// It was in the socket.
    arrival: u64,
    /// It was read.
    read: u64,
    /// The thread that answered it had it.
    handed: u64,
    /// The last of the reply was written.
    done: u64,
}

/// When a request was done: an answer cannot be written before the request was read.
fn done(request: &ServerRequest) -> MonoNanos {
    request.end().map_or(request.read, |end| end.max(request.read))
}

impl<'a> Replay<'a> {
    /// `None` where there are too few samples whose request is known. Blocks of `block_ns` are drawn
    /// again for the intervals.
    pub(super) fn new(
        evidence: &'a Evidence<'a>,
        timelines: &'a Timelines,
        matching: &Matching,
        block_ns: u64,
    ) -> Option<Self> {
        let is_inside = |sample: &Sample| {
            sample.begin() >= evidence.window.0 && sample.end <= evidence.window.1
        };
        let inside = evidence.samples.iter().enumerate().filter(|(_, sample)| is_inside(sample));
        let of_sample = |(place, _): (usize, &Sample)| {
            let request = matching.known(place)?;
            evidence.requests.get(request)?.end()?;
            Some((place as u32, request as u32))
        };
        let samples: Vec<(u32, u32)> = inside.filter_map(of_sample).collect();
        if samples.len() < LEAST_SAMPLES {
            return None;
        }
        let mut by_thread: BTreeMap<Tid, Vec<u32>> = BTreeMap::new();
        for (place, request) in evidence.requests.iter().enumerate() {
            if request.end().is_some() {
                by_thread.entry(request.sender).or_default().push(place as u32);
            }
        }
        for requests in by_thread.values_mut() {
            requests.sort_by_key(|place| done(&evidence.requests[*place as usize]));
        }
        let handing = Handing::new(evidence.requests, timelines.sleeps(), evidence.window.0);
        Some(Self { evidence, timelines, handing, by_thread, samples, block_ns })
    }

    fn request(&self, place: u32) -> &ServerRequest {
        &self.evidence.requests[place as usize]
    }

    fn times(&self, place: u32) -> Times {
        let request = self.request(place);
        let since = |time: MonoNanos| time.since(self.evidence.window.0);
        let (read, done) = (since(request.read), since(done(request)));
        let handed = match request.reader == request.sender {
            true => read,
            false => self.handing.at(request).min(done),
        };
        Times { arrival: since(request.begin()).min(read), read, handed, done }
    }

    /// How much earlier each request would have been done without the stalls of these causes.
    fn saved_ns(&self, causes: &[Cause]) -> Vec<u64> {
        let mut saved_ns = vec![0; self.evidence.requests.len()];
        let waits = causes.contains(&Cause::SERVICE_WAIT);
        let stalls: Vec<Cause> = causes.iter().copied().filter(|cause| cause.is_stall()).collect();
        let mut stalled: HashMap<Tid, Timeline> = HashMap::new();
        let mut exposure = |tid: Tid, causes: &[Cause], start: u64, end: u64| {
            let timeline =
                stalled.entry(tid).or_insert_with(|| self.timelines.of_thread(tid.0, causes));
            timeline.exposure(start, end).round() as u64
        };
        for (sender, requests) in &self.by_thread {
            let asleep = waits.then(|| self.timelines.of_thread(sender.0, &[Cause::SERVICE_WAIT]));
            // When requests were done, with what that saved.
            let mut answers: Vec<(u64, u64)> = Vec::with_capacity(requests.len());
            for place in requests {
                let Times { arrival, read, handed, done } = self.times(*place);
                let reader = self.request(*place).reader;
                // A thread that reads by itself is done with the one before by then. A request that comes
                // from another thread may have waited for it.
                let until = if reader == *sender { read } else { done };
                let before = answers.partition_point(|(other, _)| *other <= until);
                let before = before.checked_sub(1).map_or((0, 0), |place| answers[place]);
                let (before, before_saved_ns) = before;
                // When it could have begun.
                let (ready, ready_earlier) = if reader == *sender {
                    (arrival, arrival)
                } else {
                    (read, read - exposure(reader, &stalls, arrival, read).min(read - arrival))
                };
                let begin = ready.max(before);
                let begin_earlier = ready_earlier.max(before - before_saved_ns);
                let stalled_ns = exposure(*sender, &stalls, begin, done);
                // Until it had the request, the thread waited for work.
                let slept_ns = asleep
                    .as_ref()
                    .map_or(0, |asleep| asleep.exposure(begin.max(handed), done).round() as u64);
                let saved = begin.saturating_sub(begin_earlier) + stalled_ns + slept_ns;
                saved_ns[*place as usize] = saved.min(done - arrival);
                answers.push((done, saved_ns[*place as usize]));
            }
        }
        saved_ns
    }

    /// Adds to each named cause what the p99 would have been without it; returns what it would have been
    /// without all of them. The service's own work cannot be taken away, nor what lies outside.
    pub(super) fn without_named(
        &self,
        causes: &mut [CauseSummary],
        rng: &mut Xoshiro256PlusPlus,
    ) -> Option<Without> {
        let can_go = |cause: Cause| cause.is_recorded() || cause == Cause::LOAD_GENERATOR;
        let mut all = Vec::new();
        let mut last = None;
        for row in causes.iter_mut().filter(|row| row.named && can_go(row.cause)) {
            let without = self.without(&[row.cause], rng);
            row.p99_without_ns = Some(without.p99_without_ns);
            row.p99_without_ci95 = Some(without.ci95);
            all.push(row.cause);
            last = Some(without);
        }
        // Without the only one is without all.
        if all.len() > 1 { Some(self.without(&all, rng)) } else { last }
    }

    /// The p99 with and without these causes.
    fn without(&self, causes: &[Cause], rng: &mut Xoshiro256PlusPlus) -> Without {
        let saved_ns = self.saved_ns(causes);
        let is_late = causes.contains(&Cause::LOAD_GENERATOR);
        let window_ns = self.evidence.window.1.since(self.evidence.window.0);
        let blocks = (window_ns / self.block_ns + 1) as usize;
        let mut latencies: Vec<(u64, u32)> = Vec::with_capacity(self.samples.len());
        let mut measured: Vec<u64> = Vec::with_capacity(self.samples.len());
        for (place, request) in &self.samples {
            let sample = &self.evidence.samples[*place as usize];
            let late_ns = if is_late { sample.lateness_ns() } else { 0 };
            let saved = saved_ns[*request as usize].saturating_add(late_ns);
            let block = sample.begin().since(self.evidence.window.0) / self.block_ns;
            let response_ns = sample.response_ns();
            measured.push(response_ns);
            latencies.push((response_ns.saturating_sub(saved), block as u32));
        }
        let rank = |count: usize| ((count as f64 * P99).ceil() as usize).clamp(1, count) - 1;
        let at = rank(measured.len());
        let p99_ns = *measured.select_nth_unstable(at).1;
        // The longest first.
        latencies.sort_unstable_by_key(|(latency_ns, _)| Reverse(*latency_ns));
        let mut in_block = vec![0u64; blocks];
        latencies.iter().for_each(|(_, block)| in_block[*block as usize] += 1);
        let used: Vec<usize> = (0..blocks).filter(|block| in_block[*block] > 0).collect();
        let quantile = |weights: &[u64]| {
            let all: u64 =
                weights.iter().zip(&in_block).map(|(weight, count)| weight * count).sum();
            let above = all - rank(all as usize) as u64;
            let mut seen = 0;
            let longest = latencies.iter().find(|(_, block)| {
                seen += weights[*block as usize];
                seen >= above
            });
            longest.map_or(0, |(latency_ns, _)| *latency_ns)
        };
        let p99_without_ns = quantile(&vec![1; blocks]);
        let drawn = (0..RESAMPLES).map(|_| {
            let mut weights = vec![0; blocks];
            used.iter().for_each(|_| weights[used[rng.random_range(0..used.len())]] += 1);
            quantile(&weights) as f64
        });
        let ci95 = interval95(drawn.collect()).map(|bound_ns| bound_ns as u64);
        Without { p99_ns, p99_without_ns, ci95 }
    }
}
