//! Memory-management system calls.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// A completed mmap, munmap, mremap, brk, mprotect or madvise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MmSyscallRecord {
    /// Common part.
    pub header: Header,
    /// First argument: address (for brk, the new break).
    pub address: u64,
    /// Length in bytes (for mremap, the new length; 0 for brk).
    pub length_bytes: u64,
    /// What the system call returned; negative errno on failure.
    pub result: i64,
    /// A [`Series`](super::Series) discriminant between `Mmap` and `Madvise`.
    pub series: u32,
    /// Third argument: protection for mmap and mprotect, advice for madvise; 0 otherwise.
    pub argument: u32,
}

impl Record for MmSyscallRecord {
    const KIND: u16 = RecordKind::MmSyscall as u16;
}
