//! How programs get into the kernel: hooks, programs, and tiers made of them.

use observer_ebpf::wire::{RecordKind, Slot, Stored};

/// How a program gets into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Entry of this kernel function, through a BPF trampoline.
    Fentry(&'static str),
    /// Return of this kernel function, through a BPF trampoline.
    Fexit(&'static str),
    /// BTF-typed raw tracepoint of this name, with at least this many arguments.
    TpBtf(&'static str, usize),
    /// Raw tracepoint of this name, with at least this many arguments.
    RawTracepoint(&'static str, usize),
    /// Entry of these kernel functions, through a breakpoint or ftrace.
    Kprobe(&'static [&'static str]),
    /// Return of these kernel functions, by the same.
    Kretprobe(&'static [&'static str]),
    /// Classic tracepoints `syscalls:PREFIX_CALL`, one for each call that this kernel has: the text
    /// for users, the prefix, and the calls.
    Syscalls(&'static str, &'static str, &'static [&'static str]),
    /// Software perf event `PERF_COUNT_SW_PAGE_FAULTS_MIN`, period 1, every CPU.
    PerfMinorFaults,
    /// Software perf event `PERF_COUNT_SW_PAGE_FAULTS_MAJ`, period 1, every CPU.
    PerfMajorFaults,
    /// cgroup hook `BPF_CGROUP_INET_SOCK_CREATE` at the root of cgroup v2.
    CgroupSockCreate,
    /// cgroup hook `BPF_CGROUP_INET_SOCK_RELEASE` at the root of cgroup v2.
    CgroupSockRelease,
}

impl Attach {
    /// Name of this kind of hook, for users.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Fentry(_) => "fentry",
            Self::Fexit(_) => "fexit",
            Self::TpBtf(..) => "tp_btf",
            Self::RawTracepoint(..) => "raw_tracepoint",
            Self::Kprobe(_) => "kprobe",
            Self::Kretprobe(_) => "kretprobe",
            Self::Syscalls(..) => "tracepoint",
            Self::PerfMinorFaults | Self::PerfMajorFaults => "perf_event",
            Self::CgroupSockCreate | Self::CgroupSockRelease => "cgroup_sock",
        }
    }

    /// The hook itself, for users.
    #[must_use]
    pub fn hook(self) -> String {
        match self {
            Self::Fentry(name)
            | Self::Fexit(name)
            | Self::TpBtf(name, _)
            | Self::RawTracepoint(name, _)
            | Self::Syscalls(name, ..) => name.to_owned(),
            Self::Kprobe(names) | Self::Kretprobe(names) => names.join(", "),
            Self::PerfMinorFaults => "PERF_COUNT_SW_PAGE_FAULTS_MIN".to_owned(),
            Self::PerfMajorFaults => "PERF_COUNT_SW_PAGE_FAULTS_MAJ".to_owned(),
            Self::CgroupSockCreate => "BPF_CGROUP_INET_SOCK_CREATE".to_owned(),
            Self::CgroupSockRelease => "BPF_CGROUP_INET_SOCK_RELEASE".to_owned(),
        }
    }

    /// Whether it slows down every system call of the host.
    #[must_use]
    pub const fn is_at_every_system_call(self) -> bool {
        match self {
            Self::Syscalls(..) => true,
            Self::TpBtf(name, _) | Self::RawTracepoint(name, _) => {
                matches!(name.as_bytes(), b"sys_enter" | b"sys_exit")
            }
            _ => false,
        }
    }

    /// Whether `perf_event_open` attaches it.
    #[must_use]
    pub const fn is_perf_event(self) -> bool {
        match self {
            Self::Kprobe(_)
            | Self::Kretprobe(_)
            | Self::Syscalls(..)
            | Self::PerfMinorFaults
            | Self::PerfMajorFaults => true,
            Self::Fentry(_)
            | Self::Fexit(_)
            | Self::TpBtf(..)
            | Self::RawTracepoint(..)
            | Self::CgroupSockCreate
            | Self::CgroupSockRelease => false,
        }
    }

    /// What the kernel does around a run of a program at this hook, nanoseconds: what published
    /// measurements give for empty programs, rounded up. The run time does not contain it.
    #[must_use]
    pub const fn around_ns(self) -> f64 {
        match self {
            Self::TpBtf(..) | Self::RawTracepoint(..) => 15.0,
            Self::Fentry(_) | Self::Fexit(_) => 25.0,
            Self::CgroupSockCreate | Self::CgroupSockRelease => 25.0,
            Self::Syscalls(..) => 70.0,
            Self::Kprobe(_) => 140.0,
            Self::PerfMinorFaults | Self::PerfMajorFaults => 150.0,
            Self::Kretprobe(_) => 250.0,
        }
    }
}

