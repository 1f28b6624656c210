//! The time of threads, summed up by cause, thread and stack.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::place::Table;
use super::{Place, RecordedStacks, Selection};
use crate::model::Cause;
use crate::output::text::{count, duration, percent};
use crate::text::without_number;

/// The time of one cause in threads of one name with one stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackRow {
    /// Why the threads were away from the CPU; [`Cause::UNEXPLAINED`] where no record says it.
    pub cause: Cause,
    /// Name of the threads.
    pub thread: Arc<str>,
    /// The part of the stack in user space, the innermost place first.
    pub user: Arc<[Place]>,
    /// The kernel's part, in the same way.
    pub kernel: Arc<[Place]>,
    /// Absences of which this cause had a part.
    pub count: u64,
    /// Time of this cause in them, nanoseconds.
    pub time_ns: u64,
}

impl StackRow {
    /// The most time first, and always in the same order.
    fn order(&self) -> (Reverse<u64>, Cause, &str, &[Place], &[Place]) {
        (Reverse(self.time_ns), self.cause, &self.thread, &self.kernel, &self.user)
    }
}

/// Where the threads of the target waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingStacks {
    /// Those that were selected, the most time first.
    pub rows: Vec<StackRow>,
    /// Absences of the run.
    pub absences: u64,
    /// Their time, nanoseconds; the rows have all of it unless something was selected.
    pub time_ns: u64,
    /// The shortest absence that was recorded, nanoseconds; `None` where that is not known.
    pub floor_ns: Option<u64>,
    /// What was selected, in words; `None` for everything.
    pub selected: Option<String>,
    /// What should be known about all of it, one sentence each.
    pub notes: Vec<String>,
}

impl RecordedStacks {
    /// Sums up what is wanted.
    #[must_use]
    pub fn sum_up(&self, selection: &Selection) -> WaitingStacks {
        let mut table = Table::new(&self.stacks);
        let mut names: HashMap<String, u32> = HashMap::new();
        let mut threads: Vec<Arc<str>> = Vec::new();
        let mut sums: HashMap<(Cause, u32, u32, u32), (u64, u64)> = HashMap::new();
        // Absences come thread by thread.
        let mut last = None;
        self.each(selection, |absence, parts| {
            let (kernel, user) = table.of(absence);
            let thread = match last {
                Some((tid, thread)) if tid == absence.tid => thread,
                _ => *names.entry(self.thread(absence.tid)).or_insert_with_key(|name| {
                    threads.push(name.as_str().into());
                    threads.len() as u32 - 1
                }),
            };
            last = Some((absence.tid, thread));
            for (place, part) in parts.iter().enumerate() {
                let is_new = parts[..place].iter().all(|before| before.cause != part.cause);
                let (number, time_ns) = sums.entry((part.cause, thread, user, kernel)).or_default();
                *number += u64::from(is_new);
                *time_ns = time_ns.saturating_add(part.ns);
            }
        });
        let rows =
            sums.into_iter().map(|((cause, thread, user, kernel), (count, time_ns))| StackRow {
                cause,
                thread: Arc::clone(&threads[thread as usize]),
                user: table.places(user),
                kernel: table.places(kernel),
                count,
                time_ns,
            });
        let mut rows: Vec<StackRow> = rows.collect();
        rows.sort_unstable_by(|one, other| one.order().cmp(&other.order()));
        let all = self.absences.all();
        WaitingStacks {
            rows,
            absences: all.len() as u64,
            time_ns: all.iter().fold(0, |sum, one| sum.saturating_add(one.duration_ns)),
            floor_ns: self.floor_ns(),
            selected: selection.text(),
            notes: self.notes.clone(),
        }
    }
}

/// The stacks of one cause, threads of all names together.
#[derive(Debug)]
pub(super) struct OfCause<'a> {
    pub(super) cause: Cause,
    pub(super) time_ns: u64,
    /// The most time first.
    pub(super) stacks: Vec<OfStack<'a>>,
}

/// The time of one cause with one stack.
#[derive(Debug)]
pub(super) struct OfStack<'a> {
    pub(super) user: &'a [Place],
    pub(super) kernel: &'a [Place],
    pub(super) count: u64,
    pub(super) time_ns: u64,
    /// Names of threads without their numbers, each with its time.
    threads: BTreeMap<String, u64>,
}

/// Names of threads that are shown of a stack.
const NAMES_SHOWN: usize = 4;

