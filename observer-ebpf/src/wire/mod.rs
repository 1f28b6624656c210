//! Data layouts that the kernel side and user space share: one file for each record family, and one
//! block for each probe in `numbers.rs`.
//!
//! Every record starts with a [`Header`]; its `kind` says which family follows. All layouts are
//! `repr(C)`, have no padding (bytemuck's `Pod` proves it) and native endianness: the data never
//! leaves the host.

mod burst;
mod cgroup;
mod fault;
mod generator;
mod histogram;
mod irq;
mod kernel_lock;
mod mm_syscall;
mod numbers;
mod ran_instead;
mod reclaim;
mod request;
mod ring;
mod runqueue;
mod sleep;
mod socket;
mod softirq;
mod stack;
mod task;
mod uprobe;

pub use burst::*;
pub use cgroup::*;
pub use fault::*;
pub use generator::*;
pub use histogram::*;
pub use irq::*;
pub use kernel_lock::*;
pub use mm_syscall::*;
pub use numbers::*;
pub use ran_instead::*;
pub use reclaim::*;
pub use request::*;
pub use ring::*;
pub use runqueue::*;
pub use sleep::*;
pub use socket::*;
pub use softirq::*;
pub use stack::*;
pub use task::*;
pub use uprobe::*;

use bytemuck::{Pod, Zeroable};

/// Bytes of a command name, as the kernel keeps it (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 16;

/// Slots reserved for per-kind counters and floors (more than [`RecordKind::ALL`], so that adding
/// a kind does not change map sizes).
pub const KIND_SLOTS: usize = 32;

/// First 32 bytes of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Header {
    /// End of the stall (or the instant of the event), `CLOCK_MONOTONIC` nanoseconds
    /// (`bpf_ktime_get_ns`).
    pub end_ns: u64,
    /// Length in nanoseconds; 0 for instants.
    pub duration_ns: u64,
    /// Thread id in the initial pid namespace (`task_struct::pid`).
    pub tid: u32,
    /// Process id in the initial pid namespace (`task_struct::tgid`).
    pub tgid: u32,
    /// A [`RecordKind`] discriminant.
    pub kind: u16,
    /// Bits whose meaning belongs to the kind (constants beside each body).
    pub flags: u16,
    /// CPU the stall ended on.
    pub cpu: u32,
}

/// A layout that begins with a [`Header`] and is sent as one kind.
pub trait Record: Pod {
    /// The `kind` in its header: a [`RecordKind`] discriminant, or a number from
    /// [`OWN_KINDS`] on for what user space notes itself.
    const KIND: u16;
}

/// First kind that never comes from the kernel.
pub const OWN_KINDS: u16 = 1 << 8;

/// Why an event was not counted or not delivered. Indices into [`Counts::lost`], above the per-kind
/// ring losses: `lost[kind]` counts records of that kind that found the ring full,
/// `lost[KIND_SLOTS + LossKind]` counts the rest.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LossKind {
    /// Two live threads share an entry of a table of threads, and one overwrote what the other
    /// needed: a begin, so that one stall is missing from the histograms; or what tells the kind and
    /// the earlier parts of a wait for a CPU, which is then counted as a wake-up with its last part.
    TaskSlot = 0,
    /// No row of the cgroup histograms was free for a cgroup: its threads are counted for the host,
    /// and in the row for all other cgroups. Counted once for each thread that looked for it.
    CgroupSlot = 1,
    /// The socket table had no free slot: one socket's lifetime and ownership are unknown.
    SocketSlot = 2,
    /// An end without a begin (the begin happened before the probe was attached, or was lost).
    EndWithoutBegin = 3,
    /// A system call of the 32-bit ABI, whose numbers differ: not counted as `mm_syscall`.
    CompatSyscall = 4,
    /// A memory-management call whose end was not seen: the kernel missed a return (kretprobe), or
    /// the call never returned. Or a soft interrupt that was preempted by another one on its CPU.
    BeginWithoutEnd = 5,
    /// A wait whose begin is wrong in the kernel itself: the thread slept, was still on its run
    /// queue (delayed dequeue, `sched_entity::sched_delayed`, Linux 6.12), and was moved to another
    /// run queue; the kernel counts it as waiting from then on.
    SleepBookedAsWait = 6,
    /// A run of one of observer's programs that the kernel skipped, because that CPU was already
    /// running a program (`recursion_misses`, kernel/bpf/syscall.c `bpf_prog_show_fdinfo`). Read by
    /// user space; kernels before Linux 6.7 do not count it for classic tracepoints and kprobes.
    ProgramMissed = 7,
    /// The kernel gave no task-local storage for the state of a thread: it had no memory at that
    /// moment, or was already making storage on that CPU. One begin, or one wait, is missing.
    ThreadStorage = 8,
    /// The table of connections had no free entry: the requests of one connection are not known until
    /// there is one.
    ConnectionSlot = 9,
    /// A sleep whose end was not seen: the kernel switched to the thread without an event. A few in a
    /// thousand switches of some virtual machines are like that.
    SwitchMissed = 10,
    /// The threads of more cgroups were throttled on a CPU than are kept: for how long the CPU limit held
    /// those of one is not known until it is throttled again.
    ThrottleSlot = 11,
}

