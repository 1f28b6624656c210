//! All maps. Sizes marked "loader" are set at load time. User space can map the state that outlives
//! an event, and clears it before a detached probe is attached again.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE},
    macros::{btf_map, map},
    maps::{Array, RingBuf},
};
use observer_ebpf::wire::{
    CgroupHistogram, CgroupTable, Config, Counts, FaultState, GENERATOR_EVENTS,
    GENERATOR_PROCESSES, GeneratorEvent, Histogram, IrqState, KernelLockState, MmSyscallState,
    PID_MAX_LIMIT, ReclaimState, RunqueueState, SCOPES, SERIES, SOCKET_SLOTS, SleepState, Slot,
    SocketEntry, StackState, Stored, TASK_SLOTS_MAX, UPROBE_COUNTERS,
};

/// Records on their way to user space (loader).
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(1 << 23, 0);

/// A map for values in task-local storage. aya-ebpf has no type for it; this is a definition in BTF
/// like those of its `btf_maps`.
#[repr(C)]
pub(crate) struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers are never followed; the loader reads only their types.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}

/// What each probe knows about a thread: a table of threads (loader), and task-local storage. The
/// loader chooses one of them.
macro_rules! thread_states {
    ($($table:ident, $storage:ident: $state:ident;)*) => {$(
        #[map]
        pub(crate) static $table: Array<Slot<$state>> =
            Array::with_max_entries(TASK_SLOTS_MAX, BPF_F_MMAPABLE);

        #[btf_map]
        pub(crate) static $storage: TaskStorage<Stored<$state>> = TaskStorage::new();
    )*};
}

thread_states! {
    RUNQUEUE, RUNQUEUE_STORAGE: RunqueueState;
    FAULTS, FAULTS_STORAGE: FaultState;
    MM_SYSCALLS, MM_SYSCALLS_STORAGE: MmSyscallState;
    RECLAIMS, RECLAIMS_STORAGE: ReclaimState;
    KERNEL_LOCKS, KERNEL_LOCKS_STORAGE: KernelLockState;
    SLEEPS, SLEEPS_STORAGE: SleepState;
    IRQ_BURSTS, IRQ_BURSTS_STORAGE: IrqState;
    STACK_STATES, STACK_STATES_STORAGE: StackState;
}

/// Histograms of the target and of everything else: by CPU, then scope, then series (loader). A
/// plain array indexed by CPU instead of a per-CPU map, so that user space maps it and reads
/// without system calls.
#[map]
pub(crate) static HISTOGRAMS: Array<Histogram> =
    Array::with_max_entries((SCOPES * SERIES) as u32, BPF_F_MMAPABLE);

/// Histograms of cgroups: by stripe, then row, then series (loader).
#[map]
pub(crate) static CGROUP_HISTOGRAMS: Array<CgroupHistogram> =
    Array::with_max_entries(SERIES as u32, BPF_F_MMAPABLE);

/// Which cgroup has which row.
#[map]
pub(crate) static CGROUPS: Array<CgroupTable> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One bit per process id: is it the target?
#[map]
pub(crate) static TARGETS: Array<u64> = Array::with_max_entries(PID_MAX_LIMIT / 64, BPF_F_MMAPABLE);

/// Live IP sockets.
#[map]
pub(crate) static SOCKETS: Array<SocketEntry> =
    Array::with_max_entries(SOCKET_SLOTS, BPF_F_MMAPABLE);

/// Counters by CPU (loader). A plain array, as for the histograms; and while a process reads a map
/// through the system call, the kernel leaves out classic tracepoints and kprobes on that CPU
/// (`bpf_disable_instrumentation`, include/linux/bpf.h).
#[map]
pub(crate) static COUNTS: Array<Counts> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Calls of the target at places in user-space binaries, by the cookie of the place.
#[map]
pub(crate) static UPROBE_CALLS: Array<u64> =
    Array::with_max_entries(UPROBE_COUNTERS, BPF_F_MMAPABLE);

/// What the load generator's processes did.
#[map]
pub(crate) static GENERATOR: Array<GeneratorEvent> =
    Array::with_max_entries(GENERATOR_EVENTS, BPF_F_MMAPABLE);

/// How many of their connections are in that log.
#[map]
pub(crate) static GENERATOR_CONNECTIONS: Array<u64> =
    Array::with_max_entries(GENERATOR_PROCESSES, BPF_F_MMAPABLE);

/// What user space may change while the programs run.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
