//! Run directories in which it is known how long each request slept, and what stalled it.

use std::path::Path;

use observer_ebpf::wire::{
    Address, RECLAIM_MEMCG, ReclaimRecord, RecordKind, RequestRecord, SleepRecord,
};

use super::*;
use crate::clock::MonoNanos;
use crate::error::Exit;
use crate::model::{Cause, EndReason, Event, Matched, SlowRequest, SlowSpec, files};
use crate::output::example::{self, event, header};
use crate::output::request_text::{Details, render};
use crate::session::recover;

const MS: u64 = 1_000_000;
const US: u64 = 1_000;
const THREAD: u32 = 101;
const REQUESTS: u64 = 200;
const ALL: RequestSelection =
    RequestSelection { requests: REQUESTS_LISTED_MAX, slower_than_ns: None, at_ns: None };

/// A request of the run: every twentieth sleeps, every twentieth reclaims memory.
struct Served {
    begin: u64,
    late_ns: u64,
    slept_ns: u64,
    reclaimed_ns: u64,
}

impl Served {
    fn new(number: u64) -> Self {
        let long_ns = 20 * MS + number * US;
        Self {
            begin: run().start_ns.0 + number * 50 * MS,
            late_ns: number % 3 * 10 * US,
            slept_ns: if number % 20 == 7 { long_ns } else { 0 },
            reclaimed_ns: if number % 20 == 13 { long_ns } else { 0 },
        }
    }

    /// It is on its way for 20 us and 30 us, and waits 10 us in the socket.
    fn arrival(&self) -> u64 {
        self.begin + self.late_ns + 20 * US
    }

    fn sent(&self) -> u64 {
        self.arrival() + 500 * US + self.slept_ns + self.reclaimed_ns
    }

    fn sample(&self, number: u64) -> Sample {
        Sample {
            intended_start: Some(MonoNanos(self.begin)),
            start: MonoNanos(self.begin + self.late_ns),
            seq: Some(number),
            local_port: Some(40_000 + number as u16),
            ..Sample::of_times(0, self.sent() + 30 * US)
        }
    }

    fn events(&self, number: u64) -> Vec<Event> {
        let (arrival, sent) = (self.arrival(), self.sent());
        let request = event(&RequestRecord {
            header: header(RecordKind::Request, 0, THREAD, sent, sent - arrival),
            read_ns: arrival + 10 * US,
            first_send_ns: sent,
            bytes_in: 100,
            bytes_out: 200,
            sender_tid: THREAD,
            sends: 1,
            local_port: 80,
            remote_port: 40_000 + number as u32,
            remote_address: Address([0; 16]),
        });
        let end = arrival + 100 * US + self.slept_ns + self.reclaimed_ns;
        let slept = (self.slept_ns > 0).then(|| {
            event(&SleepRecord {
                header: header(RecordKind::Sleep, 0, THREAD, end, self.slept_ns),
                syscall: libc::SYS_futex as u32,
                remote_port: 0,
                argument_1: 0x7000,
                argument_2: 0,
                argument_3: 0,
                remote_address: Address([0; 16]),
                waker_tid: 0,
                waker_tgid: 0,
            })
        });
        let reclaimed = (self.reclaimed_ns > 0).then(|| {
            event(&ReclaimRecord {
                header: header(RecordKind::Reclaim, RECLAIM_MEMCG, THREAD, end, self.reclaimed_ns),
                reclaimed_pages: 512,
                gfp_flags: 0,
                order: 0,
            })
        });
        [Some(request), slept, reclaimed].into_iter().flatten().collect()
    }

    /// What its account must be.
    fn account(&self) -> Vec<(Cause, u64)> {
        let mut parts = vec![
            (Cause::RECLAIM_MEMCG, self.reclaimed_ns),
            (Cause::SERVICE_WAIT, self.slept_ns),
            (Cause::SERVICE_CPU, 500 * US),
            (Cause::NETWORK, 50 * US),
            (Cause::LOAD_GENERATOR, self.late_ns),
        ];
        parts.retain(|(_, part_ns)| *part_ns > 0);
        parts
    }
}

