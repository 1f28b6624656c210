//! `reclaim`: a thread frees (or compacts) memory itself.

use std::mem::offset_of;

use observer_ebpf::wire::{
    CompactionRecord, Counter, RECLAIM_MEMCG, ReclaimRecord, ReclaimState, Series, Slot,
};

use super::{
    Attach, Bounds, HistogramFamily, Members, Need, NumberFamily, Numbers, PerThread, Probe,
    Program, RunsAt, SummaryNumbers, Tier,
};
use crate::model::{Cause, Field, RecordRow, field};
use crate::text::count;

/// The programs at the tracepoints of reclaim and compaction: suffix of their names, kind of hook.
macro_rules! tracepoints {
    ($suffix:literal, $kind:ident) => {
        &[
            tracepoints!(@ $suffix, $kind, "mm_vmscan_direct_reclaim_begin", 2, "direct reclaim"),
            tracepoints!(@ $suffix, $kind, "mm_vmscan_direct_reclaim_end", 1, "direct reclaim"),
            tracepoints!(@ $suffix, $kind, "mm_vmscan_memcg_reclaim_begin", 2, "memory-cgroup reclaim"),
            tracepoints!(@ $suffix, $kind, "mm_vmscan_memcg_reclaim_end", 1, "memory-cgroup reclaim"),
            tracepoints!(@ $suffix, $kind, "mm_compaction_begin", 4, "compaction"),
            tracepoints!(@ $suffix, $kind, "mm_compaction_end", 5, "compaction"),
            tracepoints!(@ $suffix, $kind, "mm_vmscan_wakeup_kswapd", 4, "kswapd wake-ups"),
        ]
    };
    (@ $suffix:literal, $kind:ident, $name:literal, $arguments:literal, $gives:literal) => {
        Program::new(concat!($name, $suffix), Attach::$kind($name, $arguments), $gives)
    };
}

const KSWAPD_WAKEUPS: Numbers = Numbers::Counters(&[(Counter::KswapdWakeups as usize, &[])]);

pub(super) const PROBE: Probe = Probe {
    name: "reclaim",
    runs_at: RunsAt::Rare("reclaim and compaction"),
    about: "Direct and memory-cgroup reclaim, direct compaction, kswapd wake-ups.",
    notes: "Reclaim by the thread that allocates (the kernel counts the same time as \
            freepages_delay_total in taskstats). Background reclaim by kswapd and background \
            compaction by kcompactd stall no thread and are not counted; wake-ups of kswapd are \
            counted. The tracepoints are where the kernel's own measurement begins and ends; the \
            functions around them would add nothing.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf],
            reads: &[Members::TaskFlags],
            programs: tracepoints!("", TpBtf),
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[],
            reads: &[Members::TaskFlags],
            programs: tracepoints!("_raw", RawTracepoint),
        },
    ],
    records: &[&RECLAIM, &COMPACTION],
    histograms: &[
        HistogramFamily {
            name: "reclaim_duration",
            help: "Time in memory reclaim, for the host (direct) or a cgroup limit (memcg)",
            labels: &["scope"],
            bounds: Bounds::STALL,
            series: &[
                (Series::ReclaimDirect, "direct", &["direct"]),
                (Series::ReclaimMemcg, "memcg", &["memcg"]),
            ],
            ..HistogramFamily::BASE
        },
        HistogramFamily {
            name: "compaction_duration",
            help: "Time in a memory compaction run",
            labels: &[],
            bounds: Bounds::STALL,
            series: &[(Series::Compaction, "compaction", &[])],
            ..HistogramFamily::BASE
        },
    ],
    numbers: &[NumberFamily {
        name: "kswapd_wakeups",
        help: "Times kswapd was woken to reclaim memory in the background",
        labels: &[],
        numbers: KSWAPD_WAKEUPS,
    }],
    in_summary: &[SummaryNumbers { name: "kswapd_wakeups", numbers: KSWAPD_WAKEUPS, zeros: true }],
    per_thread: Some(PerThread::of::<ReclaimState>(
        ["RECLAIMS", "RECLAIMS_STORAGE", "RECLAIMS_STORED"],
        &[
            offset_of!(Slot<ReclaimState>, state.reclaim_ns) / 8,
            offset_of!(Slot<ReclaimState>, state.compaction_ns) / 8,
        ],
    )),
    ..Probe::BASE
};

static RECLAIM: RecordRow = RecordRow::new::<ReclaimRecord>(
    "reclaim",
    "A thread freed memory itself.",
    &[
        Field::flag_names(
            "reclaim_scope",
            &[(RECLAIM_MEMCG, "memcg"), (0, "direct")],
            "`direct` (the host was short of memory) or `memcg` (a memory cgroup was at its limit)",
        ),
        field!(ReclaimRecord.reclaimed_pages, "reclaimed_pages", "pages freed"),
        field!(ReclaimRecord.order, "order", "allocation order"),
        field!(ReclaimRecord.gfp_flags, "gfp_flags", "allocation flags (`gfp_t`)"),
    ],
)
.stalls(0, |event| {
    let memcg = event.flags & RECLAIM_MEMCG != 0;
    Some(if memcg { Cause::RECLAIM_MEMCG } else { Cause::RECLAIM_DIRECT })
})
.detail(|event| {
    let Some(record) = event.record::<ReclaimRecord>() else { return String::new() };
    let ReclaimRecord { reclaimed_pages, order, gfp_flags, .. } = record;
    format!("{} pages, order {order}, gfp {gfp_flags:#x}", count(reclaimed_pages))
});

static COMPACTION: RecordRow = RecordRow::new::<CompactionRecord>(
    "compaction",
    "A thread compacted memory.",
    &[field!(CompactionRecord.status, "compaction_status", "`enum compact_result`")],
)
.stalls(0, |_| Some(Cause::COMPACTION));
