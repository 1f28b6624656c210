//! Soft interrupts.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind, Series};

/// Vectors by number, with their names as in /proc/softirqs and the series of each
/// (include/linux/interrupt.h).
pub const SOFTIRQ_VECTORS: [(&str, Series); 10] = [
    ("hi", Series::SoftirqOther),
    ("timer", Series::SoftirqTimer),
    ("net_tx", Series::SoftirqNetTx),
    ("net_rx", Series::SoftirqNetRx),
    ("block", Series::SoftirqBlock),
    ("irq_poll", Series::SoftirqBlock),
    ("tasklet", Series::SoftirqOther),
    ("sched", Series::SoftirqSched),
    ("hrtimer", Series::SoftirqTimer),
    ("rcu", Series::SoftirqRcu),
];

/// A soft interrupt that was handled in the time of a thread, which is the header's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SoftirqRecord {
    /// Common part.
    pub header: Header,
    /// Position in [`SOFTIRQ_VECTORS`].
    pub vector: u32,
    /// Explicit padding.
    pub reserved: u32,
}

impl Record for SoftirqRecord {
    const KIND: u16 = RecordKind::Softirq as u16;
}

/// The soft interrupt that a CPU is handling: one cache line, so that CPUs do not share it. Soft
/// interrupts of one CPU never interrupt each other, but with `PREEMPT_RT` a thread that handles one
/// can be preempted by another that does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SoftirqState {
    /// When it began; 0 outside one.
    pub begin_ns: u64,
    /// The thread that began it.
    pub tid: u32,
    /// Its process.
    pub tgid: u32,
    /// Explicit padding.
    pub reserved: [u64; 6],
}
