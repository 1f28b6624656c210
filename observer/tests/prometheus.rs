//! A real Prometheus scrapes the server of the daemon.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use observer::aggregate::Snapshot;
use observer::output::http::serve;
use observer_ebpf::wire::{Counter, Series};

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        target_name: Some("/a \"b\"\\c".into()),
        target_live_sockets: Some(3),
        ..Snapshot::default()
    };
    for ns in [5_000, 5_000, 70_000, 9_000_000] {
        snapshot.target[Series::RunqueueWakeup as usize].record(ns);
    }
    snapshot.counters[Counter::KswapdWakeups as usize] = 7;
    snapshot
}

fn serve_snapshots() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            serve(listener, snapshot, std::future::pending()).await;
        });
    });
    address
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn prometheus_scrapes_every_family_without_a_complaint() {
    let directory = tempfile::tempdir().expect("directory");
    let config = directory.path().join("prometheus.yml");
    let served = serve_snapshots();
    let text = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: observer\n    \
         static_configs:\n      - targets: ['{served}']\n"
    );
    fs::write(&config, text).expect("configuration");
    // Free at this moment; Prometheus cannot choose a port by itself.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let web = free.expect("a free port").to_string();
    let log = directory.path().join("log");
    let spawned = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
        .arg(format!("--web.listen-address={web}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("log"))
        .spawn();
    let _prometheus = match spawned {
        Ok(child) => Running(child),
        Err(error) => {
            let full = ["CI", "OBSERVER_TEST_FULL"].iter().any(|v| std::env::var_os(v).is_some());
            assert!(!full, "prometheus cannot be run: {error}");
            eprintln!("not run: prometheus is not installed");
            return;
        }
    };
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let query = |query: &str| get(&web, &format!("/api/v1/query?query={query}"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let value = |expression: &str, expected: &str| {
        let wanted = format!("\"{expected}\"]");
        let mut last = String::new();
        while Instant::now() < deadline {
            match query(expression) {
                Ok(answer) if answer.contains(&wanted) => return,
                Ok(answer) => last = answer,
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("{expression} is not {expected}: {last}\n{}", said());
    };
    value("up", "1");
    value("observer_kswapd_wakeups_total", "7");
    value("observer_target_live_sockets", "3");
    value("observer_build_info", "1");
    value("observer_runqueue_latency_seconds_count", "4");
    value("sum(observer_runqueue_latency_seconds_bucket%7Ble=%220.00000762939453125%22%7D)", "2");
    // A quantile as users query it, in the bucket of the longest wait (7.8 to 15.6 ms).
    value("histogram_quantile(1,observer_runqueue_latency_seconds_bucket)%20%3Cbool%200.016", "1");
    // Prometheus takes the metadata of a family only where it could parse it.
    let metadata = get(&web, "/api/v1/metadata").expect("metadata");
    for metric in observer::output::openmetrics::METRICS.iter() {
        assert!(metadata.contains(&metric.family()), "{} in {metadata}", metric.family());
    }
    let complaints = said();
    assert!(
        !complaints.contains("append failed") && !complaints.contains("Error on"),
        "{complaints}"
    );
}
