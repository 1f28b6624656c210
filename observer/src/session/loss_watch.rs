//! Losses by the second: the increments of the kernel side's counters, as events of the trace.

use std::cell::OnceCell;

use observer_ebpf::wire::LOSS_SLOTS;

use super::Capture;
use crate::aggregate::Snapshot;
use crate::clock::MonoNanos;
use crate::kernel::Kernel;
use crate::model::{Event, LossScope, LossSecond, loss_name};

/// Pause between two readings that may become events.
const INTERVAL_NS: u64 = 1_000_000_000;
/// Pause between two readings of a run that show whether anything was lost.
const CHECK_NS: u64 = 200_000_000;

/// Counters of losses by scope, at one reading.
type Counters = [(LossScope, [u64; LOSS_SLOTS]); 2];

/// The losses so far, read when they are first asked for: each reading takes a system call for each
/// program.
pub(super) struct Losses<'a> {
    kernel: &'a Kernel,
    read: OnceCell<(MonoNanos, Snapshot)>,
}

impl<'a> Losses<'a> {
    /// Not read yet.
    pub(super) const fn later(kernel: &'a Kernel) -> Self {
        Self { kernel, read: OnceCell::new() }
    }

    /// As of now, or as of the first call.
    pub(super) fn read(&self) -> &Snapshot {
        &self.reading().1
    }

    /// The instant comes first: what was lost before it is in the counters.
    fn reading(&self) -> &(MonoNanos, Snapshot) {
        self.read.get_or_init(|| (MonoNanos::now(), self.kernel.losses()))
    }

    fn counters(&self) -> (MonoNanos, Counters) {
        let (at, losses) = self.reading();
        let target = (LossScope::Target, losses.lost_target);
        (*at, [target, (LossScope::Host, losses.lost)])
    }
}

/// Reads the counters about once a second.
pub(super) struct LossWatch {
    before: Counters,
    looked: MonoNanos,
    checked: MonoNanos,
    /// Pause between two readings.
    check_ns: u64,
    /// Not taken by the sinks yet.
    pending: Vec<Event>,
}

/// The losses between two readings.
fn grown(before: &Counters, now: &Counters) -> Vec<LossSecond> {
    let mut grown = Vec::new();
    for ((scope, now), (_, before)) in now.iter().zip(before) {
        for (index, (now, before)) in (0u32..).zip(now.iter().zip(before)) {
            let count = now.saturating_sub(*before);
            if count > 0 && loss_name(index).is_some() {
                grown.push(LossSecond { loss: index, scope: *scope, count });
            }
        }
    }
    grown
}

impl LossWatch {
    /// Earlier losses do not count.
    pub(super) fn new(kernel: &Kernel) -> Self {
        let (now, before) = Losses::later(kernel).counters();
        Self { before, looked: now, checked: now, check_ns: INTERVAL_NS, pending: Vec::new() }
    }

    /// Of a run, whose answer should reach as far as possible if it is killed.
    pub(super) fn of_run(kernel: &Kernel) -> Self {
        Self { check_ns: CHECK_NS, ..Self::new(kernel) }
    }

    /// Something else that observer has to note in the trace.
    pub(super) fn note(&mut self, events: Vec<Event>) {
        self.pending.extend(events);
    }

    /// Call it often.
    pub(super) fn tick(&mut self, losses: &Losses<'_>, capture: &Capture) {
        let now = MonoNanos::now();
        if now.since(self.looked) >= INTERVAL_NS {
            self.look(losses, capture);
        } else if now.since(self.checked) >= self.check_ns && self.pending.is_empty() {
            let (now, current) = losses.counters();
            self.checked = now;
            if current == self.before {
                capture.counts().note_losses_until(now);
            }
        }
    }

    /// The end: the losses since the last reading.
    pub(super) fn finish(mut self, kernel: &Kernel, capture: &Capture) {
        self.look(&Losses::later(kernel), capture);
        capture.note_last(self.pending);
    }

    fn look(&mut self, losses: &Losses<'_>, capture: &Capture) {
        let (now, current) = losses.counters();
        let grown = grown(&self.before, &current);
        self.pending.extend(grown.iter().map(|loss| loss.event(now, self.looked)));
        (self.before, self.looked, self.checked) = (current, now, now);
        if !self.pending.is_empty() {
            self.pending = capture.note(std::mem::take(&mut self.pending));
        }
        if self.pending.is_empty() {
            capture.counts().note_losses_until(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{KIND_SLOTS, LossKind, RecordKind};

    use super::*;

    #[test]
    fn only_what_grew_is_noted_under_its_scope() {
        let mut counts = [5; LOSS_SLOTS];
        let before = [(LossScope::Target, counts), (LossScope::Host, counts)];
        assert_eq!(grown(&before, &before), []);
        let index = KIND_SLOTS + LossKind::CgroupSlot as usize;
        counts[index] = 12;
        let mut target = [5; LOSS_SLOTS];
        target[RecordKind::Fault as usize] = 6;
        let now = [(LossScope::Target, target), (LossScope::Host, counts)];
        let wanted = [
            LossSecond { loss: RecordKind::Fault as u32, scope: LossScope::Target, count: 1 },
            LossSecond { loss: index as u32, scope: LossScope::Host, count: 7 },
        ];
        assert_eq!(grown(&before, &now), wanted);
    }
}
