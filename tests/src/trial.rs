//! Attaches observer to a workload at rest, lets it work, and reads the kernel counters before and
//! after: on the host that built the tests and in small guests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use observer::model::{Cause, Event, Outcome, RunInfo, Summary};
use observer::output::rundir::RunDir;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use serde_json::Value;
use tempfile::TempDir;

use crate::disturbance::Window;
use crate::kernel_counters::{self, SchedStat};
use crate::process::{Placement, Programs};
use crate::results::{Held, Relation};
use crate::switch_cost;
use crate::watch::{Watch, Work};

/// How much work is done, percent: a guest that is emulated does less.
const SCALE: &str = "OBSERVER_TEST_SCALE";
/// Set to 1 in a guest for these tests alone: whole-host harm (CPU hotplug, global memory pressure)
/// is done only there.
const GUEST: &str = "OBSERVER_TEST_GUEST";
/// Names a directory for files that must lie on a disk.
const DIRECTORY: &str = "OBSERVER_TEST_DIR";

/// Whether a text for users says the answer, whichever it is: that depends on how busy the host was.
#[must_use]
pub fn says_the_answer(text: &str, summary: &Summary) -> bool {
    let words: &[&str] = match summary.verdict.outcome {
        Outcome::Attributed => &[summary.verdict.top_cause.map_or("no cause", Cause::name)],
        Outcome::GeneratorLimited => &["limited by the load generator"],
        Outcome::NoSlowSamples => &["no latency problem found", "no samples"],
        Outcome::Inconclusive => &["inconclusive", "requests failed"],
        Outcome::Unexplained => &["unexplained"],
        Outcome::Unknown => &[],
    };
    // The answer comes first.
    let first = text.lines().next().unwrap_or_default().to_lowercase();
    words.iter().any(|words| first.contains(words))
}

/// `full`, or the configured percentage of it, at least 1.
///
/// # Panics
/// When the percentage is no number.
#[must_use]
pub fn scaled(full: u64) -> u64 {
    let percent = std::env::var(SCALE).map_or(100, |text| {
        text.parse::<u64>().unwrap_or_else(|_| panic!("{SCALE}={text} is no percentage"))
    });
    (full * percent / 100).max(1)
}

/// [`scaled`], as an argument of a workload.
#[must_use]
pub fn scaled_text(full: u64) -> String {
    scaled(full).to_string()
}

/// Whether harm to the whole host is welcome.
#[must_use]
pub fn in_guest() -> bool {
    std::env::var_os(GUEST).is_some_and(|value| value == "1")
}

/// The allowed difference of two clocks that are not read at the same instant: `fraction`, and more
/// where the CPU is emulated, because each CPU of such a guest stands still for up to 100 ms while
/// another one's turn is, anywhere within or around what is measured.
#[must_use]
pub fn between_clocks(fraction: f64) -> f64 {
    const EMULATED: f64 = 8.0;
    if in_guest() { EMULATED * fraction } else { fraction }
}

/// The directory cargo built into, from where the running test program lies.
fn built() -> Option<PathBuf> {
    let this = std::env::current_exe().ok()?;
    Some(this.parent()?.parent()?.to_owned())
}

/// The programs under test.
#[must_use]
pub fn programs() -> Programs {
    Programs::beside(&built().unwrap_or_default().join("observer"))
}

/// A directory for one test, on a disk where there is one: page cache of a tmpfs cannot be
/// dropped.
///
/// # Panics
/// When none can be made.
#[must_use]
pub fn directory() -> TempDir {
    let named = std::env::var_os(DIRECTORY).map(PathBuf::from);
    let cargos = built().and_then(|built| Some(built.parent()?.join("tmp")));
    let place = named.or(cargos.filter(|place| place.is_dir())).unwrap_or_else(std::env::temp_dir);
    TempDir::new_in(&place)
        .unwrap_or_else(|error| panic!("no temporary directory in {}: {error}", place.display()))
}

/// Whether files in a directory are read from a device.
#[must_use]
pub fn on_disk(directory: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    rustix::fs::statfs(directory)
        .is_ok_and(|found| ![TMPFS_MAGIC, RAMFS_MAGIC].contains(&found.f_type))
}

