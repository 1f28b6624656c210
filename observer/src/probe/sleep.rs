//! `sleep`: what the threads that serve requests wait for of their own will.

use std::mem::offset_of;

use observer_ebpf::wire::{
    NO_SYSCALL, SLEEP_FROZEN, SLEEP_IO, SLEEP_LOCK, SLEEP_REMOTE, SLEEP_STOPPED,
    SLEEP_UNINTERRUPTIBLE, Series, SleepRecord, SleepState, Slot,
};

use super::calls::call_name;
use super::{
    Attach, HistogramFamily, Members, Need, PerThread, Probe, Program, RunsAt, Tier, object_id,
};
use crate::model::{
    Cause, EndedBy, Event, FUTEX_OBJECT, Field, Holder, ObjectRow, RecordRow, Tgid, Tid, field,
    socket_address,
};

const SWITCH: &str = "sleeps";
const MOVES: &str = "sleeps of threads that are moved to another CPU";
const WAKERS: &str = "which threads hand over requests";

const READ: &[Members] = &[
    Members::RunDelay,
    Members::State,
    Members::JobControl,
    Members::SavedRegisters,
    Members::Registers,
    Members::Descriptors,
    Members::Sockets,
    Members::Connections,
];

/// The part of the programs on `sched_switch` and `sched_migrate_task` that sleeps need.
const SLEEPS: &str = "SWITCH_SLEEP";
/// And of those that read tasks by helper calls.
const SLEEPS_RAW: &str = "SWITCH_SLEEP_RAW";

const fn moved(name: &'static str, attach: Attach) -> Program {
    Program::new(name, attach, MOVES).only_with("task_struct", "se.sched_delayed")
}

pub(super) const PROBE: Probe = Probe {
    name: "sleep",
    runs_at: RunsAt::Frequent("context switch"),
    about: "Sleeps of the target's threads: from giving up the CPU to the wake-up, and in which system \
            call.",
    notes: "Each is a voluntary context switch in /proc/PID/task/TID/status. What a thread waits for a \
            CPU after the wake-up is not part of it. Only sleeps of threads that have read or answered a \
            request, or woke one that has, are recorded, so records need the probe `request`; the histograms \
            hold those of all threads of the target. A thread that a signal, a debugger or the freezer of its \
            cgroup (since Linux 6.1 for v1) held did not sleep of its own will: that is the cause `stopped`. \
            A sleep that signals could not end, and that was for block I/O, as delay accounting (taskstats) \
            counts it, is the cause `block_io`; so is one in fsync and its like, where a file system with a \
            journal waits for a thread of its own. A sleep within another stall, as in a major fault, is part \
            of that stall. A wait for a lock (cause `lock_wait`) is recognised by its futex call: by its operation \
            (locks with priority inheritance), or by the value that glibc, musl, Rust and Go before 1.24 expect \
            at the address of a lock that is waited for. Locks that are made of conditions or semaphores look like any other wait for a thread; an answer \
            takes a wait for one of them where several threads with requests wait at the same place in memory, and \
            no event loop ends it (Python's interpreter lock). Java's monitors and Go's locks, for which each thread \
            waits at a place of its own, stay `service_wait`. \
            The system call and its arguments are read from the registers with which the thread entered the kernel; a sleep outside a system call (in a page fault, for \
            instance), and one in a call of the 32-bit ABI, has none. Since Linux 6.12 a thread may be moved to another run \
            queue while it sleeps; the wait for a CPU that follows is then part of the sleep. Where the \
            kernel switches to a thread without an event, as on some virtual machines, the end of the sleep is what \
            the scheduler noted, read when the thread leaves the CPU, and the call in which it slept is not known. \
            If the kernel leaves out that event as well, the sleep has no end: it is the loss `switch_missed` of a \
            thread that serves requests, and its time counts as work.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "the context switch, BTF-typed",
            needs: &[Need::OwnBtf, Need::Tracepoint("sched_switch")],
            reads: READ,
            programs: &[
                moved("sched_migrate_task", Attach::TpBtf("sched_migrate_task", 1)).part(SLEEPS),
                Program::new("sched_waking", Attach::TpBtf("sched_waking", 1), WAKERS),
                Program::new("sched_switch", Attach::TpBtf("sched_switch", 3), SWITCH).part(SLEEPS),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "the context switch, tasks read by helper calls",
            needs: &[],
            reads: READ,
            programs: &[
                moved("sched_migrate_task_raw", Attach::RawTracepoint("sched_migrate_task", 1))
                    .part(SLEEPS_RAW),
                Program::new("sched_waking_raw", Attach::RawTracepoint("sched_waking", 1), WAKERS),
                Program::new("sched_switch_raw", Attach::RawTracepoint("sched_switch", 3), SWITCH)
                    .part(SLEEPS_RAW),
            ],
        },
    ],
    records: &[&SLEEP],
    histograms: &[HistogramFamily {
        name: "target_sleep",
        help: "Time that threads of the target slept, by their state; missing without a target",
        labels: &["state"],
        of_target: true,
        series: &[
            (Series::SleepInterruptible, "interruptible", &["interruptible"]),
            (Series::SleepLock, "lock", &["lock"]),
            (Series::SleepUninterruptible, "uninterruptible", &["uninterruptible"]),
            (Series::SleepIo, "block_io", &["block_io"]),
            (Series::SleepStopped, "stopped", &["stopped"]),
        ],
        ..HistogramFamily::BASE
    }],
    per_thread: Some(
        PerThread::of::<SleepState>(
            ["SLEEPS", "SLEEPS_STORAGE", "SLEEPS_STORED"],
            &[offset_of!(Slot<SleepState>, state.begin_ns) / 8],
        )
        .of_arguments(),
    ),
    off_by_default: Some(
        "sleeps are of use beside the samples of a load generator, and beside stacks; `observer run` watches them \
         when it reads samples or records stacks",
    ),
    ..Probe::BASE
};

