//! A workload between its two waits, and observer watching it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use observer::model::{LossSummary, RunInfo, Summary};
use observer::output::rundir::RunDir;
use rustix::process::Signal;
use serde_json::Value;

use crate::Result;
use crate::process::{Placement, Programs, Running};

/// For a guest without hardware support for virtualisation; elsewhere both take a second.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(120);

/// A running `observer-work`.
#[derive(Debug)]
pub struct Work {
    process: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Work {
    /// Starts a workload and waits until it is ready to begin.
    ///
    /// # Errors
    /// When it does not get that far.
    pub fn start(programs: &Programs, arguments: &[&str], place: Placement<'_>) -> Result<Self> {
        let mut command = Command::new(&programs.work);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command, place)?;
        let stdin = process.child().stdin.take().ok_or("no pipe to the workload")?;
        let stdout = process.stdout().map(BufReader::new).ok_or("no pipe from the workload")?;
        let mut work = Self { process, stdin, stdout };
        match work.line()?.as_str() {
            "ready" => Ok(work),
            other => Err(format!("the workload {arguments:?} is not ready: {other:?}")),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err("the workload ended before its time".into()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(format!("cannot read from the workload: {error}")),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Lets it work to its end; returns its own counts. It stays, at rest.
    ///
    /// # Errors
    /// When it fails.
    pub fn go(&mut self) -> Result<Value> {
        self.begin()?;
        self.counts()
    }

    /// Lets it begin, and does not wait.
    ///
    /// # Errors
    /// When it is gone.
    pub fn begin(&mut self) -> Result<()> {
        self.stdin.write_all(b"\n").map_err(|error| format!("cannot start the work: {error}"))
    }

    /// Waits until it is done; returns its own counts.
    ///
    /// # Errors
    /// When it fails.
    pub fn counts(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|_| format!("the workload says no counts: {line:?}"))
    }

    /// Lets it end.
    ///
    /// # Errors
    /// When it does not.
    pub fn end(self) -> Result<ExitStatus> {
        let Self { mut process, stdin, stdout } = self;
        drop(stdin);
        drop(stdout);
        process.wait(END_TIMEOUT)
    }
}

/// `observer run` on a process, with its probes attached.
#[derive(Debug)]
pub struct Watch {
    /// observer.
    pub process: Running,
    /// The run directory.
    pub run: PathBuf,
    /// What observer printed.
    pub log: PathBuf,
    started: PathBuf,
    stop: PathBuf,
}

impl Watch {
    /// Starts `observer run TARGET` with its files in `directory`, waits until the probes are
    /// attached: a command given to it is started only then.
    ///
    /// # Errors
    /// When it does not get that far; the end of what observer printed is in the message.
    pub fn start(programs: &Programs, target: &[&str], directory: &Path) -> Result<Self> {
        Self::begin(programs, target, directory)?.attached()
    }

    /// The first half of [`Self::start`]: it may not have attached yet.
    ///
    /// # Errors
    /// When it does not start.
    pub fn begin(programs: &Programs, target: &[&str], directory: &Path) -> Result<Self> {
        let [run, log, started, stop] =
            ["run", "log", "started", "stop"].map(|name| directory.join(name));
        let output = File::create_new(&log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| format!("cannot make {}: {error}", log.display()))?;
        let mut command = Command::new(&programs.observer);
        // Workloads here do only what is expensive to watch, and every count is compared, so no
        // probe may be detached.
        let asked_for = target.contains(&"--budget");
        let budget = if asked_for { &[][..] } else { &["--budget", "none"] };
        command.arg("run").args(target).args(budget).arg("--out").arg(&run).arg("--");
        command.arg(&programs.work).arg("hold").arg(&started).arg(&stop);
        command.stdin(Stdio::null()).stdout(output.0).stderr(output.1);
        let process = Running::start(&mut command, Placement::default())?;
        Ok(Self { process, run, log, started, stop })
    }

    /// The second half of [`Self::start`]: waits until the probes are attached.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn attached(mut self) -> Result<Self> {
        let deadline = Instant::now() + ATTACH_TIMEOUT;
        while !self.started.exists() {
            if let Some(status) = self.process.ended()? {
                return Err(format!("observer ended with {status}: {}", self.printed()));
            }
            if Instant::now() > deadline {
                return Err(format!("observer did not attach: {}", self.printed()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self)
    }

    /// What observer printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string())
    }

    /// Lets the run end, and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub fn stop(&self) -> Result<()> {
        let stop = File::options().create(true).append(true).open(&self.stop);
        stop.map(drop).map_err(|error| format!("cannot stop the run: {error}"))
    }

    /// Ends the run; reads what it left.
    ///
    /// # Errors
    /// When observer fails, or the target lost anything: numbers of such a run are not to be compared.
    pub fn finish(self) -> Result<(Summary, RunInfo)> {
        self.finish_losing(&[])
    }

    /// The same of a run that may lose these kinds, which the test takes into account.
    ///
    /// # Errors
    /// When observer fails, or the target lost anything else.
    pub fn finish_losing(self, expected: &[&str]) -> Result<(Summary, RunInfo)> {
        let (summary, info) = self.finish_with_loss()?;
        match refused(&summary.loss, expected, is_real_time()) {
            lost if lost.is_empty() => Ok((summary, info)),
            lost => Err(format!("the target lost {lost:?}: {:?}", summary.loss)),
        }
    }

    /// Ends the run; reads what it left, which may be less than there was.
    ///
    /// # Errors
    /// When observer fails.
    pub fn finish_with_loss(mut self) -> Result<(Summary, RunInfo)> {
        self.stop()?;
        let status = self.process.wait(END_TIMEOUT)?;
        if !status.success() {
            return Err(format!("observer ended with {status}: {}", self.printed()));
        }
        read_run(&self.run)
    }
}

/// The kernel counts a sleep as a wait for a CPU when it moves the sleeper at the wrong moment. Every
/// comparison of waits adds the time of these sleeps, which has a counter of its own. Of some switches
/// there is no event.
const BY_CHANCE: [&str; 2] = ["sleep_booked_as_wait", "switch_missed"];

/// With PREEMPT_RT, a thread of any process can be preempted in the middle of a program, which the kernel
/// then skips for others on that CPU; the other half of what they did is lost too. Chance decides
/// whether that was a thread of the target.
const WITH_REAL_TIME: [&str; 3] = ["program_missed", "end_without_begin", "begin_without_end"];

/// The kernel skips a run now and then, most likely where another process reads or writes a map by bpf(2) on that
/// CPU: it leaves out the programs at classic tracepoints meanwhile (`bpf_disable_instrumentation`,
/// include/linux/bpf.h), also for threads that preempt the other one. It does not say whose run that was; a
/// comparison that it concerns does not hold.
const MISSED_BY_CHANCE: u64 = 3;

/// How many events of the target may be missing for this reason; 0 without PREEMPT_RT.
pub(crate) fn left_out_by_real_time(lost: &BTreeMap<String, u64>) -> u64 {
    if !is_real_time() {
        return 0;
    }
    WITH_REAL_TIME.iter().filter_map(|kind| lost.get(*kind)).sum()
}

fn is_real_time() -> bool {
    rustix::system::uname().version().to_string_lossy().contains("PREEMPT_RT")
}

/// What the target lost, apart from what chance decides.
#[must_use]
pub fn lost_by_target(loss: &LossSummary) -> BTreeMap<String, u64> {
    refused(loss, &[], is_real_time())
}

/// The losses of the target that can change what a test compares, unless it expects them.
fn refused(loss: &LossSummary, expected: &[&str], real_time: bool) -> BTreeMap<String, u64> {
    let by_chance = |kind: &str, count: u64| {
        BY_CHANCE.contains(&kind)
            || kind == "program_missed" && count <= MISSED_BY_CHANCE
            || real_time && WITH_REAL_TIME.contains(&kind)
    };
    let mut lost = loss.of_target();
    lost.retain(|kind, count| {
        *count > 0 && !expected.contains(&&**kind) && !by_chance(kind, *count)
    });
    lost
}

/// Reads a complete run directory.
///
/// # Errors
/// When it is not complete.
pub fn read_run(path: &Path) -> Result<(Summary, RunInfo)> {
    let run = RunDir::open(path).map_err(|error| error.to_string())?;
    let info = run.read_run().map_err(|error| error.to_string())?;
    let summary = run.read_summary().map_err(|error| error.to_string())?;
    let events = run.read_events().map_err(|error| error.to_string())?;
    match (summary, events) {
        (Some(summary), Some(events)) if !events.truncated => Ok((summary, info)),
        (None, _) => Err(format!("{} has no summary.json", path.display())),
        // A run in which nothing happened to the target.
        (Some(summary), None) => Ok((summary, info)),
        (_, Some(_)) => Err(format!("the events in {} are cut", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loss_of_the_target_is_refused_that_the_test_does_not_expect() {
        let kinds = |kinds: &[(&str, u64)]| -> BTreeMap<String, u64> {
            kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
        };
        let all = kinds(&[
            ("fault", 3),
            ("program_missed", 4),
            ("sleep_booked_as_wait", 5),
            ("socket_slot", 6),
            ("task_slot", 0),
            ("unheard_of", 1),
        ]);
        let loss = LossSummary {
            total: 3,
            by_kind: all.clone(),
            target_by_kind: Some(all),
            ..LossSummary::default()
        };
        let refused = |expected: &[&str], real_time| -> Vec<String> {
            refused(&loss, expected, real_time).into_keys().collect()
        };
        assert_eq!(refused(&[], false), ["fault", "program_missed", "socket_slot", "unheard_of"]);
        assert_eq!(refused(&["socket_slot", "fault"], true), ["unheard_of"]);
        // Of strangers.
        let loss = LossSummary { target_by_kind: Some(BTreeMap::new()), ..loss };
        assert!(super::refused(&loss, &[], false).is_empty());
    }
}
