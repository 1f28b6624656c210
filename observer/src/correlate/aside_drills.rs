//! Known-answer drills about threads that serve other requests while one waits for something else.

use super::drill::{Drill, MS};
use super::served_drills::US;
use super::single::choose;
use super::*;
use crate::model::RequestSelection;

const SEED: u64 = 800;
const SLEEP: Cause = Cause::SERVICE_WAIT;
const STALL: Cause = Cause::RUNQUEUE_OTHER;

/// Reader, sender, and when it arrived, was read and was answered.
type Served = (u32, u32, u64, u64, u64);

/// The sleep, the stalls and the CPU time of one request, microseconds.
fn account_us(
    one: Served,
    others: &[Served],
    intervals: &[(u32, Cause, u64, u64)],
) -> (u64, u64, u64) {
    let mut drill = Drill::new(SEED, 1);
    drill.quality.sleeps_watched = true;
    let base = 100 * MS;
    for (reader, sender, arrival, read, answer) in [one].iter().chain(others) {
        drill.served((*reader, *sender), [arrival, read, answer].map(|us| base + us * US));
    }
    for (thread, cause, start, end) in intervals {
        drill.innocent(*cause, *thread, base + start * US, base + end * US);
    }
    // What is usual is known from these.
    for at in (200 * MS..900 * MS).step_by(5_000_000) {
        drill.served((1, 1), [at, at + 10 * US, at + 500 * US]);
    }
    let all = RequestSelection { requests: 10_000, slower_than_ns: None, at_ns: None };
    let chosen = choose(&drill.evidence(), &all);
    let found = chosen.places.iter().position(|place| *place == 0).expect("the request");
    let request = &chosen.requests[found];
    let account = request.account_ns.clone().expect("an account");
    assert_eq!(account.values().sum::<u64>(), request.response_ns);
    let part = |cause: Cause| account.get(&cause).copied().unwrap_or(0) / US;
    (part(SLEEP), part(STALL), part(Cause::SERVICE_CPU))
}

/// Read after 1 ms and answered after 31 ms by an event loop: it works for 1 ms, waits for a timer for 28 ms,
/// and works for another millisecond. Meanwhile the loop serves two others, which are stalled.
#[test]
fn a_request_that_waits_for_a_timer_does_not_wait_for_what_its_thread_does_for_others() {
    let one = (1, 1, 1_000, 1_000, 31_000);
    let others = [(1, 1, 4_900, 5_000, 8_000), (1, 1, 19_900, 20_000, 24_000)];
    let sleeps = [(1, SLEEP, 2_000, 5_000), (1, SLEEP, 8_000, 20_000), (1, SLEEP, 24_000, 30_000)];
    let stalls = [(1, STALL, 6_000, 7_000), (1, STALL, 21_000, 22_000)];
    let all = [&sleeps[..], &stalls[..]].concat();
    assert_eq!(account_us(one, &others, &all), (28_000, 0, 2_000));
    // Without a pause, the thread was what it waited for: it may have been ready in the meantime.
    assert_eq!(account_us(one, &others, &stalls), (0, 2_000, 28_000));
    // Only what was behind the last pause may be.
    assert_eq!(
        account_us(one, &others, &[sleeps[0], sleeps[1], stalls[0], stalls[1]]),
        (18_000, 1_000, 11_000)
    );
    // What it does between two requests may be for this one.
    let woken = [sleeps[0], sleeps[1], (1, SLEEP, 24_000, 26_000), (1, SLEEP, 27_000, 30_000)];
    assert_eq!(account_us(one, &others, &woken), (27_000, 0, 3_000));
    // One that came before is not beside it: this one may have waited for it.
    let before = [(1, 1, 400, 500, 32_000), others[0], others[1]];
    assert_eq!(account_us(one, &before, &all), (28_000, 0, 2_000));
}

/// A runtime lets another thread answer than the one that has read it.
#[test]
fn a_request_that_changes_threads_waits_for_neither_while_both_serve_others() {
    let one = (1, 2, 1_000, 1_000, 31_000);
    let others = [(1, 1, 4_900, 5_000, 8_000), (2, 2, 19_900, 20_000, 24_000)];
    let intervals = [
        (1, SLEEP, 2_000, 5_000),
        (1, SLEEP, 8_000, 40_000),
        (2, SLEEP, 500, 10_000),
        (2, SLEEP, 12_000, 20_000),
        (2, STALL, 21_000, 22_000),
        (2, SLEEP, 24_000, 30_000),
    ];
    // The second thread was woken after 10 ms, and may have worked for it until it slept again.
    assert_eq!(account_us(one, &others, &intervals), (26_000, 0, 4_000));
}

/// One event loop; each request takes 1 ms, and of some the answer waits for 25 ms.
#[test]
fn the_p99_without_the_wait_is_that_of_the_others() {
    let mut drill = Drill::new(SEED, 20);
    drill.quality.sleeps_watched = true;
    let mut busy = Vec::new();
    for number in 1..1_900 {
        let arrival = number * 10 * MS;
        let read = arrival + 50 * US;
        let answer = if number % 30 == 0 {
            let ready = read + 25 * MS + number * 100;
            busy.extend([(read, read + MS / 2), (ready, ready + MS / 2)]);
            ready + MS / 2
        } else {
            busy.push((read, read + MS));
            read + MS
        };
        drill.served((1, 1), [arrival, read, answer]);
    }
    busy.sort_unstable();
    for pair in busy.windows(2) {
        drill.innocent(SLEEP, 1, pair[0].1, pair[1].0);
    }
    let answer = drill.analyse();
    answer.check();
    assert_eq!(answer.verdict.top_cause, Some(SLEEP), "{answer:#?}");
    let wait = answer.of(SLEEP);
    assert!(wait.share > 0.97, "{wait:#?}");
    let without = wait.without.expect("a replay");
    assert!(without.p99_without_ns < 3 * MS, "{without:?}");
    let account = answer.account_ns.as_ref().expect("an account");
    let cpu_ns = account.slow.get(&Cause::SERVICE_CPU).copied().unwrap_or(0);
    assert!(cpu_ns < 2 * MS, "{account:?}");
}
