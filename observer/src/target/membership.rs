//! The processes of the target, as they start and exit.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::TargetError;
use super::liveness::{Watched, gone};
use super::spec::{Matcher, TargetSpec};
use crate::host::network::Listeners;
use crate::host::{Owners, Process, process, system, usage};
use crate::model::{Joining, Owner, Tgid, by_owner};
use crate::pace::rest;

/// Pause between two scans of `/proc` while the target runs.
const SCAN_INTERVAL: Duration = Duration::from_millis(200);
/// The pause with `--pid`.
const CHILDREN_INTERVAL: Duration = Duration::from_secs(1);
/// The pause while no process was born on the host: a living process may still change its name, its
/// cgroup or its port.
const QUIET_INTERVAL: Duration = Duration::from_secs(2);
/// That pause with `--port`: only a process that was there before and begins to listen waits for it.
const QUIET_PORT_INTERVAL: Duration = Duration::from_secs(10);
/// Pause between two scans while observer waits for the target.
const WAIT_INTERVAL: Duration = Duration::from_millis(50);
/// Scans may take at most one part in this many of a processor's time: a host with 100,000
/// processes is scanned less often, so that it is not disturbed. (116 processes take about 1 ms.)
const SCAN_SHARE: u32 = 300;
/// One part in this many, if the pause would otherwise become longer than [`QUIET_INTERVAL`].
const SCAN_SHARE_MAX: u32 = 100;
/// One part in this many while observer waits for the target, when there is nothing to disturb yet.
const WAIT_SHARE: u32 = 20;
/// A process younger than this is checked each time: a service is often forked by a shell or a
/// manager under another name and executes its program a moment later.
const SETTLING: Duration = Duration::from_secs(5);
/// Of the older ones, this many are checked each time, in turn.
const RECHECKED: usize = 32;
/// Handles on processes: below the usual limit of 1024 descriptors.
const PIDFDS_MAX: usize = 512;

/// What [`Membership::poll`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Processes that belong to the target now.
    pub joined: Vec<Process>,
    /// Processes of the target that are gone.
    pub left: Vec<Tgid>,
}

impl Changes {
    /// Nothing changed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.joined.is_empty() && self.left.is_empty()
    }
}

/// A process that was checked and is not part of the target.
#[derive(Debug)]
struct Stranger {
    start_ticks: u64,
    /// When it is old enough to be checked rarely; `None` if it was old when it was first seen.
    settled: Option<Instant>,
}

impl Stranger {
    /// A process that is seen for the first time.
    fn new(process: &Process, now: Instant, uptime: Duration) -> Self {
        let age = uptime.saturating_sub(process.started());
        Self { start_ticks: process.start_ticks, settled: (age < SETTLING).then(|| now + SETTLING) }
    }

    fn is_settling(&self, now: Instant) -> bool {
        self.settled.is_some_and(|settled| now < settled)
    }
}

/// How long to wait after a scan of this duration.
fn pause(look: Duration) -> Duration {
    let at_most = QUIET_INTERVAL.max(look.saturating_mul(SCAN_SHARE_MAX));
    look.saturating_mul(SCAN_SHARE).clamp(SCAN_INTERVAL, at_most)
}

/// The processes of the target now: those that match, and their descendants.
///
/// A member stays one until it exits, whatever it executes and wherever it is moved.
#[derive(Debug)]
pub struct Membership {
    spec: TargetSpec,
    /// Processes are not checked one by one with `--pid`, `--cgroup` and `--port`.
    matcher: Option<Matcher>,
    members: BTreeMap<Tgid, Watched>,
    excluded: HashMap<Tgid, Process>,
    strangers: HashMap<Tgid, Stranger>,
    recheck_from: Tgid,
    next_scan: Instant,
    /// When to scan even if no process was born; `None` if such a scan would find nothing.
    next_quiet_scan: Option<Instant>,
    /// The host's youngest task at the last scan.
    youngest: Option<u32>,
    /// What is known about who listens, with `--port`.
    listeners: Listeners,
}

