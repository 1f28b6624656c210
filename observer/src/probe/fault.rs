//! `fault`: page faults.

use observer_ebpf::wire::{FAULT_KERNEL, FAULT_MAJOR, FaultRecord, Header, RecordKind};

use super::{Attach, Probe, Program, read};
use crate::model::{Cause, EventKind};

pub(super) const PROBE: Probe = Probe {
    name: "fault",
    about: "Page faults, minor and major, with latency and address.",
    notes: "Counted where the kernel counts them (perf software events, fields minflt and majflt \
            of /proc/PID/stat), begun at the x86 exception tracepoints. Faults the kernel takes on \
            behalf of a thread without an exception (get_user_pages) are in /proc/PID/stat but \
            not here.",
    programs: &[
        Program {
            name: "page_fault_user",
            attach: Attach::TpBtf("page_fault_user", 3),
            gives: "faults in user mode",
        },
        Program {
            name: "page_fault_kernel",
            attach: Attach::TpBtf("page_fault_kernel", 3),
            gives: "faults in kernel mode",
        },
        Program { name: "page_faults_min", attach: Attach::PerfMinorFaults, gives: "minor faults" },
        Program { name: "page_faults_maj", attach: Attach::PerfMajorFaults, gives: "major faults" },
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
