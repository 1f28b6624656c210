//! What the counters of the target's threads say, in words.

use crate::model::{CountersSummary, Summary, WhyNot};
use crate::output::text::{count, percent};

/// Migrations in a second of CPU time from which on threads are said to move often: each begins with cold caches, which
/// costs tens of microseconds, and 200 of them are then about a hundredth of the time.
const MIGRATIONS: f64 = 200.0;
/// Context switches in a second of CPU time from which on threads are said to run for a short time only: a switch takes
/// a few microseconds with what it does to the caches, and 20,000 are then about a tenth of the time.
const SWITCHES: f64 = 20_000.0;
/// Of 1,000 instructions, TLB misses from which on larger pages help: a walk of the page tables takes tens of cycles,
/// so that five are more than a tenth of the time.
const TLB_MISSES: f64 = 5.0;
/// Of 1,000 instructions, cache misses from which on the processor mostly waits for memory, if it executes few
/// instructions in each cycle: a miss takes some hundreds of cycles.
const CACHE_MISSES: f64 = 5.0;
const SLOW_IPC: f64 = 0.7;
/// Faults that read from the disk, a second, from which on they are told as unusual.
const MAJOR_FAULTS: f64 = 1.0;
/// A counter that counted less than this part of the time is told to be an estimate.
const WHOLE: f64 = 0.99;

/// A paragraph about what the kernel counted, one about what the processor did, and one about what was not counted;
/// empty where nobody asked for counters.
pub(super) fn paragraphs(summary: &Summary) -> Vec<String> {
    let Some(counters) = &summary.conditions.counters else { return Vec::new() };
    let requests = summary.samples.count;
    [of_kernel(counters, requests), of_processor(counters), not_counted(counters)]
        .into_iter()
        .flatten()
        .collect()
}

fn of_kernel(counters: &CountersSummary, requests: u64) -> Option<String> {
    let seconds = counters.observed_ns.max(1) as f64 / 1e9;
    let get = |name| counters.get(name).map(|counter| counter.count as f64);
    let (switches, migrations) = (get("context_switches")?, get("cpu_migrations")?);
    let mut text =
        format!("The target's threads were switched {} times a second", rate(switches / seconds));
    if requests > 0 {
        text += &format!(
            " ({} for each request of the load generator)",
            rate(switches / requests as f64)
        );
    }
    text += &format!(
        ", and began to run on another CPU {} times a second.",
        rate(migrations / seconds)
    );
    if let (Some(minor), Some(major)) = (get("minor_faults"), get("major_faults")) {
        text += &format!(
            " They had {} minor page faults a second, and {} that read from a disk.",
            rate(minor / seconds),
            rate(major / seconds)
        );
        if major / seconds >= MAJOR_FAULTS {
            text +=
                " Their memory does not stay in RAM: give them more of it, or lock it (mlockall).";
        }
    }
    let cpu_seconds = counters.cpu_ns() as f64 / 1e9;
    if migrations > MIGRATIONS * cpu_seconds && cpu_seconds > 0.0 {
        text += &format!(
            " That is a move in each {} of CPU time, after which the caches are cold: use as many threads as CPUs, and \
             pin them (taskset, a cpuset, sched_setaffinity).",
            each(cpu_seconds / migrations)
        );
    }
    if switches > SWITCHES * cpu_seconds && cpu_seconds > 0.0 {
        text += &format!(
            " They ran for {} at a time, so that the switches themselves take a good part of the CPU time: do more in \
             one go (batches, fewer threads, fewer wake-ups).",
            each(cpu_seconds / switches)
        );
    }
    Some(text)
}

