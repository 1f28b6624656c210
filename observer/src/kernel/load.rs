//! Loading the BPF object: sizes and offsets for this kernel, then each program by itself.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use aya::maps::{Map, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use observer_ebpf::wire::{
    CGROUP_ROWS_MAX, CgroupHistogram, CgroupTable, Config, Counts, GENERATOR_EVENTS,
    GeneratorEvent, KIND_SLOTS, PID_MAX_LIMIT, RecordKind, SCOPES, SERIES, TASK_SLOTS_MAX,
    UPROBE_COUNTERS,
};

use super::attach::Choices;
use super::btf::{Btf, BtfError};
use super::cgroup_rows::CgroupRows;
use super::links::Links;
use super::mapped::MappedWords;
use super::messages::{self, Messages};
use super::offsets::Offsets;
use super::plan::{self, MapPlan};
use super::thread_state::{self, ThreadPlaces};
use crate::host::cgroups::{CgroupNames, Cgroups};
use crate::host::{MemoryRoom, read_small, system};
use crate::probe::{self, Members, PROBES, Probe, ProbeOptions, Selection, Tier};

pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/observer-bpf"));

/// Bytes of one series' histogram.
pub(super) const HISTOGRAM_BYTES: usize = size_of::<observer_ebpf::wire::Histogram>();

/// Histograms of cgroups take at most this much memory, and at most this part of the host's memory.
/// If that is not enough for one stripe per CPU, neighbouring CPUs share a stripe; if not even one
/// stripe fits, fewer cgroups get rows of their own.
const CGROUP_BUDGET_BYTES: u64 = 84 << 20;
const CGROUP_MEMORY_SHARE: u64 = 32;

/// The number of series with which each cgroup still has a row.
const SERIES_MAX: usize = 42;
const _: () = {
    let all_bytes = SERIES_MAX * CGROUP_ROWS_MAX * size_of::<CgroupHistogram>();
    assert!(SERIES <= SERIES_MAX && all_bytes as u64 <= CGROUP_BUDGET_BYTES);
};

/// Number of rows on the smallest host.
const CGROUP_ROWS_MIN: usize = 16;

/// Default size of the ring.
pub const RING_BYTES: u32 = 8 << 20;

/// Why the programs could not be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No usable BTF.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The types lack what every program reads.
    #[error(
        "cannot use the kernel's types: {0}; --btf FILE names a file with those of this kernel"
    )]
    Members(String),
    /// aya could not create the maps.
    #[error("cannot create the BPF maps: {0}")]
    Object(#[from] Box<aya::EbpfError>),
    /// A map is missing or of another kind than expected.
    #[error("BPF map {name}: {reason}")]
    Map {
        /// Its name in the object.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A tier that was asked for is not available.
    #[error(
        "tier {tier} of probe {probe} is not available here: {reason}; `observer doctor` lists those that are"
    )]
    Tier {
        /// The probe.
        probe: &'static str,
        /// The tier that was forced.
        tier: &'static str,
        /// Why not.
        reason: String,
    },
    /// The kernel refused to create a map.
    #[error("cannot create BPF map {name} ({} KiB): {reason}; {todo}", bytes / 1024)]
    Create {
        /// Its name in the object.
        name: String,
        /// Memory that the map would take.
        bytes: u64,
        /// What the kernel said.
        reason: String,
        /// What to do.
        todo: String,
        /// Whether a privilege is missing.
        permission: bool,
        /// Whether the limit of open files is reached.
        limit: bool,
    },
    /// The kernel refused because privileges are missing.
    #[error("the kernel refused BPF: {0}")]
    Permission(String),
}

impl LoadError {
    /// Whether a missing privilege is the reason.
    #[must_use]
    pub const fn is_permission(&self) -> bool {
        matches!(self, Self::Permission(_) | Self::Create { permission: true, .. })
    }

    /// Whether the limit of open files is the reason.
    #[must_use]
    pub const fn is_limit(&self) -> bool {
        matches!(self, Self::Create { limit: true, .. })
    }

    pub(super) fn map(name: &'static str, reason: &dyn ToString) -> Self {
        Self::Map { name, reason: reason.to_string() }
    }

