//! The conditions of these runs.

use super::{HOSTILE, MS, START};
use crate::model::*;

pub(super) fn conditions() -> Conditions {
    Conditions {
        cpu_limits: vec![CpuLimitSummary {
            cgroup: format!("/demo/{HOSTILE}"),
            version: 2,
            limit: CpuLimit { quota_us: 150_000, period_us: 100_000, burst_us: Some(0) },
            periods: 300,
            throttled_periods: 12,
            throttled_ns: 240 * MS,
            usage_ns: Some(9_000 * MS),
            observed_ns: 30_000 * MS,
            changed: false,
        }],
        cpu_limits_beyond: 0,
        networks: networks(),
        connections: connections(),
        networks_beyond: 0,
        descriptors: vec![DescriptorSummary {
            tgid: 100,
            name: HOSTILE.into(),
            limit: Some(1_024),
            first: 919,
            last: 1_012,
            highest: 1_012,
            limit_reached: false,
            ended: false,
            observed_ns: 30_000 * MS,
            growth: Some(DescriptorGrowth {
                per_s: 3.1,
                ci95_per_s: [2.9, 3.3],
                highest_at_end: true,
            }),
            sample: Some(DescriptorSample { looked_at: 128, sockets: 124 }),
        }],
        descriptors_beyond: 0,
        host_files: Some(HostFilesSummary {
            limit: 2_466_177,
            first: 2_016,
            last: 2_109,
            highest: 2_110,
        }),
        memory_limits: vec![MemoryLimitSummary {
            cgroup: format!("/demo/{HOSTILE}"),
            version: 2,
            max_bytes: Some(256 << 20),
            high_bytes: None,
            usage_bytes: Some(255 << 20),
            highest_bytes: Some(256 << 20),
            limit_hits: Some(1_234),
            high_hits: Some(0),
            oom_kills: Some(1),
            observed_ns: 30_000 * MS,
            changed: false,
        }],
        memory_limits_beyond: 0,
        host_oom_kills: Some(1),
        pressure: vec![
            pressure(Some(&format!("/demo/{HOSTILE}")), "memory", 3_600_000),
            pressure(None, "memory", 4_200_000),
        ],
        disks: disks(),
        disks_beyond: 0,
        disk_bytes: Some(DISK_BYTES),
        cpu_times: vec![CpuTimeSummary {
            cpu: 1,
            total_ns: 30_000 * MS,
            busy_ns: 20_000 * MS,
            stolen_ns: 3_600 * MS,
            lowest_khz: Some(1_200_000),
            highest_khz: Some(3_400_000),
            max_khz: Some(3_600_000),
        }],
        host_cpu_time: Some(HostCpuTimeSummary { total_ns: 60_000 * MS, stolen_ns: 3_700 * MS }),
        counters: Some(counters()),
        ran_instead: Some(ran_instead()),
    }
}

pub(crate) fn counters() -> CountersSummary {
    let counter = |name: &str, count| CounterSummary {
        name: name.into(),
        count,
        enabled_ns: 9_000 * MS,
        running_ns: 9_000 * MS,
    };
    CountersSummary {
        observed_ns: 30_000 * MS,
        by: vec![counter("context_switches", 61_234), counter("cpu_migrations", 812)],
        unsupported: vec![CounterGap { name: "cycles".into(), why: WhyNot::Unsupported }],
        threads: 9,
        threads_not_counted: [(WhyNot::NoDescriptors, 2)].into(),
        threads_unsure: 1,
        processes_late: 3,
    }
}

/// What the target read and wrote.
pub(crate) const DISK_BYTES: DiskBytesSummary =
    DiskBytesSummary { read: 4 << 20, written: 12 << 20 };

