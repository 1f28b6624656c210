//! `mm_syscall`: system calls that change the address space.

use std::mem::offset_of;

use observer_ebpf::wire::{MmSyscallRecord, MmSyscallState, RecordKind, Series, Slot};

use super::{
    Attach, Bounds, HistogramFamily, Members, Need, PerThread, Probe, Program, RunsAt, Tier, burst,
};
use crate::model::{Cause, Event, RecordRow, field};
use crate::text::bytes;

/// Shared with the socket probe; without the parts that only one of the two needs.
pub(super) const SYS_EXIT: Program =
    Program::new("sys_exit", Attach::TpBtf("sys_exit", 2), RESULTS);

/// The same programs, reading by helper calls.
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
    runs_at: RunsAt::Frequent("memory-management call"),
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
            reads: &[Members::Registers],
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
            reads: &[Members::Registers, Members::CallAbi],
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
            reads: &[Members::Registers, Members::CallAbi],
            programs: &[
                Program::new("sys_enter", Attach::TpBtf("sys_enter", 2), BEGINS),
                SYS_EXIT.part(CALLS),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "entry and exit of all calls, registers read by helper calls",
            needs: &[],
            reads: &[Members::Registers, Members::CallAbi],
            programs: &[
                Program::new("sys_enter_raw", Attach::RawTracepoint("sys_enter", 2), BEGINS),
                SYS_EXIT_RAW.part(CALLS),
            ],
        },
        Tier {
            name: "kprobe",
            about: "entry and return of the calls themselves, through kprobes",
            needs: &[Need::Kprobe, Need::Function(FUNCTIONS[0])],
            reads: &[Members::Registers],
            programs: &[
                Program::new("mm_call_kprobe", Attach::Kprobe(&FUNCTIONS), BEGINS),
                Program::new("mm_call_kretprobe", Attach::Kretprobe(&FUNCTIONS), RESULTS),
            ],
        },
    ],
    records: &[&MM_SYSCALL, &MM_SYSCALL_BURST],
    histograms: &[HistogramFamily {
        name: "mm_syscall_duration",
        help: "Time inside memory-management system calls",
        labels: &["call"],
        bounds: Bounds::STALL,
        series: &[
            (Series::Mmap, "mmap", &["mmap"]),
            (Series::Munmap, "munmap", &["munmap"]),
            (Series::Mremap, "mremap", &["mremap"]),
            (Series::Brk, "brk", &["brk"]),
            (Series::Mprotect, "mprotect", &["mprotect"]),
            (Series::Madvise, "madvise", &["madvise"]),
        ],
        ..HistogramFamily::BASE
    }],
    per_thread: Some(
        PerThread::of::<MmSyscallState>(
            ["MM_SYSCALLS", "MM_SYSCALLS_STORAGE", "MM_SYSCALLS_STORED"],
            &[offset_of!(Slot<MmSyscallState>, state.begin_ns) / 8],
        )
        .burst(RecordKind::MmSyscallBurst, offset_of!(Slot<MmSyscallState>, state.burst)),
    ),
    ..Probe::BASE
};

/// The watched calls, with the series of each.
const WATCHED: [(Series, &str); 6] = [
    (Series::Mmap, "mmap"),
    (Series::Munmap, "munmap"),
    (Series::Mremap, "mremap"),
    (Series::Brk, "brk"),
    (Series::Mprotect, "mprotect"),
    (Series::Madvise, "madvise"),
];

/// The name of a call by its series.
fn call_name(series: u32) -> Option<&'static str> {
    WATCHED.iter().find(|(call, _)| *call as u32 == series).map(|(_, name)| *name)
}