    fn create(name: &str, bytes: u64, plan: &[MapPlan], error: &std::io::Error) -> Self {
        use rustix::io::Errno;
        let all_mib = plan.iter().map(|map| map.bytes).sum::<u64>().div_ceil(1 << 20);
        let todo = match Errno::from_io_error(error) {
            // Without CAP_BPF, or on kernels before 5.11 with a locked-memory limit.
            Some(Errno::PERM) => {
                "run as root, and on kernels before 5.11 with `ulimit -l unlimited`".to_owned()
            }
            Some(Errno::NOMEM) => format!(
                "all maps take {all_mib} MiB, which the memory cgroup observer runs in must \
                 allow (or give it a smaller --ring-bytes)"
            ),
            Some(Errno::MFILE | Errno::NFILE) => {
                "raise the limit of open files (ulimit -n, LimitNOFILE=)".to_owned()
            }
            _ => "see dmesg, and whether a security module forbids bpf(2)".to_owned(),
        };
        let (name, reason) = (name.to_owned(), error.to_string());
        let permission = error.kind() == std::io::ErrorKind::PermissionDenied;
        let limit = matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE));
        Self::Create { name, bytes, reason, todo, permission, limit }
    }
}

/// What to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// There is a target: its stalls become records.
    pub has_target: bool,
    /// Bytes of the ring, a power of two of at least one page.
    pub ring_bytes: u32,
    /// The probes to attach, and how. The probe that follows the target is attached whenever there
    /// is a target.
    pub probes: ProbeOptions,
    /// Count by cgroup as well, which costs memory and a little time for each event.
    pub by_cgroup: bool,
}

impl LoadOptions {
    /// The probes to attach: those asked for, and what follows the target.
    pub(super) fn selection(&self) -> Selection {
        let asked_for = self.probes.selection;
        if self.has_target { asked_for.with("task") } else { asked_for }
    }
}

/// The loaded object: maps exist, no program is attached yet.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) links: Links,
    pub(super) btf: Btf,
    pub(super) offsets: Offsets,
    /// The kernel's own types, by which the verifier types arguments; `Err` says why there are
    /// none.
    pub(super) own_btf: Result<aya::Btf, String>,
    pub(super) cgroups: Cgroups,
    pub(super) histograms: MappedWords,
    pub(super) cgroup_rows: CgroupRows,
    pub(super) targets: MappedWords,
    pub(super) config: Arc<MappedWords>,
    pub(super) counts: Arc<MappedWords>,
    pub(super) generator: MappedWords,
    pub(super) uprobe_calls: MappedWords,
    pub(super) ring: RingBuf<MapData>,
    /// `None` unless the programs log.
    pub(super) messages: Option<Messages>,
    pub(super) shape: Shape,
    pub(super) places: ThreadPlaces,
    pub(super) parts: Parts,
    pub(super) map_bytes: u64,
    /// Maps reached through memory only; the programs need their descriptors at load.
    pub(super) mapped_maps: Vec<MapData>,
}

/// Sizes chosen for this host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) cpus: usize,
    /// Rows for cgroups, including the one for all other cgroups; 0 when nothing is counted by
    /// cgroup.
    pub(super) cgroup_rows: usize,
    /// How many CPUs share a stripe, as a power of two.
    pub(super) cgroup_stripe_shift: u32,
    pub(super) task_slots: u32,
    /// Two live threads can share an entry of a table of threads.
    pub(super) tasks_share: bool,
    /// Stacks are watched.
    pub(super) stacks: bool,
}

impl Shape {
    pub(super) fn of_host(by_cgroup: bool) -> Self {
        let cpus = system::possible_cpus().last().map_or(1, |cpu| *cpu as usize + 1);
        let total = system::memory_total_bytes().unwrap_or(u64::MAX);
        let memory_bytes = MemoryRoom::read().map_or(total, |room| total.min(room.bytes));
        Self::new(cpus, memory_bytes, system::pid_max(), by_cgroup)
    }

    pub(super) fn new(cpus: usize, memory_bytes: u64, pid_max: u32, by_cgroup: bool) -> Self {
        let task_slots = pid_max.clamp(1024, PID_MAX_LIMIT).next_power_of_two().min(TASK_SLOTS_MAX);
        let mut shape = Self {
            cpus,
            cgroup_rows: 0,
            cgroup_stripe_shift: 0,
            task_slots,
            tasks_share: pid_max > task_slots,
            stacks: false,
        };
        if !by_cgroup {
            return shape;
        }
        shape.cgroup_rows = CGROUP_ROWS_MAX;
        let budget_bytes = CGROUP_BUDGET_BYTES.min(memory_bytes / CGROUP_MEMORY_SHARE);
        let row_bytes = (SERIES * size_of::<CgroupHistogram>()) as u64;
        while (shape.cgroup_stripes() * shape.cgroup_rows) as u64 * row_bytes > budget_bytes {
            if shape.cgroup_stripes() > 1 {
                shape.cgroup_stripe_shift += 1;
            } else if shape.cgroup_rows / 2 >= CGROUP_ROWS_MIN {
                shape.cgroup_rows /= 2;
            } else {
                break;
            }
        }
        shape
    }

    /// Stripes of the cgroup histograms.
    pub(super) const fn cgroup_stripes(self) -> usize {
        self.cpus.div_ceil(1 << self.cgroup_stripe_shift)
    }
}

