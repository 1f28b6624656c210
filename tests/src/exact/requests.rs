//! `request` against what the service itself counted.

use crate::process::Placement;
use crate::results::{Comparison, Relation};
use crate::told::{Request, Requests};
use crate::trial::{self, Run, Trial, scaled_text};

/// No request and no reply is longer.
const LONGEST_BYTES: u64 = 300_000;

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
            let (asked, outgoing) = (told.outgoing.len() as u64, counter(run, "outgoing_requests"));
            // With PREEMPT_RT, the kernel skips a program whose CPU is already in it, and counts that.
            let missed = run.lost("program_missed");
            let equal = |metric, observed, expected, slack| {
                held.check(&Comparison {
                    metric,
                    against: own,
                    relation: Relation::Equal,
                    observed,
                    expected,
                    tolerance: 0.0,
                    slack,
                });
            };
            equal("requests", counter(run, "requests"), requests, missed);
            equal("bytes_in", counter(run, "bytes_in"), bytes_in, missed * LONGEST_BYTES);
            equal("bytes_out", counter(run, "bytes_out"), bytes_out, missed * LONGEST_BYTES);
            equal("other_sends", counter(run, "other_sends"), told.other_sends, missed);
            equal("outgoing_requests", outgoing, asked, missed);
            equal("answered", run.count("request", "service"), answered, missed);
            // A thread that is awake may take the first data of a Unix connection before the sender
            // reports it.
            let slack = told.unix_connections + missed;
            equal("arrivals", run.count("request", "socket_wait"), requests, slack);
        },
        &[],
    );
    work.end().expect("the workload ends");
}
