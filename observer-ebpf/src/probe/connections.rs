//! The table of connections, by the address of the kernel's `struct sock`.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{
    CONNECTION_BUCKETS, CONNECTION_IN_WORK, CONNECTION_UNIX, CONNECTION_WAYS,
    CONNECTIONS as CONNECTION_ENTRIES, ConnectionBucket, ConnectionEntry, connection_bucket,
};

use crate::{atomic, kernel::Sock};

/// Which connection has which entry.
#[map]
static CONNECTION_KEYS: Array<ConnectionBucket> =
    Array::with_max_entries(CONNECTION_BUCKETS, BPF_F_MMAPABLE);

/// What is known about each connection.
#[map]
static CONNECTIONS: Array<ConnectionEntry> =
    Array::with_max_entries(CONNECTION_ENTRIES, BPF_F_MMAPABLE);

#[inline(always)]
pub(super) fn find(key: u64) -> Option<&'static mut ConnectionEntry> {
    find_with_key(key).map(|(_, entry)| entry)
}

/// The entry of a connection, and the place of its key.
#[inline(always)]
pub(super) fn find_with_key(key: u64) -> Option<(*mut u64, &'static mut ConnectionEntry)> {
    let number = connection_bucket(key);
    let bucket = CONNECTION_KEYS.get_ptr_mut(number)?;
    let mut way = 0;
    while way < CONNECTION_WAYS {
        // SAFETY: a map value; only the address is formed here.
        let owner = unsafe { &raw mut (*bucket).keys[way] };
        if atomic::load(owner) == key {
            return Some((owner, entry(number, way)?));
        }
        way += 1;
    }
    None
}

#[inline(always)]
fn entry(bucket: u32, way: usize) -> Option<&'static mut ConnectionEntry> {
    let entry = CONNECTIONS.get_ptr_mut(bucket * CONNECTION_WAYS as u32 + way as u32)?;
    // SAFETY: a map value. Reads and writes of one connection come one after the other, unless threads
    // share it without a lock; the words are plain numbers. What arrivals write is accessed in one
    // step.
    Some(unsafe { &mut *entry })
}

/// A new entry: a free one; for a process of the target, also one of a connection that nobody of the
/// target has used.
#[inline(always)]
pub(super) fn insert(sock: Sock, tgid: u32, flags: u32) -> Option<&'static mut ConnectionEntry> {
    let key = sock.key();
    let is_alone = flags & CONNECTION_UNIX != 0;
    match claim(key, false, is_alone) {
        None if tgid != 0 => claim(key, true, is_alone),
        claimed => claimed,
    }
    .map(|(owner, entry)| {
        fill(sock, entry, tgid, flags);
        // Last, for it says that the rest is there.
        atomic::store(owner, key);
        entry
    })
}

#[inline(always)]
pub(super) fn fill(sock: Sock, entry: &mut ConnectionEntry, tgid: u32, flags: u32) {
    let inode = if flags & CONNECTION_UNIX == 0 { 0 } else { sock.inode() };
    *entry = ConnectionEntry {
        waiting_since_ns: 0,
        last_arrival_ns: 0,
        arrival_ns: 0,
        read_ns: 0,
        first_send_ns: 0,
        last_send_ns: 0,
        bytes_in: 0,
        bytes_out: 0,
        established_ns: 0,
        inode,
        arrival_inode: inode,
        tgid,
        reader_tid: 0,
        sender_tid: 0,
        sends: 0,
        flags,
        local_port: sock.local_port(),
        remote_port: sock.remote_port(),
        remote_address: sock.remote_address(),
    };
}

/// Takes an entry of the key's bucket, and marks it as being filled: a free one, or that of a former
/// socket at the same address whose end was not seen; or one that is not used. `is_alone`: nothing while
/// another CPU fills an entry of the bucket, for that may be the one of this key.
#[inline(always)]
fn claim(
    key: u64,
    unused: bool,
    is_alone: bool,
) -> Option<(*mut u64, &'static mut ConnectionEntry)> {
    let number = connection_bucket(key);
    let bucket = CONNECTION_KEYS.get_ptr_mut(number)?;
    let mut way = 0;
    while way < CONNECTION_WAYS {
        // SAFETY: a map value; only the address is formed here.
        let owner = unsafe { &raw mut (*bucket).keys[way] };
        let found = atomic::load(owner);
        if is_alone && found == CONNECTION_IN_WORK {
            return None;
        }
        let entry = entry(number, way)?;
        let takes = if unused {
            found != CONNECTION_IN_WORK && entry.tgid == 0
        } else {
            found == 0 || found == key
        };
        if takes && atomic::compare_exchange(owner, found, CONNECTION_IN_WORK) {
            return Some((owner, entry));
        }
        way += 1;
    }
    None
}

/// The entry of a connection that another CPU is filling.
#[inline(always)]
pub(super) fn after_others(key: u64) -> Option<&'static mut ConnectionEntry> {
    let number = connection_bucket(key);
    let bucket = CONNECTION_KEYS.get_ptr_mut(number)?;
    let mut way = 0;
    while way < CONNECTION_WAYS {
        // SAFETY: a map value; only the address is formed here.
        let owner = unsafe { &raw const (*bucket).keys[way] };
        if is_done(owner) && atomic::load(owner) == key {
            return entry(number, way);
        }
        way += 1;
    }
    None
}

/// Waits until another CPU is done with what it marked, which takes it a fraction of a microsecond; false if
/// it does not end.
#[inline(always)]
fn is_done(mark: *const u64) -> bool {
    let mut tries = 0;
    while tries < 100 {
        if atomic::load(mark) != CONNECTION_IN_WORK {
            return true;
        }
        tries += 1;
    }
    false
}
