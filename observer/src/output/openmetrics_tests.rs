use std::io::Write as _;
use std::process::{Command, Stdio};

use observer_ebpf::wire::{
    Counter, FdSyscall, KIND_SLOTS, LossKind, RecordKind, Series, TARGET_FD_FAILURES, fd_failure,
};

use super::*;
use crate::aggregate::{CgroupCounts, CgroupDistributions, Distribution, TraceState};
use crate::model::{
    AddedShare, Conditions, Coverage, CpuLimit, CpuLimitSummary, CpuTimeSummary, DescriptorSummary,
    MemoryLimitSummary, NetworkSummary, PressureSummary, ProbeState, SelfSummary,
};
use crate::output::example;

/// A snapshot in which every family has a sample, one of them with a hostile name.
pub(crate) fn snapshot() -> Snapshot {
    let mut distribution = Distribution::default();
    [500, 5_000, 5_000, 7_000_000, 9_000_000_000]
        .into_iter()
        .for_each(|ns| distribution.record(ns));
    let octaves = Octaves::from(&distribution);
    let busy = CgroupDistributions {
        name: "/busy".into(),
        series: Series::ALL.into_iter().map(|series| (series, octaves.clone())).collect(),
    };
    let mut snapshot = Snapshot {
        rest: Box::new(std::array::from_fn(|_| distribution.clone())),
        target: Box::new(std::array::from_fn(|_| distribution.clone())),
        target_name: Some("/a\"b\\c\nd".into()),
        cgroups: vec![busy, CgroupDistributions { name: "idle".into(), ..Default::default() }],
        cgroup_counts: CgroupCounts { with_row: 2, without_row: 5, removed: 9 },
        target_live_sockets: Some(3),
        conditions: Conditions {
            cpu_limits: vec![CpuLimitSummary {
                cgroup: "/a".into(),
                limit: CpuLimit { quota_us: 20_000, period_us: 100_000, burst_us: None },
                periods: 50,
                throttled_periods: 49,
                throttled_ns: 3_500_000_000,
                ..CpuLimitSummary::default()
            }],
            networks: networks(),
            ran_instead: Some(example::ran_instead()),
            connections: example::connections(),
            descriptors: vec![
                DescriptorSummary {
                    tgid: 7,
                    last: 3,
                    limit: Some(64),
                    ..DescriptorSummary::default()
                },
                DescriptorSummary { tgid: 8, last: 4, ..DescriptorSummary::default() },
                DescriptorSummary { tgid: 9, ended: true, ..DescriptorSummary::default() },
            ],
            memory_limits: vec![MemoryLimitSummary {
                cgroup: "/a".into(),
                max_bytes: Some(4_096),
                limit_hits: Some(6),
                oom_kills: Some(1),
                ..MemoryLimitSummary::default()
            }],
            pressure: vec![
                PressureSummary {
                    cgroup: Some("/a".into()),
                    resource: "io".into(),
                    some_us: 1_500_000,
                    full_us: Some(500_000),
                    ..PressureSummary::default()
                },
                PressureSummary {
                    resource: "cpu".into(),
                    some_us: 2_000_000,
                    ..PressureSummary::default()
                },
            ],
            disks: example::disks(),
            disk_bytes: Some(example::DISK_BYTES),
            cpu_times: vec![CpuTimeSummary {
                cpu: 3,
                stolen_ns: 250_000_000,
                ..CpuTimeSummary::default()
            }],
            counters: Some(crate::output::example::counters()),
            ..Conditions::default()
        },
        floors_ns: [5_000; KIND_SLOTS],
        trace: Some(TraceState { ended: true, missing: 4 }),
        self_usage: SelfSummary {
            cpu_seconds: 0.25,
            max_rss_bytes: 1 << 24,
            added_cpu_share: Some(AddedShare { share: 0.004, ci95: [0.003, 0.005], windows: 9 }),
            ..Default::default()
        },
        ..Snapshot::default()
    };
    snapshot.counters[Counter::KswapdWakeups as usize] = 7;
    snapshot.counters[TARGET_FD_FAILURES + fd_failure(FdSyscall::Accept, 0)] = 2;
    snapshot.emitted[RecordKind::Reclaim as usize] = 11;
    snapshot.lost[RecordKind::Fault as usize] = 1;
    snapshot.lost[KIND_SLOTS + LossKind::EndWithoutBegin as usize] = 7;
    snapshot.lost_target[KIND_SLOTS + LossKind::EndWithoutBegin as usize] = 2;
    for (probe, state) in [("runqueue", ProbeState::Attached), ("fault", ProbeState::Failed)] {
        let tier = (state == ProbeState::Attached).then(|| "tp_btf".to_owned());
        snapshot
            .coverage
            .insert(probe.into(), Coverage { state, tier, reason: None, detached: None });
    }
    snapshot
}

