//! Direct and memcg reclaim, direct compaction, kswapd wake-ups.

use observer_ebpf::wire::{
    CompactionRecord, Counter, LossKind, RECLAIM_MEMCG, ReclaimRecord, ReclaimState, RecordKind,
    Series,
};

use crate::{
    config, emit, histogram,
    kernel::{Arguments, Task, now_ns},
    task,
};

tracepoint_programs! {
    /// `mm_vmscan_direct_reclaim_begin(order, gfp_flags, ..)`
    mm_vmscan_direct_reclaim_begin, mm_vmscan_direct_reclaim_begin_raw => reclaim_begun;
    /// `mm_vmscan_direct_reclaim_end(nr_reclaimed, ..)`
    mm_vmscan_direct_reclaim_end, mm_vmscan_direct_reclaim_end_raw => direct_reclaim_done;
    /// `mm_vmscan_memcg_reclaim_begin(order, gfp_flags, ..)`
    mm_vmscan_memcg_reclaim_begin, mm_vmscan_memcg_reclaim_begin_raw => reclaim_begun;
    /// `mm_vmscan_memcg_reclaim_end(nr_reclaimed, ..)`
    mm_vmscan_memcg_reclaim_end, mm_vmscan_memcg_reclaim_end_raw => memcg_reclaim_done;
    /// `mm_compaction_begin(..)`
    mm_compaction_begin, mm_compaction_begin_raw => compaction_begun;
    /// `mm_compaction_end(.., status)`
    mm_compaction_end, mm_compaction_end_raw => compaction_done;
    /// `mm_vmscan_wakeup_kswapd(nid, zid, order, gfp_flags)`
    mm_vmscan_wakeup_kswapd, mm_vmscan_wakeup_kswapd_raw => kswapd_woken;
}

#[inline(always)]
fn direct_reclaim_done(arguments: Arguments) {
    reclaim_done(arguments, Series::ReclaimDirect, 0);
}

#[inline(always)]
fn memcg_reclaim_done(arguments: Arguments) {
    reclaim_done(arguments, Series::ReclaimMemcg, RECLAIM_MEMCG);
}

#[inline(always)]
fn reclaim_begun(arguments: Arguments) {
    if let Some(state) = task::claim::<ReclaimState>(Task::current()) {
        state.order = arguments.word::<0>() as u32;
        state.gfp_flags = arguments.word::<1>() as u32;
        state.reclaim_ns = now_ns();
    }
}

#[inline(always)]
fn reclaim_done(arguments: Arguments, series: Series, flags: u16) {
    let current = Task::current();
    let begun = task::find::<ReclaimState>(current).filter(|state| state.reclaim_ns != 0);
    let Some(state) = begun else {
        emit::lose_of(LossKind::EndWithoutBegin, current);
        return;
    };
    let since = state.reclaim_ns;
    state.reclaim_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Reclaim, duration_ns) {
        let ids = (tgid, current.tid());
        emit::emit(
            RecordKind::Reclaim,
            ReclaimRecord {
                header: emit::header(RecordKind::Reclaim, flags, ids, now, duration_ns),
                reclaimed_pages: arguments.word::<0>(),
                gfp_flags: state.gfp_flags,
                order: state.order,
            },
        );
    }
}

#[inline(always)]
fn compaction_begun(_arguments: Arguments) {
    let current = Task::current();
    // kcompactd compacts in the background and stalls no thread.
    if current.is_kernel_thread() {
        return;
    }
    if let Some(state) = task::claim::<ReclaimState>(current) {
        state.compaction_ns = now_ns();
    }
}

#[inline(always)]
fn compaction_done(arguments: Arguments) {
    let current = Task::current();
    if current.is_kernel_thread() {
        return;
    }
    let begun = task::find::<ReclaimState>(current).filter(|state| state.compaction_ns != 0);
    let Some(state) = begun else {
        emit::lose_of(LossKind::EndWithoutBegin, current);
        return;
    };
    let since = state.compaction_ns;
    state.compaction_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, Series::Compaction, duration_ns);
    if is_target && emit::past_floor(RecordKind::Compaction, duration_ns) {
        let ids = (tgid, current.tid());
        let header = emit::header(RecordKind::Compaction, 0, ids, now, duration_ns);
        // Before Linux 5.18 it had one argument more.
        let status = if config::compaction_end_arguments() == 5 {
            arguments.word::<4>()
        } else {
            arguments.word::<5>()
        } as i32;
        emit::emit(RecordKind::Compaction, CompactionRecord { header, status, reserved: 0 });
    }
}

#[inline(always)]
fn kswapd_woken(_arguments: Arguments) {
    emit::count(Counter::KswapdWakeups);
}
