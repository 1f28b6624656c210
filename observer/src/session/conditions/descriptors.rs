//! The open descriptors of the target's processes against their limit, watched through a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Watch;
use super::trend::Trend;
use crate::clock::MonoNanos;
use crate::host::Process;
use crate::host::descriptors::{self, HostFiles};
use crate::model::{Conditions, DescriptorSummary, HostFilesSummary, Tgid};
use crate::pace::rest;
use crate::target::Membership;

/// Processes that are watched at a time.
const WATCHED_MAX: usize = 256;
/// Processes whose descriptors are counted each time, to find those nearest to their limit.
const COUNTED_MAX: usize = 4_096;
/// Processes that are kept.
const KEPT_MAX: usize = 16;
/// Which descriptors are sockets is looked up after this time, and each time of a process about which the
/// report may have something to say.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
const NEAR_LIMIT: f64 = 0.5;

/// A process, which a later one with its id is not.
type Key = (Tgid, u64);

/// The processes that are there, and what came of those that ended.
pub(super) struct DescriptorWatch {
    living: BTreeMap<Key, Watched>,
    /// The nearest to their limit of those that ended.
    ended: Vec<DescriptorSummary>,
    /// Processes that are not kept any more.
    dropped: u64,
    /// Processes for which there was no room, the most at a time.
    unwatched: u64,
    host: Option<HostFilesSummary>,
    next_sample: Instant,
}

impl DescriptorWatch {
    pub(super) fn start() -> Self {
        Self {
            living: BTreeMap::new(),
            ended: Vec::new(),
            dropped: 0,
            unwatched: 0,
            host: None,
            next_sample: Instant::now(),
        }
    }

    /// Takes in one reading of a process. Without room, those nearest to their limit stay.
    fn read(&mut self, process: &Process, open: u64, limit: Option<u64>) -> bool {
        let key = (process.tgid, process.start_ticks);
        if let Some(watched) = self.living.get_mut(&key) {
            watched.read(process, open, limit);
            return true;
        }
        let new = Watched::new(process, open, limit);
        if self.living.len() >= WATCHED_MAX {
            let share = |watched: &Watched| watched.summary.highest_share();
            let farthest =
                self.living.iter().min_by(|one, other| share(one.1).total_cmp(&share(other.1)));
            let Some((farthest, _)) =
                farthest.filter(|(_, farthest)| share(farthest) < share(&new))
            else {
                return false;
            };
            let farthest = *farthest;
            self.living.remove(&farthest);
            self.dropped += 1;
        }
        self.living.insert(key, new);
        true
    }

    /// Keeps what was read of the processes that are not there any more.
    fn end_all_but(&mut self, is_there: impl Fn(Key) -> bool) {
        let gone = self.living.extract_if(.., |key, _| !is_there(*key));
        self.ended
            .extend(gone.map(|(_, watched)| DescriptorSummary { ended: true, ..watched.so_far() }));
        sort(&mut self.ended);
        self.dropped += self.ended.len().saturating_sub(KEPT_MAX) as u64;
        self.ended.truncate(KEPT_MAX);
    }

    fn read_host(&mut self, files: Option<HostFiles>) {
        let Some(HostFiles { open, limit }) = files else { return };
        let host = self
            .host
            .get_or_insert(HostFilesSummary { first: open, ..HostFilesSummary::default() });
        (host.limit, host.last, host.highest) = (limit, open, host.highest.max(open));
    }

    /// Looks up which descriptors are sockets, of the processes that will be kept.
    fn sample(&mut self) {
        let all = Instant::now() >= self.next_sample;
        let mut nearest: Vec<&mut Watched> = self.living.values_mut().collect();
        nearest.sort_by(|one, other| {
            other.summary.highest_share().total_cmp(&one.summary.highest_share())
        });
        for watched in nearest.into_iter().take(KEPT_MAX) {
            let summary = &mut watched.summary;
            let is_due = all
                || summary.sample.is_none()
                || summary.highest_share() >= NEAR_LIMIT
                || watched.trend.growth().is_some_and(|growth| growth.highest_at_end);
            if is_due {
                summary.sample =
                    descriptors::sample(Tgid(summary.tgid), summary.last).or(summary.sample);
            }
        }
        if all {
            self.next_sample = Instant::now() + SAMPLE_INTERVAL;
        }
    }

    /// The processes nearest to their limit, and how many there are besides.
    fn so_far(&self) -> (Vec<DescriptorSummary>, u64) {
        let mut all: Vec<_> =
            self.living.values().map(Watched::so_far).chain(self.ended.iter().cloned()).collect();
        sort(&mut all);
        let beyond = self.dropped + self.unwatched + all.len().saturating_sub(KEPT_MAX) as u64;
        all.truncate(KEPT_MAX);
        (all, beyond)
    }
}

/// Those nearest to their limit first, and of several those that have grown by more.
fn sort(summaries: &mut [DescriptorSummary]) {
    summaries.sort_by(|one, other| {
        let share = other.highest_share().total_cmp(&one.highest_share());
        share.then_with(|| other.highest.cmp(&one.highest)).then_with(|| one.tgid.cmp(&other.tgid))
    });
}

impl Watch for DescriptorWatch {
    fn look(&mut self, membership: &Membership) {
        self.read_host(descriptors::host_files());
        let there: BTreeSet<Key> =
            membership.processes().map(|process| (process.tgid, process.start_ticks)).collect();
        self.end_all_but(|key| there.contains(&key));
        let mut unwatched = 0;
        for (nth, process) in
            membership.processes().filter(|process| !process.kernel_thread).enumerate()
        {
            if nth >= COUNTED_MAX {
                unwatched += 1;
                continue;
            }
            rest();
            // One that is gone keeps what was read before.
            let Some(open) = descriptors::open_descriptors(process.tgid) else { continue };
            let limit = descriptors::descriptor_limit(process.tgid);
            unwatched += u64::from(!self.read(process, open, limit));
        }
        self.unwatched = self.unwatched.max(unwatched);
        self.sample();
    }

    fn note(&self, conditions: &mut Conditions) {
        (conditions.descriptors, conditions.descriptors_beyond) = self.so_far();
        conditions.host_files = self.host;
    }
}

struct Watched {
    first_at: MonoNanos,
    trend: Trend,
    summary: DescriptorSummary,
}

impl Watched {
    fn new(process: &Process, open: u64, limit: Option<u64>) -> Self {
        let summary =
            DescriptorSummary { tgid: process.tgid.0, first: open, ..DescriptorSummary::default() };
        let mut new = Self { first_at: MonoNanos::now(), trend: Trend::new(), summary };
        new.read(process, open, limit);
        new
    }

    fn read(&mut self, process: &Process, open: u64, limit: Option<u64>) {
        let summary = &mut self.summary;
        if summary.name != process.comm {
            summary.name.clone_from(&process.comm);
        }
        summary.limit = limit.or(summary.limit);
        summary.limit_reached |= summary.limit.is_some_and(|limit| open >= limit);
        (summary.last, summary.highest) = (open, summary.highest.max(open));
        summary.observed_ns = MonoNanos::now().since(self.first_at);
        self.trend.add(summary.observed_ns as f64 / 1e9, open);
    }

    fn so_far(&self) -> DescriptorSummary {
        DescriptorSummary { growth: self.trend.growth(), ..self.summary.clone() }
    }
}

#[cfg(test)]
#[path = "descriptors_tests.rs"]
mod tests;