/// Starts a workload and waits until it is ready.
///
/// # Panics
/// When it does not get that far.
#[must_use]
pub fn start(arguments: &[&str], place: Placement<'_>) -> Work {
    let work = Work::start(&programs(), arguments, place).unwrap_or_else(|error| panic!("{error}"));
    settle(work.id());
    work
}

/// Waits until no thread of a workload has run for a moment. The one that said that all is ready,
/// or done, may still have to wait for the CPU before it falls asleep: often that of the thread
/// that it woke by its message. Its waits while observer is attached, but outside the interval of
/// the kernel counters, would be in observer's numbers only.
pub fn settle(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut before = None;
    let mut still = 0;
    while still < 3 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        // A thread may end between being listed and being read.
        let now = kernel_counters::schedstat(pid).ok();
        let asleep = kernel_counters::thread_states(pid).is_ok_and(|states| !states.contains(&'R'));
        still = if asleep && now.is_some() && now == before { still + 1 } else { 0 };
        before = now;
    }
}

/// Options with which everything that happens often becomes a record, in a ring that holds some
/// thousand.
pub const FLOODED: [&str; 8] = [
    "--ring-bytes",
    "64K",
    "--floor",
    "runqueue=0ns",
    "--floor",
    "fault=0ns",
    "--floor",
    "mm_syscall=0ns",
];

/// Starts a workload, and observer on it with these options and its files in `directory`.
///
/// # Panics
/// When one of them does not get that far.
#[must_use]
pub fn watched(arguments: &[&str], options: &[&str], directory: &Path) -> (Work, Watch) {
    let work = start(arguments, Placement::default());
    let pid = work.id().to_string();
    let target = [&["--pid", &pid][..], options].concat();
    let watch =
        Watch::start(&programs(), &target, directory).unwrap_or_else(|error| panic!("{error}"));
    (work, watch)
}

/// Makes every thread of a workload run for a moment. Of a wait that was moved from CPU to CPU
/// observer knows all parts once it has seen the thread run; the first wait after it was attached
/// would be in the kernel counters and not in its numbers, and on a busy host it is a long one.
///
/// # Panics
/// When one of them does not run.
pub fn nudge(pid: u32) {
    let arrivals = || kernel_counters::schedstat(pid).expect("the workload is there");
    let before = arrivals();
    // A wait that must end on the CPU where it began has one part.
    let places: Vec<(Pid, CpuSet)> = before.keys().filter_map(|tid| kept_in_place(*tid)).collect();
    for tid in before.keys() {
        // SAFETY: takes no pointer. The workload handles the signal and goes back to sleep.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, *tid, libc::SIGUSR1) };
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    let ran = |now: &BTreeMap<u32, SchedStat>| {
        before.iter().all(|(tid, then)| now.get(tid).is_none_or(|now| now.ran_ns > then.ran_ns))
    };
    while !ran(&arrivals()) {
        assert!(Instant::now() < deadline, "every thread of {pid} runs when it gets a signal");
        std::thread::sleep(Duration::from_millis(2));
    }
    // And is asleep again.
    std::thread::sleep(Duration::from_millis(20));
    for (tid, place) in &places {
        sched_setaffinity(Some(*tid), place).expect("where it could run before");
    }
}

/// Lets a thread run on the first of its CPUs only; the thread, and where it could run before.
fn kept_in_place(tid: u32) -> Option<(Pid, CpuSet)> {
    let tid = Pid::from_raw(i32::try_from(tid).ok()?)?;
    let place = sched_getaffinity(Some(tid)).ok()?;
    let mut first = CpuSet::new();
    first.set((0..CpuSet::MAX_CPU).find(|cpu| place.is_set(*cpu))?);
    sched_setaffinity(Some(tid), &first).ok()?;
    Some((tid, place))
}

/// A name that no other test on this host uses.
#[must_use]
pub fn unique(name: &str) -> String {
    format!("observer-test-{name}-{}", std::process::id())
}

/// The tiers of a probe that this kernel offers, the best one first, as `--tier` takes them.
///
/// # Panics
/// When the doctor does not report them.
#[must_use]
pub fn offered_tiers(probe: &str) -> Vec<String> {
    let mut doctor = Command::new(programs().observer);
    let output =
        doctor.args(["doctor", "--json", "--probes", "all"]).output().expect("the doctor answers");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let probes = found["probes"].as_array().expect("probes");
    let row = probes.iter().find(|row| row["probe"] == probe).expect("the probe");
    let tiers = row["tiers"].as_array().expect("tiers").iter();
    let offered: Vec<String> = tiers
        .filter(|tier| tier["state"] != "not_offered")
        .map(|tier| format!("{probe}={}", tier["tier"].as_str().expect("a name")))
        .collect();
    assert!(!offered.is_empty(), "{row}");
    offered
}

/// A test, and the tiers that its observers must use.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Name of the test, as in the results.
    pub test: &'static str,
    /// One observer for each: `PROBE=TIER`s with spaces between, or nothing for observer's own
    /// choice. With several, all watch the same work at the same time.
    pub tiers: Vec<Option<String>>,
    /// Kinds of loss that the test expects; any other one of the target's fails it.
    pub losing: &'static [&'static str],
}

