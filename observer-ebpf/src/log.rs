//! What the programs say about an event that they give up on. Only reached with `LOG_LOSSES`: the
//! verifier removes these functions otherwise.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_log_ebpf::debug;
use observer_ebpf::wire::LossKind;

/// Process and thread.
type Ids = (u32, u32);

/// One function for each message: the length of a message has to be a constant, and its parts need
/// much of a program's stack.
macro_rules! messages {
    ($($name:ident: $text:literal;)*) => {$(
        #[inline(never)]
        fn $name(tgid: u32, tid: u32) {
            debug!((), target: "", $text, tid, tgid);
        }
    )*};
}

// The first word is the loss in every output, and what follows is its sentence in the table of
// losses (observer/src/model/loss.rs).
messages! {
    task_slot: "task_slot: two live threads shared an entry of a table of threads, and one \
                overwrote the other; noticed while thread {} of process {} ran";
    thread_storage: "thread_storage: the kernel had no memory at that moment for what a probe \
                     knows about a thread; thread {} of process {}";
    cgroup_slot: "cgroup_slot: there were more cgroups than the metrics have room for; these \
                  stalls are in one common row; noticed while thread {} of process {} ran";
    socket_slot: "socket_slot: there were more sockets than the table has room for; thread {} of \
                  process {}";
    end_without_begin: "end_without_begin: the begin happened before the probe was attached, or \
                        was lost; thread {} of process {}";
    compat_syscall: "compat_syscall: system calls of the 32-bit ABI are not watched; thread {} of \
                     process {}";
    begin_without_end: "begin_without_end: the kernel skipped the program at the end of a call or of \
                        a wait for a lock, the call never returned, or another interrupt came in the \
                        middle of one; noticed while thread {} of process {} ran";
    sleep_booked_as_wait: "sleep_booked_as_wait: the kernel counted time asleep as time on the run \
                           queue (Linux 6.12 and later); thread {} of process {}";
    switch_missed: "switch_missed: the kernel switched to a thread without an event; thread {} of \
                    process {}";
    throttle_slot: "throttle_slot: the threads of more cgroups were throttled on a CPU than are kept; \
                    thread {} of process {}";
    connection_slot: "connection_slot: there were more connections than the table has room for; \
                      thread {} of process {}";
}

/// The thread that runs this program.
#[inline(always)]
pub(crate) fn current() -> Ids {
    let ids = bpf_get_current_pid_tgid();
    ((ids >> 32) as u32, ids as u32)
}

/// Something other than a record was lost.
#[inline(always)]
pub(crate) fn lost(kind: LossKind, (tgid, tid): Ids) {
    match kind {
        LossKind::TaskSlot => task_slot(tgid, tid),
        LossKind::ThreadStorage => thread_storage(tgid, tid),
        LossKind::CgroupSlot => cgroup_slot(tgid, tid),
        LossKind::SocketSlot => socket_slot(tgid, tid),
        LossKind::EndWithoutBegin => end_without_begin(tgid, tid),
        LossKind::CompatSyscall => compat_syscall(tgid, tid),
        LossKind::BeginWithoutEnd => begin_without_end(tgid, tid),
        LossKind::SleepBookedAsWait => sleep_booked_as_wait(tgid, tid),
        LossKind::ConnectionSlot => connection_slot(tgid, tid),
        LossKind::SwitchMissed => switch_missed(tgid, tid),
        LossKind::ThrottleSlot => throttle_slot(tgid, tid),
        // A program that was skipped says nothing.
        LossKind::ProgramMissed => {}
    }
}

/// The ring had no room for a record about this thread. User space replaces the number of its kind
/// by the kind's name.
#[inline(never)]
pub(crate) fn ring_full(kind: u32, tgid: u32, tid: u32) {
    debug!((), target: "", "{}: the ring buffer was full; thread {} of process {}", kind, tid, tgid);
}
