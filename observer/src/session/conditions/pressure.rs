//! The pressure under which the target runs, watched through a run.

use std::collections::{BTreeMap, BTreeSet};

use super::Watch;
use super::cgroup_search::CgroupSearch;
use super::parts::Parts;
use crate::clock::MonoNanos;
use crate::host::cgroups::{Cgroups, Hierarchy};
use crate::host::pressure::{Pressure, RESOURCES};
use crate::model::{Conditions, PressureSummary};
use crate::pace::rest;
use crate::target::Membership;

/// Cgroups that are watched.
const WATCHED_MAX: usize = 8;
/// The root of a whole hierarchy, which counts what the host counts.
const ROOT_ID: u64 = 1;

/// The host, and the cgroups of version 2 in which processes of the target are.
pub(super) struct PressureWatch {
    cgroups: Option<Hierarchy>,
    began: MonoNanos,
    host: Vec<Watched>,
    /// By cgroup, with its id.
    watched: BTreeMap<String, (u64, Vec<Watched>)>,
    search: CgroupSearch,
}

impl PressureWatch {
    pub(super) fn start() -> Self {
        Self::of(Cgroups::read().unified)
    }

    fn of(cgroups: Option<Hierarchy>) -> Self {
        let began = MonoNanos::now();
        Self {
            cgroups,
            began,
            host: Watched::all(None, began, Pressure::of_host),
            watched: BTreeMap::new(),
            search: CgroupSearch::new(),
        }
    }

    /// Watches these cgroups from now on, as far as there is room.
    fn add(&mut self, found: &BTreeSet<String>) {
        let Some(cgroups) = &self.cgroups else { return };
        for cgroup in found {
            if self.watched.len() >= WATCHED_MAX || self.watched.contains_key(cgroup) {
                continue;
            }
            rest();
            let Some(id) = cgroups.id_of(cgroup).filter(|id| *id != ROOT_ID) else { continue };
            let read = |resource: &str| Pressure::of_cgroup(cgroups, cgroup, resource);
            let watched = Watched::all(Some(cgroup), self.began, read);
            self.watched.insert(cgroup.clone(), (id, watched));
        }
    }

    fn read(&mut self) {
        self.host.iter_mut().for_each(|watched| watched.read(Pressure::of_host, false));
        let Some(cgroups) = &self.cgroups else { return };
        for (cgroup, (id, watched)) in &mut self.watched {
            rest();
            let Some(now) = cgroups.id_of(cgroup) else { continue };
            // One that was made again counts from 0.
            let is_new = std::mem::replace(id, now) != now;
            for one in watched {
                one.read(|resource| Pressure::of_cgroup(cgroups, cgroup, resource), is_new);
            }
        }
    }

    fn so_far(&self) -> Vec<PressureSummary> {
        let of_cgroups = self.watched.values().flat_map(|(_, watched)| watched);
        of_cgroups.chain(&self.host).map(Watched::so_far).collect()
    }
}

impl Watch for PressureWatch {
    fn look(&mut self, membership: &Membership) {
        let cgroups = self.cgroups.as_ref();
        if let Some(found) = self.search.look(membership, |tgid| cgroups?.live_cgroup_of(tgid, ""))
        {
            self.add(&found);
        }
        self.read();
    }

    fn note(&self, conditions: &mut Conditions) {
        conditions.pressure = self.so_far();
    }
}

struct Watched {
    last: Pressure,
    read_at: MonoNanos,
    some_us: Parts,
    summary: PressureSummary,
}

impl Watched {
    /// One for each resource that the kernel keeps, in a run that began at this instant.
    fn all(
        cgroup: Option<&String>,
        began: MonoNanos,
        read: impl Fn(&str) -> Option<Pressure>,
    ) -> Vec<Self> {
        let new = |resource: &str| {
            let last = read(resource)?;
            let summary = PressureSummary {
                cgroup: cgroup.cloned(),
                resource: resource.to_owned(),
                full_us: last.full_us.map(|_| 0),
                ..PressureSummary::default()
            };
            let read_at = MonoNanos::now();
            Some(Self { last, read_at, some_us: Parts::start(began, read_at), summary })
        };
        RESOURCES.into_iter().filter_map(new).collect()
    }

