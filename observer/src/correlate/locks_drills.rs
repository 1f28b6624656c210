//! Known-answer drills in which threads wait for locks, and for threads that wake them.

use rand::RngExt;

use super::drill::{Drill, MS, ORIGIN};
use super::served_drills::US;
use super::*;
use crate::model::{Extra, Holder, Tgid, Tid};

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 2_300..2_306;
const HOLDER: u32 = 50;

/// What ends the waits of the threads that serve requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A lock.
    Lock,
    /// A semaphore, which is the same one for all threads.
    Semaphore,
    /// The same, and the threads that end the waits sleep until anything happens themselves.
    SemaphoreOfLoop,
    /// A condition that each thread has for itself.
    Condition,
    /// The same, and every wait is one of several that took as long as they were to take at most.
    Again,
}

/// What the thread that ends the waits does meanwhile.
#[derive(Clone, Copy)]
enum Holds {
    Computes,
    Sleeps,
    Stalled,
    /// It sleeps for the first half, until a timer wakes it, and is stalled for the second one.
    SleepsAndStalled,
    /// It waits in the same queue, for a thread that is stalled.
    WaitsForStalled,
}

/// A thread waits at a place in memory.
fn sleep(kind: Kind, tid: u32, (start, end): (u64, u64), by: Option<u32>) -> Stall {
    let cause = if kind == Kind::Lock { Cause::LOCK_WAIT } else { Cause::SERVICE_WAIT };
    let is_shared = matches!(kind, Kind::Lock | Kind::Semaphore | Kind::SemaphoreOfLoop);
    let extra = Extra::OfThread(if is_shared { 7 } else { 1_000 + tid });
    let holder = by.map(|by| Holder { tid: Tid(by), tgid: Tgid(1), cgroup: None });
    Stall { holder, extra, ..Stall::of_thread(tid, cause, ORIGIN + start, ORIGIN + end) }
}

/// Four threads that serve requests of about a millisecond. Some wait for 20 to 30 ms for another thread, which
/// ends the wait.
fn serve(seed: u64, kind: Kind, holds: Holds) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    for tid in 1..=4 {
        let mut free = u64::from(tid) * MS;
        while free < drill.window_ns - 200 * MS {
            let arrival = free + drill.rng.random_range(MS..20 * MS);
            // Idle: a timer or the network ends it.
            drill.innocent(Cause::SERVICE_WAIT, tid, free, arrival);
            let mut end = arrival + drill.rng.random_range(800 * US..1_200 * US);
            if drill.rng.random_bool(0.02) {
                let long = drill.rng.random_range(20 * MS..30 * MS);
                // Each wait has a holder of its own, so that none does two things at once.
                let holder = HOLDER + drill.stalls.len() as u32 * 2;
                hold(&mut drill, kind, holder, (end, end + long), holds);
                let last = if kind == Kind::Again { end + long - 2 * MS } else { end };
                if kind == Kind::Again {
                    drill.stalls.push(sleep(kind, tid, (end, last - 15 * US), None));
                }
                drill.stalls.push(sleep(kind, tid, (last, end + long), Some(holder)));
                end += long + 100 * US;
            }
            drill.served((tid, tid), [arrival, arrival + 5 * US, end]);
            free = end + 5 * US;
        }
    }
    drill
}

/// What a thread does from an instant on until it ends the wait of another one.
fn hold(drill: &mut Drill, kind: Kind, tid: u32, (from, until): (u64, u64), holds: Holds) {
    let half = from.midpoint(until);
    // It is known when it slept.
    drill.innocent(Cause::SERVICE_WAIT, tid, from - 2 * MS, from - MS);
    if kind == Kind::SemaphoreOfLoop {
        drill.stalls.last_mut().expect("a sleep").extra = Extra::AnyOf(9);
    }
    match holds {
        Holds::Computes => {}
        Holds::Sleeps => drill.innocent(Cause::SERVICE_WAIT, tid, from, until - 10 * US),
        Holds::Stalled => drill.innocent(Cause::RECLAIM_MEMCG, tid, from, until - 10 * US),
        Holds::SleepsAndStalled => {
            drill.innocent(Cause::SERVICE_WAIT, tid, from, half);
            drill.innocent(Cause::RECLAIM_MEMCG, tid, half, until - 10 * US);
        }
        Holds::WaitsForStalled => {
            drill.innocent(Cause::SERVICE_WAIT, tid + 1, from - 2 * MS, from - MS);
            drill.innocent(Cause::RECLAIM_MEMCG, tid + 1, from, until - 60 * US);
            let wait = (from - 500 * US, until - 50 * US);
            drill.stalls.push(sleep(Kind::Lock, tid, wait, Some(tid + 1)));
        }
    }
}

