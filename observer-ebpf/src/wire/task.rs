//! Life and death of the target's tasks, and what each probe knows about a thread.

use bytemuck::{Pod, Zeroable};

use super::{Burst, COMM_LEN, Header, Record, RecordKind};

/// Header flag: fork or clone; the header's thread is the child.
pub const TASK_FORK: u16 = 1;
/// Header flag: execve succeeded.
pub const TASK_EXEC: u16 = 2;
/// Header flag: the thread exits.
pub const TASK_EXIT: u16 = 4;
/// Header flag: the process got the name of the target, or executes its program, and belongs to the
/// target from now on.
pub const TASK_JOIN: u16 = 8;

/// A thread of the target was born, executed another program, or died, or a process joined the
/// target.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TaskRecord {
    /// Common part.
    pub header: Header,
    /// The parent thread for a fork; 0 otherwise.
    pub parent_tid: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Command name, NUL padded.
    pub comm: [u8; COMM_LEN],
}

impl Record for TaskRecord {
    const KIND: u16 = RecordKind::Task as u16;
}

/// Whose an entry of a table of threads is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Owner {
    /// The thread; 0 where the entry is free.
    pub tid: u32,
    /// The process of that thread.
    pub tgid: u32,
}

/// An entry of a table of threads, found at `tid & (entries - 1)`.
///
/// A direct-mapped table instead of a hash map: a hash look-up costs more than the rest of the
/// context-switch program together. If the state of a live thread is overwritten because the id of
/// another thread belongs to the same entry, that is counted as
/// [`LossKind::TaskSlot`](super::LossKind::TaskSlot); with `pid_max` at or below the table size it
/// cannot happen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot<S> {
    /// Whose entry it is.
    pub owner: Owner,
    /// What a probe knows about that thread.
    pub state: S,
}

/// A value in a thread's task-local storage, where a probe's state is there.
///
/// User space cannot clear the storage of all threads. Instead it changes
/// [`Config::epoch`](super::Config::epoch), and a state of another epoch is empty.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored<S> {
    /// The epoch that `state` belongs to.
    pub epoch: u64,
    /// What a probe knows about the thread.
    pub state: S,
}

/// The row of a thread's cgroup, as last looked up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ThreadCgroup {
    /// The thread's `css_set` at the look-up; 0 when there was none.
    pub css_set: u64,
    /// Ticket of the histogram row of the cgroup behind `css_set`.
    pub ticket: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// What the `runqueue` probe knows about a thread. With its owner it fills one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RunqueueState {
    /// The thread's `sched_info.run_delay` as of its last arrival on a CPU.
    pub run_delay_ns: u64,
    /// The thread's involuntary context switches as of its last arrival.
    pub involuntary_switches: u64,
    /// When the thread became able to run; 0 when it does not wait. Only in the tiers that keep
    /// their own clock.
    pub runnable_ns: u64,
    /// 1 when the wait since `runnable_ns` began by preemption.
    pub preempted: u32,
    /// 1 when the thread was moved to another run queue in its sleep, so that what the kernel counts
    /// as its next wait is not a wait.
    pub moved_asleep: u32,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
    /// Whose the first two are: [`wait_seal`] of them where threads can share an entry, otherwise the address
    /// of the thread's `task_struct`.
    pub seal: u64,
}

/// Depends on the thread, by the address of its `task_struct`, and on what is stored about its waits. Two
/// threads that share an entry of a table can write it at the same time, on two CPUs; what is then a mixture
/// of both has another seal.
#[inline(always)]
#[must_use]
pub const fn wait_seal(task: u64, run_delay_ns: u64, involuntary_switches: u64) -> u64 {
    let mixed = run_delay_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ involuntary_switches.wrapping_mul(0xbf58_476d_1ce4_e5b9)) ^ task
}

