//! Detaching a probe while everything runs, and attaching it again.
//!
//! A detached program stays loaded; only its links go. A program that several probes share is
//! detached with the last of them. The programs' state of threads and sockets is cleared before
//! they are attached again: a begin from before the pause must not be matched with an end from
//! after it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::Map;
use observer_ebpf::wire::RecordKind;
use rustix::thread::{MembarrierCommand, membarrier};

use super::links::LinkError;
use super::mapped::MappedWords;
use super::{Kernel, ProgramState, attach};
use crate::clock::MonoNanos;
use crate::model::{Detached, Event, ProbeChange};
use crate::pace::rest;
use crate::probe::{Entries, PROBES, PerThread, Probe, ProbeMap, Program};

/// Why a probe could not be detached or attached again.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// No program of it is attached.
    #[error("probe {0} has no program attached, so there is nothing to detach")]
    NotAttached(String),
    /// The probe that follows the target has to stay.
    #[error("probe {0} follows the target's processes; the other probes need it")]
    FollowsTarget(&'static str),
    /// The state of its programs cannot be cleared.
    #[error("cannot clear the state in BPF map {map}: {reason}")]
    State {
        /// The map.
        map: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// The kernel refused a link that it had made before.
    #[error("cannot attach program {program} again: {reason}")]
    Link {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        reason: String,
    },
}

/// Words of a map's values that hold the begin of something.
struct Remembered {
    map: &'static str,
    value_bytes: usize,
    words: &'static [usize],
}

/// The probes that are detached now, and all pauses so far, by probe.
pub(super) type Pauses = BTreeMap<&'static str, Detached>;

/// The CPUs on which a program of a probe could not be attached, by probe. The probe works on all
/// others, and its pause lasts as long as one of them is left.
pub(super) type CpuGaps = BTreeMap<&'static str, BTreeSet<u32>>;

impl Kernel {
    /// Detaches a probe, for a reason that its coverage then shows. Its histograms stay as they
    /// are, and its programs stay loaded.
    ///
    /// # Errors
    /// When it is not attached, or follows the target.
    pub fn detach(&mut self, name: &str, reason: &str) -> Result<(), LiveError> {
        let probe = self.watching(name)?;
        if probe.sends(RecordKind::Task) {
            return Err(LiveError::FollowsTarget(probe.name));
        }
        let (now, pause) = (MonoNanos::now(), self.pauses.entry(probe.name).or_default());
        if self.cpu_gaps.remove(probe.name).is_some() {
            // It is attached on every CPU that is online when it is attached again.
            pause.end(now);
        }
        pause.begin(now, reason);
        // Begins first: stalls that have begun may still end.
        for program in self.programs_of(probe) {
            if !self.is_needed(program) {
                rest();
                self.links.detach(program.name);
            }
        }
        self.select_descriptor_program();
        Ok(())
    }

    /// Attaches a detached probe again. Does nothing if it is attached.
    ///
    /// # Errors
    /// When the kernel refuses what it allowed before; the probe then stays detached.
    pub fn attach_again(&mut self, name: &str) -> Result<(), LiveError> {
        let Some(probe) = PROBES.into_iter().find(|probe| probe.name == name) else {
            return Err(LiveError::NotAttached(name.to_owned()));
        };
        if !self.is_detached(probe) {
            return Ok(());
        }
        self.forget_begins(probe)?;
        let programs = self.programs_of(probe);
        for program in &programs {
            rest();
            if let Err(LinkError(reason)) = self.links.attach(&mut self.ebpf, program.name) {
                let unneeded = programs.iter().filter(|program| !self.is_needed(program));
                for program in unneeded.map(|program| program.name).collect::<Vec<_>>() {
                    self.links.detach(program);
                }
                return Err(LiveError::Link { program: program.name, reason });
            }
        }
        if let Some(pause) = self.pauses.get_mut(probe.name) {
            pause.end(MonoNanos::now());
        }
        self.select_descriptor_program();
        Ok(())
    }

    /// Whether programs are attached through perf events.
    #[must_use]
    pub fn has_perf_events(&self) -> bool {
        let attached = self.attached_programs();
        attached.values().flatten().any(|program| program.attach.is_perf_event())
    }

    /// Looks for CPUs that have come online since the last call, and attaches there what needs each
    /// CPU's own event. Returns the changes of the probes.
    pub fn tend_cpus(&mut self) -> Vec<Event> {
        let since = std::mem::replace(&mut self.cpus_looked_at, MonoNanos::now());
        let arrived = self.cpu_events.arrived();
        self.watch_cpus(&arrived, since)
    }

    /// Attaches the programs that need each CPU's own event on the CPUs that have come online after
    /// `since`, and tries those again on which the kernel refused it. Their probes are detached from
    /// `since` until all CPUs are watched, because what happens on the others is not seen. Returns
    /// these changes.
    pub fn watch_cpus(&mut self, arrived: &BTreeSet<u32>, since: MonoNanos) -> Vec<Event> {
        if arrived.is_empty() && self.cpu_gaps.is_empty() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        for probe in PROBES {
            let mut programs = self.programs_of(probe);
            programs.retain(|program| self.links.is_by_cpu(program.name));
            let before = self.cpu_gaps.remove(probe.name);
            if programs.is_empty() || arrived.is_empty() && before.is_none() {
                continue;
            }
            let missing = before.clone().unwrap_or_default();
            let (mut left, mut refused) = (BTreeSet::new(), None);
            for (program, cpu) in
                programs.iter().flat_map(|one| missing.union(arrived).map(move |cpu| (one, cpu)))
            {
                if let Err(LinkError(reason)) = self.links.renew(&mut self.ebpf, program.name, *cpu)
                {
                    let text = format!("cannot attach {} on CPU {cpu}: {reason}", program.name);
                    if !missing.contains(cpu) {
                        tracing::warn!("{text}");
                    }
                    left.insert(*cpu);
                    refused.get_or_insert(text);
                }
            }
            let now = MonoNanos::now();
            let pause = self.pauses.entry(probe.name).or_default();
            let change = |attached| ProbeChange { probe: probe.name, attached };
            if before.is_none() {
                pause.begin(since, &why(arrived, refused));
                changes.push(change(false).event(since));
            }
            if left.is_empty() {
                pause.end(now);
                changes.push(change(true).event(now));
            } else {
                self.cpu_gaps.insert(probe.name, left);
            }
        }
        changes
    }

    /// Whether any program of the probe runs now.
    #[must_use]
    pub fn is_attached(&self, name: &str) -> bool {
        self.watching(name).is_ok()
    }

    /// When the probe was detached, and for how long; `None` when it never was.
    #[must_use]
    pub fn detached(&self, name: &str) -> Option<&Detached> {
        self.pauses.get(name)
    }

    /// The probe of this name, if it is attached now.
    fn watching(&self, name: &str) -> Result<&'static Probe, LiveError> {
        let not = || LiveError::NotAttached(name.to_owned());
        let probe = PROBES.into_iter().find(|probe| probe.name == name).ok_or_else(not)?;
        if self.programs_of(probe).is_empty() || self.is_detached(probe) {
            return Err(not());
        }
        Ok(probe)
    }

    fn is_detached(&self, probe: &Probe) -> bool {
        let is_under_way = self.pauses.get(probe.name).is_some_and(Detached::is_under_way);
        is_under_way && !self.cpu_gaps.contains_key(probe.name)
    }

    /// The programs of the probe's tier that the kernel took, begins before ends.
    pub(super) fn programs_of(&self, probe: &Probe) -> Vec<&'static Program> {
        let tier = self.choices.get(probe.name).and_then(|choice| choice.tier);
        let programs = tier.map_or(&[][..], |tier| tier.programs).iter();
        let taken =
            |program: &&Program| self.states.get(program.name) == Some(&ProgramState::Attached);
        programs.filter(taken).collect()
    }

    /// Whether an attached probe uses this program.
    fn is_needed(&self, program: &Program) -> bool {
        let attached = PROBES.into_iter().filter(|probe| !self.is_detached(probe));
        attached.flat_map(|probe| self.programs_of(probe)).any(|other| other.name == program.name)
    }

    /// Which program counts accepted sockets and failures depends on which probes are attached.
    fn select_descriptor_program(&self) {
        let socket = PROBES.into_iter().find(|probe| probe.sends(RecordKind::Socket));
        let calls_at = match socket {
            Some(probe) if self.is_detached(probe) => observer_ebpf::wire::CallExit::None,
            _ => attach::descriptor_calls_at(self.choices.get("socket"), &self.states),
        };
        self.config.set(super::DESCRIPTOR_CALLS_AT, calls_at as u64);
    }

    /// Clears the state of the probe's programs, once none of them can still be running.
    fn forget_begins(&self, probe: &Probe) -> Result<(), LiveError> {
        wait_for_running_programs();
        for kind in probe.kinds() {
            // The epoch of a state in task-local storage.
            let epoch = super::EPOCH + kind as usize;
            self.config.set(epoch, self.config.get(epoch) + 1);
        }
        if let Some(state) = probe.per_thread.filter(|_| !self.places.is_stored(probe)) {
            let PerThread { table: map, slot_bytes: value_bytes, begins: words, .. } = state;
            let entries = self.shape.task_slots as usize;
            self.clear(entries, &Remembered { map, value_bytes, words })?;
        }
        for own in probe.maps {
            let entries = match own.entries {
                Entries::PerCpu => self.shape.cpus,
                Entries::Fixed(entries) => entries as usize,
            };
            let ProbeMap { name: map, value_bytes, begins: words, .. } = *own;
            self.clear(entries, &Remembered { map, value_bytes, words })?;
        }
        Ok(())
    }

    fn clear(&self, entries: usize, remembered: &Remembered) -> Result<(), LiveError> {
        let failed = |reason: String| LiveError::State { map: remembered.map, reason };
        let Some(Map::Array(map)) = self.ebpf.map(remembered.map) else {
            return Err(failed("missing in the object".to_owned()));
        };
        zero(map.fd(), entries, remembered).map_err(|error| failed(error.to_string()))
    }
}

