//! Where the threads of the target waited: their stacks, by cause.

pub mod firefox;
pub mod folded;
pub(super) mod html;
pub mod json;
mod place;
mod rows;
pub mod text;

#[cfg(test)]
pub(crate) mod example;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use place::Place;
pub use rows::{StackRow, WaitingStacks};

use super::rundir::RunDir;
use super::text::{clean, count, duration};
use super::trace::TraceEvent;
use crate::correlate::{Absences, Part, ThreadTimes};
use crate::error::Result;
use crate::model::{Absence, Cause, ProbeState, RunInfo, Stacks, Stall, Summary, Tgid, Tid, files};

/// Name of the probe, and of the kind of its records.
const STACK: &str = "stack";
/// Absences of a run that are read; more are counted.
const ABSENCES_MAX: usize = 4_000_000;

/// What a run left about the stacks of its threads.
#[derive(Debug)]
pub struct RecordedStacks {
    /// How the run was made.
    pub run: RunInfo,
    absences: Absences,
    /// What can say why a thread was away.
    stalls: Vec<Stall>,
    stacks: Stacks,
    /// What should be known about all of it, one sentence each.
    notes: Vec<String>,
    /// What is wrong with the run directory, which a report says anyway.
    damage: Vec<String>,
}

/// Which part of the threads' time is wanted.
#[derive(Debug, Default)]
pub struct Selection {
    /// Only time of these causes; empty for all.
    pub causes: Vec<Cause>,
    /// Only these times.
    pub times: Option<ThreadTimes>,
}

impl Selection {
    /// In words; `None` for everything.
    fn text(&self) -> Option<String> {
        let names: Vec<&str> = self.causes.iter().map(|cause| cause.name()).collect();
        let causes = (!names.is_empty()).then(|| names.join(", "));
        let times = self.times.is_some().then(|| "within slow requests".to_owned());
        let text: Vec<String> = causes.into_iter().chain(times).collect();
        (!text.is_empty()).then(|| text.join(", "))
    }
}

impl RecordedStacks {
    /// Puts together what was recorded. Only absences and what may explain them is kept of the events.
    #[must_use]
    pub fn new(
        run: RunInfo,
        absences: Absences,
        stalls: Vec<Stall>,
        stacks: Stacks,
        notes: Vec<String>,
    ) -> Self {
        Self { run, absences, stalls, stacks, notes, damage: Vec::new() }
    }

    /// What is wrong with the run directory, one sentence each.
    #[must_use]
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Reads a run directory; `None` where the run watched no stacks. What is damaged becomes a note.
    ///
    /// # Errors
    /// [`crate::error::Exit::RunUnreadable`] when `stacks.json` cannot be read, or the directory cannot be
    /// listed.
    pub fn read(
        directory: &RunDir,
        run: &RunInfo,
        summary: Option<&Summary>,
    ) -> Result<Option<Self>> {
        let stacks = directory.read_stacks()?;
        let is_of_stacks = |name: &String| name.split('.').next() == Some(STACK);
        if stacks.is_none() && !run.streams.keys().any(is_of_stacks) {
            return Ok(None);
        }
        let (mut absences, mut beyond) = (Vec::new(), 0_u64);
        let found = directory.each_event(|events| {
            for absence in events.iter().filter_map(|row| Absence::from_event(&row.event)) {
                if absences.len() < ABSENCES_MAX {
                    absences.push(absence);
                } else {
                    beyond += 1;
                }
            }
        })?;
        let absences = Absences::new(absences);
        let mut stalls = Vec::new();
        directory.each_event(|events| {
            let all = events.iter().flat_map(TraceEvent::stalls);
            stalls.extend(all.filter(|stall| absences.concerns(stall)));
        })?;
        let mut notes = notes(run, summary);
        if beyond > 0 {
            let (more, kept) = (count(beyond), count(ABSENCES_MAX as u64));
            notes.push(format!("{more} more absences are not counted: {kept} are the most"));
        }
        match &stacks {
            None => notes.push(format!(
                "{} is missing or damaged, so that the functions are not known",
                files::STACKS
            )),
            Some(stacks) => notes.extend(not_known(&stacks.not_known)),
        }
        let mut damage = found.notes();
        damage.extend(directory.doubts());
        let stacks = stacks.unwrap_or_default();
        Ok(Some(Self { damage, ..Self::new(run.clone(), absences, stalls, stacks, notes) }))
    }

