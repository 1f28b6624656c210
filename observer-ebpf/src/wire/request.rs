//! Requests that the target serves, as its TCP and Unix sockets see them.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Header flag: the arrival of the first byte was not seen, and the header's duration begins with the
/// read. The connection is older than the probe, or the byte was in the socket behind an earlier
/// request (pipelining) and came at a time that is not known.
pub const REQUEST_ARRIVAL_UNKNOWN: u16 = 1;
/// Header flag: the connection was closed before anything was sent. The record ends with that.
pub const REQUEST_UNANSWERED: u16 = 2;
/// Header flag: at the end of the run it was not known whether more would be sent, or whether the
/// request would be answered at all.
pub const REQUEST_OPEN: u16 = 4;
/// Header flag: the request came over a Unix socket. It has neither ports nor an address.
pub const REQUEST_UNIX: u16 = 8;

/// An IPv6 address, or an IPv4 address mapped to one, in network order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Address(pub [u8; 16]);

/// A request was served: data arrived in a socket, a thread read it, and a thread sent something.
/// The header's thread is the one that read first; its time goes from the arrival of the first byte to
/// the return of the last write. The record is sent when the next request of the connection is read,
/// or the connection ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RequestRecord {
    /// Common part.
    pub header: Header,
    /// When the first read returned, `CLOCK_MONOTONIC` nanoseconds.
    pub read_ns: u64,
    /// When the first write returned; 0 if there was none.
    pub first_send_ns: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Thread of the first write; 0 if there was none.
    pub sender_tid: u32,
    /// Writes.
    pub sends: u32,
    /// TCP port at the target; 0 with a Unix socket.
    pub local_port: u32,
    /// TCP port at the client; 0 with a Unix socket.
    pub remote_port: u32,
    /// Address of the client; unspecified with a Unix socket.
    pub remote_address: Address,
}

impl Record for RequestRecord {
    const KIND: u16 = RecordKind::Request as u16;
}

/// Header flag: the target asked over a Unix socket. There is neither a port nor an address.
pub const OUTGOING_UNIX: u16 = 1;

/// The target asked another service over a connection that it made: it sent something, and read a reply.
/// The header's thread is the one that read the reply first; its time goes from the return of the first
/// write to the return of that read. What is sent before the reply is part of the same request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OutgoingRecord {
    /// Common part.
    pub header: Header,
    /// Thread of the first write.
    pub sender_tid: u32,
    /// TCP port of the other service; 0 with a Unix socket.
    pub remote_port: u32,
    /// Its address; unspecified with a Unix socket.
    pub remote_address: Address,
}

impl Record for OutgoingRecord {
    const KIND: u16 = RecordKind::Outgoing as u16;
}

/// Connections of one bucket of the table.
pub const CONNECTION_WAYS: usize = 8;
/// Buckets of the table. A power of two.
pub const CONNECTION_BUCKETS: u32 = 1 << 12;
/// Connections that the table holds at most.
pub const CONNECTIONS: u32 = CONNECTION_BUCKETS * CONNECTION_WAYS as u32;

/// The keys of a bucket: one cache line, so that a socket that is not in the table costs one access.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ConnectionBucket {
    /// By way: which socket the entry belongs to, as a number made of its address; 0 when it is free,
    /// [`CONNECTION_IN_WORK`] while it is filled.
    pub keys: [u64; CONNECTION_WAYS],
}

/// Key of an entry that is being filled.
pub const CONNECTION_IN_WORK: u64 = 1;

/// What is known about a connection, and its present request. Times are `CLOCK_MONOTONIC` nanoseconds, 0
/// where something has not happened. Of a connection that the target made, only the first write of the
/// present request is kept, and its thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ConnectionEntry {
    /// Since when data waits in the socket.
    pub waiting_since_ns: u64,
    /// When data arrived last.
    pub last_arrival_ns: u64,
    /// Arrival of the first byte of the request.
    pub arrival_ns: u64,
    /// Its first read.
    pub read_ns: u64,
    /// Its first write.
    pub first_send_ns: u64,
    /// Its last write so far.
    pub last_send_ns: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// When a TCP connection was established that waits to be accepted; 0 once it was, and where that was not seen.
    pub established_ns: u64,
    /// Inode number of a Unix socket; 0 before it was accepted, and for TCP.
    pub inode: u64,
    /// The same of the socket that the first two times are about, which may be that of a later connection.
    pub arrival_inode: u64,
    /// Process of the target that used the connection last; 0 while none has.
    pub tgid: u32,
    /// Thread of the first read.
    pub reader_tid: u32,
    /// Thread of the first write.
    pub sender_tid: u32,
    /// Writes.
    pub sends: u32,
    /// Bits `CONNECTION_*`.
    pub flags: u32,
    /// TCP port at the target.
    pub local_port: u16,
    /// TCP port at the client.
    pub remote_port: u16,
    /// Address of the client.
    pub remote_address: Address,
}

