//! Real load generators and a real server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{Cause, EndReason};
use observer_tests::http;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial;
use observer_tests::watch::read_run;
use rustix::process::Signal;

/// A running nginx.
struct Nginx(Running);

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind.
        self.0.signal(Signal::TERM);
        let _ = self.0.wait(Duration::from_secs(10));
    }
}

/// nginx with a configuration of its own, in the foreground.
fn nginx(directory: &Path, port: u16) -> Nginx {
    let configuration = directory.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 2; pid {0}/pid; error_log {0}/error.log;
         events {{ worker_connections 256; }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; \
         location / {{ return 200 \"ok\"; }} }} }}",
        directory.display()
    );
    fs::write(&configuration, text).expect("a file");
    // Debian has it where only root's PATH looks.
    let program = ["/usr/sbin/nginx", "nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("nginx");
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(&configuration);
    command.arg("-e").arg(directory.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process =
        Running::start(&mut command, Placement::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut nginx = Nginx(process);
    let deadline = Instant::now() + Duration::from_secs(10);
    while http::get(port, "/", "").is_err() {
        assert_eq!(nginx.0.ended().expect("a status"), None, "nginx stays");
        assert!(Instant::now() < deadline, "nginx listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    nginx
}

#[test]
fn hey_against_nginx() {
    let Some(_guard) = privileged::ready("hey and nginx") else { return };
    let directory = trial::directory();
    let port = http::free_port().expect("a port");
    let nginx = nginx(directory.path(), port);
    let out = directory.path().join("run");
    let mut command = Command::new(trial::programs().observer);
    command
        .args(["run", "--budget", "none", "--port", &port.to_string(), "--samples", "hey", "--out"])
        .arg(&out);
    command.args(["--", "hey", "-z", "4s", "-c", "4", "-q", "50", "-o", "csv"]);
    command.arg(format!("http://127.0.0.1:{port}/"));
    let finished = observer_tests::command::run(&mut command, Duration::from_secs(60))
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);

    let (summary, info) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((info.end_reason, info.command_exit), (EndReason::CommandExit, Some(0)));
    assert!(info.target_processes.contains_key(&nginx.0.id()), "{:?}", info.target_processes);
    assert!(info.target_processes.len() >= 3, "master and workers: {:?}", info.target_processes);
    let csv = fs::read_to_string(out.join("loadgen.out")).expect("what hey printed");
    let rows = csv.lines().count() as u64 - 1;
    assert!((400..=800).contains(&rows), "200 a second for 4 s: {rows}");
    let samples = &summary.samples;
    let skipped: u64 = samples.skipped.values().sum();
    assert_eq!(samples.count + skipped, rows, "{samples:?}");
    assert!(skipped <= rows / 100, "{samples:?}");
    assert!(!samples.intended_start_known, "hey does not say when it meant to send");
    assert!(samples.latency_ns.p50 > 0 && samples.latency_ns.p99 < 1_000_000_000, "{samples:?}");
    assert!((150.0..250.0).contains(&samples.rate_hz), "{samples:?}");
    // A busy host may delay nginx; there is no other possible cause.
    let cause = summary.verdict.top_cause;
    assert!(matches!(cause, None | Some(Cause::RUNQUEUE)), "{:?}", summary.verdict);
    // One wake-up of a worker may serve several connections.
    assert!(summary.probes["runqueue"].count > rows / 20, "{:?}", summary.probes["runqueue"]);
    assert!(finished.stdout.contains("coordinated omission"), "{finished:#?}");
    drop(nginx);
}
