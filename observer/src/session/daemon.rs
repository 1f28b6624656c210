//! The daemon: probes attached for as long as it runs, distributions read at every scrape.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use observer_ebpf::wire::RecordKind;

use super::recording::Recording;
use tokio::signal::unix::{SignalKind, signal};

use super::budget::Budget;
use super::conditions::ConditionWatch;
use super::cost::{Calibration, CostWatch};
use super::memory::Memory;
use super::watch::SocketWatch;
use super::{find_target, mark_first, mark_joined, target_cgroup};
use crate::aggregate::Snapshot;
use crate::call_filter::{self, Threads};
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, LoadOptions, RING_BYTES, Ring};
use crate::log::NOTICE;
use crate::output::http;
use crate::output::rundir::RunDir;
use crate::pace::Pieces;
use crate::privileges::{MEASURING, following, keep_only};
use crate::probe::ProbeOptions;
use crate::target::{Membership, TargetSpec};

/// Pause between two checks of the target.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);
/// Without individual stalls to deliver, little comes through the ring: births, deaths, sockets.
/// Should there be many, the kernel side wakes the thread at half a ring.
const DRAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two looks at the cost.
const COST_INTERVAL: Duration = Duration::from_millis(500);
/// Pause between two checks of the stop flag and of the rows of the cgroups.
const STOP_INTERVAL: Duration = Duration::from_secs(1);

/// What to serve.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Processes to show apart from their cgroups.
    pub target: Option<TargetSpec>,
    /// Wait for the target to appear.
    pub wait: bool,
    /// The probes to attach, and how.
    pub probes: ProbeOptions,
    /// Count what the target's threads do (perf events).
    pub counters: bool,
    /// What observer may add to the host.
    pub budget: Budget,
    /// A directory to create, for the records of the target's stalls.
    pub trace: Option<PathBuf>,
    /// Most that the trace takes on disk; its oldest part is removed.
    pub trace_bytes: u64,
}

struct Watching {
    /// The target's cgroup, by which its row is known; `None` until there is a process.
    name: Option<String>,
    membership: Membership,
    conditions: ConditionWatch,
}

struct Shared {
    kernel: Kernel,
    watching: Option<Watching>,
    recording: Option<Recording>,
    resident_bound_bytes: u64,
    /// Without a budget, the cost of the programs is not needed, and it is not measured.
    cost: Option<CostWatch>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watching {
    /// Marks the target in the kernel.
    fn begin(mut membership: Membership, kernel: &Kernel, counters: bool) -> Self {
        mark_first(&mut membership, kernel);
        let conditions = ConditionWatch::start(&membership, kernel, counters);
        let mut watching = Self { name: None, membership, conditions };
        watching.find_name(kernel);
        watching
    }

    /// Once a process was there, the target has its row, although the process may be gone before it
    /// could be looked at.
    fn find_name(&mut self, kernel: &Kernel) {
        let is_known = self.name.as_ref().is_some_and(|name| !name.is_empty());
        let is_there = !self.membership.all_gone();
        if is_known || !is_there && (self.name.is_some() || !kernel.has_seen_target()) {
            return;
        }
        if !is_there {
            // The kernel side knew it first.
            self.membership.rescan();
        }
        let cgroup = target_cgroup(&self.membership).unwrap_or_default();
        if self.name.replace(cgroup).is_none() {
            tracing::info!(target: NOTICE, "target {}", self.membership.describe());
        }
    }
}

impl Shared {
    /// Takes in what has come to the host: cgroups and CPUs.
    fn tend(&mut self) {
        self.kernel.tend_cgroups();
        let arrived = self.kernel.tend_cpus();
        if let Some(recording) = &mut self.recording {
            recording.note(arrived);
        }
    }

