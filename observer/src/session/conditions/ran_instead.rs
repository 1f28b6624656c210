//! Who had the CPUs while threads of the target waited for them, watched through a run.

use std::collections::{BTreeMap, HashMap};

use observer_ebpf::wire::{RAN_KERNEL_THREAD, RAN_TARGET, RanInstead};

use super::Watch;
use super::parts::{self, FIRST_PART_NS, PARTS, halve, spread};
use crate::clock::MonoNanos;
use crate::host::process::Process;
use crate::host::{CgroupNames, Cgroups};
use crate::kernel::{RanInsteadReading, RanInsteadTable, WaitSums};
use crate::model::{Conditions, RanInsteadRow, RanInsteadSummary, RanKind, Tgid};
use crate::pace::rest;
use crate::target::Membership;
use crate::text::{until_nul, without_number};

/// Rows that are kept, and rows that are left when there would be more.
const ROWS_KEPT: usize = 256;
const ROWS_LEFT: usize = 128;
/// Rows in the description of a run.
const ROWS_SHOWN: usize = 32;
/// Cgroups whose names are kept.
const CGROUPS_KEPT: usize = 1_024;
/// A process that has not run for some readings is looked for once in so many readings.
const LOOKED_FOR_IN: u32 = 10;

pub(super) struct RanInsteadWatch {
    watched: Option<(RanInsteadTable, Sums)>,
    cgroups: CgroupsById,
}

impl RanInsteadWatch {
    pub(super) fn start(table: Option<RanInsteadTable>) -> Self {
        let watched = table.map(|table| {
            let sums = Sums::start(&table.read(), MonoNanos::now());
            (table, sums)
        });
        Self { watched, cgroups: CgroupsById::new() }
    }
}

impl Watch for RanInsteadWatch {
    fn look(&mut self, _membership: &Membership) {
        let Some((table, sums)) = &mut self.watched else { return };
        let (reading, now) = (table.read(), MonoNanos::now());
        let cgroups = &mut self.cgroups;
        let ended = sums.take(&reading, now, |tgid, cgroup| {
            rest();
            let process = Process::read(tgid);
            if let Some(cgroup) = cgroup {
                cgroups.find(cgroup, process.as_ref());
            }
            process
        });
        ended.into_iter().for_each(|place| table.free(place));
        cgroups.forget_others(sums);
    }

    fn note(&self, conditions: &mut Conditions) {
        conditions.ran_instead =
            self.watched.as_ref().map(|(_, sums)| sums.summary(&self.cgroups.names));
    }
}

/// Names of cgroups by their id.
struct CgroupsById {
    cgroups: Cgroups,
    hierarchy: Option<CgroupNames>,
    /// `None` while it is not known.
    names: HashMap<u64, Option<String>>,
}

impl CgroupsById {
    fn new() -> Self {
        let cgroups = Cgroups::read();
        let hierarchy = cgroups.memory().cloned().map(CgroupNames::new);
        Self { cgroups, hierarchy, names: HashMap::new() }
    }

    /// Looks for the name of the cgroup with this id, from a process that was seen in it if that is still there.
    fn find(&mut self, id: u64, process: Option<&Process>) {
        let known = self.names.get(&id);
        if id == 0 || known.is_some_and(Option::is_some) {
            return;
        }
        let is_new = known.is_none();
        let cgroups = &self.cgroups;
        let name = match process {
            Some(process) => cgroups
                .memory_cgroup_of(process.tgid)
                .filter(|name| cgroups.memory().and_then(|memory| memory.id_of(name)) == Some(id)),
            None => None,
        };
        // The hierarchy is walked for it once.
        let walked = self.hierarchy.as_mut().filter(|_| is_new && name.is_none());
        let name = name.or_else(|| walked?.name(id).map(str::to_owned));
        self.names.insert(id, name);
    }

    fn forget_others(&mut self, sums: &Sums) {
        if self.names.len() > CGROUPS_KEPT {
            self.names.retain(|id, _| sums.rows.keys().any(|who| who.cgroup == *id));
        }
    }
}

