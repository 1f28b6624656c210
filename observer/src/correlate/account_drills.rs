//! Known-answer drills in which it is also known when the serving threads slept: every nanosecond of a
//! request has a cause.

use observer_ebpf::wire::RecordKind;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use super::drill::{Drill, MS, SECOND};
use super::innermost::bursts::bursts;
use super::served_drills::{Handler, POOL, Service, US, has, nothing};
use super::*;
use crate::model::Extra;

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 400..408;

const WATCHED: Service = Service { sleeps: true, ..POOL };

/// A service of which one request in fifty has something that the others have not.
fn drill(seed: u64, service: &Service, slow: impl Fn(u64) -> Handler) -> Drill {
    let mut drill = Drill::new(seed, 30);
    drill.quality.sleeps_watched = true;
    let plan = |_, rng: &mut Xoshiro256PlusPlus| match rng.random_bool(0.02) {
        true => slow(rng.random_range(20 * MS..40 * MS)),
        false => Handler::default(),
    };
    service.serve(&mut drill, 300, plan, nothing);
    drill
}

fn sleeps(sleep_ns: u64) -> Handler {
    Handler { sleep_ns, ..Handler::default() }
}

fn burns(burn_ns: u64) -> Handler {
    Handler { burn_ns, ..Handler::default() }
}

fn is_on_its_way(way_ns: u64) -> Handler {
    Handler { way_ns, ..Handler::default() }
}

fn reclaims(length_ns: u64) -> Handler {
    Handler { stall: Some((Cause::RECLAIM_MEMCG, length_ns)), ..Handler::default() }
}

/// The answer, whose accounts are whole.
fn answer(drill: &Drill) -> Analysis {
    let analysis = drill.analyse();
    let accounts = analysis.check().account_ns.clone().expect("accounts");
    let of = |parts: &BTreeMap<Cause, u64>| parts.values().sum::<u64>() as f64;
    // All are matched, so the groups are those of the summary.
    assert_eq!(analysis.requests.matched, drill.samples.len() as u64);
    assert!((of(&accounts.slow) - analysis.samples.slow_mean_ns).abs() < 1.0, "{analysis:#?}");
    let typical_ns = analysis.samples.typical_mean_ns;
    assert!((of(&accounts.typical) - typical_ns).abs() < 1.0, "{analysis:#?}");
    assert!(!accounts.slow.contains_key(&Cause::UNEXPLAINED), "{accounts:?}");
    let shares: f64 =
        analysis.causes.iter().filter(|row| !row.cause.is_rest()).map(|row| row.share).sum();
    assert!((shares - 1.0).abs() < 0.02, "the causes share all of the excess: {analysis:#?}");
    analysis
}

#[test]
fn what_the_service_does_itself_is_an_answer() {
    type Plan = fn(u64) -> Handler;
    let plans: [(Cause, Plan); 4] = [
        (Cause::SERVICE_WAIT, sleeps),
        (Cause::SERVICE_CPU, burns),
        (Cause::NETWORK, is_on_its_way),
        (Cause::RECLAIM_MEMCG, reclaims),
    ];
    let services =
        [WATCHED, Service { threads: 2, ..WATCHED }, Service { acceptor: Some(99), ..WATCHED }];
    for (number, service) in services.iter().enumerate() {
        for (seed, (cause, plan)) in SEEDS.zip(plans.into_iter().cycle()) {
            let drill = drill(seed, service, plan);
            let analysis = answer(&drill);
            assert_eq!(analysis.verdict.outcome, Outcome::Attributed, "{analysis:#?}");
            assert_eq!(analysis.verdict.top_cause, Some(cause), "{number}, {seed}: {analysis:#?}");
            let share = analysis.of(cause).share;
            // With two threads, a part of the slow requests waits behind others that only compute.
            assert!(share > 0.85, "service {number}, seed {seed}: {cause:?} {share}");
            assert!(has(&analysis, "counted_by_thread"));
        }
    }
}

#[test]
fn a_sleep_within_a_stall_belongs_to_the_stall() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, reclaims);
        // Who reclaims memory waits for writes meanwhile.
        let within: Vec<Stall> = drill
            .stalls
            .iter()
            .filter(|stall| stall.cause == Cause::RECLAIM_MEMCG)
            .map(|stall| Stall {
                start: MonoNanos(stall.start.0 + 100 * US),
                end: MonoNanos(stall.end.0 - 100 * US),
                cause: Cause::SERVICE_WAIT,
                ..stall.clone()
            })
            .collect();
        let before = answer(&drill);
        drill.stalls.extend(within);
        let analysis = answer(&drill);
        assert_eq!(analysis.account_ns, before.account_ns);
        assert_eq!(analysis.verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{analysis:#?}");
    }
}

