//! Sending records to user space, and counting. Only this file reserves and submits ring entries.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_get_smp_processor_id,
};
use observer_ebpf::wire::{
    COUNTER_SLOTS, Config, Counter, Counts, Header, KIND_SLOTS, LOSS_KIND_SLOTS, LOSS_SLOTS,
    LossKind, Record, RecordKind, needs_wakeup,
};

use crate::{
    atomic, config,
    kernel::Task,
    log,
    maps::{CONFIG, COUNTS, RING, TARGETS},
};

/// Adds to a word of this CPU's counters. Atomic, since several programs count here, and most of them
/// can be preempted or interrupted by another one on the same CPU.
macro_rules! bump {
    ($array:ident[$index:expr]) => {
        bump!($array[$index] += 1)
    };
    ($array:ident[$index:expr] += $number:expr) => {
        if let Some(counts) = counts() {
            // SAFETY: a map value; only its address is formed here.
            atomic::add(unsafe { &raw mut (*counts).$array[$index] }, $number);
        }
    };
}

/// The counters of this CPU.
#[inline(always)]
pub(crate) fn counts() -> Option<*mut Counts> {
    COUNTS.get_ptr_mut(cpu())
}

/// Leaves a thread for a function that the verifier examines apart: its arguments are numbers, and it takes the address of
/// a thread for none.
#[inline(always)]
pub(crate) fn leave_waiting(task: Task) {
    if let Some(counts) = counts() {
        // SAFETY: a map value, whose word only the programs at a context switch use, on their own CPU.
        unsafe { (*counts).waiting_task = task.address() };
    }
}

/// The thread that was left by [`leave_waiting`].
#[inline(always)]
pub(crate) fn waiting() -> Task {
    // SAFETY: as in `leave_waiting`.
    Task::at(counts().map_or(0, |counts| unsafe { (*counts).waiting_task }))
}

/// [`Counts::arrived_ago_ns`] of this CPU.
#[inline(always)]
pub(crate) fn arrived_ago_ns() -> u64 {
    // SAFETY: a map value, whose word only the programs at a context switch write, on their own CPU.
    counts().map_or(0, |counts| unsafe { (*counts).arrived_ago_ns })
}

/// Counts a loss other than a full ring, and counts it for the target as well if the target lost
/// it.
#[inline(always)]
pub(crate) fn lose(kind: LossKind, is_target: bool) {
    if logs_losses() {
        log::lost(kind, log::current());
    }
    count_loss(KIND_SLOTS + kind as usize, is_target);
}

/// [`lose`] of something that concerns this task.
#[inline(always)]
pub(crate) fn lose_of(kind: LossKind, task: Task) {
    let tgid = task.tgid();
    if logs_losses() {
        log::lost(kind, (tgid, task.tid()));
    }
    count_loss(KIND_SLOTS + kind as usize, config::has_target() != 0 && is_target(tgid));
}

/// Whether losses are logged. They are counted after that, so that user space never counts more
/// losses than there are messages.
#[inline(always)]
fn logs_losses() -> bool {
    config::log_losses() != 0 && settings().is_some_and(|settings| settings.log_paused == 0)
}

/// Counts a loss at its place in [`Counts::lost`](observer_ebpf::wire::Counts::lost).
///
/// A function of its own, since it would be in every program several times.
#[inline(never)]
fn count_loss(place: usize, is_target: bool) {
    let Some(counts) = counts() else { return };
    // SAFETY: a map value; only addresses are formed here. The masks show the verifier the bounds.
    let (lost, of_target) = unsafe {
        (
            &raw mut (*counts).lost[place & (LOSS_SLOTS - 1)],
            &raw mut (*counts).lost_target[place & (LOSS_KIND_SLOTS - 1)],
        )
    };
    atomic::add(lost, 1);
    if is_target {
        atomic::add(of_target, 1);
    }
}

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_at(counter as usize);
}

/// Adds to a counter.
#[inline(always)]
pub(crate) fn count_by(counter: Counter, number: u64) {
    bump!(counters[counter as usize] += number);
}

/// Adds one to the counter at a fixed place below `COUNTER_SLOTS`.
#[inline(always)]
pub(crate) fn count_at(index: usize) {
    // The mask shows the verifier the bound.
    bump!(counters[index & (COUNTER_SLOTS - 1)]);
}

/// Is this process watched?
#[inline(always)]
pub(crate) fn is_target(tgid: u32) -> bool {
    if config::has_target() == 0 {
        return false;
    }
    TARGETS.get(tgid >> 6).is_some_and(|word| word & (1 << (tgid & 63)) != 0)
}

/// What user space set.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Is a stall of this length long enough to be sent?
#[inline(always)]
pub(crate) fn past_floor(kind: RecordKind, duration_ns: u64) -> bool {
    settings().is_some_and(|settings| duration_ns >= settings.floor_ns[kind as usize])
}

/// The CPU this runs on.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

/// A header for the current CPU.
#[inline(always)]
pub(crate) fn header(
    kind: RecordKind,
    flags: u16,
    (tgid, tid): (u32, u32),
    end_ns: u64,
    duration_ns: u64,
) -> Header {
    Header { end_ns, duration_ns, tid, tgid, kind: kind as u16, flags, cpu: cpu() }
}

/// Reserves, fills and submits one record; counts it, or its loss. Whether it was sent.
#[inline(always)]
pub(crate) fn emit<T: Record>(kind: RecordKind, record: T) -> bool {
    let sent = submit(kind, record);
    if sent {
        bump!(emitted[kind as usize]);
    }
    sent
}

/// Sends what is to be changed in a record that was sent before: it is not a record of its own, but
/// its loss is counted.
#[inline(always)]
pub(crate) fn correct<T: Record>(kind: RecordKind, record: T) {
    submit(kind, record);
}

#[inline(always)]
fn submit<T: Record>(kind: RecordKind, record: T) -> bool {
    let Some(mut entry) = RING.reserve::<T>(0) else {
        if logs_losses() {
            // SAFETY: a `Record` begins with its header.
            let header = unsafe { &*(&raw const record).cast::<Header>() };
            log::ring_full(kind as u32, header.tgid, header.tid);
        }
        bump!(lost[kind as usize]);
        return false;
    };
    entry.write(record);
    entry.submit(wakeup_flags());
    true
}

/// No wake-up per record: user space drains on a timer. Only a record that finds the fill past the
/// threshold wakes it early, and only the first one since the last drain.
#[inline(always)]
fn wakeup_flags() -> u64 {
    const NO: u64 = BPF_RB_NO_WAKEUP as u64;
    let Some(config) = CONFIG.get_ptr_mut(0) else { return NO };
    let held_bytes = RING.query(u64::from(BPF_RB_AVAIL_DATA));
    // SAFETY: a map value; only addresses are formed here.
    let (wake_bytes, woken) =
        unsafe { (&raw const (*config).wake_bytes, &raw mut (*config).woken) };
    if needs_wakeup(held_bytes, atomic::load(wake_bytes), atomic::load(woken))
        && atomic::compare_exchange(woken, 0, 1)
    {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        NO
    }
}
