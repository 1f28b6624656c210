//! Answers that take stalls only from the threads that served the requests.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use observer::model::{Cause, SlowRequest, Summary};
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service};
use observer_tests::trial::{directory, programs};
use observer_tests::watch::read_run;

/// A load for so long, of so many requests a second.
const LOAD: [&str; 4] = ["--duration", "15s", "--rate", "100"];
const TIMEOUT: Duration = Duration::from_secs(120);

/// Watches a load of this path of a service with background threads.
fn watched(path: &str) -> Summary {
    let programs = programs();
    let arguments = ["--background", "4"].map(OsStr::new);
    let service = Service::start(&programs.service, &arguments, Placement::default());
    let service = service.expect("the service starts");
    let directory = directory();
    let out = directory.path().join("run");
    let pid = service.process.id().to_string();
    let mut command = Command::new(&programs.observer);
    command
        .args(["run", "--budget", "none", "--pid", &pid, "--samples", "observer", "--out"])
        .arg(&out)
        .arg("--");
    command.arg(&programs.observer).args(["load", &format!("{}{path}", service.url)]).args(LOAD);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    observer.wait(TIMEOUT).expect("it ends");
    let (summary, _) = read_run(&out).expect("a whole run");
    println!("{:#?}\n{:#?}\n{:#?}", summary.verdict, summary.causes, summary.requests);
    summary
}

/// Nearly all requests are matched with the threads that served them.
#[track_caller]
fn is_matched(summary: &Summary) {
    let requests = &summary.requests;
    let of = requests.matched + requests.ambiguous + requests.unmatched;
    assert_eq!(of, summary.samples.count);
    assert!(requests.matched * 100 >= of * 98, "{requests:?}");
}

#[test]
fn stalls_of_threads_that_nobody_waits_for_are_no_cause() {
    let Some(_guard) = privileged::ready("background threads") else { return };
    let summary = watched("/sleep?ms=60&every=50&wake=12");
    is_matched(&summary);
    // The service slept for so long. What is left of the extra latency is all that waits for a CPU can
    // be, and on a busy host they are some of it.
    const SLEEP_NS: f64 = 60e6;
    let excess_ns = summary.samples.slow_mean_ns - summary.samples.typical_mean_ns;
    let rest_ns = (excess_ns - SLEEP_NS).max(0.0) + 0.05 * excess_ns;
    let of = |cause| {
        let row = summary.causes.iter().find(|row| row.cause == cause);
        row.map_or(0.0, |row| row.contribution_ns)
    };
    let waits =
        [Cause::RUNQUEUE_OTHER, Cause::RUNQUEUE_SELF, Cause::RUNQUEUE_IDLE, Cause::RUNQUEUE];
    let (runqueue_ns, slept_ns) = (waits.map(of).iter().sum::<f64>(), of(Cause::SERVICE_WAIT));
    assert!(runqueue_ns <= rest_ns, "{runqueue_ns} ns of {excess_ns} ns");
    // On some virtual machines the kernel switches to or from a thread without an event, and the sleep is
    // missing: observer counts the first, and the other is rare.
    let missed = summary.loss.by_kind.get("switch_missed").copied().unwrap_or(0) + 1;
    let missing_ns = SLEEP_NS * missed as f64 / summary.samples.slow_count as f64;
    let least_ns = excess_ns - rest_ns - missing_ns;
    assert!(slept_ns >= least_ns, "{slept_ns} ns of {excess_ns} ns, {missed} missed");
    assert!(slept_ns >= 0.95 * SLEEP_NS - missing_ns, "{slept_ns} ns, {missed} missed");
    // On a busy host, the generator may be later than the service sleeps.
    let is_late = of(Cause::LOAD_GENERATOR) > excess_ns / 3.0;
    let expected =
        |cause| cause == Cause::SERVICE_WAIT || is_late && cause == Cause::LOAD_GENERATOR;
    assert!(summary.verdict.top_cause.is_some_and(expected), "{:?}", summary.verdict);
    // All of the time of a request has a cause.
    let accounts = summary.account_ns.as_ref().expect("accounts");
    let slow_ns: u64 = accounts.slow.values().sum();
    assert!((slow_ns as f64 - summary.samples.slow_mean_ns).abs() <= 0.02 * slow_ns as f64);
    assert!(!accounts.slow.contains_key(&Cause::UNEXPLAINED), "{accounts:?}");
    let without = summary.without_named.expect("the p99 without the sleep");
    let saved_ns = without.p99_ns.saturating_sub(without.p99_without_ns) as f64;
    // What remains are waits for a CPU, also of requests that did not sleep.
    let longest_wait_ns = summary.probes["runqueue"].max_ns as f64;
    assert!(saved_ns >= 0.9 * SLEEP_NS - longest_wait_ns, "{without:?}, {longest_wait_ns} ns");
    // The slowest requests show who served them, and that these threads slept.
    let shows_sleep = |request: &&SlowRequest| {
        let served = request.served.as_ref().expect("its threads");
        request.stalls.iter().any(|stall| {
            let is_long = stall.inside_ns as f64 >= 0.95 * SLEEP_NS;
            stall.cause == Cause::SERVICE_WAIT && stall.tid == served.sender && is_long
        })
    };
    let shown = summary.slowest_requests.iter().filter(shows_sleep).count() as u64;
    assert!(shown + missed >= summary.slowest_requests.len() as u64, "{shown}, {missed} missed");
    // The background threads did wait for each other, much longer than the requests did.
    let waited = &summary.probes["runqueue"];
    assert!(waited.sum_ns > 20 * 12_000_000, "{waited:#?}");
}
