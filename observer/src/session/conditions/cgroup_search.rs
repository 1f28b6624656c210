//! When to look for the cgroups of the target's processes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::model::Tgid;
use crate::pace::rest;
use crate::target::Membership;

/// A process may be moved to another cgroup, which is looked for after this time.
const INTERVAL: Duration = Duration::from_secs(10);

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
