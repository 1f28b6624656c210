//! `reclaim`: a thread frees (or compacts) memory itself.

use observer_ebpf::wire::{CompactionRecord, Header, RECLAIM_MEMCG, ReclaimRecord, RecordKind};

use super::{Attach, Members, Need, Probe, Program, Tier, read};
use crate::model::{EventKind, ReclaimScope};

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

pub(super) const PROBE: Probe = Probe {
    name: "reclaim",
    about: "Direct and memory-cgroup reclaim, direct compaction, kswapd wake-ups.",
    notes: "Reclaim by the thread that allocates (the kernel books the same time as \
            freepages_delay_total in taskstats). Background reclaim by kswapd and background \
            compaction by kcompactd stall nobody and are not stalls; wake-ups of kswapd are \
            counted. The tracepoints sit where the kernel's own books begin and end; the functions \
            around them would add nothing.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf],
            reads: &[Members::Cgroup, Members::TaskFlags],
            programs: tracepoints!("", TpBtf),
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[],
            reads: &[Members::Cgroup, Members::TaskFlags],
            programs: tracepoints!("_raw", RawTracepoint),
        },
    ],
    records: &[RecordKind::Reclaim, RecordKind::Compaction],
    floor_ns: 0,
    decode,
};

fn decode(header: &Header, bytes: &[u8]) -> Option<EventKind> {
    if header.kind == RecordKind::Compaction as u16 {
        let record: CompactionRecord = read(bytes)?;
        return Some(EventKind::Compaction { status: record.status });
    }
    let record: ReclaimRecord = read(bytes)?;
    Some(EventKind::Reclaim {
        scope: if header.flags & RECLAIM_MEMCG != 0 {
            ReclaimScope::Memcg
        } else {
            ReclaimScope::Direct
        },
        reclaimed_pages: record.reclaimed_pages,
        order: record.order,
        gfp_flags: record.gfp_flags,
    })
}