/// A disk that is busy, mostly with writes.
pub(crate) fn disks() -> Vec<DiskSummary> {
    let of = |count, bytes, time_ms| DiskRequestsSummary { count, bytes, time_ms };
    vec![DiskSummary {
        disk: "vda".into(),
        reads: of(1_200, 1_200 * 4_096, 1_800),
        writes: of(9_600, 600 << 20, 86_400),
        flushes: of(480, 0, 5_760),
        busy_ms: 24_600,
        queued_ms: 93_000,
        busiest_share: 0.98,
        observed_ns: 30_000 * MS,
    }]
}

fn pressure(cgroup: Option<&str>, resource: &str, some_us: u64) -> PressureSummary {
    PressureSummary {
        cgroup: cgroup.map(str::to_owned),
        resource: resource.into(),
        some_us,
        full_us: Some(some_us / 2),
        observed_ns: 30_000 * MS,
        part_ns: 1_000 * MS,
        // Nearly all of it in the ten seconds from the fifth on.
        some_by_part_us: (0..30)
            .map(|second| if (5..15).contains(&second) { some_us / 10 } else { 0 })
            .collect(),
    }
}

/// An accept queue that overflowed.
pub(crate) fn networks() -> Vec<NetworkSummary> {
    let counters = [
        ("TcpExtListenOverflows", 132),
        ("TcpExtListenDrops", 132),
        ("TcpExtTCPSynRetrans", 140),
        ("TcpExtTCPTimeouts", 96),
        ("TcpOutSegs", 90_000),
        ("TcpRetransSegs", 340),
    ];
    vec![NetworkSummary {
        network: Owner::HOST.into(),
        observed_ns: 30_000 * MS,
        counters: counters.map(|(name, rise)| (name.to_owned(), rise)).into(),
        listeners: vec![ListenerSummary {
            port: 8_080,
            sockets: 1,
            queue: 7,
            queue_max: 129,
            limit: Some(128),
            dropped: Some(140),
        }],
        listeners_beyond: 0,
        dropped_by_others: Some(0),
        somaxconn: Some(4_096),
    }]
}

/// Connections that the service does not close, and others that it does not use again.
pub(crate) fn connections() -> Vec<ConnectionsSummary> {
    let states = |states: [(&str, u64); 2]| states.map(|(state, count)| (state.to_owned(), count));
    vec![ConnectionsSummary {
        network: Owner::HOST.into(),
        ports: vec![PortConnections {
            port: 8_080,
            states: states([("established", 100), ("close_wait", 412)]).into(),
            close_wait_first: 3,
            close_wait_held: 409,
        }],
        peers: vec![PeerConnections {
            peer: "10.0.0.9:5432".into(),
            from: "10.0.0.5".into(),
            states: states([("established", 12), ("time_wait", 15_300)]).into(),
            most: 16_100,
            time_wait_most: 16_000,
            close_wait_first: 0,
            close_wait_held: 0,
            to_target: false,
        }],
        beyond: 0,
        ephemeral_ports: Some(28_232),
        unread: 0,
    }]
}

/// A side-car that ran most of all, from 4 s to 9 s.
pub(crate) fn ran_instead() -> RanInsteadSummary {
    let mut by_part_ns = vec![0; 21];
    by_part_ns[4..9].fill(200 * MS);
    by_part_ns[20] = 210 * MS;
    let row = |name: &str, kind, by_part_ns: Vec<u64>| RanInsteadRow {
        name: name.into(),
        cgroup: Some(format!("/demo/{HOSTILE}")),
        kind,
        time_ns: by_part_ns.iter().sum(),
        waits: 120,
        by_part_ns,
    };
    RanInsteadSummary {
        began_ns: START,
        observed_ns: 30_000 * MS,
        wait_ns: 1_830 * MS,
        ran_ns: 1_710 * MS,
        not_known_ns: 120 * MS,
        part_ns: 1_000 * MS,
        by: vec![
            row(HOSTILE, RanKind::Other, by_part_ns),
            row("worker-*", RanKind::Own, vec![10 * MS; 30]),
            row("[ksoftirqd/*]", RanKind::KernelThread, vec![10 * MS; 20]),
        ],
        ..RanInsteadSummary::default()
    }
}
