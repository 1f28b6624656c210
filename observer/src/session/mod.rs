//! One run, from attach to answer: the only place that connects all parts.

mod budget;
mod capture;
mod command;
mod complaint;
mod conditions;
mod cost;
mod daemon;
mod description;
mod drain;
mod finish;
mod floor;
mod floor_log;
mod forecast;
mod gathering;
mod grace;
mod holders;
pub mod identity;
mod journal;
mod listing;
mod loss_watch;
mod mark;
pub mod memory;
mod placing;
mod quota;
mod recording;
mod recover;
mod request_rate;
mod samples;
mod settling;
mod sink;
mod stacks;
mod start;
pub mod supervisor;
mod trace_sink;
mod watch;

pub use budget::Budget;
pub use capture::{Capture, Captured};
use capture::{FIRST_TICK, FIRST_TIME};
pub use daemon::{DaemonOptions, serve};
pub use drain::{CaptureCounts, Floors};
pub use finish::{Finished, finish};
pub use listing::{Listed, RecordedRun, SlowTimes};
pub use recover::{Recovered, recover};
use sink::{Birth, NAMES_MAX};
pub use trace_sink::EVENTS_MAX;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use observer_ebpf::wire::RecordKind;

use crate::aggregate::Snapshot;
use crate::doctor;
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, LoadError, LoadOptions};
use crate::loadgen::{Live, SamplesSource, SamplesSpec};
use crate::log::NOTICE;
use crate::model::{Coverage, EndReason, ProbeState, RunInfo, SlowSpec, by_owner};
use crate::output::rundir::RunDir;
use crate::pace::{Pieces, rest};
use crate::probe::ProbeOptions;
use crate::target::{Membership, TargetSpec};
use command::Generator;
use conditions::ConditionWatch;
use cost::{Calibration, CostWatch};
use description::{describe, target_cgroup};
use floor_log::HiddenWatch;
use journal::{Journal, create_directory};
use loss_watch::{LossWatch, Losses};
use mark::{mark_first, mark_joined};
use memory::Memory;
use request_rate::RequestRate;
use samples::{OutputKeeper, SampleReader};
use stacks::StackSink;
use trace_sink::TraceSink;

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
    /// Count what the target's threads do (perf events).
    pub counters: bool,
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

/// Pause between two checks of the target, the losses and the clock. The end of COMMAND and a signal end
/// it. Each check delays the requests that are in flight on its CPU.
const TICK: Duration = Duration::from_millis(500);
/// The pause while the target is not there.
const WAIT_TICK: Duration = Duration::from_millis(50);
/// A target without a process for so long is gone: longer than a record takes to be drained.
const NEWS_TIME: Duration = Duration::from_millis(600);
/// Everything that exists during a run.
pub struct Session {
    options: RunOptions,
    memory: Memory,
    journal: Journal,
    membership: Membership,
    kernel: Kernel,
    capture: Capture,
    births: Receiver<Birth>,
    /// The target is not there yet: nothing counts before its first process.
    waits: bool,
    losses: LossWatch,
    generator: Option<Generator>,
    reader: Option<SampleReader>,
    outputs: Vec<OutputKeeper>,
    cost: CostWatch,
    conditions: ConditionWatch,
    hidden: HiddenWatch,
    /// `None` where requests are not watched.
    requests: Option<RequestRate>,
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
    /// Finds the target, attaches the probes, starts COMMAND. A target that is waited for, and that
    /// the kernel side recognises by itself, may come later; COMMAND starts with it. `None` when
    /// `stop` was raised while another target was waited for.
    ///
    /// # Errors
    /// When the target, the kernel, the run directory or COMMAND cannot be used; nothing is left
    /// behind then.
    pub fn start(options: RunOptions, stop: &AtomicBool) -> Result<Option<Self>> {
        doctor::preflight(&options.probes)?;
        RunDir::check(options.out.as_deref())?;
        if !options.command.is_empty() {
            command::find(&options.command[0])?;
        }
        let Some(mut membership) = find_target(&options.target, options.wait, stop)? else {
            return Ok(None);
        };
        let has_stacks = options.probes.selection.contains("stack");
        let memory = Memory::of_run(options.ring_bytes, has_stacks);
        if let Some(cut) = memory.cut() {
            tracing::info!(target: NOTICE, "{cut}");
        }
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
        kernel.set_listened_ports(start::ports(&options.target, &membership));
        // Before the target is marked: nobody reads the ring yet.
        let mut stacks = StackSink::of_kernel(&mut kernel, memory.frames);
        stacks.iter_mut().for_each(|stacks| stacks.look_at(membership.tgids()));
        // What the target does is counted from the moment at which it is marked.
        let baseline = kernel.snapshot(Some(TARGET_ROW));
        mark_first(&mut membership, &kernel);
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let (directory, trace) = create_directory(options.out.as_deref(), RunDir::create_events)?;
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
        let conditions = ConditionWatch::start(&membership, &kernel, options.counters);
        // Before the first record is written: a directory that is discarded must not grow.
        let journal = Journal::start(directory, info, &kernel)?;
        let floors = Floors {
            set: kernel.floors(),
            fixed: options.floors_ns.iter().map(|(kind, _)| *kind).collect(),
            ring_bytes: options.ring_bytes,
        };
        let hidden = HiddenWatch::new(&kernel);
        let counts = Arc::new(CaptureCounts::default());
        let trace = TraceSink::new(trace, &counts, memory.stalls);
        let (journal, capture, births) = journal.capture(ring, trace, stacks, counts, floors)?;
        let losses = LossWatch::of_run(&kernel);
        let mut session = Self {
            journal,
            cost: CostWatch::start(options.budget, calibration, &kernel),
            conditions,
            waits: membership.all_gone(),
            options,
            memory,
            membership,
            requests: kernel.watches_requests().then(|| RequestRate::start(&kernel)),
            kernel,
            capture,
            births,
            losses,
            generator: None,
            reader: None,
            outputs: Vec::new(),
            hidden,
            baseline,
            started: Instant::now(),
        };
        if !session.waits
            && let Err(error) = session.start_generator()
        {
            session.discard();
            return Err(error);
        }
        Ok(Some(session))
    }

