//! Known answers: a service is harmed on a schedule while observer watches a load test of it, and
//! observer has to say what the harm was.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::host::{network, system};
use observer::model::{Cause, CauseSummary, Outcome, Reason, Sample, Summary, Tgid};
use observer::output::rundir::RunDir;
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Result;
use crate::cgroup::MemoryCgroup;
use crate::episodes::{Episode, plan};
use crate::process::{Placement, Programs, Running, Service, interrupted};

/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(20);

/// The load begins when the probes are attached.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// What observer may take to write its report after the load.
const REPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// Threads that compete for the service's CPU.
const HOGS: usize = 8;

/// Priority of the service that must be short of memory and not of CPU.
const RECLAIM_NICE: i32 = -10;

/// Part of the slow requests that must lie in an episode; the rest may be chance (a busy host).
const SLOW_INSIDE_MIN: f64 = 0.8;

/// The harm that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// The service's memory cgroup is squeezed: requests stall in reclaim.
    Reclaim,
    /// CPU hogs are pinned beside the service: requests wait to run.
    Hog,
    /// The service sleeps in its handler: its own waiting must be named, and no kernel cause.
    Sleep,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reclaim, Self::Hog, Self::Sleep];

    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reclaim => "reclaim",
            Self::Hog => "hog",
            Self::Sleep => "sleep",
        }
    }

    /// What happens, for users.
    #[must_use]
    pub const fn explanation(self) -> &'static str {
        match self {
            Self::Reclaim => "its memory cgroup is squeezed now and then",
            Self::Hog => "CPU hogs share its CPU now and then",
            Self::Sleep => "it sleeps 60 ms in every 50th request",
        }
    }

    /// The cause that must be named.
    #[must_use]
    pub const fn expected(self) -> Cause {
        match self {
            Self::Reclaim => Cause::RECLAIM_MEMCG,
            Self::Hog => Cause::RUNQUEUE_OTHER,
            Self::Sleep => Cause::SERVICE_WAIT,
        }
    }

    /// Path and query of the requests.
    const fn request(self) -> &'static str {
        match self {
            Self::Reclaim => "/read",
            Self::Hog => "/cpu?us=1000",
            Self::Sleep => "/sleep?ms=60&every=50",
        }
    }

    /// Which requests are slow. A squeeze hits hardest where it finds the most memory in recent use:
    /// the slowest hundredth of all requests may come from one or two of them, and an answer
    /// needs more. An objective takes in all that were hit.
    const fn slow(self) -> &'static str {
        match self {
            Self::Reclaim => "5ms",
            Self::Hog | Self::Sleep => "p99",
        }
    }

    /// Requests per second: below half of what the service can do on one CPU, so that it is the
    /// harm, not the load, that makes requests wait.
    const fn rate_hz(self) -> u32 {
        match self {
            Self::Reclaim | Self::Hog => 100,
            Self::Sleep => 200,
        }
    }
}

/// What observer said, and what was done.
#[derive(Debug)]
pub struct Finding {
    /// The harm.
    pub scenario: Scenario,
    /// Where the run directory is.
    pub run: PathBuf,
    /// observer's answer.
    pub summary: Summary,
    /// The harm as it was done.
    pub episodes: Vec<Episode>,
    /// Slow requests.
    pub slow: usize,
    /// Of these, those that lie in an episode.
    pub slow_inside: usize,
}

/// A thread that does the harm on schedule, until it is stopped.
struct Harm {
    thread: JoinHandle<Result<Vec<Episode>>>,
}

impl Harm {
    /// Does `harm` for each planned episode, and undoes it by dropping what it returned.
    /// `harm` also says when it began: it may have to look before it strikes.
    fn begin<U>(harm: impl Fn() -> Result<(MonoNanos, U)> + Send + 'static) -> Result<Self> {
        let start = Instant::now();
        let thread = thread::Builder::new().name("harm".into()).spawn(move || {
            let mut episodes = Vec::new();
            for planned in plan(LOAD) {
                if !sleep_until(start + planned.begin) {
                    break;
                }
                let (begin, undo) = harm()?;
                let length = planned.length.as_nanos() as u64;
                let left = length.saturating_sub(MonoNanos::now().since(begin));
                sleep_until(Instant::now() + Duration::from_nanos(left));
                drop(undo);
                episodes.push(Episode { begin, end: MonoNanos::now() });
            }
            Ok(episodes)
        });
        Ok(Self { thread: thread.map_err(|error| format!("cannot start a thread: {error}"))? })
    }

