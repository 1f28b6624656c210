//! IP sockets from creation (or acceptance) to release.
//!
//! Creation and release come from the cgroup hooks at the root of cgroup v2, which see every
//! process of the host. Accepted sockets do not pass the creation hook; the exit of accept(2) adds
//! them. The address of the kernel's `struct sock` ties the three together.

use aya_ebpf::{EbpfContext, macros::cgroup_sock, programs::SockContext};
use observer_ebpf::wire::{
    Counter, LossKind, RecordKind, SOCKET_ACCEPTED, SOCKET_ENTRY_ACCEPTED, SOCKET_ENTRY_TARGET,
    SOCKET_PREEXISTING, SOCKET_PROBES, SOCKET_SLOTS, Series, SocketEntry, SocketRecord,
};

use super::request;
use crate::{
    atomic, config, emit, histogram,
    kernel::{Task, now_ns},
    maps::SOCKETS,
};

/// Always 1: these hooks may forbid the operation, and observer never does.
const ALLOW: i32 = 1;

/// `BPF_CGROUP_INET_SOCK_CREATE`
#[cgroup_sock(sock_create)]
fn inet_sock_create(ctx: SockContext) -> i32 {
    let tgid = owner(&ctx);
    let is_target = emit::is_target(tgid);
    emit::count(Counter::SocketsCreated);
    if is_target {
        emit::count(Counter::TargetSocketsCreated);
    }
    // SAFETY: the hook's own context, fields at their fixed layout.
    let (family, socket_type) = unsafe { ((*ctx.sock).family, (*ctx.sock).type_) };
    insert(SocketEntry {
        sock: key(&ctx),
        start_ns: now_ns(),
        tgid,
        flags: if is_target { SOCKET_ENTRY_TARGET } else { 0 },
        family,
        socket_type,
    });
    ALLOW
}

/// The socket's key: the address of the kernel's `struct sock`, which is what these hooks get as
/// context, byte-swapped.
#[inline(always)]
fn key(ctx: &SockContext) -> u64 {
    atomic::swapped_address(ctx.sock.cast_const().cast())
}

/// The current process.
#[inline(always)]
fn owner(ctx: &SockContext) -> u32 {
    if config::has_target() != 0 { ctx.tgid() } else { 0 }
}

/// An accept(2) of the current task returned `fd`.
#[inline(always)]
pub(crate) fn accepted(tgid: u32, fd: u32) {
    let current = Task::current();
    let Some((sock, family, socket_type)) = current.ip_socket(fd) else { return };
    let is_target = emit::is_target(tgid);
    emit::count(Counter::SocketsAccepted);
    if is_target {
        emit::count(Counter::TargetSocketsAccepted);
        request::accepted(sock.to_be(), current);
    }
    let target = if is_target { SOCKET_ENTRY_TARGET } else { 0 };
    insert(SocketEntry {
        sock: sock.to_be(),
        start_ns: now_ns(),
        tgid,
        flags: SOCKET_ENTRY_ACCEPTED | target,
        family,
        socket_type,
    });
}

/// `BPF_CGROUP_INET_SOCK_RELEASE`
#[cgroup_sock(sock_release)]
fn inet_sock_release(ctx: SockContext) -> i32 {
    emit::count(Counter::SocketsReleased);
    let sock = key(&ctx);
    let tgid = owner(&ctx);
    let now = now_ns();
    if let Some(entry) = find(sock) {
        let (start_ns, flags, owner) = (entry.start_ns, entry.flags, entry.tgid);
        let (family, socket_type) = (entry.family, entry.socket_type);
        // Freed last: until then, no other CPU takes the entry.
        atomic::store(&raw mut entry.sock, 0);
        let duration_ns = now.wrapping_sub(start_ns);
        let is_target = flags & SOCKET_ENTRY_TARGET != 0;
        let series = Series::SocketLifetime;
        histogram::observe_reentrant(Task::current(), is_target, series, duration_ns);
        if is_target {
            let accepted = if flags & SOCKET_ENTRY_ACCEPTED != 0 { SOCKET_ACCEPTED } else { 0 };
            released(accepted, (owner, ctx.pid()), now, duration_ns, family, socket_type);
        }
    } else if emit::is_target(tgid) {
        // SAFETY: the hook's own context, fields at their fixed layout.
        let (family, socket_type) = unsafe { ((*ctx.sock).family, (*ctx.sock).type_) };
        released(SOCKET_PREEXISTING, (tgid, ctx.pid()), now, 0, family, socket_type);
    }
    ALLOW
}

#[inline(always)]
fn released(
    flags: u16,
    ids: (u32, u32),
    now: u64,
    duration_ns: u64,
    family: u32,
    socket_type: u32,
) {
    emit::count(Counter::TargetSocketsReleased);
    let header = emit::header(RecordKind::Socket, flags, ids, now, duration_ns);
    emit::emit(RecordKind::Socket, SocketRecord { header, family, socket_type });
}

/// The entry where the search begins.
#[inline(always)]
const fn home(key: u64) -> u32 {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32
}

#[inline(always)]
fn entry_at(sock: u64, probe: u32) -> Option<*mut SocketEntry> {
    SOCKETS.get_ptr_mut(home(sock).wrapping_add(probe) & (SOCKET_SLOTS - 1))
}

#[inline(always)]
fn insert(new: SocketEntry) {
    let mut probe = 0;
    while probe < SOCKET_PROBES {
        let Some(entry) = entry_at(new.sock, probe) else { return };
        probe += 1;
        // SAFETY: a map value; the exchange below decides which CPU may write the rest.
        let entry = unsafe { &mut *entry };
        let sock = &raw mut entry.sock;
        let owner = atomic::load(sock);
        // The same address again: its release was not seen (the socket died before it was
        // complete). The new one takes over.
        let mine = owner == new.sock || owner == 0 && atomic::compare_exchange(sock, 0, new.sock);
        if mine {
            entry.start_ns = new.start_ns;
            entry.tgid = new.tgid;
            entry.flags = new.flags;
            entry.family = new.family;
            entry.socket_type = new.socket_type;
            return;
        }
    }
    emit::lose(LossKind::SocketSlot, new.flags & SOCKET_ENTRY_TARGET != 0);
}

#[inline(always)]
fn find(sock: u64) -> Option<&'static mut SocketEntry> {
    let mut probe = 0;
    while probe < SOCKET_PROBES {
        // SAFETY: a map value; whoever holds the socket's last reference is alone with it.
        let entry = unsafe { &mut *entry_at(sock, probe)? };
        if atomic::load(&raw const entry.sock) == sock {
            return Some(entry);
        }
        probe += 1;
    }
    None
}
