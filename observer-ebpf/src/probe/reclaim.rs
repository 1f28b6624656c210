//! Direct and memcg reclaim, direct compaction, kswapd wake-ups.

use aya_ebpf::{EbpfContext, macros::btf_tracepoint, programs::BtfTracePointContext};
use observer_ebpf::wire::{
    CompactionRecord, Counter, LossKind, RECLAIM_MEMCG, ReclaimRecord, RecordKind, Series,
};

use crate::{
    emit, histogram,
    kernel::{Task, now_ns},
    task,
};

/// `mm_vmscan_direct_reclaim_begin(order, gfp_flags, ..)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
fn mm_vmscan_direct_reclaim_begin(ctx: BtfTracePointContext) {
    begin(&ctx);
}

/// `mm_vmscan_direct_reclaim_end(nr_reclaimed, ..)`
#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
fn mm_vmscan_direct_reclaim_end(ctx: BtfTracePointContext) {
    end(&ctx, Series::ReclaimDirect, 0);
}

/// `mm_vmscan_memcg_reclaim_begin(order, gfp_flags, ..)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
fn mm_vmscan_memcg_reclaim_begin(ctx: BtfTracePointContext) {
    begin(&ctx);
}

/// `mm_vmscan_memcg_reclaim_end(nr_reclaimed, ..)`
#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
fn mm_vmscan_memcg_reclaim_end(ctx: BtfTracePointContext) {
    end(&ctx, Series::ReclaimMemcg, RECLAIM_MEMCG);
}

#[inline(always)]
fn begin(ctx: &BtfTracePointContext) {
    let order: u32 = ctx.arg(0);
    let gfp_flags: u32 = ctx.arg(1);
    if let Some(state) = task::claim_memory(ctx.pid()) {
        state.reclaim_arguments = u64::from(order) << 32 | u64::from(gfp_flags);
        state.reclaim_ns = now_ns();
    }
}

#[inline(always)]
fn end(ctx: &BtfTracePointContext, series: Series, flags: u16) {
    let tid = ctx.pid();
    let Some(state) = task::find_memory(tid) else {
        emit::lose(LossKind::EndWithoutBegin);
        return;
    };
    let since = state.reclaim_ns;
    if since == 0 {
        emit::lose(LossKind::EndWithoutBegin);
        return;
    }
    state.reclaim_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = ctx.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(Task::current(), None, is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Reclaim, duration_ns) {
        emit::emit(
            RecordKind::Reclaim,
            ReclaimRecord {
                header: emit::header(RecordKind::Reclaim, flags, (tgid, tid), now, duration_ns),
                reclaimed_pages: ctx.arg(0),
                gfp_flags: state.reclaim_arguments as u32,
                order: (state.reclaim_arguments >> 32) as u32,
            },
        );
    }
}

/// `mm_compaction_begin(cc, zone_start, zone_end, sync)`
#[btf_tracepoint(function = "mm_compaction_begin")]
fn mm_compaction_begin(ctx: BtfTracePointContext) {
    // kcompactd compacts in the background and stalls nobody.
    if Task::current().is_kernel_thread() {
        return;
    }
    if let Some(state) = task::claim_memory(ctx.pid()) {
        state.compaction_ns = now_ns();
    }
}

/// `mm_compaction_end(cc, zone_start, zone_end, sync, status)`
#[btf_tracepoint(function = "mm_compaction_end")]
fn mm_compaction_end(ctx: BtfTracePointContext) {
    let current = Task::current();
    if current.is_kernel_thread() {
        return;
    }
    let tid = ctx.pid();
    let since = match task::find_memory(tid) {
        Some(state) if state.compaction_ns != 0 => {
            let since = state.compaction_ns;
            state.compaction_ns = 0;
            since
        }
        _ => {
            emit::lose(LossKind::EndWithoutBegin);
            return;
        }
    };
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = ctx.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, Series::Compaction, duration_ns);
    if is_target && emit::past_floor(RecordKind::Compaction, duration_ns) {
        let header = emit::header(RecordKind::Compaction, 0, (tgid, tid), now, duration_ns);
        let status = ctx.arg(4);
        emit::emit(RecordKind::Compaction, CompactionRecord { header, status, reserved: 0 });
    }
}

/// `mm_vmscan_wakeup_kswapd(nid, zid, order, gfp_flags)`
#[btf_tracepoint(function = "mm_vmscan_wakeup_kswapd")]
fn mm_vmscan_wakeup_kswapd(_ctx: BtfTracePointContext) {
    emit::count(Counter::KswapdWakeups);
}
