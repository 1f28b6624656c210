//! Names for the cgroups of the threads that had what the target's threads waited for.

use std::collections::BTreeMap;

use super::Captured;
use super::drain::Reach;
use super::sink::Sink;
use crate::clock::MonoNanos;
use crate::host::cgroups::{CgroupNames, Cgroups};
use crate::model::{Event, Stall, Tgid, Tid};

/// Cgroups that get a name.
const HOLDERS_MAX: usize = 1_024;

/// Finds the names of the holders' cgroups: within a second from a thread that was just seen in it,
/// otherwise at the end from the hierarchy.
pub(super) struct Holders {
    cgroups: Cgroups,
    /// By id; `None` while the name is not known.
    names: BTreeMap<u64, Option<String>>,
    /// Those that were new in the last second, each with a thread that was in it.
    fresh: Vec<(u64, Tid)>,
    /// Records whose cgroup gets no name, because there were too many.
    beyond: u64,
}

impl Default for Holders {
    fn default() -> Self {
        let cgroups = Cgroups::read();
        Self { cgroups, names: BTreeMap::new(), fresh: Vec::new(), beyond: 0 }
    }
}

impl Holders {
    /// The name of the cgroup that a thread is in now, if that is the one with this id.
    fn name_by_thread(&self, id: u64, tid: Tid) -> Option<String> {
        // /proc has every thread by its own id, although it lists processes only.
        let name = self.cgroups.memory_cgroup_of(Tgid(tid.0))?;
        (self.cgroups.memory()?.id_of(&name) == Some(id)).then_some(name)
    }

    fn find_fresh(&mut self) {
        for (id, tid) in std::mem::take(&mut self.fresh) {
            let name = self.name_by_thread(id, tid);
            self.names.insert(id, name);
        }
    }
}

impl Sink for Holders {
    fn event(&mut self, event: &Event) {
        for holder in Stall::of_event(event).filter_map(|stall| stall.holder) {
            let Some(id) = holder.cgroup.map(std::num::NonZeroU64::get) else { continue };
            if self.names.contains_key(&id) {
                continue;
            }
            if self.names.len() == HOLDERS_MAX {
                self.beyond += 1;
                continue;
            }
            self.names.insert(id, None);
            self.fresh.push((id, holder.tid));
        }
    }

    fn tick(&mut self, _now: MonoNanos, _reach: Reach) {
        self.find_fresh();
    }

    fn finish(mut self: Box<Self>, captured: &mut Captured) {
        self.find_fresh();
        let mut hierarchy = self.cgroups.memory().cloned().map(CgroupNames::new);
        let named = std::mem::take(&mut self.names).into_iter().filter_map(|(id, name)| {
            let name = name.or_else(|| hierarchy.as_mut()?.name(id).map(str::to_owned))?;
            Some((id, name))
        });
        captured.holder_cgroups = named.collect();
        captured.holder_cgroups_beyond = self.beyond;
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{RecordKind, RunqueueRecord};

    use super::*;
    use crate::output::example;

    fn wait(ran_tid: u32, ran_cgroup: u64) -> Event {
        example::event(&RunqueueRecord {
            header: example::header(RecordKind::Runqueue, 0, 101, 9_000, 100),
            ran_tid,
            ran_tgid: ran_tid,
            ran_comm: [0; 16],
            ran_cgroup,
            other_ns: 100,
            own_ns: 0,
            idle_ns: 0,
            throttled_ns: 0,
        })
    }

    #[test]
    fn cgroups_are_named_up_to_a_limit() {
        let mut holders = Box::new(Holders::default());
        let own = Tgid(std::process::id());
        let cgroups = Cgroups::read();
        let name = cgroups.memory_cgroup_of(own);
        let known = name.and_then(|name| Some((cgroups.memory()?.id_of(&name)?, name)));
        let first = known.as_ref().map_or(1, |(id, _)| *id);
        holders.event(&wait(own.0, first));
        holders.event(&wait(0, 0));
        // No cgroup has such an id, and its thread is in another one.
        for id in 0..HOLDERS_MAX as u64 + 2 {
            holders.event(&wait(own.0, u64::MAX - id));
        }
        holders.event(&wait(own.0, first));
        let mut captured = Captured::default();
        holders.finish(&mut captured);
        assert_eq!(captured.holder_cgroups_beyond, 3);
        if let Some((id, name)) = known {
            assert_eq!(captured.holder_cgroups, BTreeMap::from([(id, name)]));
        }
    }
}
