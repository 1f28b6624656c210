//! Which processes had the CPU while threads of the target waited for it, summed up by process.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{
    RAN_BUCKETS, RAN_IDLE, RAN_KERNEL_THREAD, RAN_NO_PLACE, RAN_OTHERS, RAN_TARGET, RAN_WAYS,
    RanBucket, RanInstead, ran_bucket,
};

use super::turns::{if_zero, select};
use crate::{atomic, config, emit, kernel::Task};

#[map]
static RAN_INSTEAD: Array<RanBucket> = Array::with_max_entries(RAN_BUCKETS + 1, BPF_F_MMAPABLE);

/// No entry of a bucket.
const NONE: u64 = RAN_WAYS as u64;
// The entry that its lowest bits lead to.
const _: () = assert!(RAN_NO_PLACE == RAN_WAYS & (RAN_WAYS - 1));

#[inline(always)]
fn entry(bucket: *mut RanBucket, way: u64) -> *mut RanInstead {
    // SAFETY: a map value; only the address is formed here. The mask shows the verifier the bound.
    unsafe { &raw mut (*bucket).entries[way as usize & (RAN_WAYS - 1)] }
}

/// The entry of a process in its bucket, and a free one; [`NONE`] where there is none. Without branches, as
/// in [`super::turns`].
#[inline(always)]
fn ways(bucket: *mut RanBucket, tgid: u32) -> (u64, u64) {
    let (mut own, mut free) = (NONE, NONE);
    for way in 0..RAN_WAYS as u64 {
        // SAFETY: a map value; only the address is formed here.
        let found = atomic::load(unsafe { &raw const (*entry(bucket, way)).tgid }) as u32;
        own = select(if_zero(found ^ tgid), way, own);
        free = select(if_zero(found), way, free);
    }
    (own, free)
}

/// The entry of a process. One that has none takes a free one, and shares one with others where all are taken.
#[inline(always)]
fn find(tgid: u32) -> Option<*mut RanInstead> {
    let mut bucket = RAN_INSTEAD.get_ptr_mut(ran_bucket(tgid))?;
    let (mut way, free) = ways(bucket, tgid);
    if way == NONE && free != NONE {
        // SAFETY: a map value; only the address is formed here.
        let owner = unsafe { &raw mut (*entry(bucket, free)).tgid };
        // Otherwise another CPU took it at the same instant.
        if atomic::compare_exchange(owner, 0, u64::from(tgid)) {
            way = free;
        }
    }
    if way == NONE {
        bucket = RAN_INSTEAD.get_ptr_mut(RAN_OTHERS)?;
    }
    Some(entry(bucket, way))
}

/// Adds the time of a thread, with the ids of its process and its own in one number, in a wait that has this
/// number.
///
/// A global function, which the verifier checks once and not for each round of the loops that call it. So
/// it returns a number, which is always 0: the kernel wants one.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn ran_instead_add(task: u64, ids: u64, time_ns: u64, wait: u64) -> u64 {
    if time_ns != 0 {
        add(task, ids, time_ns, wait);
    }
    0
}

#[inline(always)]
fn add(task: u64, ids: u64, time_ns: u64, wait: u64) {
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    let Some(entry) = find(tgid) else { return };
    // SAFETY: a map value; only addresses are formed here.
    let (sum, last_wait, count) = unsafe {
        (&raw mut (*entry).time_ns, &raw mut (*entry).last_wait, &raw mut (*entry).waits)
    };
    atomic::add(sum, time_ns);
    if atomic::load(last_wait) == wait {
        return;
    }
    atomic::store(last_wait, wait);
    let waits = atomic::fetch_add(count, 1);
    // A process gets another name when it executes a program. What is noted seldom costs little.
    if waits & waits.wrapping_add(1) != 0 {
        return;
    }
    let task = Task::at(task);
    let mut flags = if emit::is_target(tgid) { RAN_TARGET } else { 0 };
    // SAFETY: a map value that all CPUs write; user space reads the name of a process that is there from
    // elsewhere.
    let entry = unsafe { &mut *entry };
    // It may have gone since, and its memory may be another one's.
    if task.tid() == tid {
        if config::off_task_flags() != 0 && task.is_kernel_thread() {
            flags |= RAN_KERNEL_THREAD;
        }
        entry.comm = task.leader().comm();
        entry.cgroup = task.cgroup_id();
    }
    entry.flags |= flags;
}

/// Adds time in which nobody had the CPU.
#[inline(always)]
pub(super) fn add_idle(time_ns: u64) {
    let Some(bucket) = RAN_INSTEAD.get_ptr_mut(RAN_OTHERS) else { return };
    // SAFETY: a map value; only the address is formed here.
    atomic::add(unsafe { &raw mut (*bucket).entries[RAN_IDLE].time_ns }, time_ns);
}
