//! Page faults: begin from the x86 exception tracepoints, end from where the kernel counts them.
//!
//! The kernel counts a fault once, when it is complete: retries inside the handler do not count
//! (`mm_account_fault`, mm/memory.c).

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, perf_event},
    programs::{BtfTracePointContext, PerfEventContext},
};
use observer_ebpf::wire::{
    Counter, FAULT_IN_KERNEL, FAULT_KERNEL, FAULT_MAJOR, FAULT_SEEN_MAJOR, FaultRecord, LossKind,
    RecordKind, Series, TaskState,
};

use crate::{
    config, emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// `page_fault_user(address, regs, error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(ctx: BtfTracePointContext) {
    begin(&ctx, 0);
}

/// `page_fault_kernel(address, regs, error_code)`
#[btf_tracepoint(function = "page_fault_kernel")]
fn page_fault_kernel(ctx: BtfTracePointContext) {
    begin(&ctx, FAULT_IN_KERNEL);
}

#[inline(always)]
fn begin(ctx: &BtfTracePointContext, mode: u64) {
    if let Some(state) = task::claim(Task::current().tid()) {
        state.fault_address = ctx.arg::<u64>(0) | mode;
        state.fault_booked_ns = 0;
        state.fault_ns = now_ns() & !FAULT_SEEN_MAJOR;
    }
}

/// `count_memcg_events(memcg, item, val)`: `mm_account_fault` counts PGFAULT here at the end of
/// every fault, and whatever makes it major has counted PGMAJFAULT before.
#[btf_tracepoint(function = "count_memcg_events")]
fn count_memcg_events(ctx: BtfTracePointContext) {
    let item: u32 = ctx.arg(1);
    if item == config::vm_event_pgfault() {
        let current = Task::current();
        let begun = task::find(current.tid()).filter(|state| state.fault_ns != 0);
        let Some(state) = begun else {
            emit::count(Counter::FaultsWithoutException);
            return;
        };
        let major = state.fault_ns & FAULT_SEEN_MAJOR != 0;
        end(current, state, major);
    } else if item == config::vm_event_pgmajfault()
        && let Some(state) = task::find(Task::current().tid())
        && state.fault_ns != 0
    {
        state.fault_ns |= FAULT_SEEN_MAJOR;
    }
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, right after the end of a major fault: corrects the few that
/// are major for having been retried behind another thread's read, without a PGMAJFAULT.
#[perf_event]
fn page_faults_maj_check(ctx: PerfEventContext) {
    let Some(state) = task::find(ctx.pid()) else { return };
    // `end` leaves the length of a fault it took for minor here.
    let duration_ns = state.fault_booked_ns;
    if duration_ns == 0 {
        return;
    }
    state.fault_booked_ns = 0;
    let current = Task::current();
    let kernel_mode = state.fault_address & FAULT_IN_KERNEL != 0;
    let is_target = is_target(current);
    histogram::take_back(current, state, is_target, series(false, kernel_mode), duration_ns);
    book(current, state, is_target, (true, kernel_mode), duration_ns, now_ns());
}

/// `signal_deliver(sig, info, ka)`: a thread that is handed a signal is in no fault. One that
/// ended in a signal instead of a page would leave its begin behind.
#[btf_tracepoint(function = "signal_deliver")]
fn signal_deliver(ctx: BtfTracePointContext) {
    if let Some(state) = task::find(ctx.pid()) {
        state.fault_ns = 0;
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
    match task::find(current.tid()) {
        Some(state) if state.fault_ns != 0 => end(current, state, major),
        _ => emit::lose(LossKind::EndWithoutBegin),
    }
}

/// Asked for only where there is a target at all.
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
fn end(current: Task, state: &mut TaskState, major: bool) {
    let now = now_ns();
    let duration_ns = now.wrapping_sub(state.fault_ns & !FAULT_SEEN_MAJOR);
    state.fault_ns = 0;
    state.fault_booked_ns = if major { 0 } else { duration_ns };
    let kernel_mode = state.fault_address & FAULT_IN_KERNEL != 0;
    book(current, state, is_target(current), (major, kernel_mode), duration_ns, now);
}

#[inline(always)]
fn book(
    current: Task,
    state: &mut TaskState,
    is_target: bool,
    (major, kernel_mode): (bool, bool),
    duration_ns: u64,
    end_ns: u64,
) {
    let tid = state.tid;
    let address = state.fault_address & !FAULT_IN_KERNEL;
    let series = series(major, kernel_mode);
    histogram::observe(current, Some(state), is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Fault, duration_ns) {
        let flags =
            if major { FAULT_MAJOR } else { 0 } | if kernel_mode { FAULT_KERNEL } else { 0 };
        let header =
            emit::header(RecordKind::Fault, flags, (current.tgid(), tid), end_ns, duration_ns);
        emit::emit(RecordKind::Fault, FaultRecord { header, address });
    }
}
