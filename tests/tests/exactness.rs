//! Compares what observer counts with the kernel's own counters: same interval, same threads.
//!
//! Each workload is at rest (all its threads asleep) when observer is attached and when it is
//! detached, so that the interval between the two readings of the kernel counters is the interval
//! of the work for both sides, however long attaching takes.

use observer_tests::disturbance::repeated;
use observer_tests::exact::{Limit, Throttled};
use observer_tests::trial::{Trial, scaled_text};
use observer_tests::{exact, privileged};

#[test]
fn runqueue_delay_of_threads_that_preempt_each_other_is_the_schedulers() {
    let Some(_guard) = privileged::ready("runqueue, preempted") else { return };
    let arguments = ["contend", "--threads", "4", "--ms", &scaled_text(2000)];
    repeated(|| exact::run_delay(&Trial::new("threads that preempt each other"), &arguments));
}

#[test]
fn runqueue_delay_of_threads_that_wake_each_other_is_the_schedulers() {
    let Some(_guard) = privileged::ready("runqueue, woken") else { return };
    let arguments = ["ping-pong", "--rounds", &scaled_text(30_000)];
    repeated(|| exact::run_delay(&Trial::new("threads that wake each other"), &arguments));
}

#[test]
fn runqueue_delay_and_processor_time_fill_the_time_between_them() {
    let Some(_guard) = privileged::ready("processor time") else { return };
    repeated(|| exact::processor_time(&Trial::new("busy threads in a cgroup")));
}

#[test]
fn a_thread_is_throttled_as_long_as_its_cgroup() {
    let Some(_guard) = privileged::ready("throttled cgroup") else { return };
    repeated(|| exact::throttled(&Trial::new("throttled cgroup"), Throttled::ONE));
}

#[test]
fn threads_are_throttled_by_a_limit_above_their_cgroup() {
    let Some(_guard) = privileged::ready("throttled from above") else { return };
    let case = Throttled { threads: 3, limit: Limit::Above, ..Throttled::ONE };
    repeated(|| exact::throttled(&Trial::new("throttled from above"), case));
}

#[test]
fn what_a_thread_is_throttled_is_no_wait_for_another_process() {
    let Some(_guard) = privileged::ready("throttled and busy") else { return };
    let case = Throttled { threads: 2, beside_another: true, ..Throttled::ONE };
    repeated(|| exact::throttled(&Trial::new("throttled and busy"), case));
}

#[test]
fn a_thread_that_is_stopped_while_it_is_throttled_is_both() {
    let Some(_guard) = privileged::ready("throttled and stopped") else { return };
    let case = Throttled { is_stopped: true, ..Throttled::ONE };
    repeated(|| exact::throttled(&Trial::new("throttled and stopped"), case));
}

#[test]
fn while_a_thread_waits_its_own_process_has_the_cpu() {
    let Some(_guard) = privileged::ready("own threads") else { return };
    repeated(|| exact::own_threads(&Trial::new("own threads")));
}

#[test]
fn while_a_thread_waits_another_process_has_the_cpu() {
    let Some(_guard) = privileged::ready("another process") else { return };
    repeated(|| exact::another_process(&Trial::new("another process")));
}

#[test]
fn while_threads_wait_each_process_has_the_cpu_as_long_as_the_scheduler_says() {
    let Some(_guard) = privileged::ready("other processes") else { return };
    repeated(|| exact::other_processes(&Trial::new("other processes")));
}

#[test]
fn processes_that_live_for_a_moment_are_known_by_their_name() {
    let Some(_guard) = privileged::ready("short processes") else { return };
    repeated(|| exact::short_processes(&Trial::new("short processes")));
}

#[test]
fn minor_faults_are_the_kernels() {
    let Some(_guard) = privileged::ready("minor faults") else { return };
    exact::minor_faults(&Trial::new("minor faults"));
}

#[test]
fn major_faults_are_the_kernels() {
    let Some(_guard) = privileged::ready("major faults") else { return };
    exact::major_faults(&Trial::new("major faults"));
}

#[test]
fn faults_of_children_and_new_threads_are_counted() {
    let Some(_guard) = privileged::ready("faults of children") else { return };
    exact::families(&Trial::new("children and new threads"));
}

#[test]
fn copies_of_written_pages_are_part_of_their_faults() {
    let Some(_guard) = privileged::ready("copies") else { return };
    repeated(|| exact::copied_pages(&Trial::new("copied pages")));
}

#[test]
fn time_in_faults_is_the_faulting_threads() {
    let Some(_guard) = privileged::ready("fault time") else { return };
    repeated(|| exact::fault_time(&Trial::new("faults of huge pages")));
}

#[test]
fn memory_calls_are_those_that_strace_sees() {
    let Some(_guard) = privileged::ready("memory calls") else { return };
    exact::memory_calls(&Trial::new("memory calls"));
}

#[test]
fn time_in_memory_calls_is_the_callers() {
    let Some(_guard) = privileged::ready("memory call time") else { return };
    repeated(|| exact::memory_call_time(&Trial::new("long memory calls")));
}

#[test]
fn live_sockets_are_the_socket_descriptors() {
    let Some(_guard) = privileged::ready("sockets") else { return };
    exact::sockets(&Trial::new("sockets"));
}

#[test]
fn softirqs_are_those_of_proc_softirqs() {
    let Some(_guard) = privileged::ready("softirqs") else { return };
    exact::softirqs(&Trial::new("soft interrupts"));
}

#[test]
fn irqs_are_those_of_proc_interrupts() {
    let Some(_guard) = privileged::ready("irqs") else { return };
    exact::irqs(&Trial::new("hard interrupts"));
}

#[test]
fn all_of_a_threads_time_is_known() {
    let Some(_guard) = privileged::ready("all time") else { return };
    repeated(|| exact::all_time(&Trial::new("all time of a thread")));
}

#[test]
fn failures_due_to_descriptor_exhaustion_are_counted_by_call_and_errno() {
    let Some(_guard) = privileged::ready("descriptors") else { return };
    exact::descriptors(&Trial::new("no descriptor left"));
}

#[test]
fn reclaim_time_is_that_of_delay_accounting() {
    let Some(_guard) = privileged::ready("reclaim") else { return };
    repeated(|| exact::memcg_reclaim(&Trial::new("page cache in a tight cgroup")));
}

#[test]
fn requests_are_those_that_the_service_counts() {
    let Some(_guard) = privileged::ready("requests") else { return };
    exact::requests(&Trial::new("requests"));
}

#[test]
fn sleeps_are_the_voluntary_context_switches() {
    let Some(_guard) = privileged::ready("sleeps") else { return };
    repeated(|| exact::sleeps(&Trial::new("threads that sleep")));
}

#[test]
fn waits_for_locks_of_the_kernel_are_those_that_perf_counts() {
    let Some(_guard) = privileged::ready("kernel_locks") else { return };
    repeated(|| exact::kernel_locks(&Trial::new("threads that map memory")));
}

#[test]
fn waits_for_locks_are_the_switches_in_calls_for_locks() {
    let Some(_guard) = privileged::ready("locks") else { return };
    repeated(|| exact::locks(&Trial::new("threads that wait for locks")));
}

#[test]
fn waits_for_a_disk_are_those_of_delay_accounting() {
    let Some(_guard) = privileged::ready("block I/O") else { return };
    repeated(|| exact::block_io(&Trial::new("block I/O")));
}

#[test]
fn threads_are_held_for_as_long_as_signals_and_freezers_do() {
    let Some(_guard) = privileged::ready("holds") else { return };
    repeated(|| exact::holds(&Trial::new("threads that are held")));
}
