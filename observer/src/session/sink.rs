//! Where events go from the ring: a list of sinks, each of which does one thing with them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use observer_ebpf::wire::{TASK_FORK, TASK_JOIN, TaskRecord};

use super::Captured;
use super::drain::Reach;
use crate::aggregate::CauseRecorder;
use crate::clock::MonoNanos;
use crate::model::{Event, Tgid};
use crate::text::until_nul;

/// Forks that were delivered and not yet handled.
const BIRTHS_MAX: usize = 65_536;
/// Thread names kept for the report.
pub(super) const NAMES_MAX: usize = 50_000;

/// Takes events as they come.
pub(super) trait Sink: Send {
    /// Takes one event.
    fn event(&mut self, event: &Event);

    /// About a second has passed, or less at the beginning. The events so far reach so far.
    fn tick(&mut self, _now: MonoNanos, _reach: Reach) {}

    /// There are no more events; adds what was gathered.
    fn finish(self: Box<Self>, captured: &mut Captured);
}

/// Distributions of the stalls by cause.
#[derive(Default)]
pub(super) struct Stalls(CauseRecorder);

impl Sink for Stalls {
    fn event(&mut self, event: &Event) {
        self.0.record_event(event);
    }

    fn finish(self: Box<Self>, captured: &mut Captured) {
        captured.recorder = self.0;
    }
}

/// Command names of threads, from forks, execs and exits.
#[derive(Default)]
pub(super) struct Names {
    names: BTreeMap<u32, String>,
    /// Threads in the order of their first name: if there are too many, the oldest is dropped.
    order: VecDeque<u32>,
    dropped: u64,
}

impl Sink for Names {
    fn event(&mut self, event: &Event) {
        let Some(task) = event.record::<TaskRecord>() else { return };
        if self.names.insert(event.tid.0, until_nul(&task.comm).into_owned()).is_none() {
            self.order.push_back(event.tid.0);
        }
        if self.names.len() > NAMES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
            self.dropped += 1;
        }
    }

    fn finish(self: Box<Self>, captured: &mut Captured) {
        captured.thread_names = self.names;
        captured.names_dropped = self.dropped;
    }
}

/// A new process of the target. It may be gone again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Birth {
    /// The process.
    pub(super) tgid: Tgid,
    /// Its name at that time.
    pub(super) comm: String,
    /// When it was forked, or joined.
    pub(super) at: MonoNanos,
    /// A process of the target forked it.
    pub(super) forked: bool,
}

/// Passes the target's new processes to the code that follows the target.
pub(super) struct Births(SyncSender<Birth>);

impl Births {
    /// The sink, and the list it fills.
    pub(super) fn new() -> (Self, Receiver<Birth>) {
        let (sender, receiver) = sync_channel(BIRTHS_MAX);
        (Self(sender), receiver)
    }
}

impl Sink for Births {
    fn event(&mut self, event: &Event) {
        let Some(task) = event.record::<TaskRecord>() else { return };
        if event.flags & (TASK_FORK | TASK_JOIN) != 0 && event.tid.0 == event.tgid.0 {
            // There is no receiver once the run is over. A process that does not fit is found by
            // the next scan of /proc.
            let comm = until_nul(&task.comm).into_owned();
            let forked = event.flags & TASK_FORK != 0;
            let birth = Birth { tgid: event.tgid, comm, at: event.end, forked };
            let _ = self.0.try_send(birth);
        }
    }

    fn finish(self: Box<Self>, _captured: &mut Captured) {}
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{RecordKind, TASK_EXIT};

    use super::*;
    use crate::output::example;

    fn task(tid: u32, flags: u16, name: &[u8]) -> Event {
        let mut comm = [0; 16];
        comm[..name.len()].copy_from_slice(name);
        let header = example::header(RecordKind::Task, flags, tid, 5_000, 0);
        example::event(&TaskRecord { header, parent_tid: 1, reserved: 0, comm })
    }

    #[test]
    fn of_too_many_names_the_oldest_goes() {
        let mut names = Box::new(Names::default());
        let count = NAMES_MAX as u32 + 3;
        for tid in 1..=count {
            names.event(&task(tid, TASK_FORK, b"old"));
        }
        names.event(&task(count, TASK_EXIT, b"new"));
        let mut captured = Captured::default();
        names.finish(&mut captured);
        assert_eq!((captured.thread_names.len(), captured.names_dropped), (NAMES_MAX, 3));
        assert_eq!(captured.thread_names.first_key_value(), Some((&4, &"old".to_owned())));
        assert_eq!(captured.thread_names[&count], "new");
    }

    #[test]
    fn only_processes_are_births() {
        let (mut births, told) = Births::new();
        births.event(&task(100, TASK_FORK, b"process"));
        births.event(&task(101, TASK_FORK, b"thread"));
        births.event(&task(100, TASK_EXIT, b"process"));
        births.event(&task(100, TASK_JOIN, b"worker"));
        births.event(&example::fault(1, 1, 1));
        let told: Vec<_> =
            told.try_iter().map(|birth| (birth.tgid, birth.comm, birth.forked)).collect();
        let wanted = [(Tgid(100), "process".into(), true), (Tgid(100), "worker".into(), false)];
        assert_eq!(told, wanted);
    }
}
