//! What user space tells and asks the `request` probe: ports of the target, how many requests are
//! recorded, and those that are open at the end.

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use observer_ebpf::wire::{
    CONNECTION_BUCKETS, CONNECTION_RECORDED, CONNECTION_WAYS, CONNECTIONS, Config,
    ConnectionBucket, ConnectionEntry, Counter, PORT_WORDS, REQUEST_OPEN, REQUEST_UNANSWERED,
    request_record,
};

use super::Kernel;
use crate::clock::MonoNanos;
use crate::model::Event;
use crate::probe::decode;

const REQUEST_BLOCKS: usize = offset_of!(Config, request_blocks) / 8;

impl Kernel {
    /// Whether requests of the target are watched.
    #[must_use]
    pub fn watches_requests(&self) -> bool {
        self.choice("request").is_some_and(|choice| choice.tier.is_some())
    }

    /// The ports on which the target listens. Connections to them that are older than the probe are
    /// accepted ones.
    pub fn set_listened_ports(&self, ports: impl IntoIterator<Item = u16>) {
        let Some(words) = self.map_words("LISTENED_PORTS", PORT_WORDS as usize, 8) else { return };
        for port in ports {
            if let Some(word) = words.words().get(usize::from(port) / 64) {
                word.fetch_or(1 << (port % 64), Ordering::Relaxed);
            }
        }
    }

    /// In how many of [`observer_ebpf::wire::REQUEST_BLOCKS`] blocks of time requests are recorded;
    /// none with 0, which is how it begins.
    pub fn record_requests(&self, blocks: u64) {
        self.config.set(REQUEST_BLOCKS, blocks);
    }

    /// Requests that the target has read so far, and those that it made.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let counters = self.counts().counters;
        counters[Counter::Requests as usize] + counters[Counter::OutgoingRequests as usize]
    }

    /// The last request of each connection that is still open, as an event. Call it once, after
    /// [`Kernel::forget_targets`].
    #[must_use]
    pub fn open_requests(&self) -> Vec<Event> {
        let buckets = CONNECTION_BUCKETS as usize;
        let keys = self.map_words("CONNECTION_KEYS", buckets, size_of::<ConnectionBucket>());
        let entries =
            self.map_words("CONNECTIONS", CONNECTIONS as usize, size_of::<ConnectionEntry>());
        let (Some(keys), Some(entries)) = (keys, entries) else { return Vec::new() };
        let now = MonoNanos::now();
        let open = (0..buckets * CONNECTION_WAYS).filter(|place| keys.get(*place) != 0);
        open.filter_map(|place| open_request(&entries.value(place), now)).collect()
    }
}

/// The request that a connection holds, if it is to be recorded.
fn open_request(entry: &ConnectionEntry, now: MonoNanos) -> Option<Event> {
    if entry.flags & CONNECTION_RECORDED == 0 || entry.read_ns == 0 {
        return None;
    }
    let (flags, end_ns) = match entry.first_send_ns {
        0 => (REQUEST_OPEN | REQUEST_UNANSWERED, now.0),
        _ => (REQUEST_OPEN, entry.last_send_ns),
    };
    decode(bytemuck::bytes_of(&request_record(entry, flags, end_ns, 0))).ok()
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use observer_ebpf::wire::RequestRecord;

    use super::*;

    #[test]
    fn an_open_request_is_answered_or_not() {
        let mut entry = ConnectionEntry {
            arrival_ns: 100,
            read_ns: 200,
            reader_tid: 7,
            tgid: 5,
            flags: CONNECTION_RECORDED,
            ..ConnectionEntry::zeroed()
        };
        let event = open_request(&entry, MonoNanos(1_000)).expect("a request");
        assert_eq!((event.start(), event.end, event.tid.0), (MonoNanos(100), MonoNanos(1_000), 7));
        assert_eq!(event.flags, REQUEST_OPEN | REQUEST_UNANSWERED);
        (entry.first_send_ns, entry.last_send_ns) = (300, 400);
        let event = open_request(&entry, MonoNanos(1_000)).expect("a request");
        assert_eq!((event.end, event.flags), (MonoNanos(400), REQUEST_OPEN));
        assert_eq!(event.record::<RequestRecord>().expect("one").first_send_ns, 300);
        for absent in
            [ConnectionEntry { read_ns: 0, ..entry }, ConnectionEntry { flags: 0, ..entry }]
        {
            assert!(open_request(&absent, MonoNanos(1_000)).is_none());
        }
    }
}