/// A number that runs are compared by: name, relative tolerance, additional allowed difference, and
/// where it is.
pub type Metric<'a> = (&'a str, f64, u64, &'a dyn Fn(&Run) -> u64);

/// What one run left.
#[derive(Debug)]
pub struct Run {
    /// `summary.json`.
    pub summary: Summary,
    /// `run.json`.
    pub info: RunInfo,
    /// Its directory.
    pub directory: PathBuf,
}

/// A workload's run under observer.
#[derive(Debug)]
pub struct Observed<B> {
    /// By observer, in the order of [`Trial::tiers`].
    pub runs: Vec<Run>,
    /// The workload's own counts.
    pub counts: Value,
    /// The kernel counters before the work.
    pub before: B,
    /// The kernel counters after the work.
    pub after: B,
    /// What a wake-up and a switch cost while all observers were attached, nanoseconds.
    pub switch_ns: u64,
}

impl Trial {
    /// A test with observer's own choice of tiers.
    #[must_use]
    pub fn new(test: &'static str) -> Self {
        Self::with(test, vec![None])
    }

    /// A test with an observer for each of these tiers.
    #[must_use]
    pub const fn with(test: &'static str, tiers: Vec<Option<String>>) -> Self {
        Self { test, tiers, losing: &[] }
    }

    /// The same test, in which the target loses what is of these kinds.
    #[must_use]
    pub fn losing(self, kinds: &'static [&'static str]) -> Self {
        Self { losing: kinds, ..self }
    }

    /// Watches a workload, which is at rest when observer comes and when it goes, so that the
    /// interval between the two readings of the kernel counters is the interval of the work for
    /// both sides.
    ///
    /// # Panics
    /// When observer or the workload fails, or the target lost what the test does not expect.
    pub fn observe<B>(
        &self,
        work: &mut Work,
        directory: &Path,
        read: impl FnMut(u32) -> B,
    ) -> Observed<B> {
        let target = ["--pid".to_owned(), work.id().to_string()];
        self.observe_target(&target, work, directory, read)
    }

    /// Like [`Self::observe`], with a target that is not the workload's first process.
    ///
    /// # Panics
    /// As [`Self::observe`].
    pub fn observe_target<B>(
        &self,
        target: &[String],
        work: &mut Work,
        directory: &Path,
        mut read: impl FnMut(u32) -> B,
    ) -> Observed<B> {
        let watches = self.watch(target, directory);
        let window = Window::begin(watches.iter().map(|watch| watch.process.id()));
        let before = read(work.id());
        nudge(work.id());
        let counts = self.must(work.go());
        settle(work.id());
        let after = read(work.id());
        window.end();
        let switch_ns = switch_cost::measure_ns();
        Observed { runs: self.finish(watches), counts, before, after, switch_ns }
    }

    /// Attaches every observer of the trial, all at the same time: each takes a second.
    ///
    /// # Panics
    /// When one does not get that far.
    #[must_use]
    pub fn watch(&self, target: &[String], directory: &Path) -> Vec<Watch> {
        let watch = |(index, tier): (usize, &Option<String>)| {
            let place = directory.join(format!("observer-{index}"));
            std::fs::create_dir(&place).expect("a directory");
            let mut arguments: Vec<&str> = target.iter().map(String::as_str).collect();
            for tier in tier.iter().flat_map(|tiers| tiers.split(' ')) {
                arguments.extend(["--tier", tier]);
            }
            Watch::begin(&programs(), &arguments, &place)
        };
        let begun: Vec<_> = self.tiers.iter().enumerate().map(watch).collect();
        begun.into_iter().map(|begun| self.must(begun.and_then(Watch::attached))).collect()
    }

    /// The value; an error ends the test, which is named.
    #[track_caller]
    fn must<T>(&self, result: crate::Result<T>) -> T {
        result.unwrap_or_else(|error| panic!("{}: {error}", self.test))
    }

    /// Ends them, all at the same time.
    ///
    /// # Panics
    /// When observer fails, or the target lost what the test does not expect.
    #[must_use]
    pub fn finish(&self, watches: Vec<Watch>) -> Vec<Run> {
        let finish = |watch: Watch| {
            let directory = watch.run.clone();
            let (summary, info) = self.must(watch.finish_losing(self.losing));
            Run { summary, info, directory }
        };
        watches.iter().for_each(|watch| self.must(watch.stop()));
        watches.into_iter().map(finish).collect()
    }

    /// Compares each run with the kernel counters, then the others with the first.
    ///
    /// # Panics
    /// When they do not agree.
    #[track_caller]
    pub fn hold<B>(
        &self,
        observed: &Observed<B>,
        probe: &str,
        mut compare: impl FnMut(&Held, &Run),
        side_by_side: &[Metric<'_>],
    ) {
        for run in &observed.runs {
            compare(&Held::new(self.test, probe, &run.summary), run);
        }
        let Some((first, others)) = observed.runs.split_first() else { return };
        let best = first.summary.probes[probe].tier.clone().unwrap_or_default();
        for other in others {
            let held = Held::new(self.test, probe, &other.summary);
            let held = held.beside(&Held::new(self.test, probe, &first.summary));
            for (metric, tolerance, slack, number) in side_by_side {
                let against = format!("{best}, side by side");
                let numbers = (number(other), number(first));
                held.compare(Relation::Equal, metric, &against, numbers, (*tolerance, *slack));
            }
        }
    }
}

