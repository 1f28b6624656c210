//! Attribution: splits the latency of the slow requests into causes and an honest rest.
//!
//! [`analyse`] is pure and deterministic. In short: samples are matched with the requests that the
//! target's sockets saw (`matching`), stalls become disjoint intervals per cause (`timeline`: the
//! innermost of a thread has it), those of the threads that served the request, or of all threads
//! where that is not known, count for it (`lines`), each sample's exposure to each cause is measured
//! (`exposure`), exposure becomes a share of the excess latency (`share`),
//! random shifts say how likely coincidence is (`shift`), blocks of time drawn again say how
//! exact the share is (`bootstrap`), and `verdict` decides whether the evidence allows an
//! answer at all.
//!
//! Where it is known which threads served the requests and when these slept, all of a request's time
//! has a cause (`account`), and the queue of each thread is replayed without a cause (`without`).
//!
//! Known limit: where stalls of all threads count, requests that arrive after a stall ended and wait
//! in the queue it left behind are not exposed to it; their excess stays unexplained.

mod absences;
mod account;
#[cfg(test)]
mod account_drills;
mod agreement;
mod arrivals;
mod aside;
#[cfg(test)]
mod aside_drills;
mod asked;
#[cfg(test)]
mod asked_drills;
mod attribute;
#[cfg(test)]
mod batch_drills;
mod batches;
mod blocks;
mod bootstrap;
#[cfg(test)]
mod clock_drills;
mod clock_error;
mod closed_loop;
mod contention;
#[cfg(test)]
mod contention_drills;
mod counted;
mod drift;
#[cfg(test)]
mod drift_drills;
#[cfg(test)]
mod drill;
#[cfg(test)]
mod drills;
mod exposure;
mod handing;
#[cfg(test)]
mod hard_drills;
mod held_replies;
mod innermost;
mod lines;
mod locks;
#[cfg(test)]
mod locks_drills;
mod loss;
#[cfg(test)]
mod loss_drills;
mod matching;
mod multiplexed;
mod objects;
mod order;
#[cfg(test)]
mod order_drills;
mod pairing;
mod relay;
#[cfg(test)]
mod relay_drills;
mod segments;
#[cfg(test)]
mod served_drills;
mod share;
mod shift;
mod short;
#[cfg(test)]
mod short_drills;
mod siblings;
#[cfg(test)]
mod siblings_drills;
mod single;
#[cfg(test)]
mod single_drills;
mod strangers;
mod timeline;
mod tracking;
mod trips;
mod turn;
mod usual;
mod verdict;
mod without;
mod worst;

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

pub use absences::{Absences, Part, ThreadTimes};
pub use arrivals::place_by_arrivals;
pub use drift::take_out_drift;
pub use objects::ObjectTime;
pub use short::Short;
pub use single::{Chosen, choose};
pub use worst::{Longest, slowest};

use asked::Asked;
use handing::Handing;
use timeline::Timelines;
use without::Replay;

use crate::clock::MonoNanos;
use crate::model::{
    Accounts, Cause, CauseSummary, LossSpan, Outcome, OutgoingRequest, RequestsSummary, RuledOut,
    Sample, SamplesSummary, ServerRequest, SlowRequest, SlowSpec, Stall, Verdict, Without,
};

/// The same evidence gives the same answer.
const SEED: u64 = 0x6f62_7365_7276_6572;

/// The input of attribution.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// First and last instant in which every probe was attached.
    pub window: (MonoNanos, MonoNanos),
    /// The generator's samples, any order.
    pub samples: &'a [Sample],
    /// The requests that the target's sockets saw, any order; empty where they were not watched.
    pub requests: &'a [ServerRequest],
    /// The requests that the target made of other services, any order.
    pub outgoing: &'a [OutgoingRequest],
    /// The target's stalls, any order.
    pub stalls: &'a [Stall],
    /// Which samples are slow.
    pub slow: SlowSpec,
    /// The data that decides whether a verdict is possible.
    pub quality: Quality,
}

