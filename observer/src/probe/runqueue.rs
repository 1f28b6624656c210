//! `runqueue`: runnable, but not running.

use std::mem::offset_of;
use std::num::NonZeroU64;

use observer_ebpf::wire::{
    Counter, CpuThrottled, CpuTurns, RAN_BUCKETS, RUNQUEUE_PREEMPTED, RUNQUEUE_UNSEEN, RanBucket,
    RunqueueRecord, RunqueueState, Series, Slot, THROTTLED_KEPT, Throttled,
};

use super::{
    Attach, Bounds, Entries, HistogramFamily, Members, Need, NumberFamily, Numbers, PerThread,
    Probe, ProbeMap, Program, RunsAt, SummaryNumbers, Tier,
};
use crate::model::{Cause, EndedBy, Event, Field, Holder, ObjectRow, RecordRow, Tgid, Tid, field};
use crate::text::{duration, without_number};

const SWITCH: &str = "waits for a CPU";
const WAKEUP: &str = "waits after a wake-up";
const WAKEUP_NEW: &str = "first waits of new threads";

/// Run-delay accounting (CONFIG_SCHED_INFO) and the clock it is kept in.
const RUN_DELAY: &[Members] = &[Members::Comm, Members::RunDelay];
/// The struct members needed when observer keeps its own begin times.
const OWN_CLOCK: &[Members] = &[Members::Comm, Members::State];

/// The part of the program on `sched_switch` that waits need.
const WAITS: &str = "SWITCH_RUNQUEUE";
/// And of the one that reads tasks by helper calls.
const WAITS_RAW: &str = "SWITCH_RUNQUEUE_RAW";

/// Threads that are moved while they sleep: with delayed dequeue (Linux 6.12), the kernel counts
/// part of their sleep as a wait.
const fn moved(name: &'static str, attach: Attach) -> Program {
    Program::new(name, attach, "sleeps that the kernel counts as waits")
        .only_with("task_struct", "se.sched_delayed")
}

/// Waits in which a CPU limit held a thread of the target.
const THROTTLED_WAITS: Numbers =
    Numbers::Counters(&[(Counter::TargetThrottledWaits as usize, &[])]);
/// For how long it did.
const THROTTLED_TIME: Numbers = Numbers::Time(Counter::TargetThrottledNs as usize);

/// Words of a [`CpuThrottled`] that say which cgroup a place has.
const QUEUES: [usize; THROTTLED_KEPT] = {
    let mut words = [0; THROTTLED_KEPT];
    let mut place = 0;
    while place < THROTTLED_KEPT {
        words[place] = (offset_of!(CpuThrottled, cgroups)
            + place * size_of::<Throttled>()
            + offset_of!(Throttled, queue))
            / 8;
        place += 1;
    }
    words
};

