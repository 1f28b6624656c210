//! All maps. Sizes marked "loader" are set at load time. State that outlives an event can be mapped
//! by user space, which clears it before a detached probe is attached again.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, RingBuf},
};
use observer_ebpf::wire::{
    CGROUP_SLOTS_MAX, Config, Counts, Histogram, MemoryState, PID_MAX_LIMIT, SERIES, SOCKET_SLOTS,
    SocketEntry, TASK_SLOTS_MAX, TaskState,
};

/// Records on their way to user space (loader).
#[map]
pub(crate) static RING: RingBuf = RingBuf::with_byte_size(1 << 23, 0);

/// State per thread (loader).
#[map]
pub(crate) static TASKS: Array<TaskState> = Array::with_max_entries(TASK_SLOTS_MAX, BPF_F_MMAPABLE);

/// Reclaim and compaction per thread (loader).
#[map]
pub(crate) static MEMORY: Array<MemoryState> =
    Array::with_max_entries(TASK_SLOTS_MAX, BPF_F_MMAPABLE);

/// Histograms: CPU-major, then cgroup slot, then series (loader). A plain array indexed by CPU
/// instead of a per-CPU map, so that user space maps it and reads without system calls.
#[map]
pub(crate) static HISTOGRAMS: Array<Histogram> =
    Array::with_max_entries(CGROUP_SLOTS_MAX * SERIES as u32, BPF_F_MMAPABLE);

/// Cgroup id of each cgroup slot, 0 when free.
#[map]
pub(crate) static CGROUPS: Array<[u64; CGROUP_SLOTS_MAX as usize]> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One bit per process id: is it the target?
#[map]
pub(crate) static TARGETS: Array<u64> = Array::with_max_entries(PID_MAX_LIMIT / 64, BPF_F_MMAPABLE);

/// Live IP sockets.
#[map]
pub(crate) static SOCKETS: Array<SocketEntry> =
    Array::with_max_entries(SOCKET_SLOTS, BPF_F_MMAPABLE);

/// Counters by CPU (loader). A plain array, as for the histograms; and while somebody reads a map
/// through the system call, the kernel leaves out classic tracepoints and kprobes on that CPU
/// (`bpf_disable_instrumentation`, include/linux/bpf.h).
#[map]
pub(crate) static COUNTS: Array<Counts> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// What user space may change while the programs run.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);
