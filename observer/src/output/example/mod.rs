//! Runs made up for tests of the outputs.

mod conditions;

use std::collections::BTreeMap;

use observer_ebpf::wire::{
    COMM_LEN, FaultRecord, Header, MmSyscallRecord, RECLAIM_MEMCG, RUNQUEUE_PREEMPTED,
    ReclaimRecord, Record, RecordKind, RunqueueRecord, Series,
};

use crate::clock::{Anchor, Anchors, MonoNanos, WallNanos};
use crate::model::*;

use conditions::conditions;
pub(crate) use conditions::*;

const START: u64 = 5_000_000_000;
const MS: u64 = 1_000_000;

/// A name that tries to break out of every output.
pub(crate) const HOSTILE: &str = "</b><i>\u{1b}[31m";

pub(crate) fn run() -> RunInfo {
    let attached = |tier: &str| Coverage {
        state: ProbeState::Attached,
        tier: Some(tier.to_owned()),
        reason: None,
        detached: None,
    };
    let partial = Coverage {
        state: ProbeState::Partial,
        tier: Some("cgroup_sock".to_owned()),
        reason: Some("accept: this kernel has no fexit".to_owned()),
        detached: None,
    };
    let names = [(100, "service"), (101, "worker-1"), (102, HOSTILE)];
    RunInfo {
        schema: RUN_SCHEMA,
        observer_version: "0.1.0".into(),
        kernel_release: "6.12.0".into(),
        boot_id: None,
        run_id: None,
        machine: "x86_64".into(),
        cpus: 2,
        target: "--comm service".into(),
        target_processes: BTreeMap::from([(100, "service".into())]),
        target_cpus: Some(2),
        target_owners: BTreeMap::from([(
            100,
            Owner { user: "www-data".into(), network: Owner::HOST.into() },
        )]),
        target_cgroup: Some("/demo".into()),
        conditions: Conditions::default(),
        command: vec!["observer".into(), "load".into(), "http://127.0.0.1:8080/".into()],
        command_user: None,
        command_exit: Some(0),
        cut_bytes: BTreeMap::new(),
        kept: BTreeMap::from([(
            files::LOADGEN_ERR.into(),
            KeptPart::new(0, crc32fast::Hasher::new()),
        )]),
        generator: Some(RelAnchor {
            spawned: Some(MonoNanos(START)),
            exited: None,
            processes: Some(GeneratorProcesses {
                processes: vec![GeneratorProcess {
                    tgid: 200,
                    comm: "hey".into(),
                    began: Some(MonoNanos(START + MS)),
                    connects: vec![(MonoNanos(START + 2 * MS), 80)],
                    ..GeneratorProcess::default()
                }],
                connects_known: true,
            }),
            ports: [80].into(),
        }),
        samples_format: Some("observer".into()),
        clock_error_ns: None,
        slow_rule: "p99".into(),
        start_ns: MonoNanos(START),
        end_ns: MonoNanos(START + 30_000 * MS),
        end_reason: EndReason::CommandExit,
        anchors: Anchors(vec![Anchor {
            monotonic_ns: MonoNanos(START),
            wall_ns: WallNanos(1_700_000_000_000_000_000),
            uncertainty_ns: 50,
        }]),
        coverage: BTreeMap::from([
            ("runqueue".into(), attached("tp_btf")),
            ("fault".into(), attached("perf_event")),
            ("reclaim".into(), attached("tp_btf")),
            ("mm_syscall".into(), attached("tp_btf")),
            ("socket".into(), partial),
        ]),
        floors_ns: BTreeMap::from([("runqueue".into(), 10_000)]),
        removed: BTreeMap::new(),
        streams: BTreeMap::new(),
        loss: LossSummary::default(),
        thread_names: names.map(|(tid, name)| (tid, name.to_owned())).into(),
        holder_cgroups: BTreeMap::from([(4_711, "/system.slice/<hog>".into())]),
    }
}

/// The same, as it stands in the directory while the run goes on.
pub(crate) fn crashed_run() -> RunInfo {
    RunInfo { end_reason: EndReason::Running, command_exit: None, ..run() }
}