/// Creates the maps and relocates the programs, with the states of threads in these places, or in
/// the best ones, and with these parts of shared programs, or all that may be needed.
pub(super) fn load(
    options: &LoadOptions,
    places: Option<ThreadPlaces>,
    parts: Option<Parts>,
) -> Result<Loaded, LoadError> {
    let (btf, own_btf) = match &options.probes.btf {
        Some(file) => (Btf::of_file(file)?, Err(format!("types are from {}", file.display()))),
        None => {
            let own = aya::Btf::from_sys_fs().map_err(|error| error.to_string());
            (Btf::of_kernel()?, own)
        }
    };
    let cgroups = Cgroups::read();
    let places = places.unwrap_or_else(|| {
        ThreadPlaces::choose(options.probes.thread_state, own_btf.is_ok().then_some(&btf))
    });
    let offsets = Offsets::of(&btf, cgroups.version_1("memory").is_some())
        .map_err(|error| LoadError::Members(error.to_string()))?;
    let by_cgroup = options.by_cgroup && offsets.have(&[Members::Cgroup]).is_ok();
    let shape =
        Shape { stacks: options.selection().contains("stack"), ..Shape::of_host(by_cgroup) };
    let mut globals = offsets.globals.clone();
    let parts = parts.unwrap_or_else(|| possible_parts(options, &offsets));
    globals.extend(parts.iter().map(|(global, is_on)| (*global, u32::from(*is_on))));
    globals.push(("TASK_MASK", shape.task_slots - 1));
    globals.push(("TASKS_SHARE", u32::from(shape.tasks_share)));
    globals.push(("CGROUP_ROWS", shape.cgroup_rows as u32));
    globals.push(("CGROUP_STRIPE_SHIFT", shape.cgroup_stripe_shift));
    globals.push(("KERNEL_BTF", u32::from(own_btf.is_ok())));
    let watches = |probe| u32::from(options.selection().contains(probe));
    globals.push(("WATCHES_FAULTS", watches("fault")));
    globals.push(("WATCHES_REQUESTS", watches("request")));
    globals.extend(places.iter().map(|(state, stored)| (state.global, u32::from(stored))));
    globals.push(("HAS_TARGET", u32::from(options.has_target)));
    globals.push(("LOG_LOSSES", u32::from(messages::are_shown())));
    let mut loader = EbpfLoader::new();
    loader.btf(own_btf.as_ref().ok()).verifier_log_level(VerifierLogLevel::STATS);
    let plan = plan::of_shape(shape, options.ring_bytes, &places);
    for map in plan.iter().filter(|map| map.sized_at_load) {
        loader.map_max_entries(map.name, map.entries);
    }
    for (name, value) in &globals {
        loader.override_global(name, value, true);
    }
    // aya has no type for maps in task-local storage.
    loader.allow_unsupported_maps();
    let object = if places.any_stored() {
        Cow::Borrowed(OBJECT)
    } else {
        Cow::Owned(thread_state::without_storage(OBJECT)?)
    };
    let mut ebpf = loader.load(&object).map_err(|error| refusal(error, &plan))?;
    drop(loader);
    let map_bytes = map_bytes(&ebpf);
    // The descriptors stay open, because some programs are loaded later.
    let mut mapped_maps = Vec::new();
    let mut mapped = |name: &'static str, entries: usize, value_bytes: usize| {
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(LoadError::map(name, &"missing in the object"));
        };
        let words = MappedWords::new(map.fd(), entries.max(1), value_bytes)
            .map_err(|error| LoadError::map(name, &error))?;
        mapped_maps.push(map);
        Ok::<_, LoadError>(words)
    };
    let histograms = mapped("HISTOGRAMS", shape.cpus * SCOPES * SERIES, HISTOGRAM_BYTES)?;
    let cgroup_histograms = mapped(
        "CGROUP_HISTOGRAMS",
        shape.cgroup_stripes() * shape.cgroup_rows * SERIES,
        size_of::<CgroupHistogram>(),
    )?;
    let cgroup_table = mapped("CGROUPS", 1, size_of::<CgroupTable>())?;
    let names = cgroups.memory().cloned().map(CgroupNames::new);
    let cgroup_rows = CgroupRows::new(cgroup_table, cgroup_histograms, names, shape);
    let targets = mapped("TARGETS", PID_MAX_LIMIT as usize / 64, 8)?;
    let config = Arc::new(mapped("CONFIG", 1, size_of::<Config>())?);
    let counts = Arc::new(mapped("COUNTS", shape.cpus, size_of::<Counts>())?);
    let generator = mapped("GENERATOR", GENERATOR_EVENTS as usize, size_of::<GeneratorEvent>())?;
    let uprobe_calls = mapped("UPROBE_CALLS", UPROBE_COUNTERS as usize, 8)?;
    let ring = take(&mut ebpf, "RING")?;
    let messages = match messages::are_shown() {
        true => Some(Messages::of(&mut ebpf, &config, &counts)?),
        false => None,
    };
    let loaded = Loaded {
        ebpf,
        links: Links::default(),
        btf,
        offsets,
        own_btf,
        cgroups,
        histograms,
        cgroup_rows,
        targets,
        config,
        counts,
        generator,
        uprobe_calls,
        ring,
        messages,
        shape,
        places,
        parts,
        map_bytes,
        mapped_maps,
    };
    loaded.set_defaults(options.ring_bytes);
    Ok(loaded)
}

