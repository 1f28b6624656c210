//! Requests as the target's sockets saw them.

use observer_ebpf::wire::{REQUEST_ARRIVAL_UNKNOWN, REQUEST_UNIX, RequestRecord};

use super::{Event, Tgid, Tid};
use crate::clock::MonoNanos;

/// One request as the target's socket saw it. The time of a send is that at which the write returned:
/// on the same host, the client may have had the answer some microseconds before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRequest {
    /// Its first byte was in the socket; `None` if that was not seen (it is older than the probe, or
    /// came together with another request).
    pub arrival: Option<MonoNanos>,
    /// A thread of the target had taken the first bytes.
    pub read: MonoNanos,
    /// The first write of the reply returned; `None` if it was never answered.
    pub first_send: Option<MonoNanos>,
    /// The last write of the reply returned; `None` if it was never answered.
    pub last_send: Option<MonoNanos>,
    /// The process that took it.
    pub tgid: Tgid,
    /// The thread that took it.
    pub reader: Tid,
    /// The thread of the first write; the reader if there was none.
    pub sender: Tid,
    /// It came over a Unix socket, which has no ports.
    pub is_unix: bool,
    /// Port at the target's end.
    pub local_port: u16,
    /// Port at the client's end.
    pub remote_port: u16,
    /// Bytes of the request.
    pub bytes_in: u64,
    /// Bytes of the reply.
    pub bytes_out: u64,
}

impl ServerRequest {
    /// A request of 100 bytes each way that one thread read and another one answered, with its arrival, read
    /// and answer.
    #[cfg(test)]
    pub(crate) const fn of_times(
        (reader, sender): (u32, u32),
        [arrival, read, answer]: [u64; 3],
        remote_port: u16,
    ) -> Self {
        Self {
            arrival: Some(MonoNanos(arrival)),
            read: MonoNanos(read),
            first_send: Some(MonoNanos(answer)),
            last_send: Some(MonoNanos(answer)),
            tgid: Tgid(1),
            reader: Tid(reader),
            sender: Tid(sender),
            is_unix: false,
            local_port: 80,
            remote_port,
            bytes_in: 100,
            bytes_out: 100,
        }
    }

    /// The request that an event of kind `request` stands for; `None` for the other kinds.
    #[must_use]
    pub fn from_event(event: &Event) -> Option<Self> {
        let record: RequestRecord = event.record()?;
        let is_answered = record.first_send_ns != 0;
        let arrival_known = event.flags & REQUEST_ARRIVAL_UNKNOWN == 0;
        // Ports have 16 bits, in a field of the trace that has more.
        let port = |port: u32| u16::try_from(port).unwrap_or_default();
        Some(Self {
            arrival: arrival_known.then(|| event.start()),
            read: MonoNanos(record.read_ns),
            first_send: is_answered.then_some(MonoNanos(record.first_send_ns)),
            last_send: is_answered.then_some(event.end),
            tgid: event.tgid,
            reader: event.tid,
            sender: if is_answered { Tid(record.sender_tid) } else { event.tid },
            is_unix: event.flags & REQUEST_UNIX != 0,
            local_port: port(record.local_port),
            remote_port: port(record.remote_port),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
        })
    }

    /// When the target could have begun to work on it, as far as that is known.
    #[must_use]
    pub fn begin(&self) -> MonoNanos {
        self.arrival.unwrap_or(self.read)
    }

    /// When the last of the reply had been written; `None` if it was never answered.
    #[must_use]
    pub fn end(&self) -> Option<MonoNanos> {
        self.last_send.max(self.first_send)
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{Address, REQUEST_UNANSWERED, RecordKind};

    use super::*;
    use crate::output::example;

    #[test]
    fn a_request_is_what_its_record_says() {
        let record = |flags, first_send_ns| RequestRecord {
            header: example::header(RecordKind::Request, flags, 5, 10_000, 3_000),
            read_ns: 8_000,
            first_send_ns,
            bytes_in: 100,
            bytes_out: if first_send_ns == 0 { 0 } else { 200 },
            sender_tid: if first_send_ns == 0 { 0 } else { 6 },
            sends: 2,
            local_port: 80,
            remote_port: 40_000,
            remote_address: Address([0; 16]),
        };
        let of = |flags, first_send_ns| {
            ServerRequest::from_event(&example::event(&record(flags, first_send_ns)))
        };
        let answered = of(0, 9_000).expect("a request");
        assert_eq!((answered.arrival, answered.read), (Some(MonoNanos(7_000)), MonoNanos(8_000)));
        assert_eq!(answered.first_send, Some(MonoNanos(9_000)));
        assert_eq!(answered.end(), Some(MonoNanos(10_000)));
        assert_eq!((answered.reader, answered.sender), (Tid(5), Tid(6)));
        assert_eq!((answered.local_port, answered.remote_port), (80, 40_000));
        let unanswered = of(REQUEST_UNANSWERED | REQUEST_ARRIVAL_UNKNOWN, 0).expect("a request");
        assert_eq!((unanswered.begin(), unanswered.end()), (MonoNanos(8_000), None));
        assert_eq!(unanswered.sender, Tid(5));
        let over_unix = of(REQUEST_UNIX, 9_000).expect("a request");
        assert!(over_unix.is_unix && !answered.is_unix && !unanswered.is_unix);
        assert_eq!(ServerRequest::from_event(&example::fault(1, 1, 1)), None);
    }
}
