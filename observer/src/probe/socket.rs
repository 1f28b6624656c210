//! `socket`: IP sockets from creation to release, and descriptor exhaustion.

use std::mem::offset_of;

use observer_ebpf::wire::{
    Counter, FD_ERRNOS, FD_FAILURES, FdFailureRecord, FdSyscall, SOCKET_ACCEPTED,
    SOCKET_PREEXISTING, SOCKET_SLOTS, Series, SocketEntry, SocketRecord, TARGET_FD_FAILURES,
};

use super::{
    Attach, Bounds, Entries, Gauge, HistogramFamily, Labels, Members, Need, NumberFamily, Numbers,
    Probe, ProbeMap, Program, RunsAt, SummaryNumbers, Tier, mm_syscall,
};
use crate::model::{Field, RecordRow, field};

const CREATE: Program =
    Program::new("inet_sock_create", Attach::CgroupSockCreate, "created sockets");
const RELEASE: Program =
    Program::new("inet_sock_release", Attach::CgroupSockRelease, "released sockets and lifetimes");

/// The part of the programs at the exit of all calls that accepted sockets and failures need.
const DESCRIPTORS: &str = "SYS_EXIT_DESCRIPTORS";

/// The members that programs at the calls themselves read.
const AT_CALLS: &[Members] = &[Members::Descriptors, Members::Sockets];
/// The members that programs at the exit of all calls read.
const AT_EXIT: &[Members] =
    &[Members::Descriptors, Members::Sockets, Members::Registers, Members::CallAbi];

const ACCEPTED: &str = "accepted sockets, and failures of accept";
const FAILURES: &str = "failures due to exhausted descriptors or memory";

const fn leave(name: &'static str, function: &'static str, gives: &'static str) -> Program {
    Program::new(name, Attach::Fexit(function), gives)
}

const fn events(created: Counter, accepted: Counter, released: Counter) -> [(usize, Labels); 3] {
    [
        (created as usize, &["created"]),
        (accepted as usize, &["accepted"]),
        (released as usize, &["released"]),
    ]
}

static SOCKETS: [(usize, Labels); 3] =
    events(Counter::SocketsCreated, Counter::SocketsAccepted, Counter::SocketsReleased);
static TARGET_SOCKETS: [(usize, Labels); 3] = events(
    Counter::TargetSocketsCreated,
    Counter::TargetSocketsAccepted,
    Counter::TargetSocketsReleased,
);
const LIVE: Numbers = Numbers::Gauge(Gauge::TargetLiveSockets);

const FAILURE_ROWS: usize = FdSyscall::ALL.len() * FD_ERRNOS.len();

/// Call and errno of each counter of failures.
static FAILURE_LABELS: [[&str; 2]; FAILURE_ROWS] = {
    let mut labels = [[""; 2]; FAILURE_ROWS];
    let mut row = 0;
    while row < FAILURE_ROWS {
        let call = FdSyscall::ALL[row / FD_ERRNOS.len()];
        labels[row] = [call.name(), FD_ERRNOS[row % FD_ERRNOS.len()].1];
        row += 1;
    }
    labels
};

const fn failures(first: usize) -> [(usize, Labels); FAILURE_ROWS] {
    let mut rows: [(usize, Labels); FAILURE_ROWS] = [(0, &[]); FAILURE_ROWS];
    let mut row = 0;
    while row < FAILURE_ROWS {
        rows[row] = (first + row, &FAILURE_LABELS[row]);
        row += 1;
    }
    rows
}

static ALL_FAILURES: [(usize, Labels); FAILURE_ROWS] = failures(FD_FAILURES);
static TARGET_FAILURES: [(usize, Labels); FAILURE_ROWS] = failures(TARGET_FD_FAILURES);

