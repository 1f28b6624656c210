//! How long the CPU limit of a cgroup (CFS bandwidth) held a thread that could run.
//!
//! The kernel adds up for each cgroup and CPU how long its threads were throttled
//! (`tg_throttle_down` and `tg_unthrottle_up`, kernel/sched/fair.c), whichever limit it was: the cgroup's
//! own or one above. A growth of this sum is an interval of throttling that has ended. Its begin is seen
//! when the last thread leaves the CPU. A thread that arrives was throttled where its wait and these intervals
//! overlap.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{
    Counter, CpuThrottled, INTERVALS_KEPT, Interval, LossKind, THROTTLED_KEPT, Throttled,
};

use super::turns::{above_zero, earlier, later};
use crate::{
    config, emit,
    kernel::{GroupQueue, Task},
};

/// By CPU (loader).
#[map]
static THROTTLED: Array<CpuThrottled> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Places where a cgroup may be, from the one of its number on.
const PROBES: u64 = 4;

/// Whether the kernel has CPU limits.
#[inline(always)]
fn is_known() -> bool {
    config::has_target() != 0 && config::off_cfs_rq_throttled_ns() != 0
}

/// The place of the cgroup with this run queue. The one of four that was not throttled for the longest time
/// makes room for it.
#[inline(always)]
fn place(cpu: &mut CpuThrottled, queue: GroupQueue, total_ns: u64, of: Task) -> usize {
    let address = queue.address();
    // Objects of one kind differ in these bits.
    let home = (address >> 6) ^ (address >> 12);
    let (mut place, mut oldest_ns) = (0, u64::MAX);
    for probe in 0..PROBES {
        let at = (home + probe) as usize % THROTTLED_KEPT;
        let kept = &cpu.cgroups[at];
        if kept.queue == address {
            return at;
        }
        let last = &kept.kept[kept.intervals.wrapping_sub(1) as usize % INTERVALS_KEPT];
        if last.until_ns < oldest_ns {
            (place, oldest_ns) = (at, last.until_ns);
        }
    }
    let taken = &mut cpu.cgroups[place % THROTTLED_KEPT];
    if taken.queue != 0 {
        emit::lose_of(LossKind::ThrottleSlot, of);
    }
    const NONE: Interval = Interval { from_ns: 0, until_ns: 0 };
    *taken = Throttled {
        queue: address,
        total_ns,
        begun: 0,
        begun_ns: 0,
        intervals: 0,
        kept: [NONE; INTERVALS_KEPT],
    };
    place
}

/// A thread leaves its CPU: if its cgroup is throttled, that has begun now, unless another thread showed it
/// before.
#[inline(always)]
pub(super) fn left(prev: Task, now_ns: u64) {
    if is_known() && prev.group_queue().throttle_begun() != 0 {
        emit::leave_waiting(prev);
        note_throttling(now_ns);
    }
}

/// The throttling of the cgroup of the thread that is left for it ([`emit::leave_waiting`]). A function of its own,
/// because few switches need it, and one that the verifier examines once (as [`super::turns::sum_up_wait`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_throttling(now_ns: u64) -> u64 {
    let prev = emit::waiting();
    if !emit::is_target(prev.tgid()) {
        return 0;
    }
    let Some(cpu) = THROTTLED.get_ptr_mut(emit::cpu()) else { return 0 };
    // SAFETY: a map value that only this program writes, on its own CPU.
    let cpu = unsafe { &mut *cpu };
    let queue = prev.group_queue();
    let (begun, total_ns) = (queue.throttle_begun(), queue.throttled_ns());
    let place = place(cpu, queue, total_ns, prev);
    let entry = &mut cpu.cgroups[place % THROTTLED_KEPT];
    ended(entry, total_ns, now_ns);
    if entry.begun != begun {
        (entry.begun, entry.begun_ns) = (begun, now_ns);
    }
    0
}

