//! System calls: latency of the memory-management ones, accepted sockets, descriptor exhaustion.
//!
//! One program at entry and one at exit serve all of it. At exit every system call of the host
//! passes here, and what is not wanted leaves after a few comparisons. The entry matters for the
//! memory-management calls only: attached to their own tracepoints, the kernel sorts the others
//! out by a bitmap before any program runs; attached to all, they leave here. Numbers are those
//! of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, tracepoint},
    programs::{BtfTracePointContext, TracePointContext},
};
use observer_ebpf::wire::{
    Counter, FdFailureRecord, FdSyscall, LossKind, MmSyscallRecord, RecordKind, Series,
};

use super::socket;
use crate::{
    emit, histogram,
    kernel::{Registers, Task, now_ns},
    maps::CONFIG,
    task,
};

const OPEN: u64 = 2;
const MMAP: u64 = 9;
const MPROTECT: u64 = 10;
const MUNMAP: u64 = 11;
const BRK: u64 = 12;
const MREMAP: u64 = 25;
const MADVISE: u64 = 28;
const SOCKET: u64 = 41;
const CONNECT: u64 = 42;
const ACCEPT: u64 = 43;
const SOCKETPAIR: u64 = 53;
const CREAT: u64 = 85;
const OPENAT: u64 = 257;
const ACCEPT4: u64 = 288;
const OPENAT2: u64 = 437;

/// A non-blocking connect that is under way, negated.
const EINPROGRESS: i64 = -115;

/// Bit n is set when system call n is a watched memory-management call.
const MM_CALLS: u64 =
    1 << MMAP | 1 << MPROTECT | 1 << MUNMAP | 1 << BRK | 1 << MREMAP | 1 << MADVISE;

#[inline(always)]
const fn is_mm_call(number: u64) -> bool {
    number < 64 && MM_CALLS >> number & 1 != 0
}

/// `syscalls:sys_enter_*` of the memory-management calls. The kernel leaves out the 32-bit ABI.
#[tracepoint]
fn syscalls_enter(_ctx: TracePointContext) -> u32 {
    if let Some(state) = task::claim(Task::current().tid()) {
        state.syscall_ns = now_ns();
    }
    NO_SAMPLE
}

/// Nothing is to go into the perf event the tracepoint is attached through.
const NO_SAMPLE: u32 = 0;

/// `sys_enter(regs, id)`
#[btf_tracepoint(function = "sys_enter")]
fn sys_enter(ctx: BtfTracePointContext) {
    let number: u64 = ctx.arg(1);
    if !is_mm_call(number) {
        return;
    }
    let current = Task::current();
    if current.in_compat_syscall() {
        emit::lose(LossKind::CompatSyscall);
        return;
    }
    if let Some(state) = task::claim(current.tid()) {
        state.syscall_ns = now_ns();
    }
}

/// `sys_exit(regs, ret)`
#[btf_tracepoint(function = "sys_exit")]
fn sys_exit(ctx: BtfTracePointContext) {
    let registers = Registers::new(ctx.arg(0));
    let result: i64 = ctx.arg(1);
    let number = registers.number();
    if is_mm_call(number) {
        mm_call_done(registers, number, result);
    } else if number == CONNECT && (result == 0 || result == EINPROGRESS) {
        generator_connected(ctx.tgid());
    } else if result >= 0 {
        if (number == ACCEPT || number == ACCEPT4) && !Task::current().in_compat_syscall() {
            socket::accepted(ctx.tgid(), result as u32);
        }
    } else if result == -12 || result == -23 || result == -24 || result == -105 {
        exhausted(&ctx, number, -result as u32);
    }
}

#[inline(always)]
fn mm_call_done(registers: Registers, number: u64, result: i64) {
    let current = Task::current();
    let tid = current.tid();
    let Some(state) = task::find(tid) else { return };
    let since = state.syscall_ns;
    // Zero for a call of the 32-bit ABI, and for one that began before the probe was attached.
    if since == 0 {
        return;
    }
    state.syscall_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let series = match number {
        MMAP => Series::Mmap,
        MUNMAP => Series::Munmap,
        MREMAP => Series::Mremap,
        BRK => Series::Brk,
        MPROTECT => Series::Mprotect,
        _ => Series::Madvise,
    };
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, Some(state), is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::MmSyscall, duration_ns) {
        let [address, second, third] = registers.arguments();
        let (length_bytes, argument) = match number {
            BRK => (0, 0),
            MUNMAP => (second, 0),
            MREMAP => (third, 0),
            _ => (second, third as u32),
        };
        emit::emit(
            RecordKind::MmSyscall,
            MmSyscallRecord {
                header: emit::header(RecordKind::MmSyscall, 0, (tgid, tid), now, duration_ns),
                address,
                length_bytes,
                result,
                series: series as u32,
                argument,
            },
        );
    }
}

/// Notes the load generator's first connect(2).
#[inline(always)]
fn generator_connected(tgid: u32) {
    let Some(config) = CONFIG.get_ptr_mut(0) else { return };
    // SAFETY: a map value; two threads that race here write times a few microseconds apart.
    let config = unsafe { &mut *config };
    if config.generator_tgid == u64::from(tgid) && config.generator_connected_ns == 0 {
        config.generator_connected_ns = now_ns();
    }
}

#[inline(always)]
fn exhausted(ctx: &BtfTracePointContext, number: u64, errno: u32) {
    let call = match number {
        SOCKET | SOCKETPAIR => FdSyscall::Socket,
        ACCEPT | ACCEPT4 => FdSyscall::Accept,
        CONNECT => FdSyscall::Connect,
        OPEN | OPENAT | OPENAT2 | CREAT => FdSyscall::Open,
        _ => return,
    };
    if Task::current().in_compat_syscall() {
        return;
    }
    // The order of `FD_ERRNOS`.
    let position = match errno {
        24 => 0,
        23 => 1,
        105 => 2,
        _ => 3,
    };
    let index = call as usize * 4 + position;
    emit::count_at(Counter::FdFailures as usize + index);
    let tgid = ctx.tgid();
    if emit::is_target(tgid) {
        emit::count_at(Counter::TargetFdFailures as usize + index);
        let header = emit::header(RecordKind::FdFailure, 0, (tgid, ctx.pid()), now_ns(), 0);
        emit::emit(RecordKind::FdFailure, FdFailureRecord { header, syscall: call as u32, errno });
    }
}
