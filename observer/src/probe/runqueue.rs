//! `runqueue`: runnable, but not running.

use observer_ebpf::wire::{Header, RUNQUEUE_PREEMPTED, RecordKind, RunqueueRecord};

use super::{Attach, Probe, Program, comm, read};
use crate::model::{Cause, EventKind, Tgid, Tid};

pub(super) const PROBE: Probe = Probe {
    name: "runqueue",
    about: "Time from wake-up (or preemption) of a thread until it runs.",
    notes: "The rule is that of the kernel's run delay (the second field of \
            /proc/PID/task/TID/schedstat). A record names the thread that had the CPU until the \
            wait ended; the idle task (0) means the CPU was waking up. The wait of the idle task \
            itself is no stall.",
    programs: &[
        Program {
            name: "sched_wakeup",
            attach: Attach::TpBtf("sched_wakeup", 1),
            gives: "waits after a wake-up",
        },
        Program {
            name: "sched_wakeup_new",
            attach: Attach::TpBtf("sched_wakeup_new", 1),
            gives: "first waits of new threads",
        },
        Program {
            name: "sched_switch",
            attach: Attach::TpBtf("sched_switch", 4),
            gives: "all waits",
        },
    ],
    records: &[RecordKind::Runqueue],
    causes: &[Cause::Runqueue],
    floor_ns: 5_000,
    decode,
};

fn decode(header: &Header, bytes: &[u8]) -> Option<EventKind> {
    let record: RunqueueRecord = read(bytes)?;
    Some(EventKind::Runqueue {
        preempted: header.flags & RUNQUEUE_PREEMPTED != 0,
        ran_tid: Tid(record.ran_tid),
        ran_tgid: Tgid(record.ran_tgid),
        ran_comm: comm(&record.ran_comm),
    })
}