    /// Hands over each absence, by thread and in order of time, with those of its parts that are wanted.
    fn each(&self, selection: &Selection, mut each: impl FnMut(&Absence, &[Part])) {
        let Selection { causes, times } = selection;
        self.absences.split(&self.stalls, |absence, parts| {
            let mut wanted = match times {
                Some(times) => times.within(absence.tid, parts),
                None => parts.to_vec(),
            };
            wanted.retain(|part| causes.is_empty() || causes.contains(&part.cause));
            if !wanted.is_empty() {
                each(absence, &wanted);
            }
        });
    }

    /// The shortest absence that was recorded, nanoseconds; `None` where that is not known.
    fn floor_ns(&self) -> Option<u64> {
        self.run.floors_ns.get(STACK).copied()
    }

    /// Name of a thread, or its id in words.
    fn thread(&self, tid: Tid) -> String {
        let RunInfo { thread_names, target_processes, .. } = &self.run;
        let name = thread_names.get(&tid.0).or_else(|| target_processes.get(&tid.0));
        name.map_or_else(|| format!("thread {}", tid.0), |name| clean(name, 16))
    }

    /// Name of a process, or its id in words.
    fn process(&self, tgid: Tgid) -> String {
        let RunInfo { thread_names, target_processes, .. } = &self.run;
        let name = target_processes.get(&tgid.0).or_else(|| thread_names.get(&tgid.0));
        name.map_or_else(|| format!("process {}", tgid.0), |name| clean(name, 16))
    }
}

/// What should be known about the absences of a run, and about what explains them, one sentence each.
fn notes(run: &RunInfo, summary: Option<&Summary>) -> Vec<String> {
    let not_whole = |probe: &str| {
        let coverage = run.coverage.get(probe)?;
        let reason = coverage.reason.as_deref().map(|reason| format!(", {}", clean(reason, 200)));
        let state = format!("{}{}", coverage.state.name(), reason.unwrap_or_default());
        (coverage.state != ProbeState::Attached).then_some(state)
    };
    let missing = [
        (STACK, "absences are missing"),
        ("sleep", "it is not known what threads slept for"),
        ("runqueue", "it is not known when threads waited for a CPU"),
    ];
    let note = |(probe, what): &(&str, &str)| {
        not_whole(probe).map(|state| format!("{what}: probe {probe} is {state}"))
    };
    let mut notes: Vec<String> = missing.iter().filter_map(note).collect();
    let floor = summary.and_then(|summary| summary.floors.get(STACK));
    notes.extend(floor.filter(|floor| floor.raised_for_ns > 0).map(|floor| {
        let (highest, raised) = (floor.highest_ns as f64, floor.raised_for_ns as f64);
        format!(
            "for {} of the run, only absences of up to {} or longer were recorded",
            duration(raised),
            duration(highest)
        )
    }));
    let loss = summary.map_or(&run.loss, |summary| &summary.loss).of_target();
    let lost = missing.iter().filter_map(|(kind, _)| Some((kind, *loss.get(*kind)?)));
    let lost: Vec<String> = lost
        .filter(|(_, lost)| *lost > 0)
        .map(|(kind, lost)| format!("{kind} {}", count(lost)))
        .collect();
    if !lost.is_empty() {
        let lost = lost.join(", ");
        notes.push(format!("records were lost ({lost}): absences, or why they were, are missing"));
    }
    notes
}

/// What is not known of the stacks themselves.
fn not_known(by_kind: &BTreeMap<String, u64>) -> Option<String> {
    let kinds = by_kind.iter().filter(|(_, number)| **number > 0);
    let kinds: Vec<String> = kinds
        .map(|(kind, number)| format!("{} {}", clean(kind, 40).replace('_', " "), count(*number)))
        .collect();
    (!kinds.is_empty()).then(|| format!("parts of the stacks are not known: {}", kinds.join(", ")))
}
