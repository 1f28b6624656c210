//! Hard interrupts.

use bytemuck::{Pod, Zeroable};

use super::{Burst, COMM_LEN, Header, Record, RecordKind, Series};

/// Kinds of hard interrupt by number, with their names and the series of each.
pub const IRQ_KINDS: [(&str, Series); 6] = [
    ("device", Series::IrqDevice),
    ("timer", Series::IrqTimer),
    ("call", Series::IrqCall),
    ("tlb_shootdown", Series::IrqTlbShootdown),
    ("reschedule", Series::IrqReschedule),
    ("work", Series::IrqWork),
];

/// From a device: position in [`IRQ_KINDS`].
pub const IRQ_DEVICE: u32 = 0;
/// From the timer of the CPU.
pub const IRQ_TIMER: u32 = 1;
/// From another CPU, to call a function of the kernel.
pub const IRQ_CALL: u32 = 2;
/// The same, to flush the CPU's TLB.
pub const IRQ_TLB_SHOOTDOWN: u32 = 3;
/// From another CPU, which has put a thread into the queue of this one.
pub const IRQ_RESCHEDULE: u32 = 4;
/// From the CPU itself, for work that the kernel could not do where it was (`irq_work`).
pub const IRQ_WORK: u32 = 5;

/// `TLB_REMOTE_SHOOTDOWN` of `enum tlb_flush_reason` (include/linux/mm_types.h): the reason of
/// `tlb:tlb_flush` on a CPU that another one asked to flush its TLB.
pub const TLB_REMOTE_SHOOTDOWN: u32 = 1;

/// A hard interrupt that was handled in the time of a thread, which is the header's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct IrqRecord {
    /// Common part.
    pub header: Header,
    /// Position in [`IRQ_KINDS`].
    pub kind: u32,
    /// Number of a device's interrupt, as in /proc/interrupts; 0 for other kinds.
    pub number: u32,
    /// Name of its handler, as in /proc/interrupts, NUL padded.
    pub name: [u8; COMM_LEN],
}

impl Record for IrqRecord {
    const KIND: u16 = RecordKind::Irq as u16;
}

/// The hard interrupt that a CPU is handling: one cache line, so that CPUs do not share it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct IrqCpu {
    /// When it began; 0 outside one.
    pub begin_ns: u64,
    /// How often the TLB was flushed in it for another CPU.
    pub flushes: u64,
    /// Explicit padding.
    pub reserved: [u64; 6],
}

/// What the `irq` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct IrqState {
    /// Hard interrupts below the floor.
    pub burst: Burst,
}
