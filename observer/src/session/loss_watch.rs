//! Losses by the second: the increments of the kernel side's counters, as events of the trace.

use observer_ebpf::wire::LOSS_SLOTS;

use super::Capture;
use crate::clock::MonoNanos;
use crate::kernel::Kernel;
use crate::model::{Event, LossScope, LossSecond, loss_name};

/// Pause between two readings that may become events.
const INTERVAL_NS: u64 = 1_000_000_000;
/// Pause between two readings of a run that show whether anything was lost.
const CHECK_NS: u64 = 200_000_000;

/// Counters of losses by scope, at one reading.
type Losses = [(LossScope, [u64; LOSS_SLOTS]); 2];

/// Reads the counters about once a second.
pub(super) struct LossWatch {
    before: Losses,
    looked: MonoNanos,
    checked: MonoNanos,
    /// Pause between two readings.
    check_ns: u64,
    /// Not taken by the sinks yet.
    pending: Vec<Event>,
}

fn losses(kernel: &Kernel) -> Losses {
    let losses = kernel.losses();
    [(LossScope::Target, losses.lost_target), (LossScope::Host, losses.lost)]
}

/// The losses between two readings.
fn grown(before: &Losses, now: &Losses) -> Vec<LossSecond> {
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
        let now = MonoNanos::now();
        let (before, check_ns, pending) = (losses(kernel), INTERVAL_NS, Vec::new());
        Self { before, looked: now, checked: now, check_ns, pending }
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
    pub(super) fn tick(&mut self, kernel: &Kernel, capture: &Capture) {
        let now = MonoNanos::now();
        if now.since(self.looked) >= INTERVAL_NS {
            self.look(kernel, capture);
        } else if now.since(self.checked) >= self.check_ns && self.pending.is_empty() {
            self.checked = now;
            if losses(kernel) == self.before {
                capture.counts().note_losses_until(now);
            }
        }
    }

    /// The end: the losses since the last reading.
    pub(super) fn finish(mut self, kernel: &Kernel, capture: &Capture) {
        self.look(kernel, capture);
        capture.note_last(self.pending);
    }

    fn look(&mut self, kernel: &Kernel, capture: &Capture) {
        let (now, current) = (MonoNanos::now(), losses(kernel));
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