/// One namespace in which a queue overflowed, and another one, in which other things happened.
fn networks() -> Vec<NetworkSummary> {
    let mut networks = example::networks();
    let counters = [("TcpExtTCPToZeroWindowAdv", 4), ("TcpEstabResets", 5)];
    networks.push(NetworkSummary {
        network: "net:[1]".into(),
        counters: counters.map(|(name, rise)| (name.to_owned(), rise)).into(),
        ..NetworkSummary::default()
    });
    networks
}

fn value(text: &str, sample: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{sample} is missing in\n{text}")).to_owned()
}

#[test]
fn every_number_is_under_its_name() {
    let text = openmetrics(snapshot()).unwrap();
    for (sample, expected) in [
        ("observer_kswapd_wakeups_total", "7"),
        ("observer_records_emitted_total{kind=\"reclaim\"}", "11"),
        ("observer_records_lost_total{kind=\"fault\"}", "1"),
        ("observer_losses_total{kind=\"end_without_begin\",scope=\"host\"}", "5"),
        ("observer_losses_total{kind=\"end_without_begin\",scope=\"target\"}", "2"),
        ("observer_target_fd_failures_total{call=\"accept\",errno=\"EMFILE\"}", "2"),
        ("observer_fd_failures_total{call=\"accept\",errno=\"EMFILE\"}", "0"),
        ("observer_target_live_sockets", "3"),
        ("observer_target_cpu_limit_cpus{cgroup=\"/a\"}", "0.2"),
        ("observer_target_cpu_limit_periods_total{cgroup=\"/a\"}", "50"),
        ("observer_target_cpu_limit_throttled_periods_total{cgroup=\"/a\"}", "49"),
        ("observer_target_cpu_limit_throttled_seconds_total{cgroup=\"/a\"}", "3.5"),
        ("observer_target_network_listen_overflows_total{network=\"host\"}", "132"),
        ("observer_target_network_segments_sent_total{network=\"host\"}", "90000"),
        ("observer_target_network_zero_windows_total{network=\"net:[1]\"}", "4"),
        ("observer_target_listen_dropped_packets_total{network=\"host\",port=\"8080\"}", "140"),
        ("observer_target_listen_queue_connections{network=\"host\",port=\"8080\"}", "7"),
        ("observer_target_listen_queue_limit_connections{network=\"host\",port=\"8080\"}", "128"),
        ("observer_target_connections{network=\"host\",port=\"8080\",state=\"close_wait\"}", "412"),
        ("observer_target_descriptors{pid=\"7\",comm=\"\"}", "3"),
        ("observer_target_descriptors{pid=\"8\",comm=\"\"}", "4"),
        ("observer_target_descriptors_limit{pid=\"7\",comm=\"\"}", "64"),
        ("observer_target_memory_limit_bytes{cgroup=\"/a\"}", "4096"),
        ("observer_target_memory_limit_hits_total{cgroup=\"/a\"}", "6"),
        ("observer_target_oom_kills_total{cgroup=\"/a\"}", "1"),
        (
            "observer_target_pressure_seconds_total{cgroup=\"/a\",resource=\"io\",stalled=\"some\"}",
            "1.5",
        ),
        (
            "observer_target_pressure_seconds_total{cgroup=\"/a\",resource=\"io\",stalled=\"full\"}",
            "0.5",
        ),
        ("observer_host_pressure_seconds_total{resource=\"cpu\",stalled=\"some\"}", "2.0"),
        ("observer_target_cpu_stolen_seconds_total{cpu=\"3\"}", "0.25"),
        ("observer_target_perf_events_total{counter=\"context_switches\"}", "61234"),
        ("observer_target_counted_cpu_seconds_total", "9.0"),
        (
            "observer_target_ran_instead_seconds_total{process=\"[ksoftirqd/*]\",\
             cgroup=\"/demo/</b><i>\u{1b}[31m\",kind=\"kernel_thread\"}",
            "0.2",
        ),
        ("observer_target_ran_instead_known_seconds_total{who=\"process\"}", "1.71"),
        ("observer_cgroups{histograms=\"own\"}", "2"),
        ("observer_cgroups{histograms=\"other\"}", "5"),
        ("observer_cgroups_removed_total", "9"),
        ("observer_host_compaction_duration_seconds_count", "10"),
        ("observer_compaction_duration_seconds_count{cgroup=\"/busy\",target=\"false\"}", "5"),
        ("observer_cpu_seconds_total", "0.25"),
        ("observer_resident_memory_max_bytes", "16777216"),
        ("observer_probe_attached{probe=\"runqueue\",tier=\"tp_btf\",state=\"attached\"}", "1"),
        ("observer_probe_attached{probe=\"fault\",tier=\"none\",state=\"failed\"}", "0"),
    ] {
        assert_eq!(value(&text, sample), expected, "{sample}");
    }
    assert!(text.ends_with("# EOF\n"));
    let uncounted = "zero_windows_total{network=\"host\"}";
    assert!(!text.contains(uncounted), "what the kernel does not count has no sample");
    assert!(!text.contains("idle"), "a cgroup without counts has no series");
}

