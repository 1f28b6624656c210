//! Records that may still be corrected: the kernel side sometimes learns right after the record of a
//! minor fault that the fault was a major one.

use std::time::{Duration, Instant};

use observer_ebpf::wire::{FAULT_CORRECTS, FAULT_MAJOR, RecordKind};

use crate::clock::MonoNanos;
use crate::model::Event;

/// How long a record is kept back at least. The correction comes within a few microseconds, unless
/// the thread is preempted between the two.
pub(super) const SETTLED_AFTER: Duration = Duration::from_millis(10);

/// Keeps back the records of minor faults for a moment.
pub(super) struct Settling {
    /// Kept back since before `turned`.
    older: Vec<Event>,
    newer: Vec<Event>,
    turned: Instant,
}

/// What happened to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in the batch, or will be in a later one.
    Record,
    /// It corrected another one.
    Correction,
    /// It corrects one that was passed on already.
    TooLate,
}

impl Settling {
    pub(super) fn new() -> Self {
        Self { older: Vec::new(), newer: Vec::new(), turned: Instant::now() }
    }

    /// Takes an event; what cannot be corrected goes into the batch.
    pub(super) fn take(&mut self, event: Event, batch: &mut Vec<Event>) -> Taken {
        let flags = event.flags;
        if event.row().kind != RecordKind::Fault as u16 || flags & FAULT_MAJOR != 0 {
            batch.push(event);
        } else if flags & FAULT_CORRECTS != 0 {
            let kept_back = self.older.iter_mut().chain(&mut self.newer);
            let Some(last) = kept_back.rev().find(|kept| kept.tid == event.tid) else {
                return Taken::TooLate;
            };
            last.flags |= FAULT_MAJOR;
            return Taken::Correction;
        } else {
            self.newer.push(event);
        }
        Taken::Record
    }

    /// Moves what has been kept back for long enough into the batch. Call it when the ring was empty
    /// or a batch is full.
    pub(super) fn pass_on(&mut self, now: Instant, batch: &mut Vec<Event>) {
        if now.duration_since(self.turned) >= SETTLED_AFTER {
            self.turned = now;
            batch.append(&mut self.older);
            std::mem::swap(&mut self.older, &mut self.newer);
        }
    }

    /// Whether anything is kept back.
    pub(super) fn is_empty(&self) -> bool {
        self.older.is_empty() && self.newer.is_empty()
    }

    /// The first instant at which something that is kept back ended.
    pub(super) fn earliest(&self) -> Option<MonoNanos> {
        self.older.iter().chain(&self.newer).map(|event| event.end).min()
    }

    /// Moves everything into the batch: nothing more will come.
    pub(super) fn finish(&mut self, batch: &mut Vec<Event>) {
        batch.append(&mut self.older);
        batch.append(&mut self.newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tid;
    use crate::probe;

    fn fault(tid: u32, end_ns: u64, flags: u16) -> Event {
        let row = probe::record(RecordKind::Fault).expect("a row");
        let mut event = Event::empty(row);
        (event.tid, event.end, event.flags) = (Tid(tid), MonoNanos(end_ns), flags);
        event
    }

    fn of(batch: &[Event]) -> Vec<(u32, u64, u16)> {
        batch.iter().map(|event| (event.tid.0, event.end.0, event.flags)).collect()
    }

    #[test]
    fn a_correction_changes_the_last_record_of_its_thread_and_no_other() {
        let mut settling = Settling::new();
        let mut batch = Vec::new();
        for (tid, end_ns) in [(1, 10), (2, 11), (1, 12), (2, 13)] {
            assert_eq!(settling.take(fault(tid, end_ns, 0), &mut batch), Taken::Record);
        }
        assert_eq!(settling.take(fault(1, 14, FAULT_CORRECTS), &mut batch), Taken::Correction);
        assert_eq!(settling.take(fault(3, 15, FAULT_MAJOR), &mut batch), Taken::Record);
        assert_eq!(of(&batch), [(3, 15, FAULT_MAJOR)], "the others may change");
        settling.finish(&mut batch);
        let others = [(1, 10, 0), (2, 11, 0), (1, 12, FAULT_MAJOR), (2, 13, 0)];
        assert_eq!(of(&batch)[1..], others);
        assert!(settling.is_empty());
    }

    #[test]
    fn a_record_is_passed_on_after_it_was_kept_back_long_enough() {
        let mut settling = Settling::new();
        let mut batch = Vec::new();
        let begin = settling.turned;
        settling.take(fault(1, 10, 0), &mut batch);
        settling.take(fault(2, 9, FAULT_MAJOR), &mut batch);
        assert_eq!(settling.earliest(), Some(MonoNanos(10)), "the other one is passed on");
        batch.clear();
        settling.pass_on(begin, &mut batch);
        settling.pass_on(begin + SETTLED_AFTER, &mut batch);
        assert!(batch.is_empty() && !settling.is_empty(), "it may have come just before");
        assert_eq!(settling.take(fault(1, 11, FAULT_CORRECTS), &mut batch), Taken::Correction);
        settling.pass_on(begin + 2 * SETTLED_AFTER, &mut batch);
        assert_eq!(of(&batch), [(1, 10, FAULT_MAJOR)]);
        assert_eq!(settling.take(fault(1, 12, FAULT_CORRECTS), &mut batch), Taken::TooLate);
        assert!(settling.is_empty() && settling.earliest().is_none());
    }
}
