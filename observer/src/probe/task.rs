//! `task`: forks, execs, exits and changes of name, which show the target's processes.

use observer_ebpf::wire::{TASK_EXEC, TASK_EXIT, TASK_FORK, TASK_JOIN, TaskRecord};

use super::{Attach, Members, Need, Probe, Program, RunsAt, Tier};
use crate::model::{Field, RecordRow, field};

const FORK: &str = "children of the target";
const EXEC: &str = "programs the target executes";
const EXIT: &str = "the end of the target's processes";
const RENAME: &str = "processes that get the name of the target";
const READS: &[Members] = &[
    Members::Comm,
    Members::LiveThreads,
    Members::TaskFlags,
    Members::Ancestry,
    Members::Executable,
];

pub(super) const PROBE: Probe = Probe {
    name: "task",
    runs_at: RunsAt::Rare("fork, exec, exit and change of name of a process or thread"),
    about: "Forks, execs and exits of the target, so that children and new threads belong to it; \
            and processes that get its name or execute its program.",
    notes: "A process leaves the target with its last thread, before its id can be used again. With \
            `--comm` and `--exe`, a process belongs to the target from the moment at which it gets \
            the name or executes the file, however short it lives. (On an overlay file system and on \
            btrfs, where the kernel numbers files in another way than stat(2), processes are found \
            by their program only when observer looks for them, several times a second.) observer \
            and what it starts never join.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf],
            reads: READS,
            programs: &[
                Program::new("sched_process_fork", Attach::TpBtf("sched_process_fork", 2), FORK),
                Program::new("sched_process_exec", Attach::TpBtf("sched_process_exec", 3), EXEC),
                Program::new("sched_process_exit", Attach::TpBtf("sched_process_exit", 1), EXIT),
                Program::new("task_rename", Attach::TpBtf("task_rename", 2), RENAME),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[],
            reads: READS,
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
                Program::new("task_rename_raw", Attach::RawTracepoint("task_rename", 2), RENAME),
            ],
        },
    ],
    records: &[&TASK],
    ..Probe::BASE
};

static TASK: RecordRow = RecordRow::new::<TaskRecord>(
    "task",
    "A thread was born, executed another program, or exited; or a process joined the target.",
    &[
        Field::flag_names(
            "task",
            &[(TASK_FORK, "fork"), (TASK_EXEC, "exec"), (TASK_EXIT, "exit"), (TASK_JOIN, "join")],
            "`fork` (`tid` is the child), `exec`, `exit`, or `join` (the process got the name of the \
             target or executes its program)",
        ),
        // Version 2 left it empty where there is no fork.
        field!(TaskRecord.parent_tid, "parent_tid", "the parent thread of a fork; otherwise 0")
            .optional(),
        field!(TaskRecord.comm, "comm", "command name"),
    ],
)
.sampled();
