//! `task`: forks, execs and exits, which show the target's processes.

use observer_ebpf::wire::{TASK_EXEC, TASK_EXIT, TASK_FORK, TaskRecord};

use super::{Attach, Members, Need, Probe, Program, RunsAt, Tier};
use crate::model::{Field, RecordRow, field};

const FORK: &str = "children of the target";
const EXEC: &str = "programs the target executes";
const EXIT: &str = "the end of the target's processes";

pub(super) const PROBE: Probe = Probe {
    name: "task",
    runs_at: RunsAt::Rare("fork, exec and exit of a process or thread"),
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
    records: &[&TASK],
    ..Probe::BASE
};

static TASK: RecordRow = RecordRow::new::<TaskRecord>(
    "task",
    "A thread was born, executed another program, or exited.",
    &[
        Field::flag_names(
            "task",
            &[(TASK_FORK, "fork"), (TASK_EXEC, "exec"), (TASK_EXIT, "exit")],
            "`fork` (`tid` is the child), `exec` or `exit`",
        ),
        // Version 2 left it empty where there is no fork.
        field!(TaskRecord.parent_tid, "parent_tid", "the parent thread of a fork; otherwise 0")
            .optional(),
        field!(TaskRecord.comm, "comm", "command name"),
    ],
)
.sampled();
