//! Known-answer drills about what requests wait for while the thread that will read them sleeps.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::RngExt;

use super::drill::{Drill, MS, SECOND};
use super::served_drills::US;
use super::single::choose;
use super::*;
use crate::model::RequestSelection;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 700..708;

const ALL: RequestSelection =
    RequestSelection { requests: 10_000, slower_than_ns: None, at_ns: None };

/// Threads 1 to 4, of which each takes the next request of a queue and is woken for it if it sleeps.
struct Threads {
    /// They have one queue. Otherwise each has its own.
    is_pool: bool,
    /// Part of the wake-ups after which a thread waits for a CPU.
    stalled: f64,
    /// Part of the answers after which a thread sleeps of its own will.
    naps: f64,
}

const THREADS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Arrives,
    /// A thread has the CPU.
    Runs(usize),
    Answers(usize),
}

impl Threads {
    fn serve(&self, seed: u64) -> Drill {
        let mut drill = Drill::new(seed, 20);
        drill.quality.sleeps_watched = true;
        let mut queues: Vec<VecDeque<u64>> = vec![VecDeque::new(); THREADS];
        let mut idle: VecDeque<usize> = (0..THREADS).collect();
        let mut asleep_since = [0; THREADS];
        let mut reads = [(0, 0); THREADS];
        let mut upcoming = BinaryHeap::from([Reverse((MS, Next::Arrives))]);
        while let Some(Reverse((now, next))) = upcoming.pop() {
            if now >= drill.window_ns - SECOND {
                return drill;
            }
            let thread = match next {
                Next::Arrives => {
                    let uniform: f64 = drill.rng.random();
                    let gap = (-(1.0 - uniform).ln() * SECOND as f64 / 300.0) as u64;
                    upcoming.push(Reverse((now + gap.max(50 * US), Next::Arrives)));
                    let queue = drill.rng.random_range(0..THREADS);
                    queues[if self.is_pool { 0 } else { queue }].push_back(now);
                    let can_take = |thread: &usize| self.is_pool || *thread == queue;
                    let Some(place) = idle.iter().position(can_take) else { continue };
                    let Some(thread) = idle.remove(place) else { continue };
                    let tid = thread as u32 + 1;
                    drill.innocent(Cause::SERVICE_WAIT, tid, asleep_since[thread], now);
                    let wait = match drill.rng.random_bool(self.stalled) {
                        true => drill.rng.random_range(10 * MS..30 * MS),
                        false => 0,
                    };
                    if wait > 0 {
                        drill.innocent(Cause::RUNQUEUE_OTHER, tid, now, now + wait);
                    }
                    upcoming.push(Reverse((now + wait, Next::Runs(thread))));
                    continue;
                }
                Next::Runs(thread) => thread,
                Next::Answers(thread) => {
                    let (arrival, read) = reads[thread];
                    let tid = thread as u32 + 1;
                    drill.served((tid, tid), [arrival, read, now]);
                    if drill.rng.random_bool(self.naps) {
                        let nap = drill.rng.random_range(10 * MS..30 * MS);
                        drill.innocent(Cause::SERVICE_WAIT, thread as u32 + 1, now, now + nap);
                        upcoming.push(Reverse((now + nap, Next::Runs(thread))));
                        continue;
                    }
                    thread
                }
            };
            match queues[if self.is_pool { 0 } else { thread }].pop_front() {
                Some(arrival) => {
                    reads[thread] = (arrival, now);
                    let work = drill.rng.random_range(400 * US..900 * US);
                    upcoming.push(Reverse((now + work, Next::Answers(thread))));
                }
                None => {
                    asleep_since[thread] = now;
                    idle.push_back(thread);
                }
            }
        }
        drill
    }
}

