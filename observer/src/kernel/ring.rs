//! Draining the ring: records are decoded where they lie, without a copy.

use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// The consumer's end of the ring.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Hands up to `limit` records to `sink`, as they lie in the ring; how many there were.
    pub fn drain(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut count = 0;
        while count < limit
            && let Some(record) = self.ring.next()
        {
            sink(&record);
            count += 1;
        }
        count
    }

    /// Sleeps until the kernel side wakes it (the ring fills up) or the time is over.
    pub fn wait(&self, timeout: Duration) {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut poll_fd = [PollFd::new(self, PollFlags::IN)];
        // An interrupted or failed wait is a short wait: the next drain finds what there is.
        let _ = poll(&mut poll_fd, Some(&timeout));
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
