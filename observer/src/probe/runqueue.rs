//! `runqueue`: runnable, but not running.

use std::mem::offset_of;
use std::num::NonZeroU64;

use observer_ebpf::wire::{
    Counter, RUNQUEUE_PREEMPTED, RunqueueRecord, RunqueueState, Series, Slot,
};

use super::{
    Attach, Bounds, HistogramFamily, Members, Need, Numbers, PerThread, Probe, Program, RunsAt,
    SummaryNumbers, Tier,
};
use crate::model::{Cause, Event, Field, Holder, RecordRow, Tgid, Tid, field};

const SWITCH: &str = "waits for a CPU";
const WAKEUP: &str = "waits after a wake-up";
const WAKEUP_NEW: &str = "first waits of new threads";

/// Run-delay accounting (CONFIG_SCHED_INFO) and the clock it is kept in.
const RUN_DELAY: &[Members] = &[Members::Comm, Members::RunDelay];
/// The struct members needed when observer keeps its own begin times.
const OWN_CLOCK: &[Members] = &[Members::Comm, Members::State];

/// The part of the programs on `sched_switch` that waits need.
const WAITS: &str = "SWITCH_RUNQUEUE";

/// Threads that are moved while they sleep: with delayed dequeue (Linux 6.12), the kernel counts
/// part of their sleep as a wait.
const fn moved(name: &'static str, attach: Attach) -> Program {
    Program::new(name, attach, "sleeps that the kernel counts as waits")
        .only_with("task_struct", "se.sched_delayed")
}

pub(super) const PROBE: Probe = Probe {
    name: "runqueue",
    runs_at: RunsAt::Frequent("context switch"),
    about: "Time from wake-up (or preemption) of a thread until it runs.",
    notes: "The rule is that of the kernel's run delay (the second field of \
            /proc/PID/task/TID/schedstat). A record names the thread that had the CPU until the \
            wait ended; thread 0 means the CPU was idle and had to wake up. The wait of the idle \
            task itself is no stall. Since Linux 6.12 a thread that goes to sleep may stay on its \
            run queue for a moment; when it is moved to another one in that moment, the kernel \
            counts the rest of its sleep as run delay. observer does not count such a wait, \
            because its begin is unknown: it is the loss `sleep_booked_as_wait`. \
            `counters.sleep_booked_as_wait_ns` is the excess of the kernel's counter over \
            observer's. The `_pair` tiers do not need this. When a wake-up preempts the thread that \
            runs, the kernel skips the update of its clock at the switch (`rq_clock_skip_update`), \
            so that the time until the switch is in no run delay: a few microseconds, or longer \
            while the kernel cannot be preempted. The `_pair` tiers, whose clock is observer's, \
            count it.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "the scheduler's own run delay, read at the switch",
            needs: &[Need::OwnBtf, Need::Tracepoint("sched_switch")],
            reads: RUN_DELAY,
            programs: &[
                moved("sched_migrate_task", Attach::TpBtf("sched_migrate_task", 1)),
                Program::new("sched_switch", Attach::TpBtf("sched_switch", 3), SWITCH).part(WAITS),
            ],
        },
        Tier {
            name: "tp_btf_pair",
            about: "begin times kept by observer, from wake-up and switch",
            needs: &[Need::OwnBtf, Need::Tracepoint("sched_switch")],
            reads: OWN_CLOCK,
            programs: &[
                Program::new("sched_wakeup", Attach::TpBtf("sched_wakeup", 1), WAKEUP),
                Program::new("sched_wakeup_new", Attach::TpBtf("sched_wakeup_new", 1), WAKEUP_NEW),
                Program::new("sched_switch_timed", Attach::TpBtf("sched_switch", 3), SWITCH),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "the scheduler's own run delay, read by helper calls",
            needs: &[],
            reads: RUN_DELAY,
            programs: &[
                moved("sched_migrate_task_raw", Attach::RawTracepoint("sched_migrate_task", 1)),
                Program::new("sched_switch_raw", Attach::RawTracepoint("sched_switch", 3), SWITCH)
                    .part(WAITS),
            ],
        },
        Tier {
            name: "raw_tracepoint_pair",
            about: "begin times kept by observer, tasks read by helper calls",
            needs: &[],
            reads: OWN_CLOCK,
            programs: &[
                Program::new("sched_wakeup_raw", Attach::RawTracepoint("sched_wakeup", 1), WAKEUP),
                Program::new(
                    "sched_wakeup_new_raw",
                    Attach::RawTracepoint("sched_wakeup_new", 1),
                    WAKEUP_NEW,
                ),
                Program::new(
                    "sched_switch_timed_raw",
                    Attach::RawTracepoint("sched_switch", 3),
                    SWITCH,
                ),
            ],
        },
    ],
    records: &[&RUNQUEUE],
    histograms: &[HistogramFamily {
        name: "runqueue_latency",
        help: "Time from being able to run to running, by how the wait began",
        labels: &["reason"],
        bounds: Bounds::STALL,
        series: &[
            (Series::RunqueueWakeup, "wakeup", &["wakeup"]),
            (Series::RunqueuePreempt, "preempted", &["preempted"]),
        ],
        ..HistogramFamily::BASE
    }],
    in_summary: &[SummaryNumbers {
        name: "sleep_booked_as_wait_ns",
        numbers: Numbers::Counters(&[(Counter::TargetSleepBookedNs as usize, &[])]),
        zeros: false,
    }],
    per_thread: Some(
        PerThread::of::<RunqueueState>(
            ["RUNQUEUE", "RUNQUEUE_STORAGE", "RUNQUEUE_STORED"],
            &[
                offset_of!(Slot<RunqueueState>, state.run_delay_ns) / 8,
                offset_of!(Slot<RunqueueState>, state.involuntary_switches) / 8,
                offset_of!(Slot<RunqueueState>, state.runnable_ns) / 8,
                // This word also holds `preempted`, which belongs to `runnable_ns`.
                offset_of!(Slot<RunqueueState>, state.moved_asleep) / 8,
            ],
        )
        .hot()
        .of_arguments(),
    ),
    ..Probe::BASE
};