/// What the `fault` probe knows about a thread. With its owner, what every fault needs fills one cache
/// line, and what only short faults of the target need is in the next one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FaultState {
    /// When the current page fault began; 0 outside one.
    pub begin_ns: u64,
    /// Address of the current page fault.
    pub address: u64,
    /// Length of the last fault, while it may still turn out to be major; 0 otherwise.
    pub minor_ns: u64,
    /// 1 when the current fault is known to be major.
    pub is_major: u32,
    /// 1 when it was taken in kernel mode.
    pub in_kernel: u32,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
    /// Bits `ATTEMPT_*` of the last attempt to handle the current fault. Only in the tiers that see
    /// the fault handler.
    pub attempt: u32,
    /// What became of the fault of `minor_ns`: [`MINOR_SENT`](super::MINOR_SENT) or
    /// [`MINOR_IN_BURST`](super::MINOR_IN_BURST), or 0.
    pub minor_sent: u32,
    /// Minor faults below the floor.
    pub burst: Burst,
    /// Fills the second cache line.
    pub reserved: [u64; 4],
}

/// What the `mm_syscall` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct MmSyscallState {
    /// When the current memory-management system call began; 0 outside one.
    pub begin_ns: u64,
    /// Address of its registers, for the end that does not get them (kretprobe).
    pub registers: u64,
    /// The thread's cgroup.
    pub cgroup: ThreadCgroup,
    /// Calls below the floor.
    pub burst: Burst,
}

/// What the `reclaim` probe knows about a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReclaimState {
    /// When the current reclaim began; 0 outside one.
    pub reclaim_ns: u64,
    /// When the current compaction run began; 0 outside one.
    pub compaction_ns: u64,
    /// Order of the allocation that reclaims.
    pub order: u32,
    /// Its flags (`gfp_t`).
    pub gfp_flags: u32,
}

const _: () = assert!(size_of::<Slot<RunqueueState>>() == 64);
const _: () = assert!(size_of::<Slot<FaultState>>() == 128);

/// Largest size of a table of threads. A power of two; the loader uses the next power of two
/// above `pid_max` where that is smaller.
pub const TASK_SLOTS_MAX: u32 = 1 << 17;

/// Largest `pid_max` of the kernel (`PID_MAX_LIMIT`, include/linux/threads.h): sizes the bitmap of
/// target processes, 512 KiB.
pub const PID_MAX_LIMIT: u32 = 1 << 22;

#[cfg(test)]
mod tests {
    use super::wait_seal;

    /// The words of two threads that write one entry at the same time, each in the order of its
    /// stores.
    fn written(first: [u64; 3], second: [u64; 3], order: u32) -> Option<[u64; 3]> {
        let (mut entry, mut done) = ([0; 3], [0; 2]);
        for step in 0..6 {
            let who = (order >> step & 1) as usize;
            let at = done[who];
            if at == 3 {
                return None;
            }
            entry[at] = [first, second][who][at];
            done[who] += 1;
        }
        Some(entry)
    }

    #[test]
    fn no_order_of_stores_gives_one_thread_what_belongs_to_the_other() {
        const TASKS: [u64; 2] = [0xffff_8881_0234_0000, 0xffff_8881_0234_1cc0];
        let thread = |task, delay, switches| [delay, switches, wait_seal(task, delay, switches)];
        let mut mixed = 0;
        for (delay, switches) in [(1_000, 3), (1_000, 4), (7_000_000_000, 4), (0, 4), (7_000, 0)] {
            let threads = [thread(TASKS[0], 1_000, 3), thread(TASKS[1], delay, switches)];
            for entry in (0..64).filter_map(|order| written(threads[0], threads[1], order)) {
                for (task, own) in TASKS.into_iter().zip(threads) {
                    let holds = entry[2] == wait_seal(task, entry[0], entry[1]);
                    assert!(!holds || entry == own, "{entry:?} is taken for {own:?}");
                    mixed += u32::from(!holds && entry != threads[0] && entry != threads[1]);
                }
            }
        }
        assert!(mixed > 0, "some orders mix the two");
    }
}