static SLEEP: RecordRow = RecordRow::new::<SleepRecord>(
    "sleep",
    "A thread that serves requests slept, until it was woken.",
    &[
        Field::flag(
            "uninterruptible",
            SLEEP_UNINTERRUPTIBLE,
            "signals could not end the sleep (state D)",
        ),
        Field::flag("stopped", SLEEP_STOPPED, "the thread was stopped or traced (state T or t)"),
        // Traces of 0.1.0 have neither this nor who woke the thread.
        Field::flag("frozen", SLEEP_FROZEN, "the freezer of its cgroup held the thread").optional(),
        Field::flag("io", SLEEP_IO, "the thread waited for block I/O").optional(),
        Field::flag("lock", SLEEP_LOCK, "the thread waited for a lock, as far as its futex call tells")
            .optional(),
        Field::flag("remote", SLEEP_REMOTE, "the call waited at a connection"),
        field!(
            SleepRecord.syscall,
            "syscall",
            "number of the system call (x86-64); 4294967295 outside a system call"
        ),
        field!(SleepRecord.argument_1, "argument_1", "first argument of the call"),
        field!(SleepRecord.argument_2, "argument_2", "second argument"),
        field!(SleepRecord.argument_3, "argument_3", "third argument"),
        field!(SleepRecord.remote_port, "remote_port", "port at the other end of the connection"),
        field!(
            SleepRecord.remote_address,
            "remote_address",
            "address of the other end of the connection"
        ),
        field!(
            SleepRecord.waker_tid,
            "waker_tid",
            "the thread of the target that woke it by a system call of its own; 0 where something else \
             did: a timer, the network, another process"
        )
        .optional(),
        field!(SleepRecord.waker_tgid, "waker_tgid", "its process").optional(),
    ],
)
.stalls(20_000, |event| Some(cause(event)))
.holder(|event, _| {
    let SleepRecord { waker_tid, waker_tgid, .. } = event.record()?;
    let waker = Holder { tid: Tid(waker_tid), tgid: Tgid(waker_tgid), cgroup: None };
    (waker_tid != 0).then_some(waker)
})
.objects(ObjectRow { id: object, name: object_name, ended_by })
.detail(detail);

/// Flags of a thread that did not sleep of its own will.
const HELD: u16 = SLEEP_STOPPED | SLEEP_FROZEN;

fn cause(event: &Event) -> Cause {
    if event.flags & HELD != 0 {
        Cause::STOPPED
    } else if event.flags & SLEEP_IO != 0 || (is_uninterruptible(event) && is_sync(event)) {
        Cause::BLOCK_IO
    } else if event.flags & SLEEP_LOCK != 0 {
        Cause::LOCK_WAIT
    } else {
        Cause::SERVICE_WAIT
    }
}

const fn is_uninterruptible(event: &Event) -> bool {
    event.flags & SLEEP_UNINTERRUPTIBLE != 0
}