impl LossKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::TaskSlot,
        Self::CgroupSlot,
        Self::SocketSlot,
        Self::EndWithoutBegin,
        Self::CompatSyscall,
        Self::BeginWithoutEnd,
        Self::SleepBookedAsWait,
        Self::ProgramMissed,
        Self::ThreadStorage,
        Self::ConnectionSlot,
        Self::SwitchMissed,
        Self::ThrottleSlot,
    ];

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TaskSlot => "task_slot",
            Self::CgroupSlot => "cgroup_slot",
            Self::SocketSlot => "socket_slot",
            Self::EndWithoutBegin => "end_without_begin",
            Self::CompatSyscall => "compat_syscall",
            Self::BeginWithoutEnd => "begin_without_end",
            Self::SleepBookedAsWait => "sleep_booked_as_wait",
            Self::ProgramMissed => "program_missed",
            Self::ThreadStorage => "thread_storage",
            Self::ConnectionSlot => "connection_slot",
            Self::SwitchMissed => "switch_missed",
            Self::ThrottleSlot => "throttle_slot",
        }
    }

    /// Whether the programs know whose loss it is. If not, the whole loss may be the target's.
    #[must_use]
    pub const fn owner_is_known(self) -> bool {
        // The kernel does not say for which task it skipped a program.
        !matches!(self, Self::ProgramMissed)
    }
}

/// Slots reserved for the counters by [`LossKind`].
pub const LOSS_KIND_SLOTS: usize = 32;

/// Entries of [`Counts::lost`].
pub const LOSS_SLOTS: usize = KIND_SLOTS + LOSS_KIND_SLOTS;

/// Entries of [`Counts::emitted`].
pub const EMITTED_SLOTS: usize = KIND_SLOTS;

/// All counters of one CPU, a value of the `COUNTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Counts {
    /// Records submitted, by [`RecordKind`].
    pub emitted: [u64; EMITTED_SLOTS],
    /// Records that found the ring full, by [`RecordKind`]; from [`KIND_SLOTS`] on, by
    /// [`LossKind`].
    pub lost: [u64; LOSS_SLOTS],
    /// The part of the losses by [`LossKind`] that concerns tasks of the target. (Records exist for
    /// the target alone, so that a full ring always loses the target's.)
    pub lost_target: [u64; LOSS_KIND_SLOTS],
    /// By [`Counter`].
    pub counters: [u64; COUNTER_SLOTS],
    /// The thread that this CPU went to at the last context switch that had an event, with
    /// [`HAS_SWITCHED`]; 0 before the first one. As each of the two programs saw it that can be there.
    pub switched_to: [u64; 2],
    /// How long ago the thread got the CPU whose arrival is being completed, nanoseconds; 0 where it gets
    /// the CPU just now.
    pub arrived_ago_ns: u64,
    /// The thread (`task_struct`) whose wait a function is to look at.
    pub waiting_task: u64,
}

/// In [`Counts::switched_to`]: there was a context switch. The idle task has the id 0.
pub const HAS_SWITCHED: u64 = 1 << 32;

/// What user space may change while the programs run, the only value of the `CONFIG` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// Stalls of the target shorter than this are counted, not sent; by [`RecordKind`].
    pub floor_ns: [u64; KIND_SLOTS],
    /// If the ring holds more bytes than this, user space is woken early.
    pub wake_bytes: u64,
    /// Not 0 when user space has been woken since it last began to drain. The kernel side sets it,
    /// and user space clears it.
    pub woken: u64,
    /// Not 0 while observer runs a load generator, whose processes are logged.
    pub generator_watched: u64,
    /// Written by the kernel side: events of the generator's processes so far, those without a place
    /// in their log included ([`GeneratorEvent`]).
    pub generator_events: u64,
    /// Which program at the exit of all system calls counts accepted sockets and failures: a
    /// [`CallExit`] discriminant. Probes attached by different tiers may have both there, and a
    /// third one at the calls themselves.
    pub descriptor_calls_at: u64,
    /// Not 0 while the programs log nothing, because user space has enough to read.
    pub log_paused: u64,
    /// Processes that get this name join the target: NUL padded; 0 where it has no name.
    pub target_comm: [u8; COMM_LEN],
    /// Processes that execute the file with this inode number (`inode::i_ino`) join the target; 0
    /// where it has no file.
    pub target_inode: u64,
    /// The device of that file (`super_block::s_dev`).
    pub target_device: u64,
    /// observer's own process: it and what it starts never join.
    pub observer_tgid: u64,
    /// The present epoch of the state in task-local storage ([`Stored`]); by [`RecordKind`].
    pub epoch: [u64; KIND_SLOTS],
    /// Of [`REQUEST_BLOCKS`] blocks of time, requests are recorded in so many.
    pub request_blocks: u64,
}

/// A program at the exit of all system calls.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallExit {
    /// None: programs at the calls themselves do it.
    None = 0,
    /// The one whose arguments the verifier types.
    Typed = 1,
    /// The one that reads through helpers.
    Raw = 2,
}
