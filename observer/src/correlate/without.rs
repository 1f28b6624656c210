//! What the latency would have been without a cause: its stalls are taken away, and the queue of each
//! thread that served requests is replayed.
//!
//! A thread takes one request after the other, so each begins when it has arrived and the one before it
//! is done (D. V. Lindley, The theory of queues with a single server, Mathematical Proceedings of the
//! Cambridge Philosophical Society 48, 1952). Requests that it takes together also wait for those behind
//! them, as far as they would still be taken together (`batches`). The arrivals are those that were measured: a client that
//! waits for its answer before it sends again would have sent more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::Evidence;
use super::aside::Asides;
use super::batches;
use super::bootstrap::interval95;
use super::contention::{self, Job};
use super::handing::Handing;
use super::matching::Matching;
use super::siblings::Siblings;
use super::timeline::{Span, Timeline, Timelines};
use super::turn::{OwnTime, Turn, turn};
use super::worst::is_inside;
use crate::model::{Cause, CauseSummary, P99Without, Sample, Tid, Without};

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
    siblings: &'a Siblings,
    asides: &'a Asides,
    /// The answered requests, thread by thread, in the order in which it was through with them.
    pub(super) turns: Vec<Turn>,
    /// The threads that answered, each with the end of its turns.
    threads: Vec<(Tid, usize)>,
    /// How the threads competed for CPUs; `None` where they hardly did.
    contention: Option<Contention>,
    /// Threads between the reader and the sender of requests, each with the time in which it had the
    /// request, turn by turn.
    between: Vec<(u32, Span)>,
    /// Each sample whose request was answered, with that request.
    samples: Vec<(u32, u32)>,
    block_ns: u64,
}

/// How the service's threads compete for CPUs.
struct Contention {
    /// The turns, as a replay needs them.
    jobs: Vec<Job>,
    cpus: u32,
    /// How long each of them waits for a CPU in the replay.
    waits: Vec<f32>,
}

/// What is taken away from a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Freed {
    /// How much earlier it could have begun, had its thread not been busy.
    pub(super) ready_ns: u64,
    /// Of the time until the thread had the request.
    pub(super) before_ns: u64,
    /// Time in which its thread needed no CPU, with `before_ns`.
    pub(super) delay_ns: u64,
    /// Time on a CPU.
    pub(super) cpu_ns: u64,
    /// Behind the end of its batch.
    tail_ns: u64,
    /// As [`Turn::after`].
    pub(super) after: u32,
}

/// Whether threads need no CPU in its stalls.
fn is_delay(cause: Cause) -> bool {
    let delays = [
        Cause::CPU_THROTTLE,
        Cause::RUNQUEUE_OTHER,
        Cause::RUNQUEUE_IDLE,
        Cause::RUNQUEUE,
        Cause::FAULT_MAJOR,
        Cause::MMAP_LOCK,
        Cause::KERNEL_LOCK,
        Cause::BLOCK_IO,
        Cause::STOPPED,
        Cause::LOCK_WAIT,
        Cause::SERVICE_WAIT,
    ];
    delays.contains(&cause)
}

/// A turn in the replay, in nanoseconds since the start of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replayed {
    /// As [`Turn::ready`], [`Turn::handed`] and [`Turn::through`].
    pub(super) ready: u64,
    pub(super) handed: u64,
    pub(super) through: u64,
}

