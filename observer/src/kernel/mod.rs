//! The kernel side from user space: load, attach, ring, histograms. The only importer of aya.

mod attach;
mod binary;
mod btf;
mod bursts;
mod cgroup_rows;
mod cost;
mod follow;
mod generator;
mod links;
mod live;
mod load;
mod mapped;
mod messages;
mod offers;
mod offsets;
mod overlay;
mod plan;
mod profile;
mod ran_instead;
mod requests;
mod ring;
mod series;
mod stack_table;
mod statistics;
pub mod support;
mod thread_state;
mod uprobe;

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable;
use observer_ebpf::wire::{
    Config, Counts, Histogram, KIND_SLOTS, LOSS_SLOTS, LossKind, PID_MAX_LIMIT, RecordKind,
    SCOPE_REST, SCOPE_TARGET, SCOPES, SERIES, Series,
};

pub use attach::{Choice, ProgramState, ProgramStates, coverage};
pub use binary::{Binary, BinaryError, BinaryId, FileId};
pub use btf::{Btf, BtfError, KERNEL_BTF};
pub use cost::{ProgramCost, empty_call_ns};
pub use follow::FindPlaces;
pub use live::LiveError;
pub(crate) use live::wait_for_running_programs;
pub use load::{LoadError, LoadOptions, RING_BYTES};
pub use plan::{MapPlan, plan, stacks_bytes};
pub use profile::ProgramProfile;
pub use ran_instead::{RanInsteadReading, RanInsteadTable, WaitSums};
pub use ring::Ring;
pub use stack_table::StackTable;
pub use statistics::RunTimeStatistics;
pub use thread_state::ThreadPlaces;
pub use uprobe::{Place, UprobeError};

use crate::aggregate::{Distribution, Snapshot};
use crate::clock::MonoNanos;
use crate::host::CpuEvents;
use crate::model::{Conditions, Coverage, Joining, ProbeState, SelfSummary, Tgid};
use crate::probe::{Members, NOT_ASKED_FOR, PROBES, Probe};
use attach::Choices;
use cgroup_rows::CgroupRows;
use load::{HISTOGRAM_BYTES, Loaded, Shape};
use mapped::MappedWords;
use series::read_series;
use statistics::ProgramStatistics;

/// Words of [`Config`].
const DESCRIPTOR_CALLS_AT: usize = offset_of!(Config, descriptor_calls_at) / 8;
const TARGET_COMM: usize = offset_of!(Config, target_comm) / 8;
const TARGET_INODE: usize = offset_of!(Config, target_inode) / 8;
const TARGET_DEVICE: usize = offset_of!(Config, target_device) / 8;
const OBSERVER_TGID: usize = offset_of!(Config, observer_tgid) / 8;
const WOKEN: usize = offset_of!(Config, woken) / 8;
const EPOCH: usize = offset_of!(Config, epoch) / 8;

/// The attached programs. Dropping it detaches and frees everything; so does the death of the
/// process, since nothing is pinned.
pub struct Kernel {
    /// Links are dropped before the programs they belong to.
    links: links::Links,
    uprobes: uprobe::Uprobes,
    binaries: follow::Binaries,
    /// Owns the programs.
    ebpf: aya::Ebpf,
    /// Maps of programs that are loaded later.
    _mapped_maps: Vec<aya::maps::MapData>,
    pauses: live::Pauses,
    cpu_gaps: live::CpuGaps,
    cpu_events: CpuEvents,
    /// When CPUs that came online were last looked for.
    cpus_looked_at: MonoNanos,
    choices: Choices,
    states: ProgramStates,
    histograms: Arc<MappedWords>,
    cgroups: CgroupRows,
    cgroup_member_missing: Option<String>,
    targets: Arc<MappedWords>,
    config: Arc<MappedWords>,
    counts: Arc<MappedWords>,
    generator: MappedWords,
    /// Connections of the load generator are watched.
    sees_connects: bool,
    ring: Option<Ring>,
    shape: Shape,
    places: ThreadPlaces,
    map_bytes: u64,
    has_target: bool,
}

/// Where the histogram of a series begins, in words: with its sum.
const fn histogram_word(cpu: usize, scope: usize, series: usize) -> usize {
    ((cpu * SCOPES + scope) * SERIES + series) * (HISTOGRAM_BYTES / 8)
}