/// Whether the call puts what was written on a device. A file system with a journal waits in it for a thread
/// of its own that writes the journal, which is no block I/O for the kernel.
fn is_sync(event: &Event) -> bool {
    let is_of = |record: SleepRecord| SYNCS.contains(&i64::from(record.syscall));
    event.record().is_some_and(is_of)
}

/// The system call, and the other end of the connection at which it waited; of a lock, its address.
fn object(event: &Event, cause: Cause) -> Option<u32> {
    let SleepRecord { syscall, remote_port, remote_address, .. } = event.record()?;
    if event.flags & HELD != 0 {
        return Some(object_id(&(event.flags & HELD)));
    }
    match (ended_by(event), cause) {
        (EndedBy::Thread(_), Cause::SERVICE_WAIT) => return Some(FUTEX_OBJECT),
        (EndedBy::Thread(place), _) => return Some(place),
        _ => {}
    }
    Some(object_id(&(event.flags & SLEEP_REMOTE, syscall, remote_port, remote_address.0)))
}

fn ended_by(event: &Event) -> EndedBy {
    let Some(record) = event.record::<SleepRecord>().filter(|_| event.flags & HELD == 0) else {
        return EndedBy::Object;
    };
    match i64::from(record.syscall) {
        libc::SYS_futex => EndedBy::Thread(place(event, record.argument_1)),
        call if WAITS_FOR_ANY.contains(&call) => EndedBy::AnyDescriptor,
        _ => EndedBy::Object,
    }
}

/// A place in the memory of the thread's process. The two words of a condition (glibc) lie in the same eight bytes.
fn place(event: &Event, address: u64) -> u32 {
    object_id(&(event.tgid.0, address & !7))
}

fn object_name(event: &Event, cause: Cause) -> String {
    let Some(record) = event.record::<SleepRecord>() else { return String::new() };
    let SleepRecord { syscall, argument_1, remote_port, remote_address, .. } = record;
    if cause == Cause::LOCK_WAIT {
        return format!("the lock at {argument_1:#x}");
    }
    if event.flags & SLEEP_FROZEN != 0 {
        return "the freezer of its cgroup".to_owned();
    }
    if event.flags & SLEEP_STOPPED != 0 {
        return "a signal or a debugger".to_owned();
    }
    if syscall == NO_SYSCALL {
        return "outside a system call".to_owned();
    }
    let call = call_name(syscall);
    if event.flags & SLEEP_REMOTE != 0 {
        return format!("{call} at {}", socket_address(remote_address, remote_port as u16));
    }
    call
}

fn detail(event: &Event) -> String {
    let Some(record) = event.record::<SleepRecord>() else { return String::new() };
    let SleepRecord { syscall, argument_1, .. } = record;
    let object = object_name(event, cause(event));
    if event.flags & HELD != 0 {
        return format!("held by {object}");
    }
    if event.flags & (SLEEP_REMOTE | SLEEP_LOCK) != 0 {
        return object;
    }
    match i64::from(syscall) {
        libc::SYS_futex => format!("{object} {argument_1:#x}"),
        number if HAS_DESCRIPTOR.contains(&number) => {
            format!("{object} of descriptor {argument_1}")
        }
        _ => object,
    }
}

/// Calls that wait until any of several descriptors is ready.
const WAITS_FOR_ANY: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_io_uring_enter,
];

/// Calls that put what was written on a device.
const SYNCS: &[i64] = &[
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_msync,
];

