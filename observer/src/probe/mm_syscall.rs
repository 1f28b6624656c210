//! `mm_syscall`: system calls that change the address space.

use observer_ebpf::wire::{Header, MmSyscallRecord, RecordKind, Series};

use super::{Attach, Need, Probe, Program, Tier, read};
use crate::model::{Cause, EventKind, MmCall};

/// Shared with the socket probe.
pub(super) const SYS_EXIT: Program = Program {
    name: "sys_exit",
    attach: Attach::TpBtf("sys_exit", 2),
    gives: "results of system calls",
};

pub(super) const PROBE: Probe = Probe {
    name: "mm_syscall",
    about: "Latency, bytes and result of mmap, munmap, mremap, brk, mprotect and madvise.",
    notes: "Calls of the 32-bit ABI are not counted as `mm_syscall` (in the second tier as the loss \
            `compat_syscall`): their numbers differ. Calls that never return to the caller (the \
            thread is killed inside) are not counted. While it is attached every system call of \
            the host takes the kernel's traced path and passes the program at exit.",
    tiers: &[
        Tier {
            name: "entries by the tracepoints of the watched calls",
            needs: &[Need::Tracefs],
            programs: &[
                Program {
                    name: "syscalls_enter",
                    attach: Attach::Syscalls(
                        "syscalls:sys_enter_* of mmap, munmap, mremap, brk, mprotect, madvise",
                        "sys_enter",
                        &["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"],
                    ),
                    gives: "begins of system calls",
                },
                SYS_EXIT,
            ],
        },
        Tier {
            name: "entries by the tracepoint of all system calls",
            needs: &[],
            programs: &[
                Program {
                    name: "sys_enter",
                    attach: Attach::TpBtf("sys_enter", 2),
                    gives: "begins of system calls",
                },
                SYS_EXIT,
            ],
        },
    ],
    records: &[RecordKind::MmSyscall],
    causes: &[Cause::MmSyscall],
    floor_ns: 3_000,
    decode,
};

fn decode(_header: &Header, bytes: &[u8]) -> Option<EventKind> {
    let record: MmSyscallRecord = read(bytes)?;
    let call = *MmCall::ALL.get(record.series.checked_sub(Series::Mmap as u32)? as usize)?;
    Some(EventKind::MmSyscall {
        call,
        address: record.address,
        length_bytes: record.length_bytes,
        result: record.result,
        argument: record.argument,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_series_are_in_the_same_order() {
        let series = [
            Series::Mmap,
            Series::Munmap,
            Series::Mremap,
            Series::Brk,
            Series::Mprotect,
            Series::Madvise,
        ];
        for (call, series) in MmCall::ALL.into_iter().zip(series) {
            assert_eq!(format!("{call:?}"), format!("{series:?}"));
        }
    }
}
