//! Drills with known answers: a throwaway service under load is harmed on a schedule, `observer run`
//! watches it without knowing what is done, and its answer is compared with the truth.
//!
//! - [`rows`]: the injections, one row each; [`services`]: what they are played on;
//! - [`service`]: the own service, which writes its own log; `start`: starts it or a program of this host;
//!   `redis`: what is special about that one;
//! - `injector`: what is done from outside; `play`: one run;
//! - `truth`: what happened, from the log and the schedule; [`judge`]: the comparison;
//! - [`report`]: tables and JSON.

mod cgroup;
mod child;
mod injector;
pub mod judge;
mod play;
mod redis;
pub mod report;
pub mod rows;
pub mod service;
pub mod services;
mod start;
mod truth;
mod waits;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use judge::{Drill, Finding, Status};
use play::{Host, Unplayed};
use report::Report;
use rows::{INJECTIONS, Injection, Work};
use services::Service;
use truth::quantile_ns;

use crate::error::{Error, Exit, Result};

/// Length of the load of each drill, usually and with `--quick`.
const LOAD: Duration = Duration::from_secs(20);
const QUICK_LOAD: Duration = Duration::from_secs(12);
/// With `--quick`, no drill begins after this time, so that the last one ends within three minutes.
const QUICK_TIME: Duration = Duration::from_secs(150);

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first seed; each further run has the next one.
    pub seed: u64,
    /// Runs of each drill.
    pub runs: u64,
    /// Only these pairs of service and injection; all if empty.
    pub only: Vec<(Service, &'static Injection)>,
    /// A selection, with a shorter load.
    pub quick: bool,
    /// Where the run directories are kept; must not exist.
    pub keep: Option<PathBuf>,
}

impl Options {
    /// The pairs to play, in order.
    #[must_use]
    pub fn pairs(&self) -> Vec<(Service, &'static Injection)> {
        let is_wanted = |(service, row): &(Service, &'static Injection)| {
            if self.only.is_empty() {
                !self.quick || service.is_quick(row)
            } else {
                self.only.iter().any(|(only, of)| only == service && of.name == row.name)
            }
        };
        all_pairs().filter(is_wanted).collect()
    }
}

/// All pairs of a service and an injection that is played on it, in order.
pub fn all_pairs() -> impl Iterator<Item = (Service, &'static Injection)> {
    let rows_of = |service: Service| {
        INJECTIONS.iter().filter(move |row| service.plays(row)).map(move |row| (service, row))
    };
    Service::ALL.into_iter().flat_map(rows_of)
}

/// A directory for the files of all runs; removed in the end unless it is to be kept.
struct WorkDirectory {
    path: PathBuf,
    keep: bool,
}

impl WorkDirectory {
    fn make(keep: Option<&Path>) -> Result<Self> {
        let path = keep.map_or_else(
            || std::env::temp_dir().join(format!("observer-drill-{}", std::process::id())),
            Path::to_owned,
        );
        make_private(&path)?;
        // Children have the same working directory, but a name that stays valid is easier to use.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        Ok(Self { path, keep: keep.is_some() })
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn make_private(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(|error| {
        let exit = match error.kind() {
            std::io::ErrorKind::AlreadyExists => Exit::OutputExists,
            _ => Exit::Output,
        };
        Error::new(exit, format!("cannot make {}: {error}", path.display()))
    })
}

/// A series of drills under way.
struct Series<'a> {
    host: Host,
    directory: WorkDirectory,
    /// The p99 without an injection, nanoseconds, or why it is not known.
    baselines: HashMap<(Service, Work, u64), std::result::Result<u64, String>>,
    stop: &'a AtomicBool,
}

/// What a series says while it goes on.
#[derive(Debug)]
pub enum Told<'a> {
    /// A drill begins: its name, its number from 1, and the number of all.
    Begins(&'a str, usize, usize),
    /// A drill has ended.
    Ended(&'a Drill),
}

/// Plays all drills.
///
/// # Errors
/// When this host can do none of them, or when `stop` is set before the end.
pub fn play_all(
    options: &Options,
    stop: &AtomicBool,
    mut tell: impl FnMut(&Told),
) -> Result<Report> {
    let directory = WorkDirectory::make(options.keep.as_deref())?;
    let host = host(options)?;
    let mut series = Series { host, directory, baselines: HashMap::new(), stop };
    let begun = Instant::now();
    let pairs = options.pairs();
    let all = pairs.len() * usize::try_from(options.runs).unwrap_or(usize::MAX);
    let mut drills = Vec::new();
    for run in 0..options.runs {
        let seed = options.seed.wrapping_add(run);
        for (service, row) in &pairs {
            let name = format!("{}/{}", service.name(), row.name);
            tell(&Told::Begins(&name, drills.len() + 1, all));
            let late = options.quick && begun.elapsed() > QUICK_TIME;
            let drill = if late {
                let why = Unplayed::Skipped("three minutes are over".into());
                series.unplayed(*service, row, seed, Instant::now(), why)
            } else {
                series.play(*service, row, seed)
            };
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(Exit::Interrupted, "interrupted"));
            }
            tell(&Told::Ended(&drill));
            drills.push(drill);
        }
    }
    Ok(Report::new(options.seed, drills))
}