/// Notes the interval that has ended since the last look, if there is one. It ended at the latest now, and
/// began after the one before.
#[inline(always)]
fn ended(entry: &mut Throttled, total_ns: u64, now_ns: u64) {
    let length_ns = total_ns.wrapping_sub(entry.total_ns);
    entry.total_ns = total_ns;
    // A smaller sum is that of a new cgroup, whose run queue is where that of another one was.
    if length_ns as i64 <= 0 {
        return;
    }
    let begun_ns = entry.begun_ns;
    entry.begun_ns = 0;
    let number = entry.intervals;
    let before = entry.kept[number.wrapping_sub(1) as usize % INTERVALS_KEPT];
    let from_ns = if begun_ns != 0 { begun_ns } else { now_ns.wrapping_sub(length_ns) };
    let from_ns = later(from_ns, before.until_ns);
    let until_ns = earlier(from_ns.wrapping_add(length_ns), now_ns);
    entry.kept[number as usize % INTERVALS_KEPT] = Interval { from_ns, until_ns };
    entry.intervals = number.wrapping_add(1);
}

/// For how long a thread of the target was throttled that has just got the CPU, and was queued there at
/// `queued_ns`. [`Wait`] has more.
#[inline(always)]
pub(super) fn arrived(next: Task, queued_ns: u64, now_ns: u64) -> u64 {
    if !is_known() || queued_ns == 0 || next.group_queue().throttled_ns() == 0 {
        return 0;
    }
    emit::leave_waiting(next);
    let throttled_ns = throttled_in_wait(queued_ns, now_ns);
    if throttled_ns != 0 {
        emit::count(Counter::TargetThrottledWaits);
        emit::count_by(Counter::TargetThrottledNs, throttled_ns);
    }
    throttled_ns
}

/// For how long the thread was throttled that is left for it. A function of its own, as [`note_throttling`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn throttled_in_wait(queued_ns: u64, now_ns: u64) -> u64 {
    let next = emit::waiting();
    let Some(cpu) = THROTTLED.get_ptr_mut(emit::cpu()) else { return 0 };
    // SAFETY: a map value that only this program writes, on its own CPU.
    let cpu = unsafe { &mut *cpu };
    let queue = next.group_queue();
    let total_ns = queue.throttled_ns();
    let place = place(cpu, queue, total_ns, next);
    let entry = &mut cpu.cgroups[place % THROTTLED_KEPT];
    ended(entry, total_ns, now_ns);
    if !next.has_fair_priority() {
        return 0;
    }
    cpu.wait_ns = overlap_ns(entry, queued_ns, now_ns);
    cpu.place = place as u64;
    cpu.wait_ns
}

/// For how long a time overlaps with the last intervals of a cgroup.
#[inline(always)]
fn overlap_ns(cgroup: &Throttled, from_ns: u64, until_ns: u64) -> u64 {
    let mut sum_ns = 0u64;
    for interval in &cgroup.kept {
        let from_ns = later(interval.from_ns, from_ns);
        let until_ns = earlier(interval.until_ns, until_ns);
        sum_ns = sum_ns.wrapping_add(above_zero(until_ns.wrapping_sub(from_ns)));
    }
    sum_ns
}

/// What is known of the wait that has just ended on this CPU.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    /// For how long the thread was throttled.
    pub(super) throttled_ns: u64,
    cgroup: &'static Throttled,
}

impl Wait {
    #[inline(always)]
    pub(super) fn of_cpu() -> Option<Self> {
        let cpu = THROTTLED.get(emit::cpu())?;
        let cgroup = &cpu.cgroups[cpu.place as usize % THROTTLED_KEPT];
        Some(Self { throttled_ns: cpu.wait_ns, cgroup })
    }

    /// For how long it was throttled between two times of the wait.
    #[inline(always)]
    pub(super) fn throttled_between(self, from_ns: u64, until_ns: u64) -> u64 {
        overlap_ns(self.cgroup, from_ns, until_ns)
    }
}
