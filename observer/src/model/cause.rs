//! Causes, as data: why a thread could not continue, or why a request was slow. One row each; every
//! output takes its names, sentences, advice and colours from the rows.

use std::sync::{Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What sort of time a cause stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CauseKind {
    /// A thread of the target had work and could not continue.
    Stall,
    /// The target's own work or waiting.
    OwnWork,
    /// Something outside the target's host or process, such as the load generator.
    Outside,
    /// What no watched cause explains.
    Rest,
}

/// What is known about a cause.
#[derive(Clone, Copy, Debug)]
pub struct CauseInfo {
    /// The name in every output.
    pub id: &'static str,
    /// The name for users, a few words.
    pub title: &'static str,
    /// Continues "Requests were slow because".
    pub sentence: &'static str,
    /// What to do about it.
    pub advice: &'static str,
    /// The probe that sees its stalls.
    pub probe: Option<&'static str>,
    /// The kind of record that its stalls are sent as.
    pub record: Option<&'static str>,
    /// Colour in all pictures, `#rrggbb`.
    pub color: &'static str,
    /// Sort of time.
    pub kind: CauseKind,
    /// Stands in front of what its stalls waited in, or for whom; empty where its records do not say it.
    pub object: &'static str,
}

/// A cause: a row of [`CAUSES`], or an id read from a file that another version wrote.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cause(u16);

macro_rules! causes {
    ($($constant:ident { $($field:ident: $value:expr),+ $(,)? })+) => {
        /// All causes of this version. The order is that of the outputs; of two stalls of a thread
        /// that begin and end together, the one that comes first here counts as the inner one.
        pub static CAUSES: &[CauseInfo] = &[$(CauseInfo { $($field: $value),+ }),+];

        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u16)]
        enum Row { $($constant),+ }

        impl Cause {
            $(
                #[doc = concat!("The row `", stringify!($constant), "` of [`CAUSES`].")]
                pub const $constant: Self = Self(Row::$constant as u16);
            )+
        }
    };
}

