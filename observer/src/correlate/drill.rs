//! A service, a schedule of requests and stalls with known effect: the true answer is known.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::{Analysis, Evidence, Quality, analyse};
use crate::clock::MonoNanos;
use crate::model::{
    Cause, CauseSummary, Outcome, OutgoingRequest, REASON_CODES, Sample, ServerRequest, SlowSpec,
    Stall,
};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;
/// Longest squeeze, and the length of other long episodes.
pub(super) const SQUEEZE: u64 = 300 * MS;
/// Monotonic time at the start of the window.
pub(super) const ORIGIN: u64 = 5_000 * SECOND;

pub(super) struct Drill {
    pub(super) rng: Xoshiro256PlusPlus,
    pub(super) window_ns: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) requests: Vec<ServerRequest>,
    pub(super) outgoing: Vec<OutgoingRequest>,
    pub(super) stalls: Vec<Stall>,
    /// Times in which no request makes progress, since the start of the window.
    frozen: Vec<(u64, u64)>,
    pub(super) slow: SlowSpec,
    pub(super) quality: Quality,
}

impl Drill {
    pub(super) fn new(seed: u64, seconds: u64) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            window_ns: seconds * SECOND,
            samples: Vec::new(),
            requests: Vec::new(),
            outgoing: Vec::new(),
            stalls: Vec::new(),
            frozen: Vec::new(),
            slow: SlowSpec::default(),
            quality: Quality::default(),
        }
    }

    /// A stall that harms no request.
    pub(super) fn innocent(&mut self, cause: Cause, tid: u32, start: u64, end: u64) {
        self.stalls.push(Stall::of_thread(tid, cause, ORIGIN + start, ORIGIN + end));
    }

    /// Nothing makes progress between `start` and `end`, whatever the stalls say.
    pub(super) fn freeze(&mut self, start: u64, end: u64) {
        self.frozen.push((start, end));
    }

    /// A stall in which nothing makes progress.
    pub(super) fn culprit(&mut self, cause: Cause, tid: u32, start: u64, end: u64) {
        self.innocent(cause, tid, start, end);
        self.freeze(start, end);
    }

    /// A squeeze: short stalls on two threads one after another, with gaps between them.
    pub(super) fn squeeze(&mut self, cause: Cause, start: u64, end: u64) {
        let mut at = start;
        let mut tid = 1;
        while at < end {
            let stop = (at + self.rng.random_range(200_000..3 * MS)).min(end);
            self.culprit(cause, tid, at, stop);
            at = stop + self.rng.random_range(50_000..400_000);
            tid = 3 - tid;
        }
    }

    /// Begins of `count` episodes at random, far enough apart for `each` nanoseconds.
    pub(super) fn jittered(&mut self, count: u64, each: u64) -> Vec<u64> {
        let slot = self.window_ns / count;
        (0..count).map(|i| i * slot + self.rng.random_range(0..slot - each)).collect()
    }

    /// Sends requests of about 1 ms on a Poisson schedule. `lateness` and `extra` give how late
    /// one is sent and how much longer it works, by its time since the start of the window.
    pub(super) fn load(
        &mut self,
        rate_hz: u64,
        lateness: impl Fn(u64, &mut Xoshiro256PlusPlus) -> u64,
        extra: impl Fn(u64, &mut Xoshiro256PlusPlus) -> u64,
    ) {
        self.frozen.sort_unstable();
        let mut at = 0;
        loop {
            let uniform: f64 = self.rng.random();
            at += (-(1.0 - uniform).ln() * SECOND as f64 / rate_hz as f64) as u64;
            let start = at + lateness(at, &mut self.rng);
            let work = self.rng.random_range(800_000..1_300_000) + extra(at, &mut self.rng);
            let end = self.finish(start, work);
            if end >= self.window_ns {
                return;
            }
            self.sample(at, start, end);
        }
    }

    pub(super) fn sample(&mut self, intended: u64, start: u64, end: u64) {
        self.samples.push(Sample {
            intended_start: Some(MonoNanos(ORIGIN + intended)),
            ..Sample::of_times(ORIGIN + start, ORIGIN + end)
        });
    }

    /// A request that the target's sockets saw: its reader and sender, and its arrival, read and answer.
    pub(super) fn request(&mut self, threads: (u32, u32), times: [u64; 3], port: u16) {
        let on_kernels = times.map(|time| ORIGIN + time);
        self.requests.push(ServerRequest::of_times(threads, on_kernels, port));
    }

    /// The same, with the sample that it was, on a connection of its own.
    pub(super) fn served(&mut self, threads: (u32, u32), times: [u64; 3]) {
        const WAY_NS: u64 = 20_000;
        let port = 10_000 + (self.samples.len() % 50_000) as u16;
        let [begin, end] = [times[0] - WAY_NS, times[2] + WAY_NS];
        self.sample(begin, begin, end);
        if let Some(sample) = self.samples.last_mut() {
            sample.local_port = Some(port);
        }
        self.request(threads, times, port);
    }

    fn finish(&self, start: u64, work: u64) -> u64 {
        let mut now = start;
        let mut left = work;
        let first = self.frozen.partition_point(|(_, end)| *end <= start);
        for (from, until) in &self.frozen[first..] {
            if now + left <= *from {
                break;
            }
            left -= from.saturating_sub(now).min(left);
            now = now.max(*until);
        }
        now + left
    }

    pub(super) fn plain_load(&mut self, rate_hz: u64) {
        self.load(rate_hz, |_, _| 0, |_, _| 0);
    }

    pub(super) fn evidence(&self) -> Evidence<'_> {
        Evidence {
            window: (MonoNanos(ORIGIN), MonoNanos(ORIGIN + self.window_ns)),
            samples: &self.samples,
            requests: &self.requests,
            outgoing: &self.outgoing,
            stalls: &self.stalls,
            slow: self.slow,
            quality: self.quality.clone(),
        }
    }

    pub(super) fn analyse(&self) -> Analysis {
        analyse(&self.evidence())
    }
}

impl Analysis {
    pub(super) fn of(&self, cause: Cause) -> &CauseSummary {
        let found = self.causes.iter().find(|summary| summary.cause == cause);
        found.unwrap_or_else(|| panic!("{} is listed in {self:#?}", cause.name()))
    }

    /// What must hold of every answer.
    pub(super) fn check(&self) -> &Self {
        let named: f64 = self.causes.iter().filter(|c| c.named).map(|c| c.share).sum();
        assert!(named <= 1.0 + 1e-9, "{self:#?}");
        if let Some((last, rest)) = self.causes.split_last() {
            assert_eq!(last.cause, Cause::UNEXPLAINED);
            assert!(rest.is_sorted_by(|a, b| a.share >= b.share), "{self:#?}");
        }
        let limited = self.verdict.outcome == Outcome::GeneratorLimited;
        let is_top = |row: &&CauseSummary| limited || row.cause != Cause::LOAD_GENERATOR;
        let top = self.causes.iter().filter(|cause| cause.named).find(is_top);
        assert_eq!(self.verdict.top_cause, top.map(|cause| cause.cause), "{self:#?}");
        assert!(!self.verdict.reasons.is_empty());
        assert!(self.verdict.reasons.iter().all(|reason| {
            let known = REASON_CODES.iter().any(|(code, _)| *code == reason.code);
            known && reason.evidence.is_object() && !reason.text.contains('\n')
        }));
        self
    }
}
