//! Page faults. The begin and the end are those of the kernel's fault handler; or the begin is at
//! the x86 exception tracepoints, and the end where the kernel counts the fault.
//!
//! The kernel counts a fault once, when it is complete: retries inside the handler do not count
//! (`mm_account_fault`, mm/memory.c).

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe, perf_event},
    programs::{FEntryContext, FExitContext, PerfEventContext, ProbeContext, RetProbeContext},
};
use observer_ebpf::wire::{
    ATTEMPT_GIVEN_UP, ATTEMPT_MAPPING_LOCKED, Counter, FAULT_CORRECTS, FAULT_KERNEL, FAULT_MAJOR,
    FaultRecord, FaultState, LossKind, MINOR_IN_BURST, MINOR_SENT, RecordKind, Series,
};

use crate::{
    burst, config, emit, histogram,
    kernel::{Arguments, Task, now_ns},
    task,
};

tracepoint_programs! {
    /// `page_fault_user(address, regs, error_code)`
    page_fault_user, page_fault_user_raw => user_exception;
    /// `page_fault_kernel(address, regs, error_code)`
    page_fault_kernel, page_fault_kernel_raw => kernel_exception;
    /// `count_memcg_events(memcg, item, val)`
    count_memcg_events, count_memcg_events_raw => event_counted;
    /// `signal_deliver(sig, info, ka)`
    signal_deliver, signal_deliver_raw => signal_delivered;
}

/// `handle_mm_fault(vma, address, flags, regs)`
#[fentry]
fn handle_mm_fault_enter(ctx: FEntryContext) {
    let arguments = Arguments::typed(&ctx);
    handler_entered(arguments.word::<1>(), arguments.word::<2>() as u32);
}

/// What `handle_mm_fault` returned, behind its parameters (`regs` was added in Linux 5.9).
#[fexit]
fn handle_mm_fault_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    handler_left(if config::handle_mm_fault_parameters() == 4 {
        arguments.word::<4>()
    } else {
        arguments.word::<3>()
    } as u32);
}

/// The same begin, for kernels without BPF trampolines.
#[kprobe]
fn handle_mm_fault_kprobe(ctx: ProbeContext) {
    let (Some(address), Some(flags)) = (ctx.arg::<u64>(1), ctx.arg::<u32>(2)) else { return };
    handler_entered(address, flags);
}

/// The same end, for kernels without BPF trampolines.
#[kretprobe]
fn handle_mm_fault_kretprobe(ctx: RetProbeContext) {
    handler_left(ctx.ret());
}

#[inline(always)]
fn user_exception(arguments: Arguments) {
    begin(arguments, 0);
}

#[inline(always)]
fn kernel_exception(arguments: Arguments) {
    begin(arguments, 1);
}

#[inline(always)]
fn begin(arguments: Arguments, in_kernel: u32) {
    if let Some(state) = task::claim(Task::current()) {
        begin_at(state, arguments.word::<0>(), in_kernel);
    }
}

#[inline(always)]
fn begin_at(state: &mut FaultState, address: u64, in_kernel: u32) {
    state.address = address;
    state.in_kernel = in_kernel;
    state.is_major = 0;
    state.minor_ns = 0;
    state.begin_ns = now_ns();
}

/// The state of a thread that is in a fault.
#[inline(always)]
fn in_fault(current: Task) -> Option<&'static mut FaultState> {
    task::find::<FaultState>(current).filter(|state| state.begin_ns != 0)
}

/// The fault handler is entered, possibly again for a fault it gave up before: to wait for a page,
/// or for the lock of the whole address space after that of the mapping alone.
///
/// The kernel says whether it tries again (`FAULT_FLAG_TRIED`), except after an attempt with the lock
/// of the mapping alone. It does not always try again: not when a signal or a stop came meanwhile, and
/// not when it must not wait. The next fault at this address is then a new one. It still counts from
/// the begin of the one given up if that had the lock of the mapping alone, no signal was delivered
/// since (a stop, or work for the thread on its way to user mode), and it finds the lock of the mapping
/// taken: such a fault looks like a retry, and no count tells them apart, because the kernel counts neither
/// before its end.
#[inline(always)]
fn handler_entered(address: u64, flags: u32) {
    let Some(state) = task::claim::<FaultState>(Task::current()) else { return };
    let in_kernel = u32::from(flags & config::fault_flag_user() == 0);
    let is_tried = flags & config::fault_flag_tried() != 0;
    let attempt =
        if flags & config::fault_flag_vma_lock() != 0 { ATTEMPT_MAPPING_LOCKED } else { 0 };
    let given_up = state.attempt & ATTEMPT_GIVEN_UP != 0;
    let had_mapping_alone = state.attempt & !attempt & ATTEMPT_MAPPING_LOCKED != 0;
    let is_retry = given_up
        && (is_tried || had_mapping_alone)
        && state.begin_ns != 0
        && state.address == address
        && state.in_kernel == in_kernel;
    if !is_retry {
        begin_at(state, address, in_kernel);
    }
    state.attempt = attempt;
    // The kernel counts a retried fault as major (`mm_account_fault`).
    if is_tried {
        state.is_major = 1;
    }
}