/// [`ConnectionEntry`] flag: the target did not accept it: what it sends there are requests of its own.
pub const CONNECTION_OUTGOING: u32 = 1;
/// [`ConnectionEntry`] flag: the present request is to be recorded.
pub const CONNECTION_RECORDED: u32 = 2;
/// [`ConnectionEntry`] flag: it is a Unix socket.
pub const CONNECTION_UNIX: u32 = 4;

/// TCP ports, one bit each, as an array of words.
pub const PORT_WORDS: u32 = 65_536 / 64;

/// Time is divided into blocks of this many nanoseconds, as a power of two (16.8 ms). Where there are
/// too many requests, those of some blocks are recorded.
pub const REQUEST_BLOCK_SHIFT: u32 = 24;
/// Of so many blocks, [`Config::request_blocks`](super::Config::request_blocks) are recorded.
pub const REQUEST_BLOCKS: u64 = 64;

/// Whether requests that arrive at this instant are recorded. Which blocks these are is spread over
/// time, so that no period of the service or of the load falls together with them.
#[inline(always)]
#[must_use]
pub const fn is_recorded(arrival_ns: u64, blocks: u64) -> bool {
    let block = arrival_ns >> REQUEST_BLOCK_SHIFT;
    block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58 < blocks
}

/// The bucket of a key.
#[inline(always)]
#[must_use]
pub const fn connection_bucket(key: u64) -> u32 {
    // The highest bits depend on all bits of the key.
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - CONNECTION_BUCKETS.ilog2())) as u32
}

/// The record of a connection's present request, whose end is `end_ns`.
#[inline(always)]
#[must_use]
pub const fn request_record(
    entry: &ConnectionEntry,
    flags: u16,
    end_ns: u64,
    cpu: u32,
) -> RequestRecord {
    let known = entry.arrival_ns != 0;
    let begin_ns = if known { entry.arrival_ns } else { entry.read_ns };
    let unknown = if known { 0 } else { REQUEST_ARRIVAL_UNKNOWN };
    let unix = if entry.flags & CONNECTION_UNIX == 0 { 0 } else { REQUEST_UNIX };
    RequestRecord {
        header: Header {
            end_ns,
            duration_ns: end_ns.wrapping_sub(begin_ns),
            tid: entry.reader_tid,
            tgid: entry.tgid,
            kind: RecordKind::Request as u16,
            flags: flags | unknown | unix,
            cpu,
        },
        read_ns: entry.read_ns,
        first_send_ns: entry.first_send_ns,
        bytes_in: entry.bytes_in,
        bytes_out: entry.bytes_out,
        sender_tid: entry.sender_tid,
        sends: entry.sends,
        local_port: entry.local_port as u32,
        remote_port: entry.remote_port as u32,
        remote_address: entry.remote_address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_side_by_side_are_in_many_buckets() {
        // Sizes of `struct tcp_sock` and `struct tcpv6_sock` in their slabs.
        for size in [2_304, 2_496, 4_096] {
            let mut held = [0; CONNECTION_BUCKETS as usize];
            for index in 0..u64::from(CONNECTIONS) / 4 {
                let address = 0xffff_8881_0432_0000_u64 + index * size;
                held[connection_bucket(address.swap_bytes()) as usize] += 1;
            }
            let full = held.iter().filter(|held| **held > CONNECTION_WAYS as u32).count();
            assert!(full < 40, "{full} of {CONNECTION_BUCKETS} buckets, {size} bytes apart");
        }
    }

    #[test]
    fn as_many_blocks_are_recorded_as_asked_for() {
        for blocks in [0, 1, 5, 32, 63, REQUEST_BLOCKS] {
            let recorded = (0..100_000u64)
                .filter(|block| is_recorded(block << REQUEST_BLOCK_SHIFT, blocks))
                .count() as u64;
            let expected = 100_000 * blocks / REQUEST_BLOCKS;
            assert!(recorded.abs_diff(expected) <= 20, "{recorded} of {expected}");
        }
    }
}
