//! Page faults.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Header flag: major (the page had to be read from a device).
pub const FAULT_MAJOR: u16 = 1;
/// Header flag: taken in kernel mode.
pub const FAULT_KERNEL: u16 = 2;

/// Header flag: the last fault of this thread, whose record was sent as one of a minor fault, is
/// major. Not a record of its own: user space sets [`FAULT_MAJOR`] in the other one.
pub const FAULT_CORRECTS: u16 = 4;

/// In [`FaultState::attempt`](super::FaultState::attempt): the attempt has the lock of the mapping
/// alone, and not that of the address space (Linux 6.4).
pub const ATTEMPT_MAPPING_LOCKED: u32 = 1;
/// In the same: the attempt was given up, and the kernel is to try again.
pub const ATTEMPT_GIVEN_UP: u32 = 2;

/// In [`FaultState::minor_sent`](super::FaultState::minor_sent): a record of the last fault was sent.
pub const MINOR_SENT: u32 = 1;
/// In the same: the last fault is part of the burst.
pub const MINOR_IN_BURST: u32 = 2;

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
