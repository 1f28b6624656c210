//! `stack`: the stacks of threads that were away from the CPU for long.

use std::mem::offset_of;

use observer_ebpf::wire::{Counter, STACK_PREEMPTED, Slot, StackRecord, StackState};

use super::{
    Attach, Members, Need, Numbers, PerThread, Probe, Program, RunsAt, SummaryNumbers, Tier,
};
use crate::model::{Field, RecordRow, field};

const SWITCH: &str = "stacks of threads that leave the CPU";

pub(super) const PROBE: Probe = Probe {
    name: "stack",
    runs_at: RunsAt::Frequent("context switch"),
    about: "Stacks of the target's threads, in the kernel and in user space, where they left the CPU for a \
            millisecond or more.",
    notes: "A record exists each time a thread of the target runs again after it was away for at least the \
            floor of `stack` (`--stacks TIME` sets it): it slept, or waited for a CPU, or both. The stacks are kept \
            in the kernel, each once, and a record has their ids; `observer stacks` shows them with the names of \
            functions, by cause. `counters.absences` has the shorter ones as well: together the context switches of the \
            threads. The part in user space is found by frame pointers: code without them (many \
            distributions' libraries, C and C++ built without -fno-omit-frame-pointer) shows the innermost function, \
            and maybe what the frame pointer happens to hold. The kernel's part is complete. Where another stack has the place \
            of one in the table of 16,384, its id is -17; of a thread without memory of its own, -14.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "the context switch, BTF-typed",
            needs: &[Need::OwnBtf, Need::Tracepoint("sched_switch")],
            reads: &[Members::State],
            programs: &[Program::new(
                "sched_switch_stack",
                Attach::TpBtf("sched_switch", 3),
                SWITCH,
            )],
        },
        Tier {
            name: "raw_tracepoint",
            about: "the context switch, tasks read by helper calls",
            needs: &[],
            reads: &[Members::State],
            programs: &[Program::new(
                "sched_switch_stack_raw",
                Attach::RawTracepoint("sched_switch", 3),
                SWITCH,
            )],
        },
    ],
    records: &[&STACK],
    in_summary: &[SummaryNumbers {
        name: "absences",
        numbers: Numbers::Counters(&[(Counter::TargetAbsences as usize, &[])]),
        zeros: true,
    }],
    per_thread: Some(
        PerThread::of::<StackState>(
            ["STACK_STATES", "STACK_STATES_STORAGE", "STACK_STATES_STORED"],
            &[offset_of!(Slot<StackState>, state.begin_ns) / 8],
        )
        .of_arguments(),
    ),
    off_by_default: Some(
        "the stack of each thread of the target is read whenever it leaves the CPU, which takes a microsecond or \
         two each time; `observer run --stacks TIME` turns it on",
    ),
    ..Probe::BASE
};

/// The shortest absence of which a stack is recorded, unless another one is asked for.
const FLOOR_NS: u64 = 1_000_000;

static STACK: RecordRow = RecordRow::new::<StackRecord>(
    "stack",
    "A thread runs again that was away from the CPU: it slept, waited for a CPU, or both.",
    &[
        Field::flag(
            "preempted",
            STACK_PREEMPTED,
            "the thread was preempted: it could have run all the time",
        ),
        field!(
            StackRecord.kernel_stack,
            "kernel_stack",
            "id of the kernel's part of its stack in stacks.json; negative where there is none: -17 where another \
             stack has its place"
        ),
        field!(
            StackRecord.user_stack,
            "user_stack",
            "id of the part in user space; negative where there is none: -14 of a thread without memory of its own"
        ),
    ],
)
.floor(FLOOR_NS);

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::probe::{decode, tests::header};

    #[test]
    fn a_record_is_no_stall_and_says_its_stacks() {
        let record = StackRecord {
            header: header(RecordKind::Stack, STACK_PREEMPTED),
            kernel_stack: 7,
            user_stack: -14,
        };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.cause(), None);
        assert_eq!((event.row().detail)(&event), "preempted true, kernel_stack 7, user_stack -14");
    }
}
