//! Puts a generator's times on the kernel's clock.

use std::collections::BTreeMap;

use super::zero::relative_zero;
use super::{ClockKind, IngestError, RawRow, Sink};
use crate::clock::{Anchors, MonoNanos, WallNanos, namespace_offset_ns};
use crate::model::{RelAnchor, Sample};

/// The part of the monotonic clock in which every probe was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First instant.
    pub start: MonoNanos,
    /// Last instant.
    pub end: MonoNanos,
    /// The run went on, but its records after `end` may be incomplete, as in a run that was killed:
    /// samples after `end` are left out, and are no sign of another clock.
    pub went_on: bool,
}

/// How far the wall clock of the generator may be from that of the host under test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockError {
    /// It is the same clock: observer started the generator.
    #[default]
    SameHost,
    /// At most this many nanoseconds, the user says.
    Given(u64),
    /// It is not known on which host the generator ran.
    Unknown,
}

/// Two hosts whose clocks NTP keeps rarely differ by more than this.
const UNKNOWN_HOST_NS: u64 = 5_000_000;

impl ClockError {
    /// From what the user said, and whether observer started the generator itself.
    #[must_use]
    pub fn of(given_ns: Option<u64>, started: bool) -> Self {
        match given_ns {
            Some(ns) => Self::Given(ns),
            None if started => Self::SameHost,
            None => Self::Unknown,
        }
    }

    const fn ns(self) -> u64 {
        match self {
            Self::SameHost => 0,
            Self::Given(ns) => ns,
            Self::Unknown => UNKNOWN_HOST_NS,
        }
    }
}

/// How the samples were converted to the kernel's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Zero of the generator's times.
    pub clock: ClockKind,
    /// Possible error of a sample's times, without their own resolution.
    pub uncertainty_ns: u64,
}

/// Reason for skipping a request that is outside the run: behind it, or not completely within it.
pub const OUTSIDE_RUN: &str = "outside_run";

/// Reason for skipping a request from before the run.
pub const BEFORE_RUN: &str = "before_run";

/// Reason for skipping a request from before the run that stands in front of another recording's header:
/// an earlier run left it in the file.
pub const EARLIER_RECORDING: &str = "earlier_recording";

/// Reading two clocks of one host by way of a vDSO, twice.
const WALL_READ_NS: u64 = 1_000;

enum Map<'a> {
    Same,
    Wall(&'a Anchors),
    WallFrom(&'a Anchors, WallNanos),
    Offset(i128),
}

impl Map<'_> {
    fn apply(&self, time: u64) -> Option<MonoNanos> {
        match self {
            Self::Same => Some(MonoNanos(time)),
            Self::Wall(anchors) => anchors.to_monotonic(WallNanos(time)),
            Self::WallFrom(anchors, start) => {
                anchors.to_monotonic_from_start(WallNanos(time), *start)
            }
            Self::Offset(offset) => u64::try_from(i128::from(time) + offset).ok().map(MonoNanos),
        }
    }
}

/// The generator's clock and the run's.
pub(super) struct Clocks<'a> {
    /// Zero of the generator's times.
    pub(super) kind: ClockKind,
    pub(super) error: ClockError,
    pub(super) anchors: &'a Anchors,
    pub(super) window: Window,
}

impl Clocks<'_> {
    /// How far a time that was read on the wall clock may be off.
    fn wall_uncertainty_ns(&self) -> u64 {
        let read = self.anchors.0.iter().map(|anchor| anchor.uncertainty_ns).max();
        let here_ns = read.unwrap_or(0) + WALL_READ_NS + self.anchors.slew_ns();
        here_ns.saturating_add(self.error.ns())
    }
}

/// Drops the rows from before the run, which would mislead whatever is derived from all rows. On a
/// clock that counts from the generator's start, those are the rows in front of the last header.
pub(super) fn leave_out_earlier(sink: &mut Sink, clocks: &Clocks<'_>) -> Outside {
    let mut outside = Outside::default();
    let window = clocks.window;
    if clocks.kind == ClockKind::Relative {
        outside.earlier = sink.earlier as u64;
        sink.rows.drain(..sink.earlier);
        return outside;
    }
    let (map, uncertainty_ns) = match clocks.kind {
        ClockKind::Monotonic => (monotonic(&sink.rows, window, &mut Vec::new()), 0),
        _ => (Map::Wall(clocks.anchors), clocks.wall_uncertainty_ns()),
    };
    let earliest = MonoNanos(window.start.0.saturating_sub(uncertainty_ns + sink.precision_ns));
    let mut index = 0;
    let (mut kept_earlier, earlier) = (0, sink.earlier);
    sink.rows.retain(|row| {
        let in_earlier = index < earlier;
        index += 1;
        let begin = map.apply(row.intended_start_ns.unwrap_or(row.start_ns));
        if begin.is_some_and(|begin| begin >= earliest) {
            kept_earlier += usize::from(in_earlier);
            return true;
        }
        outside.before(earliest, begin, in_earlier);
        false
    });
    sink.earlier = kept_earlier;
    if kept_earlier > 0 && sink.earlier_is_cut {
        sink.unfinished = true;
        sink.notes.push(
            "a part of the samples that another one follows has no summary line, or lacks rows"
                .into(),
        );
    }
    outside
}

