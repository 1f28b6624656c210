//! Random nestings, compared nanosecond by nanosecond with the simplest algorithm that assigns each
//! instant to a stall.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::*;

/// The window; stalls reach beyond both of its ends.
const BEGIN: u64 = 100;
const END: u64 = 300;
const LAST: u64 = 400;
const CASES: u64 = 3_000;

fn causes() -> Vec<Cause> {
    Cause::all().filter(|cause| cause.is_stall()).collect()
}

fn stall(tid: u32, cause: Cause, start: u64, end: u64) -> Stall {
    Stall::of_thread(tid, cause, start, end)
}

fn flat(stalls: &[Stall]) -> Timelines {
    flatten(stalls, (MonoNanos(BEGIN), MonoNanos(END)), &mut Ignored::default())
}

/// The stall that this instant of this thread is assigned to.
fn owner(stalls: &[Stall], tid: u32, now: u64) -> Option<Cause> {
    stalls
        .iter()
        .filter(|stall| stall.tid.0 == tid && (stall.start.0..stall.end.0).contains(&now))
        .max_by_key(|stall| {
            let cause = stall.cause;
            (!cause.is_sleep(), stall.start, Reverse(stall.end), Reverse(cause))
        })
        .map(|stall| stall.cause)
}

/// Every instant of the window: the causes that have it on some thread.
fn compare(lines: &Timelines, owners: impl Fn(u64) -> Vec<Cause>, case: &str) {
    for now in BEGIN..END {
        let owners = owners(now);
        for cause in causes() {
            let covered = lines.of(cause).exposure(now - BEGIN, now - BEGIN + 1);
            let wanted = f64::from(u8::from(owners.contains(&cause)));
            assert_eq!(covered, wanted, "{case}: {cause:?} at {now}, which {owners:?} have");
        }
    }
}

fn one_of<T: Copy>(rng: &mut Xoshiro256PlusPlus, items: &[T]) -> T {
    items[rng.random_range(0..items.len())]
}

#[test]
fn any_overlaps_go_to_the_stall_that_began_last() {
    for seed in 0..CASES {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let threads = rng.random_range(1..4);
        // Short and long ones, many with a begin or an end in common.
        let step = one_of(&mut rng, &[1, 7, 25]);
        let stalls: Vec<Stall> = (0..rng.random_range(0..40))
            .map(|_| {
                let start = rng.random_range(0..LAST / step) * step;
                let length = rng.random_range(0..1 + LAST / step / 2) * step;
                let cause = one_of(&mut rng, &causes());
                stall(rng.random_range(0..threads), cause, start, start + length)
            })
            .collect();
        let owners = |now| (0..threads).filter_map(|tid| owner(&stalls, tid, now)).collect();
        compare(&flat(&stalls), owners, &format!("seed {seed}, {stalls:?}"));
    }
}

#[test]
fn the_causes_of_one_thread_sum_to_the_union_of_its_stalls() {
    for seed in 0..CASES {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let stalls: Vec<Stall> = (0..rng.random_range(1..60))
            .map(|_| {
                let start = rng.random_range(0..LAST);
                let cause = one_of(&mut rng, &causes());
                stall(1, cause, start, start + rng.random_range(1..90))
            })
            .collect();
        let lines = flat(&stalls);
        let total: f64 = causes().iter().map(|cause| lines.of(*cause).total).sum();
        let inside = |now: &u64| owner(&stalls, 1, *now).is_some();
        let union = (BEGIN..END).filter(inside).count();
        assert_eq!(total, union as f64, "seed {seed}: {stalls:?}");
    }
}

/// A thread of the simulation.
#[derive(Default)]
struct Life {
    /// What it is in, outermost first: begin, cause, and the number of the stall.
    open: Vec<(u64, Cause, usize)>,
    /// At each instant, the stalls it is in, outermost first.
    history: Vec<(u64, Vec<(usize, Cause)>)>,
}

/// Threads go in and out of stalls, die in the middle of them, and their ids are given to others. A
/// stall whose end was not seen has no record; its time belongs to the stall around it.
#[test]
fn stalls_without_an_end_and_dying_threads_neither_lose_time_nor_count_it_twice() {
    for seed in 0..CASES {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut lives: BTreeMap<u32, Life> = (0..3).map(|tid| (tid, Life::default())).collect();
        let mut recorded = Vec::new();
        let mut ended = Vec::new();
        let mut begun = 0;
        for now in 0..LAST {
            for (tid, life) in &mut lives {
                match rng.random_range(0..100) {
                    // Several may begin at one instant only if one of them ends there: a thread
                    // enters one thing at a time.
                    0..10 => {
                        life.open.push((now, one_of(&mut rng, &causes()), begun));
                        begun += 1;
                    }
                    10..22 => {
                        if let Some((start, cause, number)) = life.open.pop() {
                            recorded.push(stall(*tid, cause, start, now));
                            ended.push(number);
                        }
                    }
                    // The end of one is lost: its record does not come.
                    22..24 => drop(life.open.pop()),
                    // The thread dies; another gets its id at once.
                    24..25 => life.open.clear(),
                    _ => {}
                }
                let nested = life.open.iter().map(|(_, cause, number)| (*number, *cause)).collect();
                life.history.push((now, nested));
            }
        }
        // Records come in the order of their ends, those of several CPUs in any.
        for index in (1..recorded.len()).rev() {
            recorded.swap(index, rng.random_range(0..=index));
        }
        let owners = |now: u64| {
            let innermost = |life: &Life| {
                let (_, nested) = &life.history[now as usize];
                let mut known = nested.iter().rev().filter(|(number, _)| ended.contains(number));
                let innermost = known.clone().find(|(_, cause)| !cause.is_sleep());
                // What a thread sleeps for within a stall, the stall is the reason of.
                innermost.or_else(|| known.next()).map(|(_, cause)| *cause)
            };
            lives.values().filter_map(innermost).collect()
        };
        compare(&flat(&recorded), owners, &format!("seed {seed}, {recorded:?}"));
    }
}
