//! `softirq` against /proc/softirqs.

use std::collections::BTreeMap;
use std::time::Instant;

use observer::aggregate::Snapshot;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES};
use observer::probe::{ForcedTier, ProbeOptions};
use observer_ebpf::wire::{LossKind, SOFTIRQ_VECTORS, Series};

use crate::process::Placement;
use crate::results::{Held, Relation, not_applicable};
use crate::trial::{self, Trial, number, scaled_text};

/// Soft interrupts of all CPUs so far, by series.
fn counted() -> BTreeMap<Series, u64> {
    let text = std::fs::read_to_string("/proc/softirqs").expect("every kernel has it");
    let mut counts = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (name, numbers) = line.split_once(':').expect("NAME: numbers");
        let name = name.trim().to_lowercase();
        let vector = SOFTIRQ_VECTORS.iter().find(|(vector, _)| *vector == name);
        let (_, series) = vector.unwrap_or_else(|| panic!("there is a vector {name}"));
        let numbers =
            numbers.split_whitespace().map(|count| count.parse::<u64>().expect("a count"));
        *counts.entry(*series).or_default() += numbers.sum::<u64>();
    }
    counts
}

fn attach(tier: Option<&str>) -> Kernel {
    let tiers = tier.map(|tier| tier.parse::<ForcedTier>().expect("a tier"));
    let probes = ProbeOptions {
        selection: "softirq".parse().expect("a probe"),
        tiers: tiers.into_iter().collect(),
        ..ProbeOptions::default()
    };
    let options = LoadOptions { has_target: true, ring_bytes: RING_BYTES, probes, by_cgroup: true };
    Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// Datagrams over loopback, whose packets are soft interrupts, on a host that has others as well. The
/// kernel's counters are read before and after each reading of observer's, so that the bounds are
/// exact: the kernel counts a soft interrupt at its begin, observer at its end, and each CPU handles
/// one at a time.
///
/// # Panics
/// When a count is not between its bounds.
pub fn softirqs(trial: &Trial) {
    let mut work =
        trial::start(&["datagrams", "--count", &scaled_text(20_000)], Placement::default());
    let mut kernels: Vec<Kernel> = trial.tiers.iter().map(|tier| attach(tier.as_deref())).collect();
    for kernel in &kernels {
        kernel.targets().set(work.id(), true);
    }
    let mut snapshots = || -> Vec<Snapshot> {
        kernels.iter_mut().map(|kernel| kernel.snapshot(Some("target"))).collect()
    };
    let started = Instant::now();
    let outer_first = counted();
    let first = snapshots();
    let inner_first = counted();
    let told = work.go().expect("it works");
    let inner_last = counted();
    let last = snapshots();
    let outer_last = counted();
    let elapsed_ns = started.elapsed().as_nanos() as u64;
    work.end().expect("the workload ends");

    let under_way = observer::host::system::online_cpus().len() as u64;
    let all_ns = elapsed_ns * under_way;
    for (first, last) in first.iter().zip(&last) {
        let delta = last.delta(first);
        let tier = delta.coverage["softirq"].tier.clone().expect("it is attached");
        let held = Held::of_tier(trial.test, "softirq", &tier);
        let missed = delta.other_lost(LossKind::ProgramMissed);
        let mut sum_ns = 0;
        for (series, outer) in &outer_last {
            let outer = outer - outer_first[series];
            let inner = inner_last[series] - inner_first[series];
            let of_series = delta.host_distribution(*series);
            let found = of_series.count();
            sum_ns += of_series.sum_ns;
            println!("{series:?} ({tier}): {inner} to {outer} in the kernel, {found} here");
            assert!(found <= outer + under_way, "{series:?}: {found} of {outer}");
            assert!(found + under_way + missed >= inner, "{series:?}: {found} of {inner}");
            if *series != Series::SoftirqNetRx {
                continue;
            }
            assert!(inner >= number(&told, "datagrams") / 64, "a run handles 64 packets at most");
            let compare = |relation, against, expected, slack| {
                held.compare(relation, "net_rx", against, (found, expected), (0.0, slack));
            };
            compare(Relation::AtMost, "/proc/softirqs, read before and after", outer, under_way);
            let slack = under_way + missed;
            compare(Relation::AtLeast, "/proc/softirqs, read in between", inner, slack);
            let of_target = delta.target_distribution(*series).count();
            assert!(of_target > 0 && of_target <= found, "{of_target} of {found}");
        }
        assert!(sum_ns > 0 && sum_ns <= all_ns, "{sum_ns} ns of {all_ns} ns");
    }
    let reason = "/proc/stat has the time of soft interrupts in whole ticks, unless the kernel is \
                  built with CONFIG_IRQ_TIME_ACCOUNTING";
    not_applicable(trial.test, "softirq", "sum_ns", reason);
}
