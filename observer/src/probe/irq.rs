//! `irq`: hard interrupts.

use std::mem::offset_of;

use observer_ebpf::wire::{
    IRQ_DEVICE, IRQ_KINDS, IrqCpu, IrqRecord, IrqState, RecordKind, Series, Slot,
};

use super::{
    Attach, Bounds, Entries, HistogramFamily, Need, PerThread, Probe, ProbeMap, Program, RunsAt,
    Tier, burst,
};
use crate::model::{Cause, EndedBy, Event, ObjectRow, RecordRow, field};

const DEVICES: &str = "interrupts of devices";
const TIMERS: &str = "interrupts of the CPU's timer";
const CALLS: &str = "interrupts by which CPUs call functions on others";
const RESCHEDULES: &str = "interrupts by which CPUs tell others of a thread that can run";
const WORK: &str = "interrupts for delayed work";
const FLUSHES: &str = "which of them are TLB shootdowns";

/// The programs of a tier, with the hook that `$attach` makes of a tracepoint, and this behind their names.
macro_rules! programs {
    ($attach:ident, $suffix:literal) => {
        &[
            programs!(@one $attach, $suffix, "tlb_flush", 2, FLUSHES),
            programs!(@one $attach, $suffix, "irq_handler_entry", 2, DEVICES),
            programs!(@one $attach, $suffix, "irq_handler_exit", 3, DEVICES),
            programs!(@one $attach, $suffix, "local_timer_entry", 1, TIMERS),
            programs!(@one $attach, $suffix, "local_timer_exit", 1, TIMERS),
            programs!(@one $attach, $suffix, "call_function_entry", 1, CALLS),
            programs!(@one $attach, $suffix, "call_function_exit", 1, CALLS),
            programs!(@one $attach, $suffix, "call_function_single_entry", 1, CALLS),
            programs!(@one $attach, $suffix, "call_function_single_exit", 1, CALLS),
            programs!(@one $attach, $suffix, "reschedule_entry", 1, RESCHEDULES),
            programs!(@one $attach, $suffix, "reschedule_exit", 1, RESCHEDULES),
            programs!(@one $attach, $suffix, "irq_work_entry", 1, WORK),
            programs!(@one $attach, $suffix, "irq_work_exit", 1, WORK),
        ]
    };
    (@one $attach:ident, $suffix:literal, $name:literal, $arguments:literal, $gives:ident) => {
        Program::new(concat!($name, $suffix), Attach::$attach($name, $arguments), $gives)
    };
}

pub(super) const PROBE: Probe = Probe {
    name: "irq",
    runs_at: RunsAt::Frequent("hard interrupt"),
    about: "Hard interrupts, by kind: of devices, of the CPU's timer, and of other CPUs, which call functions, flush \
            TLBs, or have a thread for it.",
    notes: "Counted as in /proc/interrupts (LOC, CAL, RES, IWI and the numbered ones), without those that were under \
            way when the probe was attached. The kernel counts a TLB shootdown among the function calls (CAL) and once \
            more (TLB); here it is of the kind `tlb_shootdown` alone, where the CPU flushed something. The time is that of \
            the handler: the way into the kernel and back is not in it, and neither are soft interrupts that the kernel \
            handles afterwards. The histograms count an interrupt for the cgroup of the thread that had the CPU: idle \
            CPUs are in the root cgroup. A record exists where that thread is one of the target. Interrupts that cannot \
            be masked (NMI) and those of a hypervisor have no tracepoint. The kinds are those of x86.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints",
            needs: &[Need::OwnBtf, Need::Tracepoint("local_timer_entry")],
            reads: &[],
            programs: programs!(TpBtf, ""),
        },
        Tier {
            name: "raw_tracepoint",
            about: "raw tracepoints, tasks read by helper calls",
            needs: &[Need::Tracepoint("local_timer_entry")],
            reads: &[],
            programs: programs!(RawTracepoint, "_raw"),
        },
    ],
    records: &[&IRQ, &IRQ_BURST],
    histograms: &[HistogramFamily {
        name: "irq_duration",
        help: "Time in a hard interrupt, by kind, counted for the task that had the CPU",
        labels: &["kind"],
        bounds: Bounds::STALL,
        series: &[
            (Series::IrqDevice, "device", &["device"]),
            (Series::IrqTimer, "timer", &["timer"]),
            (Series::IrqCall, "call", &["call"]),
            (Series::IrqTlbShootdown, "tlb_shootdown", &["tlb_shootdown"]),
            (Series::IrqReschedule, "reschedule", &["reschedule"]),
            (Series::IrqWork, "work", &["work"]),
        ],
        ..HistogramFamily::BASE
    }],
    per_thread: Some(
        PerThread::of::<IrqState>(["IRQ_BURSTS", "IRQ_BURSTS_STORAGE", "IRQ_BURSTS_STORED"], &[])
            .hot()
            .burst(RecordKind::IrqBurst, offset_of!(Slot<IrqState>, state.burst)),
    ),
    maps: &[ProbeMap {
        name: "IRQS",
        entries: Entries::PerCpu,
        value_bytes: size_of::<IrqCpu>(),
        begins: &[offset_of!(IrqCpu, begin_ns) / 8],
    }],
    off_by_default: Some(
        "two programs run at every hard interrupt of the host, of which CPUs that wake up threads of each other make \
         several hundred thousand a second",
    ),
    ..Probe::BASE
};

