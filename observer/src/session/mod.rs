//! One run, from attach to answer: the only place that connects all parts.

mod budget;
mod busy;
mod capture;
mod command;
mod cost;
mod daemon;
mod drain;
mod finish;
mod floor;
mod floor_log;
mod holders;
pub mod identity;
mod journal;
mod loss_watch;
pub mod memory;
mod quota;
mod recording;
mod recover;
mod samples;
mod sink;
pub mod supervisor;
mod trace_sink;
mod watch;

pub use budget::Budget;
pub use capture::{Capture, Captured};
pub use daemon::{DaemonOptions, serve};
pub use drain::{CaptureCounts, Floors};
pub use finish::{Finished, finish};
pub use recover::{Recovered, recover};
use sink::NAMES_MAX;
pub use trace_sink::EVENTS_MAX;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use observer_ebpf::wire::RecordKind;

use crate::aggregate::Snapshot;
use crate::clock::{Anchor, Anchors, MonoNanos};
use crate::doctor;
use crate::error::{Error, Exit, Result};
use crate::host::{cgroups::Cgroups, process, process::Process, system};
use crate::kernel::{Kernel, LoadError, LoadOptions, TargetSet};
use crate::loadgen::kept::{KeptFile, OUTPUT_BYTES, SAMPLES_BYTES};
use crate::loadgen::{ClockError, Live, SamplesSource, SamplesSpec};
use crate::model::{Coverage, EndReason, ProbeState, RUN_SCHEMA, RunInfo, SlowSpec, Tgid, files};
use crate::output::event_files::EventWriter;
use crate::output::rundir::RunDir;
use crate::probe::ProbeOptions;
use crate::target::{Changes, Membership, TargetSpec};
use command::Generator;
use cost::{Calibration, CostWatch};
use floor_log::HiddenWatch;
use journal::Journal;
use loss_watch::LossWatch;
use samples::{OutputKeeper, SampleReader};
use trace_sink::TraceSink;
use watch::SocketWatch;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The target.
    pub target: TargetSpec,
    /// Wait for it.
    pub wait: bool,
    /// The probes to attach, and how.
    pub probes: ProbeOptions,
    /// What observer may add to the host.
    pub budget: Budget,
    /// The generator's samples.
    pub samples: Option<SamplesSpec>,
    /// How far the generator's wall clock may be from this host's, nanoseconds, if the user knows.
    pub clock_error_ns: Option<u64>,
    /// Ends the run after this time.
    pub duration: Option<Duration>,
    /// Which samples are slow.
    pub slow: SlowSpec,
    /// The run directory.
    pub out: Option<PathBuf>,
    /// The load generator to run.
    pub command: Vec<OsString>,
    /// The user it runs as; `None` for the one who called sudo, or else observer's own.
    pub user: Option<String>,
    /// Size of the ring that carries records.
    pub ring_bytes: u32,
    /// Floors fixed by hand, nanoseconds; the others adapt.
    pub floors_ns: Vec<(RecordKind, u64)>,
}

/// Progress, for display.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Since the probes were attached.
    pub elapsed: Duration,
    /// The generator's samples so far, if they are read.
    pub live: Option<Live>,
    /// Events of the target so far.
    pub events: u64,
    /// Records lost so far.
    pub lost: u64,
}

/// Name of the target's row in a run's snapshots.
const TARGET_ROW: &str = "target";

/// Pause between two checks of the target, the generator and the clock.
const TICK: Duration = Duration::from_millis(50);
/// The pause while there is no generator.
const IDLE_TICK: Duration = Duration::from_millis(900);
/// A target without a process for so long is gone: longer than a record takes to be drained.
const NEWS_TIME: Duration = Duration::from_millis(600);
/// Everything that exists during a run.
pub struct Session {
    options: RunOptions,
    journal: Journal,
    membership: Membership,
    kernel: Kernel,
    capture: Capture,
    births: Receiver<Tgid>,
    losses: LossWatch,
    generator: Option<Generator>,
    reader: Option<SampleReader>,
    outputs: Vec<OutputKeeper>,
    /// Bytes of the generator's output that were not kept, by file.
    cut: BTreeMap<&'static str, Arc<AtomicU64>>,
    sockets: SocketWatch,
    cost: CostWatch,
    hidden: HiddenWatch,
    baseline: Snapshot,
    started: Instant,
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        let exit = match error {
            _ if error.is_permission() => Exit::Permission,
            _ if error.is_limit() => Exit::Limit,
            _ => Exit::Kernel,
        };
        // The message already says what to do.
        if matches!(error, LoadError::Create { .. }) {
            return Self::new(exit, error.to_string());
        }
        Self::new(exit, format!("{error}; run `observer doctor` for details"))
    }
}

