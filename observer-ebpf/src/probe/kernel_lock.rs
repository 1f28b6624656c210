//! Waits for locks of the kernel in which a thread sleeps: mutexes and reader-writer semaphores, that of the address
//! space among them. Spin locks are none: who waits for one does not give up the CPU, and they are far more frequent.

use observer_ebpf::wire::{
    CONTENTION_MUTEX, CONTENTION_READ, CONTENTION_SPIN, CONTENTION_WRITE, KERNEL_LOCK_MMAP,
    KERNEL_LOCK_MUTEX, KERNEL_LOCK_READ, KERNEL_LOCK_WRITE, KernelLockRecord, KernelLockState,
    LossKind, NO_SYSCALL, RecordKind, Series,
};

use crate::{
    emit, histogram,
    kernel::{Arguments, Task, now_ns, write_owner},
    task,
};

tracepoint_programs! {
    /// `contention_begin(lock, flags)`
    contention_begin, contention_begin_raw => begun;
    /// `contention_end(lock, ret)`
    contention_end, contention_end_raw => done;
}

#[inline(always)]
fn begun(arguments: Arguments) {
    let (lock, contention) = (arguments.word::<0>(), arguments.word::<1>() as u32);
    // A mutex is spun for first, and then slept for: both are one wait.
    if contention & (CONTENTION_SPIN | CONTENTION_MUTEX) == CONTENTION_SPIN {
        return;
    }
    let current = Task::current();
    let Some(state) = task::claim::<KernelLockState>(current) else { return };
    if state.begin_ns != 0 {
        if state.lock == lock {
            return;
        }
        emit::lose_of(LossKind::BeginWithoutEnd, current);
    }
    let is_mmap = current.mmap_lock() == lock;
    let has = |bit: u32, flag: u16| if contention & bit != 0 { u32::from(flag) } else { 0 };
    state.flags = has(CONTENTION_READ, KERNEL_LOCK_READ)
        | has(CONTENTION_WRITE, KERNEL_LOCK_WRITE)
        | has(CONTENTION_MUTEX, KERNEL_LOCK_MUTEX)
        | if is_mmap { u32::from(KERNEL_LOCK_MMAP) } else { 0 };
    (state.holder_tid, state.holder_tgid, state.holder_syscall) = (0, 0, NO_SYSCALL);
    if is_mmap && let Some(holder) = write_owner(lock) {
        state.holder_tid = holder.tid();
        state.holder_tgid = holder.tgid();
        state.holder_syscall = holder.syscall();
    }
    state.lock = lock;
    state.begin_ns = now_ns();
}

#[inline(always)]
fn done(arguments: Arguments) {
    let current = Task::current();
    let lock = arguments.word::<0>();
    // Otherwise the end of a wait for a spin lock, or of one that began before the probe was attached.
    let begun = |state: &&mut KernelLockState| state.begin_ns != 0 && state.lock == lock;
    let Some(state) = task::find::<KernelLockState>(current).filter(begun) else { return };
    let since = state.begin_ns;
    state.begin_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let flags = state.flags as u16;
    let series = if flags & KERNEL_LOCK_MMAP == 0 {
        Series::KernelLockOther
    } else if flags & KERNEL_LOCK_WRITE != 0 {
        Series::KernelLockMmapWrite
    } else {
        Series::KernelLockMmapRead
    };
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    histogram::observe(current, None, is_target, series, duration_ns);
    if is_target && emit::past_floor(RecordKind::KernelLock, duration_ns) {
        let ids = (tgid, current.tid());
        emit::emit(
            RecordKind::KernelLock,
            KernelLockRecord {
                header: emit::header(RecordKind::KernelLock, flags, ids, now, duration_ns),
                holder_tid: state.holder_tid,
                holder_tgid: state.holder_tgid,
                holder_syscall: state.holder_syscall,
                syscall: current.syscall(),
            },
        );
    }
}
