//! `reclaim`: a thread frees (or compacts) memory itself.

use observer_ebpf::wire::{CompactionRecord, Header, RECLAIM_MEMCG, ReclaimRecord, RecordKind};

use super::{Attach, Probe, Program, Tier, read};
use crate::model::{Cause, EventKind, ReclaimScope};

const fn tp(name: &'static str, arguments: usize, gives: &'static str) -> Program {
    Program { name, attach: Attach::TpBtf(name, arguments), gives }
}

pub(super) const PROBE: Probe = Probe {
    name: "reclaim",
    about: "Direct and memory-cgroup reclaim, direct compaction, kswapd wake-ups.",
    notes: "Reclaim by the thread that allocates (the kernel books the same time as \
            freepages_delay_total in taskstats). Background reclaim by kswapd and background \
            compaction by kcompactd stall nobody and are not stalls; wake-ups of kswapd are \
            counted.",
    tiers: &[Tier {
        name: "tracepoints",
        needs: &[],
        programs: &[
            tp("mm_vmscan_direct_reclaim_begin", 2, "direct reclaim"),
            tp("mm_vmscan_direct_reclaim_end", 1, "direct reclaim"),
            tp("mm_vmscan_memcg_reclaim_begin", 2, "memory-cgroup reclaim"),
            tp("mm_vmscan_memcg_reclaim_end", 1, "memory-cgroup reclaim"),
            tp("mm_compaction_begin", 4, "compaction"),
            tp("mm_compaction_end", 5, "compaction"),
            tp("mm_vmscan_wakeup_kswapd", 4, "kswapd wake-ups"),
        ],
    }],
    records: &[RecordKind::Reclaim, RecordKind::Compaction],
    causes: &[Cause::ReclaimDirect, Cause::ReclaimMemcg, Cause::Compaction],
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
