//! Direct and memcg reclaim, direct compaction, kswapd wake-ups.

use observer_ebpf::wire::{
    CompactionRecord, Counter, LossKind, RECLAIM_MEMCG, ReclaimRecord, RecordKind, Series,
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
    let (order, gfp_flags) = (arguments.word::<0>(), arguments.word::<1>() as u32);
    if let Some(state) = task::claim_memory(Task::current().tid()) {
        state.reclaim_arguments = order << 32 | u64::from(gfp_flags);
        state.reclaim_ns = now_ns();
    }
}

#[inline(always)]
fn reclaim_done(arguments: Arguments, series: Series, flags: u16) {
    let current = Task::current();
    let tid = current.tid();
    let Some(state) = task::find_memory(tid) else {
        emit::lose_of(LossKind::EndWithoutBegin, current);
        return;
    };
    let since = state.reclaim_ns;
    if since == 0 {
        emit::lose_of(LossKind::EndWithoutBegin, current);
        return;
    }
    state.reclaim_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::Reclaim, duration_ns) {
        emit::emit(
            RecordKind::Reclaim,
            ReclaimRecord {
                header: emit::header(RecordKind::Reclaim, flags, (tgid, tid), now, duration_ns),
                reclaimed_pages: arguments.word::<0>(),
                gfp_flags: state.reclaim_arguments as u32,
                order: (state.reclaim_arguments >> 32) as u32,
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
    if let Some(state) = task::claim_memory(current.tid()) {
        state.compaction_ns = now_ns();
    }
}

#[inline(always)]
fn compaction_done(arguments: Arguments) {
    let current = Task::current();
    if current.is_kernel_thread() {
        return;
    }
    let tid = current.tid();
    let since = match task::find_memory(tid) {
        Some(state) if state.compaction_ns != 0 => {
            let since = state.compaction_ns;
            state.compaction_ns = 0;
            since
        }
        _ => {
            emit::lose_of(LossKind::EndWithoutBegin, current);
            return;
        }
    };
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, Series::Compaction, duration_ns);
    if is_target && emit::past_floor(RecordKind::Compaction, duration_ns) {
        let header = emit::header(RecordKind::Compaction, 0, (tgid, tid), now, duration_ns);
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
