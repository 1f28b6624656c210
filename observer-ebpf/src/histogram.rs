//! Counting a duration into the histogram of the right series, cgroup and CPU.

use observer_ebpf::wire::{
    BUCKET_SLOTS, CGROUP_PROBES, CGROUP_SLOT_FIRST, CGROUP_SLOT_OTHER, CGROUP_SLOT_TARGET,
    CGROUP_SLOTS_MAX, LossKind, SERIES, Series, bucket_index,
};

use crate::{
    atomic, config, emit,
    kernel::Task,
    maps::{CGROUPS, HISTOGRAMS},
};

/// Adds a duration to a series: the target's histogram for the target, the cgroup's otherwise.
///
/// For programs that run with preemption off (tracepoints, perf events): plain additions suffice.
#[inline(always)]
pub(crate) fn observe(task: Task, is_target: bool, series: Series, duration_ns: u64) {
    observe_with(task, is_target, series, duration_ns, |word, number| {
        // SAFETY: `word` points into a map value that only this CPU writes.
        unsafe { *word = (*word).wrapping_add(number) };
    });
}

/// The same for programs that can be preempted (cgroup hooks).
#[inline(always)]
pub(crate) fn observe_preemptible(task: Task, is_target: bool, series: Series, duration_ns: u64) {
    observe_with(task, is_target, series, duration_ns, atomic::add);
}

#[inline(always)]
fn observe_with(
    task: Task,
    is_target: bool,
    series: Series,
    duration_ns: u64,
    add: impl Fn(*mut u64, u64),
) {
    let slot = if is_target { CGROUP_SLOT_TARGET } else { cgroup_slot(task.cgroup_id()) };
    let cpu = emit::cpu();
    if cpu >= config::histogram_cpus() {
        return;
    }
    let row = cpu * (config::cgroup_mask() + 1) + slot;
    let Some(histogram) = HISTOGRAMS.get_ptr_mut(row * SERIES as u32 + series as u32) else {
        return;
    };
    // SAFETY: only this CPU writes here, from one program per series.
    let histogram = unsafe { &mut *histogram };
    add(&raw mut histogram.sum_ns, duration_ns);
    if duration_ns > histogram.max_ns {
        histogram.max_ns = duration_ns;
    }
    let index = atomic::low_byte(bucket_index(duration_ns));
    if index < BUCKET_SLOTS {
        add(&raw mut histogram.buckets[index], 1);
    }
}

/// The slot of a cgroup, assigned at its first event.
#[inline(always)]
fn cgroup_slot(id: u64) -> u32 {
    let Some(table) = CGROUPS.get_ptr_mut(0) else { return CGROUP_SLOT_OTHER };
    let table = table.cast::<u64>();
    let mask = config::cgroup_mask() & (CGROUP_SLOTS_MAX - 1);
    let mut probe = 0;
    while probe < CGROUP_PROBES {
        // Ids are handed out in order, so neighbours spread over the table by themselves.
        let slot = (id as u32).wrapping_add(probe) & mask;
        probe += 1;
        if slot < CGROUP_SLOT_FIRST {
            continue;
        }
        // SAFETY: `slot` is below the length of the table.
        let entry = unsafe { table.add(slot as usize) };
        let owner = atomic::load(entry);
        if owner == id || owner == 0 && atomic::compare_exchange(entry, 0, id) {
            return slot;
        }
    }
    emit::lose(LossKind::CgroupSlot);
    CGROUP_SLOT_OTHER
}
