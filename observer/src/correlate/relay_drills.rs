//! Known-answer drills in which threads hand requests to each other.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;

use super::drill::{Drill, MS, ORIGIN, SECOND};
use super::served_drills::US;
use super::*;
use crate::model::{Holder, Tgid, Tid};

/// Not among the seeds of other drills.
const SEEDS: std::ops::Range<u64> = 1_900..1_906;
/// Threads between the one that reads and the one that answers.
const WORKERS: usize = 4;
const READER: u32 = 1;
const FIRST_WORKER: u32 = 11;

/// What the work of slow requests is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Computes,
    Sleeps,
    Waits,
}

/// A thread that reads requests and hands them to workers. Workers give them to the thread that answers.
struct Service {
    work: Work,
    /// The thread that answers; the reader itself, or another one.
    sender: u32,
    rate_hz: u64,
    /// It is known who woke a thread.
    wakers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrives(u64),
    Answers { worker: usize, arrival: u64, read: u64 },
}

/// A thread that takes what comes one by one, and sleeps while there is nothing.
struct Thread {
    tid: u32,
    free: u64,
}

impl Thread {
    /// When it begins what is there for it from `at` on; `by` wakes it if it sleeps.
    fn begin(&self, drill: &mut Drill, at: u64, by: Option<u32>) -> u64 {
        if self.free < at {
            let mut sleep =
                Stall::of_thread(self.tid, Cause::SERVICE_WAIT, ORIGIN + self.free, ORIGIN + at);
            sleep.holder = by.map(|by| Holder { tid: Tid(by), tgid: Tgid(1), cgroup: None });
            drill.stalls.push(sleep);
        }
        self.free.max(at)
    }
}

impl Service {
    fn serve(&self, seed: u64) -> Drill {
        let mut drill = Drill::new(seed, 30);
        drill.quality.sleeps_watched = true;
        let mut reader = Thread { tid: READER, free: 0 };
        let mut sender = Thread { tid: self.sender, free: 0 };
        let mut workers: Vec<Thread> = (0..WORKERS as u32)
            .map(|number| Thread { tid: FIRST_WORKER + number, free: 0 })
            .collect();
        let mut steps = BinaryHeap::from([Reverse((MS, Step::Arrives(MS)))]);
        while let Some(Reverse((now, step))) = steps.pop() {
            if now >= drill.window_ns - SECOND {
                break;
            }
            match step {
                Step::Arrives(arrival) => {
                    let uniform: f64 = drill.rng.random();
                    let gap = (-(1.0 - uniform).ln() * SECOND as f64 / self.rate_hz as f64) as u64;
                    steps.push(Reverse((now + gap, Step::Arrives(now + gap))));
                    let read = reader.begin(&mut drill, now, None) + 5 * US;
                    reader.free = read + drill.rng.random_range(50 * US..150 * US);
                    let given = reader.free;
                    let worker = (0..WORKERS).min_by_key(|place| workers[*place].free);
                    let worker = worker.expect("there are workers");
                    let begin = workers[worker].begin(&mut drill, given, self.by(READER));
                    let mut end = begin + drill.rng.random_range(400 * US..800 * US);
                    if drill.rng.random_bool(0.02) {
                        let long = drill.rng.random_range(20 * MS..30 * MS);
                        let tid = workers[worker].tid;
                        let cause = match self.work {
                            Work::Computes => None,
                            Work::Sleeps => Some(Cause::SERVICE_WAIT),
                            Work::Waits => Some(Cause::RUNQUEUE_OTHER),
                        };
                        if let Some(cause) = cause {
                            drill.innocent(cause, tid, end, end + long);
                        }
                        end += long + 50 * US;
                    }
                    workers[worker].free = end;
                    steps.push(Reverse((end, Step::Answers { worker, arrival, read })));
                }
                Step::Answers { worker, arrival, read } => {
                    let by = self.by(workers[worker].tid);
                    let thread = if self.sender == READER { &mut reader } else { &mut sender };
                    let answer = thread.begin(&mut drill, now, by)
                        + drill.rng.random_range(20 * US..60 * US);
                    thread.free = answer + 5 * US;
                    drill.served((READER, self.sender), [arrival, read, answer]);
                }
            }
        }
        drill
    }