#[test]
fn histograms_keep_counts_on_the_right_side_of_their_bounds() {
    let text = openmetrics(snapshot()).unwrap();
    let cgroup = r#"cgroup="/a\"b\\c\nd",target="true",reason="wakeup"}"#;
    let bucket = |le: &str| {
        value(&text, &format!("observer_runqueue_latency_seconds_bucket{{le=\"{le}\",{cgroup}"))
    };
    assert_eq!(bucket("9.5367431640625e-7"), "1");
    assert_eq!(bucket("0.000003814697265625"), "1");
    assert_eq!(bucket("0.00000762939453125"), "3");
    assert_eq!(bucket("0.0078125"), "4");
    assert_eq!(bucket("4.0"), "4");
    assert_eq!(bucket("+Inf"), "5");
    assert_eq!(value(&text, &format!("observer_runqueue_latency_seconds_count{{{cgroup}")), "5");
    let of_cgroup = r#"cgroup="/busy",target="false",reason="wakeup"}"#;
    for line in text.lines().filter(|line| line.contains(cgroup)) {
        let same = line.replace(cgroup, of_cgroup);
        assert!(text.lines().any(|line| line == same), "by octaves as at full resolution: {same}");
    }
    let sum = value(&text, &format!("observer_runqueue_latency_seconds_sum{{{cgroup}"));
    assert!((sum.parse::<f64>().unwrap() - 9.007_010_5).abs() < 1e-9, "{sum}");
}

#[test]
fn every_sample_belongs_to_a_documented_family_with_its_labels() {
    let text = openmetrics(snapshot()).unwrap();
    for metric in METRICS.iter() {
        assert!(!metric.help.contains(['\n', '\\']) && !metric.help.ends_with('.'));
        let family = metric.family();
        let mut samples = 0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = &line[..line.find(['{', ' ']).unwrap()];
            let Some(rest) = name.strip_prefix(&family) else { continue };
            let own = match metric.kind {
                Kind::Histogram => ["_bucket", "_sum", "_count"].contains(&rest),
                kind => rest == kind.suffix(),
            };
            if own {
                samples += 1;
                let labels =
                    metric.labels.iter().all(|label| line.contains(&format!("{label}=\"")));
                assert!(labels, "{line}");
            }
        }
        assert!(samples > 0, "{family} has no sample");
    }
}

#[test]
fn prometheus_text_has_the_older_conventions() {
    let text = to_prometheus(&openmetrics(snapshot()).unwrap());
    assert!(text.contains("# TYPE observer_kswapd_wakeups_total counter\n"));
    assert!(text.contains("# HELP observer_kswapd_wakeups_total "));
    assert!(text.contains("# TYPE observer_build_info gauge\n"));
    assert!(text.contains("# TYPE observer_runqueue_latency_seconds histogram\n"));
    assert!(!text.contains("# UNIT") && !text.contains("# EOF"));
    let families = text.lines().filter(|line| line.starts_with("# TYPE")).count();
    assert_eq!(families, METRICS.len());
}

/// promtool comes with Prometheus; where a full test is asked for, its absence is a failure.
#[test]
fn promtool_is_content() {
    for text in [
        to_prometheus(&openmetrics(snapshot()).unwrap()),
        to_prometheus(&openmetrics(Snapshot::default()).unwrap()),
    ] {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                let full = ["CI", "OBSERVER_TEST_FULL"]
                    .iter()
                    .any(|name| std::env::var_os(name).is_some());
                assert!(!full, "promtool cannot be run: {error}");
                eprintln!("not run: promtool is not installed");
                return;
            }
        };
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.trim().is_empty(), "{said}");
    }
}

#[test]
fn the_documentation_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    if std::env::var_os("OBSERVER_UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, metrics_markdown()).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(committed, metrics_markdown(), "run with OBSERVER_UPDATE_DOCS=1 to rewrite it");
}
