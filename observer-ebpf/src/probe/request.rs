//! Requests of connections that the target accepted, over TCP or Unix sockets: data arrives in the
//! socket, a thread reads, a thread sends. Of connections that the target made, the time between what it
//! sends and the reply.
//!
//! The address of the kernel's `struct sock` ties the events together. A connection is in the table
//! from the moment when it is established, whoever accepts it later, so that the arrival of its first
//! request is known although no thread has the socket yet.
//!
//! A Unix connection is there from its first arrival on, if a process of the target listened for it.
//! No tracepoint tells when it ends: what follows at the same address has another inode.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::{fentry, fexit, map},
    maps::Array,
    programs::{FEntryContext, FExitContext},
};
use observer_ebpf::wire::{
    CONNECTION_OUTGOING, CONNECTION_RECORDED, CONNECTION_UNIX, ConnectionEntry, Counter, LossKind,
    OUTGOING_UNIX, OutgoingRecord, PORT_WORDS, REQUEST_UNANSWERED, RecordKind, Series, is_recorded,
    request_record,
};

use super::connections::{after_others, fill, find, find_with_key, insert};
use super::sleep;
use crate::{
    atomic, config, emit, histogram,
    kernel::{Arguments, Sock, Task, now_ns},
};

/// Ports on which the target listened when observer looked: how an accepted connection is told from an
/// outgoing one if it is older than the probe.
#[map]
static LISTENED_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, BPF_F_MMAPABLE);

/// `TCP_ESTABLISHED`, `TCP_SYN_RECV` and `TCP_CLOSE` (include/net/tcp_states.h).
const ESTABLISHED: u32 = 1;
const SYN_RECV: u32 = 3;
const CLOSE: u32 = 7;

/// `MSG_PEEK` (include/linux/socket.h): the data stays in the socket.
const PEEK: u32 = 2;

tracepoint_programs! {
    /// `sk_data_ready(sk)`
    request_ready, request_ready_raw => arrived;
    /// `sock_recv_length(sk, ret, flags)`
    request_read, request_read_raw => read;
    /// `sock_send_length(sk, ret, flags)`
    request_sent, request_sent_raw => sent;
    /// `inet_sock_set_state(sk, oldstate, newstate)`
    request_state, request_state_raw => changed;
}

/// `sock_def_readable(sk)`, for kernels without `sk_data_ready` (before Linux 6.3).
#[fentry]
fn request_ready_enter(ctx: FEntryContext) {
    arrived(Arguments::typed(&ctx));
}

/// `tcp_recvmsg(sk, msg, len, flags, addr_len)`, with `nonblock` before `flags` until Linux 5.18.
#[fexit]
fn request_read_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    let (result, flags) = if config::tcp_recvmsg_parameters() == 6 {
        (arguments.word::<6>(), arguments.word::<4>())
    } else {
        (arguments.word::<5>(), arguments.word::<3>())
    };
    took(arguments.sock::<0>(), result as i32, flags as u32);
}

/// `tcp_sendmsg(sk, msg, size)`
#[fexit]
fn request_sent_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    gave(arguments.sock::<0>(), arguments.word::<3>() as i32);
}

/// `tcp_sendpage(sk, page, offset, size, flags)`, by which sendfile(2) sends until Linux 6.4.
#[fexit]
fn request_page_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    gave(arguments.sock::<0>(), arguments.word::<5>() as i32);
}

/// `unix_stream_recvmsg(socket, msg, size, flags)`
#[fexit]
fn request_unix_read_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    let (result, flags) = (arguments.word::<4>() as i32, arguments.word::<3>() as u32);
    if let Some(sock) = arguments.sock_of_socket::<0>() {
        took(sock, result, flags);
    }
}

/// `unix_stream_sendmsg(socket, msg, len)`
#[fexit]
fn request_unix_sent_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    if let Some(sock) = arguments.sock_of_socket::<0>() {
        gave(sock, arguments.word::<3>() as i32);
    }
}

/// `unix_stream_sendpage(socket, page, offset, size, flags)`, by which sendfile(2) sends until Linux
/// 6.4.
#[fexit]
fn request_unix_page_leave(ctx: FExitContext) {
    let arguments = Arguments::typed(&ctx);
    if let Some(sock) = arguments.sock_of_socket::<0>() {
        gave(sock, arguments.word::<5>() as i32);
    }
}