    /// Leaves nothing behind.
    fn discard(self) {
        drop(self.generator);
        // Nothing is written any more.
        drop(self.capture.finish());
        self.journal.directory.discard();
    }

    /// The target is there: the run begins with its first process, which may be gone again.
    fn begin(&mut self, first: Option<&Birth>) -> Result<()> {
        self.waits = false;
        self.started = Instant::now();
        self.kernel.set_listened_ports(start::ports(&self.options.target, &self.membership));
        self.baseline.self_usage = self.kernel.snapshot(None).self_usage;
        let now = describe(String::new(), &self.membership, &self.kernel);
        let info = &mut self.journal.info;
        info.start_ns = first.map_or(now.start_ns, |birth| birth.at);
        info.target_processes = now.target_processes;
        info.target_owners = now.target_owners;
        info.target_cpus = now.target_cpus;
        if let Some(Birth { tgid, comm, .. }) = first {
            info.target_processes.entry(tgid.0).or_insert_with(|| comm.clone());
        }
        info.target_cgroup = now.target_cgroup;
        info.thread_names = now.thread_names;
        self.conditions =
            ConditionWatch::start(&self.membership, &self.kernel, self.options.counters);
        self.log_target();
        self.start_generator()
    }

    fn log_target(&self) {
        let info = &self.journal.info;
        let processes = info.target_processes.iter().map(|(tgid, comm)| (*tgid, comm.as_str()));
        let taken = by_owner(processes, &info.target_owners);
        tracing::info!(target: NOTICE, "target {}: {taken}", info.target);
    }

    /// Follows everything until the run is over; why it ended.
    ///
    /// # Errors
    /// When the target does not come before `stop` is raised, or COMMAND cannot be started or waited
    /// for. Nothing is left behind if the run has not begun.
    pub fn follow(
        mut self,
        stop: &AtomicBool,
        show: impl FnMut(&Progress),
    ) -> Result<(Self, EndReason)> {
        let result = self.follow_to_end(stop, show);
        match result {
            Ok(reason) => Ok((self, reason)),
            Err(error) => {
                if self.generator.is_none() {
                    self.discard();
                }
                Err(error)
            }
        }
    }

