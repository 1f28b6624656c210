//! Generators whose zero is known within seconds.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::*;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const ORIGIN: u64 = 5_000 * SECOND;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
struct Plan {
    requests: u64,
    /// At equal distances, instead of at random times.
    is_regular: bool,
    /// Requests of other clients, and samples of which no request was seen.
    others: u64,
    missing: u64,
    /// A generator that prints rounded times.
    precision_ns: u64,
}

const PLAN: Plan =
    Plan { requests: 2_000, is_regular: false, others: 0, missing: 0, precision_ns: 1 };
/// How well the zero is known before.
const ERROR_NS: u64 = 2 * SECOND;

impl Plan {
    /// Samples that are off by `off_ns`, and the requests.
    fn play(self, seed: u64, off_ns: i64) -> (Vec<Sample>, Vec<ServerRequest>) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let length_ns = self.requests * 10 * MS;
        let mut samples = Vec::new();
        let mut requests = Vec::new();
        let request = |at: u64| ServerRequest::of_times((1, 1), [at, at + US, at + 2 * US], 0);
        for index in 0..self.requests {
            let since =
                if self.is_regular { index * 10 * MS } else { rng.random_range(0..length_ns) };
            let start = ORIGIN + since;
            let there = rng.random_range(30 * US..200 * US);
            let took = there + (-(rng.random::<f64>().ln()) * 3e6) as u64 + 100 * US;
            if index >= self.missing {
                requests.push(request(start + there));
            }
            let round = |time: u64| time / self.precision_ns * self.precision_ns;
            let (start, end) = (round(start), round(start + took));
            let mut sample = Sample::of_times(start, end);
            sample.precision_ns = self.precision_ns;
            sample.move_by(off_ns);
            samples.push(sample);
        }
        for _ in 0..self.others {
            requests.push(request(ORIGIN + rng.random_range(0..length_ns)));
        }
        (samples, requests)
    }
}

/// Where the samples are put for several seeds, and by how much they may be off then.
fn placed(plan: Plan) -> Vec<Option<u64>> {
    let of_seed = |seed: u64| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0xff);
        let off_ns = rng.random_range(-(ERROR_NS as i64)..ERROR_NS as i64);
        let (mut samples, requests) = plan.play(seed, off_ns);
        let before = samples.clone();
        let left_ns = place_by_arrivals(&mut samples, &requests, ERROR_NS);
        let by_ns = ns(samples[0].start) - ns(before[0].start);
        match left_ns {
            Some(left_ns) => {
                let wrong_ns = (by_ns + off_ns).unsigned_abs();
                assert!(wrong_ns <= left_ns + 1, "{plan:?}, seed {seed}: {wrong_ns} of {left_ns}");
            }
            None => assert!(samples == before, "{plan:?}: they stay"),
        }
        left_ns
    };
    (0..20).map(of_seed).collect()
}

#[test]
fn arrivals_say_where_the_zero_is() {
    for is_regular in [false, true] {
        for precision_ns in [1, 100 * US] {
            for left_ns in placed(Plan { is_regular, precision_ns, ..PLAN }) {
                let left_ns = left_ns.expect("it is known better");
                assert!(left_ns < MS, "{left_ns} {is_regular} {precision_ns}");
            }
        }
    }
}

#[test]
fn requests_of_others_make_it_less_exact_and_never_wrong() {
    for is_regular in [false, true] {
        for (others, most_ns) in [(1, 50 * MS), (20, 400 * MS)] {
            for left_ns in placed(Plan { is_regular, others, ..PLAN }) {
                let left_ns = left_ns.expect("it is known better");
                assert!(left_ns < most_ns, "{left_ns} with {others}");
            }
        }
    }
}

#[test]
fn where_requests_were_not_seen_nothing_is_said() {
    for missing in [1, 50, 1_000] {
        assert!(placed(Plan { missing, ..PLAN }).iter().all(Option::is_none), "{missing}");
    }
    let (samples, requests) = PLAN.play(1, 0);
    for (mut samples, requests) in
        [(Vec::new(), requests.clone()), (samples.clone(), Vec::new()), (samples, requests)]
    {
        // Others have come from far away, or the clock is known.
        for uncertainty_ns in [0, 1] {
            assert_eq!(place_by_arrivals(&mut samples, &requests, uncertainty_ns), None);
        }
    }
}

#[test]
fn samples_without_an_answer_need_no_request() {
    let (mut samples, requests) = PLAN.play(7, 500 * MS as i64);
    let failed =
        |start: u64| Sample { ok: false, status: None, ..Sample::of_times(start, start + MS) };
    samples.extend((0..50).map(|index| failed(ORIGIN + index * 200 * MS)));
    let left_ns = place_by_arrivals(&mut samples, &requests, ERROR_NS).expect("it is known");
    assert!(left_ns < MS, "{left_ns}");
}

#[test]
fn absurd_times_are_no_panic() {
    let mut samples = vec![Sample::of_times(0, u64::MAX), Sample::of_times(u64::MAX, u64::MAX)];
    samples.iter_mut().for_each(|sample| sample.precision_ns = u64::MAX);
    let request = ServerRequest::of_times((1, 1), [u64::MAX; 3], 0);
    for uncertainty_ns in [1, ERROR_NS, u64::MAX] {
        let _ =
            place_by_arrivals(&mut samples, &[request.clone(), request.clone()], uncertainty_ns);
    }
}