fn of_processor(counters: &CountersSummary) -> Option<String> {
    let get = |name| counters.get(name).map(|counter| counter.count as f64);
    let instructions = get("instructions").filter(|instructions| *instructions > 0.0)?;
    let ipc = get("cycles").filter(|cycles| *cycles > 0.0).map(|cycles| instructions / cycles);
    let mut text = match ipc {
        Some(ipc) => format!("The processor executed {ipc:.2} instructions in each cycle."),
        None => format!("The processor executed {} instructions.", count(instructions as u64)),
    };
    let per_1000 = |name| get(name).map(|count| count / instructions * 1_000.0);
    let told: Vec<String> = [
        ("cache_misses", "cache misses"),
        ("llc_load_misses", "loads from beyond the last cache"),
        ("branch_misses", "branches that were predicted wrongly"),
    ]
    .into_iter()
    .filter_map(|(name, words)| Some(format!("{} {words}", rate(per_1000(name)?))))
    .chain(walks(counters).map(|walks| {
        format!("{} walks of the page tables (TLB misses)", rate(walks / instructions * 1_000.0))
    }))
    .collect();
    if let Some((last, others)) = told.split_last() {
        let others = others.join(", ");
        let and = if others.is_empty() { "" } else { " and " };
        text += &format!(" Of 1,000 instructions there were {others}{and}{last}.");
    }
    if walks(counters).is_some_and(|walks| walks / instructions * 1_000.0 >= TLB_MISSES) {
        text += " The walks take a good part of the time: let the service use huge pages (transparent_hugepage, MAP_HUGETLB, \
                 -XX:+UseTransparentHugePages), or touch less memory.";
    }
    if ipc.is_some_and(|ipc| ipc < SLOW_IPC)
        && per_1000("cache_misses").is_some_and(|misses| misses >= CACHE_MISSES)
    {
        text += " The processor mostly waited for memory: keep what is used together close together, or look whether \
                 neighbours on the host use up the cache and its bandwidth.";
    }
    let least = counters
        .by
        .iter()
        .filter(|counter| counter.enabled_ns > 0)
        .map(|counter| counter.running_ns as f64 / counter.enabled_ns as f64)
        .min_by(f64::total_cmp)?;
    if least < WHOLE {
        text += &format!(
            " The processor cannot count all of this at once: each number is from {} of the time or more, and scaled.",
            percent(least)
        );
    }
    Some(text)
}

/// All TLB misses; `None` where the processor counts none.
fn walks(counters: &CountersSummary) -> Option<f64> {
    let names = ["dtlb_load_misses", "dtlb_store_misses", "itlb_misses"];
    let counted = names.iter().filter_map(|name| counters.get(name));
    counted.map(|counter| counter.count as f64).reduce(|sum, count| sum + count)
}

fn not_counted(counters: &CountersSummary) -> Option<String> {
    let mut sentences = Vec::new();
    for why in [WhyNot::Unsupported, WhyNot::Refused, WhyNot::NoDescriptors, WhyNot::Failed] {
        let gaps = counters.unsupported.iter().filter(|gap| gap.why == why);
        let names: Vec<&str> = gaps.map(|gap| gap.name.as_str()).collect();
        if !names.is_empty() {
            let names = names.join(", ").replace('_', " ");
            sentences.push(format!("Not counted, because {}: {names}.", reason(why)));
        }
        if let Some(threads) = counters.threads_not_counted.get(&why) {
            sentences.push(format!(
                "{} threads, and those that they started, were not counted, because {}.",
                count(*threads),
                reason(why)
            ));
        }
    }
    if counters.threads_unsure > 0 {
        sentences.push(format!(
            "Of {} threads that started while their process got its counters, it is not known whether they count.",
            count(counters.threads_unsure)
        ));
    }
    if counters.processes_late > 0 {
        sentences.push(format!(
            "{} processes that the target did not fork itself joined later, and count from then on.",
            count(counters.processes_late)
        ));
    }
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

const fn reason(why: WhyNot) -> &'static str {
    match why {
        WhyNot::Unsupported => {
            "this machine has no such counter (virtual machines often have none)"
        }
        WhyNot::Refused => "the kernel does not allow it (kernel.perf_event_paranoid, CAP_PERFMON)",
        WhyNot::NoDescriptors => {
            "observer may not have that many files open (ulimit -n, LimitNOFILE)"
        }
        WhyNot::Failed => "the kernel failed to open it",
    }
}

/// `1,234`, `12`, `3.4`, `0.03`, `0`
fn rate(value: f64) -> String {
    match value {
        _ if value >= 10.0 => count(value.round() as u64),
        _ if value >= 0.1 => format!("{value:.1}"),
        _ if value >= 0.005 => format!("{value:.2}"),
        _ if value > 0.0 => "nearly 0".to_owned(),
        _ => "0".to_owned(),
    }
}

/// A time in seconds.
fn each(seconds: f64) -> String {
    crate::output::text::duration(seconds * 1e9)
}

#[cfg(test)]
#[path = "counters_tests.rs"]
mod tests;