pub(super) const PROBE: Probe = Probe {
    name: "runqueue",
    runs_at: RunsAt::Frequent("context switch"),
    about: "Time from wake-up (or preemption) of a thread until it runs.",
    notes: "The rule is that of the kernel's run delay (the second field of \
            /proc/PID/task/TID/schedstat). A record says for how long other processes, other \
            threads of the same process, and nobody had the CPU meanwhile, from the last 64 \
            switches of that CPU; thread 0 means the CPU was idle. Of a wait that was moved to \
            another CPU, only the time on the last one is known. It also says for how long the CPU \
            limit of a cgroup held the thread (CFS bandwidth: cpu.max, cpu.cfs_quota_us), its own \
            cgroup's or one above: where the wait and the last eight intervals overlap in which the \
            kernel throttled its cgroup on this CPU. The begin of an interval that no thread of the \
            cgroup was on the CPU to see is taken as late as its length allows. Before Linux 6.6, the \
            length of an interval is without the time in interrupts. What a thread is throttled is part \
            of its run delay. The wait of the idle \
            task itself is no stall. Since Linux 6.12 a thread that goes to sleep may stay on its \
            run queue for a moment; when it is moved to another one in that moment, the kernel \
            counts the rest of its sleep as run delay. observer does not count such a wait, \
            because its begin is unknown: it is the loss `sleep_booked_as_wait`. \
            Some kernels, as on some virtual machines, switch to a thread without the event now and then; its \
            wait is then completed from the scheduler's own times when the thread leaves the CPU \
            (`counters.arrivals_without_event`; not in the `_pair` tiers). \
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
                moved("sched_migrate_task", Attach::TpBtf("sched_migrate_task", 1)).part(WAITS),
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
                moved("sched_migrate_task_raw", Attach::RawTracepoint("sched_migrate_task", 1))
                    .part(WAITS_RAW),
                Program::new("sched_switch_raw", Attach::RawTracepoint("sched_switch", 3), SWITCH)
                    .part(WAITS_RAW),
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
    numbers: &[
        NumberFamily {
            name: "target_throttled_waits",
            help: "Waits for a CPU of the target in which the CPU limit of a cgroup held the thread",
            labels: &[],
            numbers: THROTTLED_WAITS,
        },
        NumberFamily {
            name: "target_throttled",
            help: "Time in which the CPU limit of a cgroup held threads of the target, added up",
            labels: &[],
            numbers: THROTTLED_TIME,
        },
    ],
    in_summary: &[
        SummaryNumbers {
            name: "sleep_booked_as_wait_ns",
            numbers: Numbers::Counters(&[(Counter::TargetSleepBookedNs as usize, &[])]),
            zeros: false,
        },
        SummaryNumbers { name: "throttled_waits", numbers: THROTTLED_WAITS, zeros: false },
        SummaryNumbers { name: "throttled_ns", numbers: THROTTLED_TIME, zeros: false },
        SummaryNumbers {
            name: "arrivals_without_event",
            numbers: Numbers::Counters(&[(Counter::TargetUnseenArrivals as usize, &[])]),
            zeros: false,
        },
    ],
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
    maps: &[
        ProbeMap {
            name: "TURNS",
            entries: Entries::PerCpu,
            value_bytes: size_of::<CpuTurns>(),
            // Turns of a time before it was attached are not looked at then.
            begins: &[offset_of!(CpuTurns, switches) / 8, offset_of!(CpuTurns, running) / 8],
        },
        ProbeMap {
            name: "THROTTLED",
            entries: Entries::PerCpu,
            value_bytes: size_of::<CpuThrottled>(),
            // Which cgroup each place has: what was throttled meanwhile is not known.
            begins: &QUEUES,
        },
        ProbeMap {
            name: "RAN_INSTEAD",
            entries: Entries::Fixed(RAN_BUCKETS + 1),
            value_bytes: size_of::<RanBucket>(),
            // Sums, which stay.
            begins: &[],
        },
    ],
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
            "a thread that had the CPU meanwhile: of the process that had it for more than half of \
             `other_ns`, if there is one, otherwise of one of the others; of the waiting process itself if \
             its threads had it for longer; where neither had it, the thread that ran until the wait \
             ended: 0 when the CPU was idle"
        ),
        field!(RunqueueRecord.ran_tgid, "ran_tgid", "its process"),
        field!(
            RunqueueRecord.ran_comm,
            "ran_comm",
            "its command name; empty when it ended during the wait"
        ),
        // Traces of 0.1.0 have none of the following.
        Field::flag(
            "unseen",
            RUNQUEUE_UNSEEN,
            "the kernel gave the thread the CPU without an event: who had the CPU meanwhile is not known, \
             and the columns about it are 0 or empty"
        )
        .optional(),
        field!(
            RunqueueRecord.ran_cgroup,
            "ran_cgroup",
            "its cgroup: the inode number of the directory, in the hierarchy that limits memory; 0 \
             when the CPU was idle, or the thread ended during the wait"
        )
        .optional(),
        field!(
            RunqueueRecord.other_ns,
            "other_ns",
            "for how long threads of other processes had the CPU during the wait, nanoseconds"
        )
        .optional(),
        field!(
            RunqueueRecord.own_ns,
            "own_ns",
            "for how long other threads of the same process had it, nanoseconds"
        )
        .optional(),
        field!(
            RunqueueRecord.idle_ns,
            "idle_ns",
            "for how long the CPU was idle, nanoseconds; what these three times and `throttled_ns` leave \
             of the wait is not known"
        )
        .optional(),
        field!(
            RunqueueRecord.throttled_ns,
            "throttled_ns",
            "for how long the CPU limit of a cgroup held the thread, nanoseconds; no part of `other_ns`, \
             `own_ns` and `idle_ns`"
        )
        .optional(),
    ],
)
.stalls(5_000, |_| Some(Cause::RUNQUEUE))
.parts(|event| {
    let times = event.record().map_or([0; 4], times_ns);
    let causes = [
        Cause::CPU_THROTTLE,
        Cause::RUNQUEUE_OTHER,
        Cause::RUNQUEUE_SELF,
        Cause::RUNQUEUE_IDLE,
    ];
    std::array::from_fn(|index| (causes[index], times[index]))
})
.holder(holder)
.objects(ObjectRow { id: object, name: object_name, ended_by: |_| EndedBy::Object })
.detail(detail);

