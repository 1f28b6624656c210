//! The probes, as data: which programs they need, how each is attached, which records they send and
//! how a record becomes an event. Each probe has one file, and one row here.

mod burst;
mod calls;
pub mod docs;
mod fault;
mod hooks;
mod irq;
mod kernel_lock;
mod mm_syscall;
mod numbers;
mod reclaim;
mod request;
mod runqueue;
mod selection;
mod sleep;
mod socket;
mod softirq;
mod stack;
mod task;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

use observer_ebpf::wire::{Header, KIND_SLOTS, RecordKind, Series};

use crate::model::{Cause, Event, OWN_RECORDS, RecordRow};
pub use hooks::{Attach, CostClass, Entries, Members, Need, PerThread, ProbeMap, Program, Tier};
pub use numbers::{
    Bounds, Gauge, HistogramFamily, Labels, Moved, NumberFamily, Numbers, SummaryNumbers,
};
pub use selection::{ForcedTier, ForcedTiers, NOT_ASKED_FOR, ProbeOptions, Selection, ThreadState};

/// One probe.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Name used in every output.
    pub name: &'static str,
    /// What it watches, one sentence.
    pub about: &'static str,
    /// Where its numbers come from and what they leave out, for the docs.
    pub notes: &'static str,
    /// Ways to attach it, the best first: the most exact, and of those the cheapest. The first tier
    /// whose needs the kernel meets and whose programs it accepts is used.
    pub tiers: &'static [Tier],
    /// Kinds of record it sends.
    pub records: &'static [&'static RecordRow],
    /// Families of histograms it feeds; together they are its distribution.
    pub histograms: &'static [HistogramFamily],
    /// Series that are not shown, since what they count belongs to another one.
    pub moved: &'static [Moved],
    /// What it counts besides, for the metrics.
    pub numbers: &'static [NumberFamily],
    /// What it counts besides, for the summary of a run.
    pub in_summary: &'static [SummaryNumbers],
    /// What its programs know about each thread.
    pub per_thread: Option<PerThread>,
    /// Maps of its own, in which its programs keep something between two events.
    pub maps: &'static [ProbeMap],
    /// At what its programs run, and whether a busy host has very many of these events: they decide
    /// the class of its cost.
    pub runs_at: RunsAt,
    /// Why it is attached only when it is asked for, a clause; `None` for a usual probe.
    pub off_by_default: Option<&'static str>,
}

/// The events at which a probe's programs run: every one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunsAt {
    /// A busy host has hundreds of thousands of them a second.
    Frequent(&'static str),
    /// They are rare, or take far longer than a program.
    Rare(&'static str),
}

impl RunsAt {
    /// The event.
    #[must_use]
    pub const fn event(self) -> &'static str {
        match self {
            Self::Frequent(event) | Self::Rare(event) => event,
        }
    }
}

impl Probe {
    /// The class of cost of one of its tiers.
    #[must_use]
    pub fn cost_class(&self, tier: &Tier) -> CostClass {
        tier.cost_class(matches!(self.runs_at, RunsAt::Frequent(_)))
    }

    /// The event at which one of its tiers costs something.
    #[must_use]
    pub fn runs_at(&self, tier: &Tier) -> &'static str {
        let everywhere = |program: &Program| program.attach.is_at_every_system_call();
        if tier.programs.iter().any(everywhere) {
            "system call of the host"
        } else {
            self.runs_at.event()
        }
    }

    /// A probe without parts, from which the rows begin.
    const BASE: Self = Self {
        name: "",
        about: "",
        notes: "",
        tiers: &[],
        records: &[],
        histograms: &[],
        moved: &[],
        numbers: &[],
        in_summary: &[],
        per_thread: None,
        maps: &[],
        runs_at: RunsAt::Rare(""),
        off_by_default: None,
    };

    /// The parts of its distribution, each with its series.
    #[must_use]
    pub fn parts(&self) -> Vec<(&'static str, Vec<Series>)> {
        let mut parts: Vec<(&str, Vec<Series>)> = Vec::new();
        for (series, part, _) in self.histograms.iter().flat_map(|family| family.series) {
            match parts.iter_mut().find(|(name, _)| name == part) {
                Some((_, all)) => all.push(*series),
                None => parts.push((part, vec![*series])),
            }
        }
        parts
    }

    /// Causes whose stalls it sees: the rows of [`crate::model::CAUSES`] that name it.
    pub fn causes(&self) -> impl Iterator<Item = Cause> + use<> {
        let name = self.name;
        Cause::all().filter(move |cause| cause.info().probe == Some(name))
    }

    /// Kinds of record it sends.
    pub fn kinds(&self) -> impl Iterator<Item = RecordKind> + use<> {
        self.records.iter().filter_map(|row| RecordKind::from_raw(row.kind))
    }

    /// It sends this kind of record.
    #[must_use]
    pub fn sends(&self, kind: RecordKind) -> bool {
        self.kinds().any(|sent| sent == kind)
    }

    /// It sees stalls, not only counts or names.
    #[must_use]
    pub fn sees_stalls(&self) -> bool {
        self.causes().next().is_some()
    }
}

/// All probes, in the order they are attached: first what follows the target.
pub const PROBES: [&Probe; 12] = [
    &task::PROBE,
    &runqueue::PROBE,
    &fault::PROBE,
    &reclaim::PROBE,
    &mm_syscall::PROBE,
    &socket::PROBE,
    &kernel_lock::PROBE,
    &softirq::PROBE,
    &irq::PROBE,
    &request::PROBE,
    &sleep::PROBE,
    &stack::PROBE,
];

