//! `observer daemon`: metrics for whoever scrapes it, and a clean end.

use std::process::Command;
use std::time::Duration;

use observer_tests::daemon::{Daemon, Metrics};
use observer_tests::http;
use observer_tests::privileged;
use observer_tests::process::{Placement, Service};
use observer_tests::trial::programs;

const WAITS: &str = "observer_runqueue_latency_seconds_count";

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
    let waits = scrape(&daemon).count(WAITS, &[]) - before.count(WAITS, &[]);
    assert!(waits >= 200, "200 requests are at least 200 wake-ups: {waits}");
    assert_eq!(daemon.get("/no-such-page", "").status, 404);
    daemon.end();
}

#[test]
fn a_daemon_whose_target_is_gone_goes_on() {
    let Some(_guard) = privileged::ready("daemon without target") else { return };
    let service = service();
    let mut daemon = Daemon::start(&["--pid", &service.process.id().to_string()]);
    drop(service);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(daemon.process().ended().expect("a status"), None);
    let _ = scrape(&daemon);
    daemon.end();
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let Some(_guard) = privileged::ready("taken port") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let mut command = Command::new(programs().observer);
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
    let metrics = scrape(&daemon);
    let text = metrics.text();
    let coverage = |probe: &str| {
        text.lines().find(|line| line.contains(&format!("probe=\"{probe}\",tier"))).unwrap_or("")
    };
    assert!(coverage("runqueue").contains("state=\"attached\""), "{text}");
    for probe in ["task", "fault", "reclaim", "mm_syscall", "socket"] {
        assert!(coverage(probe).contains("state=\"not_asked\""), "{probe}: {text}");
    }
    assert!(metrics.count(WAITS, &[]) > 0, "{text}");
    assert_eq!(metrics.count("observer_fault_latency_seconds_count", &[]), 0);
    daemon.end();
}
