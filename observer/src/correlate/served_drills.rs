//! Known-answer drills in which the target's sockets were watched: it is known which thread served
//! which request.

use observer_ebpf::wire::{REQUEST_BLOCKS, is_recorded};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS, SECOND};
use super::*;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 300..305;
pub(super) const US: u64 = 1_000;

/// What the handler of one request does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Handler {
    pub(super) sleep_ns: u64,
    /// It computes this much longer.
    pub(super) burn_ns: u64,
    /// The answer takes this much longer on its way.
    pub(super) way_ns: u64,
    /// It waits this long, and that is recorded as a stall of this cause.
    pub(super) stall: Option<(Cause, u64)>,
}

/// A service with a queue for each of its threads, 1 to `threads`.
pub(super) struct Service {
    pub(super) threads: u32,
    /// This thread takes all requests and hands them to the others.
    pub(super) acceptor: Option<u32>,
    pub(super) ports: bool,
    /// The sleeps of its threads are recorded.
    pub(super) sleeps: bool,
}

pub(super) const POOL: Service = Service { threads: 8, acceptor: None, ports: true, sleeps: false };

impl Service {
    /// Sends requests on a Poisson schedule and serves them. `plan` gives what the handler of a request
    /// sent at a time does; what it adds to the drill is told the time at which the handler begins.
    pub(super) fn serve(
        &self,
        drill: &mut Drill,
        rate_hz: u64,
        plan: impl Fn(u64, &mut Xoshiro256PlusPlus) -> Handler,
        mut beside: impl FnMut(u64, Handler, &mut Drill),
    ) {
        let mut free = vec![0u64; self.threads as usize];
        let mut at = 0;
        loop {
            let uniform: f64 = drill.rng.random();
            at += (-(1.0 - uniform).ln() * SECOND as f64 / rate_hz as f64) as u64;
            let place = drill.rng.random_range(0..free.len());
            let thread = place as u32 + 1;
            let arrival = at + drill.rng.random_range(15 * US..40 * US);
            let begin = free[place].max(arrival + 5 * US);
            let sleep = |drill: &mut Drill, start: u64, end: u64| {
                if self.sleeps && start < end {
                    drill.innocent(Cause::SERVICE_WAIT, thread, start, end);
                }
            };
            // It waits for work.
            sleep(drill, free[place], begin - 5 * US);
            let handler = plan(at, &mut drill.rng);
            let mut now = begin + drill.rng.random_range(300 * US..500 * US);
            if let Some((cause, length_ns)) = handler.stall {
                drill.innocent(cause, thread, now, now + length_ns);
                now += length_ns;
            }
            beside(begin, handler, drill);
            sleep(drill, now, now + handler.sleep_ns);
            now += handler.sleep_ns + handler.burn_ns + drill.rng.random_range(500 * US..800 * US);
            free[place] = now + 10 * US;
            let end = now + handler.way_ns + drill.rng.random_range(15 * US..40 * US);
            if end >= drill.window_ns {
                return;
            }
            let port = 40_000 + (drill.samples.len() % 20_000) as u16;
            drill.sample(at, at, end);
            if let Some(sample) = drill.samples.last_mut() {
                sample.local_port = self.ports.then_some(port);
            }
            let read = if self.acceptor.is_some() { arrival + 5 * US } else { begin };
            let reader = self.acceptor.unwrap_or(thread);
            drill.request((reader, thread), [arrival, read, now + 10 * US], port);
        }
    }
}

pub(super) fn nothing(_: u64, _: Handler, _: &mut Drill) {}

pub(super) fn has(analysis: &Analysis, code: &str) -> bool {
    analysis.verdict.reasons.iter().any(|reason| reason.code == code)
}

/// The answer without what the sockets saw.
fn blind(drill: &mut Drill) -> Analysis {
    let requests = std::mem::take(&mut drill.requests);
    let analysis = drill.analyse();
    drill.requests = requests;
    assert_eq!(analysis.check().requests, RequestsSummary::default());
    assert!(!has(&analysis, "counted_by_thread") && !has(&analysis, "counted_together"));
    analysis
}

/// A service whose slow requests sleep and wake four background threads that nobody waits for.
fn sleeping_handlers(seed: u64, seconds: u64) -> Drill {
    let mut drill = Drill::new(seed, seconds);
    let service = Service { ports: seed.is_multiple_of(2), ..POOL };
    let plan = |_, rng: &mut Xoshiro256PlusPlus| Handler {
        sleep_ns: if rng.random_bool(0.015) { rng.random_range(20 * MS..40 * MS) } else { 0 },
        ..Handler::default()
    };
    service.serve(&mut drill, 300, plan, |begin, handler, drill| {
        if handler.sleep_ns > 0 {
            for tid in 101..105 {
                drill.innocent(Cause::RUNQUEUE, tid, begin, begin + handler.sleep_ns);
            }
        }
    });
    drill
}

