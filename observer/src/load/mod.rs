//! A small open-loop load generator for HTTP/1.1 and for simple protocols over TCP: it sends by schedule,
//! however slow the server is.
//!
//! A pacer thread computes from the schedule alone when each request is due, and sleeps on the
//! monotonic clock until then. Each request is a separate task, so that no request delays another.
//! docs/SAMPLE_FORMAT.md defines what is measured:
//!
//! - *intended start*: from the schedule;
//! - *actual start*: the request's task begins to run. From then on it waits only for the connection
//!   and the server, so that a slow server never makes a request late;
//! - *lateness*, actual minus intended start, is caused by the generator: the pacer woke late, or its
//!   threads waited for a CPU;
//! - *latency*: from the actual start to the last byte of the answer.

mod arrivals;
mod client;
mod connect;
mod http;
mod output;
mod raw;
mod write;

#[cfg(test)]
mod raw_tests;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

pub use arrivals::{Arrivals, Schedule, is_chosen};
pub use client::RequestSpec;
pub use http::HttpSpec;
pub use output::Output;
pub use raw::{REPLY_BYTES_MAX, Rarely, RawSpec, ReplyEnd, Text};
pub use write::Totals;

use client::Pool;
use write::{Finished, Progress, RowSender, Writer};

use crate::clock::MonoNanos;
use crate::host::system::boot_id;
use crate::loadgen::observer_load::{
    ClockName, FORMAT, Header, Quantiles, ScheduleInfo, UNIT, VERSION,
};

/// What to send, when and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server's addresses, in the order of the resolver.
    pub addresses: Vec<SocketAddr>,
    /// As given, for the header line.
    pub url: String,
    /// The request.
    pub request: RequestSpec,
    /// Mean requests per second.
    pub rate_hz: f64,
    /// How long requests are sent.
    pub duration: Duration,
    /// How they are spread.
    pub arrivals: Arrivals,
    /// Of random arrivals, and of the requests of which only a share is sent.
    pub seed: u64,
    /// Connections opened before the schedule begins, and kept.
    pub connections: usize,
    /// Most connections open at one time.
    pub max_connections: usize,
    /// For one request, connecting included.
    pub timeout: Duration,
}

/// Ends a running generator early, from a signal handler or a test.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// No request is sent any more; those under way have [`GRACE`] to be answered and then become
    /// rows with the error `interrupted`.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag itself, for a signal handler.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// Requests under way when the generator is stopped are waited for this long.
pub const GRACE: Duration = Duration::from_secs(1);

