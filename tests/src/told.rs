//! What workloads report about single calls, mappings and sockets, for comparison with single
//! records.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Memory that was touched page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Address of the first byte.
    pub base: u64,
    /// Its bytes.
    pub length_bytes: u64,
}

/// Memory that two kinds of fault were taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Written by the workload itself.
    pub touched: Area,
    /// Filled by the kernel, in a read(2).
    pub read_into: Area,
}

/// One memory-management call, and the kernel's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its name.
    pub call: Cow<'static, str>,
    /// Its first argument.
    pub address: u64,
    /// Bytes asked for.
    pub length_bytes: u64,
    /// Protection or advice.
    pub argument: u32,
    /// Return value, negative errno on failure.
    pub result: i64,
}

/// Calls one after the other, and none besides them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Before the first one, nanoseconds of the monotonic clock.
    pub begin_ns: u64,
    /// After the last one.
    pub end_ns: u64,
    /// All of them, in order.
    pub calls: Vec<Call>,
}

/// A socket from when it was made to when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// `SOCK_STREAM` or `SOCK_DGRAM`.
    pub socket_type: u32,
    /// It came from accept(2).
    pub accepted: bool,
    /// It existed before the workload was started.
    pub preexisting: bool,
    /// The monotonic clock before and after it was made, nanoseconds.
    pub made_ns: [u64; 2],
    /// The monotonic clock before and after its close, nanoseconds.
    pub closed_ns: [u64; 2],
}

/// The memory-management system calls that observer watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmCall {
    /// mmap(2)
    Mmap,
    /// munmap(2)
    Munmap,
    /// mremap(2)
    Mremap,
    /// brk(2)
    Brk,
    /// mprotect(2)
    Mprotect,
    /// madvise(2)
    Madvise,
}

impl MmCall {
    /// The system call's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::Brk => "brk",
            Self::Mprotect => "mprotect",
            Self::Madvise => "madvise",
        }
    }
}

/// A request, as the service read and answered it. Pairs of times are before and after a call,
/// nanoseconds of the monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Port of the client; 0 with a Unix socket.
    pub remote_port: u16,
    /// It came over a Unix socket.
    pub unix: bool,
    /// When the client began to send it.
    pub begun_ns: u64,
    /// Thread of the first read.
    pub reader: u32,
    /// The first read.
    pub read_ns: [u64; 2],
    /// Bytes read.
    pub bytes_in: u64,
    /// Thread of the first write; 0 if there was none.
    pub sender: u32,
    /// The first write.
    pub first_send_ns: [u64; 2],
    /// The last write.
    pub last_send_ns: [u64; 2],
    /// Writes.
    pub sends: u32,
    /// Bytes written.
    pub bytes_out: u64,
}

/// A request of a client. Each time is known by its bounds: before and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// Thread of the client.
    pub thread: u32,
    /// The first write returned, nanoseconds.
    pub sent_ns: [u64; 2],
    /// The first read of the reply returned, nanoseconds.
    pub replied_ns: [u64; 2],
}

/// The requests of a service, connection by connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// All of them.
    pub requests: Vec<Request>,
    /// Connections over Unix sockets.
    pub unix_connections: u64,
    /// What its clients, threads of the same process, asked and had an answer to.
    pub outgoing: Vec<Outgoing>,
    /// Writes to connections of which nothing had been read.
    pub other_sends: u64,
}
