use std::io::{Read, Write};
use std::net::SocketAddr;

use tokio::sync::oneshot;

use super::*;

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
