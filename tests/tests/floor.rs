//! The floor of frequent records rises in a storm and falls when it is over; no record causes a
//! wake-up; memory stays within what was promised.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use observer::kernel::ThreadPlaces;
use observer::model::{FloorChange, FloorReason};
use observer::output::rundir::RunDir;
use observer::probe::ProbeOptions;
use observer_ebpf::wire::RecordKind;
use observer_tests::daemon::Daemon;
use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::trial::{directory, programs, scaled_text, watched};
use observer_tests::watch::Work;

const TIMEOUT: Duration = Duration::from_secs(120);

/// The changes of a trace, in order.
fn changes(run: &std::path::Path) -> Vec<FloorChange> {
    let events = RunDir::open(run).and_then(|run| run.read_events()).expect("a readable trace");
    // While the run lasts, its first batch may still be in memory.
    let events = events.map(|trace| trace.rows).unwrap_or_default();
    events.iter().filter_map(FloorChange::from_event).collect()
}

/// Whether floors were raised, and each is back where its first change began.
fn are_down(changes: &[FloorChange]) -> bool {
    let first = |kind| changes.iter().find(|change| change.record == kind);
    let mut last = BTreeMap::new();
    for change in changes {
        last.insert(change.record, change.new_ns);
    }
    let down =
        |(kind, now_ns): (&RecordKind, &u64)| first(*kind).is_some_and(|it| it.old_ns == *now_ns);
    !changes.is_empty() && last.iter().all(down)
}

#[test]
fn a_storm_raises_the_floor_and_its_end_lowers_it() {
    let Some(_guard) = privileged::ready("adaptive floor") else { return };
    let directory = directory();
    let rounds = scaled_text(100_000);
    let (mut work, watch) = watched(&["storm", "--rounds", &rounds], &[], directory.path());
    work.go().expect("it works");
    // At rest: the floors come down again, a step a second or two.
    let run = watch.run.clone();
    let deadline = Instant::now() + TIMEOUT;
    while !are_down(&changes(&run)) {
        assert!(Instant::now() < deadline, "the floors come down: {:?}", changes(&run));
        std::thread::sleep(Duration::from_millis(500));
    }
    let (summary, info) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    work.end().expect("it ends");
    let changes = changes(&run);
    println!("{changes:#?}\n{:#?}", summary.floors);
    let raised: Vec<_> =
        changes.iter().filter(|change| change.reason != FloorReason::Calm).collect();
    let lowered = changes.len() - raised.len();
    assert!(!raised.is_empty() && lowered > 0, "{changes:?}");
    assert!(raised.iter().all(|change| change.new_ns > change.old_ns));
    for (kind, floor) in &summary.floors {
        let of_kind: Vec<_> =
            changes.iter().filter(|change| change.record.name() == kind.as_str()).collect();
        assert_eq!(floor.changes, of_kind.len() as u64, "{kind}: all changes are in the trace");
        let mut now_ns = info.floors_ns[kind];
        for change in of_kind {
            assert_eq!(change.old_ns, now_ns, "{kind}: none is missing");
            now_ns = change.new_ns;
        }
        assert_eq!((floor.last_ns, floor.history[0].floor_ns), (now_ns, info.floors_ns[kind]));
        assert_eq!(now_ns, info.floors_ns[kind], "{kind}: it is down where it began");
        if floor.changes > 0 {
            assert!(floor.raised_for_ns > 0 && floor.highest_ns > info.floors_ns[kind]);
        }
    }
    // What was not recorded is accounted.
    let hidden: u64 = summary.floors.values().map(|floor| floor.hidden_ns).sum();
    let unrecorded: u64 = summary.probes.values().map(|probe| probe.unrecorded_ns).sum();
    assert!(hidden > 0 && hidden <= unrecorded, "{hidden} of {unrecorded}");
    let text = Command::new(programs().observer).arg("report").arg(&run).output().expect("report");
    assert!(
        String::from_utf8_lossy(&text.stdout).contains("Recording threshold raised:"),
        "{text:?}"
    );
}

