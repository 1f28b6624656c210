//! The kernel side from user space: load, attach, ring, histograms. The only importer of aya.

mod attach;
mod btf;
mod load;
mod mapped;
mod offsets;
mod ring;
pub mod support;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{MapData, PerCpuArray};
use bytemuck::Zeroable;
use observer_ebpf::wire::{
    CGROUP_SLOT_OTHER, CGROUP_SLOT_TARGET, Config, Counts, Histogram, PID_MAX_LIMIT, RecordKind,
    SERIES,
};

pub use attach::{ProgramState, ProgramStates, coverage};
pub use btf::{Btf, BtfError, KERNEL_BTF};
pub use load::{LoadError, LoadOptions, RING_BYTES};
pub use ring::Ring;

use crate::aggregate::{CgroupDistributions, Distribution, Snapshot};
use crate::clock::MonoNanos;
use crate::host::cgroups::CgroupNames;
use crate::model::{Coverage, SelfSummary};
use attach::ChosenTiers;
use load::{CountWords, HISTOGRAM_BYTES, Loaded, Shape};
use mapped::MappedWords;

/// Words of [`Config`].
const GENERATOR_TGID: usize = offset_of!(Config, generator_tgid) / 8;
const GENERATOR_CONNECTED: usize = offset_of!(Config, generator_connected_ns) / 8;

/// The attached programs. Dropping it detaches and frees everything; so does the death of the
/// process, since nothing is pinned.
pub struct Kernel {
    /// Owns programs and links.
    ebpf: aya::Ebpf,
    tiers: ChosenTiers,
    states: ProgramStates,
    histograms: MappedWords,
    cgroup_ids: MappedWords,
    targets: Arc<MappedWords>,
    config: MappedWords,
    counts: PerCpuArray<MapData, CountWords>,
    ring: Option<Ring>,
    names: Option<CgroupNames>,
    shape: Shape,
    map_bytes: u64,
}

/// Marks processes as target, from any thread.
#[derive(Clone)]
pub struct TargetSet(Arc<MappedWords>);

impl TargetSet {
    /// Adds or removes a process. Ids beyond the kernel's own limit are ignored.
    pub fn set(&self, tgid: u32, watched: bool) {
        if tgid >= PID_MAX_LIMIT {
            return;
        }
        if let Some(word) = self.0.words().get(tgid as usize / 64) {
            let bit = 1 << (tgid % 64);
            if watched {
                word.fetch_or(bit, Ordering::Relaxed);
            } else {
                word.fetch_and(!bit, Ordering::Relaxed);
            }
        }
    }

    /// Whether a process is marked (the kernel side marks children itself).
    #[must_use]
    pub fn contains(&self, tgid: u32) -> bool {
        tgid < PID_MAX_LIMIT && self.0.get(tgid as usize / 64) >> (tgid % 64) & 1 != 0
    }
}

impl Kernel {
    /// Loads the object and attaches every program this kernel takes.
    ///
    /// # Errors
    /// When nothing can be loaded at all; a single refused program is coverage instead.
    pub fn attach(options: LoadOptions) -> Result<Self, LoadError> {
        let mut loaded = load::load(options)?;
        let tiers = attach::choose_tiers(&loaded.btf);
        let states = attach::attach_all(&mut loaded, &tiers);
        let Loaded {
            ebpf,
            cgroups,
            histograms,
            cgroup_ids,
            targets,
            config,
            counts,
            ring,
            shape,
            map_bytes,
            ..
        } = loaded;
        Ok(Self {
            ebpf,
            tiers,
            states,
            histograms,
            cgroup_ids,
            targets: Arc::new(targets),
            config,
            counts,
            ring: Some(Ring::new(ring)),
            names: cgroups.memory().cloned().map(CgroupNames::new),
            shape,
            map_bytes,
        })
    }

    /// States of the programs.
    #[must_use]
    pub const fn program_states(&self) -> &ProgramStates {
        &self.states
    }

    /// Coverage of every probe.
    #[must_use]
    pub fn coverage(&self) -> BTreeMap<String, Coverage> {
        self.tiers
            .iter()
            .map(|(probe, tier)| ((*probe).to_owned(), coverage(tier, &self.states)))
            .collect()
    }

    /// The set of target processes.
    #[must_use]
    pub fn targets(&self) -> TargetSet {
        TargetSet(Arc::clone(&self.targets))
    }

    /// The ring, for the thread that drains it. `None` when it was taken before.
    pub const fn take_ring(&mut self) -> Option<Ring> {
        self.ring.take()
    }

    /// Sets the length below which stalls of a kind are counted and not sent.
    pub fn set_floor_ns(&self, kind: RecordKind, floor_ns: u64) {
        self.config.set(kind as usize, floor_ns);
    }

    /// Names the load generator's process, whose first connect(2) is then noted.
    pub fn watch_generator(&self, tgid: u32) {
        self.config.set(GENERATOR_TGID, u64::from(tgid));
    }

