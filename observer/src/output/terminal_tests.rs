use super::*;
use crate::model::{CauseObject, ClockDrift, RequestsSummary, RunInfo, Sample};
use crate::output::example;

fn answer(run: RunInfo, summary: Option<Summary>, samples: Vec<Sample>) -> Answer {
    let events = example::events();
    Answer::new(std::path::Path::new("/tmp/observer-run-1"), run, summary, samples, &events)
}

fn rendered(summary: Summary) -> String {
    let text = render(&answer(example::run(), Some(summary), example::samples()), false);
    assert!(!text.contains('\u{1b}'), "neither colours nor a thread's name: {text}");
    assert!(text.lines().all(|line| line.trim_end() == line), "no blanks at line ends");
    text
}

fn has(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
    }
}

#[test]
fn an_attributed_run_says_why_how_much_and_shows_the_evidence() {
    let text = rendered(example::attributed());
    has(
        &text,
        &[
            "ATTRIBUTED TO RECLAIM_MEMCG\nRequests were slow because threads had to free memory",
            "reclaim_memcg accounts for 71 % (95 % interval 64 % to 78 %)",
            "64 % to 78 %",
            "3,000 at 100.0/s, 1 failed; p50 1.20 ms",
            "matched with requests that the target served: 2,980 (8 ambiguous, 2 unmatched, 10 over connections \
             with several requests at a time, as in HTTP/2)",
            "at 9.590000 s took 49.9 ms, status 200, request 959, sent 20.0 µs late",
            "worker-1 (101)",
            "512 pages, order 0",
            "preempted; other processes ran for 900 µs, most of all hog<script> (123) in /system.slice/<hog>",
            "madvise(DONTNEED) 4 MiB",
            "kswapd wakeups 3",
            "CPU limits\n  Cgroup /demo/</b><i>?[31m may use 150 ms of CPU time in each 100 ms (1.50 CPUs). The",
            "used up in 12 of 300 periods",
            "Network\n  Port 8080: the queue of connections that wait to be accepted overflowed 132 times.",
            "CPU time and frequency\n  The hypervisor took 12 % of the time of CPU 1 (3.60 s).",
            "Open descriptors\n  Process 100 (</b><i>?[31m) has 1,012 of 1,024 descriptors open",
            "Memory limits\n  Cgroup /demo/</b><i>?[31m may use 256 MiB of memory (memory.max).",
            "Pressure\n  In 12 % of the run, at least one thread of cgroup /demo/</b><i>?[31m",
            "socket: partial (cgroup_sock), accept: this kernel has no fexit",
            "Lost: nothing",
            "What to do about reclaim_memcg: Raise memory.high",
            "observer used: 410 ms of CPU time (1.4 % of one CPU)",
            "Run directory: /tmp/observer-run-1",
        ],
    );
    let requests =
        text.lines().filter(|line| line.contains(" took ") && !line.contains("hypervisor"));
    assert_eq!(requests.count(), 10, "ten worst requests");
    assert!(text.contains("</b><i>?[31m (102)"), "a hostile name is shown harmless");
}

#[test]
fn every_outcome_has_its_own_words() {
    let text = rendered(example::with_outcome(Outcome::Unexplained, &["all probes attached"]));
    has(&text, &["UNEXPLAINED", "No watched cause accounts for", "not significant"]);
    let reasons = ["12 records were lost: raise --ring", "too few episodes"];
    let text = rendered(example::with_outcome(Outcome::Inconclusive, &reasons));
    has(&text, &["INCONCLUSIVE", "  - 12 records were lost", "do not rely on"]);
    assert!(!text.contains(" named\n") && !text.contains("What to do"));
    let mut healthy = example::with_outcome(Outcome::NoSlowSamples, &[]);
    healthy.causes.clear();
    healthy.requests = RequestsSummary::default();
    let text = rendered(healthy);
    has(&text, &["NO LATENCY PROBLEM FOUND", "No latency problem found (p99"]);
    assert!(!text.contains("matched with"), "the target's requests were not watched");
}

#[test]
fn a_clock_that_was_corrected_is_named() {
    let mut summary = example::attributed();
    let text = rendered(summary.clone());
    assert!(!text.contains("ppm"), "nothing was corrected: {text}");
    let drift = ClockDrift { ppm: -20.0, steps: 1, ..ClockDrift::default() };
    summary.requests.clock_drift = Some(drift);
    let text = rendered(summary);
    let corrected =
        "the generator's clock ran 20.0 ppm slower and was set once, which was corrected";
    has(&text, &["matched with requests that the target served: 2,980", corrected]);
}

