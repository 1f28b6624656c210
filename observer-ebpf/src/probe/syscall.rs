//! System calls: latency of the memory-management ones, accepted sockets, descriptor exhaustion.
//!
//! Where functions can be watched, the programs sit at the watched calls themselves (`__x64_sys_*`,
//! which calls of the 32-bit ABI do not pass), and nothing else of the host is touched. Otherwise
//! one program at the exit of all system calls does all of this: every system call of the host runs
//! it, and calls that are not watched return after a few comparisons. The entry matters for the
//! memory-management calls only: with programs on the calls' own tracepoints, the kernel filters
//! out the other calls by a bitmap before any program runs; with a program on all calls, this code
//! filters them. Numbers are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).

use core::ffi::c_void;

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use observer_ebpf::wire::{
    CallExit, FD_FAILURES, FdFailureRecord, FdSyscall, LossKind, MmSyscallRecord, MmSyscallState,
    RecordKind, Series, TARGET_FD_FAILURES, fd_failure,
};

use super::{fault, socket};
use crate::{
    burst, config, emit, histogram,
    kernel::{Arguments, Registers, Task, now_ns},
    task,
};

tracepoint_programs! {
    /// `sys_enter(regs, id)`
    sys_enter, sys_enter_raw => any_call_begun;
    /// `sys_exit(regs, ret)`
    sys_exit, sys_exit_raw => any_call_done;
}

/// Programs at the begin and the end of one memory-management call.
macro_rules! memory_calls {
    ($($enter:ident, $leave:ident = $number:ident;)*) => {$(
        #[fentry]
        fn $enter(_ctx: FEntryContext) {
            mm_call_begun();
        }

        #[fexit]
        fn $leave(ctx: FExitContext) {
            let arguments = Arguments::typed(&ctx);
            let result = arguments.word::<1>() as i64;
            mm_call_done(arguments.registers::<0>(), $number, result);
        }
    )*};
}

memory_calls! {
    mmap_enter, mmap_leave = MMAP;
    munmap_enter, munmap_leave = MUNMAP;
    mremap_enter, mremap_leave = MREMAP;
    brk_enter, brk_leave = BRK;
    mprotect_enter, mprotect_leave = MPROTECT;
    madvise_enter, madvise_leave = MADVISE;
}

/// Programs at the end of one call that makes a descriptor, or uses one to connect.
macro_rules! descriptor_calls {
    ($($leave:ident = $call:ident;)*) => {$(
        #[fexit]
        fn $leave(ctx: FExitContext) {
            descriptor_call_done(FdSyscall::$call, Arguments::typed(&ctx).word::<1>() as i64);
        }
    )*};
}

descriptor_calls! {
    socket_leave = Socket;
    socketpair_leave = Socket;
    accept_leave = Accept;
    accept4_leave = Accept;
    connect_leave = Connect;
    open_leave = Open;
    openat_leave = Open;
    openat2_leave = Open;
    creat_leave = Open;
}

/// The ends of the same calls, with one program for all calls of a kind, for kernels without BPF
/// trampolines.
macro_rules! descriptor_returns {
    ($($leave:ident = $call:ident;)*) => {$(
        #[kretprobe]
        fn $leave(ctx: RetProbeContext) {
            descriptor_call_done(FdSyscall::$call, ctx.ret());
        }
    )*};
}

descriptor_returns! {
    socket_kretprobe = Socket;
    accept_kretprobe = Accept;
    connect_kretprobe = Connect;
    open_kretprobe = Open;
}

/// `__x64_sys_*(regs)` of the memory-management calls, for kernels without BPF trampolines.
#[kprobe]
fn mm_call_kprobe(ctx: ProbeContext) {
    let Some(registers) = ctx.arg::<u64>(0) else { return };
    let current = Task::current();
    if let Some((state, is_open)) = task::begin_call(current) {
        // The arguments are gone when the function returns.
        state.registers = registers;
        // The kernel tracks only a limited number of pending returns, and misses the others.
        if is_open {
            emit::lose_of(LossKind::BeginWithoutEnd, current);
        }
    }
}

/// The end of these calls.
#[kretprobe]
fn mm_call_kretprobe(ctx: RetProbeContext) {
    let Some(state) = task::find::<MmSyscallState>(Task::current()) else { return };
    let registers = Registers::at(state.registers);
    mm_call_done(registers, registers.number(), ctx.ret());
}

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

/// Bit n is set when system call n is a watched memory-management call.
const MM_CALLS: u64 =
    1 << MMAP | 1 << MPROTECT | 1 << MUNMAP | 1 << BRK | 1 << MREMAP | 1 << MADVISE;

#[inline(always)]
const fn is_mm_call(number: u64) -> bool {
    number < 64 && MM_CALLS >> number & 1 != 0
}