/// How long a CPU limit held the thread, and others, the process itself, and nobody had the CPU.
const fn times_ns(record: RunqueueRecord) -> [u64; 4] {
    [record.throttled_ns, record.other_ns, record.own_ns, record.idle_ns]
}

fn holder(event: &Event, cause: Cause) -> Option<Holder> {
    let record: RunqueueRecord = event.record()?;
    let ran = Holder {
        tid: Tid(record.ran_tid),
        tgid: Tgid(record.ran_tgid),
        cgroup: NonZeroU64::new(record.ran_cgroup),
    };
    let is_of_cause = match cause {
        Cause::RUNQUEUE_OTHER => record.ran_tid != 0 && record.ran_tgid != event.tgid.0,
        Cause::RUNQUEUE_SELF => record.ran_tgid == event.tgid.0,
        Cause::RUNQUEUE_IDLE => {
            return Some(Holder { tid: Tid(0), tgid: Tgid(0), cgroup: None });
        }
        _ if event.flags & RUNQUEUE_UNSEEN != 0 => false,
        // A record of a version that only knew who ran last.
        _ => times_ns(record) == [0; 4],
    };
    is_of_cause.then_some(ran)
}

/// Who had the CPU, by name: threads and processes of one kind often differ in a number alone.
fn object(event: &Event, cause: Cause) -> Option<u32> {
    let is_known = matches!(cause, Cause::RUNQUEUE_OTHER | Cause::RUNQUEUE_SELF);
    let record: RunqueueRecord = event.record().filter(|_| is_known)?;
    holder(event, cause)?;
    Some(super::object_id(&without_number(&super::comm(&record.ran_comm))))
}

fn object_name(event: &Event, _: Cause) -> String {
    event.record().map_or_else(String::new, |record: RunqueueRecord| {
        without_number(&super::comm(&record.ran_comm))
    })
}

