//! `fault`: page faults.

use observer_ebpf::wire::{FAULT_KERNEL, FAULT_MAJOR, FaultRecord, Header, RecordKind};

use super::{Attach, Need, Probe, Program, Tier, read};
use crate::model::{Cause, EventKind};

const PAGE_FAULT_USER: Program = Program {
    name: "page_fault_user",
    attach: Attach::TpBtf("page_fault_user", 3),
    gives: "faults in user mode",
};

const PAGE_FAULT_KERNEL: Program = Program {
    name: "page_fault_kernel",
    attach: Attach::TpBtf("page_fault_kernel", 3),
    gives: "faults in kernel mode",
};

pub(super) const PROBE: Probe = Probe {
    name: "fault",
    about: "Page faults, minor and major, with latency and address.",
    notes: "Begun at the x86 exception tracepoints, ended where the kernel counts the fault (fields \
            minflt and majflt of /proc/PID/stat). Faults the kernel takes on behalf of a thread \
            without an exception (get_user_pages) are in /proc/PID/stat but have no begin: they \
            are counted apart. Without the memory-cgroup tracepoint (before Linux 6.15) the ends \
            come from a perf event on every fault, which costs more.",
    tiers: &[
        Tier {
            name: "memory-cgroup event tracepoint",
            needs: &[Need::Tracepoint("count_memcg_events")],
            programs: &[
                PAGE_FAULT_USER,
                PAGE_FAULT_KERNEL,
                Program {
                    name: "signal_deliver",
                    attach: Attach::TpBtf("signal_deliver", 3),
                    gives: "faults that end in a signal",
                },
                Program {
                    name: "page_faults_maj_check",
                    attach: Attach::PerfMajorFaults,
                    gives: "retried major faults",
                },
                Program {
                    name: "count_memcg_events",
                    attach: Attach::TpBtf("count_memcg_events", 3),
                    gives: "ends of faults",
                },
            ],
        },
        Tier {
            name: "software perf events",
            needs: &[],
            programs: &[
                PAGE_FAULT_USER,
                PAGE_FAULT_KERNEL,
                Program {
                    name: "page_faults_min",
                    attach: Attach::PerfMinorFaults,
                    gives: "minor faults",
                },
                Program {
                    name: "page_faults_maj",
                    attach: Attach::PerfMajorFaults,
                    gives: "major faults",
                },
            ],
        },
    ],
    records: &[RecordKind::Fault],
    causes: &[Cause::FaultMinor, Cause::FaultMajor],
    floor_ns: 3_000,
    decode,
};

fn decode(header: &Header, bytes: &[u8]) -> Option<EventKind> {
    let record: FaultRecord = read(bytes)?;
    Some(EventKind::Fault {
        major: header.flags & FAULT_MAJOR != 0,
        kernel_mode: header.flags & FAULT_KERNEL != 0,
        address: record.address,
    })
}