/// One BPF program of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name in the BPF object.
    pub name: &'static str,
    /// How it is attached.
    pub attach: Attach,
    /// What is missing without it.
    pub gives: &'static str,
    /// The kernel struct member that makes the program necessary; `None` when it always is.
    pub only_with: Option<(&'static str, &'static str)>,
    /// The part of a shared program that this probe needs: the name of the global that switches it
    /// on. Parts that no probe asks for are removed by the verifier.
    pub part: Option<&'static str>,
}

impl Program {
    pub(super) const fn new(name: &'static str, attach: Attach, gives: &'static str) -> Self {
        Self { name, attach, gives, only_with: None, part: None }
    }

    /// The same program, of which the probe needs only this part.
    pub(super) const fn part(self, global: &'static str) -> Self {
        Self { part: Some(global), ..self }
    }

    /// The same program, for kernels whose struct has this member.
    pub(super) const fn only_with(self, structure: &'static str, path: &'static str) -> Self {
        Self { only_with: Some((structure, path)), ..self }
    }
}

/// A kernel feature that a tier needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The kernel's own BTF, from which the verifier knows the types of arguments.
    OwnBtf,
    /// BPF trampolines at kernel functions.
    Fentry,
    /// kprobe events.
    Kprobe,
    /// Perf events.
    PerfEvents,
    /// tracefs, through which classic tracepoints are found (mounted if need be).
    Tracefs,
    /// cgroup v2, mounted.
    CgroupV2,
    /// A tracepoint of this name.
    Tracepoint(&'static str),
    /// A function of this name.
    Function(&'static str),
}

/// Members of the kernel's structs (and values of its enums) that are read together. Which ones they
/// are is in `kernel/offsets.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Members {
    /// Thread id and process id. Every program reads them.
    Ids,
    /// The command name.
    Comm,
    /// How many threads of the process are left.
    LiveThreads,
    /// The flags that mark kernel threads.
    TaskFlags,
    /// Who started the task.
    Ancestry,
    /// From an execution to the file that is executed.
    Executable,
    /// From a task to the id of its cgroup. No tier needs them: without them nothing is counted by
    /// cgroup.
    Cgroup,
    /// The scheduler's run delay, its clock, and the count of preemptions.
    RunDelay,
    /// Whether the task can run.
    State,
    /// From a descriptor to its socket.
    Descriptors,
    /// Family, type and the port at the other end of an IP socket.
    Sockets,
    /// Ports, address, state and the sequence numbers of a TCP connection.
    Connections,
    /// Which ABI the system call came through.
    CallAbi,
    /// Number and arguments of the system call.
    Registers,
    /// What signals, tracers and the freezer want of a thread.
    JobControl,
    /// From a thread that does not run to the registers with which it entered the kernel, and from a
    /// socket to its file.
    SavedRegisters,
    /// The lock of a thread's address space.
    MmapLock,
    /// Numbers of the events by which memory cgroups count faults.
    FaultEvents,
}

/// One way to attach a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its name in every output and for `--tier`, unique within the probe: that of the hooks which
    /// tell it from the others.
    pub name: &'static str,
    /// How it works, for users.
    pub about: &'static str,
    /// What the kernel must have for it.
    pub needs: &'static [Need],
    /// The kernel struct members that its programs read, besides [`Members::Ids`].
    pub reads: &'static [Members],
    /// The programs it attaches, begins before ends. A program that several probes share is loaded
    /// once.
    pub programs: &'static [Program],
}

