//! Known-answer drills of an event loop that asks other services.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};

use rand::RngExt;

use super::drill::{Drill, MS, ORIGIN, SECOND};
use super::served_drills::US;
use super::*;
use crate::model::{Extra, Peer, Tid};

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 900..908;
/// The one thread, and what it sleeps in.
const LOOP: Tid = Tid(1);
const POLL: u32 = 7;
/// CPU time for each thing that happens.
const WORK: u64 = 50 * US;

const fn peer(port: u16) -> Peer {
    Peer::Tcp(SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port))
}

/// What a request waits for, one after the other: the reply of a service, or a timer.
type Plan = Vec<(Option<Peer>, u64)>;

/// Requests on a Poisson schedule to a thread that takes one event after the other.
fn event_loop(seed: u64, plan: impl Fn(u64, u64) -> Plan) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let mut at = 0;
    let mut plans: Vec<(u64, Plan)> = Vec::new();
    while at < drill.window_ns - SECOND {
        let uniform: f64 = drill.rng.random();
        at += (-(1.0 - uniform).ln() * SECOND as f64 / 150.0) as u64;
        let usual_ns = drill.rng.random_range(MS..2 * MS);
        plans.push((at, plan(plans.len() as u64, usual_ns)));
    }
    // What happens when to which request, and the step of its plan that is over by then.
    let mut events: BinaryHeap<Reverse<(u64, usize, usize)>> =
        plans.iter().enumerate().map(|(place, (at, _))| Reverse((*at, place, 0))).collect();
    let (mut reads, mut sent) = (vec![0; plans.len()], vec![0; plans.len()]);
    let mut free = 0;
    while let Some(Reverse((at, place, step))) = events.pop() {
        if at > free {
            drill.innocent(Cause::SERVICE_WAIT, LOOP.0, free, at);
            drill.stalls.last_mut().expect("a sleep").extra = Extra::AnyOf(POLL);
        }
        let read = at.max(free) + US;
        free = read + WORK;
        let on_kernels = |time: u64| MonoNanos(ORIGIN + time);
        let (arrival, plan) = &plans[place];
        match step.checked_sub(1) {
            None => reads[place] = read,
            Some(before) => {
                if let Some(peer) = plan[before].0 {
                    drill.outgoing.push(OutgoingRequest {
                        sent: on_kernels(sent[place]),
                        replied: on_kernels(read),
                        sender: LOOP,
                        reader: LOOP,
                        peer,
                    });
                }
            }
        }
        if let Some((_, wait_ns)) = plan.get(step) {
            sent[place] = free;
            events.push(Reverse((free + wait_ns, place, step + 1)));
            continue;
        }
        let port = 10_000 + (place % 50_000) as u16;
        drill.request((LOOP.0, LOOP.0), [*arrival, reads[place], free], port);
        drill.sample(arrival - 20 * US, arrival - 20 * US, free + 20 * US);
        drill.samples.last_mut().expect("a sample").local_port = Some(port);
    }
    drill
}

/// The mean of a slow request in the event loop's sleeps, and the parts of it in which it waited for which
/// service.
fn waits(drill: &Drill) -> (f64, BTreeMap<Option<Peer>, f64>) {
    let analysis = drill.analyse();
    assert_eq!(analysis.check().verdict.top_cause, Some(Cause::SERVICE_WAIT), "{analysis:#?}");
    let accounts = analysis.account_ns.as_ref().expect("accounts");
    let objects = &analysis.objects[&Cause::SERVICE_WAIT];
    assert!(objects.iter().all(|time| time.object == POLL), "{objects:?}");
    let parts = objects.iter().map(|time| (time.peer, time.slow_ns as f64)).collect();
    (accounts.slow[&Cause::SERVICE_WAIT] as f64, parts)
}

#[test]
fn the_service_that_a_request_waited_for_is_named() {
    let slow = |place: u64| place % 50 == 7;
    for seed in SEEDS {
        let drill = event_loop(seed, |place, usual_ns| match slow(place) {
            true => vec![(Some(peer(1)), usual_ns), (Some(peer(2)), 20 * MS + 4 * usual_ns)],
            false => vec![(Some(peer(1)), usual_ns)],
        });
        let (all_ns, parts) = waits(&drill);
        let of = |peer| parts.get(&peer).copied().unwrap_or(0.0) / all_ns;
        assert!(of(Some(peer(2))) > 0.9, "seed {seed}: {parts:?} of {all_ns}");
        assert!(of(Some(peer(1))) > 0.02, "seed {seed}: {parts:?} of {all_ns}");
        assert!(of(None) < 0.05, "seed {seed}: {parts:?} of {all_ns}");
    }
}

#[test]
fn a_timer_is_no_wait_for_the_services_that_others_ask() {
    for seed in SEEDS {
        let drill = event_loop(seed, |place, usual_ns| match place % 50 == 7 {
            true => vec![(None, 20 * MS + 4 * usual_ns)],
            false => vec![(Some(peer(1)), usual_ns)],
        });
        let (all_ns, parts) = waits(&drill);
        let of = |peer| parts.get(&peer).copied().unwrap_or(0.0) / all_ns;
        assert!(of(None) > 0.95, "seed {seed}: {parts:?} of {all_ns}");
    }
}