/// Of each request, its account, and for how long its own thread slept and was stalled meanwhile.
fn accounts(drill: &Drill) -> Vec<(BTreeMap<Cause, u64>, u64, u64)> {
    let chosen = choose(&drill.evidence(), &ALL);
    assert_eq!(chosen.requests.len(), drill.samples.len());
    let of = |(request, place): (&SlowRequest, &usize)| {
        let served = &drill.requests[*place];
        let account = request.account_ns.clone().expect("an account");
        assert_eq!(account.values().sum::<u64>(), request.response_ns, "{request:#?}");
        let own = |cause: Cause| -> u64 {
            let own = drill.stalls.iter().filter(|stall| {
                stall.tid == served.reader && stall.cause == cause && stall.end > served.begin()
            });
            let end = served.end().expect("an answer");
            own.map(|stall| stall.end.min(end).since(stall.start.max(served.begin()))).sum()
        };
        (account, own(Cause::SERVICE_WAIT), own(Cause::RUNQUEUE_OTHER))
    };
    chosen.requests.iter().zip(&chosen.places).map(of).collect()
}

fn part(account: &BTreeMap<Cause, u64>, cause: Cause) -> u64 {
    account.get(&cause).copied().unwrap_or(0)
}

#[test]
fn a_request_waits_for_the_thread_that_was_woken_for_it() {
    for seed in SEEDS {
        let pool = Threads { is_pool: true, stalled: 0.05, naps: 0.0 };
        let drill = pool.serve(seed);
        let (mut slept_ns, mut left_ns, mut waits) = (0, 0, 0);
        for (account, asleep_ns, stalled_ns) in accounts(&drill) {
            let left = part(&account, Cause::SERVICE_WAIT);
            // Of the time that its reader slept, all that is no wait is a stall.
            let stall_ns = part(&account, Cause::RUNQUEUE_OTHER);
            assert_eq!(stall_ns + left, asleep_ns + stalled_ns, "{seed}: {account:?}");
            slept_ns += asleep_ns;
            left_ns += left;
            waits += u32::from(asleep_ns > MS);
        }
        assert!(waits > 20, "{seed}: {waits}");
        assert!(left_ns * 50 < slept_ns, "{seed}: {left_ns} of {slept_ns}");
        let analysis = drill.analyse();
        let stalls = analysis.check().of(Cause::RUNQUEUE_OTHER);
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RUNQUEUE_OTHER), "{analysis:#?}");
        assert!(stalls.share > 0.9, "{seed}: {analysis:#?}");
        let waits = analysis.causes.iter().find(|row| row.cause == Cause::SERVICE_WAIT);
        assert!(waits.is_none_or(|row| row.share < 0.01), "{seed}: {analysis:#?}");
        // Without these stalls the p99 is that of a run without them.
        let without = Threads { stalled: 0.0, ..pool }.serve(seed);
        let truth_ns = without.analyse().samples.latency_ns.p99;
        let found_ns = stalls.without.expect("the p99 without it").p99_without_ns;
        let error = found_ns as f64 / truth_ns as f64 - 1.0;
        assert!(error.abs() < 0.1, "{seed}: {error}");
    }
}

#[test]
fn a_slow_reader_is_no_fault_of_threads_with_queues_of_their_own() {
    for seed in SEEDS {
        let mut drill = Threads { is_pool: false, stalled: 0.2, naps: 0.05 }.serve(seed);
        // Nor of threads that serve nothing.
        for begin in (0..drill.window_ns).step_by(7_000_000) {
            drill.innocent(Cause::SERVICE_WAIT, 77, begin, begin + MS);
            drill.innocent(Cause::RECLAIM_MEMCG, 77, begin + MS, begin + 6 * MS);
        }
        let mut waits = 0;
        for (account, asleep_ns, stalled_ns) in accounts(&drill) {
            assert_eq!(part(&account, Cause::SERVICE_WAIT), asleep_ns, "{seed}: {account:?}");
            assert_eq!(part(&account, Cause::RUNQUEUE_OTHER), stalled_ns, "{seed}: {account:?}");
            waits += u32::from(asleep_ns > MS);
        }
        assert!(waits > 100, "{seed}: {waits}");
    }
}

