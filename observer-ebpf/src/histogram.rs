//! Counting a duration into the histogram of the right series, cgroup and CPU.

use observer_ebpf::wire::{
    BUCKET_SLOTS, CGROUP_PROBES, CGROUP_SLOT_FIRST, CGROUP_SLOT_OTHER, CGROUP_SLOT_TARGET,
    CGROUP_SLOTS_MAX, Histogram, LossKind, SERIES, Series, TaskState, bucket_index,
};

use crate::{
    atomic, config, emit,
    kernel::Task,
    maps::{CGROUPS, HISTOGRAMS},
    task,
};

/// Adds a duration to a series: the target's histogram for the target, the cgroup's otherwise.
///
/// For programs that run with preemption off (tracepoints, perf events): plain additions suffice.
/// `state` is the thread's own, where the program has it at hand.
#[inline(always)]
pub(crate) fn observe(
    task: Task,
    state: Option<&mut TaskState>,
    is_target: bool,
    series: Series,
    duration_ns: u64,
) {
    let slot = match (is_target, state) {
        (true, _) => CGROUP_SLOT_TARGET,
        (false, Some(state)) => remembered_slot(task, state),
        (false, None) => cgroup_slot(task.cgroup_id()),
    };
    add(slot, series, duration_ns, |word, number| {
        // SAFETY: `word` points into a map value that only this CPU writes.
        unsafe { *word = (*word).wrapping_add(number) };
    });
}

/// The same for programs that can be preempted (cgroup hooks).
#[inline(always)]
pub(crate) fn observe_preemptible(task: Task, is_target: bool, series: Series, duration_ns: u64) {
    let slot = match (is_target, task::claim(task.tid())) {
        (true, _) => CGROUP_SLOT_TARGET,
        (false, Some(state)) => remembered_slot(task, state),
        (false, None) => CGROUP_SLOT_OTHER,
    };
    add(slot, series, duration_ns, atomic::add);
}

/// Takes back a duration that was booked a moment ago on this CPU under another series, but for
/// the maximum, which stays.
#[inline(always)]
pub(crate) fn take_back(
    task: Task,
    state: &mut TaskState,
    is_target: bool,
    series: Series,
    duration_ns: u64,
) {
    let slot = if is_target { CGROUP_SLOT_TARGET } else { remembered_slot(task, state) };
    if let Some(histogram) = histogram(slot, series) {
        histogram.sum_ns = histogram.sum_ns.wrapping_sub(duration_ns);
        let index = atomic::low_byte(bucket_index(duration_ns));
        if index < BUCKET_SLOTS {
            histogram.buckets[index] = histogram.buckets[index].wrapping_sub(1);
        }
    }
}

#[inline(always)]
fn histogram(slot: u32, series: Series) -> Option<&'static mut Histogram> {
    let cpu = emit::cpu();
    if cpu >= config::histogram_cpus() {
        return None;
    }
    let row = cpu * (config::cgroup_mask() + 1) + slot;
    let histogram = HISTOGRAMS.get_ptr_mut(row * SERIES as u32 + series as u32)?;
    // SAFETY: only this CPU writes here, from one program per series.
    Some(unsafe { &mut *histogram })
}

#[inline(always)]
fn add(slot: u32, series: Series, duration_ns: u64, add: impl Fn(*mut u64, u64)) {
    let Some(histogram) = histogram(slot, series) else { return };
    add(&raw mut histogram.sum_ns, duration_ns);
    if duration_ns > histogram.max_ns {
        histogram.max_ns = duration_ns;
    }
    let index = atomic::low_byte(bucket_index(duration_ns));
    if index < BUCKET_SLOTS {
        add(&raw mut histogram.buckets[index], 1);
    }
}

/// The slot of the task's cgroup, looked up again only when its `css_set` changed: following four
/// pointers costs more than the rest of a context switch's bookkeeping.
#[inline(always)]
fn remembered_slot(task: Task, state: &mut TaskState) -> u32 {
    let css_set = task.css_set();
    if state.css_set != css_set {
        state.cgroup_slot = cgroup_slot(task.cgroup_id());
        state.css_set = css_set;
    }
    // The mask shows the verifier a bound.
    state.cgroup_slot & (CGROUP_SLOTS_MAX - 1)
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
    // The target has histograms of its own and never gets here.
    emit::lose(LossKind::CgroupSlot, false);
    CGROUP_SLOT_OTHER
}