/// Coverage of a probe that was left out.
fn not_asked(probe: &Probe) -> Coverage {
    let reason = probe.off_by_default.map_or_else(
        || NOT_ASKED_FOR.to_owned(),
        |why| format!("off by default, because {why}; `--probes all` turns it on"),
    );
    Coverage { state: ProbeState::NotAsked, tier: None, reason: Some(reason), detached: None }
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

    /// The processes that are marked now: those that observer has not heard of yet too.
    #[must_use]
    pub fn marked(&self) -> Vec<Tgid> {
        let words = self.0.words().iter().zip(0u32..);
        words
            .map(|(word, index)| (word.load(Ordering::Relaxed), index))
            .filter(|(word, _)| *word != 0)
            .flat_map(|(word, index)| {
                (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| index * 64 + bit)
            })
            .map(Tgid)
            .collect()
    }
}

/// The lengths below which stalls are counted and not sent, set from any thread.
#[derive(Clone)]
pub struct FloorSet(Arc<MappedWords>);

impl FloorSet {
    /// Sets the floor of a kind; it applies from the next stall on any CPU.
    pub fn set(&self, kind: RecordKind, floor_ns: u64) {
        self.0.set(kind as usize, floor_ns);
    }

    /// The floor in force.
    #[must_use]
    pub fn get(&self, kind: RecordKind) -> u64 {
        self.0.get(kind as usize)
    }
}

impl Kernel {
    /// Loads the object and attaches every program that this kernel accepts.
    ///
    /// # Errors
    /// When nothing can be loaded at all, or a forced tier is not available. A single refused
    /// program is not an error: it is reported as unsupported.
    pub fn attach(options: &LoadOptions) -> Result<Self, LoadError> {
        // First: a CPU may come online while the programs are attached to each.
        let (cpu_events, cpus_looked_at) = (CpuEvents::start(), MonoNanos::now());
        let (mut loaded, mut choices, mut states);
        let mut places = None;
        loop {
            loaded = load::load(options, places, None)?;
            (choices, states) = attach::attach_probes(&mut loaded, options)?;
            places = loaded.places.for_choices(&choices);
            if places.is_none() {
                break;
            }
            // The programs in use cannot reach a state where it is: everything is loaded again.
            drop(loaded);
        }
        if let Some(parts) = loaded.parts_for(&choices) {
            let places = loaded.places.clone();
            drop(loaded);
            loaded = load::load(options, Some(places), Some(parts))?;
            let again = attach::attach_choices(&mut loaded, &choices);
            // What the kernel refused before is still said, with the verifier's words.
            states.retain(|_, state| matches!(state, ProgramState::Failed { .. }));
            states.extend(again);
        }
        let Loaded {
            links,
            ebpf,
            histograms,
            cgroup_rows,
            offsets,
            targets,
            config,
            counts,
            generator,
            ring,
            messages,
            shape,
            places,
            map_bytes,
            uprobe_calls,
            mapped_maps,
            ..
        } = loaded;
        let calls_at = attach::descriptor_calls_at(choices.get("socket"), &states);
        config.set(DESCRIPTOR_CALLS_AT, calls_at as u64);
        config.set(OBSERVER_TGID, u64::from(std::process::id()));
        let ring = Ring::new(ring, Arc::clone(&config), messages)
            .map_err(|error| LoadError::map("RING", &error))?;
        Ok(Self {
            links,
            uprobes: uprobe::Uprobes::new(uprobe_calls),
            binaries: follow::Binaries::default(),
            ebpf,
            _mapped_maps: mapped_maps,
            pauses: live::Pauses::new(),
            cpu_gaps: live::CpuGaps::new(),
            cpu_events,
            cpus_looked_at,
            choices,
            states,
            histograms: Arc::new(histograms),
            cgroups: cgroup_rows,
            cgroup_member_missing: offsets.have(&[Members::Cgroup]).err(),
            targets: Arc::new(targets),
            ring: Some(ring),
            config,
            counts,
            generator,
            sees_connects: false,
            shape,
            places,
            map_bytes,
            has_target: options.has_target,
        })
    }