fn run() -> RunInfo {
    let mut run = example::run();
    for probe in ["request", "sleep"] {
        run.coverage.insert(probe.into(), run.coverage["runqueue"].clone());
    }
    run
}

/// A run directory with everything but an answer.
fn directory(run: &RunInfo) -> (tempfile::TempDir, RunDir) {
    let root = tempfile::tempdir().expect("a directory");
    let directory = RunDir::create(Some(&root.path().join("run"))).expect("a run directory");
    directory.write_run(run).expect("run.json");
    let mut events = directory.create_events().expect("streams");
    let mut samples = directory.create_samples().expect("samples");
    for number in 0..REQUESTS {
        let served = Served::new(number);
        for event in served.events(number) {
            events.append(&event).expect("an event");
        }
        samples.append(&served.sample(number)).expect("a sample");
        if number % 50 == 49 {
            events.flush(MonoNanos(served.sent())).expect("a batch");
        }
    }
    events.finish().expect("all events");
    samples.finish().expect("all samples");
    (root, directory)
}

/// The same with its answer, which is computed as for a trace without one.
fn whole_run() -> (tempfile::TempDir, RunDir, Summary) {
    let (root, directory) = directory(&run());
    let recovered = recover(&directory, &run(), SlowSpec::default()).expect("an answer");
    directory.write_summary(&recovered.summary).expect("summary.json");
    (root, directory, recovered.summary)
}

fn list(directory: &RunDir, selection: RequestSelection) -> RequestList {
    let run = RecordedRun::read(directory).expect("a run");
    assert_eq!(run.nothing_to_list(), None);
    run.list(selection).list
}

#[track_caller]
fn is_account(request: &SlowRequest) {
    let wanted = Served::new(request.seq.expect("a number")).account();
    let account = request.account_ns.clone().expect("an account");
    assert_eq!(account.values().sum::<u64>(), request.response_ns);
    assert_eq!(account.into_iter().collect::<Vec<_>>(), wanted);
    assert_eq!(request.matched, Some(Matched::Connection));
}

fn has_note(list: &RequestList, wanted: &str) -> bool {
    list.notes.iter().any(|note| note.contains(wanted))
}

#[test]
fn the_slowest_ten_are_those_of_the_answer_and_each_account_is_known() {
    let (_root, directory, summary) = whole_run();
    let ten = list(&directory, RequestSelection { requests: 10, ..ALL });
    assert_eq!(ten.requests, summary.slowest_requests);
    assert_eq!((ten.total, ten.listed, ten.in_run, ten.outside_run), (REQUESTS, 10, REQUESTS, 0));
    assert_eq!(ten.notes, [""; 0]);
    // Programs read the entries of both in the same way.
    let json = serde_json::to_value(&ten).expect("JSON");
    assert_eq!(json["schema"], SUMMARY_SCHEMA);
    assert_eq!(json["selection"]["requests"], 10);
    assert_eq!(json["selection"]["at_ns"], serde_json::Value::Null);
    let of_summary = serde_json::to_value(&summary).expect("JSON");
    assert_eq!(json["requests"], of_summary["slowest_requests"]);
    assert_eq!(serde_json::from_value::<RequestList>(json).expect("a list"), ten);
    let all = list(&directory, ALL);
    assert_eq!((all.total, all.listed), (REQUESTS, REQUESTS));
    all.requests.iter().for_each(is_account);
    // More than may be listed is not kept.
    let most = RequestSelection { requests: u64::MAX, ..ALL };
    assert_eq!(list(&directory, most).selection.requests, REQUESTS_LISTED_MAX);
}

#[test]
fn slow_requests_and_those_of_a_moment_are_selected() {
    let (_root, directory, _) = whole_run();
    let slow = list(&directory, RequestSelection { slower_than_ns: Some(20 * MS), ..ALL });
    assert_eq!(slow.total, REQUESTS / 10);
    assert!(slow.requests.iter().all(|request| request.response_ns >= 20 * MS));
    let at = MonoNanos(Served::new(7).begin + 10 * MS);
    let at = list(&directory, RequestSelection { at_ns: Some(at), ..ALL });
    assert_eq!(at.requests.iter().map(|request| request.seq).collect::<Vec<_>>(), [Some(7)]);
    assert_eq!((at.total, at.listed), (1, 1));
}

