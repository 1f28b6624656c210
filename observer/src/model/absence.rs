//! Absences: when a thread was away from the CPU, and its stacks then.

use observer_ebpf::wire::{STACK_PREEMPTED, StackRecord};

use super::{Event, Tgid, Tid};
use crate::clock::MonoNanos;

/// A thread was away from the CPU: it slept, or waited for a CPU, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absence {
    /// When it ran again.
    pub end: MonoNanos,
    /// How long it was away.
    pub duration_ns: u64,
    /// The thread.
    pub tid: Tid,
    /// Its process.
    pub tgid: Tgid,
    /// It was preempted: it could have run all the time.
    pub preempted: bool,
    /// Id of the kernel's part of its stack; negative where there is none: the number of an error.
    pub kernel_stack: i32,
    /// Id of the part in user space, in the same way.
    pub user_stack: i32,
}

impl Absence {
    /// The absence that an event of kind `stack` stands for; `None` for the other kinds.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let StackRecord { kernel_stack, user_stack, .. } = event.record()?;
        Some(Self {
            end: event.end,
            duration_ns: event.duration_ns,
            tid: event.tid,
            tgid: event.tgid,
            preempted: event.flags & STACK_PREEMPTED != 0,
            kernel_stack,
            user_stack,
        })
    }

    /// When it left the CPU.
    #[must_use]
    pub const fn start(&self) -> MonoNanos {
        MonoNanos(self.end.0.saturating_sub(self.duration_ns))
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::output::example;

    #[test]
    fn an_absence_is_what_its_record_says() {
        let record = |flags| StackRecord {
            header: example::header(RecordKind::Stack, flags, 101, 9_000, 3_000),
            kernel_stack: 7,
            user_stack: -14,
        };
        let of = |flags| Absence::from_event(&example::event(&record(flags))).expect("an absence");
        let slept = of(0);
        assert_eq!((slept.start(), slept.end), (MonoNanos(6_000), MonoNanos(9_000)));
        assert_eq!((slept.tid, slept.tgid), (Tid(101), Tgid(100)));
        assert_eq!((slept.kernel_stack, slept.user_stack), (7, -14));
        assert!(!slept.preempted && of(STACK_PREEMPTED).preempted);
        assert_eq!(Absence::from_event(&example::fault(1, 1, 1)), None);
    }
}