#[inline(always)]
fn read(arguments: Arguments) {
    took(arguments.sock::<0>(), arguments.word::<1>() as i32, arguments.word::<2>() as u32);
}

#[inline(always)]
fn sent(arguments: Arguments) {
    gave(arguments.sock::<0>(), arguments.word::<1>() as i32);
}

/// Data arrived in a socket, whoever it belongs to; in a soft interrupt, or in the system call of the
/// thread that holds the socket's lock.
#[inline(always)]
fn arrived(arguments: Arguments) {
    if config::has_target() == 0 {
        return;
    }
    let sock = arguments.sock::<0>();
    let entry = match find(sock.key()) {
        Some(entry) => entry,
        None => {
            let flags = if is_listened(sock.local_port())
                && sock.is_tcp()
                && u32::from(sock.state()) == ESTABLISHED
            {
                // Older than the probe: its first request arrives.
                0
            } else if is_of_listening_process(sock) {
                CONNECTION_UNIX
            } else {
                return;
            };
            match insert(sock, 0, flags) {
                Some(entry) => entry,
                None => return,
            }
        }
    };
    let is_unix = entry.flags & CONNECTION_UNIX != 0;
    // Of a Unix socket, the entry may still be that of another connection: only the thread that takes the data
    // may change it.
    let is_outgoing = match is_unix {
        true => !sock.is_accepted_unix(),
        false => entry.flags & CONNECTION_OUTGOING != 0,
    };
    // Reading the clock is most of what this program costs.
    if is_outgoing {
        return;
    }
    let (since, last) = (&raw mut entry.waiting_since_ns, &raw mut entry.last_arrival_ns);
    if is_unix {
        let inode = sock.inode();
        if !sock.has_queued() {
            // Nothing keeps a thread from taking data out of a Unix socket before its sender gets here.
            if entry.inode == inode && entry.arrival_ns == 0 {
                atomic::store(&raw mut entry.arrival_ns, atomic::load(&raw const entry.read_ns));
            }
            return;
        }
        let before = atomic::load(&raw const entry.arrival_inode);
        if before != inode {
            atomic::store(&raw mut entry.arrival_inode, inode);
            // It is that of another connection, unless it was accepted meanwhile.
            if before != 0 {
                atomic::store(since, 0);
            }
        }
    }
    let now = now_ns();
    atomic::store(last, now);
    if atomic::load(since) == 0 {
        atomic::store(since, now);
    }
}

/// A thread took data out of a socket, or tried to.
#[inline(always)]
fn took(sock: Sock, bytes: i32, flags: u32) {
    let current = Task::current();
    let tgid = current.tgid();
    if bytes <= 0 || flags & PEEK != 0 || !emit::is_target(tgid) {
        return;
    }
    let Some((entry, is_known)) = of_target(sock, tgid) else { return };
    if entry.flags & CONNECTION_OUTGOING != 0 {
        replied(entry, current);
        return;
    }
    let now = now_ns();
    let unix = entry.flags & CONNECTION_UNIX;
    let arrival_ns = match atomic::load(&raw const entry.waiting_since_ns) {
        // Its sender is about to say so.
        0 if unix != 0 && is_known => now,
        since_ns => since_ns,
    };
    // What is left came with the last arrival, or before it.
    let has_unread = if unix == 0 { sock.has_unread() } else { sock.has_queued() };
    let left_since_ns = if has_unread { atomic::load(&raw const entry.last_arrival_ns) } else { 0 };
    atomic::store(&raw mut entry.waiting_since_ns, left_since_ns);
    let bytes = u64::from(bytes.unsigned_abs());
    emit::count_by(Counter::RequestBytesIn, bytes);
    let answered = entry.first_send_ns != 0;
    if entry.read_ns != 0 && !answered {
        entry.bytes_in = entry.bytes_in.wrapping_add(bytes);
        return;
    }
    if answered {
        done(entry, 0, entry.last_send_ns);
    }
    emit::count(Counter::Requests);
    let begin_ns = if arrival_ns != 0 { arrival_ns } else { now };
    let blocks = emit::settings().map_or(0, |settings| settings.request_blocks);
    let recorded = if is_recorded(begin_ns, blocks) { CONNECTION_RECORDED } else { 0 };
    entry.flags = recorded | unix;
    entry.tgid = tgid;
    entry.arrival_ns = arrival_ns;
    entry.read_ns = now;
    entry.first_send_ns = 0;
    entry.last_send_ns = 0;
    entry.bytes_in = bytes;
    entry.bytes_out = 0;
    entry.reader_tid = current.tid();
    entry.sender_tid = 0;
    entry.sends = 0;
    sleep::serves(current);
    if arrival_ns != 0 {
        let waited_ns = now.wrapping_sub(arrival_ns);
        histogram::observe(current, None, true, Series::RequestSocketWait, waited_ns);
    }
}