/// `syscalls:sys_enter_*` of the memory-management calls. The kernel leaves out the 32-bit ABI.
///
/// An entry point by hand: that of aya's macro always returns zero (aya-ebpf-macros 0.2).
#[unsafe(no_mangle)]
#[unsafe(link_section = "tracepoint")]
fn syscalls_enter(_ctx: *mut c_void) -> u32 {
    mm_call_begun();
    GO_ON
}

/// If a program of a tracepoint returns zero, the kernel hides the call from all perf events on
/// that tracepoint, also those of other tools (`perf_call_bpf_enter`,
/// kernel/trace/trace_syscalls.c).
const GO_ON: u32 = 1;

#[inline(always)]
fn mm_call_begun() {
    let current = Task::current();
    // Where threads share entries, a begin without an end is most likely that of another thread.
    if let Some((_, true)) = task::begin_call(current)
        && task::shares_calls(current)
    {
        emit::lose_of(LossKind::TaskSlot, current);
    }
    // A thread that makes a call is not in a fault. A fault in the kernel that ended in EFAULT would
    // leave its begin time behind, and the next page that the kernel brings in by itself
    // (MAP_POPULATE) would end it.
    if config::watches_faults() != 0 {
        fault::no_fault(current);
    }
}

#[inline(always)]
fn any_call_begun(arguments: Arguments) {
    if !is_mm_call(arguments.word::<1>()) {
        return;
    }
    let current = Task::current();
    if current.in_compat_syscall() {
        emit::lose_of(LossKind::CompatSyscall, current);
        return;
    }
    mm_call_begun();
}

#[inline(always)]
fn any_call_done(arguments: Arguments) {
    let registers = arguments.registers::<0>();
    let result = arguments.word::<1>() as i64;
    let number = registers.number();
    if config::sys_exit_mm() != 0 && is_mm_call(number) {
        mm_call_done(registers, number, result);
        return;
    }
    // Most calls return here, before anything is read.
    let call = match number {
        _ if config::sys_exit_descriptors() == 0 => return,
        ACCEPT | ACCEPT4 => FdSyscall::Accept,
        _ if !is_exhaustion(result) => return,
        CONNECT => FdSyscall::Connect,
        SOCKET | SOCKETPAIR => FdSyscall::Socket,
        OPEN | OPENAT | OPENAT2 | CREAT => FdSyscall::Open,
        _ => return,
    };
    let here = if arguments.is_typed() { CallExit::Typed } else { CallExit::Raw };
    let is_counted_here =
        emit::settings().is_some_and(|settings| settings.descriptor_calls_at == here as u64);
    if !is_counted_here || Task::current().in_compat_syscall() {
        return;
    }
    descriptor_call_done(call, result);
}

/// EMFILE, ENFILE, ENOBUFS or ENOMEM, negated.
#[inline(always)]
const fn is_exhaustion(result: i64) -> bool {
    result == -24 || result == -23 || result == -105 || result == -12
}

#[inline(always)]
fn descriptor_call_done(call: FdSyscall, result: i64) {
    if is_exhaustion(result) {
        exhausted(call, -result as u32);
    } else if matches!(call, FdSyscall::Accept) && result >= 0 {
        socket::accepted(Task::current().tgid(), result as u32);
    }
}

#[inline(always)]
fn mm_call_done(registers: Registers, number: u64, result: i64) {
    let current = Task::current();
    // None for a call of the 32-bit ABI, and for one that began before the probe was attached.
    let Some((state, since)) = task::end_call(current) else { return };
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
    histogram::observe(current, Some(&mut state.cgroup), is_target, series, duration_ns);
    if !is_target {
        return;
    }
    let ids = (tgid, current.tid());
    if emit::past_floor(RecordKind::MmSyscall, duration_ns) {
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
                header: emit::header(RecordKind::MmSyscall, 0, ids, now, duration_ns),
                address,
                length_bytes,
                result,
                series: series as u32,
                argument,
            },
        );
    } else {
        burst::add(state, ids, since, now);
    }
}

#[inline(always)]
fn exhausted(call: FdSyscall, errno: u32) {
    // The order of `FD_ERRNOS`.
    let position = match errno {
        24 => 0,
        23 => 1,
        105 => 2,
        _ => 3,
    };
    let index = fd_failure(call, position);
    emit::count_at(FD_FAILURES + index);
    let current = Task::current();
    let tgid = current.tgid();
    if emit::is_target(tgid) {
        emit::count_at(TARGET_FD_FAILURES + index);
        let header = emit::header(RecordKind::FdFailure, 0, (tgid, current.tid()), now_ns(), 0);
        emit::emit(RecordKind::FdFailure, FdFailureRecord { header, syscall: call as u32, errno });
    }
}
