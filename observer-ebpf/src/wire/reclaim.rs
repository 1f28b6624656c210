//! Memory reclaim and compaction.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Header flag: reclaim against a memory cgroup's limit; otherwise direct reclaim.
pub const RECLAIM_MEMCG: u16 = 1;

/// A completed reclaim (`mm_vmscan_*_reclaim_begin` to `_end`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ReclaimRecord {
    /// Common part.
    pub header: Header,
    /// Pages reclaimed.
    pub reclaimed_pages: u64,
    /// Allocation flags (`gfp_t`) that led here.
    pub gfp_flags: u32,
    /// Allocation order.
    pub order: u32,
}

impl Record for ReclaimRecord {
    const KIND: u16 = RecordKind::Reclaim as u16;
}

/// A completed compaction run (`mm_compaction_begin` to `_end`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CompactionRecord {
    /// Common part.
    pub header: Header,
    /// `enum compact_result` (include/linux/compaction.h).
    pub status: i32,
    /// Explicit padding.
    pub reserved: u32,
}

impl Record for CompactionRecord {
    const KIND: u16 = RecordKind::Compaction as u16;
}