/// Converts all rows, drops those outside the window (counted, with those in `outside`), and sorts by
/// begin.
pub(super) fn align(
    mut sink: Sink,
    clocks: &Clocks<'_>,
    seen: &RelAnchor,
    mut outside: Outside,
    skipped: &mut BTreeMap<String, u64>,
) -> Result<(Vec<Sample>, Alignment, Vec<String>), IngestError> {
    if sink.rows.is_empty() {
        return Err(outside.error());
    }
    let mut notes = std::mem::take(&mut sink.notes);
    let Clocks { kind: clock, anchors, window, .. } = *clocks;
    let (map, uncertainty_ns) = match clock {
        ClockKind::Monotonic => (monotonic(&sink.rows, window, &mut notes), 0),
        ClockKind::WallPerEvent | ClockKind::WallAtStart => {
            if anchors.steps() > 0 {
                notes.push(format!(
                    "the wall clock stepped {} times during the run: samples near a step may have \
                     wrong times",
                    anchors.steps()
                ));
            }
            let map = match (clock, sink.rows.iter().map(|row| row.start_ns).min()) {
                (ClockKind::WallAtStart, Some(first)) => Map::WallFrom(anchors, WallNanos(first)),
                _ => Map::Wall(anchors),
            };
            if clocks.error == ClockError::Unknown {
                notes.push(
                    "the samples have wall-clock times and do not say on which host: their clock \
                     may be 5 ms off. Say how much it may be with --clock-error (0 for this host)"
                        .into(),
                );
            }
            (map, clocks.wall_uncertainty_ns())
        }
        ClockKind::Relative => {
            let zero = relative_zero(&sink, seen)?;
            notes.push(zero.note);
            (Map::Offset(zero.at), zero.uncertainty_ns)
        }
    };
    let precision_ns = sink.precision_ns;
    let slack = uncertainty_ns + precision_ns;
    let earliest = MonoNanos(window.start.0.saturating_sub(slack));
    let latest = MonoNanos(window.end.0.saturating_add(slack));
    let mut samples: Vec<Sample> = std::mem::take(&mut sink.rows)
        .into_iter()
        .filter_map(|row| {
            let sample = convert(row, &map, precision_ns);
            match sample {
                Some(sample) if sample.begin() > latest => outside.after(latest, sample.begin()),
                Some(sample) if sample.begin() >= earliest => return Some(sample),
                other => outside.before(earliest, other.map(|sample| sample.begin()), false),
            }
            None
        })
        .collect();
    if samples.is_empty() && !(window.went_on && outside.after > 0) {
        return Err(outside.error());
    }
    let kinds = [
        (EARLIER_RECORDING, outside.earlier),
        (BEFORE_RUN, outside.before),
        (OUTSIDE_RUN, outside.after),
    ];
    for (reason, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
        *skipped.entry(reason.into()).or_default() += count;
    }
    samples.sort_by_key(Sample::begin);
    Ok((samples, Alignment { clock, uncertainty_ns }, notes))
}

/// Rows on the monotonic clock are on the kernel's, or on that of observer's time namespace, in
/// which a generator that knows nothing of namespaces reads its times.
fn monotonic<'a>(rows: &[RawRow], window: Window, notes: &mut Vec<String>) -> Map<'a> {
    by_offset(rows, window, namespace_offset_ns().unwrap_or(0), notes)
}

fn by_offset<'a>(
    rows: &[RawRow],
    window: Window,
    offset_ns: i64,
    notes: &mut Vec<String>,
) -> Map<'a> {
    let inside = |map: &Map<'_>| {
        let starts = rows.iter().filter_map(|row| map.apply(row.start_ns));
        starts.filter(|start| (window.start..=window.end).contains(start)).count()
    };
    let shifted = Map::Offset(-i128::from(offset_ns));
    if offset_ns == 0 || inside(&Map::Same) >= inside(&shifted) {
        return Map::Same;
    }
    notes.push(format!(
        "the samples' times were on the clock of observer's time namespace, {:+.3} s from the \
         kernel's",
        offset_ns as f64 / 1e9
    ));
    shifted
}

fn convert(row: RawRow, map: &Map, precision_ns: u64) -> Option<Sample> {
    let start = map.apply(row.start_ns)?;
    Some(Sample {
        intended_start: match row.intended_start_ns {
            Some(intended) => Some(map.apply(intended)?),
            None => None,
        },
        start,
        end: MonoNanos(start.0.saturating_add(row.latency_ns)),
        precision_ns,
        status: row.status,
        ok: row.ok,
        error: row.error,
        seq: row.seq,
        local_port: row.local_port,
    })
}

