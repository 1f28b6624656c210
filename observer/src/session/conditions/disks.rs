//! The disks of the host, and what the target reads and writes, watched through a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Watch;
use crate::clock::MonoNanos;
use crate::host::Process;
use crate::host::disks::{self, DiskBytes, DiskCounters, DiskRequests};
use crate::host::process::uptime;
use crate::model::{Conditions, DiskBytesSummary, DiskRequestsSummary, DiskSummary, Tgid};
use crate::pace::rest;
use crate::target::Membership;

/// Disks that are kept.
const KEPT_MAX: usize = 16;
/// Disks that are watched: the kernel's list may be long.
const WATCHED_MAX: usize = 256;
/// Processes of the target whose bytes are read.
const PROCESSES_MAX: usize = 256;
/// Two readings that are nearer say little about how busy a disk was between them: the kernel counts in
/// clock ticks.
const SHARE_NS: u64 = 500_000_000;

/// The disks, and the processes of the target.
pub(super) struct DiskWatch {
    disks: BTreeMap<String, Watched>,
    /// Disks for which there was no room, the most at a time.
    unwatched: u64,
    processes: BTreeMap<(Tgid, u64), WatchedProcess>,
    /// What those did that are not there any more.
    ended: DiskBytesSummary,
    /// The bytes of at least one process could be read.
    is_readable: bool,
    /// When the watch began, on the clock `CLOCK_BOOTTIME`.
    began: Duration,
}

impl DiskWatch {
    pub(super) fn start() -> Self {
        let mut watch = Self {
            disks: BTreeMap::new(),
            unwatched: 0,
            processes: BTreeMap::new(),
            ended: DiskBytesSummary::default(),
            is_readable: false,
            began: uptime(),
        };
        watch.read_disks(disks::disks().unwrap_or_default(), MonoNanos::now(), true);
        watch
    }

    /// Takes in one reading of the disks. What one has counted before it is watched does not count, unless it has
    /// come during the run.
    fn read_disks(&mut self, found: Vec<(String, DiskCounters)>, now: MonoNanos, is_first: bool) {
        let mut unwatched = 0;
        for (name, counters) in found {
            if let Some(watched) = self.disks.get_mut(&name) {
                watched.read(counters, now);
            } else if self.disks.len() < WATCHED_MAX {
                let before = if is_first { counters } else { DiskCounters::default() };
                let mut watched = Watched::new(&name, before, now);
                watched.read(counters, now);
                self.disks.insert(name, watched);
            } else {
                unwatched += 1;
            }
        }
        self.unwatched = self.unwatched.max(unwatched);
    }

    /// Takes in one reading of a process. What it did before it was watched does not count, unless it began during
    /// the run.
    fn read_process(&mut self, process: &Process, bytes: DiskBytes, is_new: bool) {
        self.is_readable = true;
        let first = if is_new { DiskBytes::default() } else { bytes };
        let key = (process.tgid, process.start_ticks);
        let new = WatchedProcess { first, last: bytes, parent: process.parent };
        let watched = self.processes.entry(key).or_insert(new);
        (watched.last, watched.parent) = (bytes, process.parent);
    }

    /// What a process has done counts for its parent when that has waited for its end
    /// (`wait_task_zombie`, kernel/exit.c), so that it is kept here for parents outside of the target only.
    fn end_all_but(&mut self, is_there: impl Fn(&(Tgid, u64)) -> bool) {
        let gone: Vec<_> = self.processes.extract_if(.., |key, _| !is_there(key)).collect();
        let parents: BTreeSet<Tgid> = self.processes.keys().map(|(tgid, _)| *tgid).collect();
        for (_, process) in gone.iter().filter(|(_, process)| !parents.contains(&process.parent)) {
            process.add_to(&mut self.ended);
        }
    }

    /// The disks that did anything, those first that were busy for longest, and how many there are besides.
    fn so_far(&self) -> (Vec<DiskSummary>, u64) {
        let summaries = self.disks.values().map(|watched| &watched.summary);
        let mut used: Vec<_> = summaries
            .filter(|disk| disk.reads.count + disk.writes.count + disk.flushes.count > 0)
            .cloned()
            .collect();
        used.sort_by_key(|disk| std::cmp::Reverse((disk.busy_ms, disk.queued_ms)));
        let beyond = self.unwatched + used.len().saturating_sub(KEPT_MAX) as u64;
        used.truncate(KEPT_MAX);
        (used, beyond)
    }