#[test]
fn without_the_sleeps_the_services_own_time_stays_unexplained() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, sleeps);
        drill.quality.sleeps_watched = false;
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.outcome, Outcome::Unexplained, "{analysis:#?}");
        assert_eq!(analysis.account_ns, None);
        // A floor that rose hides sleeps, too.
        drill.quality.sleeps_watched = true;
        drill.quality.hidden.push(Hidden {
            kind: "sleep".into(),
            floor_ns: MS,
            raised_for_ns: 10 * MS,
            hidden_ns: 10_000 * MS,
        });
        let mut hidden = drill.analyse();
        // The same records say when threads were held.
        assert!(hidden.ruled_out.iter().all(|one| one.cause != Cause::STOPPED), "{hidden:#?}");
        hidden.ruled_out.clone_from(&analysis.ruled_out);
        assert_eq!(hidden, analysis);
    }
}

#[test]
fn sleeps_of_all_threads_together_say_nothing() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, reclaims);
        drill.requests.clear();
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.top_cause, Some(Cause::RECLAIM_MEMCG), "{analysis:#?}");
        assert!(analysis.causes.iter().all(|row| row.cause != Cause::SERVICE_WAIT));
        drill.stalls.retain(|stall| stall.cause.is_stall());
        assert_eq!(drill.analyse(), analysis);
    }
}

/// The p99 of the samples.
fn p99_ns(drill: &Drill) -> u64 {
    let mut latencies: Vec<u64> = drill.samples.iter().map(Sample::response_ns).collect();
    latencies.sort_unstable();
    latencies[(latencies.len() as f64 * 0.99).ceil() as usize - 1]
}

#[test]
fn the_p99_without_a_cause_is_that_of_a_run_without_it() {
    let services =
        [WATCHED, Service { threads: 2, ..WATCHED }, Service { acceptor: Some(99), ..WATCHED }];
    let mut covered = 0;
    for (number, service) in services.iter().enumerate() {
        for (seed, plan) in SEEDS.zip([reclaims, sleeps].into_iter().cycle()) {
            let with = drill(seed, service, plan);
            let without_ns = p99_ns(&drill(seed, service, |_| Handler::default()));
            let analysis = answer(&with);
            let top = analysis.causes.iter().find(|row| row.named).expect("a cause");
            let without = top.without.expect("the p99 without it");
            let (found_ns, [low, high]) = (without.p99_without_ns, without.p99_without_ci95);
            let error = found_ns as f64 / without_ns as f64 - 1.0;
            assert!(error.abs() < 0.05, "service {number}, seed {seed}: {found_ns} {without_ns}");
            covered += u32::from((low..=high).contains(&without_ns));
            let all = analysis.without_named.expect("without all");
            assert_eq!(all.p99_ns, p99_ns(&with));
            assert!(all.p99_without_ns <= found_ns && found_ns < all.p99_ns, "{analysis:#?}");
        }
    }
    assert!(covered >= 22, "of 24 intervals, {covered} cover the truth");
}

#[test]
fn what_cannot_be_taken_away_has_no_p99_without_it() {
    for (seed, plan) in SEEDS.zip([burns, is_on_its_way].into_iter().cycle()) {
        let analysis = answer(&drill(seed, &WATCHED, plan));
        assert!(analysis.causes.iter().any(|row| row.named));
        assert!(analysis.causes.iter().all(|row| row.without.is_none()), "{analysis:#?}");
        assert_eq!(analysis.without_named, None);
    }
}