/// Why what happened on these CPUs was not seen.
fn why(arrived: &BTreeSet<u32>, refused: Option<String>) -> String {
    let named: Vec<String> = arrived.iter().map(|cpu| format!("CPU {cpu}")).collect();
    let arrived = format!("{} came online", named.join(", "));
    match refused {
        Some(refused) => format!("{arrived}; {refused}"),
        None => arrived,
    }
}

/// Zeroes some words of every value, through a mapping of a part of the map at a time: mapped whole
/// it would count as resident memory.
fn zero(fd: impl AsFd, entries: usize, remembered: &Remembered) -> std::io::Result<()> {
    const PART_BYTES: usize = 1 << 16;
    let value_words = remembered.value_bytes / 8;
    let all_bytes = entries * remembered.value_bytes;
    for from_bytes in (0..all_bytes).step_by(PART_BYTES) {
        rest();
        let length = PART_BYTES.min(all_bytes - from_bytes);
        let part = MappedWords::part(fd.as_fd(), from_bytes, length)?;
        for (index, word) in part.words().iter().enumerate() {
            if remembered.words.contains(&((from_bytes / 8 + index) % value_words)) {
                word.store(0, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Programs run under RCU, where they can be preempted as well, so an RCU grace period outlasts every
/// run that began before it. The global membarrier is one (`synchronize_rcu`,
/// kernel/sched/membarrier.c).
pub(crate) fn wait_for_running_programs() {
    if membarrier(MembarrierCommand::Global).is_err() {
        // Refused with CONFIG_NO_HZ_FULL CPUs. Far longer than a program runs, unless its thread is
        // preempted for that long.
        std::thread::sleep(Duration::from_millis(100));
    }
}