    fn bytes(&self) -> Option<DiskBytesSummary> {
        let mut sum = self.ended;
        self.processes.values().for_each(|process| process.add_to(&mut sum));
        self.is_readable.then_some(sum)
    }
}

/// What a process had read and written before, and at the last reading.
#[derive(Clone, Copy)]
struct WatchedProcess {
    first: DiskBytes,
    last: DiskBytes,
    parent: Tgid,
}

impl WatchedProcess {
    fn add_to(&self, sum: &mut DiskBytesSummary) {
        let Self { first, last, .. } = self;
        sum.read = sum.read.saturating_add(last.read.saturating_sub(first.read));
        sum.written = sum.written.saturating_add(last.written.saturating_sub(first.written));
    }
}

impl Watch for DiskWatch {
    fn look(&mut self, membership: &Membership) {
        if let Some(found) = disks::disks() {
            self.read_disks(found, MonoNanos::now(), false);
        }
        let own = membership.processes().filter(|process| !process.kernel_thread);
        let own: Vec<_> = own.take(PROCESSES_MAX).collect();
        let there: BTreeSet<_> =
            own.iter().map(|process| (process.tgid, process.start_ticks)).collect();
        self.end_all_but(|key| there.contains(key));
        for process in own {
            rest();
            if let Some(bytes) = disks::of_process(process.tgid) {
                self.read_process(process, bytes, process.started() >= self.began);
            }
        }
    }

    fn note(&self, conditions: &mut Conditions) {
        (conditions.disks, conditions.disks_beyond) = self.so_far();
        conditions.disk_bytes = self.bytes();
    }
}

struct Watched {
    last: DiskCounters,
    first_at: MonoNanos,
    /// Since when the part of the time is measured in which it is busy, and for how long it was.
    busy_since: (MonoNanos, u64),
    summary: DiskSummary,
}

impl Watched {
    fn new(name: &str, before: DiskCounters, now: MonoNanos) -> Self {
        let summary = DiskSummary { disk: name.to_owned(), ..DiskSummary::default() };
        Self { last: before, first_at: now, busy_since: (now, 0), summary }
    }

    fn read(&mut self, now: DiskCounters, at: MonoNanos) {
        // One that was taken away and came again counts from 0.
        let was_replaced =
            now.reads.count < self.last.reads.count || now.writes.count < self.last.writes.count;
        let before = if was_replaced { DiskCounters::default() } else { self.last };
        let summary = &mut self.summary;
        for (sum, now, before) in [
            (&mut summary.reads, now.reads, before.reads),
            (&mut summary.writes, now.writes, before.writes),
            (&mut summary.flushes, now.flushes, before.flushes),
        ] {
            add_requests(sum, now, before);
        }
        let busy_ms = u64::from(now.busy_ms.wrapping_sub(before.busy_ms));
        summary.busy_ms += busy_ms;
        summary.queued_ms += u64::from(now.queued_ms.wrapping_sub(before.queued_ms));
        summary.observed_ns = at.since(self.first_at);
        self.busy_since.1 += busy_ms;
        let since_ns = at.since(self.busy_since.0);
        if since_ns >= SHARE_NS {
            let share = self.busy_since.1 as f64 * 1e6 / since_ns as f64;
            summary.busiest_share = summary.busiest_share.max(share.min(1.0));
            self.busy_since = (at, 0);
        }
        self.last = now;
    }
}

