//! Samples of a generator whose clock moves against the kernel's in a known way.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::super::matching::{PairQuality, find};
use super::*;
use crate::clock::MonoNanos;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;
const ORIGIN: u64 = 5_000 * SECOND;
/// What is assumed of two hosts whose clocks NTP keeps.
const ERROR_NS: u64 = 5 * MS;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seconds: u64,
    rate_hz: f64,
    /// At equal distances, instead of at random times.
    is_regular: bool,
    /// Mean time in the server, and whether it is always the same.
    served_ns: f64,
    is_constant: bool,
    /// The shortest way and the mean of what is added, there and back.
    there_ns: (u64, f64),
    back_ns: (u64, f64),
    ports: bool,
    /// Of all samples, the part without a request; for each sample, requests of others.
    missing: f64,
    others: f64,
    precision_ns: u64,
    /// By so much longer the way back takes in the second half.
    longer_ns: u64,
    /// The kernel's clock minus that of the samples at the begin, and how it moves.
    offset_ns: f64,
    moves: Moves,
}

#[derive(Clone, Copy, Debug)]
enum Moves {
    /// Nanoseconds a second, or 0.001 ppm.
    Drift(f64),
    /// All at once in the middle, in addition to a drift.
    Step(f64, f64),
    /// Within some seconds, in the middle.
    Slew(f64, f64),
    /// Forth and back, so fast as a change of temperature does it.
    Wave(f64),
}

const PLAN: Plan = Plan {
    seconds: 600,
    rate_hz: 100.0,
    is_regular: false,
    served_ns: 5e6,
    is_constant: false,
    there_ns: (60 * US, 20e3),
    back_ns: (60 * US, 20e3),
    ports: true,
    missing: 0.0,
    others: 0.0,
    precision_ns: 1,
    longer_ns: 0,
    offset_ns: 1e6,
    moves: Moves::Drift(0.0),
};

impl Plan {
    fn offset_at(&self, since_ns: u64) -> f64 {
        let seconds = since_ns as f64 / 1e9;
        let middle = self.seconds as f64 / 2.0;
        self.offset_ns
            + match self.moves {
                Moves::Drift(each_second) => each_second * seconds,
                Moves::Step(all, each_second) => {
                    each_second * seconds + if seconds < middle { 0.0 } else { all }
                }
                Moves::Slew(all, within) => all * ((seconds - middle) / within).clamp(0.0, 1.0),
                Moves::Wave(high) => high * (seconds / 100.0).sin(),
            }
    }
}

struct World {
    plan: Plan,
    samples: Vec<Sample>,
    requests: Vec<ServerRequest>,
    /// Of each sample, by its number: its request.
    truth: Vec<Option<usize>>,
    /// When it was sent, on the kernel's clock.
    sent: Vec<u64>,
}

