//! `socket`: IP sockets from creation to release, and descriptor exhaustion.

use observer_ebpf::wire::{
    FdFailureRecord, FdSyscall, Header, RecordKind, SOCKET_ACCEPTED, SOCKET_PREEXISTING,
    SocketRecord,
};

use super::{Attach, Probe, Program, Tier, mm_syscall, read};
use crate::model::EventKind;

pub(super) const PROBE: Probe = Probe {
    name: "socket",
    about: "IP sockets created, accepted and released, their lifetime and live count; failures \
            of socket, accept, connect and open for want of descriptors or memory.",
    notes: "IPv4 and IPv6 sockets only: the kernel has no release hook for other families. \
            Sockets accepted through io_uring are counted when they are released.",
    tiers: &[Tier {
        name: "cgroup hooks and system-call exits",
        needs: &[],
        programs: &[
            Program {
                name: "inet_sock_create",
                attach: Attach::CgroupSockCreate,
                gives: "created sockets",
            },
            mm_syscall::SYS_EXIT,
            Program {
                name: "inet_sock_release",
                attach: Attach::CgroupSockRelease,
                gives: "released sockets and lifetimes",
            },
        ],
    }],
    records: &[RecordKind::Socket, RecordKind::FdFailure],
    causes: &[],
    floor_ns: 0,
    decode,
};

fn decode(header: &Header, bytes: &[u8]) -> Option<EventKind> {
    if header.kind == RecordKind::FdFailure as u16 {
        let record: FdFailureRecord = read(bytes)?;
        let call = FdSyscall::ALL.get(record.syscall as usize)?.name();
        return Some(EventKind::FdFailure { call, errno: record.errno });
    }
    let record: SocketRecord = read(bytes)?;
    Some(EventKind::SocketReleased {
        accepted: header.flags & SOCKET_ACCEPTED != 0,
        preexisting: header.flags & SOCKET_PREEXISTING != 0,
        family: record.family,
        socket_type: record.socket_type,
    })
}