/// The kernel's run delay of the target, nanoseconds: the waits, and the sleeps that the kernel
/// counts as waits.
#[must_use]
pub fn run_delay_ns(summary: &Summary) -> u64 {
    summary.probes["runqueue"].sum_ns + sleep_booked_as_wait_ns(summary)
}

/// Sleeps of the target that the kernel counted as waits, nanoseconds.
#[must_use]
pub fn sleep_booked_as_wait_ns(summary: &Summary) -> u64 {
    let counters = &summary.probes["runqueue"].counters;
    counters.get("sleep_booked_as_wait_ns").map_or(0, |ns| ns.unsigned_abs())
}

impl Run {
    /// The only run of a trial of one observer.
    ///
    /// # Panics
    /// When the run has no such probe.
    #[must_use]
    pub fn probe(&self, name: &str) -> &observer::model::ProbeSummary {
        let probes = &self.summary.probes;
        probes.get(name).unwrap_or_else(|| panic!("no probe {name} in {probes:?}"))
    }

    /// Events of one part of a probe.
    #[must_use]
    pub fn count(&self, probe: &str, part: &str) -> u64 {
        self.probe(probe).parts.get(part).map_or(0, |part| part.count)
    }

    /// Their time, nanoseconds.
    #[must_use]
    pub fn sum_ns(&self, probe: &str, part: &str) -> u64 {
        self.probe(probe).parts.get(part).map_or(0, |part| part.sum_ns)
    }

    /// [`run_delay_ns`] of this run.
    #[must_use]
    pub fn run_delay_ns(&self) -> u64 {
        run_delay_ns(&self.summary)
    }

    /// What the target lost of this kind.
    #[must_use]
    pub fn target_lost(&self, kind: &str) -> u64 {
        self.summary.loss.of_target().get(kind).copied().unwrap_or_default()
    }

    /// What the whole host lost of this kind.
    #[must_use]
    pub fn lost(&self, kind: &str) -> u64 {
        self.summary.loss.by_kind.get(kind).copied().unwrap_or_default()
    }

    /// The records of the run.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let run = RunDir::open(&self.directory).expect("a run directory");
        run.read_events().expect("readable events").map_or(Vec::new(), |events| events.rows)
    }
}

/// A number of the workload's own counts.
///
/// # Panics
/// When it has none of this name.
#[must_use]
pub fn number(counts: &Value, key: &str) -> u64 {
    counts[key].as_u64().unwrap_or_else(|| panic!("{counts} has no {key}"))
}
