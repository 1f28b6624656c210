//! Short stalls that the kernel side has summed up, against the short stalls themselves.

use observer_ebpf::wire::{Burst, Owner, RecordKind};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::super::Ignored;
use super::super::timeline::{Timelines, flatten};
use crate::clock::MonoNanos;
use crate::model::{Cause, Stall};
use crate::probe::decode;

const SECOND: u64 = 1_000_000_000;
const CASES: u64 = 200;

/// What a thread sends of stalls that are all below the floor.
pub(in crate::correlate) fn bursts(
    kind: RecordKind,
    tid: u32,
    stalls: impl IntoIterator<Item = (u64, u64)>,
) -> Vec<Stall> {
    let (mut sent, mut burst) = (Vec::new(), Burst::default());
    let mut send = |burst: &mut Burst| {
        let record = std::mem::take(burst).record(kind as u16, Owner { tid, tgid: 1 }, 0);
        let event = decode(bytemuck::bytes_of(&record)).expect("a record");
        sent.extend(Stall::of_event(&event));
    };
    for (begin_ns, end_ns) in stalls {
        if burst.is_over_at(begin_ns) {
            send(&mut burst);
        }
        burst.add(begin_ns, end_ns);
        if burst.has_lasted() {
            send(&mut burst);
        }
    }
    if burst.count > 0 {
        send(&mut burst);
    }
    sent
}

/// The life of a thread: one thing after another, and which of them is of which cause.
fn life(rng: &mut Xoshiro256PlusPlus) -> Vec<(Option<Cause>, u64, u64)> {
    let mut now = 1_000;
    let mut life = Vec::new();
    while now < 20_000_000 {
        let (cause, longest) = match rng.random_range(0..100) {
            0..55 => (Some(Cause::FAULT_MINOR), 3_000),
            55..70 => (Some(Cause::MM_SYSCALL), 3_000),
            70..75 => (Some(Cause::RUNQUEUE), 150_000),
            75..78 => (Some(Cause::SERVICE_WAIT), 400_000),
            // Faults so long that they are sent one by one, between short ones.
            78..80 => (Some(Cause::RECLAIM_MEMCG), 60_000),
            80..82 => (None, 300_000),
            _ => (None, 2_000),
        };
        let end = now + rng.random_range(1..longest);
        life.push((cause, now, end));
        now = end;
    }
    life
}

fn lines(stalls: &[Stall]) -> Timelines {
    flatten_all(stalls, (MonoNanos(0), MonoNanos(SECOND)))
}

fn flatten_all(stalls: &[Stall], window: (MonoNanos, MonoNanos)) -> Timelines {
    // By thread, so that sleeps are among them.
    Timelines::new(stalls, window, true, &mut Ignored::default())
}

#[test]
fn a_burst_keeps_its_time_within_its_bounds_and_takes_none_from_others() {
    for seed in 0..CASES {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let life = life(&mut rng);
        let of = |wanted: Cause| {
            let all = life.iter().filter(move |(cause, ..)| *cause == Some(wanted));
            all.map(|(_, start, end)| (*start, *end)).collect::<Vec<_>>()
        };
        let sum =
            |stalls: &[(u64, u64)]| stalls.iter().map(|(start, end)| end - start).sum::<u64>();
        let (faults, calls) = (of(Cause::FAULT_MINOR), of(Cause::MM_SYSCALL));
        let fault_bursts = bursts(RecordKind::FaultBurst, 1, faults.iter().copied());
        let call_bursts = bursts(RecordKind::MmSyscallBurst, 1, calls.iter().copied());
        assert!(fault_bursts.len() > 10 && fault_bursts.len() < faults.len() / 10, "seed {seed}");
        let others = [Cause::RUNQUEUE, Cause::SERVICE_WAIT, Cause::RECLAIM_MEMCG];
        let mut stalls = [fault_bursts.clone(), call_bursts.clone()].concat();
        for cause in others {
            let one = |(start, end)| Stall::of_thread(1, cause, start, end);
            stalls.extend(of(cause).into_iter().map(one));
        }
        let lines = lines(&stalls);
        let covered = |cause, start, end| lines.of(cause).exposure(start, end);
        let whole = |cause| covered(cause, 0, SECOND);
        assert_eq!(whole(Cause::FAULT_MINOR), sum(&faults) as f64, "seed {seed}");
        assert_eq!(whole(Cause::MM_SYSCALL), sum(&calls) as f64, "seed {seed}");
        for cause in others {
            assert_eq!(whole(cause), sum(&of(cause)) as f64, "seed {seed}: {cause:?}");
        }
        // A request that contains the whole burst has all of it, and one beside it nothing.
        for burst in fault_bursts.iter().chain(&call_bursts) {
            let inside = covered(burst.cause, burst.first().0, burst.end.0);
            assert_eq!(inside, burst.duration_ns() as f64, "seed {seed}: {burst:?}");
        }
    }
}

#[test]
fn a_pause_keeps_a_burst_out_of_the_next_request() {
    let dense = |from: u64| (0..100).map(move |at| (from + at * 2_000, from + at * 2_000 + 1_000));
    // One fault, long before the many of a request; and after another pause a request without any.
    let stalls =
        [(10_000, 11_000)].into_iter().chain(dense(700_000)).chain([(1_200_000, 1_201_000)]);
    let lines = lines(&bursts(RecordKind::FaultBurst, 1, stalls));
    let faults = |start, end| lines.of(Cause::FAULT_MINOR).exposure(start, end);
    assert!(faults(690_000, 900_000) >= 100_000.0, "{}", faults(690_000, 900_000));
    assert_eq!(faults(0, SECOND), 102_000.0);
    assert_eq!(faults(900_000, 1_300_000), 1_000.0);
}

#[test]
fn ten_thousand_faults_of_a_microsecond_are_ten_milliseconds() {
    let begin = 5_000_000;
    let faults = (0..10_000).map(|at| (begin + at * 2_500, begin + at * 2_500 + 1_000));
    let bursts = bursts(RecordKind::FaultBurst, 7, faults);
    assert!(bursts.len() <= 26, "{} records in 25 ms", bursts.len());
    let lines = lines(&bursts);
    let request = lines.of(Cause::FAULT_MINOR).exposure(begin - 100_000, begin + 25_100_000);
    assert_eq!(request, 10_000_000.0);
    // The window cuts what reaches out of it.
    let half = (MonoNanos(0), MonoNanos(begin + 12_500_000));
    let cut = flatten(&bursts, half, &mut Ignored::default()).of(Cause::FAULT_MINOR).duty();
    let half_ns = cut * half.1.0 as f64;
    assert!((half_ns - 5_000_000.0).abs() <= 1_000_000.0, "{half_ns}");
}
