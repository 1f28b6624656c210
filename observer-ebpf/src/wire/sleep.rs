//! Sleeps: a thread gave up the CPU and waited for something.

use bytemuck::{Pod, Zeroable};

use super::{Address, Header, Record, RecordKind};

/// Header flag: signals could not end the sleep (state D).
pub const SLEEP_UNINTERRUPTIBLE: u16 = 1;
/// Header flag: the thread was stopped or traced (state T or t).
pub const SLEEP_STOPPED: u16 = 2;
/// Header flag: the descriptor in the first argument is a TCP or UDP connection, and the record has its
/// other end.
pub const SLEEP_REMOTE: u16 = 4;
/// Header flag: the freezer of its cgroup held the thread.
pub const SLEEP_FROZEN: u16 = 8;
/// Header flag: it waited for block I/O (`task_struct::in_iowait`), as delay accounting counts it.
pub const SLEEP_IO: u16 = 16;
/// Header flag: it waited for a lock, as far as [`is_lock`] tells.
pub const SLEEP_LOCK: u16 = 32;

/// [`SleepRecord::syscall`] of a thread that slept outside a system call, in a page fault for instance.
pub const NO_SYSCALL: u32 = u32::MAX;

/// `TASK_INTERRUPTIBLE` (include/linux/sched.h).
pub const TASK_INTERRUPTIBLE: u32 = 1;
/// `TASK_UNINTERRUPTIBLE` (include/linux/sched.h).
pub const TASK_UNINTERRUPTIBLE: u32 = 2;
/// `__TASK_STOPPED` and `__TASK_TRACED` (include/linux/sched.h).
pub const TASK_STOPPED_OR_TRACED: u32 = 4 | 8;
/// `TASK_FROZEN`, of the v1 freezer (include/linux/sched.h; since Linux 6.1).
pub const TASK_FROZEN: u32 = 0x8000;
/// Not a state of the kernel: of a thread in an uninterruptible sleep that waits for block I/O.
pub const SLEEPS_FOR_IO: u32 = 1 << 31;
/// `JOBCTL_TRAP_FREEZE`, of the v2 freezer (include/linux/sched/jobctl.h).
pub const JOBCTL_TRAP_FREEZE: u64 = 1 << 23;

/// Whether a futex call waits for a lock, by its operation and the value that it expects at the address.
///
/// The kernel knows only the address; the value is the convention of the library: 2 for a mutex that others wait for
/// (glibc, Rust, Go before 1.24), 3 for a rwlock of glibc, one of the two highest bits for those of musl, for robust
/// mutexes and the rwlock of Rust. Locks with priority inheritance have operations of their own. A wait for a condition,
/// a semaphore or a thread's end expects other values, but for a few in their counters.
#[must_use]
pub const fn is_lock(operation: u64, value: u64) -> bool {
    const WAIT: u64 = 0;
    const LOCK_PI: u64 = 6;
    const WAIT_BITSET: u64 = 9;
    const LOCK_PI2: u64 = 13;
    /// Without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
    const COMMAND: u64 = 127;
    /// `FUTEX_WAITERS` (include/uapi/linux/futex.h), and the bit below.
    const HIGHEST: u32 = 0xc000_0000;
    /// A thread that parks itself (Rust).
    const PARKED: u32 = u32::MAX;
    let value = value as u32;
    match operation & COMMAND {
        LOCK_PI | LOCK_PI2 => true,
        WAIT => value == 2 || value & HIGHEST != 0 && value != PARKED,
        WAIT_BITSET => matches!(value, 2 | 3) || value & HIGHEST != 0 && value != PARKED,
        _ => false,
    }
}

/// A thread slept: from the moment when it gave up the CPU until it was woken. The wait for a CPU that
/// follows is not part of it. The header's thread is the one that slept.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SleepRecord {
    /// Common part.
    pub header: Header,
    /// Number of the system call that it was in, or [`NO_SYSCALL`].
    pub syscall: u32,
    /// Port at the other end of the connection; 0 without one.
    pub remote_port: u32,
    /// First argument of the system call; 0 without one.
    pub argument_1: u64,
    /// Second argument.
    pub argument_2: u64,
    /// Third argument.
    pub argument_3: u64,
    /// Address at the other end of the connection; zeros without one.
    pub remote_address: Address,
    /// The thread of the target that woke it by a system call of its own; 0 where something else did: a timer,
    /// the network, another process.
    pub waker_tid: u32,
    /// Its process.
    pub waker_tgid: u32,
}

impl Record for SleepRecord {
    const KIND: u16 = RecordKind::Sleep as u16;
}

/// What the `sleep` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SleepState {
    /// When the thread gave up the CPU to sleep; 0 while it does not.
    pub begin_ns: u64,
    /// Its `sched_info.run_delay` at that time.
    pub run_delay_ns: u64,
    /// The thread that woke it, and its process, as in [`SleepRecord`].
    pub waker_tid: u32,
    /// Its process.
    pub waker_tgid: u32,
    /// Its state at the begin (`task_struct::__state`), with [`TASK_FROZEN`] for either freezer, and
    /// [`SLEEPS_FOR_IO`].
    pub state: u32,
    /// 1 when it was moved to another run queue in its sleep, so that the kernel counts the rest of the
    /// sleep as a wait for a CPU.
    pub moved_asleep: u32,
    /// 1 when the thread has read or answered a request, or woke one that has: its sleeps are sent.
    pub serves: u64,
}
