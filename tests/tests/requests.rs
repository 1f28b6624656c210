//! Answers that take stalls only from the threads that served the requests.

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use observer::model::{Cause, Outcome, Summary};
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
    let runqueue = summary.causes.iter().find(|row| row.cause == Cause::RUNQUEUE);
    assert!(runqueue.is_none_or(|row| !row.named && row.share < 0.2), "{runqueue:#?}");
    assert_eq!(summary.verdict.outcome, Outcome::Unexplained, "{:#?}", summary.verdict);
    // The background threads did wait for each other, much longer than the requests did.
    let waited = &summary.probes["runqueue"];
    assert!(waited.sum_ns > 20 * 12_000_000, "{waited:#?}");
}