causes! {
    CPU_THROTTLE {
        id: "cpu_throttle",
        title: "Held by a CPU limit",
        sentence: "threads were ready to run, but the CPU limit of their cgroup was used up",
        advice: "Raise the limit (cpu.max, or cpu.cfs_quota_us on cgroup v1; limits.cpu in Kubernetes), \
                 or remove it where requests reserve enough CPU time. If the service is idle on average, \
                 short bursts use up the limit of a period: allow bursts (cpu.max.burst, \
                 cpu.cfs_burst_us), or let fewer threads work at a time, for instance no more than the \
                 limit has CPUs (GOMAXPROCS, worker processes, pool sizes).",
        probe: Some("runqueue"),
        record: Some("runqueue"),
        color: "#d35400",
        kind: CauseKind::Stall,
        object: "",
    }
    RUNQUEUE_OTHER {
        id: "runqueue_other",
        title: "Waiting for a CPU that others had",
        sentence: "threads were ready to run, but threads of other processes had the CPU",
        advice: "Give the service more CPU time: move or limit the processes that ran instead (see \
                 the slowest requests), pin the service to CPUs of its own, or add CPUs.",
        probe: Some("runqueue"),
        record: Some("runqueue"),
        color: "#2471a3",
        kind: CauseKind::Stall,
        object: "the CPU was with",
    }
    RUNQUEUE_SELF {
        id: "runqueue_self",
        title: "Waiting for a CPU that the service had itself",
        sentence: "threads were ready to run, but other threads of the service had the CPU",
        advice: "The service competes with itself: give it more CPUs, or let it work with fewer threads \
                 at a time, and profile what they compute.",
        probe: Some("runqueue"),
        record: Some("runqueue"),
        color: "#1a5276",
        kind: CauseKind::Stall,
        object: "the CPU was with",
    }
    RUNQUEUE_IDLE {
        id: "runqueue_idle",
        title: "Waiting for an idle CPU",
        sentence: "threads were ready to run, and did not, although their CPU was idle",
        advice: "Waits of milliseconds come from a hypervisor that runs something else, or, on a kernel that \
                 does not tell, from a CPU limit (compare nr_throttled in cpu.stat of the service's \
                 cgroup); shorter ones from CPUs that wake up from deep idle states.",
        probe: Some("runqueue"),
        record: Some("runqueue"),
        color: "#85c1e9",
        kind: CauseKind::Stall,
        object: "",
    }
    RUNQUEUE {
        id: "runqueue",
        title: "Waiting for a CPU",
        sentence: "threads were ready to run and did not, and it is not known who had the CPU",
        advice: "Give the service more CPU time: look for threads that ran instead (perf sched, top), \
                 pin the service to CPUs of its own, or add CPUs.",
        probe: Some("runqueue"),
        record: Some("runqueue"),
        color: "#5d6d7e",
        kind: CauseKind::Stall,
        object: "",
    }
    RECLAIM_DIRECT {
        id: "reclaim_direct",
        title: "Reclaiming host memory",
        sentence: "threads had to free memory themselves because the host was short of it",
        advice: "Leave more memory free on the host: limit what other processes use, raise \
                 vm.watermark_scale_factor so that kswapd starts earlier, or add memory.",
        probe: Some("reclaim"),
        record: Some("reclaim"),
        color: "#b9770e",
        kind: CauseKind::Stall,
        object: "",
    }
    RECLAIM_MEMCG {
        id: "reclaim_memcg",
        title: "Reclaiming cgroup memory",
        sentence: "threads had to free memory themselves because their memory cgroup was at its \
                   limit",
        advice: "Raise memory.high and memory.max of the service's cgroup, or make the service \
                 use less memory, page cache included.",
        probe: Some("reclaim"),
        record: Some("reclaim"),
        color: "#c0392b",
        kind: CauseKind::Stall,
        object: "",
    }
    COMPACTION {
        id: "compaction",
        title: "Compacting memory",
        sentence: "threads had to compact memory to find a large free block",
        advice: "Write `defer` or `madvise` to /sys/kernel/mm/transparent_hugepage/defrag, or \
                 leave more memory free.",
        probe: Some("reclaim"),
        record: Some("compaction"),
        color: "#7d3c98",
        kind: CauseKind::Stall,
        object: "",
    }
    MMAP_LOCK {
        id: "mmap_lock",
        title: "Waiting for the address space",
        sentence: "threads waited for the lock of their address space (mmap_lock), which other threads of the service had",
        advice: "See in the slowest requests in which call the thread was that had it. Threads of a process share one \
                 lock for mmap, munmap, mprotect, brk and madvise: map less often and smaller pieces at a time, let the \
                 allocator keep memory (M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in glibc, decay times in jemalloc), or \
                 divide the work among processes. Programs that read /proc/PID/maps or smaps of the service take \
                 the lock as well.",
        probe: Some("kernel_lock"),
        record: Some("kernel_lock"),
        color: "#6e2c00",
        kind: CauseKind::Stall,
        object: "the thread that had it was in",
    }
    KERNEL_LOCK {
        id: "kernel_lock",
        title: "Waiting for a lock in the kernel",
        sentence: "threads waited for locks in the kernel that other threads had",
        advice: "See in the slowest requests in which system call: threads that work on the same file, directory, pipe \
                 or device wait for each other there. Let fewer threads do that at a time, or give each its own. \
                 `perf lock contention -ab` tells which locks they are.",
        probe: Some("kernel_lock"),
        record: Some("kernel_lock"),
        color: "#4a235a",
        kind: CauseKind::Stall,
        object: "threads waited for",
    }
    FAULT_MINOR {
        id: "fault_minor",
        title: "Minor page faults",
        sentence: "threads touched pages that were not mapped yet",
        advice: "Touch the memory before the load begins (MAP_POPULATE or a warm-up), and let the \
                 allocator keep memory instead of returning it to the kernel.",
        probe: Some("fault"),
        record: Some("fault"),
        color: "#148f77",
        kind: CauseKind::Stall,
        object: "",
    }
    FAULT_MAJOR {
        id: "fault_major",
        title: "Major page faults",
        sentence: "threads waited for pages to be read from a device",
        advice: "Keep the service's pages in memory: read its files before the load begins, lock \
                 them with mlock, set memory.swap.max to 0, or add memory.",
        probe: Some("fault"),
        record: Some("fault"),
        color: "#1e8449",
        kind: CauseKind::Stall,
        object: "",
    }
    MM_SYSCALL {
        id: "mm_syscall",
        title: "Memory-mapping system calls",
        sentence: "threads were inside mmap, munmap, mremap, brk, mprotect or madvise",
        advice: "Make these calls less often: raise the allocator's limits for returning memory \
                 (M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in glibc, decay times in jemalloc).",
        probe: Some("mm_syscall"),
        record: Some("mm_syscall"),
        color: "#ca6f1e",
        kind: CauseKind::Stall,
        object: "",
    }
    SOFTIRQ {
        id: "softirq",
        title: "Soft interrupts",
        sentence: "the kernel handled packets, timers and other soft interrupts in the threads' time",
        advice: "See in the slowest requests which vector it was. For net_rx and net_tx, let CPUs \
                 that the service does not use handle the packets (the affinity of the network \
                 device's interrupts, or rps_cpus), or move a load generator that sends over \
                 loopback to another host. For timer, rcu and sched, isolate the service's CPUs \
                 (nohz_full, rcu_nocbs).",
        probe: Some("softirq"),
        record: Some("softirq"),
        color: "#b03a80",
        kind: CauseKind::Stall,
        object: "",
    }
    IRQ {
        id: "irq",
        title: "Hard interrupts",
        sentence: "the CPUs handled interrupts of devices, timers and other CPUs in the threads' time",
        advice: "See in the slowest requests of which kind. For a device, let CPUs that the service does not use handle \
                 its interrupts (/proc/irq/NUMBER/smp_affinity, irqbalance). For timer, look for profilers and for programs \
                 with many timers, and isolate the service's CPUs (nohz_full). TLB shootdowns come from threads of the \
                 service itself that unmap or protect memory: let them do so less often, or at a larger piece at once. \
                 For call and reschedule, keep other programs off the service's CPUs.",
        probe: Some("irq"),
        record: Some("irq"),
        color: "#78281f",
        kind: CauseKind::Stall,
        object: "the interrupts were for",
    }
    BLOCK_IO {
        id: "block_io",
        title: "Waiting for a disk",
        sentence: "threads slept until a block device had read or written something",
        advice: "See in the slowest requests in which system call. For fsync and fdatasync, write less often \
                 or outside of requests (group commits, a thread of its own), or to a faster device. For \
                 reads, keep the data in memory. For writes, see whether the host writes back too much at \
                 a time (vm.dirty_bytes, vm.dirty_background_bytes). The section about disks says how busy they \
                 were and how long a request took, and io.stat of the cgroups who uses them.",
        probe: Some("sleep"),
        record: Some("sleep"),
        color: "#196f3d",
        kind: CauseKind::Stall,
        object: "threads waited in",
    }
    STOPPED {
        id: "stopped",
        title: "Stopped or frozen",
        sentence: "threads were held by a signal, a debugger or the freezer of their cgroup",
        advice: "Find out who stops the service: see in the slowest requests whether it is a signal or a \
                 debugger (SIGSTOP, gdb, strace; TracerPid in /proc/PID/status), or the freezer of its \
                 cgroup (docker pause, a snapshot or a checkpoint).",
        probe: Some("sleep"),
        record: Some("sleep"),
        color: "#873600",
        kind: CauseKind::Stall,
        object: "threads were held by",
    }
    LOCK_WAIT {
        id: "lock_wait",
        title: "Waiting for a lock",
        sentence: "threads waited for locks that other threads of the service had",
        advice: "See in the slowest requests which lock it was, and which thread ended the wait: that one had the \
                 lock. Let it do less while it has the lock (no system calls, no work that does not need it), \
                 split the lock, or let fewer threads need it. A function that wakes others up, high in a \
                 profile of CPU time, is not yet a contended lock; this is the time that requests waited for one.",
        probe: Some("sleep"),
        record: Some("sleep"),
        color: "#7b241c",
        kind: CauseKind::OwnWork,
        object: "threads waited for",
    }
    SERVICE_WAIT {
        id: "service_wait",
        title: "The service waited",
        sentence: "threads slept in a system call of the service's own",
        advice: "See in the slowest requests in which system call: a sleep, a lock (futex), or an answer \
                 of another service. Look there, or let the service wait less often.",
        probe: Some("sleep"),
        record: Some("sleep"),
        color: "#5499c7",
        kind: CauseKind::OwnWork,
        object: "the service waited in",
    }
    SERVICE_CPU {
        id: "service_cpu",
        title: "The service computed",
        sentence: "threads of the service worked on the request, or on the one before it",
        advice: "Profile the service while it handles slow requests, for instance with perf record.",
        probe: None,
        record: None,
        color: "#45b39d",
        kind: CauseKind::OwnWork,
        object: "",
    }
    NETWORK {
        id: "network",
        title: "Network and client",
        sentence: "the time passed on the way to the service and back, or in the load generator",
        advice: "Compare with a load generator on the same host, look at retransmissions (nstat), and \
                 give the load generator CPUs of its own. Where clients waited for the rest of a reply, the service \
                 wrote it in several calls: the kernel keeps a small last part until the client has acknowledged the \
                 first, which takes it 40 ms. Write each reply in one call (a buffer, writev, TCP_CORK), or set \
                 TCP_NODELAY.",
        probe: None,
        record: None,
        color: "#af7ac5",
        kind: CauseKind::Outside,
        object: "clients waited for",
    }
    LOAD_GENERATOR {
        id: "load_generator",
        title: "Load generator",
        sentence: "the load generator fell behind its schedule",
        advice: "Run the load generator on another host or on CPUs of its own, or lower its rate.",
        probe: None,
        record: None,
        color: "#566573",
        kind: CauseKind::Outside,
        object: "",
    }
    UNEXPLAINED {
        id: "unexplained",
        title: "Unexplained",
        sentence: "no watched cause accounts for this part",
        advice: "Look at what observer does not watch: locks, the network, the service's own work, and \
                 the services that it calls.",
        probe: None,
        record: None,
        color: "#aab2bb",
        kind: CauseKind::Rest,
        object: "",
    }
}

