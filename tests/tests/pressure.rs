//! Memory that is short for the whole system: reclaim by the threads that allocate, pages that come
//! back from swap, compaction for huge pages. Only in guests for these tests alone.

use std::fs;
use std::path::Path;

use observer_tests::exact::freed_pages;
use observer_tests::kernel_counters::{self, Faults, Flat, Pressure};
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::results::{Held, not_applicable};
use observer_tests::taskstats::{DelayAccounting, Delays, Taskstats};
use observer_tests::trial::{self, Observed, Run, Trial};

struct KernelCounters {
    delays: Delays,
    faults: Faults,
    host: Flat,
    pressure: Result<Pressure, String>,
}

impl KernelCounters {
    fn read(pid: u32, taskstats: &Taskstats) -> Self {
        Self {
            delays: taskstats.delays(pid).expect("the workload is there"),
            faults: kernel_counters::faults(pid).expect("the workload is there"),
            host: Flat::vmstat().expect("/proc/vmstat"),
            pressure: Pressure::read(Path::new("/proc/pressure/memory")),
        }
    }
}

fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("available");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

/// Watches a workload; returns its results, and the pages that its recorded reclaims freed.
fn watched(trial: &Trial, arguments: &[&str]) -> (Observed<KernelCounters>, u64) {
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let mut work = trial::start(arguments, Placement::default());
    let observed =
        trial.observe(&mut work, directory.path(), |pid| KernelCounters::read(pid, &taskstats));
    work.end().expect("the workload ends");
    let freed = freed_pages(&observed.runs[0]);
    (observed, freed)
}

/// kswapd slept before the work, so its work since then was requested by a wake-up.
fn kswapd_was_seen(run: &Run, host: &Flat) {
    let rounds = host.get("pageoutrun").expect("/proc/vmstat has pageoutrun");
    let stalls = host.sum("allocstall_").expect("allocstall");
    let woken = run.probe("reclaim").counters.get("kswapd_wakeups").copied().unwrap_or_default();
    println!("kswapd: woken {woken} times, worked {rounds} times; {stalls} reclaimed directly");
    assert!(rounds + stalls > 0, "memory of the whole system was short");
    assert!(woken > 0, "kswapd worked {rounds} times, {stalls} reclaimed directly");
}

#[test]
fn reclaim_for_the_whole_system_is_in_every_counter() {
    let Some(_guard) = privileged::ready("global reclaim") else { return };
    let trial = Trial::new("memory of the whole system is short");
    if !trial::in_guest() || !has_swap() {
        let reason = "harms the whole system: done in guests with swap only";
        return not_applicable(trial.test, "reclaim", "direct", reason);
    }
    // A little more than there is, so that about as much goes to swap and comes back.
    let mib = (available_bytes() >> 20) + 64;
    let (observed, freed) = watched(&trial, &["fill", "--mib", &mib.to_string(), "--rounds", "2"]);
    let (before, after) = (&observed.before, &observed.after);
    let host = after.host.since(&before.host);
    let counted = after.delays.reclaim.since(before.delays.reclaim);
    let swapin = after.delays.swapin.since(before.delays.swapin);
    let faults = after.faults.since(before.faults);
    println!("{counted:?}, {swapin:?}, {faults:?}");
    let run = &observed.runs[0];
    let held = Held::new(trial.test, "fault", &run.summary);
    let (minor, major) = (run.count("fault", "minor"), run.count("fault", "major"));
    held.equal("minor", "/proc/PID/stat minflt", minor, faults.minor, 0.01);
    if faults.major > 0 {
        held.equal("major", "/proc/PID/stat majflt", major, faults.major, 0.02);
    }
    if swapin.count > 0 {
        let sum_ns = run.probe("fault").sum_ns;
        let against = "taskstats swapin_delay_total";
        held.at_least("sum_ns", against, sum_ns, swapin.total_ns, trial::between_clocks(0.02));
    }
    kswapd_was_seen(run, &host);
    if counted.count == 0 {
        let reason = "kswapd was fast enough: nobody reclaimed directly";
        return not_applicable(trial.test, "reclaim", "direct", reason);
    }
    let held = Held::new(trial.test, "reclaim", &run.summary);
    let (count, sum_ns) = (run.count("reclaim", "direct"), run.sum_ns("reclaim", "direct"));
    held.equal("direct", "taskstats freepages_count", count, counted.count, 0.05);
    let against = "taskstats freepages_delay_total";
    let apart = trial::between_clocks(0.05);
    held.equal("direct sum_ns", against, sum_ns, counted.total_ns, apart);
    let allocstall = host.sum("allocstall_").expect("allocstall");
    held.at_most("direct", "/proc/vmstat allocstall_*", count, allocstall, 0.0);
    // Of all tasks: others reclaim as well where memory is that short.
    for what in ["pgsteal_direct", "pgscan_direct"] {
        let expected = host.get(what).unwrap_or_else(|| panic!("/proc/vmstat has {what}"));
        let against = format!("/proc/vmstat {what}");
        held.at_most("freed pages", &against, freed, expected, 0.0);
    }
    match (&before.pressure, &after.pressure) {
        (Ok(before), Ok(after)) => {
            // Of all tasks, by CPU: with two CPUs half of one task's time at least.
            let some_ns = 2 * 1000 * after.since(*before).some_us;
            let against = "/proc/pressure/memory some, times CPUs";
            held.at_most("direct sum_ns", against, sum_ns, some_ns, apart);
        }
        (Err(reason), _) | (_, Err(reason)) => {
            not_applicable(trial.test, "reclaim", "/proc/pressure/memory", reason);
        }
    }
}

