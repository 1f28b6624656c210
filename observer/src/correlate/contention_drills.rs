//! Known-answer drills of a service whose threads share one CPU, which a scheduler gives to them in turn:
//! what is left of the p99 without a cause, compared with a run without it.

use std::collections::VecDeque;

use rand::RngExt;

use super::drill::{Drill, MS, ORIGIN, SECOND};
use super::served_drills::US;
use super::*;
use crate::model::{Tgid, Tid};

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 600..608;
/// The scheduler looks so often who runs.
const STEP: u64 = 20 * US;
/// A thread keeps the CPU for so long.
const SLICE: u64 = 3 * MS;
const THREADS: usize = 4;

/// What a thread is about.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Idle,
    Waits(Cause),
    Runs,
}

struct Thread {
    state: State,
    since: u64,
    /// The request: when it was sent, when it came, when it was read, and what is left to do.
    request: Option<(u64, u64, Option<u64>, u64)>,
}

/// What is done to the service: when the CPU is taken away, and when the generator sends what it should have
/// sent before.
struct Harm {
    is_taken: fn(u64) -> bool,
    late_until: fn(u64) -> Option<u64>,
}

const NOTHING: Harm = Harm { is_taken: |_| false, late_until: |_| None };

fn drill(seed: u64, harm: &Harm) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    // By when they should have been sent.
    let mut upcoming = VecDeque::new();
    let mut at = 0;
    while at < drill.window_ns {
        let uniform: f64 = drill.rng.random();
        at += (-(1.0 - uniform).ln() * SECOND as f64 / 150.0) as u64;
        let needs = drill.rng.random_range(500 * US..4 * MS);
        upcoming.push_back((at, (harm.late_until)(at).unwrap_or(at), needs));
    }
    let mut queue: VecDeque<(u64, u64, u64)> = VecDeque::new();
    let mut threads: Vec<Thread> =
        (0..THREADS).map(|_| Thread { state: State::Idle, since: 0, request: None }).collect();
    // Whose turn it is, and since when.
    let (mut order, mut turn_since) = (VecDeque::<usize>::new(), 0);
    let mut now = 0;
    while now < drill.window_ns {
        while let Some((intended, sent, needs)) =
            upcoming.pop_front_if(|(_, sent, _): &mut (u64, u64, u64)| *sent <= now)
        {
            queue.push_back((intended, sent, needs));
        }
        for (number, thread) in threads.iter_mut().enumerate() {
            if thread.request.is_none()
                && let Some((intended, sent, needs)) = queue.pop_front()
            {
                thread.request = Some((intended, sent, None, needs));
                order.push_back(number);
            }
        }
        if now - turn_since >= SLICE && order.len() > 1 {
            order.rotate_left(1);
            turn_since = now;
        }
        let taken = (harm.is_taken)(now);
        let mut done = None;
        for (number, thread) in threads.iter_mut().enumerate() {
            let state = match order.front() {
                _ if thread.request.is_none() => State::Idle,
                _ if taken => State::Waits(Cause::RUNQUEUE_OTHER),
                Some(first) if *first == number => State::Runs,
                _ => State::Waits(Cause::RUNQUEUE_SELF),
            };
            if state != thread.state {
                let cause = match thread.state {
                    State::Idle => Some(Cause::SERVICE_WAIT),
                    State::Waits(cause) => Some(cause),
                    State::Runs => None,
                };
                if let Some(cause) = cause.filter(|_| thread.since < now) {
                    drill.innocent(cause, number as u32 + 1, thread.since, now);
                }
                (thread.state, thread.since) = (state, now);
            }
            if state == State::Runs
                && let Some((_, _, read, left)) = &mut thread.request
            {
                read.get_or_insert(now + 2 * US);
                *left = left.saturating_sub(STEP);
                done = (*left == 0).then_some(number);
            }
        }
        now += STEP;
        let Some(number) = done else { continue };
        order.pop_front();
        turn_since = now;
        let Some((intended, sent, read, _)) = threads[number].request.take() else { continue };
        drill.sample(intended, sent, now + 5 * US);
        let on_kernels = |time: u64| MonoNanos(ORIGIN + time);
        let port = 40_000 + (drill.samples.len() % 20_000) as u16;
        if let Some(sample) = drill.samples.last_mut() {
            sample.local_port = Some(port);
        }
        let thread = Tid(number as u32 + 1);
        drill.requests.push(ServerRequest {
            arrival: Some(on_kernels(sent + US)),
            read: on_kernels(read.unwrap_or(now)),
            first_send: Some(on_kernels(now)),
            last_send: Some(on_kernels(now)),
            tgid: Tgid(1),
            reader: thread,
            sender: thread,
            is_unix: false,
            local_port: 80,
            remote_port: port,
            bytes_in: 100,
            bytes_out: 1_000,
        });
    }
    drill
}

fn p99_ns(drill: &Drill) -> u64 {
    let mut latencies: Vec<u64> = drill.samples.iter().map(Sample::response_ns).collect();
    latencies.sort_unstable();
    latencies[(latencies.len() as f64 * 0.99).ceil() as usize - 1]
}

/// Whether it is the first `length` of a period of 2 s.
fn is_first(at: u64, length: u64) -> bool {
    at % (2 * SECOND) < length
}

#[test]
fn what_piles_up_behind_a_cause_goes_with_it() {
    let taken = Harm { is_taken: |at| is_first(at, 100 * MS), ..NOTHING };
    // Every 2 s, what should have been sent in 100 ms comes at once.
    let late = Harm {
        late_until: |at| is_first(at, 100 * MS).then(|| at - at % (2 * SECOND) + 100 * MS),
        ..NOTHING
    };
    for (cause, harm) in [(Cause::RUNQUEUE_OTHER, taken), (Cause::LOAD_GENERATOR, late)] {
        let mut covered = 0;
        for seed in SEEDS {
            let truth_ns = p99_ns(&drill(seed, &NOTHING));
            let with = drill(seed, &harm);
            let analysis = with.analyse();
            let row = analysis.check().of(cause);
            assert!(row.named, "{seed}: {analysis:#?}");
            let without = row.without.expect("the p99 without it");
            let (found_ns, [low, high]) = (without.p99_without_ns, without.p99_without_ci95);
            let error = found_ns as f64 / truth_ns as f64 - 1.0;
            println!(
                "{} {seed}: with {} found {found_ns} [{low}, {high}] truth {truth_ns}: {error:+.2}",
                cause.name(),
                p99_ns(&with)
            );
            assert!(error.abs() < 0.2, "{seed}: {error}");
            covered += u32::from((low..=high).contains(&truth_ns));
        }
        assert!(covered >= 6, "{cause:?}: {covered} of 8 intervals cover the truth");
    }
}