    /// When the load generator first connected.
    #[must_use]
    pub fn generator_connected(&self) -> Option<MonoNanos> {
        let time = self.config.get(GENERATOR_CONNECTED);
        (time != 0).then_some(MonoNanos(time))
    }

    /// The floors in force, by record kind.
    #[must_use]
    pub fn floors_ns(&self) -> BTreeMap<String, u64> {
        RecordKind::ALL
            .into_iter()
            .map(|kind| (kind.name().to_owned(), self.config.get(kind as usize)))
            .collect()
    }

    /// All counters, summed over the CPUs.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counts(&self) -> Result<Counts, LoadError> {
        let per_cpu = self
            .counts
            .get(&0, 0)
            .map_err(|error| LoadError::Map { name: "COUNTS", reason: error.to_string() })?;
        let mut total = Counts::zeroed();
        let words: &mut CountWords = bytemuck::cast_mut(&mut total);
        for cpu in per_cpu.iter() {
            for (sum, word) in words.iter_mut().zip(cpu) {
                *sum = sum.wrapping_add(*word);
            }
        }
        Ok(total)
    }

    /// One series of one cgroup slot, over all CPUs.
    fn distribution(&self, slot: usize, series: usize) -> Distribution {
        let mut distribution = Distribution::default();
        for cpu in 0..self.shape.cpus {
            let index = (cpu * self.shape.cgroup_slots + slot) * SERIES + series;
            let words = HISTOGRAM_BYTES / 8;
            let mut histogram = Histogram::zeroed();
            let copy: &mut [u64; HISTOGRAM_BYTES / 8] = bytemuck::cast_mut(&mut histogram);
            for (offset, word) in copy.iter_mut().enumerate() {
                *word = self.histograms.get(index * words + offset);
            }
            distribution.add(&histogram);
        }
        distribution
    }

    /// What the maps hold now. `target_name` names the target's own row.
    ///
    /// # Errors
    /// When the kernel refuses to read a map.
    pub fn snapshot(&mut self, target_name: &str) -> Result<Snapshot, LoadError> {
        let counts = self.counts()?;
        let mut cgroups = Vec::new();
        for slot in 0..self.shape.cgroup_slots {
            let id = self.cgroup_ids.get(slot);
            let is_target = slot == CGROUP_SLOT_TARGET as usize;
            let is_other = slot == CGROUP_SLOT_OTHER as usize;
            if id == 0 && !is_target && !is_other {
                continue;
            }
            let name = if is_target {
                target_name.to_owned()
            } else if is_other {
                "other".to_owned()
            } else {
                let name = self.names.as_mut().and_then(|names| names.name(id));
                name.map_or_else(|| format!("cgroup:{id}"), str::to_owned)
            };
            let series = Box::new(std::array::from_fn(|series| self.distribution(slot, series)));
            cgroups.push(CgroupDistributions { name, target: is_target, series });
        }
        Ok(Snapshot {
            taken: MonoNanos::now(),
            cgroups,
            counters: counts.counters,
            lost: counts.lost,
            emitted: counts.emitted,
            target_live_sockets: None,
            coverage: self.coverage(),
            self_usage: self.self_usage(),
        })
    }

    /// Own cost, as far as the kernel keeps books of it.
    fn self_usage(&self) -> SelfSummary {
        let own = crate::host::usage::own();
        let (bpf_run_time_ns, bpf_run_count) = self.program_run_time();
        SelfSummary {
            cpu_seconds: own.cpu_seconds,
            max_rss_bytes: own.max_rss_bytes,
            bpf_run_time_ns,
            bpf_run_count,
            bpf_map_bytes: self.map_bytes,
        }
    }

    /// Run time and runs of the programs while the kernel's BPF statistics are on
    /// (`/proc/self/fdinfo`, kernel/bpf/syscall.c `bpf_prog_show_fdinfo`).
    fn program_run_time(&self) -> (u64, u64) {
        use std::os::fd::{AsFd, AsRawFd};
        let mut total = (0, 0);
        for (_, program) in self.ebpf.programs() {
            let Ok(fd) = program.fd() else { continue };
            let info = fdinfo(fd.as_fd().as_raw_fd());
            total.0 += fdinfo_field(&info, "run_time_ns:");
            total.1 += fdinfo_field(&info, "run_cnt:");
        }
        total
    }
}

/// Turns the kernel's BPF run-time statistics on for as long as the value lives.
///
/// They cost two clock reads per program run, which is why they are on for short windows only.
pub struct RunTimeStatistics(
    #[expect(dead_code, reason = "closing it ends them")] std::os::fd::OwnedFd,
);

impl RunTimeStatistics {
    /// Starts them; `None` when the kernel refuses (before 5.8).
    #[must_use]
    pub fn start() -> Option<Self> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime).ok().map(Self)
    }
}

fn fdinfo(fd: i32) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default()
}

fn fdinfo_field(info: &str, field: &str) -> u64 {
    info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok()).unwrap_or(0)
}
