//! The run queues of cgroups, and how long CPU limits held what is on them.

use super::Pointer;
use crate::config;

/// The run queue of a cgroup on one CPU, `struct cfs_rq`.
#[derive(Clone, Copy)]
pub(crate) struct GroupQueue(pub(super) Pointer);

impl GroupQueue {
    /// Where it is.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0.address as u64
    }

    /// What the kernel noted when its threads were throttled, which differs each time; 0 while they are
    /// not.
    #[inline(always)]
    pub(crate) fn throttle_begun(self) -> u64 {
        let count = config::off_cfs_rq_throttle_count();
        if count != 0 && self.0.load::<u32>(count) == 0 {
            return 0;
        }
        self.0.load(config::off_cfs_rq_throttle_began())
    }

    /// For how long its threads were throttled so far, nanoseconds, without the time since it was
    /// throttled last if it still is.
    #[inline(always)]
    pub(crate) fn throttled_ns(self) -> u64 {
        self.0.load(config::off_cfs_rq_throttled_ns())
    }
}