#[test]
fn failed_requests_are_the_headline() {
    let text = rendered(example::failing());
    let first: Vec<&str> = text.lines().take(3).collect();
    assert_eq!(first[0], "REQUESTS FAILED");
    assert!(first[1].starts_with("90 % of the requests failed"), "{first:?}");
    assert!(first[2].starts_with("  - 2,700 of 3,000 requests failed"), "{first:?}");
}

#[test]
fn a_run_without_a_generator_shows_distributions_alone() {
    let summary = example::without_samples();
    let text = render(&answer(example::run(), Some(summary), Vec::new()), false);
    has(&text, &["NO SAMPLES", "no request samples", "runqueue", "1,200,000"]);
    assert!(!text.contains("slowest requests") && !text.contains("Requests, measured"));
}

#[test]
fn a_crashed_run_says_so_and_shows_what_there_is() {
    let run = example::crashed_run();
    let text = render(&answer(run, None, example::samples()), false);
    has(
        &text,
        &[
            "NO RESULT",
            "or its observer died",
            "slowest requests",
            "worker-1 (101)",
            "Lost: not known",
        ],
    );
}

#[test]
fn losses_and_doubts_about_the_samples_are_reported() {
    let mut summary = example::attributed();
    summary.loss.total = 3;
    summary.loss.by_kind.insert("runqueue".into(), 3);
    summary.samples.intended_start_known = false;
    summary.samples.skipped.insert("no status".into(), 1_234);
    let text = rendered(summary);
    has(&text, &["Lost: 3 records; by kind: runqueue 3", "coordinated omission", "1,234 rows"]);
}

#[test]
fn colours_only_where_asked_for() {
    let answer = answer(example::run(), Some(example::attributed()), Vec::new());
    assert!(render(&answer, true).starts_with("\u{1b}[1;31mATTRIBUTED"));
}

#[test]
fn stalls_beyond_the_longest_are_summed_up() {
    let mut answer = answer(example::run(), Some(example::attributed()), example::samples());
    let request = &mut answer.worst[0];
    let (event, overlap_ns) = request.stalls[1];
    request.stalls.extend(std::iter::repeat_n((event, overlap_ns), 4));
    request.omitted = 1_000;
    let text = render(&answer, false);
    has(&text, &["and 1,002 shorter ones: runqueue_other 1.80 ms"]);
}

#[test]
fn the_headline_claims_no_more_than_the_shares() {
    let mut summary = example::attributed();
    summary.causes[0].share = 0.25;
    summary.causes[3].share = 0.67;
    has(
        &rendered(summary),
        &["Most of the extra latency (67 %) is unexplained.", "What to do about unexplained"],
    );
}

#[test]
fn causes_and_codes_of_another_version_are_shown_as_they_are() {
    let mut json = serde_json::to_value(example::attributed()).expect("JSON");
    json["causes"][0]["cause"] = "steal".into();
    json["verdict"]["top_cause"] = "steal".into();
    json["verdict"]["reasons"][0]["code"] = "moon_phase".into();
    json["phase"] = serde_json::json!({"of": "moon"});
    let summary = serde_json::from_value(json).expect("a summary of a later version");
    has(&rendered(summary), &["ATTRIBUTED TO STEAL", "steal", "does not know", "  steal "]);
}

#[test]
fn who_had_the_cpu_and_in_which_call_the_service_waited_is_said() {
    let mut summary = example::attributed();
    let mut object = |index: usize, cause, what: &str, slow_ns| {
        summary.causes[index].cause = cause;
        let what = what.to_owned();
        summary.causes[index].objects.push(CauseObject { what, slow_ns, typical_ns: 10 });
    };
    object(0, Cause::RUNQUEUE_OTHER, "hog\u{1b}[31m-*", 30_000_000);
    object(0, Cause::RUNQUEUE_OTHER, "backup", 10_000_000);
    object(1, Cause::SERVICE_WAIT, "recvfrom at 127.0.0.1:6379", 2_000_000);
    summary.causes[1].share = 0.06;
    summary.verdict.top_cause = Some(Cause::RUNQUEUE_OTHER);
    let text = rendered(summary).replace('\n', " ");
    has(
        &text,
        &[
            "The CPU was with hog?[31m-* for 75 % of that time.",
            "runqueue_other: the CPU was with hog?[31m-* 30.0 ms (75 %), backup 10.0 ms (25 %)",
            "service_wait: the service waited in recvfrom at 127.0.0.1:6379 2.00 ms (100 %)",
        ],
    );
}
