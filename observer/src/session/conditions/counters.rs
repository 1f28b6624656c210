//! The counters of the target's threads (perf events), read through a run.
//!
//! Each thread that is there when its process joins the target gets counters. What it starts later inherits them in
//! the kernel, so nothing that it starts is missed, however short it lives, and one descriptor for each counter of
//! such a thread is enough. A process that the target forked is counted that way; any other one that joins gets
//! counters when it is found.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

use super::Watch;
use crate::clock::MonoNanos;
use crate::host::perf_counters::{self, CounterKind, Reading, ThreadCounters, why_not};
use crate::host::{Process, process};
use crate::limits;
use crate::model::{Conditions, CounterGap, CounterSummary, CountersSummary, Tgid, Tid, WhyNot};
use crate::pace::rest;
use crate::target::Membership;

/// Threads may start while those that are there get counters. They are then listed again, at most so often.
const ATTEMPTS: usize = 5;
/// The counters of processes are given up when no process is left that could count with them, for so long, because
/// one that was just forked may not be known yet. What is known of a process is kept for as long after its end.
const GRACE: Duration = Duration::from_secs(10);

/// A thread with its process.
type Task = (Tgid, Tid);

/// A process that joined by itself, with the threads that it and its children had then.
struct Root {
    threads: Vec<Counted>,
    /// Since when there is no process that could count with them.
    over: Option<Instant>,
}

/// The counters of a thread with the last reading of each.
struct Counted {
    counters: ThreadCounters,
    last: Vec<Reading>,
}

/// A process whose threads count, or cannot.
struct Known {
    start_ticks: u64,
    /// With whose counters; `None` where its parent was gone before it was looked at.
    root: Option<u64>,
    /// Since when it has been gone. Its children may not have been looked at yet.
    gone: Option<Instant>,
}

/// The counters of the target.
pub(super) struct CounterWatch {
    kinds: Vec<&'static CounterKind>,
    roots: BTreeMap<u64, Root>,
    known: BTreeMap<Tgid, Known>,
    descriptors_left: u64,
    /// What they counted, in the order of the kinds.
    sums: Vec<Reading>,
    begun: MonoNanos,
    has_begun: bool,
    summary: CountersSummary,
}

impl CounterWatch {
    pub(super) fn start() -> Self {
        let (mut kinds, mut unsupported) = (Vec::new(), Vec::new());
        for (kind, tried) in perf_counters::try_all() {
            match tried {
                Ok(()) => kinds.push(kind),
                Err(why) => unsupported.push(CounterGap { name: kind.name.to_owned(), why }),
            }
        }
        Self {
            sums: vec![Reading::default(); kinds.len()],
            kinds,
            roots: BTreeMap::new(),
            known: BTreeMap::new(),
            descriptors_left: limits::for_counters(getrlimit(Resource::Nofile).current),
            begun: MonoNanos::now(),
            has_begun: false,
            summary: CountersSummary { unsupported, ..CountersSummary::default() },
        }
    }

    /// Gives counters to the processes that joined without being forked by the target.
    fn join(&mut self, membership: &Membership) {
        let is_new = |known: &BTreeMap<Tgid, Known>, process: &Process| {
            known.get(&process.tgid).is_none_or(|known| known.start_ticks != process.start_ticks)
        };
        let new = membership.processes().filter(|process| is_new(&self.known, process));
        // Before the first reading, nothing could be inherited.
        let (forked, roots): (Vec<&Process>, Vec<&Process>) =
            new.partition(|process| self.has_begun && membership.was_forked(process.tgid));
        if !roots.is_empty() {
            self.summary.processes_late += if self.has_begun { roots.len() as u64 } else { 0 };
            self.count(&roots.iter().map(|process| process.tgid).collect());
        }
        for process in forked {
            // It may have been a child of one that has just got counters, and have got some itself.
            if is_new(&self.known, process) {
                let root = self.known.get(&process.parent).and_then(|parent| parent.root);
                let known = Known { start_ticks: process.start_ticks, root, gone: None };
                self.known.insert(process.tgid, known);
            }
        }
    }

    /// Gives counters to the threads of these processes and of all that descend from them.
    fn count(&mut self, processes: &BTreeSet<Tgid>) {
        let mut families = BTreeMap::new();
        let (opened, unsure) = settle(
            || {
                families = family(processes);
                families
                    .keys()
                    .flat_map(|tgid| process::threads(*tgid).into_iter().map(|tid| (*tgid, tid)))
                    .collect()
            },
            |tasks| open(&self.kinds, tasks, self.descriptors_left),
        );
        let Opened { threads, not_counted } = opened;
        self.descriptors_left -= (threads.len() * self.kinds.len()) as u64;
        self.summary.threads += threads.len() as u64;
        self.summary.threads_unsure += unsure as u64;
        for (why, count) in not_counted {
            *self.summary.threads_not_counted.entry(why).or_default() += count;
        }
        let id = self.roots.last_key_value().map_or(0, |(last, _)| last + 1);
        self.roots.insert(id, Root { threads, over: None });
        for (tgid, start_ticks) in families {
            self.known.insert(tgid, Known { start_ticks, root: Some(id), gone: None });
        }
    }

