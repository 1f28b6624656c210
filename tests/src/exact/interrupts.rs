//! `softirq` against /proc/softirqs, and `irq` against /proc/interrupts.

use std::collections::BTreeMap;
use std::time::Instant;

use observer::aggregate::Snapshot;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES};
use observer::probe::{ForcedTier, ProbeOptions};
use observer_ebpf::wire::{IRQ_KINDS, LossKind, SOFTIRQ_VECTORS, Series};
use serde_json::Value;

use crate::process::Placement;
use crate::results::{Held, Relation, not_applicable};
use crate::trial::{self, Trial, number, scaled_text};

/// What the kernel counts, and the series that count the same here.
struct Counter {
    /// Its name in the results.
    metric: &'static str,
    series: Vec<Series>,
    /// The kernel may count less, because an interrupt can have several handlers.
    is_shared: bool,
    /// The workload makes many of them, so that the comparison belongs into the results.
    is_shown: bool,
    count: u64,
}

/// A probe, and the file in which the kernel counts the same.
struct Interrupts {
    probe: &'static str,
    file: &'static str,
    counters: fn(&str) -> Vec<Counter>,
    work: [&'static str; 2],
    least: fn(&Value) -> (&'static str, u64),
    /// Which part of the events the kernel may leave out.
    left_out: f64,
    not_compared: &'static str,
}

/// The sum of a line's numbers, which are by CPU; what stands behind them is text.
fn sum(numbers: &str) -> u64 {
    numbers.split_whitespace().map_while(|count| count.parse::<u64>().ok()).sum()
}

fn of_softirqs(text: &str) -> Vec<Counter> {
    let mut counts: BTreeMap<Series, (&'static str, u64)> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let (name, numbers) = line.split_once(':').expect("NAME: numbers");
        let name = name.trim().to_lowercase();
        let vector = SOFTIRQ_VECTORS.iter().find(|(vector, _)| *vector == name);
        let (name, series) = vector.unwrap_or_else(|| panic!("there is a vector {name}"));
        counts.entry(*series).or_insert((name, 0)).1 += sum(numbers);
    }
    let counter = |(series, (metric, count))| Counter {
        metric,
        series: vec![series],
        is_shared: false,
        is_shown: series == Series::SoftirqNetRx,
        count,
    };
    counts.into_iter().map(counter).collect()
}

fn of_interrupts(text: &str) -> Vec<Counter> {
    let lines = || text.lines().skip(1).filter_map(|line| line.trim().split_once(':'));
    let named = |name: &str| {
        lines().filter(|(line, _)| *line == name).map(|(_, numbers)| sum(numbers)).sum()
    };
    let is_device = |line: &str| line.bytes().all(|byte| byte.is_ascii_digit());
    let devices = lines().filter(|(line, _)| is_device(line)).map(|(_, numbers)| sum(numbers));
    let series = |name: &&str| {
        let kind = IRQ_KINDS.iter().find(|(kind, _)| kind == name);
        kind.unwrap_or_else(|| panic!("there is a kind {name}")).1
    };
    let counter = |metric, kinds: &[&str], count| Counter {
        metric,
        series: kinds.iter().map(series).collect(),
        is_shared: metric == "device",
        is_shown: !matches!(metric, "device" | "work"),
        count,
    };
    vec![
        counter("device", &["device"], devices.sum()),
        counter("timer", &["timer"], named("LOC")),
        counter("call", &["call", "tlb_shootdown"], named("CAL")),
        counter("reschedule", &["reschedule"], named("RES")),
        counter("work", &["work"], named("IWI")),
    ]
}

impl Interrupts {
    fn counted(&self) -> Vec<Counter> {
        (self.counters)(&std::fs::read_to_string(self.file).expect("every kernel has it"))
    }

    fn attach(&self, tier: Option<&str>) -> Kernel {
        let tiers = tier.map(|tier| tier.parse::<ForcedTier>().expect("a tier"));
        let probes = ProbeOptions {
            selection: self.probe.parse().expect("a probe"),
            tiers: tiers.into_iter().collect(),
            ..ProbeOptions::default()
        };
        let (has_target, ring_bytes) = (true, RING_BYTES);
        let options = LoadOptions { has_target, ring_bytes, probes, by_cgroup: true };
        Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A workload that makes interrupts, on a host that has others as well. The kernel's counters are
    /// read before and after each reading of observer's, so that the bounds are exact: the kernel counts
    /// an interrupt at its begin, observer at its end, and each CPU handles one at a time.
    fn compare(&self, trial: &Trial) {
        let [work, option] = self.work;
        let mut work = trial::start(&[work, option, &scaled_text(20_000)], Placement::default());
        let attach = |tier: &Option<String>| self.attach(tier.as_deref());
        let mut kernels: Vec<Kernel> = trial.tiers.iter().map(attach).collect();
        for kernel in &kernels {
            kernel.targets().set(work.id(), true);
        }
        let mut snapshots = || -> Vec<Snapshot> {
            kernels.iter_mut().map(|kernel| kernel.snapshot(Some("target"))).collect()
        };
        let started = Instant::now();
        let outer_first = self.counted();
        let first = snapshots();
        let inner_first = self.counted();
        let told = work.go().expect("it works");
        let inner_last = self.counted();
        let last = snapshots();
        let outer_last = self.counted();
        let elapsed_ns = started.elapsed().as_nanos() as u64;
        work.end().expect("the workload ends");

        let under_way = observer::host::system::online_cpus().len() as u64;
        let (least_of, least) = (self.least)(&told);
        for (first, last) in first.iter().zip(&last) {
            let delta = last.delta(first);
            let tier = delta.coverage[self.probe].tier.clone().expect("it is attached");
            let held = Held::of_tier(trial.test, self.probe, &tier);
            let missed = delta.other_lost(LossKind::ProgramMissed);
            let mut sum_ns = 0;
            for (place, last) in outer_last.iter().enumerate() {
                let metric = last.metric;
                let outer = last.count - outer_first[place].count;
                let inner = inner_last[place].count - inner_first[place].count;
                let of = |series: &Series| delta.host_distribution(*series);
                let found: u64 = last.series.iter().map(|series| of(series).count()).sum();
                sum_ns += last.series.iter().map(|series| of(series).sum_ns).sum::<u64>();
                println!("{metric} ({tier}): {inner} to {outer} in the kernel, {found} here");
                assert!(
                    last.is_shared || found <= outer + under_way,
                    "{metric}: {found} of {outer}"
                );
                let slack = under_way + missed + (inner as f64 * self.left_out) as u64;
                assert!(found + slack >= inner, "{metric}: {found} of {inner}");
                assert!(metric != least_of || inner >= least, "{inner} of {least}");
                // Of some, a quiet host has none.
                if !last.is_shown || inner == 0 {
                    continue;
                }
                let compare = |relation, when, expected, allowed| {
                    let against = format!("{}, read {when}", self.file);
                    held.compare(relation, metric, &against, (found, expected), allowed);
                };
                compare(Relation::AtMost, "before and after", outer, (0.0, under_way));
                let allowed = (self.left_out, under_way + missed);
                compare(Relation::AtLeast, "in between", inner, allowed);
                if metric == least_of {
                    let of_target = |series: &Series| delta.target_distribution(*series).count();
                    let of_target: u64 = last.series.iter().map(of_target).sum();
                    assert!(of_target > 0 && of_target <= found, "{of_target} of {found}");
                }
            }
            assert!(sum_ns > 0 && sum_ns <= elapsed_ns * under_way, "{sum_ns} in {elapsed_ns} ns");
        }
        not_applicable(trial.test, self.probe, "sum_ns", self.not_compared);
    }
}

/// Datagrams over loopback, whose packets are soft interrupts.
///
/// # Panics
/// When a count is not between its bounds.
pub fn softirqs(trial: &Trial) {
    let softirqs = Interrupts {
        probe: "softirq",
        file: "/proc/softirqs",
        counters: of_softirqs,
        work: ["datagrams", "--count"],
        // A run handles 64 packets at most.
        least: |told| ("net_rx", number(told, "datagrams") / 64),
        left_out: 0.0,
        not_compared: "/proc/stat has the time of soft interrupts in whole ticks, unless the kernel is \
                       built with CONFIG_IRQ_TIME_ACCOUNTING",
    };
    softirqs.compare(trial);
}

/// A thread that takes rights from memory which another one uses on another CPU: each time, that one's TLB
/// has to be flushed.
///
/// # Panics
/// When a count is not between its bounds.
pub fn irqs(trial: &Trial) {
    let irqs = Interrupts {
        probe: "irq",
        file: "/proc/interrupts",
        counters: of_interrupts,
        work: ["shootdowns", "--count"],
        // The other thread may lose its CPU just then, which flushes its TLB when it goes back.
        least: |told| ("call", number(told, "shootdowns") / 2),
        // On some virtual machines, one or two in a thousand run no program at all, at their begin and at their
        // end: those of the timer, and reschedules.
        left_out: 0.01,
        not_compared: "/proc/stat has the time of interrupts in whole ticks, unless the kernel is built \
                       with CONFIG_IRQ_TIME_ACCOUNTING",
    };
    irqs.compare(trial);
}