impl OfStack<'_> {
    /// The places, the innermost first, and whether each is in the kernel.
    pub(super) fn places(&self) -> impl Iterator<Item = (&Place, bool)> {
        let kernel = self.kernel.iter().map(|place| (place, true));
        kernel.chain(self.user.iter().map(|place| (place, false)))
    }

    /// The place that says most, and whether it is in the kernel: all threads leave the CPU in the scheduler.
    pub(super) fn telling(&self) -> Option<(&Place, bool)> {
        let is_known = |place: &&Place| place.function.is_some() && place.file().is_some();
        let user = self.user.iter().find(is_known).map(|place| (place, false));
        let is_other = |place: &&Place| !place.name().contains("schedule");
        let kernel = || self.kernel.iter().find(is_other).map(|place| (place, true));
        user.or_else(kernel).or_else(|| self.places().next())
    }

    /// The threads by name, those with the most time first: `worker-*, service and 2 more`.
    pub(super) fn threads(&self) -> String {
        let mut names: Vec<(&String, &u64)> = self.threads.iter().collect();
        names.sort_by_key(|(_, time_ns)| Reverse(**time_ns));
        let shown: Vec<&str> =
            names.iter().take(NAMES_SHOWN).map(|(name, _)| name.as_str()).collect();
        let more = names.len().saturating_sub(NAMES_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        shown.join(", ") + &more
    }
}

impl WaitingStacks {
    /// The time of the rows together, nanoseconds.
    #[must_use]
    pub fn shown_ns(&self) -> u64 {
        self.rows.iter().fold(0, |sum, row| sum.saturating_add(row.time_ns))
    }

    /// What the rows are about, in a sentence or two.
    pub(super) fn headline(&self) -> String {
        let least = self.floor_ns.map_or_else(String::new, |floor_ns| {
            format!(" of {} or longer", duration(floor_ns as f64))
        });
        if self.absences == 0 {
            return match self.floor_ns {
                Some(floor_ns) => format!(
                    "No thread of the target was away from the CPU for {} or longer.",
                    duration(floor_ns as f64)
                ),
                None => "No thread of the target was seen to be away from the CPU.".to_owned(),
            };
        }
        let mut text = format!(
            "The threads of the target were away from the CPU for {} together, in {} absence{}{least}.",
            duration(self.time_ns as f64),
            count(self.absences),
            if self.absences == 1 { "" } else { "s" },
        );
        if let Some(selected) = &self.selected {
            text +=
                &format!(" Of that, {} are shown: {selected}.", duration(self.shown_ns() as f64));
        }
        text
    }

    /// The part that a time has of all that is shown.
    pub(super) fn share(&self, time_ns: u64) -> String {
        percent(time_ns as f64 / self.shown_ns().max(1) as f64)
    }

    /// By cause, the most time first.
    pub(super) fn by_cause(&self) -> Vec<OfCause<'_>> {
        let mut places: HashMap<(Cause, &[Place], &[Place]), usize> = HashMap::new();
        let mut causes: BTreeMap<Cause, OfCause<'_>> = BTreeMap::new();
        for row in &self.rows {
            let StackRow { cause, user, kernel, count, time_ns, .. } = row;
            let of_cause = causes.entry(*cause).or_insert_with(|| OfCause {
                cause: *cause,
                time_ns: 0,
                stacks: Vec::new(),
            });
            of_cause.time_ns = of_cause.time_ns.saturating_add(*time_ns);
            let next = of_cause.stacks.len();
            let place = *places.entry((*cause, &**user, &**kernel)).or_insert(next);
            if place == next {
                of_cause.stacks.push(OfStack {
                    user,
                    kernel,
                    count: 0,
                    time_ns: 0,
                    threads: BTreeMap::new(),
                });
            }
            let stack = &mut of_cause.stacks[place];
            stack.count += count;
            stack.time_ns = stack.time_ns.saturating_add(*time_ns);
            let thread = stack.threads.entry(without_number(&row.thread)).or_default();
            *thread = thread.saturating_add(*time_ns);
        }
        let mut causes: Vec<OfCause<'_>> = causes.into_values().collect();
        causes.sort_by_key(|of_cause| Reverse(of_cause.time_ns));
        for of_cause in &mut causes {
            of_cause.stacks.sort_by_key(|stack| Reverse(stack.time_ns));
        }
        causes
    }
}
