//! One run: a service, a load, an injection, and `observer run`, which knows nothing about it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::cgroup::{Cgroup, Controller, has_page_cache};
use super::child::{Place, Running, await_line};
use super::injector::{Episode, Injector, Victims, can_be_realtime};
use super::rows::{Form, Harm, Injection, Outside, Work};
use super::service::entry::Entry;
use crate::host::descendants::descendants;
use crate::model::{Sample, Summary, Tgid};
use crate::output::rundir::{RunDir, create_private_file};

/// What the service may take to begin, and observer to attach its probes.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// What observer may take to write its answer after the load, and the service to write its log.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);
const LOG_TIMEOUT: Duration = Duration::from_secs(10);
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
    pub(super) entries: Vec<Entry>,
    pub(super) episodes: Vec<Episode>,
    pub(super) samples: Vec<Sample>,
    pub(super) summary: Summary,
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

const fn word(harm: Harm) -> &'static str {
    match harm {
        Harm::None => "none",
        Harm::Sleep => "sleep",
        Harm::Burn => "burn",
        Harm::Faults => "faults",
        Harm::Map => "map",
        Harm::Background => "background",
    }
}

/// Plays one run; its files go into `directory`, which exists and is empty.
///
/// # Errors
/// When this host cannot do it, or something fails.
pub(super) fn play(
    host: &Host,
    form: Form,
    row: &Injection,
    seed: u64,
    directory: &Path,
    stop: &AtomicBool,
) -> Result<Played, Unplayed> {
    let cgroup = prepare(row, directory).map_err(Unplayed::Skipped)?;
    let (mut service, lines) = start_service(host, form, row, seed, directory, &cgroup)?;
    let alive = || ended_early(&mut service, "the service");
    let port = await_line(&lines, "listening ", START_TIMEOUT, stop, alive)?;
    let port: u16 = port.parse().map_err(|_| format!("the service says its port is {port:?}"))?;

    let mut observer = start_observer(host, row, seed, directory, service.id(), port)?;
    let alive = || {
        ended_early(&mut observer, "observer run")
            .map_err(|why| format!("{why}: {}", last_line(&directory.join("observer.err"))))
    };
    await_line(&lines, "request", START_TIMEOUT, stop, alive)?;
    let victims = Victims {
        service: service.id(),
        cpu: host.cpu,
        generator: generator(observer.id()),
        cgroup: Arc::clone(&cgroup),
    };
    let injector = Injector::begin(row.outside, victims, seed, host.load)?;
    let ended = observer.wait(Instant::now() + host.load + REPORT_TIMEOUT, stop);
    let episodes = injector.end(ended.is_err());
    ended.map_err(|why| format!("{why}: {}", last_line(&directory.join("observer.err"))))?;
    let episodes = episodes?;

    service.close_stdin();
    service.wait(Instant::now() + LOG_TIMEOUT, stop)?;
    if cgroup.oom_kills()? > 0 {
        return Err("the out-of-memory killer took the service".to_owned().into());
    }
    let entries = read_log(&directory.join("service.csv"))?;
    let (summary, samples) = read_run(&directory.join("run"))?;
    Ok(Played { entries, episodes, samples, summary })
}

/// The cgroup, and what else this drill needs from the host.
fn prepare(row: &Injection, directory: &Path) -> Result<Arc<Cgroup>, String> {
    if row.outside == Outside::HogRealtime {
        can_be_realtime()?;
    }
    let needed = match row.outside {
        Outside::Squeeze => Some(Controller::Memory),
        Outside::Quota => Some(Controller::Cpu),
        _ => None,
    };
    if row.work == Work::Read {
        on_disk(directory)?;
    }
    let name = format!("observer-drill-{}", std::process::id());
    Cgroup::make(&name, needed).map(Arc::new)
}

/// A directory whose files have page cache: pages of a tmpfs cannot be reclaimed.
fn on_disk(directory: &Path) -> Result<PathBuf, String> {
    let places = [directory, Path::new("."), Path::new("/var/tmp")];
    let found = places.into_iter().find(|place| has_page_cache(place));
    found.map(Path::to_owned).ok_or("no directory on a disk: use --keep DIR on a disk".into())
}

fn start_service(
    host: &Host,
    form: Form,
    row: &Injection,
    seed: u64,
    directory: &Path,
    cgroup: &Cgroup,
) -> Result<(Running, std::sync::mpsc::Receiver<String>), String> {
    let mut command = Command::new(&host.program);
    command.args(["drill-service", "--form", form.name(), "--harm", word(row.harm)]);
    command.args(["--work", if row.work == Work::Read { "read" } else { "spin" }]);
    command.args(["--seed", &seed.to_string()]);
    let lifetime = host.load + 2 * START_TIMEOUT + REPORT_TIMEOUT;
    command.args(["--lifetime", &lifetime.as_secs().to_string()]);
    command.arg("--log").arg(directory.join("service.csv"));
    if row.work == Work::Read {
        // The service makes it, and removes its name at once.
        let name = format!("observer-drill-{}.sparse", std::process::id());
        command.arg("--file").arg(on_disk(directory)?.join(name));
    }
    let errors = private_file(&directory.join("service.err"))?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
    let place = Place { cpu: Some(host.cpu), entrances: cgroup.entrances()? };
    let mut service = Running::start("the service", &mut command, place)?;
    let lines = service.lines()?;
    Ok((service, lines))
}

fn private_file(path: &Path) -> Result<File, String> {
    create_private_file(path).map_err(|error| error.to_string())
}

fn start_observer(
    host: &Host,
    row: &Injection,
    seed: u64,
    directory: &Path,
    service: u32,
    port: u16,
) -> Result<Running, String> {
    let mut command = Command::new(&host.program);
    command.args(["run", "--pid", &service.to_string(), "--samples", "observer-load"]);
    // Whatever the probes cost on this host, the cause must be found.
    command.args(["--budget", "none", "--as", "0:0", "--out"]).arg(directory.join("run"));
    command.arg("--").arg(&host.program).args(["load", &format!("http://127.0.0.1:{port}/")]);
    command.args(["--rate", &rate_hz(row.work).to_string()]);
    command.args(["--duration", &format!("{}ms", host.load.as_millis())]);
    command.args(["--arrivals", "poisson", "--seed", &seed.to_string()]);
    command.args(["--connections", &CONNECTIONS.to_string()]);
    command.stdin(Stdio::null());
    command.stdout(private_file(&directory.join("observer.out"))?);
    command.stderr(private_file(&directory.join("observer.err"))?);
    Running::start("observer run", &mut command, Place::default())
}

fn ended_early(child: &mut Running, name: &str) -> Result<(), String> {
    child.ended()?.map_or(Ok(()), |status| Err(format!("{name} ended before the load: {status}")))
}

/// The last line of a file: why a program failed.
fn last_line(path: &Path) -> String {
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

fn read_log(path: &Path) -> Result<Vec<Entry>, String> {
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
