//! Known-answer drills about single requests: which are chosen, what their accounts say, and their stalls.

use rand::RngExt;

use super::drill::{Drill, MS, ORIGIN};
use super::handing::Handing;
use super::matching::Matching;
use super::served_drills::{Handler, POOL, Service, US, nothing};
use super::single::{choose, slowest_requests};
use super::timeline::Timelines;
use super::*;
use crate::model::{
    Extra, Holder, Matched, RequestSelection, ServedBy, SlowStall, StreamRow, Tgid, Tid, TraceRow,
};

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 500..504;

const ALL: RequestSelection =
    RequestSelection { requests: 10_000, slower_than_ns: None, at_ns: None };

/// A service of which one request in twenty sleeps, computes, is stalled, or is long on its way.
fn drill(seed: u64, service: &Service) -> Drill {
    let mut drill = Drill::new(seed, 10);
    drill.quality.sleeps_watched = true;
    let plan = |_, rng: &mut Xoshiro256PlusPlus| {
        let long_ns = rng.random_range(10 * MS..30 * MS);
        match rng.random_range(0..80) {
            0 => Handler { sleep_ns: long_ns, ..Handler::default() },
            1 => Handler { burn_ns: long_ns, ..Handler::default() },
            2 => Handler { way_ns: long_ns, ..Handler::default() },
            3 => Handler { stall: Some((Cause::RECLAIM_MEMCG, long_ns)), ..Handler::default() },
            _ => Handler::default(),
        }
    };
    service.serve(&mut drill, 300, plan, nothing);
    drill
}

fn services() -> [Service; 4] {
    let watched = Service { sleeps: true, ..POOL };
    [
        Service { ..watched },
        Service { ports: false, ..watched },
        Service { threads: 2, ..watched },
        Service { acceptor: Some(99), ..watched },
    ]
}

/// The account, and that it is whole to the nanosecond.
#[track_caller]
fn account(request: &SlowRequest) -> &BTreeMap<Cause, u64> {
    let account = request.account_ns.as_ref().expect("an account");
    assert_eq!(account.values().sum::<u64>(), request.response_ns, "{request:#?}");
    assert!(account.values().all(|part_ns| *part_ns > 0), "{request:#?}");
    account
}

#[test]
fn the_account_of_each_request_is_that_of_the_simulation() {
    for seed in SEEDS {
        for (number, service) in services().iter().enumerate() {
            let drill = drill(seed, service);
            let chosen = choose(&drill.evidence(), &ALL);
            assert_eq!(chosen.requests.len(), drill.samples.len());
            let mut unsure = 0;
            for (request, place) in chosen.requests.iter().zip(&chosen.places) {
                let (sample, served) = (&drill.samples[*place], &drill.requests[*place]);
                let way = if service.ports { Matched::Connection } else { Matched::Time };
                if request.matched != Some(way) {
                    assert!(!service.ports, "{number}, {seed}: {request:#?}");
                    unsure += 1;
                    continue;
                }
                let account = account(request);
                let found = request.served.clone().expect("it is known");
                let expected = ServedBy { handed: found.handed.clone(), ..ServedBy::new(served) };
                assert_eq!(found, expected);
                let end = served.end().expect("an answer");
                let network_ns = served.begin().since(sample.start) + sample.end.since(end);
                assert_eq!(account.get(&Cause::NETWORK), Some(&network_ns), "{number}, {seed}");
                let of = |cause: Cause| {
                    let own = drill
                        .stalls
                        .iter()
                        .filter(|stall| stall.cause == cause && stall.tid == served.sender);
                    let inside =
                        own.map(|stall| stall.end.min(end).since(stall.start.max(served.begin())));
                    Some(inside.sum()).filter(|part_ns: &u64| *part_ns > 0)
                };
                // A request that comes from another thread has a worker's sleep until it is woken.
                if service.acceptor.is_none() {
                    for cause in [Cause::RECLAIM_MEMCG, Cause::SERVICE_WAIT] {
                        assert_eq!(account.get(&cause).copied(), of(cause), "{number}, {seed}");
                    }
                }
            }
            assert!(unsure * 20 < drill.samples.len(), "{number}, {seed}: {unsure}");
        }
    }
}

#[test]
fn the_accounts_of_single_requests_make_the_mean_of_the_slow_ones() {
    for seed in SEEDS {
        for service in services().into_iter().filter(|service| service.ports) {
            let drill = drill(seed, &service);
            let analysis = drill.analyse();
            let threshold_ns = analysis.samples.slow_threshold_ns;
            let selection = RequestSelection { slower_than_ns: Some(threshold_ns), ..ALL };
            let chosen = choose(&drill.evidence(), &selection);
            assert_eq!(chosen.total, analysis.samples.slow_count);
            let mut sums: BTreeMap<Cause, u64> = BTreeMap::new();
            for request in &chosen.requests {
                account(request)
                    .iter()
                    .for_each(|(cause, ns)| *sums.entry(*cause).or_default() += ns);
            }
            let means = analysis.account_ns.expect("accounts").slow;
            assert!(means.keys().all(|cause| sums.contains_key(cause)), "{means:?} {sums:?}");
            for (cause, sum_ns) in sums {
                let mean_ns = means.get(&cause).copied().unwrap_or(0);
                // Means are whole nanoseconds, and the largest has what the others lack.
                assert!(mean_ns.abs_diff(sum_ns / chosen.total) < 10, "{cause:?} {means:?}");
            }
        }
    }
}

