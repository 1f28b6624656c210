//! Connections with one or several requests at a time, as a client and the target's sockets see them.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::super::matching::{Matching, find};
use super::super::{Evidence, Quality, analyse};
use super::*;
use crate::clock::MonoNanos;
use crate::model::{Cause, Matched, Outcome, Sample, SlowSpec, Stall, Tgid, Tid};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const ORIGIN: u64 = 5_000_000 * MS;
/// What takes longer is slow.
const SLOW_NS: u64 = 20 * MS;

/// What may be on a connection at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Several requests, with replies in any order.
    Multiplexed,
    /// Several requests, with replies in their order. Those that come meanwhile are read at once, ...
    ReadAtOnce,
    /// ... or when the reply before has been written.
    ReadInTurn,
    /// One request: others wait in the generator for a free connection.
    OneAtATime,
}

/// What is simulated.
#[derive(Clone, Copy)]
struct Plan {
    way: Way,
    connections: u16,
    rate_hz: f64,
    ports: bool,
    /// Part of the requests that take 30 ms.
    slow: f64,
}

const PLAN: Plan =
    Plan { way: Way::Multiplexed, connections: 4, rate_hz: 200.0, ports: true, slow: 0.03 };

#[derive(Default)]
struct World {
    samples: Vec<Sample>,
    requests: Vec<ServerRequest>,
}

/// What happens at the server's end of a connection: a request arrives, or a reply is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Happens {
    at: u64,
    is_reply: bool,
    /// When the request is read.
    read: u64,
}

fn exponential(rng: &mut Xoshiro256PlusPlus, mean: f64) -> u64 {
    let uniform: f64 = rng.random();
    (-(1.0 - uniform).ln() * mean) as u64
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let mut world = Self::default();
        world.add(seed, plan, 40_000);
        world
    }

    /// 3,000 requests over connections with these ports.
    fn add(&mut self, seed: u64, plan: Plan, first_port: u16) {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut happens: Vec<Vec<Happens>> = vec![Vec::new(); usize::from(plan.connections)];
        let mut replied = vec![0; usize::from(plan.connections)];
        let mut free = replied.clone();
        let mut at = ORIGIN;
        for _ in 0..3_000 {
            at += exponential(rng, 1e9 / plan.rate_hz);
            let is_one = plan.way == Way::OneAtATime;
            let connection = match (is_one, free.iter().position(|until| *until <= at)) {
                (true, Some(connection)) => connection,
                (true, None) => {
                    let first = (0..free.len()).min_by_key(|connection| free[*connection]);
                    first.expect("connections")
                }
                (false, _) => rng.random_range(0..free.len()),
            };
            let sent = if is_one { at.max(free[connection]) } else { at };
            let arrival = sent + 15 * US + exponential(rng, 15e3);
            let own_ns = if rng.random_bool(plan.slow) { 30 * MS } else { 0 };
            let before: u64 = replied[connection];
            let in_turn = plan.way == Way::ReadInTurn;
            let read = if in_turn { arrival.max(before) } else { arrival } + 5 * US;
            let ready = read + 200 * US + own_ns + exponential(rng, 300e3);
            let is_in_order = in_turn || plan.way == Way::ReadAtOnce;
            let reply = if is_in_order { ready.max(before + 20 * US) } else { ready };
            replied[connection] = before.max(reply);
            let end = reply + 15 * US + exponential(rng, 10e3);
            free[connection] = end;
            let local_port = plan.ports.then_some(first_port + connection as u16);
            self.samples.push(Sample { local_port, ..Sample::of_times(at, end) });
            happens[connection].push(Happens { at: arrival, is_reply: false, read });
            happens[connection].push(Happens { at: reply, is_reply: true, read });
        }
        for (port, mut happens) in (first_port..).zip(happens) {
            if plan.way == Way::ReadInTurn {
                // Each request has a record of its own.
                happens.sort_unstable_by_key(|one| (one.read, one.is_reply));
            } else {
                happens.sort_unstable();
            }
            self.record(&happens, port);
        }
    }

    /// What the probe makes of it: a request begins with a read, unless the one before it was not answered.
    fn record(&mut self, happens: &[Happens], port: u16) {
        let mut open: Option<ServerRequest> = None;
        for Happens { at, is_reply, read } in happens.iter().copied() {
            if is_reply {
                let request = open.as_mut().expect("read before");
                request.first_send.get_or_insert(MonoNanos(at));
                request.last_send = Some(MonoNanos(at));
            } else if open.as_ref().is_none_or(|open| open.first_send.is_some()) {
                self.requests.extend(open.take());
                open = Some(ServerRequest {
                    arrival: Some(MonoNanos(at)),
                    read: MonoNanos(read),
                    first_send: None,
                    last_send: None,
                    tgid: Tgid(1),
                    reader: Tid(1),
                    sender: Tid(2),
                    is_unix: false,
                    local_port: 80,
                    remote_port: port,
                    bytes_in: 100,
                    bytes_out: 100,
                });
            }
        }
        self.requests.extend(open);
    }

    fn find(&self) -> Matching {
        find(&self.samples, &self.requests, 0)
    }

    /// Of the slow samples, how many there are, and of how many the request is taken for known.
    fn slow(&self, matching: &Matching) -> (usize, usize) {
        let is_slow = |sample: &usize| self.samples[*sample].response_ns() > SLOW_NS;
        let slow = || (0..self.samples.len()).filter(is_slow);
        (slow().count(), slow().filter(|sample| matching.known(*sample).is_some()).count())
    }
}