impl<'a> Replay<'a> {
    /// `None` where there are too few samples whose request is known. Blocks of `block_ns` are drawn
    /// again for the intervals.
    pub(super) fn new(
        evidence: &'a Evidence<'a>,
        timelines: &'a Timelines,
        handing: &'a Handing<'_>,
        matching: &Matching,
        block_ns: u64,
    ) -> Option<Self> {
        let is_inside = |(_, sample): &(usize, &Sample)| is_inside(sample, evidence.window);
        let inside = evidence.samples.iter().enumerate().filter(is_inside);
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
        let (mut turns, mut threads, mut between) = (Vec::new(), Vec::new(), Vec::new());
        for (sender, requests) in by_thread {
            let first = turns.len();
            let mut last_of_batch: HashMap<u32, usize> = HashMap::new();
            for taken in batches::find(evidence.requests, requests) {
                if let Some(before) = last_of_batch.insert(taken.batch, turns.len()) {
                    let place = turns.len() as u32;
                    let before: &mut Turn = &mut turns[before];
                    before.next = place;
                }
                turns.push(turn(evidence, handing, taken, (&turns[first..], first), &mut between));
            }
            threads.push((sender, turns.len()));
        }
        let mut replay = Self {
            evidence,
            timelines,
            siblings: &handing.siblings,
            asides: &handing.asides,
            turns,
            threads,
            contention: None,
            between,
            samples,
            block_ns,
        };
        if let Some((contention, waited_ns)) = replay.contention() {
            replay.contention = Some(contention);
            replay.turns.iter_mut().zip(waited_ns).for_each(|(turn, ns)| turn.own_ns = ns);
        }
        Some(replay)
    }

    /// The turns of each thread, with the place of the first.
    fn by_thread(&self) -> impl Iterator<Item = (Tid, usize, &[Turn])> {
        let mut first = 0;
        self.threads.iter().map(move |(tid, end)| {
            let begin = std::mem::replace(&mut first, *end);
            (*tid, begin, &self.turns[begin..*end])
        })
    }

    /// When a turn began.
    fn begin(&self, turn: &Turn) -> u64 {
        let before = self.turns.get(turn.after as usize);
        turn.ready.max(before.map_or(0, |before| before.through))
    }

    /// When a turn began, and when its thread had the request: between the two, the thread waited for work,
    /// and needed no CPU for it.
    pub(super) fn begin_and_handed(&self, turn: &Turn) -> (u64, u64) {
        let begin = self.begin(turn);
        (begin, turn.handed.max(begin))
    }

    /// The threads that had the request of a turn between its reader and its sender.
    fn threads_between(&self, turn: &Turn) -> &[(u32, Span)] {
        let (first, count) = (turn.between.0 as usize, turn.between.1 as usize);
        self.between.get(first..first + count).unwrap_or_default()
    }

    /// When causes were at work in a thread, and for a request while it served others.
    fn own_time(&self, tid: Tid, causes: &[Cause]) -> OwnTime {
        let thread = self.timelines.of_thread(tid.0, causes);
        let beside = self.timelines.beside(tid.0, causes, self.asides.of_thread(tid.0));
        OwnTime { thread, beside }
    }

    /// Finds out how the threads compete, and for how long each turn waited.
    fn contention(&self) -> Option<(Contention, Vec<f32>)> {
        let own = |tid: &Tid| self.own_time(*tid, &[Cause::RUNQUEUE_SELF]);
        if self.threads.iter().all(|(tid, _)| own(tid).thread.is_empty()) {
            return None;
        }
        let (mut jobs, mut waited_ns) = (Vec::with_capacity(self.turns.len()), Vec::new());
        for (number, (tid, _, turns)) in self.by_thread().enumerate() {
            let own = own(&tid);
            let delays: Vec<Cause> = Cause::all().filter(|cause| is_delay(*cause)).collect();
            let delays = self.own_time(tid, &delays);
            for turn in turns {
                let (begin, handed) = self.begin_and_handed(turn);
                // It waited for a CPU to read the request.
                let before_ns = own.thread.exposure(begin, handed);
                let own_ns = before_ns + own.of_turn(turn, handed);
                let delay_ns = (handed - begin) as f64 - before_ns + delays.of_turn(turn, handed);
                let all_ns = turn.through.saturating_sub(begin) as f64;
                jobs.push(Job {
                    ready: turn.ready,
                    delay: delay_ns as f32,
                    cpu: (all_ns - own_ns - delay_ns).max(0.0) as f32,
                    after: turn.after,
                    thread: number as u32,
                });
                waited_ns.push(own_ns as f32);
            }
        }
        let cpus = contention::cpus(&jobs, &waited_ns)?;
        let waits = contention::waits(jobs.len(), |place| jobs[place], cpus);
        Some((Contention { jobs, cpus, waits }, waited_ns))
    }

