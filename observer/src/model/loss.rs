//! Losses, as data: what may not have been counted or delivered, and which causes it can hide.

use std::collections::BTreeMap;

use super::{Cause, LossSummary};
use crate::clock::MonoNanos;

/// Whose loss it is, if the kernel does not count the target separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossScope {
    /// Possibly all the target's.
    Target,
    /// Some task of the host's.
    Host,
}

/// Which causes a loss can hide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hides {
    /// None: it is not a stall.
    Nothing,
    /// The stalls of these probes.
    Probes(&'static [&'static str]),
    /// It may have been a stall of any cause.
    Anything,
}

/// What is known about a kind of loss.
#[derive(Clone, Copy, Debug)]
pub struct LossInfo {
    /// The name in every output.
    pub id: &'static str,
    /// The name for users, a plural that follows a number.
    pub title: &'static str,
    /// What happened, one sentence.
    pub sentence: &'static str,
    /// Whose loss it is, if that was not counted.
    pub scope: LossScope,
    /// Which causes it can hide.
    pub hides: Hides,
    /// More than this share of the events lost: the missing ones may be the ones that matter.
    pub limit: f64,
    /// The share is of all waits of the target for a CPU, not of its recorded stalls.
    pub of_all_waits: bool,
}

/// The limit of most kinds.
const LIMIT: f64 = 0.001;

const RECORDS: LossInfo = LossInfo {
    id: "",
    title: "records",
    sentence: "The ring buffer was full.",
    scope: LossScope::Target,
    hides: Hides::Anything,
    limit: LIMIT,
    of_all_waits: false,
};

/// All kinds of loss, beside the records of stalls that found the ring full: these are named after
/// the record and hide the causes whose row names it ([`super::CauseInfo::record`]).
pub static LOSSES: &[LossInfo] = &[
    LossInfo { id: "socket", title: "socket records", hides: Hides::Nothing, ..RECORDS },
    LossInfo { id: "fd_failure", title: "fd_failure records", hides: Hides::Nothing, ..RECORDS },
    LossInfo { id: "task", title: "task records", hides: Hides::Nothing, ..RECORDS },
    LossInfo { id: "request", title: "request records", hides: Hides::Nothing, ..RECORDS },
    LossInfo { id: "stack", title: "stack records", hides: Hides::Nothing, ..RECORDS },
    LossInfo {
        id: "outgoing_request",
        title: "outgoing_request records",
        hides: Hides::Nothing,
        ..RECORDS
    },
    LossInfo {
        id: "connection_slot",
        title: "reads and writes of connections that are not in the table",
        sentence: "There were more connections than the table has room for.",
        hides: Hides::Nothing,
        ..RECORDS
    },
    LossInfo {
        id: "thread_name",
        title: "thread names",
        sentence: "There were more threads than names are kept for; the report shows their ids.",
        hides: Hides::Nothing,
        ..RECORDS
    },
    LossInfo {
        id: "cgroup_name",
        title: "records without the name of a cgroup",
        sentence: "Threads of more cgroups than names are kept for had the CPU.",
        hides: Hides::Nothing,
        ..RECORDS
    },
    LossInfo {
        id: "undelivered",
        title: "undelivered records",
        sentence: "Records were put into the ring buffer and never read.",
        ..RECORDS
    },
    LossInfo {
        id: "fault_kind_late",
        title: "faults recorded as minor that were major",
        sentence: "The kernel said that they were major after their records had been passed on.",
        hides: Hides::Probes(&["fault"]),
        ..RECORDS
    },
    LossInfo {
        id: "beyond_event_cap",
        title: "records beyond the limit of a run",
        sentence: "The run had more events than a run keeps.",
        ..RECORDS
    },
    LossInfo {
        id: "task_slot",
        title: "overwritten begin times",
        sentence: "Two live threads shared an entry of a table of threads, and one overwrote the other.",
        ..RECORDS
    },
    LossInfo {
        id: "thread_storage",
        title: "threads without storage",
        sentence: "The kernel had no memory at that moment for what a probe knows about a thread.",
        ..RECORDS
    },
    LossInfo {
        id: "end_without_begin",
        title: "ends without a begin",
        sentence: "The begin happened before the probe was attached, or was lost.",
        ..RECORDS
    },
    LossInfo {
        id: "begin_without_end",
        title: "begins without an end",
        sentence: "The kernel skipped the program at the end of a call or of a wait for a lock, the call \
                   never returned, or another interrupt came in the middle of one.",
        hides: Hides::Probes(&["mm_syscall", "softirq", "irq", "kernel_lock"]),
        ..RECORDS
    },
    LossInfo {
        id: "switch_missed",
        title: "sleeps and waits without an end",
        sentence: "The kernel switched to a thread without an event.",
        hides: Hides::Probes(&["sleep", "runqueue", "stack"]),
        // Each moves its time from one cause to another: a share changes by as much, and a smaller one
        // than this is not named.
        limit: 0.05,
        ..RECORDS
    },
    LossInfo {
        id: "throttle_slot",
        title: "cgroups whose throttling is not known",
        sentence: "The threads of more cgroups were throttled on a CPU than are kept.",
        hides: Hides::Probes(&["runqueue"]),
        ..RECORDS
    },
    LossInfo {
        id: "compat_syscall",
        title: "32-bit system calls",
        sentence: "System calls of the 32-bit ABI are not watched.",
        hides: Hides::Probes(&["mm_syscall"]),
        ..RECORDS
    },
    LossInfo {
        id: "sleep_booked_as_wait",
        title: "waits with a wrong begin",
        sentence: "The kernel counted time asleep as time on the run queue (Linux 6.12 and later).",
        hides: Hides::Probes(&["runqueue"]),
        // These waits can have any length, and they are ordinary wake-ups, so a higher share may be
        // missing: a full ring, in contrast, loses records at the worst moment.
        limit: 0.05,
        of_all_waits: true,
        ..RECORDS
    },
    LossInfo {
        id: "program_missed",
        title: "skipped runs of BPF programs",
        sentence: "The kernel skipped a program because another one was running on that CPU.",
        ..RECORDS
    },
    LossInfo {
        id: "cgroup_slot",
        title: "stalls of cgroups without a row",
        sentence: "There were more cgroups than the metrics have room for; these stalls are in one \
                   common row.",
        scope: LossScope::Host,
        hides: Hides::Nothing,
        ..RECORDS
    },
    LossInfo {
        id: "socket_slot",
        title: "sockets without an entry",
        sentence: "There were more sockets than the table has room for.",
        scope: LossScope::Host,
        hides: Hides::Nothing,
        ..RECORDS
    },
];