/// How good the evidence is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quality {
    /// The target's losses by kind ([`crate::model::LossSummary::of_target`]).
    pub lost_of_target: BTreeMap<String, u64>,
    /// When they happened, where that is known. A kind whose spans sum to less than its loss may
    /// have been lost at any moment.
    pub loss_spans: Vec<LossSpan>,
    /// Waits of the target for a CPU, recorded or not; 0 where that is not known.
    pub target_waits: u64,
    /// Maximum difference between the samples' clock and the kernel's, nanoseconds.
    pub clock_uncertainty_ns: u64,
    /// Steps of the wall clock during the run.
    pub wall_clock_steps: usize,
    /// The samples' times were converted from the wall clock.
    pub samples_on_wall_clock: bool,
    /// Causes whose stalls could not be seen.
    pub unwatched: Vec<Unwatched>,
    /// Kinds of record whose floor rose during the run.
    pub hidden: Vec<Hidden>,
    /// Stalls below the floor of their kind; empty where that is not known.
    pub short: Vec<Short>,
    /// What observer itself took.
    pub own_cpu: OwnCpu,
    /// Rows of the generator's output that could not be used.
    pub skipped_samples: u64,
    /// There were so many requests that only those of some blocks of time were recorded.
    pub requests_in_blocks: bool,
    /// The sleeps of threads that serve requests were watched during the whole run.
    pub sleeps_watched: bool,
}

/// CPU time that observer used, as a share of what the target could have had, 0 to 1. It may have been taken
/// on other CPUs: these are upper bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OwnCpu {
    /// Its threads. Where the target waits for a CPU that they have, that is a stall like any other.
    pub threads: f64,
    /// Its BPF programs, in the time of the threads that they watch.
    pub programs: f64,
}

impl Quality {
    /// Whether it is known when threads that serve requests slept.
    #[must_use]
    pub fn has_sleeps(&self) -> bool {
        self.sleeps_watched && !self.hidden.iter().any(|one| one.is_of(Cause::SERVICE_WAIT))
    }
}

/// A cause whose stalls could not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwatched {
    /// The cause.
    pub cause: Cause,
    /// Why (the coverage of its probe).
    pub reason: String,
    /// A run watches it unless something prevents that: without it, an answer is in doubt.
    pub usual: bool,
}

/// Stalls that were too short to be recorded while a floor was raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// Kind of record.
    pub kind: String,
    /// Highest floor.
    pub floor_ns: u64,
    /// How long it was raised.
    pub raised_for_ns: u64,
    /// Total length of what went unrecorded in that time.
    pub hidden_ns: u64,
}

impl Hidden {
    /// Whether the intervals of this cause come as this kind of record.
    fn is_of(&self, cause: Cause) -> bool {
        cause.comes_as(&self.kind)
    }
}

/// Input that took no part in the analysis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Samples that are not completely within the window: stalls outside it were not watched.
    pub samples_outside_window: u64,
    /// Samples that end before they begin.
    pub samples_reversed: u64,
    /// Stalls completely outside the window.
    pub stalls_outside_window: u64,
    /// Stalls of no length, or that end before they begin.
    pub stalls_empty_or_reversed: u64,
    /// Stalls whose cause is no stall of this version.
    pub stalls_without_kernel_cause: u64,
}

/// The answer and the data behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Analysis {
    /// The answer.
    pub verdict: Verdict,
    /// Causes with at least one stall (and the load generator where lateness is known), largest
    /// share first, the unexplained rest last. The shares of the named ones and the rest sum to
    /// 1; the share of a cause that is not named is an estimate within the rest. Empty when there
    /// is nothing to explain or nothing to compare.
    pub causes: Vec<CauseSummary>,
    /// Of causes with stalls that say in what they waited, or for whom: these, largest part of the slow
    /// requests first.
    pub objects: BTreeMap<Cause, Vec<ObjectTime>>,
    /// Causes that were watched and are excluded; empty unless the answer is conclusive.
    pub ruled_out: Vec<RuledOut>,
    /// Everything but `skipped`, which only the reader of the generator's output knows.
    pub samples: SamplesSummary,
    /// How the samples were matched with the requests that the target served.
    pub requests: RequestsSummary,
    /// Where the time of the slow and of the typical requests went; `None` where that is not known.
    pub account_ns: Option<Accounts>,
    /// The p99 without all named causes; `None` where that is not known, or none is named.
    pub without_named: Option<Without>,
    /// Mean nanoseconds of slow and of typical requests for which the kernel held back the rest of a reply that was written
    /// in parts (Nagle's algorithm and delayed ACK): a part of the cause `network`. `None` if it held none back.
    pub held_replies_ns: Option<[u64; 2]>,
    /// The slowest requests, each with the stalls that overlap it most.
    pub slowest_requests: Vec<SlowRequest>,
    /// Episodes the slow samples came in.
    pub episodes: u64,
    /// Input that took no part.
    pub ignored: Ignored,
}

