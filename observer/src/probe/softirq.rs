//! `softirq`: soft interrupts.

use std::mem::offset_of;

use observer_ebpf::wire::{SOFTIRQ_VECTORS, Series, SoftirqRecord, SoftirqState};

use super::{
    Attach, Bounds, Entries, HistogramFamily, Need, Probe, ProbeMap, Program, RunsAt, Tier,
};
use crate::model::{Cause, RecordRow, field};

const BEGINS: &str = "begins of soft interrupts";
const ENDS: &str = "ends of soft interrupts";

pub(super) const PROBE: Probe = Probe {
    name: "softirq",
    runs_at: RunsAt::Frequent("soft interrupt"),
    about: "Soft interrupts, by vector: packets, timers, RCU and others that the kernel handles in \
            the time of the running thread.",
    notes: "Counted as in /proc/softirqs, without those that were under way when the probe was \
            attached. The time includes hard interrupts that arrive meanwhile. The histograms count \
            a soft interrupt for the cgroup of the thread that had the CPU: ksoftirqd and idle CPUs \
            are in the root cgroup. A record exists where that thread is one of the target. On a \
            kernel with PREEMPT_RT a soft interrupt can itself be preempted; its time includes that. If \
            another one begins on its CPU meanwhile, the first one is the loss `begin_without_end`.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf, Need::Tracepoint("softirq_entry")],
            reads: &[],
            programs: &[
                Program::new("softirq_entry", Attach::TpBtf("softirq_entry", 1), BEGINS),
                Program::new("softirq_exit", Attach::TpBtf("softirq_exit", 1), ENDS),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[],
            reads: &[],
            programs: &[
                Program::new(
                    "softirq_entry_raw",
                    Attach::RawTracepoint("softirq_entry", 1),
                    BEGINS,
                ),
                Program::new("softirq_exit_raw", Attach::RawTracepoint("softirq_exit", 1), ENDS),
            ],
        },
    ],
    records: &[&SOFTIRQ],
    histograms: &[HistogramFamily {
        name: "softirq_duration",
        help: "Time in a soft interrupt, by vector, counted for the task that had the CPU",
        labels: &["vector"],
        bounds: Bounds::STALL,
        series: &[
            (Series::SoftirqTimer, "timer", &["timer"]),
            (Series::SoftirqNetTx, "net_tx", &["net_tx"]),
            (Series::SoftirqNetRx, "net_rx", &["net_rx"]),
            (Series::SoftirqBlock, "block", &["block"]),
            (Series::SoftirqSched, "sched", &["sched"]),
            (Series::SoftirqRcu, "rcu", &["rcu"]),
            (Series::SoftirqOther, "other", &["other"]),
        ],
        ..HistogramFamily::BASE
    }],
    maps: &[ProbeMap {
        name: "SOFTIRQS",
        entries: Entries::PerCpu,
        value_bytes: size_of::<SoftirqState>(),
        begins: &[offset_of!(SoftirqState, begin_ns) / 8],
    }],
    off_by_default: Some(
        "two programs run at every soft interrupt of the host, of which a busy network makes \
         several hundred thousand a second",
    ),
    ..Probe::BASE
};

static SOFTIRQ: RecordRow = RecordRow::new::<SoftirqRecord>(
    "softirq",
    "A soft interrupt was handled in a thread's time.",
    &[field!(SoftirqRecord.vector, "vector", "what it was for, as in /proc/softirqs", |number| {
        Some(SOFTIRQ_VECTORS.get(number as usize)?.0)
    })],
)
.stalls(5_000, |_| Some(Cause::SOFTIRQ))
.detail(|event| {
    let vector =
        event.record::<SoftirqRecord>().map_or(usize::MAX, |record| record.vector as usize);
    SOFTIRQ_VECTORS.get(vector).map_or("unknown vector", |(name, _)| name).to_owned()
});

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::RecordKind;

    use super::*;
    use crate::probe::{DecodeError, decode, tests::header};

    #[test]
    fn a_record_names_its_vector() {
        let record =
            |vector| SoftirqRecord { header: header(RecordKind::Softirq, 0), vector, reserved: 0 };
        let event = decode(bytemuck::bytes_of(&record(3))).expect("decodes");
        assert_eq!(event.cause(), Some(Cause::SOFTIRQ));
        assert_eq!((event.row().detail)(&event), "net_rx");
        assert_eq!(decode(bytemuck::bytes_of(&record(10))), Err(DecodeError::BadField));
    }
}