/// What a tier costs a busy host, for the choice of probes. The budget goes by measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CostClass {
    /// It runs at rare events, or at events that take far longer than its programs.
    Low,
    /// It runs at frequent events, through hooks that cost tens of nanoseconds.
    Medium,
    /// It slows down every system call of the host, or runs at frequent events through hooks that
    /// cost a hundred nanoseconds and more.
    High,
}

impl CostClass {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl Tier {
    /// Its class of cost, for a probe that runs at frequent events or at rare ones.
    #[must_use]
    pub fn cost_class(&self, is_frequent: bool) -> CostClass {
        const DEAR_NS: f64 = 100.0;
        let any = |is: fn(&Program) -> bool| self.programs.iter().any(is);
        if any(|program| program.attach.is_at_every_system_call())
            || is_frequent && any(|program| program.attach.around_ns() >= DEAR_NS)
        {
            CostClass::High
        } else if is_frequent {
            CostClass::Medium
        } else {
            CostClass::Low
        }
    }
}

/// How many entries a map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// One for each CPU; the loader sets it.
    PerCpu,
    /// This many, as the object declares.
    Fixed(u32),
}

/// A map in which the programs of one probe keep something between two events: an array that user
/// space can map.
#[derive(Clone, Copy, Debug)]
pub struct ProbeMap {
    /// Its name in the BPF object.
    pub name: &'static str,
    /// How many values it has.
    pub entries: Entries,
    /// Bytes of a value, a multiple of eight.
    pub value_bytes: usize,
    /// The words of a value that hold the begin of something. They are cleared before a detached
    /// probe is attached again.
    pub begins: &'static [usize],
}

/// What the programs of a probe know about each thread between two events: in a table that is indexed
/// by thread id, or in the kernel's task-local storage.
#[derive(Clone, Copy, Debug)]
pub struct PerThread {
    /// The table's map.
    pub table: &'static str,
    /// The map for task-local storage.
    pub storage: &'static str,
    /// The global that is 1 when the state is in task-local storage.
    pub global: &'static str,
    /// Bytes of a table's entry.
    pub slot_bytes: usize,
    /// Bytes of a value in task-local storage.
    pub stored_bytes: usize,
    /// The words of a table's entry that hold the begin of something. They are cleared before a
    /// detached probe is attached again.
    pub begins: &'static [usize],
    /// The state is on a path that is too short for the cost of task-local storage.
    pub hot: bool,
    /// Where short stalls are summed up: the kind of record they are sent as, and where in a table's
    /// entry their [`Burst`](observer_ebpf::wire::Burst) is.
    pub burst: Option<(RecordKind, usize)>,
    /// Programs use it for tasks other than the current one. Only programs whose arguments are typed
    /// can then use task-local storage.
    pub of_arguments: bool,
}

impl PerThread {
    /// State `S`, with the names of table, storage and global.
    pub(super) const fn of<S>(names: [&'static str; 3], begins: &'static [usize]) -> Self {
        let [table, storage, global] = names;
        let (slot_bytes, stored_bytes) = (size_of::<Slot<S>>(), size_of::<Stored<S>>());
        let (hot, of_arguments) = (false, false);
        let burst = None;
        Self { table, storage, global, slot_bytes, stored_bytes, begins, hot, burst, of_arguments }
    }

    /// The same, on a short path.
    pub(super) const fn hot(self) -> Self {
        Self { hot: true, ..self }
    }

    /// The same, with a burst at this offset of a table's entry.
    pub(super) const fn burst(self, kind: RecordKind, offset: usize) -> Self {
        Self { burst: Some((kind, offset)), ..self }
    }

    /// The same, used for other tasks than the current one.
    pub(super) const fn of_arguments(self) -> Self {
        Self { of_arguments: true, ..self }
    }
}
