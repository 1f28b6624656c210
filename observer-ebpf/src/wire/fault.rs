//! Page faults.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Header flag: major (the page had to be read from a device).
pub const FAULT_MAJOR: u16 = 1;
/// Header flag: taken in kernel mode.
pub const FAULT_KERNEL: u16 = 2;

/// A completed page fault.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FaultRecord {
    /// Common part.
    pub header: Header,
    /// Faulting virtual address.
    pub address: u64,
}

impl Record for FaultRecord {
    const KIND: u16 = RecordKind::Fault as u16;
}