    fn so_far(&self) -> PressureSummary {
        let Parts { part_ns, sums, .. } = &self.some_us;
        PressureSummary { part_ns: *part_ns, some_by_part_us: sums.clone(), ..self.summary.clone() }
    }

    fn read(&mut self, read: impl Fn(&str) -> Option<Pressure>, is_new: bool) {
        // What is gone keeps what was read before.
        let Some(now) = read(&self.summary.resource) else { return };
        let before = if is_new { Pressure::default() } else { self.last };
        let summary = &mut self.summary;
        let some_us = now.some_us.saturating_sub(before.some_us);
        summary.some_us += some_us;
        let full_us = now.full_us.map(|us| us.saturating_sub(before.full_us.unwrap_or(0)));
        summary.full_us = summary.full_us.zip(full_us).map(|(sum, more)| sum + more);
        let read_at = MonoNanos::now();
        self.some_us.add(read_at, some_us);
        summary.observed_ns += read_at.since(self.read_at);
        (self.last, self.read_at) = (now, read_at);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_counted_before_does_not_count_and_a_cgroup_made_again_counts_from_0() {
        let top = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy {
            unified: true,
            mount_point: top.path().to_path_buf(),
            root: "/".into(),
            controllers: Vec::new(),
        };
        let write = |some: u64, full: u64| {
            fs::create_dir_all(top.path().join("a")).unwrap();
            let text = format!("some avg10=0 total={some}\nfull avg10=0 total={full}\n");
            fs::write(top.path().join("a/memory.pressure"), text).unwrap();
            fs::write(top.path().join("a/cpu.pressure"), format!("some avg10=0 total={some}\n"))
                .unwrap();
            fs::write(top.path().join("a/io.pressure"), "garbage").unwrap();
        };
        write(100, 50);
        let mut watch = PressureWatch::of(Some(hierarchy));
        watch.add(&["/a".to_owned(), "/gone".into()].into());
        let read = |watch: &mut PressureWatch| -> Vec<(String, u64, Option<u64>)> {
            watch.read();
            let of_cgroups = watch.so_far().into_iter().filter(|one| one.cgroup.is_some());
            of_cgroups.map(|one| (one.resource, one.some_us, one.full_us)).collect()
        };
        let by_part = |watch: &PressureWatch| -> Vec<u64> {
            let so_far = watch.so_far();
            let of_cgroups = so_far.iter().filter(|one| one.cgroup.is_some());
            of_cgroups.map(|one| one.some_by_part_us.iter().sum()).collect()
        };
        let wanted = |some: u64, full: u64| {
            vec![("cpu".to_owned(), some, None), ("memory".to_owned(), some, Some(full))]
        };
        assert_eq!(read(&mut watch), wanted(0, 0));
        write(170, 60);
        assert_eq!(read(&mut watch), wanted(70, 10));
        // Its files stay, so that its number cannot be used again.
        let away = tempfile::tempdir().unwrap();
        fs::rename(top.path().join("a"), away.path().join("a")).unwrap();
        assert_eq!(read(&mut watch), wanted(70, 10), "the last reading counts");
        write(30, 3);
        assert_eq!(read(&mut watch), wanted(100, 13));
        assert_eq!(by_part(&watch), [100, 100]);
        let many: BTreeSet<String> = (0..20).map(|nth| format!("/a/{nth}")).collect();
        many.iter().for_each(|name| fs::create_dir(top.path().join(&name[1..])).unwrap());
        watch.add(&many);
        assert_eq!(watch.watched.len(), WATCHED_MAX);
    }
}