pub(super) const PROBE: Probe = Probe {
    name: "socket",
    runs_at: RunsAt::Frequent("socket created, accepted or released"),
    about: "IP sockets created, accepted and released, their lifetime and live count; failures \
            of socket, accept, connect and open due to exhausted descriptors or memory.",
    notes: "IPv4 and IPv6 sockets only: the kernel has no release hook for other families. \
            Sockets accepted through io_uring are counted when they are released. The kernel makes a \
            socket before it looks for a descriptor and a file, so a call that fails for lack of one \
            (EMFILE, mostly ENFILE) has created and released a socket. Live sockets are \
            looked up in the descriptors of the target's processes, at the end of a run and when the \
            daemon is scraped. This takes about 10 µs of one CPU for each socket; the daemon looks \
            again only after 50 times as long (25 s with 50,000 sockets), and serves the last number \
            until then.",
    tiers: &[
        Tier {
            name: "fentry",
            about: "cgroup hooks, and the return of the calls themselves",
            needs: &[
                Need::CgroupV2,
                Need::OwnBtf,
                Need::Fentry,
                Need::Function("__x64_sys_accept4"),
            ],
            reads: AT_CALLS,
            programs: &[
                CREATE,
                leave("accept_leave", "__x64_sys_accept", ACCEPTED),
                leave("accept4_leave", "__x64_sys_accept4", ACCEPTED),
                leave("socket_leave", "__x64_sys_socket", FAILURES),
                leave("socketpair_leave", "__x64_sys_socketpair", FAILURES),
                leave("connect_leave", "__x64_sys_connect", FAILURES),
                leave("open_leave", "__x64_sys_open", FAILURES),
                leave("openat_leave", "__x64_sys_openat", FAILURES),
                leave("openat2_leave", "__x64_sys_openat2", FAILURES),
                leave("creat_leave", "__x64_sys_creat", FAILURES),
                RELEASE,
            ],
        },
        Tier {
            name: "tp_btf",
            about: "cgroup hooks, and the exit of all system calls",
            needs: &[Need::CgroupV2, Need::OwnBtf],
            reads: AT_EXIT,
            programs: &[CREATE, mm_syscall::SYS_EXIT.part(DESCRIPTORS), RELEASE],
        },
        Tier {
            name: "raw_tracepoint",
            about: "cgroup hooks, and the exit of all system calls, read by helper calls",
            needs: &[Need::CgroupV2],
            reads: AT_EXIT,
            programs: &[CREATE, mm_syscall::SYS_EXIT_RAW.part(DESCRIPTORS), RELEASE],
        },
        Tier {
            name: "kprobe",
            about: "cgroup hooks, and the return of the calls themselves, through kprobes",
            needs: &[Need::CgroupV2, Need::Kprobe, Need::Function("__x64_sys_accept4")],
            reads: AT_CALLS,
            programs: &[
                CREATE,
                Program::new(
                    "accept_kretprobe",
                    Attach::Kretprobe(&["__x64_sys_accept", "__x64_sys_accept4"]),
                    ACCEPTED,
                ),
                Program::new(
                    "socket_kretprobe",
                    Attach::Kretprobe(&["__x64_sys_socket", "__x64_sys_socketpair"]),
                    FAILURES,
                ),
                Program::new(
                    "connect_kretprobe",
                    Attach::Kretprobe(&["__x64_sys_connect"]),
                    FAILURES,
                ),
                Program::new(
                    "open_kretprobe",
                    Attach::Kretprobe(&[
                        "__x64_sys_open",
                        "__x64_sys_openat",
                        "__x64_sys_openat2",
                        "__x64_sys_creat",
                    ]),
                    FAILURES,
                ),
                RELEASE,
            ],
        },
    ],
    records: &[&SOCKET, &FD_FAILURE],
    histograms: &[HistogramFamily {
        name: "socket_lifetime",
        help: "Time from creation or acceptance of an IP socket to its release",
        labels: &[],
        bounds: Bounds::LIFETIME,
        series: &[(Series::SocketLifetime, "lifetime", &[])],
        ..HistogramFamily::BASE
    }],
    numbers: &[
        NumberFamily {
            name: "sockets",
            help: "IP sockets created, accepted and released, all tasks",
            labels: &["event"],
            numbers: Numbers::Counters(&SOCKETS),
        },
        NumberFamily {
            name: "target_sockets",
            help: "IP sockets created, accepted and released by the target",
            labels: &["event"],
            numbers: Numbers::Counters(&TARGET_SOCKETS),
        },
        NumberFamily {
            name: "target_live_sockets",
            help: "IP sockets the target holds now; missing without a target",
            labels: &[],
            numbers: LIVE,
        },
        NumberFamily {
            name: "fd_failures",
            help: "Calls that failed because descriptors, buffers or memory were exhausted, all tasks",
            labels: &["call", "errno"],
            numbers: Numbers::Counters(&ALL_FAILURES),
        },
        NumberFamily {
            name: "target_fd_failures",
            help: "The same, of the target alone",
            labels: &["call", "errno"],
            numbers: Numbers::Counters(&TARGET_FAILURES),
        },
    ],
    in_summary: &[
        SummaryNumbers { name: "", numbers: Numbers::Counters(&TARGET_SOCKETS), zeros: true },
        SummaryNumbers { name: "live", numbers: LIVE, zeros: true },
        SummaryNumbers {
            name: "failed",
            numbers: Numbers::Counters(&TARGET_FAILURES),
            zeros: false,
        },
    ],
    maps: &[ProbeMap {
        name: "SOCKETS",
        entries: Entries::Fixed(SOCKET_SLOTS),
        value_bytes: size_of::<SocketEntry>(),
        begins: &[offset_of!(SocketEntry, sock) / 8],
    }],
    ..Probe::BASE
};

static SOCKET: RecordRow = RecordRow::new::<SocketRecord>(
    "socket",
    "A socket was released; `duration_ns` is its lifetime.",
    &[
        Field::flag("accepted", SOCKET_ACCEPTED, "accepted rather than created"),
        Field::flag(
            "preexisting",
            SOCKET_PREEXISTING,
            "older than the run, so that the lifetime is unknown",
        ),
        field!(SocketRecord.family, "family", "`AF_INET` (2) or `AF_INET6` (10)"),
        field!(
            SocketRecord.socket_type,
            "socket_type",
            "`SOCK_STREAM` (1), `SOCK_DGRAM` (2), ...; 0 when unknown"
        ),
    ],
)
.sampled()
.detail(|event| if event.flags & SOCKET_ACCEPTED != 0 { "accepted" } else { "created" }.to_owned());

static FD_FAILURE: RecordRow = RecordRow::new::<FdFailureRecord>(
    "fd_failure",
    "A socket, accept, connect or open failed because a resource was used up.",
    &[
        field!(FdFailureRecord.syscall, "syscall", "the system call", |number| {
            Some(FdSyscall::ALL.get(number as usize)?.name())
        }),
        field!(FdFailureRecord.errno, "errno", "positive errno"),
    ],
)
.sampled();