#[test]
fn faults_too_short_for_records_of_their_own_are_seen_in_bursts() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, |_| burns(25 * MS));
        // Of what looks like the service's own work, 10,000 faults of 1 µs are 10 ms.
        let is_slow = |request: &&ServerRequest| {
            request.end().is_some_and(|end| end.since(request.read) > 25 * MS)
        };
        let slow: Vec<(u32, u64)> = drill
            .requests
            .iter()
            .filter(is_slow)
            .map(|request| (request.sender.0, request.read.0 + 200 * US))
            .collect();
        for (tid, begin) in slow {
            let faults = (0..10_000).map(|at| (begin + at * 2_500, begin + at * 2_500 + US));
            drill.stalls.extend(bursts(RecordKind::FaultBurst, tid, faults));
        }
        let analysis = answer(&drill);
        let accounts = analysis.account_ns.clone().expect("accounts");
        let faults_ns = accounts.slow[&Cause::FAULT_MINOR];
        // Some slow requests also waited behind another one, for a part of its time.
        assert!((9 * MS..=11 * MS).contains(&faults_ns), "seed {seed}: {accounts:?}");
        let share = analysis.of(Cause::FAULT_MINOR).share;
        assert!((share - 0.4).abs() < 0.02, "seed {seed}: {share}");
        assert!(analysis.of(Cause::FAULT_MINOR).named, "seed {seed}: {analysis:#?}");
    }
}

#[test]
fn what_threads_waited_for_sums_to_their_part_of_the_requests() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, sleeps);
        for stall in &mut drill.stalls {
            if stall.cause == Cause::SERVICE_WAIT {
                stall.extra = Extra::Object(if stall.duration_ns() >= 20 * MS { 7 } else { 8 });
            }
        }
        // What a thread sleeps for in a stall is not what its service waits for.
        let sleep = |stall: &&Stall| stall.extra == Extra::Object(7);
        let within: Vec<Stall> = drill
            .stalls
            .iter()
            .filter(sleep)
            .map(|stall| Stall {
                start: MonoNanos(stall.end.0 - 5 * MS),
                extra: Extra::None,
                cause: Cause::RECLAIM_MEMCG,
                ..stall.clone()
            })
            .collect();
        drill.stalls.extend(within);
        let analysis = answer(&drill);
        let accounts = analysis.account_ns.as_ref().expect("accounts");
        let objects = &analysis.objects[&Cause::SERVICE_WAIT];
        assert_eq!(analysis.objects.len(), 1, "stalls of other causes say nothing");
        assert_eq!(objects[0].object, 7, "{objects:?}");
        let of = |time: fn(&ObjectTime) -> u64| objects.iter().map(time).sum::<u64>();
        let wait = |parts: &BTreeMap<Cause, u64>| parts.get(&Cause::SERVICE_WAIT).copied();
        let slow_ns = wait(&accounts.slow).expect("a wait");
        // One of less than 1 % is not in the list, and means are rounded.
        let missing_ns = slow_ns.abs_diff(of(|time| time.slow_ns));
        assert!(missing_ns <= slow_ns / 100 + 2, "{slow_ns}: {objects:?}");
        if objects.len() == 2 {
            let typical_ns = wait(&accounts.typical).unwrap_or(0);
            assert!(typical_ns.abs_diff(of(|time| time.typical_ns)) <= 2, "{objects:?}");
        }
        assert!(objects[0].typical_ns < MS, "{objects:?}");
        // By time alone nothing is known of sleeps.
        drill.requests.clear();
        assert!(drill.analyse().objects.is_empty());
    }
}

#[test]
fn who_had_the_cpu_is_known_by_time_alone() {
    let waits = |length_ns| Handler {
        stall: Some((Cause::RUNQUEUE_OTHER, length_ns)),
        ..Handler::default()
    };
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, waits);
        for stall in &mut drill.stalls {
            if stall.cause == Cause::RUNQUEUE_OTHER {
                stall.extra = Extra::Object(9);
            }
        }
        let by_thread = drill.analyse();
        let [of_thread] = by_thread.objects[&Cause::RUNQUEUE_OTHER][..] else { panic!("one") };
        let accounts = by_thread.account_ns.expect("accounts");
        // Both means are rounded, each in its way.
        let part_ns = accounts.slow[&Cause::RUNQUEUE_OTHER];
        assert!(part_ns.abs_diff(of_thread.slow_ns) <= 1, "{part_ns}: {of_thread:?}");
        drill.requests.clear();
        let [of_all] = drill.analyse().objects[&Cause::RUNQUEUE_OTHER][..] else { panic!("one") };
        assert!(of_all.object == 9 && of_all.slow_ns >= of_thread.slow_ns * 9 / 10, "{of_all:?}");
    }
}