#[test]
fn background_threads_that_a_sleeping_handler_wakes_are_not_named() {
    for seed in SEEDS {
        let mut drill = sleeping_handlers(seed, 30);
        assert_eq!(blind(&mut drill).verdict.top_cause, Some(Cause::RUNQUEUE), "seed {seed}");
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Unexplained, "{seed}: {analysis:#?}");
        assert!(analysis.of(Cause::RUNQUEUE).share < 0.01, "seed {seed}: {analysis:#?}");
        assert!(has(&analysis, "counted_by_thread"));
        assert_eq!(analysis.requests.samples(), drill.samples.len() as u64);
        assert!(analysis.requests.matched as f64 > 0.95 * drill.samples.len() as f64);
        assert_eq!(analysis, drill.analyse(), "the same evidence gives the same answer");
    }
}

#[test]
fn requests_of_some_blocks_of_time_are_enough() {
    for seed in SEEDS {
        let mut drill = sleeping_handlers(seed, 60);
        drill.requests.retain(|request| is_recorded(request.begin().0, REQUEST_BLOCKS / 4));
        let unaware = drill.analyse();
        assert!(has(unaware.check(), "counted_together"), "{seed}: {unaware:#?}");
        drill.quality.requests_in_blocks = true;
        let analysis = drill.analyse();
        assert!(has(analysis.check(), "counted_by_thread"), "{seed}: {analysis:#?}");
        assert!(!analysis.of(Cause::RUNQUEUE).named, "{seed}: {analysis:#?}");
        assert!(analysis.of(Cause::RUNQUEUE).share < 0.01, "{seed}: {analysis:#?}");
    }
}

/// Of the extra latency of slow samples, the part in which their own threads were stalled: by the
/// simplest comparison of all stalls with all requests, as the simulation has them.
fn own_share(drill: &Drill, analysis: &Analysis) -> f64 {
    let threshold_ns = analysis.samples.slow_threshold_ns;
    let mut order: Vec<u64> = drill.samples.iter().map(Sample::response_ns).collect();
    order.sort_unstable();
    let (from, to) = (order[order.len() / 4], order[order.len() * 3 / 4]);
    let mut sums = [(0.0, 0.0, 0.0); 2];
    for (sample, request) in drill.samples.iter().zip(&drill.requests) {
        let response_ns = sample.response_ns();
        let group = if response_ns >= threshold_ns {
            0
        } else if (from..=to).contains(&response_ns) {
            1
        } else {
            continue;
        };
        let own = drill.stalls.iter().filter(|stall| stall.tid == request.sender);
        let stalled_ns: u64 =
            own.map(|stall| stall.end.min(sample.end).since(stall.start.max(sample.start))).sum();
        sums[group].0 += response_ns as f64;
        sums[group].1 += stalled_ns as f64;
        sums[group].2 += 1.0;
    }
    let mean = |group: usize, sum: f64| sum / f64::max(sums[group].2, 1.0);
    let excess = mean(0, sums[0].0) - mean(1, sums[1].0);
    (mean(0, sums[0].1) - mean(1, sums[1].1)) / excess
}

#[test]
fn the_share_is_that_of_the_serving_threads_though_others_always_wait() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 30);
        drill.slow = SlowSpec::Threshold(8 * MS);
        // Threads that serve nobody wait for a CPU nine tenths of the time.
        for tid in 201..205 {
            let mut at = drill.rng.random_range(0..10 * MS);
            while at < drill.window_ns {
                let length_ns = drill.rng.random_range(6 * MS..14 * MS);
                drill.innocent(Cause::RUNQUEUE, tid, at, at + length_ns);
                at += length_ns + drill.rng.random_range(500 * US..1_500 * US);
            }
        }
        let service = Service { ports: seed % 2 == 0, ..POOL };
        let plan = |_, rng: &mut Xoshiro256PlusPlus| {
            let short_ns = rng.random_range(100 * US..300 * US);
            match rng.random_range(0..100) {
                0..2 => Handler { stall: Some((Cause::RUNQUEUE, 20 * MS)), ..Handler::default() },
                2 => Handler { sleep_ns: 20 * MS, ..Handler::default() },
                _ => Handler { stall: Some((Cause::RUNQUEUE, short_ns)), ..Handler::default() },
            }
        };
        service.serve(&mut drill, 400, plan, nothing);
        let before = blind(&mut drill);
        assert_eq!(before.verdict.top_cause, None, "seed {seed}: {before:#?}");
        let analysis = drill.analyse();
        let (share, truth) =
            (analysis.check().of(Cause::RUNQUEUE).share, own_share(&drill, &analysis));
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RUNQUEUE), "{seed}: {analysis:#?}");
        assert!((share - truth).abs() < 0.1, "seed {seed}: {share} for {truth}");
        assert!((0.5..0.8).contains(&truth), "seed {seed}: {truth}");
    }
}

