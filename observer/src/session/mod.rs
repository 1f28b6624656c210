//! One run, from attach to answer: the only place where everything is wired together.

mod capture;
mod command;
mod daemon;
mod finish;
mod samples;
mod watch;

pub use capture::{Capture, CaptureCounts, Captured, EVENTS_MAX};
pub use daemon::{DaemonOptions, serve};
pub use finish::{Finished, finish};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::aggregate::Snapshot;
use crate::clock::{Anchor, Anchors, MonoNanos};
use crate::doctor;
use crate::error::{Error, Exit, Result};
use crate::host::{cgroups::Cgroups, process, system};
use crate::kernel::{Kernel, LoadError, LoadOptions, RING_BYTES};
use crate::loadgen::{Live, SamplesSource, SamplesSpec};
use crate::model::{EndReason, RUN_SCHEMA, RunInfo, SlowSpec, Tgid, files};
use crate::output::rundir::RunDir;
use crate::target::{Membership, TargetSpec};
use command::Generator;
use samples::SampleReader;
use watch::{SelfWatch, SocketWatch};

/// What to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The target.
    pub target: TargetSpec,
    /// Wait for it.
    pub wait: bool,
    /// The generator's samples.
    pub samples: Option<SamplesSpec>,
    /// Ends the run after this time.
    pub duration: Option<Duration>,
    /// Which samples are slow.
    pub slow: SlowSpec,
    /// The run directory.
    pub out: Option<PathBuf>,
    /// The load generator to run.
    pub command: Vec<OsString>,
}

/// Progress, for whoever shows it.
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

/// Pause between two looks at everything: the target, the generator, the clock.
const TICK: Duration = Duration::from_millis(50);
/// Pause between two clock anchors.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(1);

/// Everything that lives while a run is under way.
pub struct Session {
    options: RunOptions,
    directory: RunDir,
    membership: Membership,
    kernel: Kernel,
    capture: Capture,
    generator: Option<Generator>,
    reader: Option<SampleReader>,
    sockets: SocketWatch,
    self_watch: SelfWatch,
    baseline: Snapshot,
    anchors: Anchors,
    started: Instant,
    info: RunInfo,
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        let exit = match error {
            LoadError::Permission(_) => Exit::Permission,
            _ => Exit::Kernel,
        };
        Self::new(exit, format!("{error}; `observer doctor` tells more"))
    }
}

impl Session {
    /// Finds the target, attaches the probes, starts COMMAND. `None` when `stop` was raised while
    /// the target was waited for.
    ///
    /// # Errors
    /// When the target, the kernel, the run directory or COMMAND will not do; nothing is left
    /// behind then.
    pub fn start(options: RunOptions, stop: &AtomicBool) -> Result<Option<Self>> {
        doctor::preflight()?;
        if !options.command.is_empty() {
            command::find(&options.command[0])?;
        }
        let Some(mut membership) = find_target(&options.target, options.wait, stop)? else {
            return Ok(None);
        };
        let mut kernel = Kernel::attach(LoadOptions { has_target: true, ring_bytes: RING_BYTES })?;
        mark_first(&mut membership, &kernel);
        let directory = RunDir::create(options.out.as_deref())?;
        let trace = directory.create_events()?;
        let ring = kernel.take_ring().ok_or_else(|| unexpected(&"the ring is taken"))?;
        let capture = Capture::start(ring, trace).map_err(|error| unexpected(&error))?;
        let sockets = SocketWatch::start(&kernel, &membership)?;
        let baseline = kernel.snapshot(TARGET_ROW)?;
        let start = MonoNanos::now();
        let anchors = Anchors(vec![Anchor::take()]);
        let info = describe(&options, &membership, &kernel, start, &anchors);
        directory.write_run(&info)?;
        let mut session = Self {
            options,
            directory,
            membership,
            kernel,
            capture,
            generator: None,
            reader: None,
            sockets,
            self_watch: SelfWatch::new(),
            baseline,
            anchors,
            started: Instant::now(),
            info,
        };
        session.start_generator()?;
        Ok(Some(session))
    }

    fn start_generator(&mut self) -> Result<()> {
        let from_command = self
            .options
            .samples
            .as_ref()
            .is_some_and(|spec| spec.source == SamplesSource::CommandOutput);
        let out = self.directory.create_file(files::LOADGEN_OUT)?;
        let mut output = None;
        if !self.options.command.is_empty() {
            let err = self.directory.create_file(files::LOADGEN_ERR)?;
            let mut generator = Generator::start(&self.options.command, from_command, &out, err)?;
            self.kernel.watch_generator(generator.pid());
            // Named by command, cgroup or port, the generator is not what is under test.
            self.membership.exclude(Tgid(generator.pid()));
            output = generator.take_output();
            self.generator = Some(generator);
        }
        if let Some(spec) = &self.options.samples {
            let reader = SampleReader::start(spec, output, out)
                .map_err(|error| error.at(&source_name(spec)))?;
            self.reader = Some(reader);
        }
        Ok(())
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
        let mut anchored = Instant::now();
        let mut gone = false;
        loop {
            std::thread::sleep(TICK);
            let elapsed = self.started.elapsed();
            if anchored.elapsed() >= ANCHOR_INTERVAL {
                anchored = Instant::now();
                self.anchors.0.push(Anchor::take());
            }
            for child in self.capture.births() {
                self.membership.on_fork(child);
            }
            let was_gone = gone;
            mark_target(&mut self.membership, &self.kernel);
            gone = self.membership.all_gone();
            self.self_watch.tick();
            show(&self.progress(elapsed));
            if let Some(generator) = &mut self.generator
                && generator.has_exited()?
            {
                return Ok(EndReason::CommandExit);
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(EndReason::Interrupted);
            }
            if self.options.duration.is_some_and(|duration| elapsed >= duration) {
                return Ok(EndReason::Duration);
            }
            // Twice: the news of a child may still be under way when its parent is gone.
            if gone && was_gone {
                return Ok(EndReason::TargetExit);
            }
        }
    }