/// A setting of transparent huge pages, for a while.
struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{path}: {error}");
        let text = fs::read_to_string(path).map_err(failed)?;
        let chosen = text.split(['[', ']']).nth(1).unwrap_or("madvise").to_owned();
        fs::write(path, value).map_err(failed)?;
        Ok(Self { path, before: chosen })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.before);
    }
}

#[test]
fn compaction_for_huge_pages_is_that_of_delay_accounting() {
    let Some(_guard) = privileged::ready("compaction") else { return };
    let trial = Trial::new("huge pages in fragmented memory");
    if !trial::in_guest() {
        let reason = "fragments the memory of the whole system: done in guests only";
        return not_applicable(trial.test, "reclaim", "compaction", reason);
    }
    let settings = [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
        ("/sys/kernel/mm/transparent_hugepage/defrag", "madvise"),
    ];
    let settings: Result<Vec<_>, _> =
        settings.into_iter().map(|(path, value)| Setting::set(path, value)).collect();
    if let Err(reason) = &settings {
        return not_applicable(trial.test, "reclaim", "compaction", reason);
    }
    let mib = (available_bytes() >> 20) * 9 / 10;
    let (observed, _) = watched(&trial, &["fragment", "--mib", &mib.to_string()]);
    let (before, after) = (&observed.before, &observed.after);
    let host = after.host.since(&before.host);
    let run = &observed.runs[0];
    let (count, sum_ns) = (run.count("reclaim", "compaction"), run.sum_ns("reclaim", "compaction"));
    let stalls = host.get("compact_stall").unwrap_or_default();
    println!(
        "compact_stall {stalls}, success {:?}, fail {:?}, {:?}; observer {count}, {sum_ns} ns",
        host.get("compact_success"),
        host.get("compact_fail"),
        after.delays.compact
    );
    if stalls == 0 {
        let reason = "memory was not fragmented enough for anybody to compact it";
        return not_applicable(trial.test, "reclaim", "compaction", reason);
    }
    let held = Held::new(trial.test, "reclaim", &run.summary);
    // Each stall compacts zone after zone.
    let zones =
        fs::read_to_string("/proc/zoneinfo").expect("zones").matches("Node ").count() as u64;
    let against = "/proc/vmstat compact_stall, times zones";
    held.at_most("compaction", against, count, stalls * zones, 0.0);
    match (before.delays.compact, after.delays.compact) {
        (Some(before), Some(after)) => {
            let counted = after.since(before);
            let against = "taskstats compact_delay_total";
            let apart = trial::between_clocks(0.01);
            held.at_most("compaction sum_ns", against, sum_ns, counted.total_ns, apart);
            // A stall whose zones are all deferred takes time and compacts nothing
            // (`try_to_compact_pages`, mm/compaction.c).
            let compacted_ns = counted.total_ns * count.min(stalls) / stalls;
            let against = "taskstats compact_delay_total, of stalls that compacted";
            held.at_least("compaction sum_ns", against, sum_ns, compacted_ns, 0.25);
        }
        _ => not_applicable(trial.test, "reclaim", "compaction", "taskstats before version 11"),
    }
}
