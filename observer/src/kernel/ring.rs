//! Draining the ring: records are decoded where they lie, without a copy.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use rustix::event::epoll;
use rustix::param::page_size;
use rustix::time::Timespec;

use super::mapped::MappedWords;
use super::messages::Messages;

/// The consumer's end of the ring.
pub struct Ring {
    ring: RingBuf<MapData>,
    /// Reports only the kernel side's wake-ups, because it is edge-triggered: poll(2) would return
    /// at once whenever the ring holds anything, which under load is always.
    wakeups: Option<OwnedFd>,
    config: Arc<MappedWords>,
    /// The pages in front of the records: how far they were taken, and how far they were made.
    positions: MappedWords,
    /// What the programs log, if they do.
    messages: Option<Messages>,
}

impl Ring {
    /// # Errors
    /// When the kernel does not show its positions.
    pub(super) fn new(
        ring: RingBuf<MapData>,
        config: Arc<MappedWords>,
        messages: Option<Messages>,
    ) -> std::io::Result<Self> {
        let positions = MappedWords::read_only(&ring, 2 * page_size())?;
        let edges = || {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, &ring, epoll::EventData::new_u64(0), flags)?;
            Ok::<_, rustix::io::Errno>(epoll)
        };
        let wakeups = edges().ok();
        Ok(Self { ring, wakeups, config, positions, messages })
    }

    /// Where the next record will be made.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.positions.get(page_size() / 8)
    }

    /// Whether all records in front of this place were taken. One that is still being written keeps
    /// back those behind it.
    #[must_use]
    pub fn is_drained_to(&self, place: u64) -> bool {
        self.positions.get(0) >= place
    }

    /// Passes up to `limit` records to `sink`, in place in the ring, and returns their number. Also
    /// logs what the programs say.
    pub fn drain(&mut self, limit: usize, mut sink: impl FnMut(&[u8])) -> usize {
        // Before the first record is looked at, in one order for all CPUs: a record that comes too
        // late to be seen here finds it cleared.
        if let Some(woken) = self.config.words().get(super::WOKEN)
            && woken.load(Ordering::Relaxed) != 0
        {
            woken.swap(0, Ordering::SeqCst);
        }
        let mut count = 0;
        while count < limit
            && let Some(record) = self.ring.next()
        {
            sink(&record);
            count += 1;
        }
        if let Some(messages) = &mut self.messages {
            messages.pass_on();
        }
        count
    }

    /// Whether the programs log, so that there is something to drain without a target as well.
    #[must_use]
    pub const fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Sleeps until the kernel side wakes it (the ring fills up) or the time is over.
    pub fn wait(&self, timeout: Duration) {
        let Some(epoll) = &self.wakeups else {
            // The timer alone is enough: if the ring fills up meanwhile, the loss is counted.
            std::thread::sleep(timeout);
            return;
        };
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        // An interrupted or failed wait is a short wait: the next drain finds what there is.
        let _ = epoll::wait(epoll, &mut events, Some(&timeout));
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
