//! Waits for locks of the kernel in which a thread sleeps.

use bytemuck::{Pod, Zeroable};

use super::{Header, Record, RecordKind};

/// Header flag: the lock of the thread's own address space (`mm_struct::mmap_lock`).
pub const KERNEL_LOCK_MMAP: u16 = 1;
/// Header flag: the thread wanted it for reading, beside others.
pub const KERNEL_LOCK_READ: u16 = 2;
/// Header flag: the thread wanted it for writing, alone.
pub const KERNEL_LOCK_WRITE: u16 = 4;
/// Header flag: a mutex.
pub const KERNEL_LOCK_MUTEX: u16 = 8;

/// `LCB_F_SPIN`, `LCB_F_READ`, `LCB_F_WRITE` and `LCB_F_MUTEX` (include/trace/events/lock.h).
pub const CONTENTION_SPIN: u32 = 1;
/// See [`CONTENTION_SPIN`].
pub const CONTENTION_READ: u32 = 1 << 1;
/// See [`CONTENTION_SPIN`].
pub const CONTENTION_WRITE: u32 = 1 << 2;
/// See [`CONTENTION_SPIN`].
pub const CONTENTION_MUTEX: u32 = 1 << 5;

/// `RWSEM_READER_OWNED` (kernel/locking/rwsem.c): the owner is a reader, perhaps one that is gone.
pub const READER_OWNED: u64 = 1;
/// The low bits of `rw_semaphore::owner` that are flags.
pub const OWNER_FLAGS: u64 = 7;

/// A wait for a lock of the kernel (`contention_begin` to `contention_end`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct KernelLockRecord {
    /// Common part.
    pub header: Header,
    /// The thread that had the address space for writing when the wait began; 0 where that is not known.
    pub holder_tid: u32,
    /// Its process.
    pub holder_tgid: u32,
    /// Number of the system call that it was in, or [`NO_SYSCALL`](super::NO_SYSCALL).
    pub holder_syscall: u32,
    /// Number of the system call in which the thread waited, or the same.
    pub syscall: u32,
}

impl Record for KernelLockRecord {
    const KIND: u16 = RecordKind::KernelLock as u16;
}

/// What the `kernel_lock` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct KernelLockState {
    /// When the current wait began; 0 outside one.
    pub begin_ns: u64,
    /// Address of the lock.
    pub lock: u64,
    /// The flags of its record.
    pub flags: u32,
    /// As in [`KernelLockRecord`].
    pub holder_tid: u32,
    /// As in [`KernelLockRecord`].
    pub holder_tgid: u32,
    /// As in [`KernelLockRecord`].
    pub holder_syscall: u32,
}
