//! Gathers the facts that the doctor judges.

use std::path::{Path, PathBuf};

use crate::host::cgroups::{Cgroups, Layout};
use crate::host::perf_counters::CounterKind;
use crate::host::system::{self, Lockdown};
use crate::host::{CpuCgroups, process};
use crate::kernel::support::KernelSupport;
use crate::kernel::{KERNEL_BTF, MapPlan, RING_BYTES, ThreadPlaces};
use crate::model::{CpuLimit, Tgid, WhyNot};
use crate::probe::ProbeOptions;
use crate::session::memory::Memory;

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h): the inode of the initial pid namespace.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Everything that the doctor judges.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// CPUs online.
    pub cpus_online: usize,
    /// CPUs that could be online.
    pub cpus_possible: usize,
    /// Size of the kernel's BTF, or of the file used instead.
    pub btf_bytes: Option<u64>,
    /// The BTF file, if one is used instead of the kernel's.
    pub btf_file: Option<PathBuf>,
    /// Effective user id.
    pub euid: u32,
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// Whether a chosen probe has a tier with hooks of cgroups.
    pub uses_cgroup_hooks: bool,
    /// Whether this is the initial pid namespace, whose ids the kernel's records contain.
    pub initial_pid_namespace: bool,
    /// Lockdown.
    pub lockdown: Lockdown,
    /// The maps, and the kernel memory that each will take.
    pub maps: Vec<MapPlan>,
    /// Largest number of threads that the kernel allows.
    pub threads_max: u32,
    /// Where the programs keep what they know about each thread.
    pub thread_places: ThreadPlaces,
    /// The kernel can filter system calls.
    pub call_filter: bool,
    /// The memory of a run.
    pub memory: Memory,
    /// `net.core.bpf_jit_enable`.
    pub bpf_jit: Option<u64>,
    /// What the kernel supports.
    pub support: KernelSupport,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i64>,
    /// Cgroup layout.
    pub cgroup_layout: Layout,
    /// The member that the kernel's types lack on the way from a thread to its cgroup.
    pub cgroup_member_missing: Option<String>,
    /// Where memory is limited.
    pub memory_hierarchy: Option<PathBuf>,
    /// Where version 2 is mounted.
    pub unified_mount_point: Option<PathBuf>,
    /// The tightest limit of CPU time on observer's own cgroup or one above it, with the kernel's file.
    pub cpu_limit: Option<(PathBuf, CpuLimit)>,
    /// Clock source.
    pub clock_source: Option<String>,
    /// Distance of observer's monotonic clock from the kernel's, nanoseconds: a time namespace.
    pub namespace_offset_ns: Result<i64, String>,
    /// `kernel.pid_max`.
    pub pid_max: u32,
    /// Where tracefs is mounted.
    pub tracefs: Option<PathBuf>,
    /// `kernel.task_delayacct`.
    pub delay_accounting: Option<bool>,
    /// Swap.
    pub swap_bytes: Option<u64>,
    /// Transparent huge pages.
    pub transparent_hugepages: Option<String>,
    /// Pressure stall information.
    pub pressure_stall_information: bool,
    /// Counters of threads, each with why it cannot count; empty where they were not tried.
    pub counters: Vec<(&'static CounterKind, Result<(), WhyNot>)>,
}

impl Facts {
    /// Examines the host. `support` is what was found by trying.
    #[must_use]
    pub fn gather(probes: &ProbeOptions, support: KernelSupport, places: ThreadPlaces) -> Self {
        let btf = probes.btf.as_deref();
        let uname = system::uname();
        let cgroups = Cgroups::read();
        let status = process::status(Tgid(std::process::id())).unwrap_or_default();
        Self {
            release: uname.release,
            machine: uname.machine,
            cpus_online: system::online_cpus().len(),
            cpus_possible: system::possible_cpus().len(),
            btf_bytes: std::fs::metadata(btf.unwrap_or(Path::new(KERNEL_BTF)))
                .ok()
                .map(|metadata| metadata.len()),
            btf_file: btf.map(PathBuf::from),
            euid: rustix::process::geteuid().as_raw(),
            capabilities: status.effective_capabilities,
            uses_cgroup_hooks: probes.selection.uses_cgroup_hooks(),
            initial_pid_namespace: std::fs::read_link("/proc/self/ns/pid")
                .is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE),
            lockdown: system::lockdown(),
            maps: crate::kernel::plan(RING_BYTES, false, &places),
            threads_max: system::threads_max(),
            thread_places: places,
            call_filter: crate::call_filter::is_available(),
            memory: Memory::of_run(RING_BYTES, false),
            bpf_jit: system::read_trimmed("/proc/sys/net/core/bpf_jit_enable")
                .and_then(|text| text.parse().ok()),
            support,
            perf_event_paranoid: system::perf_event_paranoid(),
            cgroup_layout: cgroups.layout(),
            cgroup_member_missing: None,
            memory_hierarchy: cgroups.memory().map(|hierarchy| hierarchy.mount_point.clone()),
            unified_mount_point: cgroups.unified_mount_point().map(PathBuf::from),
            cpu_limit: CpuCgroups::of(&cgroups)
                .and_then(|cgroups| cgroups.tightest(Tgid(std::process::id()))),
            clock_source: system::clock_source(),
            namespace_offset_ns: crate::clock::namespace_offset_ns(),
            pid_max: system::pid_max(),
            tracefs: system::tracefs().map(PathBuf::from),
            delay_accounting: system::delay_accounting(),
            swap_bytes: system::swap_total_bytes(),
            transparent_hugepages: system::transparent_hugepages(),
            pressure_stall_information: system::has_pressure_stall_information(),
            counters: Vec::new(),
        }
    }

    /// Takes in what was found by loading: where the programs keep what they know about each thread,
    /// with the maps for it, and what is missing for the cgroups.
    pub(super) fn add_loaded(&mut self, places: ThreadPlaces, missing: Option<String>) {
        self.cgroup_member_missing = missing;
        self.maps = crate::kernel::plan(RING_BYTES, false, &places);
        self.thread_places = places;
    }
}
