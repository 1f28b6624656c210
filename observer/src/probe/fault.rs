//! `fault`: page faults.

use std::mem::offset_of;

use observer_ebpf::wire::{
    Counter, FAULT_KERNEL, FAULT_MAJOR, FaultRecord, FaultState, RecordKind, Series, Slot,
};

use super::{
    Attach, Bounds, HistogramFamily, Members, Moved, Need, NumberFamily, Numbers, PerThread, Probe,
    Program, RunsAt, SummaryNumbers, Tier, burst,
};
use crate::model::{Cause, Field, RecordRow, field};

const USER: &str = "faults in user mode";
const KERNEL: &str = "faults in kernel mode";
const BEGINS: &str = "begins of faults";
const ENDS: &str = "ends of faults";
const SIGNALS: &str = "faults that end in a signal";

/// The exceptions, as a kernel without its own BTF offers them.
const EXCEPTIONS_RAW: [Program; 2] = [
    Program::new("page_fault_user_raw", Attach::RawTracepoint("page_fault_user", 3), USER),
    Program::new("page_fault_kernel_raw", Attach::RawTracepoint("page_fault_kernel", 3), KERNEL),
];

const SIGNAL: Program = Program::new("signal_deliver", Attach::TpBtf("signal_deliver", 3), SIGNALS);
const SIGNAL_RAW: Program =
    Program::new("signal_deliver_raw", Attach::RawTracepoint("signal_deliver", 3), SIGNALS);

/// Retried major faults that the memory-cgroup events take for minor.
const MAJOR_CHECK: Program =
    Program::new("page_faults_maj_check", Attach::PerfMajorFaults, "retried major faults");

/// Faults that the tiers without the fault handler cannot measure.
const WITHOUT_EXCEPTION: Numbers =
    Numbers::Counters(&[(Counter::FaultsWithoutException as usize, &[])]);

const HANDLER: &str = "handle_mm_fault";

