//! Counting a duration: at full resolution for the target and for everything else, by octaves for
//! the cgroup.

use core::ptr::{addr_of, addr_of_mut};

use observer_ebpf::wire::{
    BUCKET_SLOTS, CGROUP_ENTRIES, CGROUP_FREE_PLACES, CGROUP_PROBES, CGROUP_ROW_MASK,
    CGROUP_ROW_OTHER, CGROUP_TICKET_PENDING, CgroupEntry, CgroupHistogram, CgroupTable, Histogram,
    LossKind, OCTAVES, SCOPES, SERIES, Series, ThreadCgroup, bucket_index, cgroup_home,
    octave_of_bucket,
};

use crate::{
    atomic, config, emit,
    kernel::Task,
    maps::{CGROUP_HISTOGRAMS, CGROUPS, HISTOGRAMS},
};

/// Adds a duration to a series of the target, or of the rest of the host and the task's cgroup.
///
/// Plain additions suffice, also in programs that can be preempted (fentry and fexit; with
/// `PREEMPT_RT` tracepoints as well): one program alone counts a series, it stays on its CPU, and the
/// kernel never runs it a second time on a CPU on which it has not ended yet
/// ([`LossKind::ProgramMissed`]). `cgroup` is what the program knows about the thread's cgroup, if it
/// has state of the thread.
#[inline(always)]
pub(crate) fn observe(
    task: Task,
    cgroup: Option<&mut ThreadCgroup>,
    is_target: bool,
    series: Series,
    duration_ns: u64,
) {
    count::<false>(task, cgroup, is_target, series, duration_ns);
}

/// Like [`observe`], for programs that the kernel runs a second time on a CPU while the first run is
/// preempted (cgroup hooks).
#[inline(always)]
pub(crate) fn observe_reentrant(task: Task, is_target: bool, series: Series, duration_ns: u64) {
    count::<true>(task, None, is_target, series, duration_ns);
}

#[inline(always)]
fn add<const REENTRANT: bool>(word: *mut u64, number: u64) {
    if REENTRANT {
        atomic::add(word, number);
    } else {
        // SAFETY: `word` points into a map value that only this program writes on this CPU.
        unsafe { *word = (*word).wrapping_add(number) };
    }
}

#[inline(always)]
fn raise<const REENTRANT: bool>(word: *mut u64, number: u64) {
    // Each failure means that another run raised it within these few instructions.
    const ATTEMPTS: u32 = 8;
    if !REENTRANT {
        // SAFETY: as in `add`.
        if unsafe { *word } < number {
            // SAFETY: as in `add`.
            unsafe { *word = number };
        }
        return;
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let found = atomic::load(word);
        if found >= number || atomic::compare_exchange(word, found, number) {
            return;
        }
        attempt += 1;
    }
}

#[inline(always)]
fn count<const REENTRANT: bool>(
    task: Task,
    cgroup: Option<&mut ThreadCgroup>,
    is_target: bool,
    series: Series,
    duration_ns: u64,
) {
    let cpu = emit::cpu();
    let Some(histogram) = histogram(cpu, is_target, series) else { return };
    let bucket = atomic::low_byte(bucket_index(duration_ns));
    if bucket >= BUCKET_SLOTS {
        return;
    }
    // SAFETY: a map value; only addresses are formed here.
    let (sum, max, bucket_count) = unsafe {
        (
            addr_of_mut!((*histogram).sum_ns),
            addr_of_mut!((*histogram).max_ns),
            addr_of_mut!((*histogram).buckets[bucket]),
        )
    };
    add::<REENTRANT>(sum, duration_ns);
    raise::<REENTRANT>(max, duration_ns);
    add::<REENTRANT>(bucket_count, 1);
    if !is_target && config::cgroup_rows() != 0 {
        count_for_cgroup::<REENTRANT>(task, cgroup, (cpu, series, bucket), duration_ns);
    }
}

/// This CPU's histogram of the target, or of everything else. `None` for a CPU that was not a
/// possible CPU when the map was created.
#[inline(always)]
fn histogram(cpu: u32, is_target: bool, series: Series) -> Option<*mut Histogram> {
    let row = cpu * SCOPES as u32 + u32::from(is_target);
    HISTOGRAMS.get_ptr_mut(row * SERIES as u32 + series as u32)
}