    fn follow_to_end(
        &mut self,
        stop: &AtomicBool,
        mut show: impl FnMut(&Progress),
    ) -> Result<EndReason> {
        let mut gone_since = None;
        // A target that was waited for may come and go as long as something else ends the run.
        let ends_with_target = !self.options.wait
            || self.options.command.is_empty() && self.options.duration.is_none();
        loop {
            self.pause(self.tick(gone_since.is_some()));
            // A target that has just come is not kept waiting.
            let _pieces = (!self.waits).then(Pieces::begin);
            let mut first = None;
            for birth in self.births.try_iter() {
                self.membership.on_birth(birth.tgid, birth.forked);
                first.get_or_insert(birth);
                gone_since = None;
            }
            mark_joined(&mut self.membership, &self.kernel);
            rest();
            self.kernel.follow_binaries(self.membership.processes());
            if !self.membership.all_gone() {
                gone_since = None;
            }
            if self.waits {
                if first.is_some() || !self.membership.all_gone() {
                    self.begin(first.as_ref())?;
                } else if stop.load(Ordering::Relaxed) {
                    let message = "interrupted while waiting for the target";
                    return Err(Error::new(Exit::Target, message));
                }
            }
            let arrived = self.kernel.tend_cpus();
            self.losses.note(arrived);
            let elapsed = self.started.elapsed();
            let changed = self.cost.tick(&mut self.kernel);
            self.losses.note(changed);
            if let Some(requests) = &mut self.requests {
                requests.tick(&self.kernel);
            }
            rest();
            self.conditions.tick(&self.membership);
            self.journal.info.conditions = self.conditions.so_far();
            rest();
            self.note_generator();
            let losses = Losses::later(&self.kernel);
            self.journal.tick(&self.kernel, &losses, self.capture.counts());
            rest();
            self.hidden.tick(&self.kernel, self.capture.counts());
            self.losses.tick(&losses, &self.capture);
            show(&self.progress(elapsed));
            if let Some(generator) = &mut self.generator
                && generator.has_exited()?
            {
                return Ok(EndReason::CommandExit);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(EndReason::Interrupted);
            }
            if self.waits {
                continue;
            }
            if self.generator.is_none() && self.reader.as_ref().is_some_and(SampleReader::has_ended)
            {
                return Ok(EndReason::SamplesEnd);
            }
            if self.options.duration.is_some_and(|duration| elapsed >= duration) {
                return Ok(EndReason::Duration);
            }
            // The event of a child's birth may still be in transit when its parent has gone.
            if ends_with_target
                && self.membership.all_gone()
                && gone_since.get_or_insert_with(Instant::now).elapsed() >= NEWS_TIME
            {
                return Ok(EndReason::TargetExit);
            }
        }
    }

    /// Lets time pass, in which only a window of the cost may end.
    fn pause(&mut self, tick: Duration) {
        let end = Instant::now() + tick;
        loop {
            let now = Instant::now();
            let left = end.saturating_duration_since(now);
            let part = self.cost.window_left().map_or(left, |window| window.min(left));
            // Not a sleep: the end of COMMAND ends it at once, and a signal does, where it was this
            // thread that asked for signals.
            std::thread::park_timeout(part);
            if part == left || now.elapsed() < part {
                return;
            }
            let _pieces = Pieces::begin();
            let changed = self.cost.tick(&mut self.kernel);
            self.losses.note(changed);
        }
    }

    /// How long to sleep, never longer than until the end of the run.
    fn tick(&self, target_is_gone: bool) -> Duration {
        let tick = if target_is_gone || self.waits {
            WAIT_TICK
        } else if self.started.elapsed() < FIRST_TIME {
            FIRST_TICK
        } else {
            TICK
        };
        let duration = self.options.duration.filter(|_| !self.waits);
        let left = duration.map(|duration| duration.saturating_sub(self.started.elapsed()));
        left.map_or(tick, |left| left.min(tick))
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

fn unexpected(error: &dyn std::fmt::Display) -> Error {
    Error::new(Exit::Failure, format!("cannot start: {error}"))
}

/// The processes of the target now. With `wait` there may be none yet, if the kernel side will
/// recognise them; otherwise waits until there is one, and `None` when `stop` was raised first.
fn find_target(spec: &TargetSpec, wait: bool, stop: &AtomicBool) -> Result<Option<Membership>> {
    match Membership::new(spec) {
        Err(error) if wait && error.may_appear() && spec.joining().is_some() => {
            Ok(Some(Membership::nobody(spec)))
        }
        Err(_) if wait => Ok(Membership::wait(spec, stop)?),
        found => Ok(Some(found?)),
    }
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

impl Session {
    /// Logs which probes are attached, and the target.
    pub fn log_coverage(&self) {
        log_coverage(&self.kernel);
        if !self.waits {
            self.log_target();
        }
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
