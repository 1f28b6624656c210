//! Samples and requests whose true pairing is known.

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::*;

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const ORIGIN: u64 = 5_000_000 * MS;

/// What is simulated.
#[derive(Clone, Copy)]
struct Plan {
    samples: usize,
    rate_hz: f64,
    /// Mean time in the server.
    served_ns: f64,
    threads: u32,
    ports: bool,
    /// The kernel's clock minus that of the samples.
    offset_ns: i64,
    /// Requests of other clients for each sample.
    others: f64,
    /// Part of the samples whose requests were not seen.
    missing: f64,
}

const PLAN: Plan = Plan {
    samples: 20_000,
    rate_hz: 1_000.0,
    served_ns: 5e6,
    threads: 8,
    ports: false,
    offset_ns: 0,
    others: 0.0,
    missing: 0.0,
};

struct World {
    samples: Vec<Sample>,
    requests: Vec<ServerRequest>,
    truth: Vec<Option<usize>>,
}

fn exponential(rng: &mut Xoshiro256PlusPlus, mean: f64) -> u64 {
    let uniform: f64 = rng.random();
    (-(1.0 - uniform).ln() * mean) as u64
}

fn sample(start: u64, end: u64, local_port: Option<u16>) -> Sample {
    Sample { local_port, ..Sample::of_times(start, end) }
}

fn request(arrival: u64, sent: u64, thread: u32, remote_port: u16) -> ServerRequest {
    let times = [arrival, arrival + 5 * US, sent];
    ServerRequest::of_times((thread, thread), times, remote_port)
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut world = Self { samples: Vec::new(), requests: Vec::new(), truth: Vec::new() };
        let mut owners: Vec<Option<usize>> = Vec::new();
        // When each connection is free again; those of other clients have the ports behind.
        let mut free: Vec<u64> = Vec::new();
        let mut at = ORIGIN;
        while world.samples.len() < plan.samples {
            at += exponential(rng, 1e9 / plan.rate_hz / (1.0 + plan.others));
            let is_other = rng.random_bool(plan.others / (1.0 + plan.others));
            let arrival = at + 15 * US + exponential(rng, 15e3);
            let sent = arrival + 200 * US + exponential(rng, plan.served_ns);
            let end = sent + 15 * US + exponential(rng, 10e3);
            let returned = sent + rng.random_range(2 * US..30 * US);
            let thread = rng.random_range(0..plan.threads);
            let on_kernels = |time: u64| time.saturating_add_signed(plan.offset_ns);
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
            if is_other || !rng.random_bool(plan.missing) {
                let times = (on_kernels(arrival), on_kernels(returned));
                world.requests.push(request(times.0, times.1, thread, port));
                owners.push((!is_other).then_some(world.samples.len()));
            }
            if !is_other {
                world.samples.push(sample(at, end, plan.ports.then_some(port)));
            }
        }
        let mut order: Vec<usize> = (0..owners.len()).collect();
        order.shuffle(rng);
        world.truth = vec![None; world.samples.len()];
        for (place, index) in order.iter().enumerate() {
            if let Some(owner) = owners[*index] {
                world.truth[owner] = Some(place);
            }
        }
        world.requests = order.iter().map(|index| world.requests[*index].clone()).collect();
        world
    }

    fn find(&self, uncertainty_ns: u64) -> Matching {
        let matching = find(&self.samples, &self.requests, uncertainty_ns);
        let mut seen = std::collections::HashSet::new();
        let all = (0..self.samples.len()).filter_map(|sample| matching.of(sample).0);
        assert!(all.into_iter().all(|request| seen.insert(request)), "one to one");
        matching
    }

    /// Of the samples with a request, the part that is paired right; of all samples, the part that is
    /// paired wrong and counted as matched; of all samples, the part that is matched.
    fn score(&self, matching: &Matching) -> (f64, f64, f64) {
        let (mut with, mut right, mut wrong) = (0, 0, 0);
        for (sample, truth) in self.truth.iter().enumerate() {
            let (found, quality) = matching.of(sample);
            with += usize::from(truth.is_some());
            right += usize::from(truth.is_some() && found == *truth);
            wrong += usize::from(found != *truth && quality == PairQuality::Matched);
        }
        let all = self.samples.len() as f64;
        let matched = matching.summary().matched as f64;
        (right as f64 / with.max(1) as f64, wrong as f64 / all, matched / all)
    }
}

