//! Kinds of record that stand for several short stalls.

use observer_ebpf::wire::BurstRecord;

use crate::clock::MonoNanos;
use crate::model::{Cause, Event, Field, RecordRow, Summed, field};
use crate::text::{count, duration};

/// Bursts with less time in stalls than this are dropped, nanoseconds: a record costs about as much.
const FLOOR_NS: u64 = 1_000;

type AnyKind = BurstRecord<0>;

const FIELDS: &[Field] = &[
    field!(
        AnyKind.first_ns,
        "first_ns",
        "begin of the first stall; `end_ns` is the end of the last one, and `duration_ns` the time in all \
         of them together"
    ),
    field!(AnyKind.count, "count", "how many stalls"),
];

/// The row of a kind that sums up short stalls of one cause.
pub(super) const fn row<const KIND: u16>(
    name: &'static str,
    about: &'static str,
    cause: fn(&Event) -> Option<Cause>,
) -> RecordRow {
    RecordRow::new::<BurstRecord<KIND>>(name, about, FIELDS)
        .stalls(FLOOR_NS, cause)
        .sums(summed::<KIND>)
        .detail(detail::<KIND>)
}

fn summed<const KIND: u16>(event: &Event) -> Option<Summed> {
    let record: BurstRecord<KIND> = event.record()?;
    Some(Summed { first: MonoNanos(record.first_ns), count: record.count })
}

fn detail<const KIND: u16>(event: &Event) -> String {
    let Some(Summed { first, count: stalls }) = summed::<KIND>(event) else { return String::new() };
    format!(
        "{} short ones within {}",
        count(u64::from(stalls)),
        duration(event.end.since(first) as f64)
    )
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{FaultBurstRecord, RecordKind};

    use super::*;
    use crate::model::Stall;
    use crate::probe::{decode, tests::header};

    #[test]
    fn a_burst_is_a_stall_of_its_cause_whose_length_is_the_time_in_it() {
        let header = header(RecordKind::FaultBurst, 0);
        let record = FaultBurstRecord { header, first_ns: 100, count: 7, reserved: 0 };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.cause(), Some(Cause::FAULT_MINOR));
        assert_eq!(event.summed(), Some(Summed { first: MonoNanos(100), count: 7 }));
        assert_eq!(event.row().about.is_empty(), (event.row().detail)(&event).is_empty());
        let stall = Stall::of_event(&event).next().expect("a stall");
        assert_eq!((stall.duration_ns(), stall.first()), (300, MonoNanos(100)));
        assert_eq!(stall.end, MonoNanos(900));
    }
}
