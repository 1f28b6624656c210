use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;

use observer_ebpf::wire::Series;
use tokio::sync::oneshot;

use super::*;
use crate::aggregate::{CgroupDistributions, Distribution, Octaves};

/// A server on its own thread; the test sends requests from its own thread, with plain sockets.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(source: impl Fn() -> Snapshot + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serve(listener, source, async { drop(stopped.await) }).await;
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str, accept: &str) -> String {
        self.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        ))
    }

    fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What Prometheus 2.42 sends.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,\
    application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let server = Server::start(Snapshot::default);
    let open = server.get("/metrics", PROMETHEUS);
    assert!(open.starts_with("HTTP/1.1 200 OK\r\n"), "{open}");
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.ends_with("# EOF\n"));
    for accept in ["*/*", "text/plain", "text/plain, application/openmetrics-text;q=0.5", ";;q=x,"]
    {
        let plain = server.get("/metrics", accept);
        assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{accept}: {plain}");
        assert!(!plain.contains("# EOF"));
    }
    server.stop();
}

#[test]
fn other_paths_and_methods_are_refused_politely() {
    let server = Server::start(Snapshot::default);
    assert!(server.get("/healthz", "*/*").ends_with("\r\n\r\nok\n"));
    assert!(server.get("/", "*/*").contains("/metrics"));
    assert!(server.get("/metricsx", "*/*").starts_with("HTTP/1.1 404 "));
    let post =
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let answer = server.ask(post);
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"), "{answer}");
    let head = server.ask("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(server.ask("\u{1}garbage\r\n\r\n").starts_with("HTTP/1.1 400 "));
    server.stop();
}

#[test]
fn a_source_that_panics_is_an_error_for_that_scrape_alone() {
    let calls = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move || {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(call > 0, "the first scrape fails");
        Snapshot::default()
    });
    assert!(server.get("/metrics", "*/*").starts_with("HTTP/1.1 500 "));
    assert!(server.get("/metrics", "*/*").starts_with("HTTP/1.1 200 "));
    server.stop();
}

#[test]
fn idle_connections_do_not_hold_up_the_shutdown() {
    let server = Server::start(Snapshot::default);
    let idle: Vec<_> = (0..8).map(|_| server.connect()).collect();
    assert!(server.get("/healthz", "*/*").starts_with("HTTP/1.1 200 "));
    let started = std::time::Instant::now();
    server.stop();
    assert!(started.elapsed() < SHUTDOWN_TIMEOUT + Duration::from_secs(2));
    drop(idle);
}

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn silent_clients_do_not_delay_a_scrape() {
    let server = Server::start(Snapshot::default);
    let silent: Vec<_> = (0..2 * clients::MAX).map(|_| server.connect()).collect();
    let mut slow = server.connect();
    slow.write_all(&SCRAPE[..20]).unwrap();
    assert!(server.get("/metrics", "*/*").starts_with("HTTP/1.1 200 "));
    assert!(server.get("/healthz", "*/*").starts_with("HTTP/1.1 200 "));
    // The others were closed to make room, or are when they have been silent for too long. A request
    // whose bytes keep coming has no more time than one that does not come.
    for mut stream in silent {
        assert!(matches!(stream.read(&mut [0; 512]), Ok(0) | Err(_)), "closed without an answer");
    }
    for byte in &SCRAPE[20..] {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(HEADER_TIMEOUT / 10);
    }
    let mut answer = String::new();
    let _ = slow.read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.stop();
}

#[test]
fn clients_that_do_not_read_their_answer_do_not_delay_a_scrape() {
    // Far more than the kernel takes for a client that does not read.
    let octaves = Octaves::from(&Distribution::default());
    let series: BTreeMap<_, _> =
        Series::ALL.into_iter().map(|series| (series, octaves.clone())).collect();
    let cgroups: Vec<_> = (0..200)
        .map(|n| CgroupDistributions { name: format!("cgroup{n}"), series: series.clone() })
        .collect();
    let server =
        Server::start(move || Snapshot { cgroups: cgroups.clone(), ..Snapshot::default() });
    let whole = server.get("/metrics", "*/*").len();
    let begin = |_| {
        let mut stream = server.connect();
        stream.write_all(SCRAPE).unwrap();
        // Its answer has begun.
        stream.read_exact(&mut [0; 1]).unwrap();
        stream
    };
    let slow: Vec<_> = (0..clients::MAX_PER_PEER + 8).map(begin).collect();
    assert_eq!(server.get("/metrics", "*/*").len(), whole);
    let mut cut = 0;
    for mut stream in slow {
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        cut += usize::from(end.is_err() || answer.len() + 1 < whole);
    }
    assert!(cut >= 8, "{cut} answers of {whole} bytes were cut off");
    server.stop();
}

#[test]
fn too_many_scrapes_are_refused_and_the_rest_is_answered() {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let server = Server::start(move || {
        let _ = gate.lock().unwrap().recv();
        Snapshot::default()
    });
    let scrapes: Vec<_> = (0..clients::MAX_SCRAPES_PER_PEER + 4)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(SCRAPE).unwrap();
            stream
        })
        .collect();
    // No scrape ends, so this one is beyond the limit at the latest.
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        let mut extra = server.connect();
        extra.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        extra.write_all(SCRAPE).unwrap();
        let mut answer = String::new();
        if extra.read_to_string(&mut answer).is_ok() {
            break answer;
        }
        assert!(Instant::now() < deadline, "no scrape is refused");
    };
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1"),
        "{refused}"
    );
    assert!(server.get("/healthz", "*/*").starts_with("HTTP/1.1 200 "));
    drop(go);
    let mut served = 0;
    for mut stream in scrapes {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        served += usize::from(answer.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(served, clients::MAX_SCRAPES_PER_PEER);
    server.stop();
}