impl Membership {
    /// The processes that match now, with all their descendants.
    ///
    /// # Errors
    /// When there is none.
    pub fn new(spec: &TargetSpec) -> Result<Self, TargetError> {
        let seeds = spec.resolve()?;
        let mut membership = Self::nobody(spec);
        let first = seeds.first().map(|process| process.tgid);
        for process in seeds {
            membership.admit(process, true, false);
        }
        if membership.members.is_empty() {
            // They matched and exited before a handle on them could be taken.
            return Err(match (spec, first) {
                (TargetSpec::Pids(_), Some(tgid)) => TargetError::NoSuchProcess(tgid),
                _ => spec.resolve().err().unwrap_or(TargetError::Vanished),
            });
        }
        membership.rescan();
        Ok(membership)
    }

    /// No process yet. Those that match are found by the next [`Self::rescan`].
    #[must_use]
    pub fn nobody(spec: &TargetSpec) -> Self {
        Self {
            spec: spec.clone(),
            matcher: Matcher::new(spec),
            members: BTreeMap::new(),
            excluded: HashMap::new(),
            strangers: HashMap::new(),
            recheck_from: Tgid(0),
            next_scan: Instant::now(),
            next_quiet_scan: None,
            youngest: None,
            listeners: Listeners::default(),
        }
    }

