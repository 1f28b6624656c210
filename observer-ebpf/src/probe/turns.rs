//! Which threads had each CPU lately: whoever waits for a CPU learns from it who had it meanwhile.

use core::arch::asm;

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{
    COMM_LEN, CpuTurns, RUNQUEUE_UNSEEN, RecordKind, RunqueueRecord, SWITCHES_KEPT, Turn,
};

use super::{ran_instead, throttle};
use crate::{
    config, emit,
    kernel::{Task, now_ns},
};

/// By CPU (loader).
#[map]
static TURNS: Array<CpuTurns> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The CPU goes from one thread to another at this time of the clock that waits are measured with. Whether it went to
/// the first one with an event.
#[inline(always)]
pub(super) fn switched(prev: Task, next: Task, now_ns: u64) -> bool {
    if config::has_target() == 0 {
        return true;
    }
    let Some(cpu) = TURNS.get_ptr_mut(emit::cpu()) else { return true };
    // SAFETY: a map value that only this program writes, on its own CPU.
    let cpu = unsafe { &mut *cpu };
    let tid = prev.tid();
    let is_known = cpu.running == u64::from(tid);
    cpu.kept[cpu.switches as usize % SWITCHES_KEPT] = Turn {
        until_ns: now_ns,
        task: prev.address(),
        tid,
        tgid: prev.tgid(),
        known: u64::from(is_known),
    };
    cpu.running = u64::from(next.tid());
    cpu.switches = cpu.switches.wrapping_add(1);
    is_known || cpu.switches == 1
}

/// All bits set if the number is negative, or none. The verifier follows both sides of every branch in
/// every round of a loop, and gives up soon; so a loop has as few of them as possible. In assembly,
/// because the compiler would make branches of it.
#[inline(always)]
fn if_negative(number: i64) -> u64 {
    let mut mask = number;
    // SAFETY: a shift.
    unsafe { asm!("{mask} s>>= 63", mask = inout(reg) mask, options(pure, nomem, nostack)) };
    mask as u64
}

/// All bits set if the number, of 32 bits, is 0, or none.
#[inline(always)]
pub(super) fn if_zero(number: u32) -> u64 {
    if_negative(i64::from(number) - 1)
}

/// The number, or 0 if it is negative.
#[inline(always)]
pub(super) fn above_zero(number: u64) -> u64 {
    number & !if_negative(number as i64)
}

/// The later one of two times.
#[inline(always)]
pub(super) fn later(one_ns: u64, other_ns: u64) -> u64 {
    other_ns.wrapping_add(above_zero(one_ns.wrapping_sub(other_ns)))
}

/// The earlier one of two times.
#[inline(always)]
pub(super) fn earlier(one_ns: u64, other_ns: u64) -> u64 {
    one_ns.wrapping_sub(above_zero(one_ns.wrapping_sub(other_ns)))
}

/// The first where the mask has bits, and the second elsewhere.
#[inline(always)]
pub(super) const fn select(mask: u64, first: u64, second: u64) -> u64 {
    first & mask | second & !mask
}

/// A thread that had the CPU.
#[derive(Clone, Copy)]
struct Ran {
    task: u64,
    ids: u64,
}

impl Ran {
    #[inline(always)]
    fn of(turn: &Turn) -> Self {
        Self { task: turn.task, ids: u64::from(turn.tid) | u64::from(turn.tgid) << 32 }
    }

    #[inline(always)]
    fn or(self, mask: u64, other: Self) -> Self {
        Self { task: select(mask, other.task, self.task), ids: select(mask, other.ids, self.ids) }
    }

    const fn tid(self) -> u32 {
        self.ids as u32
    }

    const fn tgid(self) -> u32 {
        (self.ids >> 32) as u32
    }
}

/// A part of a wait in which one thread had the CPU.
struct Part<'a> {
    turn: &'a Turn,
    began_ns: u64,
    /// Without the time in which the waiting thread was throttled; 0 if it is not known who had the CPU.
    time_ns: u64,
}

