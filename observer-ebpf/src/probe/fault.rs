//! Page faults: begin from the x86 exception tracepoints, end from the software perf events.
//!
//! The kernel counts a fault (and runs the perf event) once, when it is complete: retries inside
//! the handler do not count (`mm_account_fault`, mm/memory.c).

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, perf_event},
    programs::{BtfTracePointContext, PerfEventContext},
};
use observer_ebpf::wire::{FAULT_KERNEL, FAULT_MAJOR, FaultRecord, LossKind, RecordKind, Series};

use crate::{
    emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// `page_fault_user(address, regs, error_code)`
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(ctx: BtfTracePointContext) {
    begin(&ctx);
}

/// `page_fault_kernel(address, regs, error_code)`
#[btf_tracepoint(function = "page_fault_kernel")]
fn page_fault_kernel(ctx: BtfTracePointContext) {
    begin(&ctx);
}

#[inline(always)]
fn begin(ctx: &BtfTracePointContext) {
    if let Some(state) = task::claim(ctx.pid()) {
        state.fault_ns = now_ns();
    }
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MIN`, every one.
#[perf_event]
fn page_faults_min(ctx: PerfEventContext) {
    end(&ctx, false);
}

/// `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, every one.
#[perf_event]
fn page_faults_maj(ctx: PerfEventContext) {
    end(&ctx, true);
}

#[inline(always)]
fn end(ctx: &PerfEventContext, major: bool) {
    let tid = ctx.pid();
    let Some(state) = task::find(tid) else {
        emit::lose(LossKind::EndWithoutBegin);
        return;
    };
    let since = state.fault_ns;
    if since == 0 {
        emit::lose(LossKind::EndWithoutBegin);
        return;
    }
    state.fault_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    // SAFETY: the perf event's own context, read at its fixed layout.
    let (kernel_mode, address) = unsafe { ((*ctx.ctx).regs.cs & 3 == 0, (*ctx.ctx).addr) };
    let series = match (major, kernel_mode) {
        (false, false) => Series::FaultMinorUser,
        (false, true) => Series::FaultMinorKernel,
        (true, false) => Series::FaultMajorUser,
        (true, true) => Series::FaultMajorKernel,
    };
    let tgid = ctx.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(Task::current(), is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Fault, duration_ns) {
        let flags =
            if major { FAULT_MAJOR } else { 0 } | if kernel_mode { FAULT_KERNEL } else { 0 };
        let header = emit::header(RecordKind::Fault, flags, (tgid, tid), now, duration_ns);
        emit::emit(RecordKind::Fault, FaultRecord { header, address });
    }
}