#[test]
fn the_floor_is_a_metric_of_the_daemon() {
    let Some(_guard) = privileged::ready("floor metric") else { return };
    let directory = directory();
    let rounds = scaled_text(100_000);
    let mut work = Work::start(&programs(), &["storm", "--rounds", &rounds], Placement::default())
        .expect("it starts");
    let trace = directory.path().join("trace");
    let pid = work.id().to_string();
    let daemon = Daemon::start(&["--pid", &pid, "--trace", trace.to_str().expect("UTF-8")]);
    let sum = |name: &str| daemon.scrape().sum(name, &[]);
    let before = sum("observer_record_floor_seconds");
    assert!(before > 0.0, "floors are reported");
    assert_eq!(sum("observer_record_floor_changes_total"), 0.0);
    work.go().expect("it works");
    let raised = sum("observer_record_floor_seconds");
    assert!(raised > before, "{raised} is more than {before}");
    let counted = sum("observer_record_floor_changes_total");
    assert!(counted >= 1.0, "{counted}");
    let deadline = Instant::now() + TIMEOUT;
    while sum("observer_record_floor_seconds") > before {
        assert!(Instant::now() < deadline, "the floors fall again");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(sum("observer_record_floor_changes_total") > counted);
    daemon.end();
    work.end().expect("it ends");
    let events = RunDir::open(&trace).and_then(|run| run.read_events()).expect("a trace");
    assert!(!events.expect("a trace").truncated, "a clean end");
    assert!(changes(&trace).iter().any(|change| change.reason == FloorReason::Calm));
}

/// Voluntary context switches of a thread, by its name.
fn voluntary_switches(pid: u32, name: &str) -> u64 {
    let of_thread = |tid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let field = |key: &str| {
            status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim())
        };
        (field("Name:")? == name).then(|| field("voluntary_ctxt_switches:")?.parse().ok())?
    };
    let threads = kernel_counters::threads(pid).expect("observer runs");
    threads.into_iter().find_map(of_thread).unwrap_or_else(|| panic!("no thread {name}"))
}

/// Watches a workload of which everything of one kind becomes a record, and holds the wake-ups of
/// the drain against the records.
fn wakeups(arguments: &[&str], kind: &str) {
    let directory = directory();
    let floor = format!("{kind}=0ns");
    let (mut work, watch) = watched(arguments, &["--floor", &floor], directory.path());
    let before = voluntary_switches(watch.process.id(), "observer-drain");
    let begun = Instant::now();
    work.go().expect("it works");
    let switches = voluntary_switches(watch.process.id(), "observer-drain") - before;
    let elapsed = begun.elapsed();
    let (summary, _) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    work.end().expect("it ends");
    let delivered = summary.records[kind].delivered;
    println!("{kind}: {delivered} records, {switches} wake-ups of the drain in {elapsed:?}");
    assert!(delivered > 1_000, "{delivered}");
    // The timer ticks a hundred times a second; a ring that fills up half wakes early, and what it
    // held was some fifty thousand records. Handing batches over may block now and then.
    let timer = elapsed.as_millis() as u64 / 10;
    let early = 4 * delivered / 50_000 + 10;
    assert!(switches <= timer * 3 / 2 + early, "{switches} in {elapsed:?}");
    let wakeups = summary.observer.drain_wakeups;
    assert!(wakeups > 0 && wakeups * 10 < delivered, "{wakeups}");
}

#[test]
fn no_record_causes_a_wake_up() {
    let Some(_guard) = privileged::ready("wake-ups") else { return };
    wakeups(&["memory-calls", "--rounds", &scaled_text(30_000)], "mm_syscall");
    // Records that come one by one, with time between them to fall asleep and be woken.
    wakeups(&["ping-pong", "--rounds", &scaled_text(100_000)], "runqueue");
}

#[test]
fn memory_is_what_the_doctor_says_before_anything_is_loaded() {
    let Some(_guard) = privileged::ready("memory") else { return };
    let directory = directory();
    let rounds = scaled_text(50_000);
    let (mut work, watch) = watched(&["storm", "--rounds", &rounds], &[], directory.path());
    work.go().expect("it works");
    let (summary, _) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    work.end().expect("it ends");
    let own = summary.observer;
    let places = ThreadPlaces::of_host(&ProbeOptions::default());
    let planned: u64 = observer::kernel::plan(observer::kernel::RING_BYTES, false, &places)
        .iter()
        .map(|map| map.bytes)
        .sum();
    println!("planned {planned}, maps {}, {own:?}", own.bpf_map_bytes);
    assert!(own.bpf_map_bytes > 0);
    let ratio = planned as f64 / own.bpf_map_bytes as f64;
    assert!((0.95..1.1).contains(&ratio), "planned {planned}, made {}", own.bpf_map_bytes);
    assert!(own.rss_bytes > 0 && own.rss_bytes <= own.max_rss_bytes);
    assert!(own.max_rss_bytes <= own.rss_bound_bytes, "{own:?}");
    let doctor = Command::new(programs().observer).args(["doctor"]).output().expect("doctor");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let mib = format!("{:.1} MiB of locked kernel memory", planned as f64 / f64::from(1 << 20));
    assert!(doctor.contains(&mib), "{mib}: {doctor}");
}