#[test]
fn many_requests_at_a_time_are_told_apart_by_their_times() {
    for seed in 100..103 {
        let plan = Plan { samples: 100_000, rate_hz: 6_400.0, served_ns: 10e6, ..PLAN };
        let world = World::new(seed, plan);
        let matching = world.find(0);
        let (right, wrong, matched) = world.score(&matching);
        assert!(right >= 0.95, "seed {seed}: {right} right");
        assert!(wrong <= 0.01, "seed {seed}: {wrong} wrong");
        assert!(matched >= 0.8, "seed {seed}: {matched} matched");
        assert_eq!(matching.summary().samples(), 100_000);
        assert_eq!(matching.offset_ns, 0);
    }
}

#[test]
fn requests_of_others_and_requests_not_seen_are_no_samples() {
    for seed in 100..105 {
        let world = World::new(seed, Plan { others: 0.5, missing: 0.1, ..PLAN });
        let matching = world.find(0);
        let (right, wrong, matched) = world.score(&matching);
        assert!(right >= 0.95 && wrong <= 0.01, "seed {seed}: {right} right, {wrong} wrong");
        assert!((0.75..0.91).contains(&matched), "seed {seed}: {matched} matched");
    }
}

#[test]
fn connections_tell_requests_apart_though_ports_are_used_again() {
    for seed in 100..103 {
        let plan = Plan { samples: 50_000, rate_hz: 6_400.0, served_ns: 10e6, ..PLAN };
        let plan = Plan { ports: true, others: 0.3, missing: 0.02, ..plan };
        let mut world = World::new(seed, plan);
        // Another client has had each port, in a time without samples of it.
        let last = world.samples.iter().map(|sample| sample.end.0).max().expect("samples");
        for port in 40_000..40_050 {
            world.requests.push(request(last + 20 * MS, last + 25 * MS, 1, port));
        }
        let matching = world.find(0);
        let (right, wrong, matched) = world.score(&matching);
        assert!(right >= 0.999 && wrong <= 0.001, "seed {seed}: {right} right, {wrong} wrong");
        assert!(matched >= 0.97, "seed {seed}: {matched} matched");
        let summary = matching.summary();
        assert!(summary.unmatched > 500, "seed {seed}: {summary:?}");
    }
}

#[test]
fn ports_that_the_target_does_not_see_do_not_count() {
    let mut world = World::new(100, Plan { ports: true, ..PLAN });
    world.requests.iter_mut().for_each(|request| request.remote_port -= 20_000);
    let (right, wrong, matched) = world.score(&world.find(0));
    assert!(right >= 0.98 && wrong <= 0.01 && matched > 0.8, "{right}, {wrong}, {matched}");
}

#[test]
fn requests_over_unix_sockets_are_those_of_the_load_unless_tcp_has_enough() {
    let mut world = World::new(100, PLAN);
    let over_tcp = world.requests.clone();
    world.requests.iter_mut().for_each(|request| request.is_unix = true);
    let (right, wrong, matched) = world.score(&world.find(0));
    assert!(right >= 0.98 && wrong <= 0.01 && matched > 0.8, "{right}, {wrong}, {matched}");
    // A proxy that asks a service of the same target: times alone do not tell which of both it is.
    for request in &mut world.requests {
        let (read, end) = (request.read, request.end().expect("answered"));
        request.arrival = Some(MonoNanos(read.0 + US));
        request.read = MonoNanos(read.0 + 2 * US);
        (request.first_send, request.last_send) = (Some(end), Some(end));
    }
    let of_both = [world.requests, over_tcp].concat();
    let behind = of_both.len() / 2;
    world.truth.iter_mut().flatten().for_each(|place| *place += behind);
    world.requests = of_both;
    let (right, wrong, matched) = world.score(&world.find(0));
    assert!(right >= 0.98 && wrong <= 0.01 && matched > 0.8, "{right}, {wrong}, {matched}");
}