/// A thread gave data to a socket, or tried to.
#[inline(always)]
fn gave(sock: Sock, bytes: i32) {
    let current = Task::current();
    let tgid = current.tgid();
    if bytes <= 0 || !emit::is_target(tgid) {
        return;
    }
    let Some((entry, _)) = of_target(sock, tgid) else { return };
    if entry.flags & CONNECTION_OUTGOING != 0 {
        if entry.first_send_ns == 0 {
            entry.first_send_ns = now_ns();
            entry.sender_tid = current.tid();
        }
        return;
    }
    if entry.read_ns == 0 {
        emit::count(Counter::RequestOtherSends);
        return;
    }
    let now = now_ns();
    let bytes = u64::from(bytes.unsigned_abs());
    emit::count_by(Counter::RequestBytesOut, bytes);
    entry.last_send_ns = now;
    entry.bytes_out = entry.bytes_out.wrapping_add(bytes);
    entry.sends = entry.sends.wrapping_add(1);
    if entry.first_send_ns == 0 {
        entry.first_send_ns = now;
        entry.sender_tid = current.tid();
        if entry.sender_tid != entry.reader_tid {
            sleep::serves(current);
        }
        let served_ns = now.wrapping_sub(entry.read_ns);
        histogram::observe(current, None, true, Series::RequestService, served_ns);
    }
}

/// A thread of the target took a reply of another service: sends the record of the request.
#[inline(always)]
fn replied(entry: &mut ConnectionEntry, current: Task) {
    let begin_ns = entry.first_send_ns;
    // It is the rest of a reply, or what a service sends by itself.
    if begin_ns == 0 {
        return;
    }
    entry.first_send_ns = 0;
    emit::count(Counter::OutgoingRequests);
    let blocks = emit::settings().map_or(0, |settings| settings.request_blocks);
    if !is_recorded(begin_ns, blocks) {
        return;
    }
    let now = now_ns();
    let flags = if entry.flags & CONNECTION_UNIX == 0 { 0 } else { OUTGOING_UNIX };
    let ids = (entry.tgid, current.tid());
    let length_ns = now.wrapping_sub(begin_ns);
    emit::emit(
        RecordKind::Outgoing,
        OutgoingRecord {
            header: emit::header(RecordKind::Outgoing, flags, ids, now, length_ns),
            sender_tid: entry.sender_tid,
            remote_port: u32::from(entry.remote_port),
            remote_address: entry.remote_address,
        },
    );
}

/// A TCP connection changes its state.
#[inline(always)]
fn changed(arguments: Arguments) {
    if config::has_target() == 0 {
        return;
    }
    let (old, new) = (arguments.word::<1>() as u32, arguments.word::<2>() as u32);
    let sock = arguments.sock::<0>();
    if new == ESTABLISHED && old == SYN_RECV {
        // Whose it is shows when it is accepted. Until then another one may take over the entry.
        if let Some(entry) = insert(sock, 0, 0) {
            entry.established_ns = now_ns();
        }
    } else if new == CLOSE {
        let Some((owner, entry)) = find_with_key(sock.key()) else { return };
        finish(entry, now_ns());
        atomic::store(owner, 0);
    }
}

