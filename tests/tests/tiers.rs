//! Forces every tier that this kernel offers and compares it with the same kernel counters as
//! observer's own choice; and compares all tiers of a probe side by side on the same work.

use observer_tests::disturbance::repeated;
use observer_tests::exact;
use observer_tests::exact::Throttled;
use observer_tests::privileged;
use observer_tests::results::case_held;
use observer_tests::trial::{self, Trial, scaled_text};

/// One observer for each tier of `probe` that this kernel offers, the best one first.
fn tiers(test: &'static str, probe: &str) -> Trial {
    let offered = trial::offered_tiers(probe);
    case_held(test, probe, &format!("side by side: {}", offered.join(", ")));
    Trial::with(test, offered.into_iter().map(Some).collect())
}

#[test]
fn all_tiers_of_runqueue_agree() {
    let Some(_guard) = privileged::ready("tiers of runqueue") else { return };
    let length = scaled_text(1500);
    let contend = ["contend", "--threads", "4", "--ms", &length];
    repeated(|| {
        exact::run_delay(&tiers("tiers: threads that preempt each other", "runqueue"), &contend);
    });
    let rounds = scaled_text(20_000);
    let ping_pong = ["ping-pong", "--rounds", &rounds];
    repeated(|| {
        exact::run_delay(&tiers("tiers: threads that wake each other", "runqueue"), &ping_pong);
    });
    // Attaching takes an emulated CPU seconds.
    if !trial::in_guest() {
        repeated(|| exact::own_threads(&tiers("tiers: own threads", "runqueue")));
        repeated(|| exact::another_process(&tiers("tiers: another process", "runqueue")));
        let trial = || tiers("tiers: throttled cgroup", "runqueue");
        let case = Throttled { threads: 2, beside_another: true, ..Throttled::ONE };
        repeated(|| exact::throttled(&trial(), case));
    }
}

/// Waits and sleeps are parts of the same two programs on `sched_switch`: where the two probes use one each, each
/// program does its own part alone.
#[test]
fn waits_and_sleeps_by_different_programs_are_counted_once() {
    let Some(_guard) = privileged::ready("tiers of runqueue beside those of sleep") else { return };
    let [waits, sleeps] = ["runqueue", "sleep"].map(trial::offered_tiers);
    let mixed = [
        "runqueue=tp_btf sleep=raw_tracepoint",
        "runqueue=raw_tracepoint sleep=tp_btf",
        "runqueue=tp_btf_pair sleep=raw_tracepoint",
        "sleep=raw_tracepoint",
        "runqueue=raw_tracepoint",
    ];
    let is_offered =
        |tier: &str| [&waits, &sleeps].iter().any(|all| all.iter().any(|one| one == tier));
    let offered: Vec<Option<String>> = mixed
        .into_iter()
        .filter(|tiers| tiers.split(' ').all(is_offered))
        // Attaching takes an emulated CPU seconds.
        .take(if trial::in_guest() { 2 } else { mixed.len() })
        .map(|tiers| Some(tiers.to_owned()))
        .collect();
    assert!(!offered.is_empty(), "{waits:?}, {sleeps:?}");
    let trial = |test| Trial::with(test, offered.clone());
    let rounds = scaled_text(20_000);
    let ping_pong = ["ping-pong", "--rounds", &rounds];
    repeated(|| {
        exact::run_delay_of(&trial("tiers: waits beside sleeps"), &ping_pong, "default,sleep");
    });
    repeated(|| exact::sleeps(&trial("tiers: sleeps beside waits")));
}

#[test]
fn all_tiers_of_runqueue_know_who_ran_instead() {
    let Some(_guard) = privileged::ready("tiers: who ran instead") else { return };
    // Attaching takes an emulated CPU seconds.
    if !trial::in_guest() {
        repeated(|| exact::other_processes(&tiers("tiers: other processes", "runqueue")));
    }
}

#[test]
fn all_tiers_of_fault_agree() {
    let Some(_guard) = privileged::ready("tiers of fault") else { return };
    exact::minor_faults(&tiers("tiers: minor faults", "fault"));
    repeated(|| exact::fault_time(&tiers("tiers: faults of huge pages", "fault")));
    exact::major_faults(&tiers("tiers: major faults", "fault"));
    // The probe of tasks has the same comparison; attaching takes an emulated CPU seconds.
    if !trial::in_guest() {
        exact::families(&tiers("tiers: children and new threads", "fault"));
    }
}

#[test]
fn all_tiers_of_reclaim_agree() {
    let Some(_guard) = privileged::ready("tiers of reclaim") else { return };
    repeated(|| exact::memcg_reclaim(&tiers("tiers: page cache in a tight cgroup", "reclaim")));
}

#[test]
fn all_tiers_of_mm_syscall_agree() {
    let Some(_guard) = privileged::ready("tiers of mm_syscall") else { return };
    exact::memory_calls(&tiers("tiers: memory calls", "mm_syscall"));
    repeated(|| exact::memory_call_time(&tiers("tiers: long memory calls", "mm_syscall")));
}

#[test]
fn all_tiers_of_socket_agree() {
    let Some(_guard) = privileged::ready("tiers of socket") else { return };
    exact::sockets(&tiers("tiers: sockets", "socket"));
    exact::descriptors(&tiers("tiers: no descriptor left", "socket"));
}

#[test]
fn all_tiers_of_softirq_agree() {
    let Some(_guard) = privileged::ready("tiers of softirq") else { return };
    exact::softirqs(&tiers("tiers: soft interrupts", "softirq"));
}

#[test]
fn all_tiers_of_irq_agree() {
    let Some(_guard) = privileged::ready("tiers of irq") else { return };
    exact::irqs(&tiers("tiers: hard interrupts", "irq"));
}

#[test]
fn all_tiers_of_task_follow_families() {
    let Some(_guard) = privileged::ready("tiers of task") else { return };
    exact::families(&tiers("tiers: followed families", "task"));
}

#[test]
fn all_tiers_of_request_agree() {
    let Some(_guard) = privileged::ready("tiers of request") else { return };
    exact::requests(&tiers("tiers: requests", "request"));
}

#[test]
fn all_tiers_of_kernel_lock_agree() {
    let Some(_guard) = privileged::ready("tiers of kernel_lock") else { return };
    repeated(|| exact::kernel_locks(&tiers("tiers: threads that map memory", "kernel_lock")));
}

#[test]
fn all_tiers_of_sleep_agree() {
    let Some(_guard) = privileged::ready("tiers of sleep") else { return };
    repeated(|| exact::sleeps(&tiers("tiers: threads that sleep", "sleep")));
    repeated(|| exact::locks(&tiers("tiers: threads that wait for locks", "sleep")));
    repeated(|| exact::holds(&tiers("tiers: threads that are held", "sleep")));
    repeated(|| exact::block_io(&tiers("tiers: block I/O", "sleep")));
}