/// Calls that wait at the descriptor in their first argument.
const HAS_DESCRIPTOR: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_io_uring_enter,
];

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{Address, RecordKind, is_lock};

    use super::*;
    use crate::probe::{decode, tests::header};

    fn record(flags: u16, syscall: u32) -> SleepRecord {
        SleepRecord {
            header: header(RecordKind::Sleep, flags),
            syscall,
            remote_port: 0,
            argument_1: 7,
            argument_2: 0,
            argument_3: 0,
            remote_address: Address([0; 16]),
            waker_tid: 0,
            waker_tgid: 0,
        }
    }

    #[test]
    fn a_record_says_what_the_thread_waited_for() {
        let said = |record: SleepRecord| {
            let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
            let is_held = record.header.flags & HELD != 0;
            let cause = if is_held { Cause::STOPPED } else { Cause::SERVICE_WAIT };
            assert_eq!(event.cause(), Some(cause));
            detail(&event)
        };
        assert_eq!(said(record(0, libc::SYS_clock_nanosleep as u32)), "clock_nanosleep");
        assert_eq!(said(record(0, libc::SYS_futex as u32)), "futex 0x7");
        assert_eq!(said(record(0, libc::SYS_epoll_wait as u32)), "epoll_wait of descriptor 7");
        assert_eq!(said(record(0, 9_999)), "system call 9999");
        assert_eq!(said(record(SLEEP_UNINTERRUPTIBLE, NO_SYSCALL)), "outside a system call");
        let read = libc::SYS_read as u32;
        assert_eq!(said(record(SLEEP_STOPPED, read)), "held by a signal or a debugger");
        assert_eq!(said(record(SLEEP_FROZEN, read)), "held by the freezer of its cgroup");
        let mut remote = record(SLEEP_REMOTE, libc::SYS_recvfrom as u32);
        (remote.remote_port, remote.remote_address.0[15]) = (6_379, 1);
        assert_eq!(said(remote), "recvfrom at [::1]:6379");
    }

    #[test]
    fn locks_are_told_from_other_waits_by_their_calls() {
        const PRIVATE: u64 = 128;
        const REALTIME: u64 = 256;
        let tid = 0x3039;
        for (operation, value, what) in [
            (PRIVATE, 2, "a mutex of glibc"),
            (0, 2, "one that processes share"),
            (9 | PRIVATE, 2, "a mutex of Rust"),
            (9 | PRIVATE | REALTIME, 2, "a mutex of glibc, with a time"),
            (9 | PRIVATE | REALTIME, 3, "a rwlock of glibc"),
            (PRIVATE, 0x8000_0010, "a mutex of musl"),
            (PRIVATE, 0x8000_0000 | tid, "a robust mutex"),
            (9 | PRIVATE, 0x7fff_ffff, "a rwlock of Rust"),
            (6 | PRIVATE, 0, "priority inheritance"),
            (13 | PRIVATE, 0, "priority inheritance, by the monotonic clock"),
        ] {
            assert!(is_lock(operation, value), "{what}");
        }
        for (operation, value, what) in [
            (PRIVATE, 0, "a thread of Go without work"),
            (9 | PRIVATE | REALTIME, 0, "a condition of glibc"),
            (9 | PRIVATE, 0xffff_ffff, "a parked thread of Rust"),
            (9 | REALTIME, tid, "the end of a thread"),
            (PRIVATE, 1, "a parked thread of parking_lot"),
            (PRIVATE, 3, "a counter"),
            (11 | PRIVATE, 2, "a condition whose mutex has priority inheritance"),
            (1 | PRIVATE, 2, "a wake-up"),
        ] {
            assert!(!is_lock(operation, value), "{what}");
        }
        let record =
            SleepRecord { argument_1: 0xc0de, ..record(SLEEP_LOCK, libc::SYS_futex as u32) };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.cause(), Some(Cause::LOCK_WAIT));
        assert_eq!(detail(&event), "the lock at 0xc0de");
        let of = |record: SleepRecord| {
            decode(bytemuck::bytes_of(&record)).expect("decodes").object(Cause::LOCK_WAIT)
        };
        assert_eq!(of(record), of(SleepRecord { argument_3: 9, ..record }));
        assert_ne!(of(record), of(SleepRecord { argument_1: 0xc0d0, ..record }));
    }

    #[test]
    fn sleeps_are_summed_up_by_call_and_connection() {
        let of = |record: SleepRecord| {
            let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
            let id = event.object(cause(&event)).expect("an object");
            (id, object_name(&event, cause(&event)))
        };
        let futex = record(0, libc::SYS_futex as u32);
        assert_eq!(of(futex), of(SleepRecord { argument_1: 99, ..futex }), "whatever the address");
        assert_eq!(of(futex).1, "futex");
        let stopped = |syscall| of(record(SLEEP_STOPPED, syscall as u32));
        assert_eq!(stopped(libc::SYS_read), stopped(libc::SYS_futex));
        let remote = |port: u32| {
            let record = record(SLEEP_REMOTE, libc::SYS_recvfrom as u32);
            of(SleepRecord { remote_port: port, ..record })
        };
        let all =
            [of(futex), of(record(0, libc::SYS_read as u32)), stopped(0), remote(1), remote(2)];
        for (place, one) in all.iter().enumerate() {
            assert!(all[place + 1..].iter().all(|other| other.0 != one.0), "{one:?}");
        }
    }
}