#[test]
fn a_difference_of_the_clocks_is_found() {
    for (seed, ports) in [(100, false), (101, true), (102, false), (103, true)] {
        for offset_ns in [300 * US as i64, -300 * US as i64, 4 * MS as i64, 0] {
            let world = World::new(seed, Plan { ports, offset_ns, ..PLAN });
            let matching = world.find(5 * MS);
            let error_ns = matching.offset_ns - offset_ns;
            assert!(error_ns.abs() < 30 * US as i64, "seed {seed}: {error_ns} of {offset_ns}");
            let (right, wrong, _) = world.score(&matching);
            assert!(right >= 0.95 && wrong <= 0.01, "seed {seed}, {offset_ns}: {right}, {wrong}");
        }
        let world = World::new(seed, Plan { ports, offset_ns: 4 * MS as i64, ..PLAN });
        assert!(world.find(MS).offset_ns.abs() <= MS as i64, "within what is stated");
        assert_eq!(World::new(seed, Plan { ports, ..PLAN }).find(0).offset_ns, 0);
    }
}

#[test]
fn samples_outside_the_watched_blocks_of_time_are_left() {
    for (seed, ports) in [(100, false), (101, true)] {
        let mut world = World::new(seed, Plan { ports, ..PLAN });
        let is_watched = |time: u64| (time - ORIGIN) % (1_000 * MS) < 200 * MS;
        let kept: Vec<bool> =
            world.requests.iter().map(|request| is_watched(request.begin().0)).collect();
        let mut places = kept.iter().scan(0, |next, kept| {
            *next += usize::from(*kept);
            Some(kept.then(|| *next - 1))
        });
        let places: Vec<Option<usize>> = places.by_ref().collect();
        for truth in &mut world.truth {
            *truth = truth.and_then(|index| places[index]);
        }
        let mut kept = kept.iter();
        world.requests.retain(|_| *kept.next().expect("one each"));
        let (right, wrong, matched) = world.score(&world.find(0));
        assert!(right >= 0.95 && wrong <= 0.01, "seed {seed}: {right} right, {wrong} wrong");
        assert!((0.15..0.21).contains(&matched), "seed {seed}: {matched} matched");
    }
}

#[test]
fn twins_are_ambiguous_unless_the_same_threads_served_both() {
    let samples: Vec<Sample> = (0..40)
        .map(|index| ORIGIN + index / 2 * 10 * MS)
        .map(|start| sample(start, start + 2 * MS, None))
        .collect();
    for (threads, quality) in [(2, PairQuality::Ambiguous), (1, PairQuality::SameThreads)] {
        let requests: Vec<ServerRequest> = (0..40)
            .map(|index| {
                let start = ORIGIN + index / 2 * 10 * MS;
                request(start + 20 * US, start + 1_980 * US, (index % threads) as u32, 7)
            })
            .collect();
        let matching = find(&samples, &requests, 0);
        assert!((0..40).all(|index| matching.of(index).1 == quality), "{threads} threads");
        assert_eq!(matching.summary().ambiguous, 40);
        assert_eq!(matching.known(0).is_some(), threads == 1);
    }
}

#[test]
fn a_request_that_was_long_on_its_way_and_one_that_timed_out_are_found() {
    let mut world = World::new(100, Plan { samples: 2_000, ports: true, ..PLAN });
    let (late, slow) = (700, 1_200);
    let of = |sample: usize| world.truth[sample].expect("it has a request");
    let (late_request, slow_request) = (of(late), of(slow));
    // Sent again after a loss, on a connection that was not used in the meantime.
    world.samples[late].start.0 -= 200 * MS;
    world.samples[late].local_port = Some(50_000);
    world.requests[late_request].remote_port = 50_000;
    // The client gave up, and the answer came later.
    let begin = world.samples[slow].start.0;
    world.samples[slow].end = MonoNanos(begin + 100 * US);
    (world.samples[slow].ok, world.samples[slow].status) = (false, None);
    world.requests[slow_request].first_send = Some(MonoNanos(begin + 50 * MS));
    world.requests[slow_request].last_send = Some(MonoNanos(begin + 50 * MS));
    let matching = world.find(0);
    assert_eq!(matching.of(late), (Some(late_request), PairQuality::Matched));
    assert_eq!(matching.of(slow), (Some(slow_request), PairQuality::Matched));
    // Without its port, the late one may as well be one of another client.
    world.samples.iter_mut().for_each(|sample| sample.local_port = None);
    let matching = world.find(0);
    assert_ne!(matching.of(late).1, PairQuality::Matched);
}