/// The waits and the stalls in the account of one request: it arrives after 1 ms, and thread 1 reads it after
/// 6 ms and answers after 7 ms. `others` are requests, and `intervals` when threads slept or were stalled,
/// in microseconds.
fn wait_and_stall_us(
    others: &[(u32, u64, u64, u64)],
    intervals: &[(u32, Cause, u64, u64)],
) -> (u64, u64) {
    let mut drill = Drill::new(SEEDS.start, 1);
    drill.quality.sleeps_watched = true;
    let base = 100 * MS;
    for (thread, arrival, read, answer) in [(1, 1_000, 6_000, 7_000)].iter().chain(others) {
        let [arrival, read, answer] = [arrival, read, answer].map(|us| base + us * US);
        drill.served((*thread, *thread), [arrival, read, answer]);
    }
    for (thread, cause, start, end) in intervals {
        drill.innocent(*cause, *thread, base + start * US, base + end * US);
    }
    // What is usual is known from these.
    for at in (200 * MS..900 * MS).step_by(5_000_000) {
        drill.served((1, 1), [at, at + 10 * US, at + 500 * US]);
    }
    let account = {
        let chosen = choose(&drill.evidence(), &ALL);
        let found = chosen.places.iter().position(|place| *place == 0).expect("the request");
        let request = &chosen.requests[found];
        let account = request.account_ns.clone().expect("an account");
        assert_eq!(account.values().sum::<u64>(), request.response_ns);
        account
    };
    let stalls =
        account.iter().filter(|(cause, _)| cause.is_stall()).map(|(_, ns)| ns).sum::<u64>();
    (part(&account, Cause::SERVICE_WAIT) / US, stalls / US)
}

#[test]
fn only_a_thread_that_was_woken_in_vain_counts() {
    const SLEEP: Cause = Cause::SERVICE_WAIT;
    const STALL: Cause = Cause::RUNQUEUE_OTHER;
    let reader = (1, SLEEP, 0, 5_900);
    let earlier = (2, 100, 150, 200);
    let woken = [(2, SLEEP, 300, 1_010), (2, STALL, 1_010, 4_010), (2, SLEEP, 4_010, 9_000)];
    let whole = (4_900, 0);
    let found = |others: &[_], intervals: &[_]| wait_and_stall_us(others, intervals);
    let [asleep, stalled, again] = woken;
    assert_eq!(found(&[earlier], &[reader]), whole);
    assert_eq!(found(&[earlier], &[reader, asleep, stalled, again]), (1_900, 3_000));
    // Woken for the request before: it was read by the thread that was woken for this one.
    let before = [(2, SLEEP, 300, 700), (2, STALL, 700, 4_010)];
    assert_eq!(found(&[earlier], &[reader, before[0], before[1], again]), (1_890, 3_010));
    // Two stalls of one thread, and two threads at the same time: each instant counts once.
    let two = [(2, STALL, 1_010, 2_000), (2, Cause::FAULT_MAJOR, 2_500, 4_010)];
    assert_eq!(found(&[earlier], &[reader, asleep, two[0], two[1], again]), (2_400, 2_500));
    let third = [(3, SLEEP, 300, 1_500), (3, STALL, 1_500, 5_000), (3, SLEEP, 5_000, 9_000)];
    let also = (3, 100, 160, 220);
    assert_eq!(
        found(&[earlier, also], &[reader, asleep, stalled, again, third[0], third[1], third[2]]),
        (910, 3_990)
    );
    // It serves nobody.
    assert_eq!(found(&[], &[reader, asleep, stalled, again]), whole);
    // It read what it was woken for.
    let own = (2, 1_005, 4_015, 4_020);
    assert_eq!(found(&[earlier, own], &[reader, asleep, stalled, (2, SLEEP, 4_030, 9_000)]), whole);
    // It was at work on another request.
    let long = (2, 100, 150, 4_500);
    assert_eq!(found(&[long], &[reader, asleep, stalled, (2, SLEEP, 4_600, 9_000)]), whole);
    // It was not woken: the stall began before it could sleep.
    assert_eq!(found(&[earlier], &[reader, (2, STALL, 500, 4_010), again]), whole);
    // The reader was at work on another request, and slept for that one.
    let busy = (1, 20, 50, 5_950);
    let waits = (1, SLEEP, 500, 5_900);
    assert_eq!(found(&[earlier, busy], &[waits, asleep, stalled, again]), whole);
    // The reader began to sleep when the request was there already: for something else.
    let later = (1, SLEEP, 1_100, 5_900);
    assert_eq!(found(&[earlier], &[later, asleep, stalled, again]), (4_800, 0));
}
