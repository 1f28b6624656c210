//! Which processes had a CPU while threads of the target waited for it.

use bytemuck::{Pod, Zeroable};

use super::COMM_LEN;

/// Buckets of the table: a process is in the one of [`ran_bucket`].
pub const RAN_BUCKETS: u32 = 1_024;

/// Processes in a bucket.
pub const RAN_WAYS: usize = 4;

/// The bucket behind the others, which has no processes: its entry [`RAN_NO_PLACE`] sums up those whose bucket
/// was full or was entered by another CPU at the same instant, and of its entry [`RAN_IDLE`] only the time
/// counts, in which nobody had the CPU.
pub const RAN_OTHERS: u32 = RAN_BUCKETS;
/// As above.
pub const RAN_NO_PLACE: usize = 0;
/// As above.
pub const RAN_IDLE: usize = 1;

/// A wait of this length or longer counts even if it is too short for a record, nanoseconds.
pub const RAN_ALWAYS_NS: u64 = 50_000;

/// Flag: the process is a kernel thread.
pub const RAN_KERNEL_THREAD: u64 = 1;
/// Flag: the process is one of the target's.
pub const RAN_TARGET: u64 = 1 << 1;

/// A process that had a CPU while threads of the target waited for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RanInstead {
    /// Its id; 0 for a free entry. User space frees the entry of a process that has ended.
    pub tgid: u64,
    /// For how long it had a CPU during the waits, added up over the waits, nanoseconds.
    pub time_ns: u64,
    /// Waits in which it had the CPU.
    pub waits: u64,
    /// The last one of them, by a number that differs from wait to wait. Where two CPUs count waits for the
    /// same process at the same instant, one of them can count twice.
    pub last_wait: u64,
    /// Id of its cgroup, in the hierarchy that the histograms go by; 0 while that is not known.
    pub cgroup: u64,
    /// [`RAN_KERNEL_THREAD`] and [`RAN_TARGET`].
    pub flags: u64,
    /// Command name of its first thread, NUL padded. This and the two above are noted at its first wait, the
    /// second, the fourth and so on; it is empty when the thread that ran had ended by then.
    pub comm: [u8; COMM_LEN],
}

/// The processes of one bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RanBucket {
    /// In no order.
    pub entries: [RanInstead; RAN_WAYS],
}

/// The bucket of a process.
#[inline(always)]
#[must_use]
pub const fn ran_bucket(tgid: u32) -> u32 {
    // The highest bits depend on all bits of the id.
    tgid.wrapping_mul(0x9e37_79b9) >> (32 - RAN_BUCKETS.ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_start_one_after_the_other_find_a_place() {
        for first in [1, 1_000, 30_000, 4_000_000] {
            // A child that is waited for, or two, between each of them.
            for step in [1, 2, 3, 7, 64] {
                let mut held = [0usize; RAN_BUCKETS as usize];
                let processes = (0..RAN_BUCKETS).map(|nth| first + nth * step);
                processes.for_each(|tgid| held[ran_bucket(tgid) as usize] += 1);
                let beyond: usize = held.iter().map(|held| held.saturating_sub(RAN_WAYS)).sum();
                assert_eq!(beyond, 0, "{first} {step}");
            }
        }
    }
}