impl Session {
    /// Finds the target, attaches the probes, starts COMMAND. `None` when `stop` was raised while
    /// the target was waited for.
    ///
    /// # Errors
    /// When the target, the kernel, the run directory or COMMAND cannot be used; nothing is left
    /// behind then.
    pub fn start(options: RunOptions, stop: &AtomicBool) -> Result<Option<Self>> {
        doctor::preflight(&options.probes)?;
        if !options.command.is_empty() {
            command::find(&options.command[0])?;
        }
        let Some(mut membership) = find_target(&options.target, options.wait, stop)? else {
            return Ok(None);
        };
        let calibration = Calibration::take();
        let mut kernel = Kernel::attach(&LoadOptions {
            has_target: true,
            ring_bytes: options.ring_bytes,
            probes: options.probes.clone(),
            by_cgroup: false,
        })?;
        for (kind, floor_ns) in &options.floors_ns {
            kernel.set_floor_ns(*kind, *floor_ns);
        }
        mark_first(&mut membership, &kernel);
        let (directory, trace) = create_directory(options.out.as_deref())?;
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let floors = Floors {
            set: kernel.floors(),
            fixed: options.floors_ns.iter().map(|(kind, _)| *kind).collect(),
            ring_bytes: options.ring_bytes,
        };
        let hidden = HiddenWatch::new(&kernel);
        let counts = Arc::new(CaptureCounts::default());
        let (sinks, births) = capture::sinks(TraceSink::new(trace, &counts));
        let capture =
            Capture::start(ring, sinks, counts, floors).map_err(|error| unexpected(&error))?;
        let sockets = SocketWatch::start(&kernel, &membership);
        let losses = LossWatch::new(&kernel);
        let baseline = kernel.snapshot(Some(TARGET_ROW));
        let info = RunInfo {
            command: options
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            samples_format: options.samples.as_ref().map(ToString::to_string),
            clock_error_ns: options.clock_error_ns,
            slow_rule: options.slow.to_string(),
            ..describe(options.target.to_string(), &membership, &kernel)
        };
        let mut session = Self {
            journal: Journal::start(directory, info, &kernel)?,
            cost: CostWatch::start(options.budget, calibration, &kernel),
            options,
            membership,
            kernel,
            capture,
            births,
            losses,
            generator: None,
            reader: None,
            outputs: Vec::new(),
            cut: BTreeMap::new(),
            sockets,
            hidden,
            baseline,
            started: Instant::now(),
        };
        if let Err(error) = session.start_generator() {
            drop(session.generator.take());
            session.journal.directory.discard();
            return Err(error);
        }
        Ok(Some(session))
    }

    fn start_generator(&mut self) -> Result<()> {
        let samples = self.options.samples.clone();
        let samples = samples.as_ref();
        let source = samples.map(|spec| &spec.source);
        let from_command = source == Some(&SamplesSource::CommandOutput);
        let started = !self.options.command.is_empty();
        let clock_error = ClockError::of(self.options.clock_error_ns, started);
        let is_apart = |source: &SamplesSource| {
            matches!(source, SamplesSource::Path(_) | SamplesSource::Socket(_))
        };
        let out_is_samples = source.is_some_and(|source| !is_apart(source));
        let out_limit = if out_is_samples { SAMPLES_BYTES } else { OUTPUT_BYTES };
        let mut out = Some(self.keep(files::LOADGEN_OUT, out_limit)?);
        // Opens samples that do not come from COMMAND before any request is sent.
        if let Some(spec) = samples.filter(|_| !from_command) {
            let copy = if is_apart(&spec.source) {
                Some(self.keep(files::LOADGEN_SAMPLES, SAMPLES_BYTES)?)
            } else {
                out.take()
            };
            let read = |copy| read_samples(spec, clock_error, None, copy);
            self.reader = copy.map(read).transpose()?;
        }
        if self.options.command.is_empty() {
            return Ok(());
        }
        let err = self.keep(files::LOADGEN_ERR, OUTPUT_BYTES)?;
        let user = identity::identity(self.options.user.as_deref())?;
        if let Some(user) = &user {
            tracing::info!("COMMAND runs as {} (uid {})", user.name, user.uid);
        }
        if let (Some(user), Some(SamplesSource::Socket(path))) = (&user, source) {
            // Otherwise COMMAND could not connect.
            std::os::unix::fs::lchown(path, Some(user.uid), None)
                .map_err(|error| unexpected(&error))?;
        }
        self.journal.info.command_user = user.as_ref().map(|user| user.name.clone());
        let mut generator = Generator::start(&self.options.command, user)?;
        self.kernel.watch_generator(generator.pid());
        // If the target is named by command, cgroup or port, the generator must not become part of
        // it.
        self.membership.exclude(Tgid(generator.supervisor()));
        self.membership.exclude(Tgid(generator.pid()));
        let (output, errors) = (generator.take_output(), generator.take_errors());
        self.generator = Some(generator);
        let mut keep = |output: Option<OwnedFd>, copy| -> Result<()> {
            let started = output.map(|output| OutputKeeper::start(output, copy)).transpose();
            self.outputs.extend(started.map_err(|error| unexpected(&error))?);
            Ok(())
        };
        let beside = err.beside().map_err(|error| unexpected(&error))?;
        keep(errors, err)?;
        match (samples.filter(|_| from_command), out) {
            (Some(spec), Some(out)) => {
                self.reader = Some(read_samples(spec, clock_error, output, out)?);
            }
            (None, Some(out)) => keep(output, out)?,
            // The samples come from standard input, and take its place in the directory.
            (_, None) => keep(output, beside)?,
        }
        Ok(())
    }

