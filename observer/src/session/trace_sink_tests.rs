use observer_ebpf::wire::{SocketRecord, TASK_EXIT, TaskRecord};

use super::*;
use crate::model::{LossScope, LossSecond, ProbeChange, Reason, RunInfo, SamplingChange, SlowSpec};
use crate::output::example;
use crate::output::rundir::RunDir;
use crate::session::finish::read_back;
use crate::session::recover;

fn directory() -> (tempfile::TempDir, RunDir) {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDir::create(Some(&root.path().join("run"))).unwrap();
    (root, directory)
}

fn socket(at: u64) -> Event {
    let header = example::header(RecordKind::Socket, 0, 1, at, 0);
    example::event(&SocketRecord { header, family: 2, socket_type: 1 })
}

fn exit(at: u64) -> Event {
    let header = example::header(RecordKind::Task, TASK_EXIT, 1, at, 0);
    example::event(&TaskRecord { header, parent_tid: 0, reserved: 0, comm: [b'x'; 16] })
}

#[test]
fn kinds_have_room_of_their_own_and_what_does_not_fit_is_counted() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let file = directory.create_events().unwrap();
    let mut sink = Box::new(TraceSink::with(file, &counts, Caps::new(100, 80), u64::MAX / 4));
    let count = |counts: &[std::sync::atomic::AtomicU64], kind: RecordKind| {
        counts[kind as usize].load(Ordering::Relaxed)
    };
    for at in 1..=500 {
        sink.event(&socket(at));
        sink.event(&example::fault(at, 1, at));
    }
    // A storm of sockets took neither the room of stalls nor that of tasks.
    sink.event(&exit(501));
    sink.tick(MonoNanos(502), Reach::default());
    assert_eq!(counts.room.load(Ordering::Relaxed), 0);
    let mut captured = Captured::default();
    sink.finish(&mut captured);
    assert_eq!(captured.trace_error, None);
    let events = directory.read_events().unwrap().unwrap().rows;
    let written =
        |kind: RecordKind| events.iter().filter(|event| event.name() == kind.name()).count() as u64;
    for kind in [RecordKind::Socket, RecordKind::Fault] {
        let beyond = count(&counts.beyond_cap, kind);
        assert!(written(kind) > 0 && beyond > 0, "{kind:?}");
        assert_eq!(written(kind) + beyond, 500, "{kind:?}");
    }
    assert_eq!(written(RecordKind::Task), 1);
    assert_eq!(counts.stalls_beyond_cap(), count(&counts.beyond_cap, RecordKind::Fault));
}

#[test]
fn frequent_kinds_are_sampled_and_the_trace_says_so() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let file = directory.create_events().unwrap();
    let mut sink = Box::new(TraceSink::with(file, &counts, Caps::new(9_999, 9_999), 10));
    for at in 1..=1_000 {
        sink.event(&socket(at));
        sink.event(&example::fault(at, 1, at));
    }
    sink.event(&exit(1_001));
    sink.finish(&mut Captured::default());
    let events = directory.read_events().unwrap().unwrap().rows;
    let out = counts.sampled_out[RecordKind::Socket as usize].load(Ordering::Relaxed);
    let sockets = events.iter().filter(|event| event.name() == "socket").count() as u64;
    assert_eq!(sockets + out, 1_000);
    assert!(sockets < 200, "{sockets}");
    let kept = |name: &str| events.iter().filter(|event| event.name() == name).count();
    assert_eq!((kept("fault"), kept("task")), (1_000, 1), "the others are all there");
    // What the changes say is what was kept: one in n of the sockets between two of them.
    let mut changes: Vec<(u64, u32)> = events
        .iter()
        .filter_map(|event| {
            let change = SamplingChange::from_event(event)?;
            assert_eq!(change.record, RecordKind::Socket);
            Some((event.end.0, change.new_one_in))
        })
        .collect();
    assert!(changes.len() > 2, "{changes:?}");
    changes.insert(0, (0, 1));
    let ends = changes.iter().skip(1).map(|(at, _)| *at).chain([1_000]);
    let expected: u64 =
        changes.iter().zip(ends).map(|((from, one_in), to)| (to - from) / u64::from(*one_in)).sum();
    assert_eq!(sockets, expected);
}

#[test]
fn stalls_that_could_not_be_written_stay_in_memory_once() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let file = directory.create_events().unwrap();
    let mut sink = Box::new(TraceSink::new(file, &counts, EVENTS_MAX));
    for at in 1..=10 {
        sink.event(&example::fault(at, 1, at));
    }
    sink.tick(MonoNanos(11), Reach::default());
    for at in 11..=20 {
        sink.event(&example::fault(at, 1, at));
    }
    // The stream of another kind cannot be made: that ends the trace.
    std::fs::write(directory.path().join("socket.arrows"), "in the way").unwrap();
    sink.event(&socket(21));
    sink.event(&example::fault(22, 1, 22));
    let mut captured = Captured::default();
    sink.finish(&mut captured);
    assert!(captured.trace_error.is_some());
    let ends: Vec<u64> = captured.unwritten.iter().map(|stall| stall.end.0).collect();
    assert_eq!(ends, (11..=20).chain([22]).collect::<Vec<_>>());
    // The answer has each of them once, whatever of the file can be read.
    let stalls = read_back(&directory, &mut captured, 0).stalls;
    let written = read_back(&directory, &mut Captured::default(), 0).stalls.len();
    assert!(written >= 10, "{written}");
    for (index, stall) in stalls.iter().enumerate() {
        let row = (index < written).then_some(index as u32);
        assert_eq!(stall.row.map(crate::model::TraceRow::row), row, "only what is there has a row");
    }
    let mut ends: Vec<u64> = stalls.iter().map(|stall| stall.end.0).collect();
    ends.sort_unstable();
    assert_eq!(ends, (1..=20).chain([22]).collect::<Vec<_>>());
}

