//! One run: a service, a load, an injection, and `observer run`, which knows nothing about it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::cgroup::{Cgroup, Controller, has_page_cache};
use super::child::{Place, Running};
use super::injector::{Episode, Injector, Victims, can_be_realtime};
use super::rows::{Injection, Outside, Work};
use super::service::entry::Entry;
use super::services::Service;
use super::start;
use super::waits::Watch;
use crate::host::descendants::descendants;
use crate::model::{Sample, Summary, Tgid};
use crate::output::rundir::{RunDir, create_private_file};

/// What the service may take to begin, and observer to attach its probes.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What observer may take to write its answer after the load.
pub(super) const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections of the load generator.
const CONNECTIONS: u32 = 8;

/// What all runs have in common.
#[derive(Debug)]
pub(super) struct Host {
    /// This program.
    pub(super) program: PathBuf,
    /// The CPU of the service.
    pub(super) cpu: u32,
    /// Length of the load.
    pub(super) load: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Played {
    /// The service's own log; empty if it writes none.
    pub(super) entries: Vec<Entry>,
    /// When threads of a service that does not write it down waited for a CPU.
    pub(super) waits: Option<Vec<Episode>>,
    pub(super) episodes: Vec<Episode>,
    pub(super) samples: Vec<Sample>,
    pub(super) summary: Summary,
    /// Port of the service behind a proxy.
    pub(super) port_behind: Option<u16>,
}

/// Why a drill has no outcome.
#[derive(Debug)]
pub(super) enum Unplayed {
    /// This host cannot do it.
    Skipped(String),
    /// It went wrong.
    Failed(String),
}

impl From<String> for Unplayed {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// Requests per second: far below what the service can do on one CPU, so that it is the injection,
/// not the load, that makes requests wait.
const fn rate_hz(work: Work) -> u32 {
    match work {
        Work::Spin => 150,
        Work::Read => 100,
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    pub(super) host: &'a Host,
    pub(super) service: Service,
    pub(super) row: &'a Injection,
    pub(super) seed: u64,
    /// Where its files go; exists and is empty.
    pub(super) directory: &'a Path,
    /// Where files of all runs go; exists.
    pub(super) common: &'a Path,
    pub(super) stop: &'a AtomicBool,
}

/// Plays one run.
///
/// # Errors
/// When this host cannot do it, or something fails.
pub(super) fn play(run: &Run<'_>) -> Result<Played, Unplayed> {
    let Run { host, row, seed, directory, stop, .. } = *run;
    start::can_play(run.service).map_err(Unplayed::Skipped)?;
    let cgroup = prepare(row, directory).map_err(Unplayed::Skipped)?;
    let mut service = start::start(run, &cgroup)?;
    let serving = service.serving();
    let has_log = start::has_log_of_waits(run.service);
    let watch = if has_log { None } else { Some(watch(&serving)?) };

    let mut observer = start_observer(run, service.id(), &service.load(row.harm))?;
    let why = |why: String| format!("{why}: {}", last_line(&directory.join("observer.err")));
    service.await_first_request(stop, || observer.is_alive().map_err(why))?;
    let victims = Victims {
        service: serving,
        cpu: host.cpu,
        generator: generator(observer.id()),
        cgroup: Arc::clone(&cgroup),
    };
    let injector = Injector::begin(row.outside, victims, seed, host.load)?;
    let ended = observer.wait(Instant::now() + host.load + REPORT_TIMEOUT, stop);
    let episodes = injector.end(ended.is_err());
    ended.map_err(why)?;
    let episodes = episodes?;
    let waits = watch.map(Watch::end).transpose()?;

    service.end(run)?;
    if cgroup.oom_kills()? > 0 {
        return Err("the out-of-memory killer took the service".to_owned().into());
    }
    let (summary, samples) = read_run(&directory.join("run"))?;
    let entries = start::entries(run, &samples, waits.as_deref().unwrap_or_default())?;
    Ok(Played { entries, waits, episodes, samples, summary, port_behind: service.port_behind() })
}

/// Watches the threads that serve the requests of a service.
fn watch(serving: &[u32]) -> Result<Watch, String> {
    let [process] = serving else { return Err("the service is not one process".to_owned()) };
    Watch::begin(*process)
}

/// The cgroup, and what else this drill needs from the host.
fn prepare(row: &Injection, directory: &Path) -> Result<Arc<Cgroup>, String> {
    if row.outside == Outside::HogRealtime {
        can_be_realtime()?;
    }
    let needed = match row.outside {
        Outside::Squeeze => Some(Controller::Memory),
        Outside::Quota => Some(Controller::Cpu),
        Outside::Freeze => Some(Controller::Freezer),
        _ => None,
    };
    if row.work == Work::Read {
        on_disk(directory)?;
    }
    let name = format!("observer-drill-{}", std::process::id());
    Cgroup::make(&name, needed).map(Arc::new)
}

/// A directory whose files have page cache: pages of a tmpfs cannot be reclaimed.
pub(super) fn on_disk(directory: &Path) -> Result<PathBuf, String> {
    let places = [directory, Path::new("."), Path::new("/var/tmp")];
    let found = places.into_iter().find(|place| has_page_cache(place));
    found.map(Path::to_owned).ok_or("no directory on a disk: use --keep DIR on a disk".into())
}

pub(super) fn private_file(path: &Path) -> Result<File, String> {
    create_private_file(path).map_err(|error| error.to_string())
}

/// Starts it with a load generator, which gets `load`: what to request.
fn start_observer(run: &Run<'_>, service: u32, load: &[String]) -> Result<Running, String> {
    let Run { host, row, seed, directory, .. } = *run;
    let mut command = Command::new(&host.program);
    command.args(["run", "--pid", &service.to_string(), "--samples", "observer-load"]);
    // Whatever the probes cost on this host, the cause must be found.
    command.args(["--budget", "none", "--as", "0:0", "--out"]).arg(directory.join("run"));
    command.arg("--").arg(&host.program).arg("load").args(load);
    command.args(["--rate", &rate_hz(row.work).to_string()]);
    command.args(["--duration", &format!("{}ms", host.load.as_millis())]);
    command.args(["--arrivals", "poisson", "--seed", &seed.to_string()]);
    command.args(["--connections", &CONNECTIONS.to_string()]);
    command.stdin(Stdio::null());
    command.stdout(private_file(&directory.join("observer.out"))?);
    command.stderr(private_file(&directory.join("observer.err"))?);
    Running::start("observer run", &mut command, Place::default())
}

/// The last line of a file: why a program failed.
pub(super) fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    crate::text::clean(last, 300)
}

/// The load generator: the descendant of `observer run` that runs `observer load`.
fn generator(observer: u32) -> Option<u32> {
    let is_load = |id: u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"load")
    };
    descendants(Tgid(observer)).into_iter().map(|one| one.tgid.0).find(|id| is_load(*id))
}

pub(super) fn read_log(path: &Path) -> Result<Vec<Entry>, String> {
    let cannot = |error: csv::Error| format!("cannot read the service's log: {error}");
    let mut reader = csv::Reader::from_path(path).map_err(cannot)?;
    reader.deserialize().collect::<Result<_, _>>().map_err(cannot)
}

fn read_run(path: &Path) -> Result<(Summary, Vec<Sample>), String> {
    let run = RunDir::open(path).map_err(|error| error.to_string())?;
    let summary = run.read_summary().map_err(|error| error.to_string())?;
    let samples = run.read_samples().map_err(|error| error.to_string())?;
    match (summary, samples) {
        (Some(summary), Some(samples)) => Ok((summary, samples.rows)),
        _ => Err(format!("{} has no answer or no samples", path.display())),
    }
}