    fn by(&self, tid: u32) -> Option<u32> {
        self.wakers.then_some(tid)
    }
}

/// One for whom the reader answers itself, and one with a thread that answers.
const SENDERS: [u32; 2] = [READER, 2];

#[test]
fn what_a_worker_does_for_a_request_is_what_the_request_waits_for() {
    let answers = [
        (Work::Computes, Cause::SERVICE_CPU),
        (Work::Sleeps, Cause::SERVICE_WAIT),
        (Work::Waits, Cause::RUNQUEUE_OTHER),
    ];
    for sender in SENDERS {
        for (work, cause) in answers {
            // At the higher rate, the reader is often awake when a worker is done, and not woken for that.
            for (seed, rate_hz) in SEEDS.zip([200, 1_500]) {
                let service = Service { work, sender, rate_hz, wakers: true };
                let drill = service.serve(seed);
                let analysis = drill.analyse();
                assert_eq!(analysis.check().verdict.top_cause, Some(cause), "{seed}");
                let share = analysis.of(cause).share;
                assert!(share > 0.9, "seed {seed}: {} has {share}", cause.name());
            }
        }
    }
}

#[test]
fn without_a_stall_of_a_worker_requests_are_answered_sooner() {
    for sender in SENDERS {
        for seed in SEEDS {
            let service = Service { work: Work::Waits, sender, rate_hz: 100, wakers: true };
            let analysis = service.serve(seed).analyse();
            let without = analysis.of(Cause::RUNQUEUE_OTHER).without.expect("a replay");
            // Usual requests take 0.5 to 1.2 ms.
            assert!(without.p99_without_ns < 3 * MS, "seed {seed}: {without:?}");
        }
    }
}

#[test]
fn where_it_is_not_known_who_woke_a_thread_the_reader_waited() {
    for seed in SEEDS {
        let service = Service { work: Work::Computes, sender: READER, rate_hz: 200, wakers: false };
        let analysis = service.serve(seed).analyse();
        assert_eq!(analysis.check().verdict.top_cause, Some(Cause::SERVICE_WAIT), "{seed}");
    }
}

#[test]
fn threads_that_nobody_waits_for_are_no_part_of_the_path() {
    for seed in SEEDS {
        let service = Service { work: Work::Computes, sender: READER, rate_hz: 100, wakers: true };
        let mut drill = service.serve(seed);
        // A second reader sleeps until a timer ends. Before, it wakes a thread that does something else.
        const LOGGER: u32 = 77;
        let mut idle_since = 0;
        let mut at = 40 * MS;
        while at < drill.window_ns - SECOND {
            let slept = drill.rng.random_range(50 * MS..80 * MS);
            drill.innocent(Cause::SERVICE_WAIT, 5, at - 30 * MS, at);
            drill.innocent(Cause::SERVICE_WAIT, 5, at + 100 * US, at + slept);
            let mut idle = Stall::of_thread(
                LOGGER,
                Cause::SERVICE_WAIT,
                ORIGIN + idle_since,
                ORIGIN + at + 20 * US,
            );
            idle.holder = Some(Holder { tid: Tid(5), tgid: Tgid(1), cgroup: None });
            drill.stalls.push(idle);
            idle_since = at + 60 * MS;
            drill.innocent(Cause::RUNQUEUE_OTHER, LOGGER, at + 20 * US, at + 45 * MS);
            let answer = at + slept + 50 * US;
            drill.served((5, 5), [at, at + 5 * US, answer]);
            at = answer + drill.rng.random_range(300 * MS..500 * MS);
        }
        let analysis = drill.analyse();
        assert_eq!(analysis.check().verdict.top_cause, Some(Cause::SERVICE_WAIT), "{seed}");
        assert!(analysis.of(Cause::RUNQUEUE_OTHER).share < 0.02, "{seed}");
    }
}