#[test]
fn no_request_of_a_connection_with_several_at_a_time_is_known() {
    for seed in 100..110 {
        for connections in [1, 4, 16] {
            // As many requests at a time on each connection.
            let rate_hz = f64::from(connections) * 50.0;
            let plan = Plan { connections, rate_hz, ..PLAN };
            let world = World::new(seed, plan);
            let summary = world.find().summary();
            assert_eq!(summary.multiplexed, 3_000, "seed {seed}: {summary:?}");

            let world = World::new(seed, Plan { ports: false, ..plan });
            let matching = world.find();
            let (slow, known) = world.slow(&matching);
            let summary = matching.summary();
            assert!(summary.multiplexed > 2_000, "seed {seed}: {summary:?}");
            assert_eq!(known, 0, "seed {seed}: of {slow}, {summary:?}");
        }
    }
}

#[test]
fn replies_in_order_are_no_sign_of_it() {
    for seed in 100..110 {
        for way in [Way::ReadAtOnce, Way::ReadInTurn, Way::OneAtATime] {
            for ports in [true, false] {
                let world = World::new(seed, Plan { way, ports, ..PLAN });
                let matching = world.find();
                let summary = matching.summary();
                assert_eq!(summary.multiplexed, 0, "seed {seed}, {way:?}: {summary:?}");
                assert!(summary.matched > 2_000, "seed {seed}, {way:?}: {summary:?}");
            }
        }
    }
}

#[test]
fn requests_that_do_not_meet_are_known() {
    for seed in 100..105 {
        let world = World::new(seed, Plan { rate_hz: 200.0, slow: 0.0, ..PLAN });
        let summary = world.find().summary();
        assert_eq!(summary.multiplexed, 0, "seed {seed}: {summary:?}");
        assert!(summary.matched > 2_900, "seed {seed}: {summary:?}");
    }
}

#[test]
fn other_connections_of_the_same_load_are_left() {
    for seed in 100..105 {
        let mut world = World::new(seed, PLAN);
        world.add(seed + 50, Plan { way: Way::OneAtATime, ..PLAN }, 50_000);
        // A service of its own, on another port.
        for request in &mut world.requests {
            request.local_port += u16::from(request.remote_port >= 50_000);
        }
        let matching = world.find();
        let summary = matching.summary();
        assert_eq!(summary.multiplexed, 3_000, "seed {seed}: {summary:?}");
        assert!((3_000..6_000).all(|sample| matching.known(sample).is_some()), "seed {seed}");
    }
}

#[test]
fn two_samples_that_were_overtaken_may_be_errors() {
    let mut world = World::new(100, Plan { way: Way::OneAtATime, slow: 0.0, ..PLAN });
    // The generator was late to note the ends of these.
    for (count, sample) in [500, 1_000, 1_500].into_iter().enumerate() {
        assert_eq!(world.find().summary().multiplexed, 0, "{count}");
        let port = world.samples[sample].local_port;
        let mut next = world.samples[sample + 1..].iter().filter(|next| next.local_port == port);
        let (_, second) = (next.next(), next.next().expect("more of them"));
        world.samples[sample].end = MonoNanos(second.end.0 + 10 * MS);
    }
    assert!(world.find().summary().multiplexed > 0);
}

#[test]
fn an_answer_says_so_and_counts_no_stall_for_their_threads() {
    let world = World::new(100, PLAN);
    let end = world.samples.iter().map(|sample| sample.end).max().expect("samples");
    // The thread that writes replies sleeps most of the time.
    let stalls: Vec<Stall> = (ORIGIN..end.0)
        .step_by(10 * MS as usize)
        .map(|start| Stall::of_thread(2, Cause::SERVICE_WAIT, start, start + 9 * MS))
        .collect();
    let evidence = Evidence {
        window: (MonoNanos(ORIGIN - MS), MonoNanos(end.0 + MS)),
        samples: &world.samples,
        requests: &world.requests,
        outgoing: &[],
        stalls: &stalls,
        slow: SlowSpec::default(),
        quality: Quality { sleeps_watched: true, ..Quality::default() },
    };
    let analysis = analyse(&evidence);
    let has = |code: &str| analysis.verdict.reasons.iter().any(|reason| reason.code == code);
    assert!(has("multiplexed") && has("counted_together"), "{:?}", analysis.verdict);
    assert_eq!(analysis.requests.multiplexed, 3_000);
    assert_eq!(analysis.verdict.outcome, Outcome::Unexplained, "{:?}", analysis.verdict);
    assert_eq!(analysis.account_ns, None);
    let slowest = &analysis.slowest_requests;
    assert!(slowest.iter().all(|one| one.matched == Some(Matched::Multiplexed)), "{slowest:?}");
    assert!(slowest.iter().all(|one| one.served.is_none() && one.account_ns.is_none()));
}
