//! Absences split by cause: known answers, and parts that always sum to the whole.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::model::Tgid;

const US: u64 = 1_000;

fn absence(tid: u32, start: u64, end: u64) -> Absence {
    Absence {
        end: MonoNanos(end),
        duration_ns: end - start,
        tid: Tid(tid),
        tgid: Tgid(1),
        preempted: false,
        kernel_stack: 1,
        user_stack: 2,
    }
}

fn stall(cause: Cause, start: u64, end: u64) -> Stall {
    Stall::of_thread(1, cause, start, end)
}

/// The parts of the one absence, each with its cause, its begin from that of the absence, and its length.
fn parts_of(absence: Absence, stalls: &[Stall]) -> Vec<(Cause, u64, u64)> {
    let mut found = Vec::new();
    Absences::new(vec![absence]).split(stalls, |one, parts| {
        assert_eq!(*one, absence);
        let from = absence.start();
        found.extend(parts.iter().map(|part| (part.cause, part.start.since(from), part.ns)));
    });
    assert_eq!(found.iter().map(|(_, _, ns)| ns).sum::<u64>(), absence.duration_ns);
    found
}

/// The absence of most tests.
fn away() -> Absence {
    absence(1, 5_000 * US, 9_000 * US)
}

#[test]
fn a_sleep_and_the_wait_for_a_cpu_behind_it_have_the_whole_absence() {
    let stalls = [
        stall(Cause::SERVICE_WAIT, 5_001 * US, 8_000 * US),
        // Read a moment after the end of the sleep, and past the end of the absence.
        stall(Cause::RUNQUEUE_OTHER, 8_004 * US, 9_003 * US),
    ];
    let expected =
        [(Cause::SERVICE_WAIT, 0, 3_004 * US), (Cause::RUNQUEUE_OTHER, 3_004 * US, 996 * US)];
    assert_eq!(parts_of(away(), &stalls), expected);
}

#[test]
fn what_no_record_has_is_not_known() {
    assert_eq!(parts_of(away(), &[]), [(Cause::UNEXPLAINED, 0, 4_000 * US)]);
    let wait = stall(Cause::RUNQUEUE, 8_000 * US, 9_000 * US);
    let expected = [(Cause::UNEXPLAINED, 0, 3_000 * US), (Cause::RUNQUEUE, 3_000 * US, 1_000 * US)];
    assert_eq!(parts_of(away(), &[wait]), expected);
    // A thread that was preempted could have run.
    let preempted = Absence { preempted: true, ..away() };
    assert_eq!(parts_of(preempted, &[]), [(Cause::RUNQUEUE, 0, 4_000 * US)]);
}

#[test]
fn stalls_of_other_times_and_threads_and_short_ones_do_not_count() {
    let stalls = [
        // The end of the sleep before, and the begin of the stall behind.
        stall(Cause::SERVICE_WAIT, 1_000 * US, 5_005 * US),
        stall(Cause::FAULT_MINOR, 8_995 * US, 9_900 * US),
        Stall { tid: Tid(2), ..stall(Cause::LOCK_WAIT, 5_000 * US, 9_000 * US) },
        Stall {
            extra: Extra::Spread(3_000_000),
            ..stall(Cause::FAULT_MINOR, 8_000 * US, 8_900 * US)
        },
        stall(Cause::LOAD_GENERATOR, 5_000 * US, 9_000 * US),
    ];
    assert_eq!(parts_of(away(), &stalls), [(Cause::UNEXPLAINED, 0, 4_000 * US)]);
}

#[test]
fn a_sleep_within_a_stall_belongs_to_the_stall() {
    let stalls = [
        stall(Cause::FAULT_MAJOR, 4_000 * US, 9_500 * US),
        stall(Cause::BLOCK_IO, 5_000 * US, 8_000 * US),
        stall(Cause::RUNQUEUE_SELF, 8_000 * US, 9_000 * US),
    ];
    let expected =
        [(Cause::FAULT_MAJOR, 0, 3_000 * US), (Cause::RUNQUEUE_SELF, 3_000 * US, 1_000 * US)];
    assert_eq!(parts_of(away(), &stalls), expected);
}

#[test]
fn short_absences_keep_short_parts() {
    let stalls = [stall(Cause::LOCK_WAIT, 98, 106), stall(Cause::RUNQUEUE, 106, 109)];
    let expected = [(Cause::LOCK_WAIT, 0, 6), (Cause::RUNQUEUE, 6, 2)];
    assert_eq!(parts_of(absence(1, 100, 108), &stalls), expected);
}

#[test]
fn an_absence_from_before_the_clock_keeps_its_length() {
    let long = Absence { duration_ns: u64::MAX, ..away() };
    let expected = [(Cause::UNEXPLAINED, 0, u64::MAX)];
    assert_eq!(parts_of(long, &[]), expected);
}

#[test]
fn parts_always_sum_to_the_absences() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
    let causes: Vec<Cause> = Cause::all().collect();
    for _ in 0..2_000 {
        let mut absences = Vec::new();
        for tid in 1..=3 {
            let mut now = 0;
            for _ in 0..rng.random_range(0..4) {
                let start = now + rng.random_range(0..200_000);
                now = start + rng.random_range(0..400_000);
                let preempted = rng.random_range(0..3) == 0;
                absences.push(Absence { preempted, ..absence(tid, start, now) });
            }
        }
        let stalls: Vec<Stall> = (0..rng.random_range(0..12))
            .map(|_| {
                let start = rng.random_range(0..1_500_000);
                let end = start + rng.random_range(0..600_000);
                let cause = causes[rng.random_range(0..causes.len())];
                Stall { tid: Tid(rng.random_range(1..=3)), ..stall(cause, start, end) }
            })
            .collect();
        let all = Absences::new(absences);
        let mut seen = 0;
        all.split(&stalls, |absence, parts| {
            seen += 1;
            let sum_ns: u64 = parts.iter().map(|part| part.ns).sum();
            assert_eq!(sum_ns, absence.duration_ns);
            assert!(parts.iter().all(|part| part.ns > 0));
            let mut now = absence.start();
            for part in parts {
                assert_eq!(part.start, now, "one after the other");
                now.0 += part.ns;
            }
        });
        assert_eq!(seen, all.all().len());
    }
}

#[test]
fn times_of_threads_cut_parts() {
    let times = [(1, 10, 20), (1, 15, 30), (1, 50, 60), (2, 0, 100), (1, 70, 70)];
    let times = times.map(|(tid, from, until)| (Tid(tid), MonoNanos(from), MonoNanos(until)));
    let times = ThreadTimes::new(times);
    let part = |cause, start, ns| Part { cause, start: MonoNanos(start), ns };
    let parts = [part(Cause::LOCK_WAIT, 5, 20), part(Cause::RUNQUEUE, 25, 30)];
    let expected = [
        part(Cause::LOCK_WAIT, 10, 15),
        part(Cause::RUNQUEUE, 25, 5),
        part(Cause::RUNQUEUE, 50, 5),
    ];
    assert_eq!(times.within(Tid(1), &parts), expected);
    assert_eq!(times.within(Tid(2), &parts), parts);
    assert_eq!(times.within(Tid(3), &parts), []);
}