pub(crate) fn samples() -> Vec<Sample> {
    (0..3_000u64)
        .map(|index| {
            let begin = START + index * 10 * MS;
            // A squeeze a second long every ten seconds.
            let slow = index % 1_000 > 900 && index % 7 == 0;
            let wobble = index * 7_919 % 400_000;
            let response = if slow { 42 * MS + 20 * wobble } else { MS + wobble };
            Sample {
                intended_start: Some(MonoNanos(begin)),
                start: MonoNanos(begin + 20_000),
                end: MonoNanos(begin + response),
                precision_ns: 1,
                status: Some(if index == 950 { 503 } else { 200 }),
                ok: index != 950,
                error: (index == 950).then(|| "503 <script>alert(1)</script>".to_owned()),
                seq: Some(index),
                local_port: None,
            }
        })
        .collect()
}

/// The header of a record, on CPU 1.
pub(crate) fn header(kind: RecordKind, flags: u16, tid: u32, end: u64, length: u64) -> Header {
    let kind = kind as u16;
    Header { end_ns: end, duration_ns: length, tid, tgid: 100, kind, flags, cpu: 1 }
}

/// The event of a record.
pub(crate) fn event<R: Record>(record: &R) -> Event {
    crate::probe::decode(bytemuck::bytes_of(record)).expect("a record")
}

/// A minor fault of thread 101.
pub(crate) fn fault(end: u64, length: u64, address: u64) -> Event {
    event(&FaultRecord { header: header(RecordKind::Fault, 0, 101, end, length), address })
}

pub(crate) fn events() -> Vec<Event> {
    let mut ran_comm = [0; COMM_LEN];
    ran_comm[..11].copy_from_slice(b"hog<script>");
    let mut events = Vec::new();
    for sample in samples().iter().filter(|sample| sample.response_ns() > 20 * MS) {
        let end = sample.end.0 - MS / 2;
        let length = sample.response_ns() * 7 / 10;
        events.push(event(&ReclaimRecord {
            header: header(RecordKind::Reclaim, RECLAIM_MEMCG, 101, end - 2 * MS, length),
            reclaimed_pages: 512,
            gfp_flags: 0x0014_00ca,
            order: 0,
        }));
        events.push(event(&RunqueueRecord {
            header: header(RecordKind::Runqueue, RUNQUEUE_PREEMPTED, 102, end - MS, 900_000),
            ran_tid: 123,
            ran_tgid: 123,
            ran_comm,
            ran_cgroup: 4_711,
            other_ns: 900_000,
            own_ns: 0,
            idle_ns: 0,
            throttled_ns: 0,
        }));
        events.push(event(&MmSyscallRecord {
            header: header(RecordKind::MmSyscall, 0, 102, end, 300_000),
            address: 0x7f00_0000_0000,
            length_bytes: 4 << 20,
            result: 0,
            series: Series::Madvise as u32,
            argument: 4,
        }));
    }
    events
}

fn probe(run: &RunInfo, name: &str, five: DistributionSummary) -> ProbeSummary {
    let coverage = &run.coverage[name];
    ProbeSummary {
        state: coverage.state,
        tier: coverage.tier.clone(),
        reason: coverage.reason.clone(),
        count: five.count,
        sum_ns: five.sum_ns,
        p50_ns: five.p50_ns,
        p99_ns: five.p99_ns,
        max_ns: five.max_ns,
        parts: BTreeMap::new(),
        records: five.count / 10,
        unrecorded_ns: 0,
        counters: BTreeMap::new(),
    }
}