/// Ids of other versions kept apart; any more share one row, so that no file can use up memory.
const UNKNOWN_MAX: usize = 1_000;
/// Characters kept of an id that was read from a file.
const ID_CHARACTERS: usize = 64;

/// Causes that were read from files and are not in [`CAUSES`].
fn unknown() -> &'static Mutex<Vec<&'static CauseInfo>> {
    static UNKNOWN: OnceLock<Mutex<Vec<&'static CauseInfo>>> = OnceLock::new();
    UNKNOWN.get_or_init(Mutex::default)
}

impl Cause {
    /// All causes of this version.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CAUSES.len() as u16).map(Self)
    }

    /// The cause of this id. An id that this version does not know becomes a cause that has no more
    /// than its name; characters that no id has are replaced.
    #[must_use]
    pub fn from_id(id: &str) -> Self {
        if let Some(known) = CAUSES.iter().position(|info| info.id == id) {
            return Self(known as u16);
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() || "_-.:".contains(c) { c } else { '?' };
        let mut id: String = id.chars().take(ID_CHARACTERS).map(plain).collect();
        let mut rows = unknown().lock().unwrap_or_else(PoisonError::into_inner);
        if rows.len() >= UNKNOWN_MAX {
            "unknown".clone_into(&mut id);
        }
        let row = rows.iter().position(|info| info.id == id).unwrap_or_else(|| {
            let id: &'static str = id.leak();
            rows.push(Box::leak(Box::new(CauseInfo {
                id,
                title: id,
                sentence: "of a cause that this version of observer does not know",
                advice: "Read the result with the version of observer that wrote it.",
                probe: None,
                record: None,
                color: "#808b96",
                kind: CauseKind::Outside,
                object: "",
            })));
            rows.len() - 1
        });
        Self((CAUSES.len() + row) as u16)
    }

    /// Its row.
    #[must_use]
    pub fn info(self) -> &'static CauseInfo {
        let index = self.index();
        if let Some(info) = CAUSES.get(index) {
            return info;
        }
        let rows = unknown().lock().unwrap_or_else(PoisonError::into_inner);
        rows.get(index - CAUSES.len()).copied().unwrap_or(&CAUSES[Self::UNEXPLAINED.index()])
    }

    /// The name in every output.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.info().id
    }

    /// Position of its row in [`CAUSES`]; beyond the end for a cause of another version.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// A thread of the target had work and could not continue.
    #[must_use]
    pub fn is_stall(self) -> bool {
        self.info().kind == CauseKind::Stall
    }

    /// A thread slept for something. What it slept for within a stall, that stall is the reason of.
    #[must_use]
    pub fn is_sleep(self) -> bool {
        matches!(self, Self::SERVICE_WAIT | Self::LOCK_WAIT | Self::BLOCK_IO)
    }

    /// Its intervals come as records: stalls, and what the service waited for.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        self.info().record.is_some()
    }

    /// Its intervals come as this kind of record: one by one, or short ones summed up (`fault_burst` for
    /// `fault`).
    #[must_use]
    pub fn comes_as(self, kind: &str) -> bool {
        self.info().record == Some(kind.strip_suffix("_burst").unwrap_or(kind))
    }

    /// The part that no watched cause explains.
    #[must_use]
    pub fn is_rest(self) -> bool {
        self.info().kind == CauseKind::Rest
    }
}