fn add_requests(sum: &mut DiskRequestsSummary, now: DiskRequests, before: DiskRequests) {
    sum.count = sum.count.saturating_add(now.count.saturating_sub(before.count));
    sum.bytes = sum.bytes.saturating_add(now.bytes.saturating_sub(before.bytes));
    sum.time_ms += u64::from(now.time_ms.wrapping_sub(before.time_ms));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn counters(count: u64, ms: u32) -> DiskCounters {
        let of = |count| DiskRequests { count, bytes: count * 512, time_ms: ms };
        DiskCounters {
            reads: of(count),
            writes: of(2 * count),
            flushes: DiskRequests { count: 0, bytes: 0, time_ms: 0 },
            busy_ms: ms,
            queued_ms: ms.wrapping_mul(3),
        }
    }

    fn watch(readings: &[(u64, &[(&str, DiskCounters)])]) -> DiskWatch {
        let mut watch = DiskWatch { disks: BTreeMap::new(), ..DiskWatch::start() };
        for (nth, (at, found)) in readings.iter().enumerate() {
            let found = found.iter().map(|(name, counters)| ((*name).to_owned(), *counters));
            watch.read_disks(found.collect(), MonoNanos(at * SECOND), nth == 0);
        }
        watch
    }

    #[test]
    fn what_was_counted_before_does_not_count_and_numbers_may_wrap() {
        let late = u32::MAX - 99;
        let watch = watch(&[
            (10, &[("vda", counters(5, late)), ("idle", counters(7, 7))]),
            (11, &[("vda", counters(8, late.wrapping_add(300))), ("idle", counters(7, 7))]),
            (12, &[("vda", counters(9, late.wrapping_add(1_200))), ("new", counters(4, 20))]),
        ]);
        let (disks, beyond) = watch.so_far();
        let [vda, new] = &disks[..] else { panic!("{disks:?}") };
        assert_eq!((vda.disk.as_str(), new.disk.as_str(), beyond), ("vda", "new", 0));
        assert_eq!((vda.reads.count, vda.reads.bytes, vda.reads.time_ms), (4, 2_048, 1_200));
        assert_eq!((vda.writes.count, vda.busy_ms, vda.queued_ms), (8, 1_200, 3_600));
        assert_eq!((vda.observed_ns, vda.busy_share(), vda.mean_queue()), (2 * SECOND, 0.6, 1.8));
        assert_eq!(vda.busiest_share, 0.9);
        assert_eq!(vda.reads.mean_ns(), Some(3e8));
        assert_eq!((new.reads.count, new.flushes.mean_ns()), (4, None));
    }

    #[test]
    fn a_disk_that_comes_again_counts_from_0_and_a_list_without_end_is_bounded() {
        let many: Vec<String> = (0..300).map(|nth| format!("disk{nth}")).collect();
        let all: Vec<_> = many.iter().map(|name| (name.as_str(), counters(1, 1))).collect();
        let again = [("disk0", counters(9, 900))];
        let replaced = [("disk0", counters(2, 10))];
        let later: Vec<_> = many.iter().map(|name| (name.as_str(), counters(3, 3))).collect();
        let watch = watch(&[(1, &all), (2, &again), (3, &replaced), (4, &later)]);
        let (disks, beyond) = watch.so_far();
        assert_eq!(disks.len(), KEPT_MAX);
        assert_eq!(beyond, 300 - KEPT_MAX as u64);
        assert_eq!((disks[0].disk.as_str(), disks[0].reads.count), ("disk0", 8 + 2 + 1));
    }

    #[test]
    fn processes_that_have_ended_keep_what_they_did_unless_their_parent_has_it() {
        let mut watch = DiskWatch::start();
        assert_eq!(watch.bytes(), None);
        let bytes = |read, written| DiskBytes { read, written };
        let process = |tgid, start_ticks, parent| Process {
            tgid: Tgid(tgid),
            start_ticks,
            parent: Tgid(parent),
            comm: String::new(),
            kernel_thread: false,
        };
        let sum = |read, written| Some(DiskBytesSummary { read, written });
        watch.read_process(&process(1, 5, 0), bytes(100, 10), false);
        watch.read_process(&process(1, 5, 0), bytes(150, 10), false);
        watch.read_process(&process(2, 6, 1), bytes(1_000, 0), true);
        assert_eq!(watch.bytes(), sum(1_050, 0));
        watch.end_all_but(|(tgid, _)| *tgid == Tgid(1));
        watch.read_process(&process(1, 5, 0), bytes(1_150, 10), false);
        assert_eq!(watch.bytes(), sum(1_050, 0));
        watch.end_all_but(|_| false);
        // Another process with its number, which began later.
        watch.read_process(&process(1, 9, 0), bytes(7, 8), true);
        watch.read_process(&process(1, 9, 0), bytes(8, 10), true);
        assert_eq!(watch.bytes(), sum(1_058, 10));
    }
}
