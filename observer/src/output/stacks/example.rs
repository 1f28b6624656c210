//! A run with stacks, made up for tests.

use std::path::Path;

use observer_ebpf::wire::{
    Address, COMM_LEN, Header, RecordKind, RequestRecord, RunqueueRecord, SLEEP_LOCK,
    STACK_PREEMPTED, SleepRecord, StackRecord,
};

use super::RecordedStacks;
use crate::clock::MonoNanos;
use crate::correlate::Absences;
use crate::model::{
    Absence, Event, Frame, RunInfo, STACKS_SCHEMA, Sample, Stacks, Stall, Summary, Tgid, UserStack,
    files,
};
use crate::output::example::{self, HOSTILE, event, header};
use crate::output::rundir::RunDir;

const MS: u64 = 1_000_000;
/// The process of all threads.
const TGID: u32 = 100;
/// Has a lock now and then.
const WORKER: u32 = 101;
/// Serves the requests that nothing holds up.
const OTHER: u32 = 105;

pub(crate) fn run() -> RunInfo {
    let mut run = example::run();
    for probe in ["request", "sleep", "stack"] {
        run.coverage.insert(probe.into(), run.coverage["runqueue"].clone());
    }
    run.floors_ns.insert("stack".into(), MS);
    run
}

fn frame(function: Option<&str>, module: &str, offset: u64) -> Frame {
    Frame { function: function.map(str::to_owned), module: module.into(), offset }
}

pub(crate) fn stacks() -> Stacks {
    let kernel = |names: &[&str]| -> Vec<Frame> {
        names.iter().map(|name| frame(Some(name), "[kernel]", 7)).collect()
    };
    let user = |id, frames: Vec<Frame>| UserStack { tgid: Tgid(TGID), id, frames };
    let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    let program = "/opt/service (deleted)";
    Stacks {
        schema: STACKS_SCHEMA,
        kernel: [
            (1, kernel(&["schedule", "futex_wait_queue", "do_syscall_64"])),
            (2, kernel(&["schedule", "exit_to_user_mode_loop"])),
        ]
        .into(),
        user: vec![
            user(
                3,
                vec![
                    frame(Some("__lll_lock_wait"), libc, 30),
                    frame(Some("Pool<a, b>::take(int; char)"), program, 9),
                    frame(Some("main"), program, 5),
                ],
            ),
            // The same functions, called from elsewhere.
            user(
                5,
                vec![
                    frame(Some("__lll_lock_wait"), libc, 30),
                    frame(Some("Pool<a, b>::take(int; char)"), program, 90),
                    frame(Some("main"), program, 50),
                ],
            ),
            user(
                4,
                vec![
                    frame(Some(HOSTILE), HOSTILE, 1),
                    frame(None, "/opt/<plug in>;.so", 0x2a),
                    frame(None, "[unknown]", 0x7f00_1234),
                ],
            ),
        ],
        not_known: [("stack_gone".to_owned(), 3)].into(),
    }
}

fn at(kind: RecordKind, flags: u16, tid: u32, end_ms: u64, length_ms: u64) -> Header {
    header(kind, flags, tid, run().start_ns.0 + end_ms * MS, length_ms * MS)
}

fn away(tid: u32, times: (u64, u64), kernel_stack: i32, user_stack: i32, flags: u16) -> Event {
    let header = at(RecordKind::Stack, flags, tid, times.0, times.1);
    event(&StackRecord { header, kernel_stack, user_stack })
}

fn lock(end_ms: u64, length_ms: u64) -> Event {
    event(&SleepRecord {
        header: at(RecordKind::Sleep, SLEEP_LOCK, WORKER, end_ms, length_ms),
        syscall: libc::SYS_futex as u32,
        remote_port: 0,
        argument_1: 0x7000,
        argument_2: 0,
        argument_3: 0,
        remote_address: Address([0; 16]),
        waker_tid: 0,
        waker_tgid: 0,
    })
}

/// 12 ms: 5 ms in `lock_wait`, 1 ms in `runqueue_other`, 1 ms in `runqueue`, and 5 ms that are not explained.
pub(crate) fn events() -> Vec<Event> {
    vec![
        away(WORKER, (10, 4), 1, 3, 0),
        lock(9, 3),
        event(&RunqueueRecord {
            header: at(RecordKind::Runqueue, 0, WORKER, 10, 1),
            ran_tid: 123,
            ran_tgid: 123,
            ran_comm: [0; COMM_LEN],
            ran_cgroup: 0,
            other_ns: MS,
            own_ns: 0,
            idle_ns: 0,
            throttled_ns: 0,
        }),
        away(WORKER, (20, 2), 1, 5, 0),
        lock(20, 2),
        // It has a hostile name.
        away(102, (30, 5), -libc::EEXIST, 4, 0),
        // It has no name.
        away(103, (40, 1), 2, -libc::EFAULT, STACK_PREEMPTED),
    ]
}

pub(crate) fn recorded() -> RecordedStacks {
    let events = events();
    let absences = Absences::new(events.iter().filter_map(Absence::from_event).collect());
    let stalls = events.iter().flat_map(Stall::of_event);
    let stalls = stalls.filter(|stall| absences.concerns(stall)).collect();
    RecordedStacks::new(run(), absences, stalls, stacks(), Vec::new())
}

/// Requests of 0.5 ms, and in the place of the first one a request of 6 ms in which [`WORKER`] waits for 4 ms. Each
/// with its sample.
fn requests() -> Vec<(Event, Sample)> {
    let request = |number: u64| {
        let (tid, arrival, length) = match number {
            0 => (WORKER, 5 * MS, 6 * MS),
            _ => (OTHER, number * 50 * MS, MS / 2),
        };
        let arrival = run().start_ns.0 + arrival;
        let sent = arrival + length;
        let port = 40_000 + number as u16;
        let event = event(&RequestRecord {
            header: header(RecordKind::Request, 0, tid, sent, length),
            read_ns: arrival + 10_000,
            first_send_ns: sent,
            bytes_in: 100,
            bytes_out: 200,
            sender_tid: tid,
            sends: 1,
            local_port: 80,
            remote_port: port.into(),
            remote_address: Address([0; 16]),
        });
        let sample = Sample {
            intended_start: Some(MonoNanos(arrival - 20_000)),
            seq: Some(number),
            local_port: Some(port),
            ..Sample::of_times(arrival - 20_000, sent + 30_000)
        };
        (event, sample)
    };
    (0..100).map(request).collect()
}

/// The answer of the run, in which the one request of 3 ms or more is slow.
fn summary() -> Summary {
    let mut summary = example::attributed();
    (summary.samples.slow_count, summary.samples.slow_threshold_ns) = (1, 3 * MS);
    summary
}

/// A run directory with everything.
pub(crate) fn directory(path: &Path) -> RunDir {
    let directory = RunDir::create(Some(path)).expect("a run directory");
    let mut events = directory.create_events().expect("streams");
    self::events().iter().for_each(|event| {
        events.append(event).expect("an event");
    });
    let mut samples = directory.create_samples().expect("samples");
    for (event, sample) in requests() {
        events.append(&event).expect("a request");
        samples.append(&sample).expect("a sample");
    }
    events.finish().expect("all events");
    samples.finish().expect("all samples");
    let stacks = serde_json::to_vec(&stacks()).expect("stacks.json");
    directory.write(files::STACKS, &stacks).expect("stacks.json");
    directory.write_run(&run()).expect("run.json");
    directory.write_summary(&summary()).expect("summary.json");
    directory
}