impl<'a> Part<'a> {
    /// What the turn of this number has of a wait that began at `queued_ns`.
    #[inline(always)]
    fn of(
        cpu: &'a CpuTurns,
        number: u64,
        queued_ns: u64,
        throttled: Option<throttle::Wait>,
    ) -> Self {
        let kept = |number: u64| &cpu.kept[number as usize % SWITCHES_KEPT];
        let (turn, began_ns) = (kept(number), kept(number.wrapping_sub(1)).until_ns);
        let from_ns = later(began_ns, queued_ns);
        let part_ns = above_zero(turn.until_ns.wrapping_sub(from_ns));
        let held_ns = throttled.map_or(0, |wait| wait.throttled_between(from_ns, turn.until_ns));
        let time_ns = above_zero(part_ns.wrapping_sub(held_ns)) & turn.known.wrapping_neg();
        Self { turn, began_ns, time_ns }
    }
}

/// Who had the CPU, as in [`RunqueueRecord`].
struct During {
    ran: Ran,
    other_ns: u64,
    own_ns: u64,
    idle_ns: u64,
}

/// Goes back through the turns to when a thread of this process was queued, if that is known. While it was
/// throttled, nobody had the CPU instead of it.
#[inline(always)]
fn during(cpu: &CpuTurns, tgid: u32, queued_ns: u64, throttled: Option<throttle::Wait>) -> During {
    let last = cpu.switches.wrapping_sub(1);
    let (mut other_ns, mut own_ns, mut idle_ns) = (0u64, 0u64, 0u64);
    // A majority vote, weighted by time (Boyer and Moore, "MJRTY", 1991): a process that had the CPU
    // for more than half of the others' time is the leader at the end.
    let (mut leader, mut lead_ns) = (Ran::of(&cpu.kept[last as usize % SWITCHES_KEPT]), 0u64);
    let (mut own, mut longest_own_ns) = (leader, 0u64);
    for back in 0..SWITCHES_KEPT as u64 - 1 {
        // When the first turn began is not known, and neither is the begin of the wait.
        if queued_ns == 0 || back >= last {
            break;
        }
        let Part { turn: one, began_ns, time_ns: part_ns } =
            Part::of(cpu, last.wrapping_sub(back), queued_ns, throttled);
        let ran = Ran::of(one);
        let (is_idle, is_own) = (if_zero(one.tid), if_zero(one.tgid ^ tgid));
        let of_own_ns = part_ns & is_own & !is_idle;
        let of_other_ns = part_ns & !is_own & !is_idle;
        idle_ns = idle_ns.wrapping_add(part_ns & is_idle);
        own_ns = own_ns.wrapping_add(of_own_ns);
        other_ns = other_ns.wrapping_add(of_other_ns);
        let is_longer = if_negative(longest_own_ns.wrapping_sub(of_own_ns) as i64);
        own = own.or(is_longer, ran);
        longest_own_ns = select(is_longer, of_own_ns, longest_own_ns);
        let is_leader = if_zero(one.tgid ^ leader.tgid());
        let apart_ns = lead_ns.wrapping_sub(of_other_ns);
        let overtakes = if_negative(apart_ns as i64);
        let distance_ns = (apart_ns ^ overtakes).wrapping_sub(overtakes);
        leader = leader.or(overtakes & !is_leader, ran);
        lead_ns = select(is_leader, lead_ns.wrapping_add(of_other_ns), distance_ns);
        if began_ns <= queued_ns {
            break;
        }
    }
    let ran = leader.or(if_negative(other_ns.wrapping_sub(own_ns) as i64), own);
    During { ran, other_ns, own_ns, idle_ns }
}

