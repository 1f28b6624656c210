//! `observer daemon`: metrics for scrapers, and a clean end.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::error::Exit;
use observer::probe::PROBES;
use observer_tests::daemon::{Daemon, Metrics};
use observer_tests::hotplug::Cpu;
use observer_tests::http::{self, ReservedPort};
use observer_tests::kernel_counters::faults;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service};
use observer_tests::trial::{directory, in_guest, programs, scaled_text};
use observer_tests::watch::Work;

const WAITS: &str = "observer_runqueue_latency_seconds_count";
/// Of the whole host: it never goes back, whatever becomes of the host's cgroups.
const HOST_WAITS: &str = "observer_host_runqueue_latency_seconds_count";

fn service() -> Service {
    Service::start(&programs().service, &[], Placement::default()).expect("a service")
}

/// What a client gets that understands OpenMetrics.
fn scrape(daemon: &Daemon) -> Metrics {
    let accept = "Accept: application/openmetrics-text; version=1.0.0\r\n";
    let answer = daemon.get("/metrics", accept);
    assert!(answer.headers.contains("application/openmetrics-text"), "{}", answer.headers);
    let metrics = Metrics::of(answer);
    assert!(metrics.text().ends_with("# EOF\n"), "{}", metrics.text());
    metrics
}

#[test]
fn the_daemon_serves_what_the_kernel_counts_and_stops_when_asked() {
    let Some(_guard) = privileged::ready("daemon") else { return };
    let service = service();
    let daemon = Daemon::start(&["--port", &service.port.to_string()]);
    let before = scrape(&daemon);
    let text = before.text();
    for family in ["observer_runqueue_latency_seconds", "observer_fault_latency_seconds"] {
        assert!(text.contains(&format!("# TYPE {family} histogram")), "{family}: {text}");
    }
    for _ in 0..200 {
        http::get(service.port, "/", "").expect("an answer");
    }
    // Of the target: a cgroup of the host that is removed takes its numbers with it.
    let target = ["target=\"true\""];
    let waits = scrape(&daemon).count(WAITS, &target) - before.count(WAITS, &target);
    assert!(waits >= 200, "200 requests are at least 200 wake-ups: {waits}");
    assert_eq!(daemon.get("/no-such-page", "").status, 404);
    daemon.end();
}

#[test]
fn a_daemon_serves_while_its_target_is_waited_for() {
    let Some(_guard) = privileged::ready("daemon that waits") else { return };
    let directory = directory();
    let name = format!("late-{}", std::process::id());
    let late = directory.path().join(&name);
    fs::copy(programs().service, &late).expect("a copy");
    let daemon = Daemon::start(&["--comm", &name, "--wait"]);
    let target = ["target=\"true\""];
    let before = scrape(&daemon);
    assert!(before.count(WAITS, &[]) > 0, "the host's are there");
    assert!(!before.text().contains(target[0]), "{}", before.text());
    let service = Service::start(&late, &[], Placement::default()).expect("a service");
    let deadline = Instant::now() + Duration::from_secs(60);
    while scrape(&daemon).count(WAITS, &target) < 50 {
        assert!(Instant::now() < deadline, "the target is watched once it is there");
        http::get(service.port, "/", "").expect("an answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Its listener at least.
    assert!(scrape(&daemon).sum("observer_target_live_sockets", &[]) >= 1.0);
    drop(service);
    let deadline = Instant::now() + Duration::from_secs(60);
    let left = || scrape(&daemon).sum("observer_target_live_sockets", &[]);
    while left() > 0.0 {
        assert!(Instant::now() < deadline, "{} sockets of a target that is gone", left());
        std::thread::sleep(Duration::from_millis(100));
    }
    daemon.end();
}

#[test]
fn a_daemon_whose_target_has_gone_continues() {
    let Some(_guard) = privileged::ready("daemon without target") else { return };
    let service = service();
    let mut daemon = Daemon::start(&["--pid", &service.process.id().to_string()]);
    drop(service);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.process().ended().expect("a status"), None);
    let _ = scrape(&daemon);
    daemon.end();
}

/// The daemon has given up capabilities by then, and its system calls are filtered.
#[test]
fn a_daemon_watches_a_cpu_that_comes_online() {
    let Some(_guard) = privileged::ready("CPU hotplug, daemon") else { return };
    let cpu = match Cpu::offline(1) {
        Ok(cpu) => cpu,
        Err(reason) => return println!("{reason}"),
    };
    let daemon = Daemon::start(&["--probes", "fault", "--tier", "fault=perf_event"]);
    let counted = || scrape(&daemon).count("observer_fault_latency_seconds_count", &[]);
    cpu.switch(true);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let place = Placement { cpu: Some(1), ..Placement::default() };
        let arguments = ["storm", "--rounds", &scaled_text(2_000)];
        let mut work = Work::start(&programs(), &arguments, place).expect("it starts");
        let (found, before) = (counted(), faults(work.id()).expect("it is there"));
        work.go().expect("it works");
        let (found, after) = (counted() - found, faults(work.id()).expect("it is there"));
        work.end().expect("it ends");
        let kernel = after.since(before).all();
        println!("faults on CPU 1: {kernel}, on all CPUs by observer: {found}");
        if found >= kernel {
            break;
        }
        assert!(Instant::now() < deadline, "CPU 1 is not watched");
    }
    daemon.end();
}