fn detail(event: &Event) -> String {
    let Some(record) = event.record::<RunqueueRecord>() else { return String::new() };
    let began = if event.flags & RUNQUEUE_PREEMPTED != 0 { "preempted" } else { "woken" };
    let ran = format!("{} ({})", super::comm(&record.ran_comm), record.ran_tid);
    let [throttled_ns, other_ns, own_ns, idle_ns] = times_ns(record);
    let mut parts = vec![began.to_owned()];
    let mut add = |ns: u64, who: &str, is_of_it: bool| {
        if ns > 0 {
            let name = if is_of_it { format!(", most of all {ran}") } else { String::new() };
            parts.push(format!("{who} for {}{name}", duration(ns as f64)));
        }
    };
    let is_own = record.ran_tgid == event.tgid.0;
    add(throttled_ns, "held by a CPU limit", false);
    add(other_ns, "other processes ran", !is_own && record.ran_tid != 0);
    add(own_ns, "threads of its own process ran", is_own);
    add(idle_ns, "the CPU was idle", false);
    if parts.len() == 1 {
        parts.push(match record.ran_tid {
            _ if event.flags & RUNQUEUE_UNSEEN != 0 => "who ran is not known".to_owned(),
            0 => "the CPU was idle at the end".to_owned(),
            _ => format!("ran last: {ran}"),
        });
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::model::Stall;
    use crate::probe::{decode, tests::header};

    #[test]
    fn a_record_says_who_had_the_cpu_and_for_how_long() {
        let mut ran_comm = [0; 16];
        ran_comm[..4].copy_from_slice(b"hog\x1b");
        let whole = RunqueueRecord {
            header: header(RecordKind::Runqueue, RUNQUEUE_PREEMPTED),
            ran_tid: 123,
            ran_tgid: 120,
            ran_comm,
            ran_cgroup: 4_711,
            other_ns: 150,
            own_ns: 40,
            idle_ns: 10,
            throttled_ns: 0,
        };
        let decoded =
            |record: &RunqueueRecord| decode(bytemuck::bytes_of(record)).expect("decodes");
        let event = decoded(&whole);
        assert_eq!((event.start().0, event.duration_ns), (600, 300));
        let parts = [
            (Cause::RUNQUEUE, 100),
            (Cause::RUNQUEUE_OTHER, 150),
            (Cause::RUNQUEUE_SELF, 40),
            (Cause::RUNQUEUE_IDLE, 10),
        ];
        assert_eq!(event.causes().collect::<Vec<_>>(), parts);
        assert_eq!(event.cause(), Some(Cause::RUNQUEUE_OTHER));
        let ran = Holder {
            tid: Tid(123),
            tgid: Tgid(120),
            cgroup: Some(NonZeroU64::new(4_711).unwrap()),
        };
        let nobody = Holder { tid: Tid(0), tgid: Tgid(0), cgroup: None };
        let stalls: Vec<_> = Stall::of_event(&event)
            .map(|stall| (stall.start.0, stall.end.0, stall.holder))
            .collect();
        let expected =
            [(600, 700, None), (700, 850, Some(ran)), (850, 890, None), (890, 900, Some(nobody))];
        assert_eq!(stalls, expected);
        assert_eq!(event.record(), Some(whole));
        let text = "preempted; other processes ran for 150 ns, most of all hog? (123); threads of its own \
                    process ran for 40 ns; the CPU was idle for 10 ns";
        assert_eq!(detail(&event), text);

        // A CPU limit held it for a part.
        let event = decoded(&RunqueueRecord { throttled_ns: 80, ..whole });
        let parts = [
            (Cause::RUNQUEUE, 20),
            (Cause::CPU_THROTTLE, 80),
            (Cause::RUNQUEUE_OTHER, 150),
            (Cause::RUNQUEUE_SELF, 40),
            (Cause::RUNQUEUE_IDLE, 10),
        ];
        assert_eq!(event.causes().collect::<Vec<_>>(), parts);
        assert_eq!(
            (holder(&event, Cause::CPU_THROTTLE), object(&event, Cause::CPU_THROTTLE)),
            (None, None)
        );
        assert!(detail(&event).starts_with("preempted; held by a CPU limit for 80 ns; other"));

        // Nothing is left of the wait, and more than there was.
        let event = decoded(&RunqueueRecord { other_ns: 250, own_ns: 90, ..whole });
        let parts = [(Cause::RUNQUEUE_OTHER, 250), (Cause::RUNQUEUE_SELF, 50)];
        assert_eq!(event.causes().collect::<Vec<_>>(), parts);

        // A record of an older version.
        let old = RunqueueRecord { other_ns: 0, own_ns: 0, idle_ns: 0, ..whole };
        let event = decoded(&old);
        assert_eq!(event.causes().collect::<Vec<_>>(), [(Cause::RUNQUEUE, 300)]);
        assert_eq!((event.cause(), event.holder()), (Some(Cause::RUNQUEUE), Some(ran)));
        assert_eq!(detail(&event), "preempted; ran last: hog? (123)");
        let event = decoded(&RunqueueRecord { ran_tid: 0, ran_cgroup: 0, ..old });
        assert_eq!(event.holder().and_then(|holder| holder.cgroup), None);
        assert_eq!(detail(&event), "preempted; the CPU was idle at the end");

        // It got the CPU without an event.
        let header = header(RecordKind::Runqueue, RUNQUEUE_UNSEEN);
        let event =
            decoded(&RunqueueRecord { header, ran_tid: 0, ran_tgid: 0, ran_cgroup: 0, ..old });
        assert_eq!((event.cause(), event.holder()), (Some(Cause::RUNQUEUE), None));
        assert_eq!(detail(&event), "woken; who ran is not known");
    }
}
