//! The generator against a small server in this process.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;
use crate::clock::{Anchor, Anchors};
use crate::loadgen::{Ingest, Ingested, RelAnchor, Window, adapter};
use crate::model::Sample;

/// How the server behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Answer,
    CloseAfterEach,
    HangUp,
    Fail503,
}

struct Server {
    address: SocketAddr,
    /// No answer is given before this instant of the monotonic clock.
    stalled_until: Arc<AtomicU64>,
    accepted: Arc<AtomicUsize>,
    /// Ports of the connections at the client's end.
    ports: Arc<Mutex<HashSet<u16>>>,
    _runtime: Runtime,
}

impl Server {
    fn start(manner: Manner) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stalled_until = Arc::new(AtomicU64::new(0));
        let accepted = Arc::new(AtomicUsize::new(0));
        let ports = Arc::new(Mutex::new(HashSet::new()));
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = (accepted.clone(), ports.clone());
        runtime.spawn(serve(listener, manner, stalled_until.clone(), seen));
        Self { address, stalled_until, accepted, ports, _runtime: runtime }
    }
}

async fn serve(
    listener: TcpListener,
    manner: Manner,
    stalled_until: Arc<AtomicU64>,
    (accepted, ports): (Arc<AtomicUsize>, Arc<Mutex<HashSet<u16>>>),
) {
    loop {
        let (stream, peer) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::Relaxed);
        ports.lock().unwrap().insert(peer.port());
        let stalled_until = stalled_until.clone();
        let service = service_fn(move |_| {
            let until = stalled_until.load(Ordering::Relaxed);
            async move {
                let left = until.saturating_sub(MonoNanos::now().0);
                if left > 0 {
                    tokio::time::sleep(Duration::from_nanos(left)).await;
                }
                let status = if manner == Manner::Fail503 { 503 } else { 200 };
                let mut answer = Response::new(Full::new(Bytes::from_static(b"hello")));
                *answer.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
                if manner == Manner::CloseAfterEach {
                    answer
                        .headers_mut()
                        .insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        if manner == Manner::HangUp {
            drop(stream);
            continue;
        }
        tokio::spawn(async move {
            // A client that goes away is no failure of the test.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

pub(super) fn config(address: SocketAddr, rate_hz: f64, duration: Duration) -> Config {
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    Config {
        addresses: vec![address],
        url: format!("http://{address}/"),
        request: RequestSpec::Http(Arc::new(HttpSpec::new(
            Method::GET,
            Uri::from_static("/"),
            headers,
        ))),
        rate_hz,
        duration,
        arrivals: Arrivals::Constant,
        seed: 1,
        connections: 4,
        max_connections: 1000,
        timeout: Duration::from_secs(5),
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs the generator and reads its output with the adapter.
pub(super) fn run(config: &Config, stop: &Stop) -> (Report, Ingested) {
    let out = Shared::default();
    let start = MonoNanos::now();
    let report = generate(config, out.clone(), stop, |_| {}).unwrap();
    let mut ingest = Ingest::new(adapter("observer").unwrap());
    ingest.feed(&out.0.lock().unwrap());
    let window = Window { start, end: MonoNanos::now(), went_on: false };
    let anchors = Anchors(vec![Anchor::take()]);
    let ingested = ingest.finish(&anchors, window, &RelAnchor::default()).unwrap();
    assert!(!ingested.truncated);
    assert_eq!(ingested.samples.len() as u64, report.totals.sent);
    (report, ingested)
}

pub(super) fn errors(report: &Report) -> Vec<(&str, u64)> {
    report.totals.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect()
}

#[test]
fn a_server_that_stalls_does_not_slow_the_schedule() {
    let server = Server::start(Manner::Answer);
    let config = config(server.address, 200.0, Duration::from_millis(1_500));
    let (stall_from, stall_to) = {
        let (until, now) = (server.stalled_until.clone(), MonoNanos::now().0);
        let (from, to) = (now + 500_000_000, now + 800_000_000);
        std::thread::spawn(move || {
            sleep_until(from, &Stop::default());
            until.store(to, Ordering::Relaxed);
        });
        (MonoNanos(from), MonoNanos(to))
    };
    let (report, ingested) = run(&config, &Stop::default());
    let samples = &ingested.samples;
    assert_eq!((report.totals.sent, report.totals.ok, report.rows_lost), (300, 300, 0));
    let first = samples[0].intended_start.unwrap().0;
    for (k, sample) in samples.iter().enumerate() {
        assert_eq!(sample.seq, Some(k as u64));
        assert_eq!(sample.intended_start.unwrap().0, first + k as u64 * 5_000_000);
        assert!(sample.start >= sample.intended_start.unwrap());
    }
    // Sent on time all through the stall: half of all requests within 5 ms even on a busy host,
    // where a generator that waits for answers would be late by up to 300 ms.
    let in_stall: Vec<_> = samples
        .iter()
        .filter(|s| s.begin() > MonoNanos(stall_from.0 + 5_000_000) && s.begin() < stall_to)
        .collect();
    assert!((55..=60).contains(&in_stall.len()), "{}", in_stall.len());
    let mut late: Vec<u64> = in_stall.iter().map(|sample| sample.lateness_ns()).collect();
    late.sort_unstable();
    assert!(late[late.len() / 2] < 5_000_000, "{late:?}");
    // The stall is the answers' latency, each of them waiting for its end.
    for sample in &in_stall {
        assert!(sample.end >= stall_to, "{sample:?}");
    }
    let longest = in_stall.iter().map(|sample| sample.response_ns()).max().unwrap();
    assert!((280_000_000..600_000_000).contains(&longest), "{longest}");
    assert!(report.peak_connections >= 50, "{}", report.peak_connections);
}

#[test]
fn kept_connections_are_used_again() {
    let server = Server::start(Manner::Answer);
    let config = config(server.address, 100.0, Duration::from_secs(1));
    let (report, ingested) = run(&config, &Stop::default());
    assert_eq!((report.totals.ok, report.ahead_failed), (100, 0));
    let accepted = server.accepted.load(Ordering::Relaxed);
    // However slow this host is, some are used again: without that, each request has its own.
    assert!((4..100).contains(&accepted), "{accepted}");
    let ports = server.ports.lock().unwrap();
    let known = |sample: &Sample| sample.local_port.is_some_and(|port| ports.contains(&port));
    assert!(ingested.samples.iter().all(known), "{ports:?}");
}

#[test]
fn every_address_of_a_name_is_tried() {
    let server = Server::start(Manner::Answer);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = config(server.address, 100.0, Duration::from_millis(500));
    config.addresses = vec![dead, server.address];
    let (report, _) = run(&config, &Stop::default());
    assert_eq!((report.totals.ok, report.ahead_failed), (50, 0), "{:?}", report.totals.errors);
}

#[test]
fn a_server_that_closes_each_connection_is_served_with_new_ones() {
    let server = Server::start(Manner::CloseAfterEach);
    let (report, _) = run(&config(server.address, 100.0, Duration::from_secs(1)), &Stop::default());
    assert_eq!(report.totals.ok, 100, "{:?}", report.totals.errors);
    assert!(server.accepted.load(Ordering::Relaxed) >= 100);
}

#[test]
fn poisson_arrivals_are_sent_as_the_seed_says() {
    let server = Server::start(Manner::Answer);
    let mut config = config(server.address, 300.0, Duration::from_secs(1));
    config.arrivals = Arrivals::Poisson;
    config.seed = 42;
    let (_, ingested) = run(&config, &Stop::default());
    let due: Vec<u64> = Schedule::new(Arrivals::Poisson, 300.0, 1_000_000_000, 42).collect();
    assert!((230..370).contains(&due.len()));
    let sent: Vec<u64> = ingested.samples.iter().map(|s| s.intended_start.unwrap().0).collect();
    let start = sent[0] - due[0];
    assert_eq!(sent, due.iter().map(|offset| start + offset).collect::<Vec<_>>());
}

#[test]
fn a_refused_connection_is_a_row() {
    let address = {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    let (report, ingested) =
        run(&config(address, 100.0, Duration::from_millis(500)), &Stop::default());
    assert_eq!(errors(&report), [("refused", 50)]);
    assert_eq!((report.totals.answered, report.ahead_failed), (0, 4));
    for sample in &ingested.samples {
        assert!(!sample.ok && sample.status.is_none() && sample.local_port.is_none());
        assert!(sample.error.as_deref().unwrap().starts_with("refused: connect: "));
        assert!(sample.end > sample.start);
    }
}

#[test]
fn a_timeout_is_a_row_with_its_latency() {
    let server = Server::start(Manner::Answer);
    server.stalled_until.store(u64::MAX, Ordering::Relaxed);
    let mut config = config(server.address, 50.0, Duration::from_millis(400));
    config.timeout = Duration::from_millis(200);
    let (report, ingested) = run(&config, &Stop::default());
    assert_eq!(errors(&report), [("timeout", 20)]);
    assert!(ingested.samples.iter().all(|sample| sample.local_port.is_some()));
    assert!(ingested.samples.iter().all(|s| s.end.since(s.start) >= 200_000_000));
}

#[test]
fn a_server_that_hangs_up_and_one_that_fails_are_distinguished() {
    let server = Server::start(Manner::HangUp);
    let (report, _) =
        run(&config(server.address, 50.0, Duration::from_millis(400)), &Stop::default());
    let kinds: u64 =
        ["closed", "reset"].iter().filter_map(|kind| report.totals.errors.get(*kind)).sum();
    assert_eq!((kinds, report.totals.answered), (20, 0), "{:?}", report.totals.errors);

    let server = Server::start(Manner::Fail503);
    let (report, ingested) =
        run(&config(server.address, 50.0, Duration::from_millis(400)), &Stop::default());
    assert_eq!(errors(&report), [("status_503", 20)]);
    assert_eq!(report.totals.answered, 20);
    assert!(ingested.samples.iter().all(|s| !s.ok && s.status == Some(503)));
}

#[test]
fn requests_beyond_the_connections_are_rows_and_on_time() {
    let server = Server::start(Manner::Answer);
    server.stalled_until.store(MonoNanos::now().0 + 1_000_000_000, Ordering::Relaxed);
    let mut config = config(server.address, 100.0, Duration::from_millis(500));
    config.connections = 1;
    config.max_connections = 3;
    let (report, ingested) = run(&config, &Stop::default());
    assert_eq!(errors(&report), [("no_connection", 47)]);
    assert_eq!((report.totals.ok, report.peak_connections), (3, 3));
    let first = ingested.samples[0].intended_start.unwrap().0;
    let last = ingested.samples[49].intended_start.unwrap().0;
    assert_eq!(last - first, 490_000_000);
}

#[test]
fn a_stop_ends_it_with_everything_written() {
    let server = Server::start(Manner::Answer);
    server.stalled_until.store(u64::MAX, Ordering::Relaxed);
    let stop = Stop::default();
    let later = stop.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        later.stop();
    });
    let began = Instant::now();
    let (report, ingested) = run(&config(server.address, 100.0, Duration::from_secs(60)), &stop);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert!(report.interrupted);
    assert_eq!(errors(&report), [("interrupted", report.totals.sent)]);
    assert!((5..60).contains(&report.totals.sent), "{}", report.totals.sent);
    assert!(ingested.notes.iter().any(|note| note.contains("interrupted")));
}

#[test]
fn rows_are_written_while_it_runs() {
    let server = Server::start(Manner::Answer);
    let out = Shared::default();
    let mut seen = Vec::new();
    generate(
        &config(server.address, 50.0, Duration::from_secs(1)),
        out.clone(),
        &Stop::default(),
        |_| seen.push(out.0.lock().unwrap().split(|byte| *byte == b'\n').count()),
    )
    .unwrap();
    // A header, 50 rows, the summary, and what is behind the last line end.
    assert_eq!(out.0.lock().unwrap().split(|byte| *byte == b'\n').count(), 53);
    assert!(seen.iter().any(|lines| (10..40).contains(lines)), "{seen:?}");
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The header line passes.
        if bytes.starts_with(b"{\"format\"") {
            Ok(bytes.len())
        } else {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_breaks_ends_it() {
    let server = Server::start(Manner::Answer);
    let began = Instant::now();
    let config = config(server.address, 100.0, Duration::from_secs(60));
    let error = generate(&config, Broken, &Stop::default(), |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::Output(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[test]
fn rows_that_find_no_room_are_counted() {
    let (sender, _receiver) = write::queue(2);
    let counts = Progress::default();
    for seq in 0..5 {
        let now = MonoNanos::now();
        let done = client::Done { start: now, end: now, local_port: None, outcome: Ok(Some(200)) };
        sender.send(Finished { seq, intended_ns: now.0, done }, &counts);
    }
    assert_eq!(counts.lost.load(Ordering::Relaxed), 3);
}