#[test]
fn the_slowest_ten_are_those_of_the_answer() {
    for seed in SEEDS {
        for service in services() {
            let drill = drill(seed, &service);
            let chosen = choose(&drill.evidence(), &RequestSelection { requests: 10, ..ALL });
            assert_eq!(chosen.requests, drill.analyse().slowest_requests);
            assert_eq!((chosen.requests.len(), chosen.total), (10, drill.samples.len() as u64));
            // However many are listed, each has the same stalls.
            let all = choose(&drill.evidence(), &ALL);
            assert_eq!(all.requests[..10], chosen.requests);
            assert!(all.requests.iter().any(|request| !request.stalls.is_empty()));
        }
    }
}

#[test]
fn the_selection_takes_what_fits_and_counts_the_rest() {
    let mut drill = drill(500, &POOL);
    // Of equal latency, and so in the order of the samples.
    for sample in &mut drill.samples {
        let rounded_ns = sample.response_ns() / MS * MS;
        sample.end = MonoNanos(sample.begin().0 + rounded_ns);
    }
    drill.window_ns -= 500 * MS;
    let end = MonoNanos(ORIGIN + drill.window_ns);
    let at = MonoNanos(ORIGIN + drill.window_ns / 2);
    let in_flight = drill.samples.iter().filter(|one| one.begin() <= at && at < one.end).count();
    let at = if in_flight > 0 { at } else { drill.samples[1_000].begin() };
    for selection in [
        ALL,
        RequestSelection { requests: 7, ..ALL },
        RequestSelection { slower_than_ns: Some(5 * MS), ..ALL },
        RequestSelection { slower_than_ns: Some(5 * MS), requests: 3, ..ALL },
        RequestSelection { at_ns: Some(at), ..ALL },
        RequestSelection { at_ns: Some(at), slower_than_ns: Some(50_000 * MS), ..ALL },
    ] {
        let mut places: Vec<usize> = (0..drill.samples.len()).collect();
        places.retain(|place| {
            let sample = &drill.samples[*place];
            let is_slow = selection.slower_than_ns.is_none_or(|ns| sample.response_ns() >= ns);
            let is_there = selection.at_ns.is_none_or(|at| sample.begin() <= at && at < sample.end);
            sample.end <= end && is_slow && is_there
        });
        places.sort_by_key(|place| std::cmp::Reverse(drill.samples[*place].response_ns()));
        let chosen = choose(&drill.evidence(), &selection);
        assert_eq!(chosen.total, places.len() as u64, "{selection:?}");
        places.truncate(selection.requests as usize);
        assert_eq!(chosen.places, places, "{selection:?}");
        assert_eq!(chosen.inside + chosen.outside, drill.samples.len() as u64);
        assert!(chosen.outside > 100, "{}", chosen.outside);
    }
}

#[test]
fn a_request_that_is_not_matched_is_listed_with_the_reason() {
    let mut drill = drill(501, &POOL);
    let mut number = 0..;
    drill.requests.retain(|_| number.next().is_some_and(|number| number % 4 != 0));
    let of = |drill: &Drill, reason: Matched| {
        let requests = choose(&drill.evidence(), &ALL).requests;
        assert_eq!(requests.len(), drill.samples.len());
        let mut of_reason: Vec<SlowRequest> =
            requests.into_iter().filter(|request| request.matched == Some(reason)).collect();
        of_reason.retain(|request| request.served.is_none() && request.account_ns.is_none());
        of_reason.len()
    };
    assert_eq!(of(&drill, Matched::Unmatched), drill.samples.len().div_ceil(4));
    assert_eq!(of(&drill, Matched::NotRecorded), 0);
    // Only some blocks of time were recorded.
    let recorded =
        |request: &ServerRequest| observer_ebpf::wire::is_recorded(request.begin().0, 16);
    drill.requests.retain(recorded);
    drill.quality.requests_in_blocks = true;
    assert!(of(&drill, Matched::NotRecorded) > drill.samples.len() / 2);
    drill.requests.clear();
    assert_eq!(of(&drill, Matched::NoRequests), drill.samples.len());
}

#[test]
fn without_the_sleeps_the_rest_is_unexplained() {
    let mut drill = drill(502, &POOL);
    let watched = choose(&drill.evidence(), &ALL).requests;
    drill.quality.sleeps_watched = false;
    for (request, watched) in choose(&drill.evidence(), &ALL).requests.iter().zip(&watched) {
        let (account, watched) = (account(request), account(watched));
        assert!(
            !account.contains_key(&Cause::SERVICE_CPU)
                && !account.contains_key(&Cause::SERVICE_WAIT)
        );
        let rest_ns = account.get(&Cause::UNEXPLAINED);
        assert_eq!(rest_ns, watched.get(&Cause::SERVICE_CPU), "the service's own work, or a sleep");
        assert_eq!(account.get(&Cause::RECLAIM_MEMCG), watched.get(&Cause::RECLAIM_MEMCG));
        assert_eq!(account.get(&Cause::NETWORK), watched.get(&Cause::NETWORK));
    }
}