/// Rows outside the window.
#[derive(Debug, Default)]
pub(super) struct Outside {
    /// Before it, and in front of another recording's header.
    earlier: u64,
    before: u64,
    after: u64,
    least_before_ns: Option<u64>,
    least_after_ns: Option<u64>,
}

impl Outside {
    /// `begin` is `None` for a time before the boot of this host.
    fn before(&mut self, earliest: MonoNanos, begin: Option<MonoNanos>, in_earlier: bool) {
        *(if in_earlier { &mut self.earlier } else { &mut self.before }) += 1;
        if let Some(begin) = begin {
            let off = earliest.since(begin);
            self.least_before_ns = Some(self.least_before_ns.map_or(off, |least| least.min(off)));
        }
    }

    fn after(&mut self, latest: MonoNanos, begin: MonoNanos) {
        self.after += 1;
        let off = begin.since(latest);
        self.least_after_ns = Some(self.least_after_ns.map_or(off, |least| least.min(off)));
    }

    /// No sample is left.
    fn error(&self) -> IngestError {
        let count = self.earlier + self.before + self.after;
        let detail = self.nearest();
        if self.after == 0 {
            IngestError::BeforeRun { count, detail }
        } else {
            IngestError::OtherClock { count, detail }
        }
    }

    fn nearest(&self) -> String {
        let seconds = |ns: u64| ns as f64 / 1e9;
        match (self.least_before_ns, self.least_after_ns) {
            (Some(before), after) if after.is_none_or(|after| before <= after) => {
                format!("the nearest was sent {:.3} s before it", seconds(before))
            }
            (_, Some(after)) => {
                format!("the nearest was sent {:.3} s after it", seconds(after))
            }
            _ if self.before > 0 => "their times are before the boot of this host".into(),
            _ => "the last part of the samples has no row".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ADAPTERS, Ingest, Ingested};
    use super::*;
    use crate::clock::Anchor;

    #[test]
    fn rows_on_the_clock_of_the_time_namespace_are_moved_and_those_on_the_kernels_are_not() {
        let window = Window { start: MonoNanos(5_000), end: MonoNanos(9_000), went_on: false };
        for (start_ns, offset_ns, expected) in [
            (6_000, 0, 6_000),
            (6_000, 100_000, 6_000),
            (106_000, 100_000, 6_000),
            (2_000, -4_000, 6_000),
        ] {
            let rows = [RawRow {
                intended_start_ns: None,
                start_ns,
                latency_ns: 1,
                status: None,
                ok: true,
                error: None,
                seq: None,
                local_port: None,
            }];
            let mut notes = Vec::new();
            let map = by_offset(&rows, window, offset_ns, &mut notes);
            assert_eq!(map.apply(start_ns), Some(MonoNanos(expected)));
            assert_eq!(notes.len(), usize::from(start_ns != expected), "{notes:?}");
        }
    }

    /// A row that does not name its host is only as exact as the two hosts' clocks, and only the user
    /// knows those.
    #[test]
    fn the_wall_clock_of_another_host_is_not_trusted() {
        let now = Anchor::take();
        let anchors = Anchors(vec![now]);
        let start = MonoNanos(now.monotonic_ns.0 - 1_000_000_000);
        let window =
            Window { start, end: MonoNanos(now.monotonic_ns.0 + 1_000_000_000), went_on: false };
        let ingest = |boot_id: &str, clock_error| {
            let rows = format!(
                "{{\"format\":\"observer-samples\",\"version\":1,\"clock\":\"realtime\",\"boot_id\":\
                 \"{boot_id}\",\"unit\":\"ns\"}}\n{{\"start_ns\":{},\"latency_ns\":5}}\n",
                now.wall_ns.0
            );
            let adapter = ADAPTERS.iter().find(|adapter| adapter.name == "observer-load").unwrap();
            let mut ingest = Ingest::new(adapter).with_clock_error(clock_error);
            ingest.feed(rows.as_bytes());
            ingest.finish(&anchors, window, &RelAnchor::default()).unwrap()
        };
        let asks =
            |ingested: &Ingested| ingested.notes.iter().any(|note| note.contains("--clock-error"));

        let same = ingest("another", ClockError::of(None, true));
        let unknown = ingest("another", ClockError::of(None, false));
        assert_eq!(unknown.uncertainty_ns, same.uncertainty_ns + UNKNOWN_HOST_NS);
        assert!(asks(&unknown) && !asks(&same), "{:?}", unknown.notes);
        for started in [true, false] {
            let given = ingest("another", ClockError::of(Some(700_000), started));
            assert_eq!(given.uncertainty_ns, same.uncertainty_ns + 700_000);
            assert!(!asks(&given) && given.samples == same.samples);
        }
        let here = ingest(&crate::host::system::boot_id().unwrap(), ClockError::of(None, false));
        assert_eq!(here.uncertainty_ns, same.uncertainty_ns, "the rows name this boot");
    }
}
