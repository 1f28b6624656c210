//! Known-answer drills with a thread that takes what piled up behind a stall in some order: what the p99 would
//! be without the stall, compared with a run without it.

use rand::RngExt;

use super::drill::{Drill, MS, SECOND};
use super::served_drills::US;
use super::*;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 940..946;
/// Each second, a CPU limit holds the thread.
const HELD_NS: u64 = 120 * MS;

/// Which of the requests in its sockets a thread takes next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Takes {
    Oldest,
    Newest,
    Any,
}

/// Serves requests of a millisecond on a Poisson schedule, which a seed decides, one by one.
fn serve(seed: u64, takes: Takes, is_held: bool) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let mut due = Vec::new();
    let mut at = 20 * MS;
    while at < drill.window_ns - SECOND {
        due.push(at);
        let uniform: f64 = drill.rng.random();
        at += (-(1.0 - uniform).ln() * SECOND as f64 / 150.0) as u64;
    }
    let (mut free, mut next, mut queue) = (0, 0, Vec::new());
    let arrival = |at: u64| at + 20 * US;
    while next < due.len() || !queue.is_empty() {
        let mut read = match queue.is_empty() {
            true => free.max(arrival(due[next])) + 5 * US,
            false => free + 5 * US,
        };
        if read > free + 5 * US {
            drill.innocent(Cause::SERVICE_WAIT, 1, free, read - 5 * US);
        }
        let held_until = read - read % SECOND + HELD_NS;
        if is_held && read >= SECOND && read < held_until {
            drill.innocent(Cause::CPU_THROTTLE, 1, read, held_until);
            read = held_until;
        }
        while due.get(next).is_some_and(|at| arrival(*at) <= read) {
            queue.push(next);
            next += 1;
        }
        let place = match takes {
            Takes::Oldest => 0,
            Takes::Newest => queue.len() - 1,
            Takes::Any => drill.rng.random_range(0..queue.len()),
        };
        let taken = queue.remove(place);
        let (at, done, port) = (due[taken], read + MS, 40_000 + (taken % 20_000) as u16);
        drill.sample(at, at, done + 20 * US);
        if let Some(sample) = drill.samples.last_mut() {
            sample.local_port = Some(port);
        }
        drill.request((1, 1), [arrival(at), read, done], port);
        free = done;
    }
    drill
}

#[test]
fn what_piled_up_behind_a_stall_goes_with_it_in_any_order() {
    for seed in SEEDS {
        for takes in [Takes::Oldest, Takes::Newest, Takes::Any] {
            let truth_ns = serve(seed, takes, false).analyse().samples.latency_ns.p99;
            let analysis = serve(seed, takes, true).analyse();
            let found = analysis.check().of(Cause::CPU_THROTTLE).without.expect("without it");
            let error = found.p99_without_ns as f64 / truth_ns as f64 - 1.0;
            println!("{takes:?} {seed} {error:.3}");
            assert!(error.abs() < 0.15, "{takes:?} {seed}: {found:?}, truth {truth_ns}");
        }
    }
}