static RUNQUEUE: RecordRow = RecordRow::new::<RunqueueRecord>(
    "runqueue",
    "A thread waited for a CPU.",
    &[
        Field::flag(
            "preempted",
            RUNQUEUE_PREEMPTED,
            "the thread was preempted while running (otherwise woken)",
        ),
        field!(
            RunqueueRecord.ran_tid,
            "ran_tid",
            "thread that ran instead; 0 when the CPU was idle"
        ),
        field!(RunqueueRecord.ran_tgid, "ran_tgid", "its process"),
        field!(RunqueueRecord.ran_comm, "ran_comm", "its command name"),
        // Traces of 0.1.0 do not have it.
        field!(
            RunqueueRecord.ran_cgroup,
            "ran_cgroup",
            "its cgroup: the inode number of the directory, in the hierarchy that limits memory; 0 \
             when the CPU was idle"
        )
        .optional(),
    ],
)
.stalls(5_000, |_| Some(Cause::RUNQUEUE))
.holder(|event| {
    let record: RunqueueRecord = event.record()?;
    Some(Holder {
        tid: Tid(record.ran_tid),
        tgid: Tgid(record.ran_tgid),
        cgroup: NonZeroU64::new(record.ran_cgroup),
    })
})
.detail(detail);

fn detail(event: &Event) -> String {
    let Some(record) = event.record::<RunqueueRecord>() else { return String::new() };
    let began = if event.flags & RUNQUEUE_PREEMPTED != 0 { "preempted" } else { "woken" };
    if record.ran_tid == 0 {
        return format!("{began}; the CPU was idle");
    }
    format!("{began}; ran instead: {} ({})", super::comm(&record.ran_comm), record.ran_tid)
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::probe::{decode, tests::header};

    #[test]
    fn a_record_names_what_ran_instead() {
        let mut ran_comm = [0; 16];
        ran_comm[..4].copy_from_slice(b"hog\x1b");
        let mut record = RunqueueRecord {
            header: header(RecordKind::Runqueue, RUNQUEUE_PREEMPTED),
            ran_tid: 123,
            ran_tgid: 120,
            ran_comm,
            ran_cgroup: 4_711,
        };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.start().0, 600);
        assert_eq!(event.cause(), Some(Cause::RUNQUEUE));
        let holder = Holder {
            tid: Tid(123),
            tgid: Tgid(120),
            cgroup: Some(NonZeroU64::new(4_711).unwrap()),
        };
        assert_eq!(event.holder(), Some(holder));
        assert_eq!(event.record(), Some(record));
        assert_eq!(detail(&event), "preempted; ran instead: hog? (123)");
        (record.ran_tid, record.ran_cgroup) = (0, 0);
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.holder().and_then(|holder| holder.cgroup), None);
        assert_eq!(detail(&event), "preempted; the CPU was idle");
    }
}
