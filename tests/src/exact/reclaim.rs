//! `reclaim` against taskstats, `memory.stat` and `memory.pressure`.

use observer_ebpf::wire::ReclaimRecord;

use crate::cgroup::{MemoryCgroup, UnifiedCgroup};
use crate::kernel_counters::{Flat, Pressure};
use crate::process::Placement;
use crate::results::{Comparison, Held, Relation, not_applicable};
use crate::taskstats::{DelayAccounting, Delays, Taskstats};
use crate::trial::{self, Run, Trial, scaled_text};

/// Delay accounting counts a reclaim that starts over (`do_try_to_free_pages`, `goto retry`) once
/// more; the tracepoints do not.
const TOLERANCE: f64 = 0.05;

/// Reclaims of both scopes: a task that is over its cgroup's limit may have to reclaim for the host
/// as well, and delay accounting counts both.
fn count(run: &Run) -> u64 {
    run.count("reclaim", "memcg") + run.count("reclaim", "direct")
}

fn sum_ns(run: &Run) -> u64 {
    run.sum_ns("reclaim", "memcg") + run.sum_ns("reclaim", "direct")
}

/// Pages that the recorded reclaims freed.
#[must_use]
pub fn freed_pages(run: &Run) -> u64 {
    let records = run.events().into_iter().filter_map(|event| event.record::<ReclaimRecord>());
    records.map(|record| record.reclaimed_pages).sum()
}

struct KernelCounters {
    delays: Delays,
    cgroup: Flat,
    host: Flat,
    pressure: Result<Pressure, String>,
}

/// Page cache in a cgroup that is too small for it.
///
/// # Panics
/// When observer and the kernel counters differ.
pub fn memcg_reclaim(trial: &Trial) {
    let directory = trial::directory();
    let _accounting = DelayAccounting::on().expect("the kernel has delay accounting");
    let taskstats = Taskstats::connect().expect("the kernel has taskstats");
    let cgroup = MemoryCgroup::create(&trial::unique("reclaim")).expect("a cgroup can be made");
    cgroup.limit(Some(24 << 20)).expect("a limit can be set");
    // Where memory is on version 1, pressure has a cgroup of its own.
    let unified = (cgroup.version() == 1)
        .then(|| UnifiedCgroup::create(&trial::unique("pressure")))
        .and_then(Result::ok);
    let pressure = unified.as_ref().map_or(cgroup.directory(), UnifiedCgroup::directory);
    let pressure = pressure.join("memory.pressure");
    let file = directory.path().join("sparse");
    let file = file.to_str().expect("a path in UTF-8");
    // On one CPU: the pressure of a task that moves is averaged over the CPUs.
    let place = Placement {
        cgroup: Some(&cgroup),
        unified: unified.as_ref(),
        cpu: Some(0),
        ..Placement::default()
    };
    let rounds = scaled_text(16);
    let mut work = trial::start(&["reclaim", "--file", file, "--rounds", &rounds], place);
    let observed = trial.observe(&mut work, directory.path(), |pid| KernelCounters {
        delays: taskstats.delays(pid).expect("the workload has one thread, and it is there"),
        cgroup: cgroup.stat().expect("memory.stat"),
        host: Flat::vmstat().expect("/proc/vmstat"),
        pressure: Pressure::read(&pressure),
    });
    let (before, after) = (&observed.before, &observed.after);
    let counted = after.delays.reclaim.since(before.delays.reclaim);
    let charged = after.cgroup.since(&before.cgroup);
    let host = after.host.since(&before.host);
    let other_ns = after.delays.thrashing.since(before.delays.thrashing).total_ns
        + after.delays.swapin.since(before.delays.swapin).total_ns;
    // The time of one observer has the programs of the others in it, and all of it the way from the
    // place where the kernel reads its clock to the tracepoint.
    let apart_ns = counted.count * observed.switch_ns;
    // Each CPU of an emulated guest stands still while another one has its turn.
    let emulated = if trial::in_guest() { trial::between_clocks(0.01) } else { 0.01 };
    trial.hold(
        &observed,
        "reclaim",
        |held, run| {
            assert!(run.count("reclaim", "memcg") > 0, "the limit made the workload reclaim");
            held.equal("count", "taskstats freepages_count", count(run), counted.count, TOLERANCE);
            let against = "taskstats freepages_delay_total";
            held.check(&Comparison {
                metric: "sum_ns",
                against,
                relation: Relation::Equal,
                observed: sum_ns(run),
                expected: counted.total_ns,
                tolerance: emulated,
                slack: apart_ns,
            });
            freed(held, freed_pages(run), &charged, &host);
            match (&before.pressure, &after.pressure) {
                (Ok(before), Ok(after)) => {
                    let some_ns = 1000 * after.since(*before).some_us;
                    held.at_most("sum_ns", "memory.pressure some", sum_ns(run), some_ns, 0.02);
                    let least_ns = some_ns.saturating_sub(other_ns);
                    let against = "memory.pressure some, less swap-in and thrashing";
                    // The kernel enters and leaves this state around a reclaim.
                    held.check(&Comparison {
                        metric: "sum_ns",
                        against,
                        relation: Relation::AtLeast,
                        observed: sum_ns(run),
                        expected: least_ns,
                        tolerance: 2.0 * emulated,
                        slack: apart_ns,
                    });
                }
                (Err(reason), _) | (_, Err(reason)) => {
                    not_applicable(trial.test, "reclaim", "memory.pressure", reason);
                }
            }
        },
        &[("count", 0.01, 0, &count), ("sum_ns", emulated, apart_ns, &sum_ns)],
    );
    assert_eq!(cgroup.oom_kills().expect("the cgroup counts"), 0);
    work.end().expect("the workload ends");
}

/// Pages freed, against what the cgroup and the host count.
fn freed(held: &Held, pages: u64, charged: &Flat, host: &Flat) {
    let slack = MemoryCgroup::late_events();
    let check = |relation, against: &str, expected| {
        let comparison = Comparison {
            metric: "freed pages",
            against,
            relation,
            observed: pages,
            expected,
            tolerance: TOLERANCE,
            slack,
        };
        held.check(&comparison);
    };
    let direct = charged.get("pgsteal_direct").or(charged.get("pgsteal"));
    if let Some(expected) = direct {
        check(Relation::Equal, "memory.stat pgsteal_direct", expected);
    } else if let Some(expected) = charged.get("pgpgout") {
        // Version 1 counts a large folio once.
        check(Relation::AtLeast, "memory.stat pgpgout", expected);
    }
    // Others may reclaim meanwhile; and what was freed was looked at first.
    for what in ["pgsteal", "pgscan"] {
        let (anonymous, file) =
            (host.get(&format!("{what}_anon")), host.get(&format!("{what}_file")));
        if let (Some(anonymous), Some(file)) = (anonymous, file) {
            let against = format!("/proc/vmstat {what}_anon + {what}_file");
            check(Relation::AtMost, &against, anonymous + file);
        }
    }
    if let Some(expected) = charged.get("pgscan_direct").or(charged.get("pgscan")) {
        check(Relation::AtMost, "memory.stat pgscan_direct", expected);
    }
}