/// The fault handler returned: a fault that will be retried continues, and a failed one is not
/// counted, as in the kernel.
#[inline(always)]
fn handler_left(result: u32) {
    let current = Task::current();
    let Some(state) = in_fault(current) else {
        emit::lose_of(LossKind::EndWithoutBegin, current);
        return;
    };
    if result & config::vm_fault_retry() != 0 {
        state.attempt |= ATTEMPT_GIVEN_UP;
        return;
    }
    if result & config::vm_fault_error() != 0 {
        state.begin_ns = 0;
        return;
    }
    let major = result & config::vm_fault_major() != 0 || state.is_major != 0;
    end(current, state, major);
}

/// `mm_account_fault` counts PGFAULT here at the end of every fault, and whatever makes it major
/// has counted PGMAJFAULT before.
#[inline(always)]
fn event_counted(arguments: Arguments) {
    let item = arguments.word::<1>() as u32;
    if item == config::vm_event_pgfault() {
        let current = Task::current();
        let Some(state) = in_fault(current) else {
            emit::count(Counter::FaultsWithoutException);
            return;
        };
        let major = state.is_major != 0;
        end(current, state, major);
    } else if item == config::vm_event_pgmajfault()
        && let Some(state) = in_fault(Task::current())
    {
        state.is_major = 1;
    }
}

/// A thread that receives a signal is not in a fault. Without this program, a fault that ends in a
/// signal instead of a page would leave its begin time behind.
#[inline(always)]
fn signal_delivered(_arguments: Arguments) {
    no_fault(Task::current());
}

/// The thread is not in a fault, even if the begin of one was seen.
#[inline(always)]
pub(super) fn no_fault(current: Task) {
    if let Some(state) = task::find::<FaultState>(current) {
        state.begin_ns = 0;
    }
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, right after the end of a major fault: corrects the few that
/// are major for having been retried behind another thread's read, without a PGMAJFAULT. The thread
/// may be on another CPU than at the end of the fault.
#[perf_event]
fn page_faults_maj_check(_ctx: PerfEventContext) {
    let current = Task::current();
    let Some(state) = task::find::<FaultState>(current) else { return };
    // `end` stores the length of a fault here if it counted the fault as minor.
    let duration_ns = state.minor_ns;
    if duration_ns == 0 {
        return;
    }
    state.minor_ns = 0;
    let kernel_mode = state.in_kernel != 0;
    let is_target = is_target(current);
    let corrected =
        if kernel_mode { Series::FaultCorrectedKernel } else { Series::FaultCorrectedUser };
    histogram::observe(current, Some(&mut state.cgroup), is_target, corrected, duration_ns);
    if state.minor_sent == MINOR_IN_BURST {
        // Not where the fault was the last of a burst that has been sent: such a fault is shorter than
        // the floor, and is left where it is.
        if state.burst.count != 0 {
            state.burst.count -= 1;
            state.burst.sum_ns = state.burst.sum_ns.wrapping_sub(duration_ns);
        }
    } else if state.minor_sent == MINOR_SENT {
        let ids = (current.tgid(), current.tid());
        let header = emit::header(RecordKind::Fault, FAULT_CORRECTS, ids, now_ns(), duration_ns);
        emit::correct(RecordKind::Fault, FaultRecord { header, address: state.address });
    }
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MIN`, every one, for kernels without the tracepoint above.
#[perf_event]
fn page_faults_min(_ctx: PerfEventContext) {
    perf_end(false);
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, every one, for kernels without the tracepoint above.
#[perf_event]
fn page_faults_maj(_ctx: PerfEventContext) {
    perf_end(true);
}

#[inline(always)]
fn perf_end(major: bool) {
    let current = Task::current();
    match in_fault(current) {
        Some(state) => end(current, state, major),
        None => emit::lose_of(LossKind::EndWithoutBegin, current),
    }
}

/// Whether the task belongs to the target. Without a target, there is no look-up.
#[inline(always)]
fn is_target(current: Task) -> bool {
    config::has_target() != 0 && emit::is_target(current.tgid())
}

#[inline(always)]
const fn series(major: bool, kernel_mode: bool) -> Series {
    match (major, kernel_mode) {
        (false, false) => Series::FaultMinorUser,
        (false, true) => Series::FaultMinorKernel,
        (true, false) => Series::FaultMajorUser,
        (true, true) => Series::FaultMajorKernel,
    }
}

#[inline(always)]
fn end(current: Task, state: &mut FaultState, major: bool) {
    let now = now_ns();
    let begin_ns = state.begin_ns;
    let duration_ns = now.wrapping_sub(begin_ns);
    state.begin_ns = 0;
    state.minor_ns = if major { 0 } else { duration_ns };
    state.minor_sent = 0;
    let kernel_mode = state.in_kernel != 0;
    let is_target = is_target(current);
    let series = series(major, kernel_mode);
    histogram::observe(current, Some(&mut state.cgroup), is_target, series, duration_ns);
    if !is_target {
        return;
    }
    let ids = (current.tgid(), current.tid());
    if emit::past_floor(RecordKind::Fault, duration_ns) {
        let flags =
            if major { FAULT_MAJOR } else { 0 } | if kernel_mode { FAULT_KERNEL } else { 0 };
        let header = emit::header(RecordKind::Fault, flags, ids, now, duration_ns);
        let record = FaultRecord { header, address: state.address };
        state.minor_sent = if emit::emit(RecordKind::Fault, record) { MINOR_SENT } else { 0 };
    } else if !major {
        // A major fault waits for a device, and so is short only under a raised floor.
        state.minor_sent = MINOR_IN_BURST;
        burst::add(state, ids, begin_ns, now);
    }
}