    fn snapshot(&mut self, live_sockets: Option<i64>) -> Snapshot {
        let watching = self.watching.as_ref().filter(|watching| watching.name.is_some());
        let name = watching.and_then(|watching| watching.name.as_deref());
        let mut snapshot = self.kernel.snapshot(name);
        snapshot.target_live_sockets = live_sockets.filter(|_| name.is_some());
        snapshot.conditions =
            watching.map(|watching| watching.conditions.so_far()).unwrap_or_default();
        snapshot.self_usage.rss_bound_bytes = self.resident_bound_bytes;
        snapshot.self_usage.added_cpu_share = self.cost.as_ref().and_then(CostWatch::added);
        if let Some(recording) = &self.recording {
            snapshot.floor_changes = recording.floor_changes();
            snapshot.trace = Some(recording.trace());
        }
        snapshot
    }
}

/// Attaches, listens, serves until `stop` is raised.
///
/// # Errors
/// When the kernel, the target or the address cannot be used.
pub fn serve(
    options: &DaemonOptions,
    stop: &Arc<AtomicBool>,
    listening: impl FnOnce(SocketAddr, &Kernel),
) -> Result<()> {
    crate::doctor::preflight(&options.probes)?;
    RunDir::check(options.trace.as_deref())?;
    let Some(membership) = first_target(options, stop)? else { return Ok(()) };
    // The port is taken before anything is attached: it is what fails most often.
    let failed = |error: std::io::Error| {
        Error::new(
            Exit::Address,
            format!("cannot listen on {}: {error}; choose another --listen", options.listen),
        )
    };
    let listener = std::net::TcpListener::bind(options.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let calibration = Calibration::take();
    let mut kernel = Kernel::attach(&LoadOptions {
        has_target: options.target.is_some(),
        ring_bytes: RING_BYTES,
        probes: options.probes.clone(),
        by_cgroup: true,
    })?;
    if let (Some(target), Some(membership)) = (&options.target, &membership) {
        kernel.set_listened_ports(super::start::ports(target, membership));
    }
    if options.trace.is_none() {
        // Individual stalls are not needed: the histograms contain everything, at no cost per
        // event.
        for kind in RecordKind::ALL {
            kernel.set_floor_ns(kind, u64::MAX);
        }
    }
    let unneeded = |errno: rustix::io::Errno| {
        Error::new(Exit::Failure, format!("cannot give up capabilities: {errno}"))
    };
    let bounded = options.budget != Budget::NONE;
    let following = following(kernel.has_perf_events() || options.counters);
    keep_only(if bounded { MEASURING } else { following }).map_err(unneeded)?;
    // Only the thread that measures keeps what turns the kernel's statistics on.
    let budget =
        bounded.then(|| keep_budget(stop)).transpose().map_err(|error| unavailable(&error))?;
    let cost = bounded.then(|| CostWatch::start(options.budget, calibration, &kernel));
    keep_only(following).map_err(unneeded)?;
    // The filters lengthen each call, and come after the cost of a call was measured.
    if let Err(error) = call_filter::apply(Threads::All) {
        tracing::warn!("system calls are not filtered: {error}");
    }
    let mut recording = None;
    if let (Some(out), Some(membership)) = (&options.trace, &membership) {
        recording = Some(Recording::start(options, out, membership, &mut kernel)?);
    }
    let watching =
        membership.map(|membership| Watching::begin(membership, &kernel, options.counters));
    // Without a target no record comes through the ring, and no process has to be followed.
    let followed = options.target.clone();
    let ring = kernel.take_ring().filter(|ring| followed.is_some() || ring.has_messages());
    let counts_sockets = followed.is_some() && kernel.choice("socket").is_some();
    let sockets = counts_sockets.then(|| SocketWatch::new(kernel.targets()));
    listening(address, &kernel);
    let resident_bound_bytes = Memory::of_run(RING_BYTES, false).resident_bound_bytes;
    let shared =
        Arc::new(Mutex::new(Shared { kernel, watching, recording, resident_bound_bytes, cost }));
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    if let Some((measured, thread)) = budget {
        let _ = measured.send(Arc::clone(&shared));
        threads.push(thread);
    }
    let others = [
        ring.map(|ring| drain(ring, stop)),
        followed.map(|spec| follow(spec, options.counters, &shared, stop)),
    ];
    let mut result = Ok(());
    for started in others.into_iter().flatten() {
        match started {
            Ok(thread) => threads.push(thread),
            Err(error) => result = Err(unavailable(&error)),
        }
    }
    result = result.and_then(|()| listen(listener, &shared, sockets, &threads, stop));
    stop.store(true, Ordering::Relaxed);
    let joined = join(threads);
    let mut shared = lock(&shared);
    let recorded = shared.recording.take().map(|recording| recording.finish(&shared.kernel));
    result.and(joined).and(recorded.unwrap_or(Ok(())))
}

/// Waits for the threads of the daemon.
///
/// # Errors
/// When one of them panicked; the log has its message.
fn join(threads: Vec<JoinHandle<()>>) -> Result<()> {
    let failed = |thread: JoinHandle<()>| {
        let name = thread.thread().name().unwrap_or_default().to_owned();
        thread.join().err().map(|_| name)
    };
    let failed: Vec<String> = threads.into_iter().filter_map(failed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let text = format!("the daemon cannot go on: thread {} failed", failed.join(", "));
    Err(Error::new(Exit::Failure, text))
}

/// Whether one of the threads, which run until the daemon is stopped, is over. What it did is not
/// done any more then, and what the daemon serves would be stale.
fn is_one_over(threads: &[JoinHandle<()>]) -> bool {
    threads.iter().any(JoinHandle::is_finished)
}

/// The processes of the target now. With `wait` there may be none yet, and the metrics of the host
/// are served until there is one. A trace begins with its target, so this function waits for it.
/// `None` when `stop` was raised meanwhile.
fn first_target(options: &DaemonOptions, stop: &AtomicBool) -> Result<Option<Option<Membership>>> {
    let Some(spec) = &options.target else { return Ok(Some(None)) };
    if options.trace.is_some() {
        return Ok(find_target(spec, options.wait, stop)?.map(Some));
    }
    match Membership::new(spec) {
        Ok(membership) => Ok(Some(Some(membership))),
        Err(error) if options.wait && error.may_appear() => {
            Ok(Some(spec.joining().map(|_| Membership::nobody(spec))))
        }
        Err(error) => Err(error.into()),
    }
}

fn listen(
    listener: std::net::TcpListener,
    shared: &Arc<Mutex<Shared>>,
    sockets: Option<SocketWatch>,
    threads: &[JoinHandle<()>],
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::new(Exit::Failure, format!("cannot serve: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("observer-http")
        .enable_all()
        .build()
        .map_err(failed)?;
    let (shared, stop) = (Arc::clone(shared), Arc::clone(stop));
    let tended = Arc::clone(&shared);
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let stopped = async move {
            // The flag is raised by the same signals; checking it all the time would be most of the
            // work of an idle daemon.
            while !stop.load(Ordering::Relaxed) && !is_one_over(threads) {
                tokio::select! {
                    _ = interrupt.recv() => return,
                    _ = terminate.recv() => return,
                    () = tokio::time::sleep(STOP_INTERVAL) => lock(&tended).tend(),
                }
            }
        };
        let sockets = sockets.map(Mutex::new);
        let source = move || {
            // Counted without the lock on the rest, because it takes a while where there are many.
            let sockets = sockets.as_ref().map(|sockets| sockets.lock());
            let live =
                sockets.and_then(|sockets| sockets.unwrap_or_else(PoisonError::into_inner).live());
            lock(&shared).snapshot(live)
        };
        http::serve(listener, source, stopped).await;
        Ok(())
    })
}

fn unavailable(error: &std::io::Error) -> Error {
    Error::new(Exit::Limit, format!("cannot start a thread: {error}"))
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("observer-{name}")).spawn(run)
}

fn drain(mut ring: Ring, stop: &Arc<AtomicBool>) -> std::io::Result<JoinHandle<()>> {
    let stop = Arc::clone(stop);
    thread("drain", move || {
        while !stop.load(Ordering::Relaxed) {
            ring.drain(usize::MAX, |_| {});
            ring.wait(DRAIN_INTERVAL);
        }
    })
}

/// A thread that waits for what it is to measure.
type BudgetThread = (mpsc::Sender<Arc<Mutex<Shared>>>, JoinHandle<()>);

/// Measures what the programs cost, and keeps that below the budget, once it is told of what.
fn keep_budget(stop: &Arc<AtomicBool>) -> std::io::Result<BudgetThread> {
    let stop = Arc::clone(stop);
    let (sender, receiver) = mpsc::channel::<Arc<Mutex<Shared>>>();
    let thread = thread("budget", move || {
        let Ok(shared) = receiver.recv() else { return };
        while !stop.load(Ordering::Relaxed) {
            let left = lock(&shared).cost.as_ref().and_then(CostWatch::window_left);
            std::thread::sleep(left.unwrap_or(COST_INTERVAL));
            let mut shared = lock(&shared);
            let Shared { kernel, recording, cost, .. } = &mut *shared;
            let Some(cost) = cost else { return };
            let _pieces = Pieces::begin();
            let changed = cost.tick(kernel);
            if let Some(recording) = recording {
                recording.note(changed);
            }
        }
    })?;
    Ok((sender, thread))
}

/// Updates the processes of the target, once there is one.
fn follow(
    spec: TargetSpec,
    counters: bool,
    shared: &Arc<Mutex<Shared>>,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    let (shared, stop) = (Arc::clone(shared), Arc::clone(stop));
    thread("follow", move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(FOLLOW_INTERVAL);
            let waiting = lock(&shared).watching.is_none();
            // The search does not hold the lock, because it takes a while on a large host.
            let found = if waiting { Membership::new(&spec).ok() } else { None };
            let mut shared = lock(&shared);
            let Shared { kernel, watching, recording, .. } = &mut *shared;
            if let Some(membership) = found {
                *watching = Some(Watching::begin(membership, kernel, counters));
            }
            if let Some(watching) = watching {
                watching.conditions.tick(&watching.membership);
                if let Some(recording) = recording {
                    recording.tick(&mut watching.membership, &watching.conditions, kernel);
                }
                mark_joined(&mut watching.membership, kernel);
                watching.find_name(kernel);
                kernel.follow_binaries(watching.membership.processes());
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_ends_the_daemon_with_its_name() {
        let stop = Arc::new(AtomicBool::new(false));
        let waiting = || {
            let stop = Arc::clone(&stop);
            thread("waits", move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        let mut threads = vec![waiting().unwrap()];
        assert!(!is_one_over(&threads));
        threads.push(thread("fails", || panic!("as the test wants")).unwrap());
        while !is_one_over(&threads) {
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.store(true, Ordering::Relaxed);
        let error = join(threads).unwrap_err();
        assert_eq!(error.to_string(), "the daemon cannot go on: thread observer-fails failed");
        assert!(join(vec![waiting().unwrap()]).is_ok());
    }
}