    /// What is taken away from each turn without the stalls of these causes, and without the lateness of
    /// requests.
    fn freed(&self, causes: &[Cause], late_ns: &[u64]) -> Vec<Freed> {
        let mut freed = Vec::with_capacity(self.turns.len());
        let of = |wanted: fn(Cause) -> bool| -> Vec<Cause> {
            causes.iter().copied().filter(|cause| cause.is_recorded() && wanted(*cause)).collect()
        };
        let delays_of = of(is_delay);
        let on_cpu_of = of(|cause| !is_delay(cause));
        let stalls = of(Cause::is_stall);
        let mut readers: HashMap<Tid, Timeline> = HashMap::new();
        let siblings = self.siblings.timeline(&stalls);
        let mut others: HashMap<u32, [Timeline; 2]> = HashMap::new();
        for (sender, _, turns) in self.by_thread() {
            let [delays, on_cpu, stalled] =
                [&delays_of, &on_cpu_of, &stalls].map(|of| self.own_time(sender, of));
            for turn in turns {
                let request = &self.evidence.requests[turn.request as usize];
                // Meanwhile the reader slept.
                let of_siblings = |from: u64, until: u64| {
                    let wait = self.siblings.wait(turn.request as usize);
                    wait.map_or(0.0, |wait| {
                        siblings.exposure(wait.start.max(from), wait.end.min(until))
                    })
                };
                let mut ready_ns = late_ns.get(turn.request as usize).copied().unwrap_or(0);
                if request.reader != request.sender {
                    let reader = readers
                        .entry(request.reader)
                        .or_insert_with(|| self.timelines.of_thread(request.reader.0, &stalls));
                    let waited_ns = reader.exposure(turn.arrival, turn.ready)
                        + of_siblings(turn.arrival, turn.ready);
                    let waited_ns = waited_ns.round() as u64;
                    ready_ns += waited_ns.min(turn.ready - turn.arrival);
                }
                let (begin, handed) = self.begin_and_handed(turn);
                let mut before_ns = stalled.thread.exposure(begin, handed);
                if request.reader == request.sender {
                    before_ns += of_siblings(begin, handed);
                }
                let mut delay_ns = before_ns + delays.of_turn(turn, handed);
                let mut cpu_ns = on_cpu.of_turn(turn, handed);
                for (tid, span) in self.threads_between(turn) {
                    let of_other = others.entry(*tid).or_insert_with(|| {
                        [&delays_of, &on_cpu_of].map(|of| self.timelines.of_thread(*tid, of))
                    });
                    let [delayed, used] =
                        of_other.each_ref().map(|of| of.exposure(span.start, span.end));
                    if request.reader == request.sender {
                        (delay_ns, cpu_ns) = (delay_ns + delayed, cpu_ns + used);
                    } else {
                        // Its sender needed no CPU then.
                        (before_ns, delay_ns) =
                            (before_ns + delayed + used, delay_ns + delayed + used);
                    }
                }
                let tail_ns =
                    [&delays, &on_cpu].map(|of| of.thread.exposure(turn.batch_end, turn.done));
                freed.push(Freed {
                    ready_ns: ready_ns.min(turn.ready),
                    before_ns: before_ns.round() as u64,
                    delay_ns: delay_ns.round() as u64,
                    cpu_ns: cpu_ns.round() as u64,
                    tail_ns: tail_ns.iter().sum::<f64>().round() as u64,
                    after: turn.after,
                });
            }
        }
        self.put_in_order(&mut freed);
        freed
    }

    /// For how long each turn would not have waited for other threads of the service: as large a part as
    /// in the replay.
    fn own_saved_ns(&self, causes: &[Cause], freed: &[Freed]) -> Option<Vec<u64>> {
        // Without it, nothing of it is left.
        let contention = self.contention.as_ref();
        let Contention { jobs, cpus, waits } =
            contention.filter(|_| !causes.contains(&Cause::RUNQUEUE_SELF))?;
        let without = |place: usize| {
            let (job, freed) = (&jobs[place], &freed[place]);
            Job {
                ready: job.ready - freed.ready_ns,
                delay: (job.delay - freed.delay_ns as f32).max(0.0),
                cpu: (job.cpu - freed.cpu_ns as f32).max(0.0),
                after: freed.after,
                ..*job
            }
        };
        let left = contention::waits(jobs.len(), without, *cpus);
        let saved = |(turn, (before, after)): (&Turn, (&f32, f32))| {
            let part = if *before > 0.0 { (after / before).min(1.0) } else { 1.0 };
            (turn.own_ns * (1.0 - part)).round() as u64
        };
        Some(self.turns.iter().zip(waits.iter().zip(left)).map(saved).collect())
    }