    fn progress(&self, elapsed: Duration) -> Progress {
        Progress {
            elapsed,
            live: self.reader.as_ref().map(SampleReader::live),
            events: self.capture.counts().events.load(Ordering::Relaxed),
            lost: self
                .kernel
                .counts()
                .map_or(0, |counts| counts.lost[..observer_ebpf::wire::KIND_SLOTS].iter().sum()),
        }
    }
}

fn unexpected(error: &dyn std::fmt::Display) -> Error {
    Error::new(Exit::Failure, format!("cannot start: {error}"))
}

/// Who is meant now; with `wait`, as soon as there is anybody, and `None` when `stop` was raised
/// first.
fn find_target(spec: &TargetSpec, wait: bool, stop: &AtomicBool) -> Result<Option<Membership>> {
    if wait {
        return Ok(Membership::wait(spec, stop)?);
    }
    Ok(Some(Membership::new(spec)?))
}

/// How the source of the samples is called in a message.
fn source_name(spec: &SamplesSpec) -> String {
    match &spec.source {
        SamplesSource::Path(path) => path.display().to_string(),
        SamplesSource::Stdin => "standard input".to_owned(),
        SamplesSource::CommandOutput => "COMMAND's output".to_owned(),
    }
}

/// Marks the target for the first time: what forks between listing and marking is found by
/// looking again.
fn mark_first(membership: &mut Membership, kernel: &Kernel) {
    let targets = kernel.targets();
    loop {
        for tgid in membership.tgids() {
            targets.set(tgid.0, true);
        }
        if membership.rescan().is_empty() {
            return;
        }
    }
}

/// Tells the kernel side who has joined or left the target. Forks it follows by itself; this is for
/// processes that join otherwise.
fn mark_target(membership: &mut Membership, kernel: &Kernel) {
    let targets = kernel.targets();
    let changes = membership.poll();
    for process in changes.joined {
        targets.set(process.tgid.0, true);
    }
    for tgid in changes.left {
        // The kernel side cleared the bit when the last thread exited; a new process may have the
        // id by now and be a target of its own.
        if !process::all_ids().contains(&tgid) {
            targets.set(tgid.0, false);
        }
    }
}

fn describe(
    options: &RunOptions,
    membership: &Membership,
    kernel: &Kernel,
    start: MonoNanos,
    anchors: &Anchors,
) -> RunInfo {
    let uname = system::uname();
    RunInfo {
        schema: RUN_SCHEMA,
        observer_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: uname.release,
        machine: uname.machine,
        cpus: system::online_cpus().len() as u32,
        target: options.target.to_string(),
        target_processes: membership
            .processes()
            .map(|process| (process.tgid.0, process.comm.clone()))
            .collect(),
        target_cgroup: target_cgroup(membership),
        command: options.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        command_exit: None,
        samples_format: options.samples.as_ref().map(ToString::to_string),
        slow_rule: options.slow.to_string(),
        start_ns: start,
        end_ns: start,
        end_reason: EndReason::Running,
        anchors: anchors.clone(),
        coverage: kernel.coverage(),
        floors_ns: kernel.floors_ns(),
        loss: crate::model::LossSummary::default(),
        thread_names: thread_names(membership),
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
    /// Says on standard error what is not watched, and with `verbose` everything that is, with
    /// the verifier's own words where it refused.
    pub fn note(&self, verbose: bool) {
        use crate::model::ProbeState;
        for (probe, coverage) in &self.info.coverage {
            let reason = coverage.reason.as_deref().unwrap_or_default();
            match coverage.state {
                ProbeState::Attached if verbose => {
                    let tier = coverage.tier.as_deref().unwrap_or_default();
                    eprintln!("observer: probe {probe}: attached ({tier})");
                }
                ProbeState::Attached => {}
                _ => eprintln!("observer: probe {probe} is not complete: {reason}"),
            }
        }
        if verbose {
            eprintln!("observer: target {}", self.membership.describe());
            for (program, state) in self.kernel.program_states() {
                if let crate::kernel::ProgramState::Failed { verifier_log: Some(log), .. } = state {
                    eprintln!("observer: {program}:\n{log}");
                }
            }
        }
    }
}