static MM_SYSCALL: RecordRow = RecordRow::new::<MmSyscallRecord>(
    "mm_syscall",
    "A thread was inside a memory-management system call.",
    &[
        field!(MmSyscallRecord.series, "syscall", "the system call", call_name),
        field!(MmSyscallRecord.address, "address", "first argument"),
        field!(MmSyscallRecord.length_bytes, "length_bytes", "bytes asked for (0 for brk)"),
        field!(MmSyscallRecord.result, "result", "return value, negative errno on failure"),
        field!(
            MmSyscallRecord.argument,
            "argument",
            "protection (mmap, mprotect) or advice (madvise); otherwise 0"
        ),
    ],
)
.stalls(3_000, |_| Some(Cause::MM_SYSCALL))
.detail(detail);

static MM_SYSCALL_BURST: RecordRow = burst::row::<{ RecordKind::MmSyscallBurst as u16 }>(
    "mm_syscall_burst",
    "Memory-management system calls of a thread that are shorter than the threshold of `mm_syscall`, summed \
     up over at most about a millisecond.",
    |_| Some(Cause::MM_SYSCALL),
);

fn detail(event: &Event) -> String {
    let Some(record) = event.record::<MmSyscallRecord>() else { return String::new() };
    let mut text = call_name(record.series).unwrap_or_default().to_owned();
    if record.series == Series::Madvise as u32 {
        match advice(record.argument) {
            Some(name) => text += &format!("({name})"),
            None => text += &format!("({})", record.argument),
        }
    }
    if record.series != Series::Brk as u32 {
        text += &format!(" {}", bytes(record.length_bytes));
    }
    // Addresses that mmap returns are positive; errors lie in -4095..0.
    if (-4095..0).contains(&record.result) {
        text += &format!(", failed with errno {}", -record.result);
    }
    text
}

/// How the table of advice in `include/uapi/asm-generic/mman-common.h` names it.
fn advice(number: u32) -> Option<&'static str> {
    Some(match number {
        0 => "NORMAL",
        1 => "RANDOM",
        2 => "SEQUENTIAL",
        3 => "WILLNEED",
        4 => "DONTNEED",
        8 => "FREE",
        9 => "REMOVE",
        10 => "DONTFORK",
        11 => "DOFORK",
        12 => "MERGEABLE",
        13 => "UNMERGEABLE",
        14 => "HUGEPAGE",
        15 => "NOHUGEPAGE",
        16 => "DONTDUMP",
        17 => "DODUMP",
        18 => "WIPEONFORK",
        19 => "KEEPONFORK",
        20 => "COLD",
        21 => "PAGEOUT",
        22 => "POPULATE_READ",
        23 => "POPULATE_WRITE",
        24 => "DONTNEED_LOCKED",
        25 => "COLLAPSE",
        100 => "HWPOISON",
        102 => "GUARD_INSTALL",
        103 => "GUARD_REMOVE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{DecodeError, decode, tests::header};

    #[test]
    fn details_name_what_the_numbers_mean() {
        let call = |series: Series, argument, result| {
            let record = MmSyscallRecord {
                header: header(RecordKind::MmSyscall, 0),
                address: 1,
                length_bytes: 4 << 20,
                result,
                series: series as u32,
                argument,
            };
            detail(&decode(bytemuck::bytes_of(&record)).expect("decodes"))
        };
        assert_eq!(call(Series::Madvise, 4, 0), "madvise(DONTNEED) 4 MiB");
        assert_eq!(call(Series::Madvise, 77, 0), "madvise(77) 4 MiB");
        assert_eq!(call(Series::Mmap, 0, -12), "mmap 4 MiB, failed with errno 12");
        assert_eq!(call(Series::Brk, 0, 0x5000), "brk");
    }

    #[test]
    fn a_series_that_is_no_call_is_refused() {
        let record = MmSyscallRecord {
            header: header(RecordKind::MmSyscall, 0),
            address: 1,
            length_bytes: 1,
            result: 0,
            series: Series::Compaction as u32,
            argument: 0,
        };
        assert_eq!(decode(bytemuck::bytes_of(&record)), Err(DecodeError::BadField));
    }
}