/// Splits the latency of the slow samples into causes.
#[must_use]
pub fn analyse(evidence: &Evidence<'_>) -> Analysis {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut ignored = Ignored::default();
    let by_thread = !evidence.requests.is_empty();
    let mut timelines = Timelines::new(evidence.stalls, evidence.window, by_thread, &mut ignored);
    let losses = loss::judge(evidence, &timelines);
    let united = timelines.take_united();
    let handing = Handing::new(evidence, &timelines);
    locks::follow(evidence, &mut timelines, &handing);
    let timelines = timelines;
    let clock_uncertainty_ns = evidence.quality.clock_uncertainty_ns;
    let matching = matching::find(evidence.samples, evidence.requests, clock_uncertainty_ns);
    let population =
        exposure::population(evidence, &handing, &losses, &matching, &mut rng, &mut ignored);
    let stalls = match population.lines.is_empty() {
        true => timelines.on_one_line(united),
        false => {
            drop(united);
            timelines.on_lines(&population.lines, &handing.siblings, &handing.asides)
        }
    };
    let mut found = attribute::Found::default();
    let mut ruled_out = Vec::new();
    let mut verdict = match verdict::nothing_to_explain(evidence, &population, &losses) {
        Some(verdict) => verdict,
        None => {
            let window_ns = evidence.window.1.since(evidence.window.0);
            found = attribute::attribute(&population, &stalls, window_ns, &mut rng);
            let mut verdict = verdict::decide(evidence, &population, &losses, &mut found);
            if verdict.outcome != Outcome::Inconclusive {
                let short = short::weigh(evidence, &population, &found);
                ruled_out = verdict::ruled_out(evidence, &stalls, &losses, &found, &short);
                verdict.reasons.extend(short.into_iter().map(|one| one.reason));
            }
            verdict
        }
    };
    verdict.reasons.splice(0..0, verdict::failed(&population.summary));
    if !found.causes.is_empty() {
        verdict.reasons.extend(counted::counted(&population));
        verdict.reasons.extend(counted::multiplexed(matching.summary()));
        if verdict.outcome != Outcome::Inconclusive {
            verdict.reasons.extend(verdict::about_few(&population, &found));
        }
    }
    verdict.reasons.extend(verdict::notes(evidence, &population, &ignored));
    let attribute::Found { mut causes, episodes, block_ns, .. } = found;
    let account_ns = account::means(&population, &stalls);
    // The slowest requests have lines of their own, and a replay needs the memory.
    drop(stalls);
    let by_thread = population.counted.is_some_and(|counted| counted.by_thread);
    let without_named = causes
        .iter()
        .any(|cause| cause.named && by_thread)
        .then(|| Replay::new(evidence, &timelines, &handing, &matching, block_ns))
        .flatten()
        .and_then(|replay| replay.without_named(&mut causes, &mut rng));
    let asked = Asked::new(evidence);
    let objects = match causes.is_empty() {
        true => BTreeMap::new(),
        false => objects::find(evidence, &population, &timelines, &handing, &asked),
    };
    let held_replies_ns = held_replies::means(evidence, &population);
    let slowest_requests =
        single::slowest_requests(evidence, &matching, (&timelines, &handing), &asked);
    Analysis {
        account_ns,
        without_named,
        slowest_requests,
        verdict,
        causes,
        objects,
        held_replies_ns,
        ruled_out,
        samples: population.summary,
        requests: matching.summary(),
        episodes,
        ignored,
    }
}