/// Adds each part of the wait that has just ended on this CPU to the process that had the CPU. The wait began
/// at `queued_ns`; 0 if that is not known.
///
/// A function with a name, arguments that are numbers and a result, as those below: the verifier examines such a function
/// once, and not with all that can be around it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sum_up_wait(queued_ns: u64) -> u64 {
    sum_up_with(queued_ns, None);
    0
}

/// As [`sum_up_wait`], where a CPU limit held the thread for a part of the wait.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn sum_up_throttled_wait(queued_ns: u64) -> u64 {
    if let Some(wait) = throttle::Wait::of_cpu() {
        sum_up_with(queued_ns, Some(wait));
    }
    0
}

#[inline(always)]
fn sum_up_with(queued_ns: u64, throttled: Option<throttle::Wait>) {
    let number = emit::cpu();
    let Some(cpu) = TURNS.get(number) else { return };
    let last = cpu.switches.wrapping_sub(1);
    let wait = cpu.switches << 16 | u64::from(number);
    let mut idle_ns = 0u64;
    // As in `during`.
    for back in 0..SWITCHES_KEPT as u64 - 1 {
        if queued_ns == 0 || back >= last {
            break;
        }
        let part = Part::of(cpu, last.wrapping_sub(back), queued_ns, throttled);
        let is_idle = if_zero(part.turn.tid);
        idle_ns = idle_ns.wrapping_add(part.time_ns & is_idle);
        let ran = Ran::of(part.turn);
        ran_instead::ran_instead_add(ran.task, ran.ids, part.time_ns & !is_idle, wait);
        if part.began_ns <= queued_ns {
            break;
        }
    }
    if idle_ns != 0 {
        ran_instead::add_idle(idle_ns);
    }
}

/// Sends the wait of the thread that is left for it ([`emit::leave_waiting`]), with who had the CPU since `queued_ns`,
/// when it was queued there; 0 if that is not known, with for how long it was throttled.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn send_wait(
    flags: u64,
    duration_ns: u64,
    queued_ns: u64,
    throttled_ns: u64,
) -> u64 {
    send_with(flags, duration_ns, queued_ns, None, throttled_ns);
    0
}

/// As [`send_wait`], where a CPU limit held the thread for a part of the wait: apart, so that other waits do not look for
/// it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn send_throttled_wait(flags: u64, duration_ns: u64, queued_ns: u64) -> u64 {
    if let Some(wait) = throttle::Wait::of_cpu() {
        send_with(flags, duration_ns, queued_ns, Some(wait), wait.throttled_ns);
    }
    0
}

#[inline(always)]
fn send_with(
    flags: u64,
    duration_ns: u64,
    queued_ns: u64,
    throttled: Option<throttle::Wait>,
    throttled_ns: u64,
) {
    let next = emit::waiting();
    let tgid = next.tgid();
    let Some(cpu) = TURNS.get(emit::cpu()) else { return };
    let During { ran, other_ns, own_ns, idle_ns } = during(cpu, tgid, queued_ns, throttled);
    // The last switch may be that of the waiting thread itself.
    let is_seen = flags as u16 & RUNQUEUE_UNSEEN == 0;
    let ran = if is_seen { ran } else { Ran { task: 0, ids: 0 } };
    let task = Task::at(ran.task);
    // The thread may have gone since, and its memory may be another one's.
    let is_there = task.tid() == ran.tid();
    let ids = (tgid, next.tid());
    let end_ns = now_ns().wrapping_sub(emit::arrived_ago_ns());
    let header = emit::header(RecordKind::Runqueue, flags as u16, ids, end_ns, duration_ns);
    emit::emit(
        RecordKind::Runqueue,
        RunqueueRecord {
            header,
            ran_tid: ran.tid(),
            ran_tgid: ran.tgid(),
            ran_comm: if is_there { task.comm() } else { [0; COMM_LEN] },
            ran_cgroup: if is_there && ran.tid() != 0 { task.cgroup_id() } else { 0 },
            other_ns,
            own_ns,
            idle_ns,
            throttled_ns,
        },
    );
}