#[test]
fn a_port_that_is_in_use_is_an_error() {
    let Some(_guard) = privileged::ready("taken port") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = Command::new(programs().observer);
    command.args(["daemon", "--listen", &address]);
    let finished =
        observer_tests::command::run(&mut command, Duration::from_secs(120)).expect("it ends");
    assert_eq!(finished.code, Some(Exit::Address as i32), "{finished:#?}");
    assert!(finished.stderr.contains(&address), "{finished:#?}");
}

#[test]
fn only_the_probes_asked_for_are_attached() {
    let Some(_guard) = privileged::ready("chosen probes") else { return };
    let daemon = Daemon::start(&["--probes", "runqueue"]);
    let metrics = scrape(&daemon);
    let text = metrics.text();
    let coverage = |probe: &str| {
        text.lines().find(|line| line.contains(&format!("probe=\"{probe}\",tier"))).unwrap_or("")
    };
    assert!(coverage("runqueue").contains("state=\"attached\""), "{text}");
    for probe in PROBES.map(|probe| probe.name).into_iter().filter(|name| *name != "runqueue") {
        assert!(coverage(probe).contains("state=\"not_asked\""), "{probe}: {text}");
    }
    assert!(metrics.count(WAITS, &[]) > 0, "{text}");
    assert_eq!(metrics.count("observer_fault_latency_seconds_count", &[]), 0);
    daemon.end();
}

const TO_INSTALL: &str = "`cargo xtask setup --with-tests` installs it";

/// What `promtool` has against a page in Prometheus' own format; nothing, when all is well.
fn complaints(page: &str, directory: &Path) -> String {
    let file = directory.join("page");
    fs::write(&file, page).expect("a file");
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(File::open(&file).expect("the page"));
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("promtool cannot be run: {error}; {TO_INSTALL}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if output.status.success() { said.into_owned() } else { format!("{}: {said}", output.status) }
}

/// A Prometheus that scrapes one address every second.
struct Prometheus {
    process: Running,
    port: ReservedPort,
}

impl Prometheus {
    fn start(scraped: &str, directory: &Path) -> Self {
        let configuration = directory.join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: observer\n    \
             static_configs:\n      - targets: ['{scraped}']\n"
        );
        fs::write(&configuration, text).expect("a file");
        let port = ReservedPort::new().expect("a port");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", configuration.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{}", port.number()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create_new(directory.join("log")).expect("a file"));
        let process = Running::start(&mut command, Placement::default())
            .unwrap_or_else(|error| panic!("{error}; {TO_INSTALL}"));
        Self { process, port }
    }

    /// The one value of an expression; `None` while it has none.
    fn value(&self, expression: &str) -> Option<f64> {
        let path = format!("/api/v1/query?query={expression}");
        let answer = http::get(self.port.number(), &path, "").ok()?;
        let answer: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

#[test]
fn a_real_prometheus_takes_what_a_real_daemon_serves() {
    let Some(_guard) = privileged::ready("prometheus") else { return };
    if in_guest() {
        println!("prometheus: not here: guests have neither promtool nor prometheus");
        return;
    }
    let (service, directory) = (service(), directory());
    let daemon = Daemon::start(&["--port", &service.port.to_string()]);
    for _ in 0..100 {
        http::get(service.port, "/cpu?us=100", "").expect("an answer");
    }
    let answer = daemon.get("/metrics", "Accept: text/plain\r\n");
    assert!(answer.headers.contains("content-type: text/plain"), "{}", answer.headers);
    let before = Metrics::of(answer);
    assert_eq!(complaints(before.text(), directory.path()), "", "{}", before.text());

    let mut prometheus = Prometheus::start(&daemon.address(), directory.path());
    let said = || fs::read_to_string(directory.path().join("log")).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(120);
    let sum = format!("sum({HOST_WAITS})");
    let waits = loop {
        let scraped = prometheus.value("up").filter(|up| *up > 0.0);
        if let Some(waits) = scraped.and_then(|_| prometheus.value(&sum)) {
            break waits as u64;
        }
        assert_eq!(prometheus.process.ended().expect("a status"), None, "{}", said());
        assert!(Instant::now() < deadline, "it scrapes: {}", said());
        std::thread::sleep(Duration::from_millis(200));
    };
    let (least, most) = (before.count(HOST_WAITS, &[]), scrape(&daemon).count(HOST_WAITS, &[]));
    assert!(least >= 100, "100 requests are at least 100 wake-ups: {least}");
    assert!((least..=most).contains(&waits), "{waits} of {least} to {most}");
    let said = said();
    assert!(!said.contains("append failed") && !said.contains("Error on"), "{said}");
    daemon.end();
}