    /// How much earlier each request would have been done without the stalls of these causes.
    fn saved_ns(&self, causes: &[Cause]) -> Vec<u64> {
        let mut late_ns = Vec::new();
        if causes.contains(&Cause::LOAD_GENERATOR) {
            late_ns = vec![0; self.evidence.requests.len()];
            for (place, request) in &self.samples {
                late_ns[*request as usize] = self.evidence.samples[*place as usize].lateness_ns();
            }
        }
        let freed = self.freed(causes, &late_ns);
        let own_saved_ns = self.own_saved_ns(causes, &freed);
        let mut replayed: Vec<Option<Replayed>> = vec![None; self.turns.len()];
        // Turns that wait for those behind them here.
        let mut waiting = Vec::new();
        for place in 0..self.turns.len() {
            let mut next = place;
            while replayed.get(next).is_some_and(Option::is_none) {
                waiting.push(next);
                next = freed[next].after as usize;
            }
            while let Some(place) = waiting.pop() {
                let before = replayed.get(freed[place].after as usize).copied().flatten();
                let own_ns = own_saved_ns.as_ref().map_or(0, |saved_ns| saved_ns[place]);
                replayed[place] = Some(self.replay(place, &freed[place], before, own_ns));
            }
        }
        let replayed: Vec<Replayed> = replayed.into_iter().flatten().collect();
        self.answered_sooner_ns(&freed, &replayed)
    }

    /// How much earlier each request would have been answered. An answer waits for all that the thread had
    /// taken together with the request; what arrives after the thread has the first one is not among that.
    fn answered_sooner_ns(&self, freed: &[Freed], replayed: &[Replayed]) -> Vec<u64> {
        let mut saved_ns = vec![0; self.evidence.requests.len()];
        // The first turn of the same batch in the replay, and its last one.
        let mut first: Vec<u32> = (0..self.turns.len() as u32).collect();
        for (place, turn) in self.turns.iter().enumerate() {
            let next = turn.next as usize;
            let Some(behind) = self.turns.get(next) else { continue };
            let is_in_order = freed[next].after == behind.after;
            let head = first[place];
            if is_in_order && replayed[next].ready <= replayed[head as usize].handed {
                first[next] = head;
            }
        }
        let mut last = vec![0; self.turns.len()];
        for (place, head) in first.iter().enumerate() {
            last[*head as usize] = place;
        }
        for (place, turn) in self.turns.iter().enumerate() {
            let until = replayed[last[first[place] as usize]].through;
            let saved = turn.batch_end.saturating_sub(until) + freed[place].tail_ns;
            let earliest = replayed[place].ready.min(turn.arrival);
            saved_ns[turn.request as usize] = saved.min(turn.done - earliest);
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
            row.without = Some(P99Without {
                p99_without_ns: without.p99_without_ns,
                p99_without_ci95: without.ci95,
            });
            all.push(row.cause);
            last = Some(without);
        }
        // Without the only one is without all.
        if all.len() > 1 { Some(self.without(&all, rng)) } else { last }
    }

    /// The p99 with and without these causes.
    fn without(&self, causes: &[Cause], rng: &mut Xoshiro256PlusPlus) -> Without {
        let saved_ns = self.saved_ns(causes);
        let window_ns = self.evidence.window.1.since(self.evidence.window.0);
        let blocks = (window_ns / self.block_ns + 1) as usize;
        let mut latencies: Vec<(u64, u32)> = Vec::with_capacity(self.samples.len());
        let mut measured: Vec<u64> = Vec::with_capacity(self.samples.len());
        for (place, request) in &self.samples {
            let sample = &self.evidence.samples[*place as usize];
            let saved = saved_ns[*request as usize];
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