/// Checks what all drills need, and pins this process to the CPUs that the service does not have.
fn host(options: &Options) -> Result<Host> {
    let program = std::env::current_exe().map_err(|error| {
        Error::new(Exit::Failure, format!("does not know where its own program is: {error}"))
    })?;
    let allowed = rustix::thread::sched_getaffinity(None)
        .map_err(|error| Error::new(Exit::Failure, format!("cannot read the CPUs: {error}")))?;
    let online = crate::host::system::online_cpus();
    let mut cpus: Vec<u32> =
        online.into_iter().filter(|cpu| allowed.is_set(*cpu as usize)).collect();
    let (Some(cpu), false) = (cpus.pop(), cpus.is_empty()) else {
        let what = "drills need two CPUs: one for the service, one for the load and observer";
        return Err(Error::new(Exit::Failure, what));
    };
    // Inherited by everything that is started.
    injector::pin(&cpus).map_err(|error| Error::new(Exit::Failure, error))?;
    Ok(Host { program, cpu, load: if options.quick { QUICK_LOAD } else { LOAD } })
}

impl Series<'_> {
    fn play(&mut self, service: Service, row: &'static Injection, seed: u64) -> Drill {
        let begun = Instant::now();
        match self.judged(service, row, seed) {
            Ok((status, reason, finding)) => Drill {
                service,
                injection: row.name,
                seed,
                status,
                reason,
                seconds: begun.elapsed().as_secs_f64(),
                finding: Some(finding),
            },
            Err(why) => self.unplayed(service, row, seed, begun, why),
        }
    }

    fn unplayed(
        &self,
        service: Service,
        row: &'static Injection,
        seed: u64,
        begun: Instant,
        why: Unplayed,
    ) -> Drill {
        let (status, reason) = match why {
            Unplayed::Skipped(reason) => (Status::Skipped, reason),
            Unplayed::Failed(reason) => (Status::Failed, reason),
        };
        Drill {
            service,
            injection: row.name,
            seed,
            status,
            reason: Some(reason),
            seconds: begun.elapsed().as_secs_f64(),
            finding: None,
        }
    }

    fn judged(
        &mut self,
        service: Service,
        row: &'static Injection,
        seed: u64,
    ) -> std::result::Result<(Status, Option<String>, Finding), Unplayed> {
        let is_injected = row.truth != rows::Truth::None;
        let played = self.played(service, row, seed)?;
        if !is_injected {
            let p99_ns = quantile_ns(&played.samples, 0.99);
            self.baselines.insert((service, row.work, seed), Ok(p99_ns));
            return Ok(judge::judge(row, &played, None));
        }
        let baseline_ns = self.baseline(service, row.work, seed).map_err(Unplayed::Failed)?;
        Ok(judge::judge(row, &played, Some(baseline_ns)))
    }

    /// The p99 of the same service without an injection, from a run of its own where there was none.
    fn baseline(
        &mut self,
        service: Service,
        work: Work,
        seed: u64,
    ) -> std::result::Result<u64, String> {
        if let Some(known) = self.baselines.get(&(service, work, seed)) {
            return known.clone();
        }
        let played = self.played(service, &Injection::baseline(work), seed);
        let p99_ns = match played {
            Ok(played) => Ok(quantile_ns(&played.samples, 0.99)),
            Err(Unplayed::Skipped(why) | Unplayed::Failed(why)) => {
                Err(format!("the run without injection: {why}"))
            }
        };
        self.baselines.insert((service, work, seed), p99_ns.clone());
        p99_ns
    }

    fn played(
        &self,
        service: Service,
        row: &Injection,
        seed: u64,
    ) -> std::result::Result<play::Played, Unplayed> {
        let work = if row.work == Work::Read { "-read" } else { "" };
        let name = format!("{}-{}{work}-{seed}", service.name(), row.name);
        let directory = self.directory.path.join(name);
        make_private(&directory).map_err(|error| Unplayed::Failed(error.to_string()))?;
        let (host, directory, stop) = (&self.host, directory.as_path(), self.stop);
        let common = self.directory.path.as_path();
        play::play(&play::Run { host, service, row, seed, directory, common, stop })
    }
}

#[cfg(test)]
mod tests {
    use super::rows::Form;
    use super::*;

    fn options(only: &[(Service, &str)], quick: bool) -> Options {
        let only = only.iter().map(|(service, name)| (*service, Injection::find(name).unwrap()));
        Options { seed: 1, runs: 1, only: only.collect(), quick, keep: None }
    }

    #[test]
    fn all_pairs_are_played_unless_some_are_chosen() {
        assert_eq!(options(&[], false).pairs().len(), all_pairs().count());
        let quick = options(&[], true).pairs();
        assert!(quick.len() >= 5, "{}", quick.len());
        let room = QUICK_TIME.as_secs() / (QUICK_LOAD.as_secs() + 4);
        assert!(quick.len() as u64 <= room, "{} of {room}", quick.len());
        // The run without injection comes first, and is the one that others are compared with.
        for (service, row) in &quick {
            assert!(matches!(service, Service::Own(_)), "{}", service.name());
            let first = quick.iter().find(|(of, _)| of == service).unwrap();
            assert_eq!(first.1.name, "nothing", "{} {}", service.name(), row.name);
        }
        let pool = Service::Own(Form::Pool);
        let one = options(&[(pool, "hog")], false).pairs();
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].0, one[0].1.name), (pool, "hog"));
        // Every form of the own service plays every injection.
        assert_eq!(all_pairs().filter(|(service, _)| *service == pool).count(), INJECTIONS.len());
    }

    #[test]
    fn a_work_directory_is_private_and_removed_unless_it_is_kept() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("kept");
        drop(WorkDirectory::make(Some(&path)).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let again = WorkDirectory::make(Some(&path)).err().unwrap();
        assert_eq!(again.exit, Exit::OutputExists);
        let made = WorkDirectory::make(None).unwrap();
        let path = made.path.clone();
        assert!(path.is_dir());
        drop(made);
        assert!(!path.exists());
    }
}