/// The probe that sends this kind of record.
#[must_use]
pub fn of_kind(kind: RecordKind) -> Option<&'static Probe> {
    PROBES.into_iter().find(|probe| probe.sends(kind))
}

/// The series that are not shown, of all probes.
pub fn moved() -> impl Iterator<Item = &'static Moved> {
    PROBES.into_iter().flat_map(|probe| probe.moved)
}

/// All kinds of record: those that probes send, and those that observer notes itself.
pub fn records() -> impl Iterator<Item = &'static RecordRow> {
    let sent = PROBES.into_iter().flat_map(|probe| probe.records.iter().copied());
    sent.chain(OWN_RECORDS.iter().copied())
}

/// The description of a kind that the kernel side sends.
#[must_use]
pub fn record(kind: RecordKind) -> Option<&'static RecordRow> {
    ROWS[kind as usize]
}

/// Name of a kind of record.
#[must_use]
pub fn kind_name(kind: u16) -> Option<&'static str> {
    records().find(|row| row.kind == kind).map(|row| row.name)
}

/// The kinds of record that have a length, and so may have a floor.
pub fn with_floor() -> impl Iterator<Item = (RecordKind, u64)> {
    let floor = |kind| Some((kind, record(kind)?.floor_ns?));
    RecordKind::ALL.into_iter().filter_map(floor)
}

static ROWS: LazyLock<[Option<&'static RecordRow>; KIND_SLOTS]> = LazyLock::new(|| {
    let mut rows = [None; KIND_SLOTS];
    for row in PROBES.into_iter().flat_map(|probe| probe.records) {
        rows[usize::from(row.kind)] = Some(*row);
    }
    rows
});

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

/// Decodes one record in place in the ring. It is a pure function, used for live capture and for
/// replay.
///
/// # Errors
/// When the bytes are not a record this version knows.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = read(bytes).ok_or(DecodeError::Short)?;
    let row = ROWS.get(usize::from(header.kind)).copied().flatten();
    let row = row.ok_or(DecodeError::UnknownKind)?;
    if bytes.len() < row.size {
        return Err(DecodeError::Short);
    }
    Event::decode(row, bytes).ok_or(DecodeError::BadField)
}

/// Copies a record out of bytes that may be unaligned or longer.
fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Option<T> {
    bytes.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

/// The kernel's NUL-padded command name as text that is safe to print.
/// A number for what [`crate::model::ObjectRow`] tells apart. The same in every process of this version.
fn object_id(object: &impl Hash) -> u32 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    hasher.finish() as u32
}

fn comm(bytes: &[u8]) -> String {
    crate::text::clean(&crate::text::until_nul(bytes), 16)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use observer_ebpf::wire::{Counter, FaultRecord, OWN_KINDS};

    use super::*;

    pub(super) fn header(kind: RecordKind, flags: u16) -> Header {
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
        for cause in Cause::all().filter(|cause| cause.is_recorded()) {
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
    fn every_kind_has_exactly_one_row_with_names_of_their_own() {
        for kind in RecordKind::ALL {
            let rows: Vec<_> = records().filter(|row| row.kind == kind as u16).collect();
            assert_eq!(rows.len(), 1, "{}", kind.name());
            assert_eq!(rows[0].name, kind.name());
        }
        assert!(OWN_RECORDS.iter().all(|row| row.kind >= OWN_KINDS));
        let names: BTreeSet<&str> = records().map(|row| row.name).collect();
        assert_eq!(names.len(), records().count());
        for row in records() {
            let fields: BTreeSet<&str> = row.fields.iter().map(|field| field.name).collect();
            assert_eq!(fields.len(), row.fields.len(), "{}", row.name);
        }
    }

    #[test]
    fn every_series_and_counter_belongs_to_one_probe() {
        let families = || PROBES.into_iter().flat_map(|probe| probe.histograms);
        for series in Series::ALL {
            let rows = families().flat_map(|family| family.series);
            let shown = rows.filter(|(of, ..)| *of == series).count();
            let hidden = moved().filter(|moved| moved.counted_in == series).count();
            assert_eq!(shown + hidden, 1, "{series:?}");
        }
        for family in families() {
            assert!(family.series.iter().all(|(.., labels)| labels.len() == family.labels.len()));
        }
        let counts = |numbers: &Numbers, at: usize| match numbers {
            Numbers::Counters(rows) => rows.iter().any(|(place, _)| *place == at),
            Numbers::Time(place) => *place == at,
            Numbers::Gauge(_) => false,
        };
        for counter in Counter::ALL {
            let owners = PROBES.into_iter().filter(|probe| {
                let shown = probe.numbers.iter().map(|family| &family.numbers);
                let summed = probe.in_summary.iter().map(|numbers| &numbers.numbers);
                shown.chain(summed).any(|numbers| counts(numbers, counter as usize))
            });
            assert_eq!(owners.count(), 1, "{counter:?}");
        }
    }

    #[test]
    fn what_has_a_floor_is_what_stalls() {
        for probe in PROBES {
            let floors = probe.records.iter().filter(|row| row.floor_ns.is_some()).count();
            // Absences of a thread are no stalls: they contain its stalls.
            let has_length = probe.sees_stalls() || probe.sends(RecordKind::Stack);
            assert_eq!(floors > 0, has_length, "{}", probe.name);
        }
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