fn exponential(rng: &mut Xoshiro256PlusPlus, mean: f64) -> u64 {
    let uniform: f64 = rng.random();
    (-(1.0 - uniform).ln() * mean) as u64
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let (samples, requests) = (Vec::new(), Vec::new());
        let mut world = Self { plan, samples, requests, truth: Vec::new(), sent: Vec::new() };
        let mut free: Vec<u64> = Vec::new();
        let mut at = 0;
        loop {
            let rate_hz = plan.rate_hz * (1.0 + plan.others);
            at += match plan.is_regular {
                true => (1e9 / rate_hz) as u64,
                false => exponential(rng, 1e9 / rate_hz),
            };
            if at >= plan.seconds * SECOND {
                return world;
            }
            let is_other = rng.random_bool(plan.others / (1.0 + plan.others));
            let arrival = at + plan.there_ns.0 + exponential(rng, plan.there_ns.1);
            let served_ns = match plan.is_constant {
                true => plan.served_ns as u64 + rng.random_range(0..20 * US),
                false => 200 * US + exponential(rng, plan.served_ns),
            };
            let sent = arrival + served_ns;
            let longer_ns = if at < plan.seconds * SECOND / 2 { 0 } else { plan.longer_ns };
            let end = sent + longer_ns + plan.back_ns.0 + exponential(rng, plan.back_ns.1);
            let returned = sent + rng.random_range(2 * US..30 * US);
            let thread = rng.random_range(1..9);
            let mut port = 60_000 + rng.random_range(0..50);
            if !is_other {
                let idle = free.iter().position(|until| *until < at);
                let index = idle.unwrap_or(free.len());
                if index == free.len() {
                    free.push(0);
                }
                free[index] = end;
                port = 40_000 + index as u16;
            }
            let is_seen = is_other || !rng.random_bool(plan.missing);
            if !is_other {
                world.truth.push(is_seen.then_some(world.requests.len()));
                let on_samples = |time: u64| {
                    let exact = (ORIGIN + time) as f64 - plan.offset_at(time);
                    exact as u64 / plan.precision_ns * plan.precision_ns
                };
                let start = on_samples(at);
                world.samples.push(Sample {
                    seq: Some(world.sent.len() as u64),
                    local_port: plan.ports.then_some(port),
                    precision_ns: plan.precision_ns,
                    ..Sample::of_times(start, on_samples(end).max(start))
                });
                world.sent.push(ORIGIN + at);
            }
            if is_seen {
                let times = [arrival, arrival + 5 * US, returned].map(|time| ORIGIN + time);
                world.requests.push(ServerRequest::of_times((thread, thread), times, port));
            }
        }
    }

    fn take_out(&mut self, uncertainty_ns: u64) -> Option<ClockDrift> {
        take_out_drift(&mut self.samples, &self.requests, uncertainty_ns)
    }

    /// Nothing is found, and nothing is changed.
    fn stays(&mut self, uncertainty_ns: u64) -> bool {
        let before = self.samples.clone();
        self.take_out(uncertainty_ns).is_none() && self.samples == before
    }

    /// What is found; afterwards the requests of all samples are, and their begins are exact to
    /// `most_ns`.
    fn check(&mut self, most_ns: f64) -> ClockDrift {
        let what = format!("{:?}", self.plan);
        let found = self.take_out(ERROR_NS).unwrap_or_else(|| panic!("nothing found: {what}"));
        let (right, wrong) = self.score(ERROR_NS);
        assert!(right >= 0.95 && wrong <= 0.01, "{right} right, {wrong} wrong: {what}");
        let error_ns = self.error_ns();
        assert!(error_ns <= most_ns, "{error_ns} ns: {found:?}, {what}");
        assert!(error_ns <= found.error_ns as f64, "{error_ns} ns: {found:?}, {what}");
        let ends = [self.samples.first(), self.samples.last()];
        for sample in ends.into_iter().flatten() {
            let sent = self.sent[sample.seq.expect("numbered") as usize];
            assert!(sample.start.0.abs_diff(sent) as f64 <= most_ns, "{found:?}, {what}");
        }
        assert!(self.samples.is_sorted_by_key(Sample::begin));
        found
    }

    /// Of the samples with a request, the part that is paired right; of all samples, the part that is paired
    /// wrong and counted as matched.
    fn score(&self, uncertainty_ns: u64) -> (f64, f64) {
        let matching = find(&self.samples, &self.requests, uncertainty_ns);
        let (mut with, mut right, mut wrong) = (0, 0, 0);
        for (place, sample) in self.samples.iter().enumerate() {
            let truth = self.truth[sample.seq.expect("numbered") as usize];
            let (found, quality) = matching.of(place);
            with += usize::from(truth.is_some());
            right += usize::from(truth.is_some() && found == truth);
            wrong += usize::from(found != truth && quality == PairQuality::Matched);
        }
        (right as f64 / with.max(1) as f64, wrong as f64 / self.samples.len() as f64)
    }

    /// The largest error of a begin, apart from the worst thousandth and one more, which may have begun
    /// before a step and ended after it.
    fn error_ns(&self) -> f64 {
        let error = |sample: &Sample| {
            let sent = self.sent[sample.seq.expect("numbered") as usize];
            (sample.start.0 as f64 - sent as f64).abs()
        };
        let mut errors: Vec<f64> = self.samples.iter().map(error).collect();
        errors.sort_unstable_by(f64::total_cmp);
        errors[errors.len() - 2 - errors.len() / 1_000]
    }
}

const DENSE: Plan = Plan { rate_hz: 500.0, seconds: 60, ..PLAN };
const SPARSE: Plan = Plan { rate_hz: 1.0, ..PLAN };
/// The ways are long, and the one there is longer.
const FAR: Plan = Plan { there_ns: (9 * MS, 5e5), back_ns: (3 * MS, 1e6), rate_hz: 30.0, ..PLAN };
/// Requests that all take equally long, at regular distances.
const REGULAR: Plan =
    Plan { is_regular: true, is_constant: true, served_ns: 1e6, rate_hz: 1_000.0, ..DENSE };

/// The plans with these moves, by connection and by time alone.
fn worlds(seed: u64, plans: &[Plan], moves: &[Moves]) -> Vec<World> {
    let mut worlds = Vec::new();
    for (plan, ports) in plans.iter().flat_map(|plan| [(plan, true), (plan, false)]) {
        for moves in moves {
            let seed = seed + worlds.len() as u64;
            worlds.push(World::new(seed, Plan { ports, moves: *moves, ..*plan }));
        }
    }
    worlds
}

#[test]
fn a_drift_is_found_and_taken_out() {
    let drifts = [20e3, -50e3, 200e3].map(Moves::Drift);
    for mut world in worlds(700, &[PLAN, DENSE, SPARSE], &drifts) {
        let found = world.check(50e3);
        let Moves::Drift(each_second) = world.plan.moves else { unreachable!("only drifts") };
        assert!((found.ppm + each_second / 1e3).abs() < 0.5, "{found:?} for {each_second}");
        assert_eq!(found.steps, 0);
        let moved = (found.offset_last_ns - found.offset_first_ns) as f64;
        let all = each_second * world.plan.seconds as f64;
        assert!((moved / all - 1.0).abs() < 0.1, "{found:?} for {each_second}");
        // What is left is no drift.
        assert!(world.stays(ERROR_NS), "{found:?}");
    }
}

