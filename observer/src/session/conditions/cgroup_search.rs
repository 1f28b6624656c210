//! The cgroups of the target's processes: when to look for them, and what is kept about those that can have limits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::host::cgroups::with_those_above;
use crate::model::Tgid;
use crate::pace::rest;
use crate::target::Membership;

/// A process may be moved to another cgroup, which is looked for after this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// Cgroups that are watched, with limits or not.
pub(super) const WATCHED_MAX: usize = 64;
/// Limits that are kept.
pub(super) const LIMITS_MAX: usize = 16;

/// The processes whose cgroups are known.
pub(super) struct CgroupSearch {
    members: BTreeSet<Tgid>,
    next: Instant,
}

impl CgroupSearch {
    pub(super) fn new() -> Self {
        Self { members: BTreeSet::new(), next: Instant::now() }
    }

    /// The cgroups of all processes; `None` as long as nothing can have changed.
    pub(super) fn look(
        &mut self,
        membership: &Membership,
        of: impl Fn(Tgid) -> Option<String>,
    ) -> Option<BTreeSet<String>> {
        let members = membership.tgids();
        let now = Instant::now();
        if members == self.members && now < self.next {
            return None;
        }
        let found = members.iter().inspect(|_| rest()).filter_map(|tgid| of(*tgid)).collect();
        self.members = members;
        self.next = now + INTERVAL;
        Some(found)
    }
}

/// Every cgroup on the paths from those of the target up to the root, with what is known about its limits.
pub(super) struct LimitedCgroups<T> {
    watched: BTreeMap<String, T>,
    /// Cgroups for which there was no room.
    beyond: usize,
}

impl<T> LimitedCgroups<T> {
    pub(super) fn new() -> Self {
        Self { watched: BTreeMap::new(), beyond: 0 }
    }

    /// Watches these cgroups from now on, and those above them. `new` begins what is known about one; `None`
    /// where it cannot be limited.
    pub(super) fn add(&mut self, found: &BTreeSet<String>, new: impl Fn(&str) -> Option<T>) {
        let all: BTreeSet<&str> =
            found.iter().flat_map(|cgroup| with_those_above(cgroup)).collect();
        let mut beyond = 0;
        for cgroup in all {
            if self.watched.contains_key(cgroup) {
                continue;
            }
            rest();
            let Some(watched) = new(cgroup) else { continue };
            if self.watched.len() < WATCHED_MAX {
                self.watched.insert(cgroup.to_owned(), watched);
            } else {
                beyond += 1;
            }
        }
        self.beyond = self.beyond.max(beyond);
    }

    /// Reads each of them.
    pub(super) fn each(&mut self, mut read: impl FnMut(&str, &mut T)) {
        for (cgroup, watched) in &mut self.watched {
            rest();
            read(cgroup, watched);
        }
    }

    /// What came of those that `summary` has something for, the ones with the highest `rank` where they are
    /// too many, and how many cgroups there are besides that have a limit or may have one.
    pub(super) fn limits<'a, S: Clone + 'a, K: Ord>(
        &'a self,
        summary: impl Fn(&'a T) -> Option<&'a S>,
        rank: impl Fn(&S) -> K,
    ) -> (Vec<S>, u64) {
        let mut limits: Vec<S> = self.watched.values().filter_map(summary).cloned().collect();
        let beyond = self.beyond + limits.len().saturating_sub(LIMITS_MAX);
        if limits.len() > LIMITS_MAX {
            limits.sort_by_key(|limit| Reverse(rank(limit)));
            limits.truncate(LIMITS_MAX);
        }
        (limits, beyond as u64)
    }
}