#[test]
fn a_daemon_whose_trace_has_ended_counts_and_keeps_nothing() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let mut sink =
        Box::new(TraceSink::of_ring(directory.create_event_ring(1 << 20).unwrap(), &counts));
    sink.event(&example::fault(1, 1, 1));
    sink.tick(MonoNanos(2), Reach::default());
    assert!(!counts.trace_ended.load(Ordering::Relaxed));
    sink.give_up(&TraceError::from(std::io::Error::from_raw_os_error(libc::ENOSPC)));
    for at in 3..=1_000 {
        sink.event(&example::fault(at, 1, at));
    }
    assert!(sink.kept.is_empty() && sink.unwritten.is_empty(), "it would grow for weeks");
    assert!(counts.trace_ended.load(Ordering::Relaxed));
    assert_eq!(counts.after_trace.load(Ordering::Relaxed), 998);
    let mut captured = Captured::default();
    sink.finish(&mut captured);
    assert!(captured.disk_full && captured.trace_error.is_some());
}

#[test]
fn the_answer_of_a_killed_run_reaches_as_far_as_its_streams_are_complete() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let file = directory.create_events().unwrap();
    let mut sink = Box::new(TraceSink::with(file, &counts, Caps::new(9_999, 9_999), SAMPLED_HZ));
    let info =
        RunInfo { start_ns: MonoNanos(50), end_ns: MonoNanos(100), ..example::crashed_run() };
    let answer = |info: &RunInfo| recover(&directory, info, SlowSpec::default()).unwrap();
    let reach = |events, losses| Reach { events: MonoNanos(events), losses: MonoNanos(losses) };
    let length = || std::fs::metadata(directory.path().join("fault.arrows")).unwrap().len();
    // Nothing is known to be complete before something was flushed, and its losses are known.
    sink.event(&example::fault(60, 5, 1));
    sink.tick(MonoNanos(170), reach(160, 0));
    assert_eq!(answer(&info).end_ns, info.end_ns);
    sink.event(&example::fault(150, 5, 2));
    sink.tick(MonoNanos(210), reach(200, 180));
    assert_eq!(answer(&info).end_ns, MonoNanos(180));
    let before = length();
    sink.event(&example::fault(300, 5, 3));
    sink.tick(MonoNanos(320), reach(310, 180));
    assert_eq!(answer(&info).end_ns, MonoNanos(180), "nothing more is known of losses");
    let loss = LossSecond { loss: RecordKind::Fault as u32, scope: LossScope::Target, count: 3 };
    sink.event(&loss.event(MonoNanos(390), MonoNanos(330)));
    sink.tick(MonoNanos(420), reach(410, 400));
    let found = answer(&info);
    assert_eq!((found.end_ns, found.summary.loss.total), (MonoNanos(400), 3));
    assert_eq!(found.summary.loss.of_target()["fault"], 3);
    let unknown = |reason: &Reason| reason.code == "trace_incomplete";
    assert!(!found.summary.verdict.reasons.iter().any(unknown));
    // Not more than run.json has of them already.
    let mut later = info.clone();
    later.loss.total = 2;
    later.loss.add_of_target("fault", 2);
    assert_eq!(answer(&later).summary.loss, found.summary.loss);
    // Without a checkpoint, the streams are enough.
    let never = RunInfo { end_ns: info.start_ns, ..info.clone() };
    assert_eq!(answer(&never).end_ns, MonoNanos(400));
    // A checkpoint that knows more.
    let newer = RunInfo { end_ns: MonoNanos(405), ..info.clone() };
    assert_eq!(answer(&newer).end_ns, MonoNanos(405));
    // From here on the coverage in run.json is not that of the time.
    sink.event(&ProbeChange { probe: "fault", attached: false }.event(MonoNanos(450)));
    sink.tick(MonoNanos(520), reach(510, 500));
    assert_eq!(answer(&info).end_ns, MonoNanos(450));
    // A stream that lacks rows is not complete.
    drop(sink);
    let stream = std::fs::File::options().write(true).open(directory.path().join("fault.arrows"));
    stream.unwrap().set_len(before).unwrap();
    assert_eq!(answer(&info).end_ns, MonoNanos(180));
}

#[test]
fn a_trace_without_room_for_stalls_is_not_noted_as_complete() {
    let (_root, directory) = directory();
    let counts = Arc::new(CaptureCounts::default());
    let file = directory.create_events().unwrap();
    let mut sink = Box::new(TraceSink::with(file, &counts, Caps::new(100, 80), SAMPLED_HZ));
    let reach = |at| Reach { events: MonoNanos(at), losses: MonoNanos(at) };
    sink.event(&example::fault(1, 1, 1));
    sink.tick(MonoNanos(3), reach(2));
    (2..500).for_each(|at| sink.event(&example::fault(at, 1, at)));
    assert!(counts.stalls_beyond_cap() > 0);
    sink.tick(MonoNanos(600), reach(500));
    let events = directory.read_events().unwrap().unwrap().rows;
    let until = events.iter().filter_map(StreamComplete::from_event).map(|note| note.until);
    assert_eq!(until.max(), Some(MonoNanos(2)));
}