#[test]
fn the_text_says_who_served_it_and_where_its_time_went() {
    let (_root, directory, _) = whole_run();
    let recorded = RecordedRun::read(&directory).expect("a run");
    let Listed { list, samples } =
        recorded.list(RequestSelection { slower_than_ns: Some(20 * MS), requests: 2, ..ALL });
    let details = Details::read(&directory, &list).expect("details");
    let text = render(&recorded.info, &list, &samples, &details, false);
    let wanted = "\
20 of 200 requests took 20.0 ms or longer, the slowest first
  ! the list ends after the slowest 2; 18 more are not in it (--requests N lists up to 10,000)

2023-11-14 22:13:29.650000 UTC, 9.650000 s into the run: took 20.8 ms, status 200, request 193
  matched by its connection (port 40193)
  in the socket after 30.0 µs, read after 40.0 µs by worker-1 (101), answered after 20.7 ms by
  worker-1 (101)
    reclaim_memcg     20.2 ms   97 %
      at 9.650130 s worker-1 (101), 20.2 ms: 512 pages, order 0, gfp 0x0
    service_cpu        500 µs  2.4 %
    network           50.0 µs  0.2 %
    load_generator    10.0 µs    0 %

2023-11-14 22:13:29.350000 UTC, 9.350000 s into the run: took 20.7 ms, status 200, request 187
  matched by its connection (port 40187)
  in the socket after 30.0 µs, read after 40.0 µs by worker-1 (101), answered after 20.7 ms by
  worker-1 (101)
    service_wait      20.2 ms   97 %
      at 9.350130 s worker-1 (101), 20.2 ms: futex 0x7000
    service_cpu        500 µs  2.4 %
    network           50.0 µs  0.2 %
    load_generator    10.0 µs    0 %
";
    assert_eq!(text, wanted, "\n{text}");
}

#[test]
fn a_killed_run_lists_what_is_known_to_be_complete() {
    let whole = run();
    let half = RunInfo {
        end_reason: EndReason::Running,
        end_ns: MonoNanos(whole.start_ns.0 + 5_000 * MS),
        ..whole
    };
    let (_root, directory) = directory(&half);
    let found = list(&directory, ALL);
    assert_eq!((found.in_run, found.outside_run), (REQUESTS / 2, REQUESTS / 2));
    assert!(has_note(&found, "this list is about its first 5.0 s"), "{:?}", found.notes);
    found.requests.iter().for_each(is_account);
    // As in the answer that `observer report` gives of it.
    let recovered = recover(&directory, &half, SlowSpec::default()).expect("an answer");
    let ten = list(&directory, RequestSelection { requests: 10, ..ALL });
    assert_eq!(ten.requests, recovered.summary.slowest_requests);
    directory.write_run(&RunInfo { end_ns: half.start_ns, ..half }).expect("run.json");
    let found = list(&directory, ALL);
    assert_eq!(found.listed, REQUESTS);
    assert!(has_note(&found, "may be missing anywhere"), "{:?}", found.notes);
}

#[test]
fn a_probe_that_was_detached_for_a_while_is_said() {
    let mut run = run();
    for (probe, state) in [("runqueue", ProbeState::Partial), ("sleep", ProbeState::Partial)] {
        let coverage = run.coverage.get_mut(probe).expect("a probe");
        (coverage.state, coverage.reason) = (state, Some("detached once".to_owned()));
    }
    let (_root, directory) = directory(&run);
    let found = list(&directory, ALL);
    assert!(has_note(&found, "stalls may be missing (cpu_throttle, runqueue"), "{:?}", found.notes);
    assert!(has_note(&found, "slept (probe sleep: partial, detached once)"), "{:?}", found.notes);
    assert!(found.requests.iter().all(|request| {
        let account = request.account_ns.as_ref().expect("an account");
        account.values().sum::<u64>() == request.response_ns
            && account.contains_key(&Cause::UNEXPLAINED)
            && !account.contains_key(&Cause::SERVICE_CPU)
    }));
}