#[test]
fn one_slow_phase_over_one_phase_of_background_stalls_is_not_theirs() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 24);
        let first = drill.rng.random_range(4 * SECOND..18 * SECOND);
        let phase = first..first + 2 * SECOND;
        for tid in 101..105 {
            for begin in (first - 200 * MS..first + 2_100 * MS).step_by(5_000_000) {
                drill.innocent(Cause::RUNQUEUE, tid, begin, begin + 4_500 * US);
            }
        }
        let plan = |at: u64, rng: &mut Xoshiro256PlusPlus| Handler {
            sleep_ns: if phase.contains(&at) { rng.random_range(5 * MS..60 * MS) } else { 0 },
            ..Handler::default()
        };
        POOL.serve(&mut drill, 150, plan, nothing);
        let before = blind(&mut drill);
        assert!(before.of(Cause::RUNQUEUE).share > 0.5, "seed {seed}: {before:#?}");
        let analysis = drill.analyse();
        let runqueue = analysis.check().of(Cause::RUNQUEUE);
        assert!(!runqueue.named && runqueue.share < 0.01, "seed {seed}: {analysis:#?}");
        assert_eq!(analysis.verdict.top_cause, None);
    }
}

#[test]
fn a_request_that_waits_for_a_busy_thread_inherits_its_stalls() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 30);
        let one = Service { threads: 2, ..POOL };
        let plan = |_, rng: &mut Xoshiro256PlusPlus| Handler {
            stall: rng.random_bool(0.003).then_some((Cause::RECLAIM_MEMCG, 60 * MS)),
            ..Handler::default()
        };
        one.serve(&mut drill, 300, plan, nothing);
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{analysis:#?}");
        let share = analysis.of(Cause::RECLAIM_MEMCG).share;
        assert!(share > 0.8, "seed {seed}: {share}");
        assert!((share - own_share(&drill, &analysis)).abs() < 0.05, "seed {seed}: {share}");
    }
}

#[test]
fn stalls_of_a_thread_that_has_handed_a_request_on_do_not_count() {
    for (seed, is_worker_stalled) in SEEDS.zip([false, true].into_iter().cycle()) {
        let mut drill = Drill::new(seed, 30);
        // The acceptor waits a third of the time, which holds up nobody.
        let mut at = 0;
        while at < drill.window_ns {
            let length_ns = drill.rng.random_range(500 * US..1_500 * US);
            drill.innocent(Cause::RUNQUEUE, 99, at, at + length_ns);
            at += length_ns + drill.rng.random_range(MS..3 * MS);
        }
        let service = Service { threads: 16, acceptor: Some(99), ..POOL };
        let plan =
            |_, rng: &mut Xoshiro256PlusPlus| match (rng.random_bool(0.02), is_worker_stalled) {
                (true, true) => {
                    Handler { stall: Some((Cause::RECLAIM_DIRECT, 30 * MS)), ..Handler::default() }
                }
                (true, false) => Handler { sleep_ns: 30 * MS, ..Handler::default() },
                _ => Handler::default(),
            };
        service.serve(&mut drill, 300, plan, nothing);
        let analysis = drill.analyse();
        analysis.check();
        assert!(has(&analysis, "counted_by_thread"));
        let runqueue = analysis.of(Cause::RUNQUEUE);
        assert!(!runqueue.named && runqueue.share < 0.1, "seed {seed}: {analysis:#?}");
        if is_worker_stalled {
            assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_DIRECT), "{analysis:#?}");
            assert!(analysis.of(Cause::RECLAIM_DIRECT).share > 0.9, "seed {seed}: {analysis:#?}");
        } else {
            assert_eq!(analysis.verdict.outcome, Outcome::Unexplained, "{seed}: {analysis:#?}");
        }
    }
}

#[test]
fn with_too_few_requests_known_stalls_of_all_threads_count() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 30);
        let plan = |_, rng: &mut Xoshiro256PlusPlus| Handler {
            stall: rng.random_bool(0.02).then_some((Cause::RECLAIM_MEMCG, 20 * MS)),
            ..Handler::default()
        };
        POOL.serve(&mut drill, 300, plan, nothing);
        let before = blind(&mut drill);
        assert_eq!(before.verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{seed}: {before:#?}");
        let mut keep = 0..;
        drill.requests.retain(|_| keep.next().is_some_and(|index| index % 5 != 0));
        let analysis = drill.analyse();
        assert!(has(&analysis, "counted_together"), "{:?}", analysis.verdict);
        assert_eq!(analysis.causes, before.causes, "nothing else changes");
        assert!(analysis.requests.unmatched > 0 && analysis.requests.matched > 0);
    }
}
