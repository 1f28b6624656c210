//! `observer daemon`: metrics for whoever scrapes it, and a clean end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer_tests::http::{self, free_port};
use observer_tests::privileged;
use observer_tests::process::{Placement, Programs, Running, Service};
use observer_tests::trial::in_guest;
use rustix::process::Signal;

const OPENMETRICS: &str = "Accept: application/openmetrics-text; version=1.0.0\r\n";

struct Daemon {
    process: Running,
    port: u16,
}

impl Daemon {
    fn start(target: &[&str]) -> Self {
        let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-service")));
        let port = free_port().expect("a port");
        let mut command = Command::new(programs.observer);
        command.args(["daemon", "--listen", &format!("127.0.0.1:{port}")]).args(target);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Running::start(&mut command, Placement::default()).expect("it starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while http::get(port, "/healthz", "").map(|answer| answer.status) != Ok(200) {
            assert_eq!(process.ended().expect("a status"), None, "the daemon stays");
            assert!(Instant::now() < deadline, "the daemon is healthy within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { process, port }
    }

    fn scrape(&self) -> String {
        let answer = http::get(self.port, "/metrics", OPENMETRICS).expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(answer.headers.contains("application/openmetrics-text"), "{}", answer.headers);
        assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
        answer.body
    }

    /// Sum of a metric over its labels that contain `label`.
    fn value(&self, name: &str, label: &str) -> f64 {
        let text = self.scrape();
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter(|line| line[name.len()..].starts_with(['{', ' ']))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    fn end(mut self) {
        let sent = Instant::now();
        self.process.signal(Signal::TERM);
        let status = self.process.wait(Duration::from_secs(60)).expect("it ends");
        assert!(status.success(), "{status}");
        // Each program that is detached waits for the kernel, which is long on an emulated CPU.
        assert!(in_guest() || sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    }
}

#[test]
fn the_daemon_serves_what_the_kernel_counts_and_stops_when_asked() {
    let Some(_guard) = privileged::ready("daemon") else { return };
    let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-service")));
    let service = Service::start(&programs.service, &[], Placement::default()).expect("a service");
    let daemon = Daemon::start(&["--port", &service.port.to_string()]);
    let text = daemon.scrape();
    for family in ["observer_runqueue_latency_seconds", "observer_fault_latency_seconds"] {
        assert!(text.contains(&format!("# TYPE {family} histogram")), "{family}: {text}");
    }
    let waits = || daemon.value("observer_runqueue_latency_seconds_count", "");
    let before = waits();
    for _ in 0..200 {
        http::get(service.port, "/", "").expect("an answer");
    }
    // The daemon may serve a snapshot that is a second or two old.
    let deadline = Instant::now() + Duration::from_secs(10);
    while waits() < before + 200.0 {
        assert!(Instant::now() < deadline, "200 requests are at least 200 wake-ups: {before}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = http::get(daemon.port, "/no-such-page", "").expect("an answer");
    assert_eq!(answer.status, 404);
    daemon.end();
}

#[test]
fn a_daemon_whose_target_is_gone_goes_on() {
    let Some(_guard) = privileged::ready("daemon without target") else { return };
    let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-service")));
    let service = Service::start(&programs.service, &[], Placement::default()).expect("a service");
    let mut daemon = Daemon::start(&["--pid", &service.process.id().to_string()]);
    drop(service);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.process.ended().expect("a status"), None);
    daemon.scrape();
    daemon.end();
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let Some(_guard) = privileged::ready("taken port") else { return };
    let programs = Programs::beside(Path::new(env!("CARGO_BIN_EXE_observer-service")));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = Command::new(programs.observer);
    command.args(["daemon", "--listen", &address]);
    let finished =
        observer_tests::command::run(&mut command, Duration::from_secs(30)).expect("it ends");
    assert!(finished.code.is_some_and(|code| code != 0), "{finished:#?}");
    assert!(finished.stderr.contains(&address), "{finished:#?}");
}

#[test]
fn only_the_probes_asked_for_are_attached() {
    let Some(_guard) = privileged::ready("chosen probes") else { return };
    let daemon = Daemon::start(&["--probes", "runqueue"]);
    let text = daemon.scrape();
    let coverage = |probe: &str| {
        text.lines().find(|line| line.contains(&format!("probe=\"{probe}\",tier"))).unwrap_or("")
    };
    assert!(coverage("runqueue").contains("state=\"attached\""), "{text}");
    for probe in ["task", "fault", "reclaim", "mm_syscall", "socket"] {
        assert!(coverage(probe).contains("state=\"not_asked\""), "{probe}: {text}");
    }
    assert!(daemon.value("observer_runqueue_latency_seconds_count", "") > 0.0);
    assert_eq!(daemon.value("observer_fault_latency_seconds_count", ""), 0.0);
    daemon.end();
}