    /// A new file of the run that keeps the beginning of a stream.
    fn keep(&mut self, name: &'static str, limit: u64) -> Result<KeptFile> {
        let file = self.journal.directory.create_file(name)?;
        let cut = Arc::clone(self.cut.entry(name).or_default());
        Ok(KeptFile::new(file, limit, cut))
    }

    /// Follows everything until the run is over; why it ended.
    ///
    /// # Errors
    /// When COMMAND cannot be waited for.
    pub fn follow(
        &mut self,
        stop: &AtomicBool,
        mut show: impl FnMut(&Progress),
    ) -> Result<EndReason> {
        let mut gone_since = None;
        loop {
            // Not a sleep: a signal ends it at once, where it was this thread that asked for signals.
            std::thread::park_timeout(self.tick(gone_since.is_some()));
            let elapsed = self.started.elapsed();
            for child in self.births.try_iter() {
                self.membership.on_fork(child);
            }
            let changes = mark_joined(&mut self.membership, &self.kernel);
            self.kernel.follow_binaries(self.membership.processes());
            self.sockets.note(&changes);
            if !self.membership.all_gone() {
                gone_since = None;
            }
            let changed = self.cost.tick(&mut self.kernel);
            if changed.sockets {
                self.sockets.count_again();
            }
            self.losses.note(changed.probes);
            self.journal.tick(&self.kernel, self.capture.counts());
            self.hidden.tick(&self.kernel, self.capture.counts());
            self.losses.tick(&self.kernel, &self.capture);
            show(&self.progress(elapsed));
            if let Some(generator) = &mut self.generator
                && generator.has_exited()?
            {
                return Ok(EndReason::CommandExit);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(EndReason::Interrupted);
            }
            if self.generator.is_none() && self.reader.as_ref().is_some_and(SampleReader::has_ended)
            {
                return Ok(EndReason::SamplesEnd);
            }
            if self.options.duration.is_some_and(|duration| elapsed >= duration) {
                return Ok(EndReason::Duration);
            }
            // The event of a child's birth may still be in transit when its parent has gone.
            if self.membership.all_gone()
                && gone_since.get_or_insert_with(Instant::now).elapsed() >= NEWS_TIME
            {
                return Ok(EndReason::TargetExit);
            }
        }
    }

    /// How long to sleep: a COMMAND's end is part of the result, other things can wait a little.
    /// Never longer than until the end of the run or of the window of run-time statistics.
    fn tick(&self, target_is_gone: bool) -> Duration {
        let tick = if self.generator.is_some() || target_is_gone { TICK } else { IDLE_TICK };
        let left =
            self.options.duration.map(|duration| duration.saturating_sub(self.started.elapsed()));
        [left, self.cost.window_left()].into_iter().flatten().fold(tick, Duration::min)
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        let counts = self.capture.counts();
        Progress {
            elapsed,
            live: self.reader.as_ref().map(SampleReader::live),
            events: counts.events(),
            lost: counts.lost.load(Ordering::Relaxed),
        }
    }
}

/// A new run directory and its trace; nothing is left behind where one of them cannot be made.
fn create_directory(out: Option<&Path>) -> Result<(RunDir, EventWriter)> {
    let directory = RunDir::create(out)?;
    match directory.create_events() {
        Ok(trace) => Ok((directory, trace)),
        Err(error) => {
            directory.discard();
            Err(error)
        }
    }
}

fn unexpected(error: &dyn std::fmt::Display) -> Error {
    Error::new(Exit::Failure, format!("cannot start: {error}"))
}

/// The processes of the target now. With `wait`, waits until there is one; `None` when `stop` was
/// raised first.
fn find_target(spec: &TargetSpec, wait: bool, stop: &AtomicBool) -> Result<Option<Membership>> {
    if wait {
        return Ok(Membership::wait(spec, stop)?);
    }
    Ok(Some(Membership::new(spec)?))
}

fn read_samples(
    spec: &SamplesSpec,
    clock_error: ClockError,
    command_output: Option<OwnedFd>,
    copy: KeptFile,
) -> Result<SampleReader> {
    SampleReader::start(spec, clock_error, command_output, copy)
        .map_err(|error| error.at(&source_name(spec)))
}