#[test]
fn one_slow_phase_is_enough_where_all_time_is_accounted_for() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 24);
        drill.quality.sleeps_watched = true;
        let phase = 10 * SECOND..12 * SECOND;
        let plan = |at: u64, rng: &mut Xoshiro256PlusPlus| match phase.contains(&at) {
            true => sleeps(rng.random_range(20 * MS..40 * MS)),
            false => Handler::default(),
        };
        WATCHED.serve(&mut drill, 200, plan, nothing);
        // Threads that serve nothing wait for a CPU in the same phase.
        for begin in (9 * SECOND..13 * SECOND).step_by(5_000_000) {
            drill.innocent(Cause::RUNQUEUE, 77, begin, begin + 4 * MS);
        }
        let analysis = answer(&drill);
        assert_eq!(analysis.verdict.outcome, Outcome::Attributed, "{seed}: {analysis:#?}");
        assert_eq!(analysis.verdict.top_cause, Some(Cause::SERVICE_WAIT), "{seed}: {analysis:#?}");
        assert!(analysis.of(Cause::SERVICE_WAIT).share > 0.9, "{seed}: {analysis:#?}");
        assert!(has(&analysis, "few_phases") && analysis.episodes < 3, "{seed}: {analysis:#?}");
        // Without the account, coincidence cannot be ruled out.
        drill.requests.clear();
        let analysis = drill.analyse();
        assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive, "{seed}: {analysis:#?}");
    }
}

#[test]
fn a_tail_below_twice_the_typical_latency_is_explained_where_its_time_is_known() {
    for seed in SEEDS {
        let mut drill = Drill::new(seed, 30);
        drill.quality.sleeps_watched = true;
        // Each answer waits for an acknowledgement that comes late.
        let way_ns = 42 * MS;
        let plan = |_, rng: &mut Xoshiro256PlusPlus| Handler {
            way_ns,
            sleep_ns: if rng.random_bool(0.02) { 30 * MS } else { 0 },
            ..Handler::default()
        };
        WATCHED.serve(&mut drill, 100, plan, nothing);
        let analysis = answer(&drill);
        assert!(analysis.samples.slow_mean_ns < 2.0 * analysis.samples.typical_mean_ns);
        assert_eq!(analysis.verdict.top_cause, Some(Cause::SERVICE_WAIT), "{seed}: {analysis:#?}");
        drill.requests.clear();
        assert_eq!(drill.analyse().verdict.outcome, Outcome::NoSlowSamples, "{seed}");
        // What differs by less is no problem.
        let mut even = Drill::new(seed, 30);
        even.quality.sleeps_watched = true;
        let plan = |_, _: &mut Xoshiro256PlusPlus| Handler { way_ns, ..Handler::default() };
        WATCHED.serve(&mut even, 100, plan, nothing);
        assert_eq!(even.analyse().verdict.outcome, Outcome::NoSlowSamples, "{seed}");
    }
}

#[test]
fn the_p99_without_a_cause_stands_beside_its_share_in_json() {
    let analysis = answer(&drill(SEEDS.start, &WATCHED, sleeps));
    let known = analysis.causes.iter().filter(|row| row.without.is_some()).count();
    assert!(known > 0 && known < analysis.causes.len(), "{analysis:#?}");
    for row in &analysis.causes {
        let json = serde_json::to_value(row).expect("JSON");
        let p99_ns = json.get("p99_without_ns").and_then(serde_json::Value::as_u64);
        assert_eq!(p99_ns, row.without.map(|without| without.p99_without_ns), "{json}");
        assert_eq!(json.get("p99_without_ci95").is_some(), row.without.is_some(), "{json}");
        assert_eq!(json.get("without"), None, "{json}");
        assert_eq!(serde_json::from_value::<CauseSummary>(json).ok().as_ref(), Some(row));
    }
}

#[test]
fn waits_for_observers_threads_are_in_the_account_and_its_programs_are_not() {
    for seed in SEEDS {
        let mut drill = drill(seed, &WATCHED, sleeps);
        drill.quality.own_cpu = OwnCpu { threads: 0.2, programs: 0.04 };
        let analysis = answer(&drill);
        assert_eq!(analysis.verdict.top_cause, Some(Cause::SERVICE_WAIT), "{analysis:#?}");
        drill.quality.own_cpu.programs = 0.06;
        let analysis = answer(&drill);
        assert_eq!(analysis.verdict.outcome, Outcome::Inconclusive, "{analysis:#?}");
        assert!(has(&analysis, "observer_cpu"), "{analysis:#?}");
    }
}