/// The parts of the slow requests' time that were longer than 5 % of it, by cause, in tenths of the time that they
/// waited.
fn parts(kind: Kind, holds: Holds) -> Vec<(Cause, u64)> {
    let mut found: Vec<Vec<(Cause, u64)>> = SEEDS
        .map(|seed| {
            let analysis = serve(seed, kind, holds).analyse();
            analysis.check();
            let account = analysis.account_ns.expect("an account");
            let waited: u64 = account
                .slow
                .iter()
                .filter(|(cause, _)| cause.is_recorded())
                .map(|(_, ns)| ns)
                .sum();
            let tenths = |(cause, ns): (&Cause, &u64)| (*cause, (ns * 10 + waited / 2) / waited);
            let there = account.slow.iter().filter(|(cause, _)| cause.is_recorded()).map(tenths);
            there.filter(|(_, tenths)| *tenths > 0).collect()
        })
        .collect();
    found.dedup();
    assert_eq!(found.len(), 1, "every seed gives the same: {found:?}");
    found.remove(0)
}

#[test]
fn the_stalls_of_who_has_a_lock_are_those_of_who_waits_for_it() {
    check_lock(|holds| parts(Kind::Lock, holds));
    check_lock(|holds| parts(Kind::Semaphore, holds));
}

fn check_lock(lock: impl Fn(Holds) -> Vec<(Cause, u64)>) {
    assert_eq!(lock(Holds::Computes), [(Cause::LOCK_WAIT, 10)]);
    assert_eq!(lock(Holds::Sleeps), [(Cause::LOCK_WAIT, 10)]);
    assert_eq!(lock(Holds::Stalled), [(Cause::RECLAIM_MEMCG, 10)]);
    assert_eq!(lock(Holds::SleepsAndStalled), [(Cause::RECLAIM_MEMCG, 5), (Cause::LOCK_WAIT, 5)]);
    assert_eq!(lock(Holds::WaitsForStalled), [(Cause::RECLAIM_MEMCG, 10)]);
}

#[test]
fn only_what_a_waker_did_since_it_was_woken_itself_is_what_others_waited_for() {
    for kind in [Kind::Condition, Kind::Again, Kind::SemaphoreOfLoop] {
        let condition = |holds| parts(kind, holds);
        assert_eq!(condition(Holds::Computes), [(Cause::SERVICE_WAIT, 10)]);
        assert_eq!(condition(Holds::Sleeps), [(Cause::SERVICE_WAIT, 10)]);
        assert_eq!(condition(Holds::Stalled), [(Cause::RECLAIM_MEMCG, 10)]);
        let both = [(Cause::RECLAIM_MEMCG, 5), (Cause::SERVICE_WAIT, 5)];
        assert_eq!(condition(Holds::SleepsAndStalled), both);
    }
}

#[test]
fn a_lock_is_named_with_its_share_and_the_latency_without_it() {
    let drill = serve(SEEDS.start, Kind::Lock, Holds::Computes);
    let analysis = drill.analyse();
    assert_eq!(analysis.verdict.top_cause, Some(Cause::LOCK_WAIT), "{analysis:#?}");
    let row = analysis.of(Cause::LOCK_WAIT);
    assert!(row.named && row.share > 0.9, "{row:?}");
    let without = row.without.as_ref().expect("the p99 without it");
    assert!(without.p99_without_ns < 3 * MS, "{without:?}");
    let waits = drill.stalls.iter().filter(|stall| stall.cause == Cause::LOCK_WAIT).count();
    assert_eq!(row.stalls, waits as u64);
    let [object] = &analysis.objects[&Cause::LOCK_WAIT][..] else { panic!("{analysis:#?}") };
    assert_eq!((object.object, object.had_by.is_some()), (7, true));

    // One that only the threads tell.
    let analysis = serve(SEEDS.start, Kind::Semaphore, Holds::Sleeps).analyse();
    assert_eq!(analysis.verdict.top_cause, Some(Cause::LOCK_WAIT), "{analysis:#?}");
    assert_eq!(analysis.of(Cause::LOCK_WAIT).stalls, waits as u64);
    assert_eq!(analysis.objects[&Cause::LOCK_WAIT][0].object, 7);
}

#[test]
fn threads_without_a_request_do_not_wait_for_a_lock() {
    let mut drill = serve(SEEDS.start, Kind::Lock, Holds::Computes);
    drill.stalls.retain(|stall| stall.cause != Cause::LOCK_WAIT);
    for stall in &mut drill.stalls {
        if stall.cause == Cause::SERVICE_WAIT && stall.tid.0 <= 4 {
            (stall.extra, stall.cause) = (Extra::OfThread(7), Cause::LOCK_WAIT);
        }
    }
    let analysis = drill.analyse();
    let account = analysis.account_ns.expect("an account");
    assert_eq!(account.slow.get(&Cause::LOCK_WAIT), None, "{account:?}");
    // Without the requests, it is not known who had one.
    drill.requests.clear();
    let analysis = drill.analyse();
    assert!(analysis.causes.iter().all(|row| row.cause != Cause::LOCK_WAIT), "{analysis:#?}");
}
