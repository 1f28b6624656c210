//! Faults in observer's own environment: a drain that is held up, a death at any moment, a full
//! disk, a map that cannot be made, little locked memory, and another observer beside it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::error::Exit;
use observer::model::{Event, Outcome, Reason, RunInfo, StreamComplete, Summary, Value as Field};
use observer::output::rundir::RunDir;
use observer_tests::bpf::{Object, assert_gone};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::command::{Finished, run};
use observer_tests::daemon::Daemon;
use observer_tests::http;
use observer_tests::killed::{answer, assert_seconds, ends, kill, run_with_load};
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service, command_lines_with};
use observer_tests::small_disk::SmallDisk;
use observer_tests::trial::{
    FLOODED, directory, programs, says_the_answer, scaled, scaled_text, settle, unique, watched,
};
use observer_tests::watch::{Watch, Work, read_run};
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

const TIMEOUT: Duration = Duration::from_secs(120);

/// Runs that are killed.
const KILLS: u32 = 8;

fn service() -> Service {
    Service::start(&programs().service, &[], Placement::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn watch(target: &[&str], directory: &Path) -> Watch {
    Watch::start(&programs(), target, directory).unwrap_or_else(|error| panic!("{error}"))
}

fn observer(arguments: &[&str]) -> Finished {
    let mut command = Command::new(programs().observer);
    run(command.args(arguments), TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_drain_that_stood_still_is_counted_and_the_run_goes_on() {
    let Some(_guard) = privileged::ready("stalled drain") else { return };
    let directory = directory();
    let rounds = scaled_text(20_000);
    let (mut work, mut watch) =
        watched(&["storm", "--rounds", &rounds], &FLOODED, directory.path());
    watch.process.signal(Signal::STOP);
    let counts = work.go().expect("it works");
    std::thread::sleep(Duration::from_secs(1));
    let written = || fs::metadata(watch.run.join("fault.arrows")).map_or(0, |file| file.len());
    let before = written();
    watch.process.signal(Signal::CONT);
    let resumed = MonoNanos::now();
    // On a busy host it takes a moment until the drain runs again and makes room in the ring.
    let deadline = Instant::now() + TIMEOUT;
    while written() == before {
        assert!(Instant::now() < deadline, "what was in the ring is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(watch.process.ended().expect("a status").is_none(), "the run goes on");
    // Its exit, seen by a drain that works again, comes after what was lost.
    work.end().expect("it ends");
    watch.process.wait(TIMEOUT).expect("the target's end ends the run");
    let (summary, info) = read_run(&watch.run).expect("a whole run");
    let events = RunDir::open(&watch.run).and_then(|run| run.read_events()).expect("a trace");
    let events = events.expect("a trace").rows;
    for kind in ["runqueue", "fault", "mm_syscall"] {
        let records = summary.records[kind];
        println!("{kind}: {records:?}, {counts}");
        assert_eq!(records.sent, records.delivered, "{kind}");
        let written = events.iter().filter(|event| event.name() == kind).count() as u64;
        assert_eq!(written, records.delivered, "{kind}");
    }
    assert!(summary.records["fault"].lost > 0, "a stopped drain takes nothing");
    assert_eq!(summary.loss.by_kind["fault"], summary.records["fault"].lost);
    let exits =
        events.iter().filter(|event| event.value("task") == Some(Field::Text("exit".into())));
    assert!(exits.filter(|event| event.end > resumed).count() > 0, "it drains again: {info:?}");
}

#[test]
fn a_run_that_lost_records_gives_no_verdict() {
    let Some(_guard) = privileged::ready("verdict after loss") else { return };
    let (service, directory) = (service(), directory());
    let out = directory.path().join("run");
    let pid = service.process.id().to_string();
    let url = format!("{}/sleep?ms=20&every=20", service.url);
    let programs = programs();
    let mut command = Command::new(&programs.observer);
    command.args(["run", "--budget", "none", "--pid", &pid, "--out", text(&out)]).args(FLOODED);
    command.args(["--samples", "observer", "--slow", "10ms", "--"]).arg(&programs.observer);
    command.args(["load", &url, "--rate", &scaled_text(1_000), "--duration", "10s"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    // The samples come while the load runs: it has begun.
    let deadline = Instant::now() + TIMEOUT;
    let begun = || fs::metadata(out.join("loadgen.out")).is_ok_and(|file| file.len() > 0);
    while !begun() {
        assert!(Instant::now() < deadline, "the load begins");
        std::thread::sleep(Duration::from_millis(20));
    }
    for _ in 0..2 {
        observer.signal(Signal::STOP);
        // Long enough that most slow requests are in seconds with a loss: a few such seconds alone
        // are left out of the answer and do not void it.
        std::thread::sleep(Duration::from_secs(4));
        observer.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(500));
    }
    let status = observer.wait(TIMEOUT).expect("it ends");
    assert!(status.success(), "{status}");
    let (summary, _) = read_run(&out).expect("a whole run");
    assert!(summary.loss.total > 0, "{:?}", summary.loss);
    assert_eq!(summary.verdict.outcome, Outcome::Inconclusive, "{:?}", summary.verdict);
    let lost = |reason: &Reason| ["records_lost", "seconds_left_out"].contains(&&*reason.code);
    assert!(summary.verdict.reasons.iter().any(lost), "{:?}", summary.verdict);
    assert!(summary.verdict.top_cause.is_none() && summary.causes.iter().all(|cause| !cause.named));
}

#[test]
fn a_run_that_is_killed_at_any_moment_leaves_nothing_in_the_kernel() {
    let Some(_guard) = privileged::ready("run killed") else { return };
    let (service, directory) = (service(), directory());
    let pid = service.process.id().to_string();
    let mut random = rand::rngs::StdRng::seed_from_u64(3);
    let mut held_most = 0;
    let mut reported = 0;
    // How long it takes here until everything is attached and COMMAND runs: the first run says so.
    let mut whole: Option<Duration> = None;
    for index in 0..KILLS {
        let out = directory.path().join(format!("run-{index}"));
        let stop = directory.path().join(format!("stop-{index}"));
        let programs = programs();
        let mut command = Command::new(&programs.observer);
        command.args(["run", "--budget", "none", "--pid", &pid, "--out", text(&out), "--"]);
        command.arg(&programs.work).arg("hold");
        let started = directory.path().join(format!("started-{index}"));
        command.arg(&started).arg(&stop);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
        // From before anything is loaded to well after everything is attached. The first and the last
        // run are killed when COMMAND runs.
        let part = (f64::from(index) - random.random_range(0.0..1.0)) / f64::from(KILLS - 2);
        let moment = whole.filter(|_| index + 1 < KILLS).map(|whole| whole.mul_f64(2.0 * part));
        let begun = Instant::now();
        while moment.map_or(!started.exists(), |moment| begun.elapsed() < moment) {
            assert!(begun.elapsed() < TIMEOUT, "COMMAND begins");
            http::get(service.port, "/cpu?us=100", "").expect("the service answers");
            std::thread::sleep(Duration::from_millis(5));
        }
        let after = begun.elapsed();
        whole.get_or_insert(after);
        let held = kill(&mut observer);
        println!("killed after {after:?}: held {}", held.len());
        held_most = held_most.max(held.len());
        // What is pinned stays as well.
        assert_gone(&held);
        // COMMAND does not outlive it: a generator would load the service without a run.
        let deadline = Instant::now() + TIMEOUT;
        while !command_lines_with(text(&stop)).is_empty() {
            assert!(Instant::now() < deadline, "COMMAND ends with observer");
            std::thread::sleep(Duration::from_millis(20));
        }
        if out.join("run.json").exists() {
            let finished = observer_report(&out);
            assert!(finished.stdout.contains("did not come") || finished.stdout.contains("died"));
            reported += 1;
        }
    }
    assert!(held_most > 10, "programs, maps and links were there: {held_most}");
    assert!(reported >= 2, "{reported} runs had begun");
}

fn observer_report(out: &Path) -> Finished {
    let finished = observer(&["report", text(out)]);
    finished.assert_code(0);
    finished
}

#[test]
fn the_trace_of_a_killed_run_is_readable_to_the_last_batch_and_answers() {
    let Some(_guard) = privileged::ready("trace of a killed run") else { return };
    let (service, directory) = (service(), directory());
    let out = directory.path().join("run");
    let pid = service.process.id().to_string();
    let url = format!("{}/sleep?ms=20&every=20", service.url);
    let mut observer = run_with_load(&pid, &url, &out, "10ms");
    let deadline = Instant::now() + TIMEOUT;
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait_for("five seconds are known to be whole", &|| {
        let info = RunDir::open(&out).and_then(|run| run.read_run());
        info.is_ok_and(|info| info.end_ns.since(info.start_ns) >= 5_000_000_000)
    });
    // Requests from before that instant, and from after it.
    let enough = ends(&out).len().max(600) + 100;
    wait_for("the load goes on", &|| ends(&out).len() >= enough);
    kill(&mut observer);
    let run = RunDir::open(&out).expect("a run");
    let info = run.read_run().expect("run.json");
    assert!(run.read_summary().expect("readable").is_none(), "it did not get that far");
    let events = run.read_events().expect("readable").expect("a trace");
    assert!(events.truncated, "it has no end mark");
    let last = events.rows.last().expect("events").end;
    let length_ns = last.since(info.start_ns);
    assert!(length_ns > 4_000_000_000, "what is known to be whole is there: {length_ns}");
    let summary = answer(&out);
    assert!(summary.samples.count > 200, "{:?}", summary.samples);
    assert!(summary.samples.slow_count > 5, "{:?}", summary.samples);
    let told = |reason: &Reason| reason.code == "recovered";
    assert!(summary.verdict.reasons.iter().any(told), "{:?}", summary.verdict);
    let spoilt = |reason: &Reason| reason.code == "samples_skipped";
    assert!(!summary.verdict.reasons.iter().any(spoilt), "{:?}", summary.verdict);
    // The streams say how far they are complete, however old run.json is.
    let note = |event: &Event| Some((event.end, StreamComplete::from_event(event)?));
    let notes = events.rows.iter().filter_map(note);
    let (noted, last) = notes.max_by_key(|(_, note)| note.until).expect("a note");
    println!("complete {} ns before it was noted", noted.since(last.until));
    let until = last.until.max(info.end_ns);
    assert_seconds(&summary, until.since(info.start_ns));
    // Requests after the last instant that is known to be whole tell nothing, and spoil nothing.
    let outside = ends(&out).into_iter().filter(|end| *end > until).count() as u64;
    let skipped = summary.samples.skipped.get("outside_run").copied().unwrap_or_default();
    println!("{outside} requests after that, {skipped} not used");
    assert_eq!(skipped, outside, "{:?}", summary.samples);
    let end_ns = MonoNanos(info.start_ns.0 + 1_000_000_000);
    run.write_run(&RunInfo { end_ns, ..info.clone() }).expect("run.json");
    let finished = self::observer(&["report", text(&out), "--json"]);
    let again: Summary = serde_json::from_str(&finished.stdout).expect("an answer");
    assert_seconds(&again, last.until.since(info.start_ns));
    run.write_run(&info).expect("run.json");
    let report = observer_report(&out).stdout;
    assert!(says_the_answer(&report, &summary), "{report}");
}

#[test]
fn a_run_that_is_killed_at_once_gives_an_answer_from_what_it_wrote() {
    let Some(_guard) = privileged::ready("run killed at once") else { return };
    let service = service();
    let pid = service.process.id().to_string();
    let url = format!("{}/cpu?us=100", service.url);
    // A fraction of a second, one, and three.
    for enough in [20, 200, 600] {
        let directory = directory();
        let out = directory.path().join("run");
        let mut observer = run_with_load(&pid, &url, &out, "p99");
        let requests = || {
            let read = fs::read_to_string(out.join("loadgen.out")).unwrap_or_default();
            // Behind the line that says what the others hold.
            read.matches('\n').count().saturating_sub(1) as u64
        };
        let deadline = Instant::now() + TIMEOUT;
        while requests() < enough {
            assert!(Instant::now() < deadline, "the load goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        kill(&mut observer);
        let summary = answer(&out);
        // Each request that was written is in the answer, or known to lie after the last instant
        // for which run.json says that the streams are complete.
        let outside = summary.samples.skipped.get("outside_run").copied().unwrap_or(0);
        let found = summary.samples.count + outside;
        println!("{enough}: {:?}, {}", summary.samples, summary.verdict.outcome.name());
        assert!(found >= enough, "{found} of {enough}: {:?}", summary.samples);
        let told = |code| summary.verdict.reasons.iter().any(|reason| reason.code == code);
        let directory = RunDir::open(&out).expect("a run");
        let mut info = directory.read_run().expect("run.json");
        let unknown = info.end_ns == info.start_ns;
        assert!(told("recovered"), "{:?}", summary.verdict);
        assert!(unknown || !told("trace_incomplete"), "{:?}", summary.verdict);
        let report = observer_report(&out).stdout;
        assert!(report.contains("The run did not end normally"), "{report}");
        let start_ns = info.start_ns;
        let mut answer_until = |end_ns| {
            info.end_ns = end_ns;
            info.streams.clear();
            // There is none in the first moment.
            let _ = fs::remove_file(out.join("complete.arrows"));
            directory.write_run(&info).expect("run.json");
            answer(&out)
        };
        // A checkpoint from before the first request.
        let summary = answer_until(MonoNanos(start_ns.0 + 1));
        let outside = summary.samples.skipped.get("outside_run").copied().unwrap_or(0);
        assert!(outside >= enough && summary.samples.count == 0, "{:?}", summary.samples);
        assert_eq!(summary.verdict.reasons[0].code, "samples_unusable", "{:?}", summary.verdict);
        assert_eq!(summary.verdict.outcome, Outcome::Inconclusive);
        // Without any checkpoint, and without a note in the trace, the answer is about everything that
        // was written.
        let summary = answer_until(start_ns);
        assert!(summary.samples.count >= enough, "{:?}", summary.samples);
        assert_eq!(summary.verdict.outcome, Outcome::Inconclusive);
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_nothing_in_the_kernel() {
    let Some(_guard) = privileged::ready("daemon killed") else { return };
    let (service, directory) = (service(), directory());
    let pid = service.process.id().to_string();
    let trace = directory.path().join("trace");
    let mut daemon = Daemon::start(&["--pid", &pid, "--trace", text(&trace)]);
    let deadline = Instant::now() + TIMEOUT;
    let written = || RunDir::open(&trace).and_then(|run| run.read_events());
    while !written().is_ok_and(|events| events.is_some_and(|events| !events.rows.is_empty())) {
        assert!(Instant::now() < deadline, "something is written");
        http::get(service.port, "/cpu?us=100", "").expect("the service answers");
    }
    let held = kill(daemon.process());
    let of = |kind: fn(&Object) -> bool| held.iter().filter(|object| kind(object)).count();
    assert!(of(|object| matches!(object, Object::Program(_))) > 3, "{held:?}");
    assert!(of(|object| matches!(object, Object::Map(_))) > 3, "{held:?}");
    assert_gone(&held);
    let events = RunDir::open(&trace).and_then(|run| run.read_events()).expect("readable");
    let events = events.expect("a trace");
    assert!(events.truncated && !events.rows.is_empty());
    observer_report(&trace);
}

#[test]
fn a_disk_that_is_full_from_the_start_is_one_line_and_a_code_of_its_own() {
    let Some(_guard) = privileged::ready("full disk") else { return };
    let (service, directory) = (service(), directory());
    let disk = SmallDisk::mount(&directory.path().join("disk"), "size=256k");
    disk.fill();
    let (pid, out) = (service.process.id().to_string(), disk.directory().join("run"));
    let finished = observer(&["run", "--pid", &pid, "--duration", "1s", "--out", text(&out)]);
    finished.assert_code(15);
    assert!(finished.stderr.contains("No space left"), "{finished:?}");
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn a_disk_that_fills_up_ends_the_trace_and_not_the_answer() {
    let Some(_guard) = privileged::ready("disk fills up") else { return };
    let directory = directory();
    let disk = SmallDisk::mount(&directory.path().join("disk"), "size=3m");
    let rounds = scaled_text(20_000);
    let mut work = Work::start(&programs(), &["storm", "--rounds", &rounds], Placement::default())
        .expect("it starts");
    let (pid, out) = (work.id().to_string(), disk.directory().join("run"));
    let mut command = Command::new(programs().observer);
    command.args(["run", "--budget", "none", "--pid", &pid, "--out", text(&out)]);
    command.args(["--floor", "fault=0ns", "--floor", "mm_syscall=0ns", "--floor", "runqueue=0ns"]);
    let log = directory.path().join("log");
    let file = fs::File::create(&log).expect("a file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    let deadline = Instant::now() + TIMEOUT;
    while !out.join("loadgen.out").exists() {
        assert!(Instant::now() < deadline, "the run begins");
        std::thread::sleep(Duration::from_millis(20));
    }
    let counts = work.go().expect("it works");
    work.end().expect("it ends");
    let status = observer.wait(TIMEOUT).expect("the target's end ends the run");
    let said = fs::read_to_string(&log).expect("the log");
    assert_eq!(status.code(), Some(15), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("observer: ")).count(), 1, "{said}");
    assert!(said.contains("the disk of"), "{said}");
    let run = RunDir::open(&out).expect("a run");
    let summary = run.read_summary().expect("readable").expect("the answer found room");
    let madvise = summary.probes["mm_syscall"].parts["madvise"].count;
    // Threads that end give their stacks back as well.
    let expected = counts["madvise"].as_u64().expect("a count");
    assert!((expected..expected + 100).contains(&madvise), "the distributions are whole");
    let events = run.read_events().expect("readable").expect("a trace");
    assert!(events.truncated && events.rows.len() > 1_000, "{}", events.rows.len());
    assert!(summary.records["fault"].delivered > events.rows.len() as u64);
    let report = observer_report(&out).stdout;
    assert!(report.contains("end early"), "{report}");
}

#[test]
fn a_full_disk_ends_the_trace_of_a_daemon_which_says_so_and_goes_on() {
    let Some(_guard) = privileged::ready("full disk of a daemon") else { return };
    let directory = directory();
    let disk = SmallDisk::mount(&directory.path().join("disk"), "size=3m");
    let service = service();
    let (pid, trace) = (service.process.id().to_string(), disk.directory().join("trace"));
    let mut daemon = Daemon::start(&["--pid", &pid, "--trace", text(&trace)]);
    assert_eq!(daemon.scrape().count("observer_trace_ended", &[]), 0);
    disk.fill();
    let deadline = Instant::now() + TIMEOUT;
    let mut requests = 0;
    let ended = loop {
        // Something for the trace.
        http::get(service.port, "/cpu?us=100", "").expect("the service answers");
        requests += 1;
        let metrics = daemon.scrape();
        if metrics.count("observer_trace_ended", &[]) == 1
            && metrics.count("observer_trace_missing_events_total", &[]) > 0
        {
            break metrics;
        }
        assert!(Instant::now() < deadline, "{}", metrics.text());
    };
    // The metrics are whole: each request woke the service.
    let waits = ended.count("observer_runqueue_latency_seconds_count", &["target=\"true\""]);
    assert!(waits >= requests, "{waits} waits in {requests} requests");
    daemon.process().signal(Signal::TERM);
    let status = daemon.process().wait(TIMEOUT).expect("it ends");
    assert_eq!(status.code(), Some(15), "the disk is full");
}

#[test]
fn a_disk_that_is_full_at_the_begin_keeps_no_directory() {
    let Some(_guard) = privileged::ready("full disk at the begin") else { return };
    let directory = directory();
    let disk = SmallDisk::mount(&directory.path().join("disk"), "size=256k");
    disk.fill();
    // Records come from the first moment on.
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do /bin/true; done"]);
    let busy = Running::start(&mut busy, Placement::default()).expect("it starts");
    let (pid, out) = (busy.id().to_string(), disk.directory().join("out"));
    for _ in 0..3 {
        for arguments in [
            &["run", "--duration", "5s", "--pid", &pid, "--out", text(&out)][..],
            &["daemon", "--listen", "127.0.0.1:0", "--pid", &pid, "--trace", text(&out)],
        ] {
            let mut command = Command::new(programs().observer);
            let finished = run(command.args(arguments), TIMEOUT);
            let finished = finished.unwrap_or_else(|error| panic!("{error}"));
            finished.assert_code(15);
            assert!(!out.exists(), "{finished:#?}");
        }
    }
}

#[test]
fn a_map_that_cannot_be_made_is_named_with_what_to_do() {
    let Some(_guard) = privileged::ready("map refused") else { return };
    let (service, directory) = (service(), directory());
    let cgroup = MemoryCgroup::create(&unique("maps")).expect("a cgroup can be made");
    cgroup.limit(Some(300 << 20)).expect("a limit can be set");
    let (pid, out) = (service.process.id().to_string(), directory.path().join("run"));
    let log = directory.path().join("log");
    let run_in_it = |before: &str, code: i32, words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{before} exec \"$0\" \"$@\"")]);
        command.arg(programs().observer).args(["run", "--budget", "none", "--pid", &pid]);
        command.args(["--duration", "1s", "--ring-bytes", "1G", "--out", text(&out)]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log).expect("a file"));
        let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
        let mut observer = Running::start(&mut command, place).expect("it starts");
        let status = observer.wait(TIMEOUT).expect("it ends");
        let said = fs::read_to_string(&log).expect("the log");
        assert_eq!(status.code(), Some(code), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!out.exists(), "nothing is left behind");
    };
    run_in_it("", Exit::Limit as i32, &["limited to 300 MiB", "needs 1."]);
    // Where observer cannot see the limit, the kernel tells.
    let hidden = "mount -t tmpfs none /sys/fs/cgroup &&";
    run_in_it(hidden, 4, &["map RING", "Cannot allocate memory", "--ring-bytes"]);
}

#[test]
fn little_locked_memory_and_no_right_to_raise_it_do_not_matter() {
    let Some(_guard) = privileged::ready("memlock") else { return };
    let (service, directory) = (service(), directory());
    let (pid, out) = (service.process.id().to_string(), directory.path().join("run"));
    let mut command = Command::new(programs().observer);
    command.args([
        "run",
        "--budget",
        "none",
        "--pid",
        &pid,
        "--duration",
        "500ms",
        "--out",
        text(&out),
    ]);
    let less = || {
        const CAP_SYS_RESOURCE: libc::c_ulong = 24;
        let limit = libc::rlimit { rlim_cur: 16 << 10, rlim_max: 16 << 10 };
        // SAFETY: plain numbers and a limit that lives through the call.
        unsafe {
            if libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE) != 0
                || libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing is allocated.
    unsafe { command.pre_exec(less) };
    let finished = run(&mut command, TIMEOUT).expect("it ends");
    finished.assert_code(0);
    read_run(&out).expect("a whole run");
}

#[test]
fn two_observers_of_one_target_do_not_disturb_each_other() {
    let Some(_guard) = privileged::ready("two observers") else { return };
    let (first, second) = (directory(), directory());
    let pages = scaled(20_000);
    let arguments = ["minor-faults", "--pages", &pages.to_string()];
    let mut work = Work::start(&programs(), &arguments, Placement::default()).expect("it starts");
    let pid = work.id().to_string();
    let daemon = Daemon::start(&["--pid", &pid]);
    let watches = [watch(&["--pid", &pid], first.path()), watch(&["--pid", &pid], second.path())];
    let before = observer_tests::kernel_counters::faults(work.id()).expect("it is there");
    work.go().expect("it works");
    // What it does between its last word and its sleep is in both.
    settle(work.id());
    let after =
        observer_tests::kernel_counters::faults(work.id()).expect("it is there").since(before);
    let labels = ["target=\"true\"", "minor"];
    let scraped = daemon.scrape().count("observer_fault_latency_seconds_count", &labels);
    assert_eq!(scraped, after.minor, "the daemon counts what the kernel counts");
    let [one, other] = watches.map(|watch| {
        let (summary, _) = watch.finish().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(summary.probes["fault"].parts["minor"].count, after.minor);
        // The kernel's switch of run-time statistics is shared: it stays on while a process wants
        // it.
        assert!(summary.observer.bpf_run_count > 0, "{:?}", summary.observer);
        summary
    });
    assert_eq!(one.probes["fault"].count, other.probes["fault"].count);
    // The end of the others changed nothing for the daemon.
    let _ = daemon.scrape();
    daemon.end();
    work.end().expect("it ends");
}