/// What can end the generator.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The output went away.
    #[error("cannot write samples: {0}")]
    Output(#[source] std::io::Error),
    /// A thread or the runtime could not be started.
    #[error("cannot start: {0}")]
    Start(#[source] std::io::Error),
    /// A thread of the generator ended abnormally.
    #[error("the {0} thread ended abnormally")]
    Thread(&'static str),
}

/// How it went.
#[derive(Debug)]
pub struct Report {
    /// What the rows add up to.
    pub totals: Totals,
    /// Requests whose row was lost because the output could not keep up.
    pub rows_lost: u64,
    /// The schedule was not run to its end.
    pub interrupted: bool,
    /// Most connections open at one time.
    pub peak_connections: usize,
    /// Connections that could not be opened ahead.
    pub ahead_failed: usize,
}

impl Report {
    /// Actual minus intended start.
    #[must_use]
    pub fn lateness(&self) -> Quantiles {
        write::quantiles(&self.totals.lateness)
    }
}

/// Figures while it runs, for a progress line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests finished.
    pub rows: u64,
    /// Of these, failed.
    pub errors: u64,
    /// Rows lost.
    pub lost: u64,
}

/// Time between the connections being open and the first request.
const LEAD_NS: u64 = 20_000_000;

/// Tasks run in that time to no purpose but that.
const WARM_UPS: u64 = 5;

/// Connections are not waited for longer than this before the schedule begins.
const AHEAD_TIMEOUT: Duration = Duration::from_secs(1);

/// A sleep is cut into pieces of this length, so that a stop is noticed.
const NAP_NS: u64 = 50_000_000;

/// Runs the schedule to its end (or to [`Stop::stop`]) and writes every request to `out`.
///
/// # Errors
///
/// When the output cannot be written or a thread cannot be started; a server that fails is no
/// error but rows.
pub fn generate(
    config: &Config,
    out: impl Write + Send,
    stop: &Stop,
    mut progress: impl FnMut(Snapshot) + Send,
) -> Result<Report, LoadError> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers())
        .thread_name("load-worker")
        .enable_all()
        .build()
        .map_err(LoadError::Start)?;
    let pool = Arc::new(Pool::new(
        config.addresses.clone(),
        config.request.clone(),
        config.max_connections,
    ));
    let ahead_failed = open_ahead(&runtime, &pool, config);
    let start_ns = MonoNanos::now().0 + LEAD_NS;
    let writer = Writer::begin(out, &header(config, start_ns)).map_err(LoadError::Output)?;
    let (rows, received) = write::queue(write::QUEUE_ROWS);
    let counts = Arc::new(Progress::default());
    let (abort, aborted) = watch::channel(false);
    let pacer = Pacer { config, start_ns, stop, runtime: &runtime, pool: &pool, aborted };

    let totals = std::thread::scope(|scope| {
        let writing = spawn(scope, "load-writer", || {
            let totals = writer.run(received, &counts, || stop.is_stopped());
            if totals.is_err() {
                // The reader has gone: further requests would be useless.
                stop.stop();
                abort.send_replace(true);
            }
            totals
        })?;
        let pacing = spawn(scope, "load-pacer", || pacer.run(rows, &counts))?;
        let mut stopped = None;
        while !writing.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
            progress(snapshot(&counts));
            if stop.is_stopped() && stopped.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                abort.send_replace(true);
            }
        }
        pacing.join().map_err(|_| LoadError::Thread("pacer"))?;
        writing.join().map_err(|_| LoadError::Thread("writer"))?.map_err(LoadError::Output)
    })?;
    runtime.shutdown_background();
    Ok(Report {
        totals,
        rows_lost: counts.lost.load(Ordering::Relaxed),
        interrupted: stop.is_stopped(),
        peak_connections: pool.peak(),
        ahead_failed,
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, LoadError> {
    std::thread::Builder::new().name(name.into()).spawn_scoped(scope, run).map_err(LoadError::Start)
}

fn snapshot(counts: &Progress) -> Snapshot {
    Snapshot {
        rows: counts.rows.load(Ordering::Relaxed),
        errors: counts.errors.load(Ordering::Relaxed),
        lost: counts.lost.load(Ordering::Relaxed),
    }
}

/// More threads than this only fight the server for CPUs when both share a host.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4))
}

fn header(config: &Config, start_ns: u64) -> Header {
    Header {
        format: FORMAT.into(),
        version: VERSION,
        clock: ClockName::Monotonic,
        boot_id: boot_id(),
        unit: UNIT.into(),
        generator: Some(concat!("observer load ", env!("CARGO_PKG_VERSION")).into()),
        url: Some(config.url.clone()),
        schedule: Some(ScheduleInfo {
            arrivals: config.arrivals.name().into(),
            rate_hz: config.rate_hz,
            duration_ns: nanos(config.duration),
            start_ns,
            seed: (config.arrivals == Arrivals::Poisson).then_some(config.seed),
        }),
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Opens the kept connections; how many failed.
fn open_ahead(runtime: &Runtime, pool: &Arc<Pool>, config: &Config) -> usize {
    let wanted = config.connections.min(config.max_connections);
    let limit = config.timeout.min(AHEAD_TIMEOUT);
    runtime.block_on(async {
        let opening: Vec<_> = (0..wanted)
            .map(|_| {
                let pool = Arc::clone(pool);
                tokio::spawn(async move { tokio::time::timeout(limit, pool.open_ahead()).await })
            })
            .collect();
        let mut failed = 0;
        for one in opening {
            failed += usize::from(!matches!(one.await, Ok(Ok(Ok(())))));
        }
        failed
    })
}

struct Pacer<'a> {
    config: &'a Config,
    start_ns: u64,
    stop: &'a Stop,
    runtime: &'a Runtime,
    pool: &'a Arc<Pool>,
    aborted: watch::Receiver<bool>,
}

impl Pacer<'_> {
    // The sender goes with the pacer: the writer ends when the last request's copy is gone.
    #[expect(clippy::needless_pass_by_value)]
    fn run(self, rows: RowSender, counts: &Arc<Progress>) {
        // The kernel may otherwise delay each wake-up by 50 us to batch timers. Where it cannot
        // be set, requests are that much later, and say so.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        // The first task that runs pays for threads and code that were not used before:
        // milliseconds, which would be the lateness of the first request.
        for _ in 0..WARM_UPS {
            sleep_until(MonoNanos::now().0 + LEAD_NS / (2 * WARM_UPS), self.stop);
            let (rows, counts) = (rows.clone(), Arc::clone(counts));
            self.runtime.spawn(async move { drop((rows, snapshot(&counts), MonoNanos::now())) });
        }
        let config = self.config;
        let due =
            Schedule::new(config.arrivals, config.rate_hz, nanos(config.duration), config.seed);
        for (seq, offset_ns) in (0u64..).zip(due) {
            let intended_ns = self.start_ns + offset_ns;
            if !sleep_until(intended_ns, self.stop) {
                break;
            }
            let pool = Arc::clone(self.pool);
            let (rows, counts) = (rows.clone(), Arc::clone(counts));
            let (timeout, mut aborted) = (config.timeout, self.aborted.clone());
            self.runtime.spawn(async move {
                let done = pool.send(seq, timeout, &mut aborted).await;
                rows.send(Finished { seq, intended_ns, done }, &counts);
            });
        }
    }
}

/// Sleeps until an instant of the monotonic clock; false when told to stop.
fn sleep_until(at_ns: u64, stop: &Stop) -> bool {
    loop {
        if stop.is_stopped() {
            return false;
        }
        let now = MonoNanos::now().0;
        if now >= at_ns {
            return true;
        }
        let nap_end = MonoNanos(at_ns.min(now + NAP_NS)).on_own_clock();
        let nap = Timespec {
            tv_sec: (nap_end / 1_000_000_000) as i64,
            tv_nsec: (nap_end % 1_000_000_000) as i64,
        };
        // Absolute, so that a delay between reading the clock and sleeping is not added. An
        // interrupted sleep comes round again.
        let _ = rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &nap);
    }
}
