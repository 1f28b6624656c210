//! Known-answer drills with an event loop that takes all requests that have arrived and answers them
//! together: what the p99 would be without a cause, compared with a run without it.

use rand::RngExt;

use super::drill::{Drill, MS, SECOND};
use super::served_drills::US;
use super::*;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 900..908;

/// What makes requests slow.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slow {
    Nothing,
    /// One command in thirty sleeps 25 ms.
    Sleep,
    /// The generator sends all requests of 60 ms at the end of that time, now and then.
    SentLate,
}

/// Serves requests of a millisecond on a Poisson schedule, which a seed decides.
fn serve(seed: u64, slow: Slow) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let mut due = Vec::new();
    let mut at = 20 * MS;
    while at < drill.window_ns - SECOND {
        let sleeps = drill.rng.random_bool(1.0 / 30.0);
        due.push((at, sleeps));
        let uniform: f64 = drill.rng.random();
        at += (-(1.0 - uniform).ln() * SECOND as f64 / 150.0) as u64;
    }
    // Each second, 60 ms.
    let sent = |at: u64| match at % SECOND {
        within if slow == Slow::SentLate && within < 60 * MS => at - within + 60 * MS,
        _ => at,
    };
    let mut free = 0;
    let mut next = 0;
    while next < due.len() {
        let now = free.max(sent(due[next].0) + 20 * US);
        if now > free {
            drill.innocent(Cause::SERVICE_WAIT, 1, free, now);
        }
        let batch: Vec<(u64, bool)> =
            due[next..].iter().copied().take_while(|(at, _)| sent(*at) + 20 * US <= now).collect();
        let mut read = now + 5 * US;
        let mut reads = Vec::new();
        for (_, sleeps) in &batch {
            reads.push(read);
            if *sleeps && slow == Slow::Sleep {
                drill.innocent(Cause::SERVICE_WAIT, 1, read + 10 * US, read + 25 * MS);
                read += 25 * MS;
            }
            read += MS;
        }
        for (place, ((at, _), read_at)) in batch.iter().zip(reads).enumerate() {
            let done = read + (batch.len() - place) as u64 * US;
            let port = 40_000 + ((next + place) % 20_000) as u16;
            drill.sample(*at, sent(*at), done + 20 * US);
            if let Some(sample) = drill.samples.last_mut() {
                sample.local_port = Some(port);
            }
            drill.request((1, 1), [sent(*at) + 20 * US, read_at, done], port);
        }
        free = read + (batch.len() + 1) as u64 * US;
        next += batch.len();
    }
    drill
}

#[test]
fn what_piled_up_behind_a_cause_goes_with_it() {
    for (slow, cause) in
        [(Slow::Sleep, Cause::SERVICE_WAIT), (Slow::SentLate, Cause::LOAD_GENERATOR)]
    {
        for seed in SEEDS {
            let truth_ns = serve(seed, Slow::Nothing).analyse().samples.latency_ns.p99;
            let analysis = serve(seed, slow).analyse();
            let found = analysis.check().of(cause).without.expect("the p99 without it");
            let error = found.p99_without_ns as f64 / truth_ns as f64 - 1.0;
            assert!(error.abs() < 0.15, "{slow:?} {seed}: {found:?}, truth {truth_ns}");
        }
    }
}