    /// Like [`Self::new`], but waits until a process matches. `None` when `stop` was set meanwhile.
    ///
    /// # Errors
    /// When waiting cannot help (an id that is no process).
    pub fn wait(spec: &TargetSpec, stop: &AtomicBool) -> Result<Option<Self>, TargetError> {
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            match Self::new(spec) {
                Ok(membership) => return Ok(Some(membership)),
                Err(error) if !error.may_appear() => return Err(error),
                Err(_) => {}
            }
            std::thread::sleep(WAIT_INTERVAL.max(started.elapsed().saturating_mul(WAIT_SHARE)));
        }
        Ok(None)
    }

    /// What the kernel side recognises new processes of the target by.
    #[must_use]
    pub fn joining(&self) -> Option<Joining> {
        self.spec.joining()
    }

    /// Leaves a process out, with its descendants: the load generator that observer started may
    /// be in the very cgroup that is watched.
    pub fn exclude(&mut self, tgid: Tgid) {
        let mut pending = vec![tgid];
        while let Some(tgid) = pending.pop() {
            self.members.remove(&tgid);
            if let Some(process) = Process::read(tgid) {
                self.excluded.insert(tgid, process);
            }
            pending.extend(
                self.processes().filter(|process| process.parent == tgid).map(|child| child.tgid),
            );
        }
    }

    /// Processes of the target, as last seen.
    #[must_use]
    pub fn tgids(&self) -> BTreeSet<Tgid> {
        self.members.keys().copied().collect()
    }

    /// The target's processes, with what is known about each.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.values().map(|watched| &watched.process)
    }

    /// Whether a process of the target forked this one, as far as that was seen: of a process whose parent exited
    /// before it was looked at, only the kernel side knows it.
    #[must_use]
    pub fn was_forked(&self, tgid: Tgid) -> bool {
        self.members.get(&tgid).is_some_and(|watched| watched.forked)
    }

    /// Whether a process belongs to the target.
    #[must_use]
    pub fn contains(&self, tgid: Tgid) -> bool {
        self.members.contains_key(&tgid)
    }

    /// The process to show where only one can be shown: the oldest that matches, otherwise the
    /// oldest of all. `None` once all are gone.
    #[must_use]
    pub fn primary(&self) -> Option<&Process> {
        self.members
            .values()
            .min_by_key(|watched| {
                (!watched.seed, watched.process.start_ticks, watched.process.tgid)
            })
            .map(|watched| &watched.process)
    }

    /// Every process of the target is gone, as last seen. One that is restarted under the same
    /// name, cgroup or port joins again at a later [`Self::poll`].
    #[must_use]
    pub fn all_gone(&self) -> bool {
        self.members.is_empty()
    }

    /// Whose the processes are, by id.
    #[must_use]
    pub fn owners(&self) -> BTreeMap<u32, Owner> {
        let owners = Owners::read();
        self.members.keys().filter_map(|tgid| Some((tgid.0, owners.of(*tgid)?))).collect()
    }

    /// What is watched, and whose it is, for users: `--comm nginx: 812 nginx (user root, in the host's
    /// network); 815 nginx, 816 nginx (user www-data, in the host's network)`.
    #[must_use]
    pub fn describe(&self) -> String {
        if self.all_gone() {
            return format!("{}: no process", self.spec);
        }
        let processes = self.processes().map(|process| (process.tgid.0, process.comm.as_str()));
        format!("{}: {}", self.spec, by_owner(processes, &self.owners()))
    }

    /// The same of processes that listen on the port of the target, and joined it now; `None` where
    /// there are none, and for targets that are not named by port.
    #[must_use]
    pub fn describe_listeners(&self, joined: &[Process]) -> Option<String> {
        let TargetSpec::Port(_) = self.spec else { return None };
        let is_seed =
            |process: &&Process| self.members.get(&process.tgid).is_some_and(|member| member.seed);
        let mut processes = joined.iter().filter(is_seed).peekable();
        processes.peek()?;
        let processes = processes.map(|process| (process.tgid.0, process.comm.as_str()));
        Some(format!("{}: {}", self.spec, by_owner(processes, &self.owners())))
    }

    /// The kernel side follows this process (not a thread) already: the target forked it, or it got
    /// the target's name or program: `forked` says which. `None` when it is known, or gone again.
    pub fn on_birth(&mut self, tgid: Tgid, forked: bool) -> Option<&Process> {
        if self.excluded.contains_key(&tgid) {
            return None;
        }
        if let Some(known) = self.members.get_mut(&tgid) {
            // Its parent may have been gone when a scan found it.
            known.forked |= forked;
            return None;
        }
        let process = Process::read(tgid)?;
        let seed = self.matcher.as_ref().is_some_and(|matcher| matcher.matches(&process));
        self.admit(process, seed, forked);
        self.members.get(&tgid).map(|watched| &watched.process)
    }

    /// The target executed another program: its name is read again.
    pub fn on_exec(&mut self, tgid: Tgid) {
        if let Some(watched) = self.members.get_mut(&tgid)
            && let Some(comm) = process::comm(tgid)
        {
            watched.process.comm = comm;
        }
    }

    /// Notices processes that left (always) and that joined (every 200 ms at most; less often where
    /// looking takes long or nothing was born). Cheap enough to be called in every iteration of a
    /// loop.
    pub fn poll(&mut self) -> Changes {
        let mut changes = Changes { joined: Vec::new(), left: self.reap() };
        if self.is_due() {
            changes.joined = self.rescan();
        }
        changes
    }

    /// Reading the whole of `/proc` is by far the most that observer does while nothing happens, so
    /// it is done only when a task was born, which one short file shows.
    fn is_due(&self) -> bool {
        let now = Instant::now();
        if now < self.next_scan {
            return false;
        }
        let youngest = system::youngest_task();
        youngest.is_none()
            || youngest != self.youngest
            || self.next_quiet_scan.is_some_and(|next| now >= next)
            || self.settling(now)
    }

    /// Whether a process is young enough to be about to execute its program.
    fn settling(&self, now: Instant) -> bool {
        self.matcher.is_some() && self.strangers.values().any(|stranger| stranger.is_settling(now))
    }

    /// Looks for processes that joined, now, and returns them. To be called once more after the
    /// kernel side follows [`Self::tgids`], until it finds nothing: what was forked in between
    /// is found here, what is forked later by the kernel side.
    pub fn rescan(&mut self) -> Vec<Process> {
        let (started, cpu_started) = (Instant::now(), usage::of_thread());
        // Before the scan: a process born during it is found by the next one.
        self.youngest = system::youngest_task();
        let before: BTreeMap<Tgid, u64> = self
            .members
            .iter()
            .map(|(&tgid, watched)| (tgid, watched.process.start_ticks))
            .collect();
        self.excluded.retain(|_, process| process.is_alive());
        self.scan_processes(started);
        if matches!(self.spec, TargetSpec::Cgroup(_) | TargetSpec::Port(_)) {
            for process in self.spec.resolve_with(&mut self.listeners).unwrap_or_default() {
                if !self.is_excluded(&process) {
                    self.admit(process, true, false);
                }
            }
        }
        let may_change = !matches!(self.spec, TargetSpec::Pids(_));
        let now = Instant::now();
        let mut rest = pause(usage::of_thread().saturating_sub(cpu_started));
        if !may_change {
            // Children are all that can join, and the kernel side follows them by itself.
            rest = rest.max(CHILDREN_INTERVAL);
        }
        self.next_scan = now + rest;
        let quiet = match self.spec {
            TargetSpec::Port(_) => QUIET_PORT_INTERVAL,
            _ => QUIET_INTERVAL,
        };
        self.next_quiet_scan = may_change.then(|| now + quiet.max(rest));
        self.processes()
            .filter(|process| before.get(&process.tgid) != Some(&process.start_ticks))
            .cloned()
            .collect()
    }

    /// Reads the processes that are new, young, or due: children of members join, and those that
    /// match.
    fn scan_processes(&mut self, now: Instant) {
        let ids = process::all_ids();
        let present: HashSet<Tgid> = ids.iter().copied().collect();
        self.strangers.retain(|tgid, _| present.contains(tgid));

        let uptime = process::uptime();
        let due = self.due_for_recheck(&ids);
        let mut read: Vec<Process> = ids
            .into_iter()
            .filter(|tgid| !self.members.contains_key(tgid))
            .filter(|tgid| match self.strangers.get(tgid) {
                None => true,
                Some(stranger) => due.contains(tgid) || stranger.is_settling(now),
            })
            .inspect(|_| rest())
            .filter_map(Process::read)
            .collect();
        // Parents before their children, so that a whole new family joins in one go.
        read.sort_by_key(|process| (process.start_ticks, process.tgid));
        for process in read {
            if self.is_excluded(&process) {
                self.strangers.remove(&process.tgid);
                self.excluded.insert(process.tgid, process);
                continue;
            }
            let matches = self.matcher.as_ref().is_some_and(|matcher| matcher.matches(&process));
            if matches || self.is_child(&process) {
                self.admit(process, matches, false);
            } else {
                let known = self.strangers.get(&process.tgid);
                if known.is_none_or(|known| known.start_ticks != process.start_ticks) {
                    let stranger = Stranger::new(&process, now, uptime);
                    self.strangers.insert(process.tgid, stranger);
                }
            }
        }
    }

    /// The next [`RECHECKED`] ids after those of the last time. Nothing with `--pid`: a process
    /// whose parent is no member at its birth never becomes one.
    fn due_for_recheck(&mut self, ids: &[Tgid]) -> HashSet<Tgid> {
        if self.matcher.is_none() {
            return HashSet::new();
        }
        let from = ids.partition_point(|&tgid| tgid <= self.recheck_from);
        let due: Vec<Tgid> =
            ids[from..].iter().chain(&ids[..from]).copied().take(RECHECKED).collect();
        self.recheck_from = due.last().copied().unwrap_or_default();
        due.into_iter().collect()
    }

    fn is_excluded(&self, process: &Process) -> bool {
        let excluded = |tgid: &Tgid| self.excluded.get(tgid).map(|process| process.start_ticks);
        excluded(&process.tgid) == Some(process.start_ticks)
            || excluded(&process.parent).is_some_and(|parent| parent <= process.start_ticks)
    }

    /// Whether a process of the target is its parent.
    fn is_child(&self, process: &Process) -> bool {
        self.members
            .get(&process.parent)
            .is_some_and(|parent| parent.process.start_ticks <= process.start_ticks)
    }

    fn admit(&mut self, process: Process, seed: bool, forked: bool) {
        let tgid = process.tgid;
        if tgid.0 == std::process::id() || process.kernel_thread {
            return;
        }
        if let Some(known) = self.members.get_mut(&tgid)
            && known.process.start_ticks == process.start_ticks
        {
            known.seed |= seed;
            known.forked |= forked;
            known.process.comm = process.comm;
            return;
        }
        let forked = forked || self.is_child(&process);
        let with_pidfd = self.members.len() < PIDFDS_MAX;
        if let Some(mut watched) = Watched::new(process, seed, with_pidfd) {
            watched.forked = forked;
            self.strangers.remove(&tgid);
            self.members.insert(tgid, watched);
        }
    }

    fn reap(&mut self) -> Vec<Tgid> {
        let left: Vec<Tgid> =
            gone(self.members.values()).into_iter().map(|process| process.tgid).collect();
        for tgid in &left {
            self.members.remove(tgid);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_take_a_small_share_and_are_not_put_off_for_long() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(0)), SCAN_INTERVAL);
        assert_eq!(pause(ms(1)), ms(300));
        assert_eq!(pause(ms(15)), QUIET_INTERVAL);
        assert_eq!(pause(ms(1000)), ms(100_000));
    }
}