    fn end(self) -> Result<Vec<Episode>> {
        self.thread.join().map_err(|_| "the thread that does the harm panicked".to_owned())?
    }
}

/// `false`: interrupted.
fn sleep_until(deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        if interrupted() {
            return false;
        }
        thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Lifts the limit when dropped.
struct Squeezed(Arc<MemoryCgroup>);

impl Drop for Squeezed {
    fn drop(&mut self) {
        if let Err(error) = self.0.limit(None) {
            eprintln!("{error}");
        }
    }
}

/// Threads that burn one CPU until dropped.
struct Hogs {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Hogs {
    fn start(cpu: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut hogs = Self { stop, threads: Vec::new() };
        for index in 0..HOGS {
            let stop = Arc::clone(&hogs.stop);
            let thread = thread::Builder::new().name(format!("cpu-hog-{index}")).spawn(move || {
                let mut cpus = CpuSet::new();
                cpus.set(cpu as usize);
                if let Err(error) = sched_setaffinity(None, &cpus) {
                    eprintln!("cannot pin a hog to CPU {cpu}: {error}");
                    return;
                }
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            hogs.threads.push(thread.map_err(|error| format!("cannot start a hog: {error}"))?);
        }
        Ok(hogs)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Plays a scenario; the run directory becomes `out`. observer's own output goes to the terminal,
/// or to `log` when given.
///
/// # Errors
/// When it could not be played to its end. What observer said is not judged here.
pub fn play(
    programs: &Programs,
    scenario: Scenario,
    out: &Path,
    log: Option<&Path>,
) -> Result<Finding> {
    let name = format!("observer-demo-{}-{}", std::process::id(), scenario.name());
    // Declared before the service, and so removed after it is gone.
    let cgroup = match scenario {
        Scenario::Reclaim => Some(Arc::new(MemoryCgroup::create(&name)?)),
        Scenario::Hog | Scenario::Sleep => None,
    };
    let cpu = match scenario {
        Scenario::Hog => system::online_cpus().last().copied(),
        Scenario::Reclaim | Scenario::Sleep => None,
    };
    let file = match scenario {
        Scenario::Reclaim => Some(sparse_file(out)?),
        Scenario::Hog | Scenario::Sleep => None,
    };
    // Reclaim keeps a CPU busy. One worker, and ahead of whatever else runs here: several would
    // wait for each other's CPU, but only memory must be short.
    let nice = cgroup.as_ref().map(|_| RECLAIM_NICE);
    let place = Placement { cgroup: cgroup.as_deref(), cpu, nice, ..Placement::default() };
    let mut arguments: Vec<&OsStr> = Vec::new();
    if let Some(file) = &file {
        let fixed: [&OsStr; 3] = ["--workers".as_ref(), "1".as_ref(), "--file".as_ref()];
        arguments.extend(fixed);
        arguments.push(file.path().as_os_str());
    }
    let service = Service::start(&programs.service, &arguments, place)?;
    // The service holds it open: it needs no name any more, and none is left behind.
    drop(file);

    let mut observer = start_observer(programs, scenario, &service, out, log)?;
    wait_for_load(&service, &mut observer)?;
    let harm = match (&cgroup, cpu) {
        (Some(cgroup), _) => {
            let cgroup = Arc::clone(cgroup);
            Some(Harm::begin(move || {
                cgroup.squeeze().map(|begin| (begin, Squeezed(Arc::clone(&cgroup))))
            })?)
        }
        (None, Some(cpu)) => Some(Harm::begin(move || {
            let begin = MonoNanos::now();
            Hogs::start(cpu).map(|hogs| (begin, hogs))
        })?),
        (None, None) => None,
    };
    let ended = wait_for_observer(&mut observer);
    let episodes = harm.map(Harm::end).transpose()?.unwrap_or_default();
    ended?;
    if let Some(kills) = cgroup.as_ref().map(|cgroup| cgroup.oom_kills()).transpose()?
        && kills > 0
    {
        return Err("the out-of-memory killer took the service: too little memory was left".into());
    }
    read_finding(scenario, out, episodes)
}

/// A file for the service on a file system with page cache: pages of a tmpfs cannot be reclaimed.
fn sparse_file(near: &Path) -> Result<tempfile::NamedTempFile> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    let near = near.parent().unwrap_or(Path::new("."));
    for directory in [near, Path::new("."), Path::new("/var/tmp")] {
        let Ok(system) = rustix::fs::statfs(directory) else { continue };
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        let kind = i64::from(system.f_type);
        if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
            continue;
        }
        return tempfile::Builder::new()
            .prefix("observer-demo-")
            .suffix(".sparse")
            .tempfile_in(directory)
            .map_err(|error| format!("cannot make a file in {}: {error}", directory.display()));
    }
    Err("no directory on a disk was found for the service's file: use --out on a disk".into())
}

fn start_observer(
    programs: &Programs,
    scenario: Scenario,
    service: &Service,
    out: &Path,
    log: Option<&Path>,
) -> Result<Running> {
    let mut command = Command::new(&programs.observer);
    command.args(["run", "--pid", &service.process.id().to_string()]);
    // Whatever the probes cost on this host, the cause must be found.
    command.args(["--budget", "none"]);
    command.args(["--samples", "observer", "--slow", scenario.slow(), "--out"]).arg(out);
    command.arg("--").arg(&programs.observer).arg("load");
    command.arg(format!("{}{}", service.url, scenario.request()));
    command.args(["--rate", &scenario.rate_hz().to_string()]);
    command.args(["--duration", &format!("{}s", LOAD.as_secs())]);
    command.stdin(Stdio::null());
    if let Some(log) = log {
        let file = File::create_new(log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| format!("cannot make {}: {error}", log.display()))?;
        command.stdout(file.0).stderr(file.1);
    }
    Running::start(&mut command, Placement::default())
}

/// Waits for the first connection: the probes are attached and the load has begun.
fn wait_for_load(service: &Service, observer: &mut Running) -> Result<()> {
    let sockets = || {
        network::socket_descriptors(Tgid(service.process.id())).map_or(0, |sockets| sockets.len())
    };
    let deadline = Instant::now() + ATTACH_TIMEOUT;
    while sockets() <= 1 {
        if let Some(status) = observer.ended()? {
            return Err(format!("observer ended before the load began: {status}"));
        }
        if interrupted() {
            observer.signal(Signal::INT);
            return Err("interrupted".into());
        }
        if Instant::now() > deadline {
            return Err(format!("no request came within {ATTACH_TIMEOUT:?}"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn wait_for_observer(observer: &mut Running) -> Result<()> {
    let deadline = Instant::now() + LOAD + REPORT_TIMEOUT;
    let mut told = false;
    loop {
        if let Some(status) = observer.ended()? {
            return match (told, status.success()) {
                (true, _) => Err("interrupted".into()),
                (false, true) => Ok(()),
                (false, false) => Err(format!("observer ended with {status}")),
            };
        }
        if interrupted() && !told {
            observer.signal(Signal::INT);
            told = true;
        }
        if Instant::now() > deadline {
            return Err(format!("observer still runs {REPORT_TIMEOUT:?} after the load"));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_finding(scenario: Scenario, out: &Path, episodes: Vec<Episode>) -> Result<Finding> {
    let run = RunDir::open(out).map_err(|error| error.to_string())?;
    let summary = run.read_summary().map_err(|error| error.to_string())?;
    let Some(summary) = summary else {
        return Err(format!("{} has no summary.json", out.display()));
    };
    let samples = run.read_samples().map_err(|error| error.to_string())?;
    let Some(samples) = samples else {
        return Err(format!("{} has no samples", out.display()));
    };
    let threshold = summary.samples.slow_threshold_ns;
    let is_slow = |sample: &&Sample| threshold > 0 && sample.response_ns() >= threshold;
    let slow: Vec<_> = samples.rows.iter().filter(is_slow).collect();
    let inside = |sample: &&&Sample| {
        episodes.iter().any(|episode| episode.overlaps(sample.begin(), sample.end))
    };
    let (slow_count, slow_inside) = (slow.len(), slow.iter().filter(inside).count());
    let run = fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
    Ok(Finding { scenario, run, summary, episodes, slow: slow_count, slow_inside })
}

impl Finding {
    /// The cause that was to be found, as observer saw it.
    #[must_use]
    pub fn expected_cause(&self) -> Option<&CauseSummary> {
        let expected = self.scenario.expected();
        self.summary.causes.iter().find(|cause| cause.cause == expected)
    }

    /// Compares the answer with what was done.
    ///
    /// # Errors
    /// One line that says what is wrong with it.
    pub fn judge(&self) -> Result<()> {
        let verdict = &self.summary.verdict;
        let latency = self.summary.samples.latency_ns;
        if latency.p99 < 5_000_000 || latency.p99 < 3 * latency.p50 {
            return Err(format!(
                "the harm did no harm: median {:.1} ms, p99 {:.1} ms",
                latency.p50 as f64 / 1e6,
                latency.p99 as f64 / 1e6
            ));
        }
        let expected = self.scenario.expected();
        let inside = self.slow_inside as f64;
        // Other processes that keep that CPU busy do the same harm as the hogs, and a sleep has no
        // episodes.
        if self.scenario == Scenario::Reclaim && inside < SLOW_INSIDE_MIN * self.slow as f64 {
            return Err(format!(
                "only {} of {} slow requests lie in the {} episodes: the host is too busy",
                self.slow_inside,
                self.slow,
                self.episodes.len()
            ));
        }
        if verdict.outcome != Outcome::Attributed || verdict.top_cause != Some(expected) {
            return Err(format!(
                "expected {}, found {}{} ({})",
                expected.name(),
                verdict.outcome.name(),
                verdict.top_cause.map_or_else(String::new, |cause| format!(" to {}", cause.name())),
                told(&verdict.reasons)
            ));
        }
        match self.expected_cause() {
            Some(cause) if cause.ci95[0] > 0.0 && cause.ci95[0] <= cause.share => Ok(()),
            Some(cause) => Err(format!(
                "{} was named with share {:.2} and interval {:.2?}, which does not exclude zero",
                expected.name(),
                cause.share,
                cause.ci95
            )),
            None => Err(format!("{} was named and is not among the causes", expected.name())),
        }
    }

    /// Expected and found, for users.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let latency = self.summary.samples.latency_ns;
        let verdict = &self.summary.verdict;
        let mut lines = vec![format!(
            "requests: median {:.2} ms, p99 {:.2} ms; {} slow ones",
            latency.p50 as f64 / 1e6,
            latency.p99 as f64 / 1e6,
            self.slow
        )];
        if !self.episodes.is_empty() {
            lines.push(format!(
                "schedule: {} episodes; {} of {} slow requests lie in them",
                self.episodes.len(),
                self.slow_inside,
                self.slow
            ));
        }
        lines.push(format!("expected: {}", self.scenario.expected().name()));
        let found = verdict.top_cause.map_or(verdict.outcome.name(), Cause::name);
        let cause = verdict.top_cause.unwrap_or(Cause::UNEXPLAINED);
        let share = self.summary.causes.iter().find(|summary| summary.cause == cause);
        lines.push(match share {
            Some(cause) => format!(
                "found:    {found}, {:.0} % of the excess latency (95 % interval {:.0} to {:.0} %)",
                cause.share * 100.0,
                cause.ci95[0] * 100.0,
                cause.ci95[1] * 100.0
            ),
            None => format!("found:    {found}"),
        });
        lines.push(format!("run directory: {}", self.run.display()));
        lines
    }
}

fn told(reasons: &[Reason]) -> String {
    let texts: Vec<&str> = reasons.iter().map(|reason| reason.text.as_str()).collect();
    texts.join(" ")
}