/// The globals that switch parts of shared programs on, and whether each is.
pub(super) type Parts = BTreeMap<&'static str, bool>;

/// The parts that are needed where each probe may be attached by these tiers.
fn parts(may_be: impl Fn(&Probe, &'static Tier) -> bool) -> Parts {
    let mut parts = Parts::new();
    for probe in PROBES {
        for tier in probe.tiers {
            let is_possible = may_be(probe, tier);
            for part in tier.programs.iter().filter_map(|program| program.part) {
                *parts.entry(part).or_default() |= is_possible;
            }
        }
    }
    parts
}

/// The parts that are needed before it is known which tiers the kernel accepts.
fn possible_parts(options: &LoadOptions, offsets: &Offsets) -> Parts {
    let selection = options.selection();
    parts(|probe, tier| {
        selection.contains(probe.name)
            && options.probes.tiers.of(probe.name).is_none_or(|forced| forced == tier)
            && offsets.have(tier.reads).is_ok()
    })
}

impl Loaded {
    /// The parts to load again with, if a program in use does what another one was taken for: both would
    /// count the same.
    pub(super) fn parts_for(&self, choices: &Choices) -> Option<Parts> {
        let taken = |probe: &Probe| choices.get(probe.name).and_then(|choice| choice.tier);
        let needed = parts(|probe, tier| taken(probe) == Some(tier));
        let in_use: BTreeSet<&str> = PROBES
            .into_iter()
            .flat_map(|probe| taken(probe).map_or(&[][..], |tier| tier.programs))
            .map(|program| program.name)
            .collect();
        let programs =
            PROBES.into_iter().flat_map(|probe| probe.tiers).flat_map(|tier| tier.programs);
        let is_beyond = |part: &str| self.parts.get(part) == Some(&true) && !needed[part];
        let mut used = programs.filter(|program| in_use.contains(program.name));
        used.any(|program| program.part.is_some_and(is_beyond)).then_some(needed)
    }

    /// Floors of the probes' table; wake user space early at half a ring.
    fn set_defaults(&self, ring_bytes: u32) {
        for kind in RecordKind::ALL {
            let floor_ns = probe::record(kind).and_then(|row| row.floor_ns).unwrap_or(0);
            self.config.set(kind as usize, floor_ns);
        }
        self.config.set(KIND_SLOTS, u64::from(ring_bytes) / 2);
    }
}

fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, LoadError>
where
    T::Error: ToString,
{
    let map = ebpf.take_map(name).ok_or_else(|| LoadError::map(name, &"missing in the object"))?;
    T::try_from(map).map_err(|error| LoadError::map(name, &error))
}

/// Memory of all maps as the kernel accounts it (`memlock` of fdinfo, kernel/bpf/syscall.c
/// `bpf_map_show_fdinfo`). It is constant, because every map is allocated completely at creation.
fn map_bytes(ebpf: &Ebpf) -> u64 {
    ebpf.maps()
        .filter_map(|(_, map)| match map {
            Map::Array(map) | Map::RingBuf(map) | Map::Unsupported(map) => Some(map.fd()),
            _ => None,
        })
        .map(|fd| locked_bytes(fd.as_fd().as_raw_fd()))
        .sum()
}

fn locked_bytes(fd: RawFd) -> u64 {
    let info = read_small(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let info = String::from_utf8_lossy(&info);
    let value = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    value.unwrap_or(0)
}

/// Distinguishes a lack of memory and a lack of privileges from other errors.
fn refusal(error: aya::EbpfError, plan: &[MapPlan]) -> LoadError {
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(inner) = source {
        if let Some(aya::maps::MapError::CreateError { name, io_error }) = inner.downcast_ref() {
            let bytes = plan.iter().find(|map| map.name == name).map_or(0, |map| map.bytes);
            return LoadError::create(name, bytes, plan, io_error);
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::PermissionDenied
        {
            return LoadError::Permission(error.to_string());
        }
        source = inner.source();
    }
    LoadError::Object(Box::new(error))
}
