//! The daemon: probes attached for as long as it runs, distributions read at every scrape.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use observer_ebpf::wire::RecordKind;

use super::watch::SocketWatch;
use super::{find_target, mark_first, mark_target, target_cgroup};
use crate::aggregate::Snapshot;
use crate::error::{Error, Exit, Result};
use crate::kernel::{Kernel, LoadOptions, RING_BYTES, Ring};
use crate::output::http;
use crate::target::{Membership, TargetSpec};

/// Without individual stalls to deliver, little comes through the ring: births, deaths, sockets.
const DRAIN_INTERVAL: Duration = Duration::from_millis(200);

/// What to serve.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Processes to show apart from their cgroups.
    pub target: Option<TargetSpec>,
    /// Wait for them.
    pub wait: bool,
}

struct Watching {
    /// The target's cgroup, by which its row is known.
    name: String,
    membership: Membership,
    sockets: SocketWatch,
}

struct Shared {
    kernel: Kernel,
    watching: Option<Watching>,
    /// The last snapshot that could be taken: served again should the kernel refuse one.
    last: Snapshot,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn snapshot(&mut self) -> Snapshot {
        let name = self.watching.as_ref().map_or("", |watching| &watching.name).to_owned();
        if let Ok(mut snapshot) = self.kernel.snapshot(&name) {
            if self.watching.is_none() {
                // The row of a target there is not.
                snapshot.cgroups.retain(|cgroup| !cgroup.target);
            }
            snapshot.target_live_sockets = self
                .watching
                .as_ref()
                .and_then(|watching| watching.sockets.live(&self.kernel.counts().ok()?));
            self.last = snapshot;
        }
        self.last.clone()
    }
}

/// Attaches, listens, serves until `stop` is raised.
///
/// # Errors
/// When the kernel, the target or the address will not do.
pub fn serve(
    options: &DaemonOptions,
    stop: &Arc<AtomicBool>,
    listening: impl FnOnce(SocketAddr, &Kernel),
) -> Result<()> {
    crate::doctor::preflight()?;
    let membership = match &options.target {
        None => None,
        Some(spec) => {
            let Some(membership) = find_target(spec, options.wait, stop)? else { return Ok(()) };
            Some(membership)
        }
    };
    // The port is taken before anything is attached: it is what most often cannot be had.
    let failed = |error: std::io::Error| {
        Error::new(
            Exit::Failure,
            format!("cannot listen on {}: {error}; choose another --listen", options.listen),
        )
    };
    let listener = std::net::TcpListener::bind(options.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let mut kernel =
        Kernel::attach(LoadOptions { has_target: membership.is_some(), ring_bytes: RING_BYTES })?;
    // Nobody reads individual stalls here: the histograms say it all, at no cost per event.
    for kind in RecordKind::ALL {
        kernel.set_floor_ns(kind, u64::MAX);
    }
    let watching = match membership {
        None => None,
        Some(mut membership) => {
            mark_first(&mut membership, &kernel);
            let sockets = SocketWatch::start(&kernel, &membership)?;
            let name = target_cgroup(&membership).unwrap_or_default();
            Some(Watching { name, membership, sockets })
        }
    };
    let ring = kernel.take_ring();
    listening(address, &kernel);
    let shared = Arc::new(Mutex::new(Shared { kernel, watching, last: Snapshot::default() }));
    let threads = [ring.map(|ring| drain(ring, stop)), Some(follow(&shared, stop))];
    let result = listen(listener, &shared, stop);
    stop.store(true, Ordering::Relaxed);
    for thread in threads.into_iter().flatten() {
        let _ = thread.join();
    }
    result
}

fn listen(
    listener: std::net::TcpListener,
    shared: &Arc<Mutex<Shared>>,
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
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let stopped = async move {
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        http::serve(listener, move || lock(&shared).snapshot(), stopped).await;
        Ok(())
    })
}

fn drain(mut ring: Ring, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            ring.drain(usize::MAX, |_| {});
            ring.wait(DRAIN_INTERVAL);
        }
    })
}

/// Keeps up with who belongs to the target.
fn follow(shared: &Arc<Mutex<Shared>>, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (shared, stop) = (Arc::clone(shared), Arc::clone(stop));
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(DRAIN_INTERVAL);
            let mut shared = lock(&shared);
            let Shared { kernel, watching, .. } = &mut *shared;
            if let Some(watching) = watching {
                mark_target(&mut watching.membership, kernel);
            }
        }
    })
}