/// The current thread accepted a TCP connection, whose socket has this key.
#[inline(always)]
pub(super) fn accepted(key: u64, current: Task) {
    if config::watches_requests() == 0 {
        return;
    }
    let Some(entry) = find(key) else { return };
    let since_ns = entry.established_ns;
    if since_ns == 0 {
        return;
    }
    entry.established_ns = 0;
    let waited_ns = now_ns().wrapping_sub(since_ns);
    histogram::observe(current, None, true, Series::AcceptQueueWait, waited_ns);
}

/// A connection has ended, at this time or before: sends the record of its last request.
#[inline(always)]
fn finish(entry: &ConnectionEntry, end_ns: u64) {
    if entry.read_ns == 0 {
        return;
    }
    if entry.first_send_ns != 0 {
        done(entry, 0, entry.last_send_ns);
    } else {
        done(entry, REQUEST_UNANSWERED, end_ns);
    }
}

/// Makes the entry of a Unix socket that of its present connection; true if it was that of another. Only
/// threads that use the socket do so.
#[inline(always)]
fn renew(sock: Sock, entry: &mut ConnectionEntry, tgid: u32) -> bool {
    let inode = sock.inode();
    if entry.inode == inode {
        return false;
    }
    if entry.inode == 0 {
        // It was accepted meanwhile.
        entry.inode = inode;
        return false;
    }
    finish(entry, entry.read_ns);
    let (since_ns, last_ns, of) = (
        atomic::load(&raw const entry.waiting_since_ns),
        atomic::load(&raw const entry.last_arrival_ns),
        atomic::load(&raw const entry.arrival_inode),
    );
    fill(sock, entry, tgid, unix_flags(sock));
    if of == inode || of == 0 {
        entry.waiting_since_ns = since_ns;
        entry.last_arrival_ns = last_ns;
    }
    true
}

/// The flags of a Unix connection.
#[inline(always)]
fn unix_flags(sock: Sock) -> u32 {
    if sock.is_accepted_unix() { CONNECTION_UNIX } else { CONNECTION_UNIX | CONNECTION_OUTGOING }
}

/// Whether it is a Unix connection to a process of the target. What systemd listens for is not seen
/// before the target reads.
#[inline(always)]
fn is_of_listening_process(sock: Sock) -> bool {
    sock.is_unix_stream() && sock.is_accepted_unix() && emit::is_target(sock.unix_listener())
}

/// Sends the record of the connection's present request.
#[inline(always)]
fn done(entry: &ConnectionEntry, flags: u16, end_ns: u64) {
    // User space has stopped recording when it no longer wants any.
    let wanted = emit::settings().is_some_and(|settings| settings.request_blocks != 0);
    if wanted && entry.flags & CONNECTION_RECORDED != 0 {
        emit::emit(RecordKind::Request, request_record(entry, flags, end_ns, emit::cpu()));
    }
}

/// The entry of a connection that this process of the target uses, and whether it was there before;
/// nothing if the connection is neither TCP nor a Unix stream, or there is no room.
#[inline(always)]
fn of_target(sock: Sock, tgid: u32) -> Option<(&'static mut ConnectionEntry, bool)> {
    let mut is_known = true;
    let entry = match find(sock.key()) {
        Some(entry) => {
            if entry.flags & CONNECTION_UNIX != 0 {
                is_known = !renew(sock, entry, tgid);
            }
            entry
        }
        None => {
            let flags = if sock.is_tcp() {
                if is_listened(sock.local_port()) { 0 } else { CONNECTION_OUTGOING }
            } else if sock.is_unix_stream() {
                unix_flags(sock)
            } else {
                return None;
            };
            let inserted = match insert(sock, tgid, flags) {
                None if flags & CONNECTION_UNIX != 0 => after_others(sock.key()),
                inserted => inserted,
            };
            let Some(entry) = inserted else {
                emit::lose(LossKind::ConnectionSlot, true);
                return None;
            };
            is_known = false;
            entry
        }
    };
    entry.tgid = tgid;
    Some((entry, is_known))
}

/// Whether the target listened on this port when observer looked.
#[inline(always)]
fn is_listened(port: u16) -> bool {
    LISTENED_PORTS
        .get(u32::from(port) >> 6)
        .is_some_and(|word| word & (1 << (u32::from(port) & 63)) != 0)
}
