//! Numbers and names in words, of a run.

use crate::model::{Event, EventKind, FloorChange, MmCall, RunInfo, Tid};
pub use crate::text::{bytes, clean, count, duration, instant, percent};

/// A thread by name and id: `worker-1 (101)`.
#[must_use]
pub fn thread(run: &RunInfo, tid: Tid) -> String {
    let name = run.thread_names.get(&tid.0).or_else(|| run.target_processes.get(&tid.0));
    name.map_or_else(|| tid.0.to_string(), |name| format!("{} ({})", clean(name, 16), tid.0))
}

/// How the table of advice in `include/uapi/asm-generic/mman-common.h` names it.
fn advice(number: u32) -> Option<&'static str> {
    Some(match number {
        0 => "NORMAL",
        1 => "RANDOM",
        2 => "SEQUENTIAL",
        3 => "WILLNEED",
        4 => "DONTNEED",
        8 => "FREE",
        9 => "REMOVE",
        10 => "DONTFORK",
        11 => "DOFORK",
        12 => "MERGEABLE",
        13 => "UNMERGEABLE",
        14 => "HUGEPAGE",
        15 => "NOHUGEPAGE",
        16 => "DONTDUMP",
        17 => "DODUMP",
        18 => "WIPEONFORK",
        19 => "KEEPONFORK",
        20 => "COLD",
        21 => "PAGEOUT",
        22 => "POPULATE_READ",
        23 => "POPULATE_WRITE",
        24 => "DONTNEED_LOCKED",
        25 => "COLLAPSE",
        100 => "HWPOISON",
        102 => "GUARD_INSTALL",
        103 => "GUARD_REMOVE",
        _ => return None,
    })
}

/// What an event's fields say beyond its cause, thread and length.
#[must_use]
pub fn detail(kind: &EventKind) -> String {
    match kind {
        EventKind::Runqueue { preempted, ran_tid, ran_comm, .. } => {
            let began = if *preempted { "preempted" } else { "woken" };
            if ran_tid.0 == 0 {
                format!("{began}; the CPU was idle")
            } else {
                format!("{began}; ran instead: {} ({})", clean(ran_comm, 16), ran_tid.0)
            }
        }
        EventKind::Fault { kernel_mode, address, .. } => {
            let mode = if *kernel_mode { "kernel" } else { "user" };
            format!("{mode} mode, at {address:#x}")
        }
        EventKind::Reclaim { reclaimed_pages, order, gfp_flags, .. } => {
            format!("{} pages, order {order}, gfp {gfp_flags:#x}", count(*reclaimed_pages))
        }
        EventKind::Compaction { status } => format!("result {status}"),
        EventKind::MmSyscall { call, length_bytes, result, argument, .. } => {
            let mut text = call.name().to_owned();
            if *call == MmCall::Madvise {
                match advice(*argument) {
                    Some(name) => text += &format!("({name})"),
                    None => text += &format!("({argument})"),
                }
            }
            if *call != MmCall::Brk {
                text += &format!(" {}", bytes(*length_bytes));
            }
            // Addresses of mmap are positive; errors lie in -4095..0.
            if (-4095..0).contains(result) {
                text += &format!(", failed with errno {}", -result);
            }
            text
        }
        EventKind::SocketReleased { accepted, .. } => {
            if *accepted { "accepted" } else { "created" }.to_owned()
        }
        EventKind::FdFailure { call, errno } => format!("{call}: errno {errno}"),
        EventKind::Fork { comm, .. } | EventKind::Exec { comm } | EventKind::Exit { comm } => {
            clean(comm, 16)
        }
        EventKind::Floor(FloorChange { record, old_ns, new_ns, reason }) => format!(
            "{} from {} to {} ({})",
            record.name(),
            duration(*old_ns as f64),
            duration(*new_ns as f64),
            reason.name()
        ),
    }
}

/// The cause of an event's stall by name, or its kind.
#[must_use]
pub fn cause(event: &Event) -> &'static str {
    crate::model::Stall::from_event(event)
        .map_or_else(|| event.kind.name(), |stall| stall.cause.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_name_what_the_numbers_mean() {
        let call = |call, argument, result| EventKind::MmSyscall {
            call,
            address: 1,
            length_bytes: 4 << 20,
            result,
            argument,
        };
        assert_eq!(detail(&call(MmCall::Madvise, 4, 0)), "madvise(DONTNEED) 4 MiB");
        assert_eq!(detail(&call(MmCall::Madvise, 77, 0)), "madvise(77) 4 MiB");
        assert_eq!(detail(&call(MmCall::Mmap, 0, -12)), "mmap 4 MiB, failed with errno 12");
        assert_eq!(detail(&call(MmCall::Brk, 0, 0x5000)), "brk");
        let ran = |tid| EventKind::Runqueue {
            preempted: true,
            ran_tid: Tid(tid),
            ran_tgid: crate::model::Tgid(tid),
            ran_comm: "hog\u{1b}".into(),
        };
        assert_eq!(detail(&ran(123)), "preempted; ran instead: hog? (123)");
        assert_eq!(detail(&ran(0)), "preempted; the CPU was idle");
    }
}
