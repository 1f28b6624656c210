//! `mm_syscall`: system calls that change the address space.

use observer_ebpf::wire::{Header, MmSyscallRecord, RecordKind, Series};

use super::{Attach, Members, Need, Probe, Program, Tier, read};
use crate::model::{EventKind, MmCall};

/// Shared with the socket probe: without the part of either.
pub(super) const SYS_EXIT: Program =
    Program::new("sys_exit", Attach::TpBtf("sys_exit", 2), RESULTS);

/// The same, read by helper calls.
pub(super) const SYS_EXIT_RAW: Program =
    Program::new("sys_exit_raw", Attach::RawTracepoint("sys_exit", 2), RESULTS);

/// The part of the programs at the exit of all calls that these calls need.
const CALLS: &str = "SYS_EXIT_MM";

const BEGINS: &str = "begins of system calls";
const RESULTS: &str = "results of system calls";

/// The functions of the calls. Calls of the 32-bit ABI have others.
const FUNCTIONS: [&str; 6] = [
    "__x64_sys_mmap",
    "__x64_sys_munmap",
    "__x64_sys_mremap",
    "__x64_sys_brk",
    "__x64_sys_mprotect",
    "__x64_sys_madvise",
];

const fn enter(name: &'static str, function: usize) -> Program {
    Program::new(name, Attach::Fentry(FUNCTIONS[function]), BEGINS)
}

const fn leave(name: &'static str, function: usize) -> Program {
    Program::new(name, Attach::Fexit(FUNCTIONS[function]), RESULTS)
}

pub(super) const PROBE: Probe = Probe {
    name: "mm_syscall",
    about: "Latency, bytes and result of mmap, munmap, mremap, brk, mprotect and madvise.",
    notes: "Calls of the 32-bit ABI are not counted as `mm_syscall` (in the tiers that pass all \
            system calls at entry, as the loss `compat_syscall`): their numbers differ. Calls that \
            never return to the caller (the thread is killed inside) are not counted. `fentry` and \
            `kprobe` touch the watched calls only; with the others attached every system call of the \
            host takes the kernel's traced path and passes a program at exit. The kernel watches a \
            limited number of returns by kretprobe at a time; those it misses are the loss \
            `begin_without_end`.",
    tiers: &[
        Tier {
            name: "fentry",
            about: "entry and return of the calls themselves",
            needs: &[Need::OwnBtf, Need::Fentry, Need::Function(FUNCTIONS[0])],
            reads: &[Members::Cgroup, Members::Registers],
            programs: &[
                enter("mmap_enter", 0),
                leave("mmap_leave", 0),
                enter("munmap_enter", 1),
                leave("munmap_leave", 1),
                enter("mremap_enter", 2),
                leave("mremap_leave", 2),
                enter("brk_enter", 3),
                leave("brk_leave", 3),
                enter("mprotect_enter", 4),
                leave("mprotect_leave", 4),
                enter("madvise_enter", 5),
                leave("madvise_leave", 5),
            ],
        },
        Tier {
            name: "tracepoint",
            about: "entry by the tracepoints of the watched calls, exit by that of all calls",
            needs: &[Need::OwnBtf, Need::Tracefs],
            reads: &[Members::Cgroup, Members::Registers, Members::CallAbi],
            programs: &[
                Program::new(
                    "syscalls_enter",
                    Attach::Syscalls(
                        "syscalls:sys_enter_* of mmap, munmap, mremap, brk, mprotect, madvise",
                        "sys_enter",
                        &["mmap", "munmap", "mremap", "brk", "mprotect", "madvise"],
                    ),
                    BEGINS,
                ),
                SYS_EXIT.part(CALLS),
            ],
        },
        Tier {
            name: "tp_btf",
            about: "entry and exit of all calls",
            needs: &[Need::OwnBtf],
            reads: &[Members::Cgroup, Members::Registers, Members::CallAbi],
            programs: &[
                Program::new("sys_enter", Attach::TpBtf("sys_enter", 2), BEGINS),
                SYS_EXIT.part(CALLS),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "entry and exit of all calls, registers read by helper calls",
            needs: &[],
            reads: &[Members::Cgroup, Members::Registers, Members::CallAbi],
            programs: &[
                Program::new("sys_enter_raw", Attach::RawTracepoint("sys_enter", 2), BEGINS),
                SYS_EXIT_RAW.part(CALLS),
            ],
        },
        Tier {
            name: "kprobe",
            about: "entry and return of the calls themselves, through kprobes",
            needs: &[Need::Kprobe, Need::Function(FUNCTIONS[0])],
            reads: &[Members::Cgroup, Members::Registers],
            programs: &[
                Program::new("mm_call_kprobe", Attach::Kprobe(&FUNCTIONS), BEGINS),
                Program::new("mm_call_kretprobe", Attach::Kretprobe(&FUNCTIONS), RESULTS),
            ],
        },
    ],
    records: &[RecordKind::MmSyscall],
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