/// Changes a byte in the middle of a stream.
fn damage(directory: &RunDir, name: &str) {
    let path = directory.path().join(name);
    let mut bytes = std::fs::read(&path).expect("a stream");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).expect("a stream");
}

#[test]
fn what_a_damaged_stream_held_is_not_made_up() {
    let (_root, directory, _) = whole_run();
    damage(&directory, "sleep.arrows");
    let found = list(&directory, ALL);
    assert!(has_note(&found, "sleep.arrows is damaged"), "{:?}", found.notes);
    let wanted = "it is not known when the serving threads slept";
    assert!(has_note(&found, wanted), "{:?}", found.notes);
    let mut slept = 0;
    for request in &found.requests {
        let account = request.account_ns.as_ref().expect("an account");
        assert_eq!(account.values().sum::<u64>(), request.response_ns);
        assert!(!account.contains_key(&Cause::SERVICE_CPU), "{account:?}");
        slept += u64::from(account.contains_key(&Cause::SERVICE_WAIT));
    }
    assert!((1..REQUESTS / 20).contains(&slept), "the other batches were read: {slept}");

    damage(&directory, "request.arrows");
    let found = list(&directory, ALL);
    assert!(has_note(&found, "request.arrows is damaged"), "{:?}", found.notes);
    assert_eq!(found.listed, REQUESTS, "none is hidden");
    let unmatched = found.requests.iter().filter(|one| one.matched == Some(Matched::Unmatched));
    let unmatched: Vec<&SlowRequest> = unmatched.collect();
    assert!(!unmatched.is_empty() && unmatched.len() < REQUESTS as usize, "{}", unmatched.len());
    assert!(unmatched.iter().all(|one| one.served.is_none() && one.account_ns.is_none()));
}

#[test]
fn a_run_without_samples_has_no_requests_to_list() {
    let (_root, directory, _) = whole_run();
    let samples = directory.path().join(files::SAMPLES);
    std::fs::write(&samples, "not arrow at all").expect("a file");
    let error = RecordedRun::read(&directory).err().expect("unreadable");
    assert_eq!(error.exit, Exit::RunUnreadable);
    let text = error.to_string();
    assert!(text.contains("samples.arrows") && !text.contains('\n'), "{text}");
    std::fs::remove_file(&samples).expect("a file");
    let nothing = |directory: &RunDir| {
        let run = RecordedRun::read(directory).expect("a run");
        assert_eq!(run.list(ALL).list.requests, []);
        run.nothing_to_list().expect("nothing")
    };
    assert!(nothing(&directory).contains("the run has no samples of its load generator"));
    directory.write_run(&RunInfo { samples_format: None, ..run() }).expect("run.json");
    assert!(nothing(&directory).contains("the run read no samples"));
}

#[test]
fn requests_that_were_not_watched_are_listed_by_time_with_the_reason() {
    // A run of an older version, which watched no requests.
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/runs/sealed");
    let directory = RunDir::open(&fixture).expect("a run");
    let summary = directory.read_summary().expect("readable").expect("an answer");
    let ten = list(&directory, RequestSelection { requests: 10, ..ALL });
    let times = |requests: &[SlowRequest]| -> Vec<_> {
        requests.iter().map(|one| (one.begin_ns, one.response_ns, one.status, one.seq)).collect()
    };
    assert_eq!(times(&ten.requests), times(&summary.slowest_requests));
    assert!(ten.requests.iter().all(|one| one.matched == Some(Matched::NoRequests)));
    assert!(ten.requests.iter().any(|one| !one.stalls.is_empty()));
    let wanted = "the observer that recorded the run has no probe request";
    assert!(has_note(&ten, wanted), "{:?}", ten.notes);
    // And one that was killed.
    let killed = fixture.with_file_name("sealed-killed");
    let found = list(&RunDir::open(&killed).expect("a run"), ALL);
    assert!(found.listed > 0 && has_note(&found, wanted), "{:?}", found.notes);
}