/// A world of 60 s without ports, and in it samples of which one way took 8 ms longer: the way there
/// of some, the way back of others. `change` does something else to it.
fn long_ways(plan: Plan, change: impl Fn(&mut World, usize)) -> Vec<(usize, World)> {
    let worlds = (100..105).flat_map(|seed| {
        [(500, true), (2_500, true), (3_500, false), (4_500, false)].map(|(from, is_way_there)| {
            let mut world = World::new(seed, Plan { samples: 6_000, rate_hz: 100.0, ..plan });
            // One whose request was seen.
            let sample = (from..6_000).find(|sample| world.truth[*sample].is_some());
            let sample = sample.expect("most are seen");
            if is_way_there {
                world.samples[sample].start.0 -= 8 * MS;
            } else {
                // Its connection is not used again before the answer comes.
                let own = world.truth[sample].expect("it was seen");
                world.requests[own].remote_port = 50_000;
                world.samples[sample].end.0 += 8 * MS;
            }
            change(&mut world, sample);
            (sample, world)
        })
    });
    worlds.collect()
}

#[test]
fn a_request_that_was_long_on_its_way_is_known_unless_it_may_be_one_of_another_client() {
    let nothing_else = |_: &mut World, _: usize| {};
    for (sample, world) in long_ways(PLAN, nothing_else) {
        let (found, quality) = world.find(0).of(sample);
        assert_eq!((found, quality), (world.truth[sample], PairQuality::Matched), "{sample}");
    }
    // There are requests without a sample, or samples without a request.
    for plan in [Plan { others: 0.2, ..PLAN }, Plan { missing: 0.1, ..PLAN }] {
        for (sample, world) in long_ways(plan, nothing_else) {
            assert_ne!(world.find(0).of(sample).1, PairQuality::Matched, "{sample}");
        }
    }
    // Another client sent one request at that time.
    let other = |world: &mut World, sample: usize| {
        let at = world.samples[sample].end.0 + 4 * MS;
        world.requests.push(request(at, at + MS, 1, 60_000));
    };
    // One sample at that time has no request.
    let unseen = |world: &mut World, sample: usize| {
        let at = world.samples[sample].start.0 - 100 * US;
        world.samples.push(super::tests::sample(at, at + 50 * US, None));
        world.truth.push(None);
    };
    // Its connection carried on before the answer came.
    let carries_on = |world: &mut World, sample: usize| {
        let own = world.truth[sample].expect("it was seen");
        world.samples[sample].end.0 += 60 * MS;
        let sent = world.requests[own].end().expect("answered");
        let port = world.requests[own].remote_port;
        let next = world.requests.iter_mut().filter(|other| other.begin() > sent);
        let next = next.min_by_key(|other| other.begin()).expect("more requests");
        assert!(next.begin().0 < sent.0 + 60 * MS);
        next.remote_port = port;
    };
    for change in [&other as &dyn Fn(&mut World, usize), &unseen, &carries_on] {
        for (sample, world) in long_ways(PLAN, change) {
            assert_ne!(world.find(0).of(sample).1, PairQuality::Matched, "{sample}");
        }
    }
}

#[test]
fn nonsense_is_no_request() {
    let mut bad = request(ORIGIN, ORIGIN, 1, 7);
    bad.arrival = None;
    bad.read = MonoNanos(u64::MAX);
    let mut unanswered = request(ORIGIN + 10, ORIGIN, 1, 7);
    (unanswered.first_send, unanswered.last_send) = (None, None);
    let requests = [bad, unanswered, request(0, u64::MAX, 1, 7)];
    let samples = [
        sample(ORIGIN + 20, ORIGIN, None),
        sample(u64::MAX, u64::MAX, Some(7)),
        sample(ORIGIN, ORIGIN + MS, None),
        sample(0, u64::MAX, None),
    ];
    let matching = find(&samples, &requests, u64::MAX);
    assert_eq!(matching.of(0), (None, PairQuality::Unmatched), "it ends before it begins");
    assert_eq!(matching.summary().samples(), 4);
    let none = find(&samples, &[], 0);
    assert_eq!((none.summary().samples(), none.known(0)), (0, None));
    assert_eq!(find(&[], &requests, 0).summary().samples(), 0);
}
