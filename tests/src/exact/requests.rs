//! `request` against what the service itself counted.

use crate::process::Placement;
use crate::results::{Comparison, Relation};
use crate::told::{Request, Requests};
use crate::trial::{self, Run, Trial, scaled_text};

fn counter(run: &Run, name: &str) -> u64 {
    let found = run.probe("request").counters.get(name).copied().unwrap_or_default();
    u64::try_from(found).unwrap_or_default()
}

/// Requests of every shape, over TCP and Unix sockets: plain, in many reads and writes, pipelined, handed over, unanswered.
///
/// # Panics
/// When a count differs.
pub fn requests(trial: &Trial) {
    let directory = trial::directory();
    let arguments = ["requests", "--rounds", &scaled_text(4)];
    let mut work = trial::start(&arguments, Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,request"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    let told: Requests = serde_json::from_value(observed.counts.clone()).expect("what it reports");
    let sum = |of: fn(&Request) -> u64| told.requests.iter().map(of).sum::<u64>();
    let (bytes_in, bytes_out) = (sum(|request| request.bytes_in), sum(|request| request.bytes_out));
    let answered = sum(|request| u64::from(request.sends > 0));
    let own = "the service's own count";
    trial.hold(
        &observed,
        "request",
        |held, run| {
            let requests = told.requests.len() as u64;
            held.equal("requests", own, counter(run, "requests"), requests, 0.0);
            held.equal("bytes_in", own, counter(run, "bytes_in"), bytes_in, 0.0);
            held.equal("bytes_out", own, counter(run, "bytes_out"), bytes_out, 0.0);
            held.equal("other_sends", own, counter(run, "other_sends"), told.other_sends, 0.0);
            let (found, asked) = (counter(run, "outgoing_requests"), told.outgoing.len() as u64);
            held.equal("outgoing_requests", own, found, asked, 0.0);
            held.equal("answered", own, run.count("request", "service"), answered, 0.0);
            held.check(&Comparison {
                metric: "arrivals",
                against: own,
                relation: Relation::Equal,
                observed: run.count("request", "socket_wait"),
                expected: requests,
                tolerance: 0.0,
                // A thread that is awake may take the first data of a Unix connection before the
                // sender reports it.
                slack: told.unix_connections,
            });
        },
        &[],
    );
    work.end().expect("the workload ends");
}