/// What is told apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    name: String,
    /// 0 where it is not known.
    cgroup: u64,
    kind: RanKind,
}

#[derive(Clone, Debug, Default)]
struct Times {
    time_ns: u64,
    waits: u64,
    by_part_ns: Vec<u64>,
}

impl Times {
    fn add(&mut self, other: &Self) {
        self.time_ns += other.time_ns;
        self.waits += other.waits;
        parts::add(&mut self.by_part_ns, &other.by_part_ns);
    }

    /// Pairs of parts become one.
    fn halve(&mut self) {
        halve(&mut self.by_part_ns);
    }
}

/// A place of the table as last read.
#[derive(Clone, Copy, Default)]
struct Seen {
    tgid: u64,
    time_ns: u64,
    waits: u64,
    /// Readings since it was last longer.
    still: u32,
}

/// The sums of a run.
struct Sums {
    began: MonoNanos,
    read_at: MonoNanos,
    first: WaitSums,
    last: WaitSums,
    part_ns: u64,
    rows: BTreeMap<Who, Times>,
    /// Of rows for which there was no room, and of processes without a place in the table.
    others: Times,
    /// Rows in them.
    beyond: u64,
    seen: HashMap<usize, Seen>,
}

impl Sums {
    /// What was summed up before does not count.
    fn start(reading: &RanInsteadReading, now: MonoNanos) -> Self {
        let seen = reading.processes.iter().map(|(place, entry)| {
            let RanInstead { tgid, time_ns, waits, .. } = *entry;
            (*place, Seen { tgid, time_ns, waits, still: 0 })
        });
        Self {
            began: now,
            read_at: now,
            first: reading.sums,
            last: reading.sums,
            part_ns: FIRST_PART_NS,
            rows: BTreeMap::new(),
            others: Times::default(),
            beyond: 0,
            seen: seen.collect(),
        }
    }

    /// Takes in a reading. `process` finds the process with an id, in a cgroup with this id if it ran since
    /// the last reading. Returns the places of processes that have ended.
    fn take(
        &mut self,
        reading: &RanInsteadReading,
        now: MonoNanos,
        mut process: impl FnMut(Tgid, Option<u64>) -> Option<Process>,
    ) -> Vec<usize> {
        while now.since(self.began) > self.part_ns * PARTS as u64 {
            self.rows.values_mut().chain([&mut self.others]).for_each(Times::halve);
            self.part_ns *= 2;
        }
        let mut ended = Vec::new();
        for (place, entry) in &reading.processes {
            let seen = self.seen.entry(*place).or_default();
            if seen.tgid != entry.tgid {
                *seen = Seen { tgid: entry.tgid, ..Seen::default() };
            }
            let tgid = Tgid(u32::try_from(entry.tgid).unwrap_or(0));
            let time_ns = entry.time_ns.saturating_sub(seen.time_ns);
            let waits = entry.waits.saturating_sub(seen.waits);
            (seen.time_ns, seen.waits) = (entry.time_ns, entry.waits);
            if time_ns > 0 {
                seen.still = 0;
                let found = process(tgid, Some(entry.cgroup));
                let who = Who::of(entry, found.as_ref());
                let by_part_ns = self.spread(now, time_ns);
                let times = Times { time_ns, waits, by_part_ns };
                self.rows.entry(who).or_default().add(&times);
                continue;
            }
            seen.still += 1;
            // A wait that began while it was there may have ended since: it keeps its place for one reading.
            let looks = seen.still == 1 || seen.still.is_multiple_of(LOOKED_FOR_IN);
            if looks && process(tgid, None).is_none() {
                self.seen.remove(place);
                ended.push(*place);
            }
        }
        let no_place_ns = reading.sums.no_place_ns.saturating_sub(self.last.no_place_ns);
        let by_part_ns = self.spread(now, no_place_ns);
        self.others.add(&Times { time_ns: no_place_ns, waits: 0, by_part_ns });
        (self.last, self.read_at) = (reading.sums, now);
        self.make_room();
        ended
    }

