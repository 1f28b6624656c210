//! `kernel_lock`: a thread waits for a lock of the kernel.

use std::mem::offset_of;

use observer_ebpf::wire::{
    KERNEL_LOCK_MMAP, KERNEL_LOCK_MUTEX, KERNEL_LOCK_READ, KERNEL_LOCK_WRITE, KernelLockRecord,
    KernelLockState, NO_SYSCALL, Series, Slot,
};

use super::calls::call_name;
use super::{
    Attach, Bounds, HistogramFamily, Members, Need, PerThread, Probe, Program, RunsAt, Tier,
    object_id,
};
use crate::model::{Cause, EndedBy, Event, Field, Holder, ObjectRow, RecordRow, Tgid, Tid, field};

const READ: &[Members] = &[Members::MmapLock, Members::Registers, Members::SavedRegisters];

pub(super) const PROBE: Probe = Probe {
    name: "kernel_lock",
    runs_at: RunsAt::Rare(
        "wait for a kernel lock in which a thread sleeps, and contended spin lock",
    ),
    about: "Waits for locks of the kernel in which a thread sleeps: that of the address space, and others.",
    notes: "Mutexes and reader-writer semaphores (with PREEMPT_RT, all locks that sleep), from the moment when a \
            thread is put into the queue of a lock that another one has. Before that, it may spin for the lock, \
            which is CPU time. Spin locks are not counted. The lock of the address space (mmap_lock) is apart: \
            its record says which thread had it for writing when the wait began, and in which system call that was, \
            except with PREEMPT_RT, and where readers had it.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf, Need::Tracepoint("contention_begin")],
            reads: READ,
            programs: &[
                Program::new(
                    "contention_begin",
                    Attach::TpBtf("contention_begin", 2),
                    "begins of waits",
                ),
                Program::new("contention_end", Attach::TpBtf("contention_end", 2), "ends of waits"),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[Need::Tracepoint("contention_begin")],
            reads: READ,
            programs: &[
                Program::new(
                    "contention_begin_raw",
                    Attach::RawTracepoint("contention_begin", 2),
                    "begins of waits",
                ),
                Program::new(
                    "contention_end_raw",
                    Attach::RawTracepoint("contention_end", 2),
                    "ends of waits",
                ),
            ],
        },
    ],
    records: &[&KERNEL_LOCK],
    histograms: &[HistogramFamily {
        name: "kernel_lock_wait",
        help: "Time in which threads slept for a lock of the kernel: of their address space, for reading or for \
               writing, or another one",
        labels: &["lock"],
        bounds: Bounds::STALL,
        series: &[
            (Series::KernelLockMmapRead, "mmap_read", &["mmap_read"]),
            (Series::KernelLockMmapWrite, "mmap_write", &["mmap_write"]),
            (Series::KernelLockOther, "other", &["other"]),
        ],
        ..HistogramFamily::BASE
    }],
    per_thread: Some(PerThread::of::<KernelLockState>(
        ["KERNEL_LOCKS", "KERNEL_LOCKS_STORAGE", "KERNEL_LOCKS_STORED"],
        &[offset_of!(Slot<KernelLockState>, state.begin_ns) / 8],
    )),
    ..Probe::BASE
};

static KERNEL_LOCK: RecordRow = RecordRow::new::<KernelLockRecord>(
    "kernel_lock",
    "A thread slept for a lock of the kernel.",
    &[
        Field::flag("mmap", KERNEL_LOCK_MMAP, "the lock of the thread's own address space"),
        Field::flag("read", KERNEL_LOCK_READ, "wanted for reading, beside others"),
        Field::flag("write", KERNEL_LOCK_WRITE, "wanted for writing, alone"),
        Field::flag("mutex", KERNEL_LOCK_MUTEX, "a mutex"),
        field!(
            KernelLockRecord.holder_tid,
            "holder_tid",
            "the thread that had the address space for writing when the wait began; 0 where that is not known"
        ),
        field!(KernelLockRecord.holder_tgid, "holder_tgid", "its process"),
        field!(
            KernelLockRecord.holder_syscall,
            "holder_syscall",
            "number of the system call that it was in (x86-64); 4294967295 outside a system call"
        ),
        field!(
            KernelLockRecord.syscall,
            "syscall",
            "number of the system call in which the thread waited; 4294967295 outside a system call"
        ),
    ],
)
.stalls(5_000, |event| Some(if is_mmap(event) { Cause::MMAP_LOCK } else { Cause::KERNEL_LOCK }))
.holder(|event, _| {
    let KernelLockRecord { holder_tid, holder_tgid, .. } = event.record()?;
    let holder = Holder { tid: Tid(holder_tid), tgid: Tgid(holder_tgid), cgroup: None };
    (holder_tid != 0).then_some(holder)
})
.objects(ObjectRow { id: object, name: object_name, ended_by: |_| EndedBy::Object })
.detail(|event| {
    let wanted = match event.flags & (KERNEL_LOCK_READ | KERNEL_LOCK_WRITE) {
        KERNEL_LOCK_READ => "for reading, ",
        KERNEL_LOCK_WRITE => "for writing, ",
        _ => "",
    };
    let Some(KernelLockRecord { syscall, holder_tid, .. }) = event.record() else {
        return String::new();
    };
    let what = object_name(event, Cause::MMAP_LOCK);
    match (is_mmap(event), holder_tid) {
        (true, 0) => format!("{wanted}in {}", place(syscall)),
        (true, tid) => format!("{wanted}in {}, while thread {tid} had it in {what}", place(syscall)),
        (false, _) => format!("{wanted}{what}"),
    }
});

