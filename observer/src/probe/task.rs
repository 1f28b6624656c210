//! `task`: forks, execs and exits, by which the target is followed.

use observer_ebpf::wire::{Header, RecordKind, TASK_EXEC, TASK_FORK, TaskRecord};

use super::{Attach, Probe, Program, Tier, comm, read};
use crate::model::{EventKind, Tid};

pub(super) const PROBE: Probe = Probe {
    name: "task",
    about: "Forks, execs and exits of the target, so that children and new threads belong to it.",
    notes: "A process leaves the target with its last thread, before its id can be used again.",
    tiers: &[Tier {
        name: "tracepoints",
        needs: &[],
        programs: &[
            Program {
                name: "sched_process_fork",
                attach: Attach::TpBtf("sched_process_fork", 2),
                gives: "children of the target",
            },
            Program {
                name: "sched_process_exec",
                attach: Attach::TpBtf("sched_process_exec", 3),
                gives: "programs the target executes",
            },
            Program {
                name: "sched_process_exit",
                attach: Attach::TpBtf("sched_process_exit", 1),
                gives: "the end of the target's processes",
            },
        ],
    }],
    records: &[RecordKind::Task],
    causes: &[],
    floor_ns: 0,
    decode,
};

fn decode(header: &Header, bytes: &[u8]) -> Option<EventKind> {
    let record: TaskRecord = read(bytes)?;
    let comm = comm(&record.comm);
    Some(if header.flags & TASK_FORK != 0 {
        EventKind::Fork { parent_tid: Tid(record.parent_tid), comm }
    } else if header.flags & TASK_EXEC != 0 {
        EventKind::Exec { comm }
    } else {
        EventKind::Exit { comm }
    })
}
