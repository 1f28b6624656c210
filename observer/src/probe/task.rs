//! `task`: forks, execs and exits, by which the target is followed.

use observer_ebpf::wire::{Header, RecordKind, TASK_EXEC, TASK_FORK, TaskRecord};

use super::{Attach, Members, Need, Probe, Program, Tier, comm, read};
use crate::model::{EventKind, Tid};

const FORK: &str = "children of the target";
const EXEC: &str = "programs the target executes";
const EXIT: &str = "the end of the target's processes";

pub(super) const PROBE: Probe = Probe {
    name: "task",
    about: "Forks, execs and exits of the target, so that children and new threads belong to it.",
    notes: "A process leaves the target with its last thread, before its id can be used again.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf],
            reads: &[Members::Comm, Members::LiveThreads],
            programs: &[
                Program::new("sched_process_fork", Attach::TpBtf("sched_process_fork", 2), FORK),
                Program::new("sched_process_exec", Attach::TpBtf("sched_process_exec", 3), EXEC),
                Program::new("sched_process_exit", Attach::TpBtf("sched_process_exit", 1), EXIT),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[],
            reads: &[Members::Comm, Members::LiveThreads],
            programs: &[
                Program::new(
                    "sched_process_fork_raw",
                    Attach::RawTracepoint("sched_process_fork", 2),
                    FORK,
                ),
                Program::new(
                    "sched_process_exec_raw",
                    Attach::RawTracepoint("sched_process_exec", 3),
                    EXEC,
                ),
                Program::new(
                    "sched_process_exit_raw",
                    Attach::RawTracepoint("sched_process_exit", 1),
                    EXIT,
                ),
            ],
        },
    ],
    records: &[RecordKind::Task],
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