    /// A time since the last reading, by parts of the run.
    fn spread(&self, now: MonoNanos, time_ns: u64) -> Vec<u64> {
        let between = (self.read_at.since(self.began), now.since(self.began));
        spread(self.part_ns, between, time_ns)
    }

    /// Where there are too many rows, those of the shortest times join the others.
    fn make_room(&mut self) {
        if self.rows.len() <= ROWS_KEPT {
            return;
        }
        let mut by_time: Vec<(Who, Times)> = std::mem::take(&mut self.rows).into_iter().collect();
        by_time.sort_by_key(|(_, times)| std::cmp::Reverse(times.time_ns));
        for (_, times) in by_time.drain(ROWS_LEFT..) {
            self.others.add(&times);
            self.beyond += 1;
        }
        self.rows = by_time.into_iter().collect();
    }

    fn summary(&self, cgroups: &HashMap<u64, Option<String>>) -> RanInsteadSummary {
        // Cgroups that were made again have another id and the same path.
        let mut named: BTreeMap<(&str, Option<&str>, RanKind), Times> = BTreeMap::new();
        for (who, times) in &self.rows {
            let cgroup = cgroups.get(&who.cgroup).and_then(Option::as_deref);
            named.entry((&who.name, cgroup, who.kind)).or_default().add(times);
        }
        let mut by: Vec<_> = named.into_iter().collect();
        by.sort_by_key(|(_, times)| std::cmp::Reverse(times.time_ns));
        let (mut others, mut beyond) = (self.others.clone(), self.beyond);
        for (_, times) in by.drain(ROWS_SHOWN.min(by.len())..) {
            others.add(&times);
            beyond += 1;
        }
        let ran_ns = others.time_ns + by.iter().map(|(_, times)| times.time_ns).sum::<u64>();
        let since = |sum: fn(&WaitSums) -> u64| sum(&self.last).saturating_sub(sum(&self.first));
        let (wait_ns, idle_ns) = (since(|sums| sums.wait_ns), since(|sums| sums.idle_ns));
        let throttled_ns = since(|sums| sums.throttled_ns);
        let rows = by.into_iter().map(|((name, cgroup, kind), times)| RanInsteadRow {
            name: name.to_owned(),
            cgroup: cgroup.map(str::to_owned),
            kind,
            time_ns: times.time_ns,
            waits: times.waits,
            by_part_ns: times.by_part_ns,
        });
        RanInsteadSummary {
            began_ns: self.began.0,
            observed_ns: self.read_at.since(self.began),
            wait_ns,
            ran_ns,
            idle_ns,
            throttled_ns,
            not_known_ns: wait_ns.saturating_sub(ran_ns + idle_ns + throttled_ns),
            part_ns: self.part_ns,
            by: rows.collect(),
            others_ns: others.time_ns,
            others_by_part_ns: others.by_part_ns,
            beyond,
            no_place_ns: since(|sums| sums.no_place_ns),
        }
    }
}

impl Who {
    /// By the name of the process now, or what the kernel side noted about one that has ended.
    fn of(entry: &RanInstead, process: Option<&Process>) -> Self {
        let noted = until_nul(&entry.comm);
        let name = process.map_or(&*noted, |process| &process.comm);
        let is_kernel_thread = entry.flags & RAN_KERNEL_THREAD != 0
            || process.is_some_and(|process| process.kernel_thread);
        let kind = match entry.flags & RAN_TARGET {
            0 if is_kernel_thread => RanKind::KernelThread,
            0 => RanKind::Other,
            _ => RanKind::Own,
        };
        let name = match name.split_once('/') {
            // What a worker works on stands behind its number.
            Some(("kworker", _)) if is_kernel_thread => "[kworker/*]".to_owned(),
            _ if is_kernel_thread => format!("[{}]", without_number(name)),
            _ => without_number(name),
        };
        Self { name, cgroup: entry.cgroup, kind }
    }
}

#[cfg(test)]
#[path = "ran_instead_tests.rs"]
mod tests;