/// Adds to the row of the task's cgroup.
#[inline(always)]
fn count_for_cgroup<const REENTRANT: bool>(
    task: Task,
    cgroup: Option<&mut ThreadCgroup>,
    (cpu, series, bucket): (u32, Series, usize),
    duration_ns: u64,
) {
    let stripe = cpu >> config::cgroup_stripe_shift();
    let first = stripe * config::cgroup_rows();
    let row = |ticket: u32| {
        let row = first + (ticket & CGROUP_ROW_MASK as u32);
        CGROUP_HISTOGRAMS.get_ptr_mut(row * SERIES as u32 + series as u32)
    };
    let ticket = match cgroup {
        Some(cgroup) => {
            let ticket = remembered_ticket(task, cgroup);
            let Some(histogram) = row(ticket) else { return };
            // SAFETY: a map value.
            if unsafe { atomic::load(addr_of!((*histogram).ticket)) } == u64::from(ticket) {
                ticket
            } else {
                // The row was given to another cgroup, or the cgroup may have got one meanwhile.
                cgroup.css_set = 0;
                CGROUP_ROW_OTHER as u32
            }
        }
        None => ticket_of(task.cgroup_id()),
    };
    let Some(histogram) = row(ticket) else { return };
    let octave = atomic::low_byte(octave_of_bucket(bucket));
    if octave >= OCTAVES {
        return;
    }
    // SAFETY: a map value; only addresses are formed here.
    let (sum, count) =
        unsafe { (addr_of_mut!((*histogram).sum_ns), addr_of_mut!((*histogram).octaves[octave])) };
    if config::cgroup_stripe_shift() == 0 {
        add::<REENTRANT>(sum, duration_ns);
        add::<REENTRANT>(count, 1);
    } else {
        add::<true>(sum, duration_ns);
        add::<true>(count, 1);
    }
}

/// The ticket of the task's cgroup, looked up again only when its `css_set` changed: following four
/// pointers costs more than the rest of a context switch's bookkeeping.
#[inline(always)]
fn remembered_ticket(task: Task, cgroup: &mut ThreadCgroup) -> u32 {
    let css_set = task.css_set();
    if cgroup.css_set != css_set {
        cgroup.ticket = ticket_of(task.cgroup_id());
        cgroup.css_set = if cgroup.ticket == 0 { 0 } else { css_set };
    }
    cgroup.ticket
}

/// The ticket of a cgroup's row, fetched at its first event; the ticket of the row for all other
/// cgroups when no row is free, and 0 while another CPU is fetching it.
///
/// A function of its own: it runs once for each thread and cgroup, and would be in every program
/// several times.
#[inline(never)]
fn ticket_of(id: u64) -> u32 {
    let Some(table) = CGROUPS.get_ptr_mut(0) else { return 0 };
    let home = cgroup_home(id);
    let mut free = CGROUP_ENTRIES;
    let mut probe = 0;
    while probe < CGROUP_PROBES {
        let at = home.wrapping_add(probe) & (CGROUP_ENTRIES - 1);
        let owner = atomic::load(entry(table, at).cast());
        if owner == id {
            return ticket_of_entry(table, at);
        }
        if owner == 0 && free == CGROUP_ENTRIES {
            free = at;
        }
        probe += 1;
    }
    if free != CGROUP_ENTRIES {
        let at = free & (CGROUP_ENTRIES - 1);
        let id_word = entry(table, at).cast::<u64>();
        if atomic::compare_exchange(id_word, 0, id) || atomic::load(id_word) == id {
            return ticket_of_entry(table, at);
        }
    }
    emit::lose(LossKind::CgroupSlot, false);
    other_ticket(table)
}

#[inline(always)]
fn entry(table: *mut CgroupTable, at: usize) -> *mut CgroupEntry {
    // SAFETY: only an address is formed; `at` is below the number of entries.
    unsafe { addr_of_mut!((*table).entries).cast::<CgroupEntry>().add(at) }
}

#[inline(always)]
fn other_ticket(table: *mut CgroupTable) -> u32 {
    // SAFETY: a map value.
    unsafe { atomic::load(addr_of!((*table).other_ticket)) as u32 }
}

#[inline(always)]
fn ticket_of_entry(table: *mut CgroupTable, at: usize) -> u32 {
    // SAFETY: addresses within a map value.
    let (word, taken, given, free) = unsafe {
        (
            addr_of_mut!((*entry(table, at)).ticket),
            addr_of_mut!((*table).taken),
            addr_of!((*table).given),
            addr_of!((*table).free).cast::<u64>(),
        )
    };
    let ticket = atomic::load(word);
    if ticket == CGROUP_TICKET_PENDING {
        return 0;
    }
    if ticket != 0 {
        return ticket as u32;
    }
    if !atomic::compare_exchange(word, 0, CGROUP_TICKET_PENDING) {
        return 0;
    }
    // Other CPUs fetch rows for other cgroups at the same time.
    const ATTEMPTS: u32 = 8;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let next = atomic::load(taken);
        if next == atomic::load(given) {
            atomic::store(word, 0);
            emit::lose(LossKind::CgroupSlot, false);
            return other_ticket(table);
        }
        if atomic::compare_exchange(taken, next, next.wrapping_add(1)) {
            // Read after the exchange, which orders it behind user space's write.
            // SAFETY: the mask keeps it within the ring.
            let ticket =
                atomic::load(unsafe { free.add(next as usize & (CGROUP_FREE_PLACES - 1)) });
            atomic::store(word, ticket);
            return ticket as u32;
        }
    }
    atomic::store(word, 0);
    0
}

const _: () = assert!(size_of::<CgroupHistogram>().is_power_of_two());