/// The row of a kind of loss. A kind without one may be a loss of anything.
#[must_use]
pub fn loss_info(kind: &str) -> LossInfo {
    LOSSES.iter().find(|info| info.id == kind).copied().unwrap_or(RECORDS)
}

/// The causes that a loss of this kind can hide.
#[must_use]
pub fn hidden_causes(kind: &str) -> Vec<Cause> {
    let stalls = || Cause::all().filter(|cause| cause.is_recorded());
    let of_record: Vec<Cause> = stalls().filter(|c| c.comes_as(kind)).collect();
    if !of_record.is_empty() {
        return of_record;
    }
    match loss_info(kind).hides {
        Hides::Nothing => Vec::new(),
        Hides::Anything => stalls().collect(),
        Hides::Probes(probes) => {
            let seen_by = |cause: &Cause| cause.info().probe.is_some_and(|p| probes.contains(&p));
            stalls().filter(seen_by).collect()
        }
    }
}

/// What was lost within one short span of time, at most a few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossSpan {
    /// From here,
    pub start: MonoNanos,
    /// to here.
    pub end: MonoNanos,
    /// Kind of loss.
    pub kind: String,
    /// The target's part.
    pub count: u64,
}

impl LossSummary {
    /// The target's losses by kind: as counted, or, where they were not counted apart, all of the
    /// kinds that may be the target's.
    #[must_use]
    pub fn of_target(&self) -> BTreeMap<String, u64> {
        let counted = self.target_by_kind.as_ref();
        counted.cloned().unwrap_or_else(|| {
            let of_target =
                |(kind, _): &(&String, &u64)| loss_info(kind).scope == LossScope::Target;
            self.by_kind.iter().filter(of_target).map(|(kind, n)| (kind.clone(), *n)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_have_ids_of_their_own_and_whole_sentences() {
        let ids: BTreeSet<&str> = LOSSES.iter().map(|info| info.id).collect();
        assert_eq!(ids.len(), LOSSES.len());
        assert!(LOSSES.iter().all(|info| info.sentence.ends_with('.') && !info.title.is_empty()));
    }

    #[test]
    fn every_kind_of_the_kernel_side_is_known() {
        use observer_ebpf::wire::{LossKind, RecordKind};
        for kind in LossKind::ALL {
            assert!(LOSSES.iter().any(|info| info.id == kind.name()), "{}", kind.name());
        }
        for kind in RecordKind::ALL {
            let of_cause = Cause::all().any(|cause| cause.comes_as(kind.name()));
            let of_loss = LOSSES.iter().any(|info| info.id == kind.name());
            assert!(of_cause != of_loss, "{} has exactly one row", kind.name());
        }
        assert_eq!(hidden_causes("fault"), [Cause::FAULT_MINOR, Cause::FAULT_MAJOR]);
        assert_eq!(hidden_causes("mm_syscall_burst"), [Cause::MM_SYSCALL]);
        let waits = [
            Cause::CPU_THROTTLE,
            Cause::RUNQUEUE_OTHER,
            Cause::RUNQUEUE_SELF,
            Cause::RUNQUEUE_IDLE,
            Cause::RUNQUEUE,
        ];
        assert_eq!(hidden_causes("sleep_booked_as_wait"), waits);
        assert!(hidden_causes("cgroup_slot").is_empty());
        let stalls = Cause::all().filter(|cause| cause.is_recorded()).count();
        assert_eq!(hidden_causes("unheard_of").len(), stalls);
    }

    #[test]
    fn the_hosts_losses_are_not_the_targets() {
        let by_kind = [("cgroup_slot", 9), ("program_missed", 4), ("unheard_of", 2)];
        let by_kind = by_kind.map(|(kind, count)| (kind.to_owned(), count)).into();
        let mut loss = LossSummary { by_kind, ..LossSummary::default() };
        let of_target: Vec<String> = loss.of_target().into_keys().collect();
        assert_eq!(of_target, ["program_missed", "unheard_of"]);
        loss.target_by_kind = Some(BTreeMap::from([("task_slot".to_owned(), 1)]));
        assert_eq!(loss.of_target(), BTreeMap::from([("task_slot".to_owned(), 1)]));
    }
}