pub(super) const PROBE: Probe = Probe {
    name: "fault",
    runs_at: RunsAt::Frequent("page fault"),
    about: "Page faults, minor and major, with latency and address.",
    notes: "Counted as fields minflt and majflt of /proc/PID/stat are. `fentry` and `kprobe` time \
            the kernel's fault handler, retries included, from its first entry to its last return. \
            The other tiers begin at the x86 exception, and so include the wait for the lock of \
            the address space; faults that the kernel takes on behalf of a thread without an \
            exception (get_user_pages) are in /proc/PID/stat but have no begin there: they are \
            counted apart. The memory-cgroup tracepoint exists since Linux 6.15; a fault that \
            fails because there is no page (SIGBUS) passes it too. A perf event on every fault \
            costs more. The kernel watches a limited number of returns by kretprobe at a time. A fault \
            that the kernel gives up, for a signal or because the process is stopped, and begins anew \
            later counts from its last begin; after a stop, from its first begin where another thread \
            changes the mapping at that moment.",
    tiers: &[
        Tier {
            name: "fentry",
            about: "entry and return of the fault handler",
            needs: &[Need::OwnBtf, Need::Fentry, Need::Function(HANDLER)],
            reads: &[],
            programs: &[
                Program::new("handle_mm_fault_enter", Attach::Fentry(HANDLER), BEGINS),
                SIGNAL,
                Program::new("handle_mm_fault_leave", Attach::Fexit(HANDLER), ENDS),
            ],
        },
        Tier {
            name: "tp_btf",
            about: "exceptions, and the memory-cgroup event that ends a fault",
            needs: &[
                Need::OwnBtf,
                Need::Tracepoint("page_fault_user"),
                Need::Tracepoint("count_memcg_events"),
            ],
            reads: &[Members::FaultEvents],
            programs: &[
                Program::new("page_fault_user", Attach::TpBtf("page_fault_user", 3), USER),
                Program::new("page_fault_kernel", Attach::TpBtf("page_fault_kernel", 3), KERNEL),
                SIGNAL,
                MAJOR_CHECK,
                Program::new("count_memcg_events", Attach::TpBtf("count_memcg_events", 3), ENDS),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "the same, tasks read by helper calls",
            needs: &[Need::Tracepoint("page_fault_user"), Need::Tracepoint("count_memcg_events")],
            reads: &[Members::FaultEvents],
            programs: &[
                EXCEPTIONS_RAW[0],
                EXCEPTIONS_RAW[1],
                SIGNAL_RAW,
                MAJOR_CHECK,
                Program::new(
                    "count_memcg_events_raw",
                    Attach::RawTracepoint("count_memcg_events", 3),
                    ENDS,
                ),
            ],
        },
        Tier {
            name: "perf_event",
            about: "exceptions, and a software perf event at the end of every fault",
            needs: &[Need::PerfEvents, Need::Tracepoint("page_fault_user")],
            reads: &[],
            programs: &[
                EXCEPTIONS_RAW[0],
                EXCEPTIONS_RAW[1],
                Program::new("page_faults_min", Attach::PerfMinorFaults, "minor faults"),
                Program::new("page_faults_maj", Attach::PerfMajorFaults, "major faults"),
            ],
        },
        Tier {
            name: "kprobe",
            about: "entry and return of the fault handler, through kprobes",
            needs: &[Need::Kprobe, Need::Function(HANDLER)],
            reads: &[],
            programs: &[
                Program::new("handle_mm_fault_kprobe", Attach::Kprobe(&[HANDLER]), BEGINS),
                SIGNAL_RAW,
                Program::new("handle_mm_fault_kretprobe", Attach::Kretprobe(&[HANDLER]), ENDS),
            ],
        },
    ],
    records: &[&FAULT, &FAULT_BURST],
    histograms: &[HistogramFamily {
        name: "fault_latency",
        help: "Time inside a page fault, minor or major, taken in user or kernel mode",
        labels: &["kind", "mode"],
        bounds: Bounds::STALL,
        series: &[
            (Series::FaultMinorUser, "minor", &["minor", "user"]),
            (Series::FaultMinorKernel, "minor", &["minor", "kernel"]),
            (Series::FaultMajorUser, "major", &["major", "user"]),
            (Series::FaultMajorKernel, "major", &["major", "kernel"]),
        ],
        ..HistogramFamily::BASE
    }],
    moved: &[
        Moved {
            counted_in: Series::FaultCorrectedUser,
            from: Series::FaultMinorUser,
            to: Series::FaultMajorUser,
        },
        Moved {
            counted_in: Series::FaultCorrectedKernel,
            from: Series::FaultMinorKernel,
            to: Series::FaultMajorKernel,
        },
    ],
    numbers: &[NumberFamily {
        name: "faults_without_exception",
        help: "Pages the kernel brought for a task by itself (mmap with MAP_POPULATE, direct I/O), \
               which have no latency of their own; counted by the tiers that end a fault where the \
               memory cgroup counts it",
        labels: &[],
        numbers: WITHOUT_EXCEPTION,
    }],
    in_summary: &[SummaryNumbers {
        name: "without_exception_all_tasks",
        numbers: WITHOUT_EXCEPTION,
        zeros: false,
    }],
    per_thread: Some(
        PerThread::of::<FaultState>(
            ["FAULTS", "FAULTS_STORAGE", "FAULTS_STORED"],
            &[
                offset_of!(Slot<FaultState>, state.begin_ns) / 8,
                offset_of!(Slot<FaultState>, state.minor_ns) / 8,
            ],
        )
        .hot()
        .burst(RecordKind::FaultBurst, offset_of!(Slot<FaultState>, state.burst)),
    ),
    ..Probe::BASE
};

static FAULT: RecordRow = RecordRow::new::<FaultRecord>(
    "fault",
    "A thread was inside a page fault.",
    &[
        Field::flag("major", FAULT_MAJOR, "the page came from a device"),
        Field::flag("kernel_mode", FAULT_KERNEL, "taken in kernel mode"),
        field!(FaultRecord.address, "address", "faulting address"),
    ],
)
.stalls(3_000, |event| {
    let major = event.flags & FAULT_MAJOR != 0;
    Some(if major { Cause::FAULT_MAJOR } else { Cause::FAULT_MINOR })
})
.detail(|event| {
    let mode = if event.flags & FAULT_KERNEL != 0 { "kernel" } else { "user" };
    let address = event.record::<FaultRecord>().map_or(0, |record| record.address);
    format!("{mode} mode, at {address:#x}")
});

static FAULT_BURST: RecordRow = burst::row::<{ RecordKind::FaultBurst as u16 }>(
    "fault_burst",
    "Minor page faults of a thread that are shorter than the threshold of `fault`, summed up over at most \
     about a millisecond.",
    |_| Some(Cause::FAULT_MINOR),
);