fn is_mmap(event: &Event) -> bool {
    event.flags & KERNEL_LOCK_MMAP != 0
}

/// Of the address space, what the one did who had it; of other locks, where the thread wanted it.
fn object(event: &Event, _: Cause) -> Option<u32> {
    let KernelLockRecord { syscall, holder_tid, holder_syscall, .. } = event.record()?;
    match is_mmap(event) {
        true => (holder_tid != 0).then(|| object_id(&(KERNEL_LOCK_MMAP, holder_syscall))),
        false => Some(object_id(&(event.flags, syscall))),
    }
}

fn object_name(event: &Event, _: Cause) -> String {
    let Some(record) = event.record::<KernelLockRecord>() else { return String::new() };
    let KernelLockRecord { syscall, holder_syscall, .. } = record;
    match event.flags {
        flags if flags & KERNEL_LOCK_MMAP != 0 => place(holder_syscall),
        flags if flags & KERNEL_LOCK_MUTEX != 0 => format!("a mutex in {}", place(syscall)),
        _ => format!("a semaphore in {}", place(syscall)),
    }
}

/// Where a thread was in the kernel.
fn place(syscall: u32) -> String {
    if syscall == NO_SYSCALL { "a page fault".to_owned() } else { call_name(syscall) }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::probe::{decode, tests::header};

    fn record(flags: u16) -> KernelLockRecord {
        KernelLockRecord {
            header: header(RecordKind::KernelLock, flags),
            holder_tid: 0,
            holder_tgid: 0,
            holder_syscall: NO_SYSCALL,
            syscall: libc::SYS_mmap as u32,
        }
    }

    #[test]
    fn a_record_says_which_lock_it_was_and_what_its_holder_did() {
        let said = |record: KernelLockRecord| {
            let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
            let cause = event.cause().expect("a cause");
            let object = event.object(cause).map(|_| object_name(&event, cause));
            (cause, (event.row().detail)(&event), object.unwrap_or_default())
        };
        let write = record(KERNEL_LOCK_MMAP | KERNEL_LOCK_WRITE);
        assert_eq!(said(write), (Cause::MMAP_LOCK, "for writing, in mmap".into(), String::new()));
        let held = KernelLockRecord {
            holder_tid: 7,
            holder_tgid: 7,
            holder_syscall: libc::SYS_munmap as u32,
            syscall: NO_SYSCALL,
            ..record(KERNEL_LOCK_MMAP | KERNEL_LOCK_READ)
        };
        let detail = "for reading, in a page fault, while thread 7 had it in munmap";
        assert_eq!(said(held), (Cause::MMAP_LOCK, detail.into(), "munmap".into()));
        let openat =
            KernelLockRecord { syscall: libc::SYS_openat as u32, ..record(KERNEL_LOCK_MUTEX) };
        let what = "a mutex in openat";
        assert_eq!(said(openat), (Cause::KERNEL_LOCK, what.into(), what.into()));
        let inode = KernelLockRecord {
            header: header(RecordKind::KernelLock, KERNEL_LOCK_WRITE),
            ..openat
        };
        let what = "a semaphore in openat";
        assert_eq!(said(inode), (Cause::KERNEL_LOCK, format!("for writing, {what}"), what.into()));
    }
}