#[test]
fn a_step_is_found_and_taken_out() {
    let steps = [Moves::Step(5e6, 0.0), Moves::Step(-5e6, 20e3)];
    for mut world in worlds(730, &[PLAN, DENSE, SPARSE], &steps) {
        // A few samples around the step may be on its wrong side.
        let found = world.check(50e3);
        assert_eq!(found.steps, 1, "{found:?}");
        let Moves::Step(_, each_second) = world.plan.moves else { unreachable!("only steps") };
        assert!((found.ppm + each_second / 1e3).abs() < 0.5, "{found:?}");
    }
}

#[test]
fn a_clock_that_is_slewed_or_gets_warmer_is_followed() {
    let moves = [Moves::Slew(5e6, 30.0), Moves::Wave(4e6)];
    for mut world in worlds(750, &[PLAN, DENSE], &moves) {
        let found = world.check(100e3);
        assert_eq!(found.steps, 0, "{found:?}");
    }
}

#[test]
fn ways_of_different_length_shift_the_clock_by_half_their_difference_at_most() {
    let moves = [20e3, -50e3, 200e3].map(Moves::Drift);
    let moves = [&moves[..], &[Moves::Step(5e6, 0.0)]].concat();
    for mut world in worlds(760, &[FAR], &moves) {
        let found = world.check(3.6e6);
        assert!(found.error_ns < 7 * MS, "{found:?}");
        assert_eq!(found.steps, u64::from(matches!(world.plan.moves, Moves::Step(..))));
    }
}

#[test]
fn other_clients_missing_requests_and_rough_times_do_not_hide_a_drift() {
    let plans = [
        Plan { others: 0.5, missing: 0.2, ..DENSE },
        Plan { precision_ns: MS, seconds: 300, ..PLAN },
    ];
    for mut world in worlds(780, &plans, &[Moves::Drift(50e3)]) {
        let found = world.check(50e3 + 0.55 * world.plan.precision_ns as f64);
        assert!((found.ppm + 50.0).abs() < 1.0, "{found:?}");
    }
}

#[test]
fn without_a_drift_nothing_changes() {
    let plans = [
        Plan { seconds: 200, ..PLAN },
        Plan { seconds: 20, ..DENSE },
        SPARSE,
        FAR,
        REGULAR,
        Plan { there_ns: (100 * US, 5e5), back_ns: (200 * US, 1e6), ..DENSE },
        Plan { others: 0.5, missing: 0.3, ..DENSE },
        Plan { precision_ns: MS, seconds: 200, ..PLAN },
        // A way that becomes longer is no clock that moves.
        Plan { longer_ns: 3 * MS, ..DENSE },
        Plan { longer_ns: 3 * MS, ..SPARSE },
    ];
    for mut world in worlds(800, &plans, &[Moves::Drift(0.0)]) {
        for uncertainty_ns in [200 * US, ERROR_NS] {
            assert!(world.stays(uncertainty_ns), "{uncertainty_ns}: {:?}", world.plan);
        }
    }
}

#[test]
fn samples_on_the_kernels_clock_stay_as_they_are() {
    for mut world in worlds(900, &[DENSE], &[Moves::Drift(200e3), Moves::Step(5e6, 0.0)]) {
        assert!(world.stays(0) && world.stays(SAME_CLOCK_NS), "{:?}", world.plan);
    }
}

#[test]
fn where_requests_fit_the_samples_of_others_a_drift_is_found_and_a_step_is_not() {
    for each_second in [20e3, -50e3, 200e3] {
        let moves = Moves::Drift(each_second);
        let mut world = World::new(920, Plan { ports: false, moves, ..REGULAR });
        let found = world.take_out(ERROR_NS).expect("no constant explains it");
        assert!((found.ppm + each_second / 1e3).abs() < 0.5, "{found:?} for {each_second}");
        assert_eq!(found.steps, 0);
    }
    // It could as well be none.
    let moves = Moves::Step(5e6, 0.0);
    let mut world = World::new(921, Plan { ports: false, moves, ..REGULAR });
    assert!(world.stays(ERROR_NS), "{:?}", world.plan);
}

#[test]
fn nonsense_is_no_drift() {
    let mut world = World::new(940, Plan { moves: Moves::Drift(50e3), ..DENSE });
    let requests = std::mem::take(&mut world.requests);
    assert!(world.stays(ERROR_NS), "without requests");
    world.requests = requests;
    for request in &mut world.requests {
        (request.first_send, request.last_send) = (None, None);
    }
    assert!(world.stays(u64::MAX), "without answers");
    for (number, request) in world.requests.iter_mut().enumerate() {
        request.last_send = Some(MonoNanos(if number % 2 == 0 { 0 } else { u64::MAX }));
    }
    for (number, sample) in world.samples.iter_mut().enumerate().step_by(2) {
        sample.start = MonoNanos(u64::MAX - number as u64);
        sample.precision_ns = u64::MAX;
    }
    assert!(world.stays(u64::MAX));
    let mut none: [Sample; 0] = [];
    assert_eq!(take_out_drift(&mut none, &world.requests, u64::MAX), None);
}
