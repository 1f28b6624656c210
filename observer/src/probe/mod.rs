//! The probes, as data: which programs they need, how each is attached, which records they send
//! and how a record becomes an event. One file a probe, one row here.

pub mod docs;
mod fault;
mod hooks;
mod mm_syscall;
mod reclaim;
mod runqueue;
mod selection;
mod socket;
mod task;

use observer_ebpf::wire::{Header, RecordKind};

use crate::model::{Cause, Event, EventKind};
pub use hooks::{Attach, Members, Need, Program, Tier};
pub use selection::{ForcedTier, ForcedTiers, NOT_ASKED_FOR, ProbeOptions, Selection};

/// One probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Name used in every output.
    pub name: &'static str,
    /// What it watches, one sentence.
    pub about: &'static str,
    /// Where its numbers come from and what they do not cover, for the docs.
    pub notes: &'static str,
    /// Ways to attach it, the best first: the most exact, and of those the cheapest. The first whose
    /// needs the kernel meets, and whose programs it accepts, is taken.
    pub tiers: &'static [Tier],
    /// Records it sends.
    pub records: &'static [RecordKind],
    /// Stalls of the target below this are counted, not sent, nanoseconds.
    pub floor_ns: u64,
    /// Turns one of its records into an event; `None` when the bytes do not fit the layout.
    pub decode: fn(&Header, &[u8]) -> Option<EventKind>,
}

impl Probe {
    /// Causes whose stalls it sees: the rows of [`crate::model::CAUSES`] that name it.
    pub fn causes(&self) -> impl Iterator<Item = Cause> + use<> {
        let name = self.name;
        Cause::all().filter(move |cause| cause.info().probe == Some(name))
    }

    /// It sees stalls, not only counts or names.
    #[must_use]
    pub fn sees_stalls(&self) -> bool {
        self.causes().next().is_some()
    }
}

/// All probes, in the order they are attached: first what follows the target.
pub const PROBES: [&Probe; 6] = [
    &task::PROBE,
    &runqueue::PROBE,
    &fault::PROBE,
    &reclaim::PROBE,
    &mm_syscall::PROBE,
    &socket::PROBE,
];

/// The probe that sends this kind of record.
#[must_use]
pub fn of_kind(kind: RecordKind) -> Option<&'static Probe> {
    PROBES.into_iter().find(|probe| probe.records.contains(&kind))
}

/// Why a record could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than its header, or than its kind's layout.
    Short,
    /// No probe sends this kind.
    UnknownKind,
    /// A field holds a value its kind does not define.
    BadField,
}

/// Decodes one record as it lies in the ring. Pure: the same for live capture and replay.
///
/// # Errors
/// When the bytes are not a record this version knows.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = read(bytes).ok_or(DecodeError::Short)?;
    let kind = RecordKind::from_raw(header.kind).ok_or(DecodeError::UnknownKind)?;
    let probe = of_kind(kind).ok_or(DecodeError::UnknownKind)?;
    let kind = (probe.decode)(&header, bytes).ok_or(DecodeError::BadField)?;
    Ok(Event {
        end: crate::clock::MonoNanos(header.end_ns),
        duration_ns: header.duration_ns,
        tid: crate::model::Tid(header.tid),
        tgid: crate::model::Tgid(header.tgid),
        cpu: header.cpu,
        kind,
    })
}

/// Copies a record out of bytes that may be unaligned or longer.
fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    bytes.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

/// The kernel's NUL-padded command name as text.
fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{FaultRecord, RUNQUEUE_PREEMPTED, RunqueueRecord};

    use super::*;

    fn header(kind: RecordKind, flags: u16) -> Header {
        Header {
            end_ns: 900,
            duration_ns: 300,
            tid: 12,
            tgid: 10,
            kind: kind as u16,
            flags,
            cpu: 1,
        }
    }

    #[test]
    fn the_probe_of_every_cause_exists() {
        for cause in Cause::all().filter(|cause| cause.is_stall()) {
            let sees = |probe: &&Probe| probe.causes().any(|seen| seen == cause);
            assert_eq!(PROBES.iter().copied().filter(sees).count(), 1, "{cause:?}");
        }
    }

    #[test]
    fn tiers_of_a_probe_have_names_of_their_own_and_a_last_resort_without_btf() {
        for probe in PROBES {
            let mut names: Vec<&str> = probe.tiers.iter().map(|tier| tier.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), probe.tiers.len(), "{}", probe.name);
            let free = |tier: &Tier| !tier.needs.contains(&Need::OwnBtf);
            assert!(probe.tiers.iter().any(free), "{}", probe.name);
        }
    }

    #[test]
    fn every_kind_has_exactly_one_probe() {
        for kind in RecordKind::ALL {
            let owners = PROBES.iter().filter(|probe| probe.records.contains(&kind)).count();
            assert_eq!(owners, 1, "{}", kind.name());
        }
    }

    #[test]
    fn a_runqueue_record_names_what_ran_instead() {
        let mut ran_comm = [0; 16];
        ran_comm[..3].copy_from_slice(b"hog");
        let record = RunqueueRecord {
            header: header(RecordKind::Runqueue, RUNQUEUE_PREEMPTED),
            ran_tid: 7,
            ran_tgid: 7,
            ran_comm,
        };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(event.start().0, 600);
        let EventKind::Runqueue { preempted, ran_tid, ran_comm, .. } = event.kind else {
            panic!("wrong kind")
        };
        assert!(preempted);
        assert_eq!((ran_tid.0, ran_comm.as_str()), (7, "hog"));
    }

    #[test]
    fn cut_and_unknown_records_are_errors() {
        let record = FaultRecord { header: header(RecordKind::Fault, 0), address: 4096 };
        let bytes = bytemuck::bytes_of(&record);
        assert!(decode(bytes).is_ok());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut unknown = bytes.to_vec();
        unknown[24] = 0xff;
        assert_eq!(decode(&unknown), Err(DecodeError::UnknownKind));
    }
}