impl std::fmt::Debug for Cause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Ok(Self::from_id(&id))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_whole_and_have_ids_of_their_own() {
        let ids: BTreeSet<&str> = CAUSES.iter().map(|info| info.id).collect();
        assert_eq!(ids.len(), CAUSES.len());
        let colors: BTreeSet<&str> = CAUSES.iter().map(|info| info.color).collect();
        assert_eq!(colors.len(), CAUSES.len(), "two causes of one colour look the same");
        for (info, cause) in CAUSES.iter().zip(Cause::all()) {
            assert_eq!(cause, Cause::from_id(info.id));
            assert!(info.id.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", info.id);
            let hex = info.color.strip_prefix('#').expect("a colour");
            assert!(hex.len() == 6 && u32::from_str_radix(hex, 16).is_ok(), "{}", info.color);
            assert!(info.advice.ends_with('.') && !info.sentence.ends_with('.'), "{}", info.id);
            assert!(info.kind != CauseKind::Stall || info.probe.is_some(), "{}", info.id);
            assert_eq!(info.probe.is_some(), info.record.is_some(), "{}", info.id);
        }
        assert_eq!(CAUSES.iter().filter(|info| info.kind == CauseKind::Rest).count(), 1);
    }

    #[test]
    fn an_id_of_another_version_keeps_its_name() {
        let text = serde_json::to_string(&Cause::MM_SYSCALL).expect("text");
        assert_eq!(text, "\"mm_syscall\"");
        let later: Cause = serde_json::from_str("\"steal\"").expect("any id");
        assert_eq!(later.name(), "steal");
        assert_eq!(later, Cause::from_id("steal"));
        assert_ne!(later, Cause::from_id("block_io"));
        assert!(!later.is_stall() && !later.is_rest());
        assert_eq!(Cause::from_id("<b>\u{1b}[2J").name(), "?b???2J");
        assert_eq!(Cause::from_id(&"x".repeat(999)).name().len(), ID_CHARACTERS);
    }
}