/// The name of the source of the samples in messages.
fn source_name(spec: &SamplesSpec) -> String {
    match &spec.source {
        SamplesSource::Path(path) => path.display().to_string(),
        SamplesSource::Socket(path) => format!("unix:{}", path.display()),
        SamplesSource::Stdin => "standard input".to_owned(),
        SamplesSource::CommandOutput => "COMMAND's output".to_owned(),
    }
}

/// Marks the target for the first time: what forks between listing and marking is found by
/// looking again.
fn mark_first(membership: &mut Membership, kernel: &Kernel) {
    let targets = kernel.targets();
    loop {
        membership.processes().for_each(|process| mark(&targets, process));
        if membership.rescan().is_empty() {
            return;
        }
    }
}

/// Marks the processes that have joined the target. The kernel side follows forks by itself; this
/// function is for processes that join in other ways. It does not remove marks: the kernel side
/// does that when the last thread exits, and here the mark might already belong to the next process
/// with the same id.
fn mark_joined(membership: &mut Membership, kernel: &Kernel) -> Changes {
    let targets = kernel.targets();
    let changes = membership.poll();
    for process in &changes.joined {
        tracing::debug!("process {} ({}) joined the target", process.tgid.0, process.comm);
        mark(&targets, process);
    }
    changes
}

/// Marks a process, unless the kernel side already did (user space cannot distinguish the mark from
/// that of a later process with the same id), or the process exited before it was marked.
fn mark(targets: &TargetSet, process: &Process) {
    if targets.contains(process.tgid.0) {
        return;
    }
    targets.set(process.tgid.0, true);
    if !process.is_alive() {
        targets.set(process.tgid.0, false);
    }
}

/// The description of a run that begins now: what is watched, and how.
fn describe(target: String, membership: &Membership, kernel: &Kernel) -> RunInfo {
    let uname = system::uname();
    let start = MonoNanos::now();
    RunInfo {
        schema: RUN_SCHEMA,
        observer_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: uname.release,
        boot_id: system::boot_id(),
        machine: uname.machine,
        cpus: system::online_cpus().len() as u32,
        target,
        target_processes: membership
            .processes()
            .map(|process| (process.tgid.0, process.comm.clone()))
            .collect(),
        target_cgroup: target_cgroup(membership),
        command: Vec::new(),
        command_user: None,
        command_exit: None,
        cut_bytes: BTreeMap::new(),
        samples_format: None,
        clock_error_ns: None,
        slow_rule: SlowSpec::default().to_string(),
        start_ns: start,
        end_ns: start,
        end_reason: EndReason::Running,
        anchors: Anchors(vec![Anchor::take()]),
        coverage: kernel.coverage(),
        floors_ns: kernel.floors_ns(),
        loss: crate::model::LossSummary::default(),
        removed: BTreeMap::new(),
        thread_names: thread_names(membership),
        holder_cgroups: BTreeMap::new(),
    }
}

/// Cgroup of the target's first process, in the hierarchy the histograms are kept by.
fn target_cgroup(membership: &Membership) -> Option<String> {
    Cgroups::read().memory_cgroup_of(membership.primary()?.tgid)
}

/// Command names of the target's threads that live now.
fn thread_names(membership: &Membership) -> BTreeMap<u32, String> {
    membership
        .tgids()
        .into_iter()
        .flat_map(process::threads)
        .filter_map(|tid| Some((tid.0, process::thread_comm(tid)?)))
        .collect()
}

impl Session {
    /// Logs which probes are attached, and the target.
    pub fn log_coverage(&self) {
        log_coverage(&self.kernel);
        tracing::info!("target {}", self.membership.describe());
    }
}

/// Logs which probes are attached; those that are not, or not completely, as warnings.
pub fn log_coverage(kernel: &Kernel) {
    for (probe, Coverage { state, tier, reason, .. }) in kernel.coverage() {
        let reason = reason.unwrap_or_default();
        match (state, tier) {
            (ProbeState::NotAsked, _) => {}
            (ProbeState::Attached, Some(tier)) if reason.is_empty() => {
                tracing::info!("probe {probe}: attached ({tier})");
            }
            (ProbeState::Attached, Some(tier)) => {
                tracing::info!("probe {probe}: attached ({tier}), {reason}");
            }
            (ProbeState::Attached, None) => {}
            _ => tracing::warn!("probe {probe} is not complete: {reason}"),
        }
    }
    if let Some(missing) = kernel.cgroup_member_missing() {
        tracing::warn!("nothing is measured by cgroup: {missing}");
    }
    for (program, log) in kernel.verifier_logs() {
        tracing::info!("the verifier rejected {program}:\n{log}");
    }
}