static IRQ: RecordRow = RecordRow::new::<IrqRecord>(
    "irq",
    "A hard interrupt was handled in a thread's time.",
    &[
        field!(IrqRecord.kind, "kind", "where it came from, and what for", |number| {
            Some(IRQ_KINDS.get(number as usize)?.0)
        }),
        field!(
            IrqRecord.number,
            "number",
            "number of a device's interrupt, as in /proc/interrupts"
        ),
        field!(
            IrqRecord.name,
            "name",
            "name of its handler, as in /proc/interrupts, up to 15 characters"
        ),
    ],
)
.stalls(5_000, |_| Some(Cause::IRQ))
.objects(ObjectRow { id: object, name: object_name, ended_by: |_| EndedBy::Object })
.detail(|event| object_name(event, Cause::IRQ));

static IRQ_BURST: RecordRow = burst::row::<{ RecordKind::IrqBurst as u16 }>(
    "irq_burst",
    "Hard interrupts in a thread's time that were each below the floor of `irq`.",
    |_| Some(Cause::IRQ),
);

fn object(event: &Event, _: Cause) -> Option<u32> {
    let IrqRecord { kind, number, .. } = event.record()?;
    Some(super::object_id(&(kind, number)))
}

fn object_name(event: &Event, _: Cause) -> String {
    let Some(IrqRecord { kind, number, name, .. }) = event.record() else { return String::new() };
    match IRQ_KINDS.get(kind as usize) {
        Some((kind_name, _)) if kind != IRQ_DEVICE => kind_name.replace('_', " "),
        _ => format!("{} (interrupt {number})", super::comm(&name)),
    }
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{COMM_LEN, IRQ_TLB_SHOOTDOWN};

    use super::*;
    use crate::probe::{DecodeError, decode, tests::header};

    #[test]
    fn a_record_names_its_kind_and_its_device() {
        let mut name = [0; COMM_LEN];
        name[..4].copy_from_slice(b"nvme");
        let record =
            |kind| IrqRecord { header: header(RecordKind::Irq, 0), kind, number: 36, name };
        let said = |kind| {
            let event = decode(bytemuck::bytes_of(&record(kind)))?;
            assert_eq!(event.cause(), Some(Cause::IRQ));
            Ok((event.row().detail)(&event))
        };
        assert_eq!(said(IRQ_DEVICE), Ok("nvme (interrupt 36)".into()));
        assert_eq!(said(IRQ_TLB_SHOOTDOWN), Ok("tlb shootdown".into()));
        assert_eq!(said(IRQ_KINDS.len() as u32), Err(DecodeError::BadField));
        for (at, (name, series)) in IRQ_KINDS.iter().enumerate() {
            let part = PROBE.histograms[0].series.iter().find(|(of, ..)| of == series);
            assert_eq!(part.map(|(_, part, _)| part), Some(name), "{at}");
        }
    }
}
