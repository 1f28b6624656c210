//! `runqueue`: runnable, but not running.

use observer_ebpf::wire::{Header, RUNQUEUE_PREEMPTED, RecordKind, RunqueueRecord};

use super::{Attach, Need, Probe, Program, Tier, comm, read};
use crate::model::{Cause, EventKind, Tgid, Tid};

pub(super) const PROBE: Probe = Probe {
    name: "runqueue",
    about: "Time from wake-up (or preemption) of a thread until it runs.",
    notes: "The rule is that of the kernel's run delay (the second field of \
            /proc/PID/task/TID/schedstat). A record names the thread that had the CPU until the \
            wait ended; thread 0 means the CPU was idle and had to wake up. The wait of the idle \
            task itself is no stall.",
    tiers: &[
        Tier {
            name: "the scheduler's own run delay",
            needs: &[
                Need::Member("task_struct", "sched_info.run_delay"),
                Need::Member("task_struct", "sched_info.last_queued"),
                Need::Member("task_struct", "se.cfs_rq"),
                Need::Member("cfs_rq", "rq"),
                Need::Member("rq", "clock"),
            ],
            programs: &[Program {
                name: "sched_switch",
                attach: Attach::TpBtf("sched_switch", 3),
                gives: "waits for a CPU",
            }],
        },
        Tier {
            name: "begin times kept by observer",
            needs: &[],
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
                    name: "sched_switch_timed",
                    attach: Attach::TpBtf("sched_switch", 4),
                    gives: "waits for a CPU",
                },
            ],
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