    /// The verifier's output for each program that it refused.
    pub fn verifier_logs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.states.iter().filter_map(|(program, state)| match state {
            ProgramState::Failed { verifier_log: Some(log), .. } => Some((*program, log.as_str())),
            _ => None,
        })
    }

    /// Coverage of every probe.
    #[must_use]
    pub fn coverage(&self) -> BTreeMap<String, Coverage> {
        let of = |probe: &Probe| match self.choices.get(probe.name) {
            Some(choice) => {
                let coverage = coverage(choice, &self.states);
                match self.detached(probe.name) {
                    Some(detached) => coverage.with_pauses(detached, MonoNanos::now()),
                    None => coverage,
                }
            }
            None => not_asked(probe),
        };
        PROBES.iter().map(|probe| (probe.name.to_owned(), of(probe))).collect()
    }

    /// How a probe was attached; `None` when it was not selected.
    #[must_use]
    pub fn choice(&self, probe: &str) -> Option<&Choice> {
        self.choices.get(probe)
    }

    /// The member that the kernel's types lack on the way from a thread to its cgroup. Without it
    /// nothing is counted by cgroup, and records name no cgroup.
    #[must_use]
    pub fn cgroup_member_missing(&self) -> Option<&str> {
        self.cgroup_member_missing.as_deref()
    }

    /// Where the programs keep what they know about each thread.
    #[must_use]
    pub const fn thread_places(&self) -> &ThreadPlaces {
        &self.places
    }

    /// The set of target processes.
    #[must_use]
    pub fn targets(&self) -> TargetSet {
        TargetSet(Arc::clone(&self.targets))
    }

    /// From now on, processes join the target at the moment when they get its name or execute its
    /// program.
    pub fn watch_for(&self, joining: &Joining) {
        match *joining {
            Joining::Comm(comm) => {
                let [first, second]: [u64; 2] = bytemuck::cast(comm);
                // The program looks at the first byte first.
                self.config.set(TARGET_COMM + 1, second);
                self.config.set(TARGET_COMM, first);
            }
            Joining::Executable { inode, device } => {
                self.config.set(TARGET_DEVICE, device);
                self.config.set(TARGET_INODE, inode);
            }
        }
    }

    /// Whether any process was a process of the target so far.
    #[must_use]
    pub fn has_seen_target(&self) -> bool {
        let counts = self.counts();
        let task = RecordKind::Task as usize;
        counts.emitted[task] + counts.lost[task] > 0
    }

    /// Stops watching all processes: no further record is sent, and the target's counters stop.
    pub fn forget_targets(&self) {
        self.config.set(TARGET_COMM, 0);
        self.config.set(TARGET_INODE, 0);
        self.record_requests(0);
        self.targets.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        // One that was preempted, with its CPU or alone, may still send a record.
        live::wait_for_running_programs();
    }

    /// The ring, for the thread that drains it. `None` when it was taken before.
    pub const fn take_ring(&mut self) -> Option<Ring> {
        self.ring.take()
    }

    /// Sets the length below which stalls of a kind are counted and not sent.
    pub fn set_floor_ns(&self, kind: RecordKind, floor_ns: u64) {
        self.config.set(kind as usize, floor_ns);
    }

    /// The floors, for the thread that adapts them.
    #[must_use]
    pub fn floors(&self) -> FloorSet {
        FloorSet(Arc::clone(&self.config))
    }

    /// Total length of the target's stalls of a series so far, over all CPUs. It takes a few loads
    /// of mapped memory, so that it can be called often.
    #[must_use]
    pub fn target_sum_ns(&self, series: Series) -> u64 {
        (0..self.shape.cpus)
            .map(|cpu| self.histograms.get(histogram_word(cpu, SCOPE_TARGET, series as usize)))
            .fold(0, u64::wrapping_add)
    }

    /// The floors in force, by record kind.
    #[must_use]
    pub fn floors_ns(&self) -> BTreeMap<String, u64> {
        RecordKind::ALL
            .into_iter()
            .map(|kind| (kind.name().to_owned(), self.config.get(kind as usize)))
            .collect()
    }

    /// Kernel memory of all maps, as the kernel accounts it.
    #[must_use]
    pub const fn map_bytes(&self) -> u64 {
        self.map_bytes
    }

    /// A snapshot of only the losses so far: those that the programs counted, and the program runs
    /// that the kernel skipped, which are read program by program.
    #[must_use]
    pub fn losses(&self) -> Snapshot {
        let [lost, lost_target] = self.all_losses(&self.counts(), &self.program_statistics());
        Snapshot { lost, lost_target, ..Snapshot::default() }
    }

    /// Losses of the host and of the target, indexed as [`Counts::lost`].
    fn all_losses(&self, counts: &Counts, programs: &ProgramStatistics) -> [[u64; LOSS_SLOTS]; 2] {
        const MISSED: usize = KIND_SLOTS + LossKind::ProgramMissed as usize;
        let mut lost = counts.lost;
        lost[MISSED] = programs.missed;
        // Records exist for the target alone. It is not known for which task the kernel skipped a
        // program.
        let mut of_target = lost;
        of_target[KIND_SLOTS..].copy_from_slice(&counts.lost_target);
        of_target[MISSED] = if self.has_target { programs.missed } else { 0 };
        [lost, of_target]
    }

    /// All counters, summed over the CPUs, read without a system call.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut total = Counts::zeroed();
        let words: &mut [u64; size_of::<Counts>() / 8] = bytemuck::cast_mut(&mut total);
        for (index, word) in self.counts.words().iter().enumerate() {
            let sum = &mut words[index % (size_of::<Counts>() / 8)];
            *sum = sum.wrapping_add(word.load(Ordering::Relaxed));
        }
        total
    }

    /// Records that found the ring full so far.
    #[must_use]
    pub fn records_lost(&self) -> u64 {
        self.counts().lost[..KIND_SLOTS].iter().sum()
    }

    /// All series of one scope, over all CPUs.
    fn scope(&self, scope: usize) -> Box<[Distribution; SERIES]> {
        read_series(|series| self.distribution(scope, series))
    }

    fn distribution(&self, scope: usize, series: usize) -> Distribution {
        let mut distribution = Distribution::default();
        for cpu in 0..self.shape.cpus {
            let first = histogram_word(cpu, scope, series);
            let mut histogram = Histogram::zeroed();
            let copy: &mut [u64; HISTOGRAM_BYTES / 8] = bytemuck::cast_mut(&mut histogram);
            for (offset, word) in copy.iter_mut().enumerate() {
                *word = self.histograms.get(first + offset);
            }
            distribution.add(&histogram);
        }
        distribution
    }

    /// Reclaims the histogram rows of cgroups that were removed, if rows are short. Call it about
    /// once a second; it costs almost nothing as long as there are enough rows.
    pub fn tend_cgroups(&mut self) {
        self.cgroups.tend();
    }

    /// The contents of the maps now. `target` names the target's own row; there is none without it.
    pub fn snapshot(&mut self, target: Option<&str>) -> Snapshot {
        let programs = self.program_statistics();
        let counts = self.counts();
        let [lost, lost_target] = self.all_losses(&counts, &programs);
        // Reads the host before its cgroups: events counted meanwhile can make the sum of the
        // cgroups only larger, never smaller.
        let (rest, target_series) = (self.scope(SCOPE_REST), self.scope(SCOPE_TARGET));
        let (cgroups, cgroup_counts) = self.cgroups.snapshot();
        Snapshot {
            taken: MonoNanos::now(),
            rest,
            target: target_series,
            target_name: target.map(str::to_owned),
            cgroups,
            cgroup_counts,
            counters: counts.counters,
            lost,
            lost_target,
            emitted: counts.emitted,
            floors_ns: std::array::from_fn(|kind| self.config.get(kind)),
            floor_changes: [0; KIND_SLOTS],
            trace: None,
            target_live_sockets: None,
            conditions: Conditions::default(),
            coverage: self.coverage(),
            self_usage: self.self_usage(&programs),
        }
    }

    /// Observer's own cost, as far as the kernel measures it.
    fn self_usage(&self, programs: &ProgramStatistics) -> SelfSummary {
        let own = crate::host::usage::own();
        SelfSummary {
            cpu_seconds: own.cpu_seconds,
            max_rss_bytes: own.max_rss_bytes,
            rss_bytes: own.rss_bytes,
            rss_bound_bytes: 0,
            bpf_run_time_ns: programs.run_time_ns,
            bpf_run_count: programs.runs,
            bpf_map_bytes: self.map_bytes,
            drain_wakeups: 0,
            added_cpu_share: None,
        }
    }
}