    fn read(&mut self) {
        for thread in self.roots.values_mut().flat_map(|root| &mut root.threads) {
            rest();
            let readings = thread.counters.read();
            for ((sum, last), now) in self.sums.iter_mut().zip(&mut thread.last).zip(readings) {
                if let Some(now) = now {
                    add(sum, last, now);
                }
            }
        }
        self.summary.observed_ns = MonoNanos::now().since(self.begun);
    }

    /// Closes the counters with which no process counts any more. To be called after they were read.
    fn give_up(&mut self, membership: &Membership) {
        let now = Instant::now();
        let living: BTreeSet<Option<u64>> = membership
            .processes()
            .filter_map(|process| self.known.get(&process.tgid))
            .map(|known| known.root)
            .collect();
        for (id, root) in &mut self.roots {
            let lives = living.contains(&Some(*id)) || living.contains(&None);
            root.over = if lives { None } else { root.over.or(Some(now)) };
        }
        let is_over = |root: &Root| root.over.is_some_and(|since| now - since >= GRACE);
        let over = self.roots.extract_if(.., |_, root| is_over(root));
        let closed: usize = over.map(|(_, root)| root.threads.len()).sum();
        self.descriptors_left += (closed * self.kinds.len()) as u64;
        self.known.retain(|tgid, known| {
            let is_there = membership.contains(*tgid);
            known.gone = if is_there { None } else { known.gone.or(Some(now)) };
            known.gone.is_none_or(|since| now - since < GRACE)
        });
    }

    fn so_far(&self) -> CountersSummary {
        let by = self.kinds.iter().zip(&self.sums).map(|(kind, sum)| CounterSummary {
            name: kind.name.to_owned(),
            count: sum.count,
            enabled_ns: sum.enabled_ns,
            running_ns: sum.running_ns,
        });
        CountersSummary { by: by.collect(), ..self.summary.clone() }
    }
}

impl Watch for CounterWatch {
    fn welcome(&mut self, membership: &Membership) {
        self.join(membership);
        if !self.has_begun {
            (self.has_begun, self.begun) = (true, MonoNanos::now());
        }
    }

    fn look(&mut self, membership: &Membership) {
        self.read();
        self.give_up(membership);
    }

    fn note(&self, conditions: &mut Conditions) {
        conditions.counters = Some(self.so_far());
    }
}

/// Adds what a counter counted since its last reading. Of a part of the time, it is taken to have counted the same in
/// the rest; without any part, the next reading tells.
fn add(sum: &mut Reading, last: &mut Reading, now: Reading) {
    let count = now.count.saturating_sub(last.count);
    let enabled_ns = now.enabled_ns.saturating_sub(last.enabled_ns);
    let running_ns = now.running_ns.saturating_sub(last.running_ns);
    let whole = match (enabled_ns, running_ns) {
        (1.., 0) => return,
        (_, 0) => count,
        _ => {
            let whole = u128::from(count) * u128::from(enabled_ns) / u128::from(running_ns);
            u64::try_from(whole).unwrap_or(u64::MAX)
        }
    };
    sum.count = sum.count.saturating_add(whole);
    sum.enabled_ns = sum.enabled_ns.saturating_add(enabled_ns);
    sum.running_ns = sum.running_ns.saturating_add(running_ns);
    *last = now;
}

/// Opens counters for the threads that `list` gives, again and again until it gives no further thread: one that
/// started meanwhile may have inherited counters or not. Returns what was opened at last, and how many such threads
/// there were then.
fn settle<T>(
    mut list: impl FnMut() -> BTreeSet<Task>,
    mut open: impl FnMut(&BTreeSet<Task>) -> T,
) -> (T, usize) {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let tasks = list();
        let opened = open(&tasks);
        let unsure = list().difference(&tasks).count();
        attempts.next();
        if unsure == 0 || attempts.is_empty() {
            return (opened, unsure);
        }
    }
}

#[derive(Default)]
struct Opened {
    threads: Vec<Counted>,
    not_counted: BTreeMap<WhyNot, u64>,
}

fn open(kinds: &[&'static CounterKind], tasks: &BTreeSet<Task>, descriptors: u64) -> Opened {
    let mut opened = Opened::default();
    for (_, tid) in tasks {
        rest();
        let used = ((opened.threads.len() + 1) * kinds.len()) as u64;
        let counters = match used <= descriptors {
            true => ThreadCounters::open(kinds, *tid),
            false => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        match counters {
            Ok(counters) => {
                let last = vec![Reading::default(); kinds.len()];
                opened.threads.push(Counted { counters, last });
            }
            // It has exited.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => *opened.not_counted.entry(why_not(&error)).or_default() += 1,
        }
    }
    opened
}

/// These processes and all that descend from them, with their start times.
fn family(processes: &BTreeSet<Tgid>) -> BTreeMap<Tgid, u64> {
    let ids = process::all_ids().into_iter().inspect(|_| rest());
    let mut all: Vec<Process> = ids.filter_map(Process::read).collect();
    // Parents before their children.
    all.sort_by_key(|process| (process.start_ticks, process.tgid));
    let mut family = BTreeMap::new();
    for process in all {
        let is_own = process.tgid.0 == std::process::id();
        let is_in = processes.contains(&process.tgid) || family.contains_key(&process.parent);
        if is_in && !is_own {
            family.insert(process.tgid, process.start_ticks);
        }
    }
    family
}

#[cfg(test)]
#[path = "counters_tests.rs"]
mod tests;