#[test]
fn an_account_is_whole_whatever_the_generator_says_of_its_times() {
    let mut drill = drill(503, &services()[0]);
    for (number, sample) in drill.samples.iter_mut().enumerate() {
        let (start, end) = (sample.start.0, sample.end.0);
        sample.intended_start = match number % 5 {
            0 => None,
            // It was sent late, in time, before its time.
            1 => Some(MonoNanos(start.saturating_sub(MS))),
            2 => Some(MonoNanos(start)),
            3 => Some(MonoNanos(start + 100 * US)),
            // And only after its end.
            _ => Some(MonoNanos(end + 100 * US)),
        };
        // The client had its answer before the write returned, and sent after the arrival.
        if number % 7 == 0 {
            (sample.start.0, sample.end.0) = (start + 60 * US, end - 60 * US);
        }
    }
    let alone = |place: usize| {
        let evidence = drill.evidence();
        let at = drill.samples[place].begin();
        let selection = RequestSelection { at_ns: Some(at), requests: 1, ..ALL };
        choose(&evidence, &selection).requests
    };
    let whole = |request: &SlowRequest| {
        if request.served.is_some() {
            let sum_ns: u64 = account(request).values().sum();
            assert_eq!(sum_ns, request.response_ns);
        }
    };
    let all = choose(&drill.evidence(), &ALL);
    assert!(all.requests.iter().filter(|request| request.served.is_some()).count() > 2_000);
    all.requests.iter().for_each(whole);
    (0..drill.samples.len()).step_by(97).for_each(|place| alone(place).iter().for_each(whole));
}

#[test]
fn a_slow_request_has_its_longest_stalls_and_where_their_records_are() {
    let stall = |start: u64, end: u64, row: Option<u64>| Stall {
        start: MonoNanos(start),
        end: MonoNanos(end),
        tid: Tid(12),
        tgid: Tgid(10),
        cpu: 3,
        holder: Some(Holder { tid: Tid(7), tgid: Tgid(6), cgroup: None }),
        extra: Extra::None,
        row: row.and_then(|row| TraceRow::new(0, row)),
        cause: Cause::RUNQUEUE,
    };
    // Beside the two at the edges, thirty of the lengths 1 to 30 inside.
    let mut stalls: Vec<Stall> =
        (1..=30).map(|at| stall(1_000 + at * 100, 1_000 + at * 101, Some(at))).collect();
    stalls.push(stall(500, 1_050, None));
    stalls.push(stall(4_950, 9_000, Some(31)));
    stalls.push(stall(5_000, 6_000, Some(32)));
    let samples = [Sample::of_times(0, 10), Sample::of_times(1_000, 5_000)];
    let evidence = Evidence {
        window: (MonoNanos(0), MonoNanos(u64::MAX)),
        samples: &samples,
        requests: &[],
        outgoing: &[],
        stalls: &stalls,
        slow: SlowSpec::default(),
        quality: Quality::default(),
    };
    let timelines = Timelines::new(&stalls, evidence.window, false, &mut Ignored::default());
    let handing = Handing::new(&evidence, &timelines);
    let found = slowest_requests(
        &evidence,
        &Matching::default(),
        (&timelines, &handing),
        &Asked::new(&evidence),
    );
    assert_eq!(found.len(), 2);
    assert_eq!((found[1].stalls.len(), found[1].more_stalls), (0, 0));
    let request = &found[0];
    assert_eq!((request.begin_ns.0, request.response_ns), (1_000, 4_000));
    assert_eq!((request.matched, request.account_ns.as_ref()), (Some(Matched::NoRequests), None));
    assert_eq!((request.stalls.len(), request.more_stalls), (10, 22));
    let inside: Vec<u64> = request.stalls.iter().map(|stall| stall.inside_ns).collect();
    assert_eq!(inside, [50, 50, 30, 29, 28, 27, 26, 25, 24, 23]);
    let rows: Vec<Option<u32>> = request
        .stalls
        .iter()
        .map(|stall| stall.trace_row.as_ref().map(|place| place.row))
        .collect();
    assert_eq!(rows[..4], [None, Some(31), Some(30), Some(29)]);
    let first = &request.stalls[1];
    assert_eq!(first.trace_row, Some(StreamRow { kind: "runqueue".into(), row: 31 }));
    assert_eq!((first.cpu, first.holder.map(|holder| holder.tid)), (3, Some(Tid(7))));
    // Programs find them under these names.
    let json = serde_json::to_value(first).expect("JSON");
    assert_eq!(json["trace_row"], serde_json::json!({"kind": "runqueue", "row": 31}));
    assert_eq!(json["holder"], serde_json::json!({"tid": 7, "tgid": 6}));
    assert_eq!(serde_json::from_value::<SlowStall>(json).expect("a stall"), *first);
}
