//! Whether the load generator waits for answers before it sends again (a closed loop), and how many
//! requests it did not send because of that.

use serde_json::json;

use super::Evidence;
use super::exposure::Population;
use super::worst::is_inside;
use crate::model::Reason;
use crate::text::count;

/// A closed loop always has the same number of requests under way. On average so large a part of the most
/// at a time: it needs a moment between an answer and the next request.
const LEAST_BUSY: f64 = 0.9;
/// Fewer requests for each one under way say nothing.
const LEAST_ROUNDS: usize = 20;

/// A note if the load generator is a closed loop.
pub(super) fn note(evidence: &Evidence<'_>, population: &Population) -> Option<Reason> {
    let mut changes: Vec<(u64, i64)> = Vec::new();
    for sample in evidence.samples.iter().filter(|sample| is_inside(sample, evidence.window)) {
        changes.extend([(sample.start.0, 1), (sample.end.0, -1)]);
    }
    let samples = changes.len() / 2;
    // An answer before the request that follows it at the same time.
    changes.sort_unstable();
    let (mut under_way, mut most, mut sum_ns) = (0i64, 0i64, 0f64);
    for pair in changes.windows(2) {
        under_way += pair[0].1;
        most = most.max(under_way);
        sum_ns += under_way as f64 * (pair[1].0 - pair[0].0) as f64;
    }
    let all_ns = changes.last()?.0.saturating_sub(changes.first()?.0) as f64;
    let is_closed = sum_ns >= LEAST_BUSY * most as f64 * all_ns;
    if !is_closed || samples < most as usize * LEAST_ROUNDS {
        return None;
    }
    let summary = &population.summary;
    let longer_ns = population.excess_ns().max(0.0) * summary.slow_count as f64;
    let missing = (longer_ns / summary.typical_mean_ns.max(1.0)).round() as u64;
    let text = format!(
        "The load generator is a closed loop: it has {} under way and sends the next one when it has an \
         answer. While requests were slow, it sent about {} fewer than usual, so that the percentiles count \
         slow phases too little (coordinated omission).",
        match most {
            1 => "one request".to_owned(),
            most => format!("{} requests", count(most as u64)),
        },
        count(missing)
    );
    Some(Reason::new("closed_loop", text, json!({"under_way": most, "missing": missing})))
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::super::drill::{Drill, MS};
    use crate::model::Sample;

    fn found(drill: &Drill) -> Option<(u64, u64)> {
        let reasons = drill.analyse().verdict.reasons;
        let has = |code: &str| reasons.iter().any(|reason| reason.code == code);
        assert_ne!(has("closed_loop"), has("intended_start_unknown"), "{reasons:#?}");
        let note = reasons.iter().find(|reason| reason.code == "closed_loop")?;
        let number = |key: &str| note.evidence[key].as_u64().expect("a number");
        Some((number("under_way"), number("missing")))
    }

    /// Clients that send the next request when they have an answer, after a pause; every 50th takes about 60 ms.
    fn closed(seed: u64, clients: u64, pause_ns: u64) -> Drill {
        let mut drill = Drill::new(seed, 20);
        let mut free = vec![MS; clients as usize];
        let mut sent = 0;
        while let Some(start) = free.iter_mut().min() {
            let usual_ns = drill.rng.random_range(MS..2 * MS);
            let length = if sent % 50 == 49 { 50 * MS + 6 * usual_ns } else { usual_ns };
            let begin = *start;
            *start = begin + length + pause_ns;
            sent += 1;
            if begin + length >= drill.window_ns - MS {
                break;
            }
            drill.sample(begin, begin, begin + length);
        }
        drill.samples.iter_mut().for_each(|sample| sample.intended_start = None);
        drill
    }

    #[test]
    fn a_closed_loop_always_has_as_many_under_way() {
        for (seed, clients) in [1, 2, 10, 50].into_iter().enumerate() {
            let drill = closed(1_100 + seed as u64, clients, 20_000);
            let (under_way, missing) = found(&drill).expect("a closed loop");
            assert_eq!(under_way, clients);
            // Each of the slow ones, which are 1 % of all, stood in the way of so many others.
            let mut lengths: Vec<u64> = drill.samples.iter().map(Sample::response_ns).collect();
            lengths.sort_unstable();
            let slow = &lengths[lengths.len() * 99 / 100..];
            let usual_ns = 1.5 * MS as f64;
            let expected: f64 = slow.iter().map(|ns| *ns as f64 / usual_ns - 1.0).sum();
            let error = missing as f64 / expected - 1.0;
            assert!(error.abs() < 0.1, "{clients}: {missing}, expected {expected}");
        }
    }

    #[test]
    fn an_open_loop_is_none_and_neither_are_clients_that_think() {
        for seed in 1_110..1_114 {
            let mut drill = Drill::new(seed, 20);
            drill.load(400, |_, _| 0, |at, _| if at % 50 == 7 { 60 * MS } else { 0 });
            drill.samples.iter_mut().for_each(|sample| sample.intended_start = None);
            assert_eq!(found(&drill), None);
            assert_eq!(found(&closed(seed, 10, 5 * MS)), None);
        }
    }
}
