//! Sockets and descriptor exhaustion.

use bytemuck::{Pod, Zeroable};

use super::{COUNTER_SLOTS, Counter, Header, Record, RecordKind};

/// Header flag: the socket was accepted (otherwise created by socket(2)).
pub const SOCKET_ACCEPTED: u16 = 1;
/// Header flag: the socket existed before the probe was attached; the lifetime is unknown (0).
pub const SOCKET_PREEXISTING: u16 = 2;

/// A socket of the target was released. The header's duration is its lifetime.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketRecord {
    /// Common part.
    pub header: Header,
    /// Address family (`AF_INET`, `AF_INET6`).
    pub family: u32,
    /// Socket type (`SOCK_STREAM`, ...), 0 when unknown.
    pub socket_type: u32,
}

impl Record for SocketRecord {
    const KIND: u16 = RecordKind::Socket as u16;
}

/// A socket, accept, connect or open failed with EMFILE, ENFILE, ENOBUFS or ENOMEM.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FdFailureRecord {
    /// Common part.
    pub header: Header,
    /// A [`FdSyscall`] discriminant.
    pub syscall: u32,
    /// Positive errno.
    pub errno: u32,
}

impl Record for FdFailureRecord {
    const KIND: u16 = RecordKind::FdFailure as u16;
}

/// One live IP socket in the table the create, accept and release programs share.
///
/// An open-addressed table of plain array entries: the key is the address of the kernel's
/// `struct sock`, which is unique while the socket lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketEntry {
    /// Address of the `struct sock`; 0 when the entry is free.
    pub sock: u64,
    /// When it was created or accepted.
    pub start_ns: u64,
    /// Process that created or accepted it.
    pub tgid: u32,
    /// Bits `SOCKET_ENTRY_*`.
    pub flags: u32,
    /// Address family.
    pub family: u32,
    /// Socket type.
    pub socket_type: u32,
}

/// [`SocketEntry`] flag: accepted.
pub const SOCKET_ENTRY_ACCEPTED: u32 = 1;
/// [`SocketEntry`] flag: belongs to the target.
pub const SOCKET_ENTRY_TARGET: u32 = 2;

/// Entries of the socket table. A power of two.
pub const SOCKET_SLOTS: u32 = 1 << 16;

/// Entries that are searched before a socket is counted as
/// [`LossKind::SocketSlot`](super::LossKind).
pub const SOCKET_PROBES: u32 = 8;

/// System calls whose failures are counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FdSyscall {
    /// socket(2), socketpair(2).
    Socket = 0,
    /// accept(2), accept4(2).
    Accept = 1,
    /// connect(2).
    Connect = 2,
    /// open(2), openat(2), openat2(2), creat(2).
    Open = 3,
}

impl FdSyscall {
    /// All calls, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Socket, Self::Accept, Self::Connect, Self::Open];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Open => "open",
        }
    }
}

/// The errnos counted, with their numbers on Linux.
pub const FD_ERRNOS: [(u32, &str); 4] =
    [(24, "EMFILE"), (23, "ENFILE"), (105, "ENOBUFS"), (12, "ENOMEM")];

/// In [`Counts::counters`](super::Counts::counters), the first of the counters of failures of all
/// tasks. That of a call and an errno is [`fd_failure`] further on.
pub const FD_FAILURES: usize = 32;

/// The same failures of the target.
pub const TARGET_FD_FAILURES: usize = FD_FAILURES + FdSyscall::ALL.len() * FD_ERRNOS.len();

/// The place of a call's failures with the errno of this row of [`FD_ERRNOS`].
#[inline(always)]
#[must_use]
pub const fn fd_failure(call: FdSyscall, errno_position: usize) -> usize {
    call as usize * FD_ERRNOS.len() + errno_position
}

const _: () = assert!(Counter::ALL.len() <= FD_FAILURES);
const _: () = assert!(TARGET_FD_FAILURES + fd_failure(FdSyscall::Open, 3) < COUNTER_SLOTS);
