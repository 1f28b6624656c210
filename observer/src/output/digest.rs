//! What the outputs for users need of a run's events, gathered while they stream by: a trace may be
//! larger than memory should be.

use std::collections::BTreeMap;

use super::answer::WorstRequest;
use crate::aggregate::CauseRecorder;
use crate::clock::MonoNanos;
use crate::correlate::{Longest, slowest};
use crate::model::{Cause, EndReason, Event, RunInfo, Sample, SlowRequest, Stall, overlap_ns};

/// Columns the time is cut into: what is closer than this is one mark.
pub(super) const COLUMNS: usize = 900;
/// Slow requests shown one by one.
const WORST: usize = 10;
/// Stalls kept for one request; the rest is counted. A request of seconds under reclaim overlaps
/// tens of thousands of stalls, which no user reads.
const OVERLAPS_KEPT: usize = 50;

pub(super) struct Digest {
    start_ns: u64,
    /// Length of the time axis; 0 when there is nothing to draw.
    length_ns: f64,
    pub(super) recorder: CauseRecorder,
    pub(super) lanes: BTreeMap<Cause, Vec<f64>>,
    worst: Vec<WorstRequest>,
    longest: Vec<Longest<Event>>,
}

impl Digest {
    /// `length_ns` is that of the time axis. `known` says of some requests which threads served them.
    pub(super) fn new(
        run: &RunInfo,
        samples: &[Sample],
        known: &[SlowRequest],
        length_ns: f64,
    ) -> Self {
        // Those that the probes watched from begin to end.
        let running = run.end_reason == EndReason::Running;
        let end = if running { MonoNanos(u64::MAX) } else { run.end_ns };
        let worst = slowest(samples, (run.start_ns, end), WORST).into_iter();
        let request = |sample: &Sample| {
            let is_it = |one: &&SlowRequest| {
                (one.begin_ns, one.end_ns, one.seq) == (sample.begin(), sample.end, sample.seq)
            };
            let known = known.iter().find(is_it);
            WorstRequest {
                sample: sample.clone(),
                served: known.and_then(|known| known.served.clone()),
                asked: known.map_or_else(Vec::new, |known| known.asked.clone()),
                account_ns: known.and_then(|known| known.account_ns.clone()),
                stalls: Vec::new(),
                omitted: 0,
            }
        };
        let worst: Vec<WorstRequest> = worst.map(request).collect();
        Self {
            start_ns: run.start_ns.0,
            length_ns,
            recorder: CauseRecorder::default(),
            lanes: BTreeMap::new(),
            longest: worst.iter().map(|_| Longest::new(OVERLAPS_KEPT)).collect(),
            worst,
        }
    }

    pub(super) fn add(&mut self, event: &Event) {
        for stall in Stall::of_event(event) {
            // Threads sleep most of the time.
            if stall.cause.is_stall() {
                self.draw(&stall);
            }
        }
        if event.cause().is_some_and(Cause::is_stall) {
            self.recorder.record_event(event);
        }
        for (WorstRequest { sample, served, .. }, longest) in
            self.worst.iter().zip(&mut self.longest)
        {
            let overlaps =
                Stall::of_event(event).map(|stall| overlap_ns(sample, served.as_ref(), &stall));
            longest.add(*event, overlaps.sum());
        }
    }

    fn draw(&mut self, stall: &Stall) {
        let offset = |time: MonoNanos| time.0 as f64 - self.start_ns as f64;
        let start = offset(stall.start).max(0.0);
        let end = offset(stall.end).min(self.length_ns);
        if end <= start {
            return;
        }
        let width = self.length_ns / COLUMNS as f64;
        let covered = self.lanes.entry(stall.cause).or_insert_with(|| vec![0.0; COLUMNS]);
        let first = (start / width) as usize;
        let last = ((end / width) as usize).min(COLUMNS - 1);
        for (column, covered) in covered.iter_mut().enumerate().take(last + 1).skip(first) {
            let from = start.max(column as f64 * width);
            let to = end.min((column + 1) as f64 * width);
            *covered += ((to - from) / width).max(0.0);
        }
    }

    /// The slowest requests, each with its longest overlaps.
    pub(super) fn worst(&mut self) -> Vec<WorstRequest> {
        let mut worst = std::mem::take(&mut self.worst);
        for (request, longest) in worst.iter_mut().zip(std::mem::take(&mut self.longest)) {
            (request.stalls, request.omitted) = longest.finish();
        }
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    #[test]
    fn the_longest_overlaps_of_a_stream_are_those_of_the_whole() {
        let run = RunInfo { start_ns: MonoNanos(0), end_ns: MonoNanos(1 << 40), ..example::run() };
        let samples = [(0, 50_000), (20_000, 90_000), (5, 10)];
        let samples = samples.map(|(start, end)| Sample::of_times(start, end));
        // Lengths that come again and again, in no order.
        let events: Vec<Event> = (0..1_000u64)
            .map(|index| {
                let (end, length) = (index * 90 + 1 + index * 7_919 % 61, index * 7_919 % 61);
                example::fault(end, length, index)
            })
            .collect();
        let mut digest = Digest::new(&run, &samples, &[], 1e6);
        events.iter().for_each(|event| digest.add(event));
        let streamed = digest.worst();
        assert_eq!(streamed.len(), samples.len());
        for request in &streamed {
            let overlap_ns = |stall: &Stall| {
                stall.end.min(request.sample.end).since(stall.start.max(request.sample.start))
            };
            let stalls = events.iter().flat_map(Stall::of_event);
            let mut all: Vec<u64> = stalls
                .map(|stall| overlap_ns(&stall))
                .filter(|overlap_ns| *overlap_ns > 0)
                .collect();
            all.sort_unstable_by_key(|overlap_ns| std::cmp::Reverse(*overlap_ns));
            let kept: Vec<u64> = request.stalls.iter().map(|(_, ns)| *ns).collect();
            assert_eq!(kept, all[..all.len().min(OVERLAPS_KEPT)]);
            assert_eq!(request.omitted, (all.len() - kept.len()) as u64);
        }
        assert!(streamed.iter().any(|request| request.omitted > 0), "more than are kept");
        assert_eq!(digest.recorder.count(Cause::FAULT_MINOR), 1_000);
        assert!(digest.lanes[&Cause::FAULT_MINOR].iter().sum::<f64>() > 0.0);
    }
}