pub(crate) fn attributed() -> Summary {
    let run = run();
    let five = |count, max_ns| DistributionSummary {
        count,
        sum_ns: count * max_ns / 50,
        p50_ns: max_ns / 100,
        p99_ns: max_ns / 2,
        max_ns,
    };
    let cause = |cause, share, low, high, named| CauseSummary {
        cause,
        share,
        ci95: [low, high],
        p_value: (!cause.is_rest()).then_some(if named { 0.001 } else { 0.4 }),
        contribution_ns: share * 40e6,
        stalls: 99,
        named,
        without: None,
        objects: Vec::new(),
    };
    let mut probes: BTreeMap<_, _> = [
        ("runqueue", five(1_200_000, 9_000_000)),
        ("fault", five(55_000, 700_000)),
        ("reclaim", five(4_000, 41_000_000)),
        ("mm_syscall", five(900, 310_000)),
        ("socket", five(30, 2_000_000_000)),
    ]
    .into_iter()
    .map(|(name, five)| (name.to_owned(), probe(&run, name, five)))
    .collect();
    if let Some(reclaim) = probes.get_mut("reclaim") {
        reclaim.parts = BTreeMap::from([
            ("memcg".into(), five(3_990, 41_000_000)),
            ("direct".into(), five(10, 9_000)),
        ]);
        reclaim.counters = BTreeMap::from([("kswapd_wakeups".into(), 3)]);
    }
    if let Some(socket) = probes.get_mut("socket") {
        socket.counters = BTreeMap::from([("live".into(), 12), ("failed_accept_EMFILE".into(), 2)]);
    }
    Summary {
        schema: SUMMARY_SCHEMA,
        verdict: Verdict {
            outcome: Outcome::Attributed,
            top_cause: Some(Cause::RECLAIM_MEMCG),
            reasons: vec![Reason::new(
                "cause_named",
                "reclaim_memcg accounts for 71 % of it (95 % interval 64 % to 78 %).",
                serde_json::json!({"cause": "reclaim_memcg", "share": 0.71}),
            )],
        },
        samples: SamplesSummary {
            count: 3_000,
            errors: 1,
            errors_by_kind: BTreeMap::from([("timeout".to_owned(), 1)]),
            rate_hz: 100.0,
            latency_ns: LatencySummary {
                p50: 1_200_000,
                p90: 1_390_000,
                p99: 47_000_000,
                p999: 49_900_000,
                max: 50_000_000,
            },
            intended_start_known: true,
            lateness_ns: LatencySummary {
                p50: 20_000,
                p90: 20_000,
                p99: 20_000,
                p999: 20_000,
                max: 20_000,
            },
            skipped: BTreeMap::new(),
            slow_rule: "p99".into(),
            slow_count: 30,
            clock_error_ns: 1_100,
            slow_left_out: 0,
            slow_threshold_ns: 47_000_000,
            slow_mean_ns: 48_200_000.0,
            typical_mean_ns: 1_200_000.0,
        },
        requests: RequestsSummary {
            matched: 2_980,
            ambiguous: 8,
            unmatched: 2,
            multiplexed: 10,
            clock_drift: None,
        },
        causes: vec![
            cause(Cause::RECLAIM_MEMCG, 0.71, 0.64, 0.78, true),
            cause(Cause::RUNQUEUE_OTHER, 0.08, 0.02, 0.12, true),
            cause(Cause::MM_SYSCALL, 0.01, -0.01, 0.02, false),
            cause(Cause::UNEXPLAINED, 0.20, 0.13, 0.28, false),
        ],
        ruled_out: Vec::new(),
        account_ns: None,
        without_named: None,
        slowest_requests: Vec::new(),
        conditions: conditions(),
        probes,
        loss: LossSummary::default(),
        records: BTreeMap::new(),
        floors: BTreeMap::new(),
        observer: SelfSummary {
            cpu_seconds: 0.41,
            max_rss_bytes: 24 << 20,
            rss_bytes: 20 << 20,
            rss_bound_bytes: 1 << 30,
            bpf_run_time_ns: 210_000_000,
            bpf_run_count: 2_400_000,
            bpf_map_bytes: 14 << 20,
            drain_wakeups: 3_000,
            added_cpu_share: Some(AddedShare {
                share: 0.0042,
                ci95: [0.0038, 0.0046],
                windows: 15,
            }),
        },
    }
}

/// The other outcomes.
pub(crate) fn with_outcome(outcome: Outcome, reasons: &[&str]) -> Summary {
    let mut summary = attributed();
    summary.verdict = Verdict {
        outcome,
        top_cause: None,
        reasons: reasons
            .iter()
            .map(|text| Reason::new("records_lost", *text, serde_json::json!({})))
            .collect(),
    };
    for row in &mut summary.causes {
        row.named = false;
        if row.cause.is_rest() {
            row.share = 1.0;
        }
    }
    summary
}

/// A run in which most requests failed.
pub(crate) fn failing() -> Summary {
    let mut summary = with_outcome(Outcome::Inconclusive, &[]);
    summary.causes.clear();
    summary.samples.errors = 2_700;
    let text = "2,700 of 3,000 requests failed (90 %): 2,700 refused. Fix that before looking at \
                latency.";
    summary.verdict.reasons = vec![Reason::new("requests_failed", text, serde_json::json!({}))];
    summary
}

/// A run without a generator.
pub(crate) fn without_samples() -> Summary {
    Summary {
        samples: SamplesSummary::default(),
        requests: RequestsSummary::default(),
        causes: Vec::new(),
        ..with_outcome(Outcome::NoSlowSamples, &["there are no samples"])
    }
}
