//! Puts a generator's times on the kernel's clock.

use std::collections::BTreeMap;

use super::{ClockKind, IngestError, RawRow, Sink};
use crate::clock::{Anchors, MonoNanos, WallNanos, namespace_offset_ns};
use crate::model::Sample;

/// The part of the monotonic clock in which every probe was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First instant.
    pub start: MonoNanos,
    /// Last instant.
    pub end: MonoNanos,
}

/// What observer saw of the generator from outside. Generators whose times count from an unknown zero
/// need it. Everything is optional; the more is known, the smaller the uncertainty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelAnchor {
    /// Just before the generator was spawned.
    pub spawned: Option<MonoNanos>,
    /// Its first connect(2) (or first send): the best anchor.
    pub first_connect: Option<MonoNanos>,
    /// The target's first accept(2) after the spawn: good unless another client connected first.
    pub first_accept: Option<MonoNanos>,
    /// When its end was noticed.
    pub exited: Option<MonoNanos>,
}

/// How far the wall clock of the generator may be from that of the host under test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockError {
    /// It is the same clock: observer started the generator.
    #[default]
    SameHost,
    /// At most this many nanoseconds, the user says.
    Given(u64),
    /// Nobody says on which host the generator ran.
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

/// Reason for skipping a request that is outside the run.
pub const OUTSIDE_RUN: &str = "outside_run";

/// Between hey's own `offset` and its connect(2), and rounding of the offset: both below 0.1 ms.
const CONNECT_OFF_NS: u64 = 200_000;

/// Between a connection being made and the server's accept(2) of it, when the server is idle.
const ACCEPT_OFF_NS: u64 = 1_000_000;

/// An anchor this far outside what spawn and exit allow was made by something else.
const CONTRADICTION_NS: u64 = 2_000_000;

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

/// Converts all rows, drops those outside the window (counted), and sorts by begin.
pub(super) fn align(
    mut sink: Sink,
    (clock, clock_error): (ClockKind, ClockError),
    anchors: &Anchors,
    window: Window,
    seen: &RelAnchor,
    skipped: &mut BTreeMap<String, u64>,
) -> Result<(Vec<Sample>, Alignment, Vec<String>), IngestError> {
    let mut notes = std::mem::take(&mut sink.notes);
    let (map, uncertainty_ns) = match clock {
        ClockKind::Monotonic => {
            let offset_ns = namespace_offset_ns().unwrap_or(0);
            (monotonic(&sink.rows, window, offset_ns, &mut notes), 0)
        }
        ClockKind::WallPerEvent | ClockKind::WallAtStart => {
            if anchors.steps() > 0 {
                notes.push(format!(
                    "the wall clock stepped {} times during the run: samples near a step may have \
                     wrong times",
                    anchors.steps()
                ));
            }
            let read = anchors.0.iter().map(|anchor| anchor.uncertainty_ns).max();
            let map = match (clock, sink.rows.iter().map(|row| row.start_ns).min()) {
                (ClockKind::WallAtStart, Some(first)) => Map::WallFrom(anchors, WallNanos(first)),
                _ => Map::Wall(anchors),
            };
            if clock_error == ClockError::Unknown {
                notes.push(
                    "the samples have wall-clock times and do not say on which host: their clock \
                     may be 5 ms off. Say how much it may be with --clock-error (0 for this host)"
                        .into(),
                );
            }
            let here_ns = read.unwrap_or(0) + WALL_READ_NS + anchors.slew_ns();
            (map, here_ns.saturating_add(clock_error.ns()))
        }
        ClockKind::Relative => {
            let zero = relative_zero(&sink, seen)?;
            notes.push(zero.note);
            (Map::Offset(zero.at), zero.uncertainty_ns)
        }
    };
    let count = sink.rows.len() as u64;
    let precision_ns = sink.precision_ns;
    let slack = uncertainty_ns + precision_ns;
    let earliest = MonoNanos(window.start.0.saturating_sub(slack));
    let latest = MonoNanos(window.end.0.saturating_add(slack));
    let mut outside = Outside::default();
    let mut samples: Vec<Sample> = std::mem::take(&mut sink.rows)
        .into_iter()
        .filter_map(|row| {
            let sample = convert(row, &map, precision_ns);
            match sample {
                Some(sample) if sample.begin() < earliest => outside.before(earliest, &sample),
                Some(sample) if sample.begin() > latest => outside.after(latest, &sample),
                Some(sample) => return Some(sample),
                None => outside.unplaced += 1,
            }
            None
        })
        .collect();
    if samples.is_empty() {
        return Err(IngestError::OtherClock { count, detail: outside.nearest() });
    }
    if outside.count() > 0 {
        skipped.insert(OUTSIDE_RUN.into(), outside.count());
    }
    samples.sort_by_key(Sample::begin);
    Ok((samples, Alignment { clock, uncertainty_ns }, notes))
}

/// Rows on the monotonic clock are on the kernel's, or on that of observer's time namespace, in
/// which a generator that knows nothing of namespaces reads its times.
fn monotonic<'a>(
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
    })
}

/// Rows outside the window.
#[derive(Default)]
struct Outside {
    before: u64,
    after: u64,
    unplaced: u64,
    least_before_ns: Option<u64>,
    least_after_ns: Option<u64>,
}

impl Outside {
    fn before(&mut self, earliest: MonoNanos, sample: &Sample) {
        self.before += 1;
        let off = earliest.since(sample.begin());
        self.least_before_ns = Some(self.least_before_ns.map_or(off, |least| least.min(off)));
    }

    fn after(&mut self, latest: MonoNanos, sample: &Sample) {
        self.after += 1;
        let off = sample.begin().since(latest);
        self.least_after_ns = Some(self.least_after_ns.map_or(off, |least| least.min(off)));
    }

    const fn count(&self) -> u64 {
        self.before + self.after + self.unplaced
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
            _ => "their times are before the boot of this host".into(),
        }
    }
}

struct Zero {
    at: i128,
    uncertainty_ns: u64,
    note: String,
}

/// Where a relative clock has its zero, by the best anchor that does not contradict the rest.
///
/// The generator cannot have begun before it was spawned, and its last answer cannot have come
/// after it exited: that bounds the zero from both sides. Within the bounds its first connect
/// says it best, then the target's first
/// accept, then the middle of what is typical from spawn to zero.
fn relative_zero(sink: &Sink, seen: &RelAnchor) -> Result<Zero, IngestError> {
    let time = |at: MonoNanos| i128::from(at.0);
    let last_end = sink.rows.iter().map(RawRow::end_ns).max().unwrap_or(0);
    let lower = seen.spawned.map(time);
    let upper = seen.exited.map(|exited| time(exited) - i128::from(last_end));
    let allowed = |at: i128| {
        let slack = i128::from(CONTRADICTION_NS);
        lower.is_none_or(|lower| at >= lower - slack)
            && upper.is_none_or(|upper| at <= upper + slack)
    };
    let first_start = sink.rows.iter().map(|row| row.start_ns).min().unwrap_or(0);
    // The earliest request may have been handed a connection that another one's dial had opened,
    // and then shows no dial of its own: the first connect lies between the two.
    let dial_start = sink.first_dial.map_or(first_start, |dial| dial.start_ns + dial.dns_ns);
    let dial_end = sink.first_dial.map_or(first_start, |dial| dial.start_ns + dial.dial_ns);
    let between = |latest: u64| {
        let half = latest.saturating_sub(first_start) / 2;
        (i128::from(first_start + half), half + sink.precision_ns)
    };

    let by_connect = seen.first_connect.map(|connect| {
        let (offset, off) = between(dial_start);
        Zero {
            at: time(connect) - offset,
            uncertainty_ns: off + CONNECT_OFF_NS,
            note: "times aligned by the generator's first connect(2)".into(),
        }
    });
    let by_accept = seen.first_accept.map(|accept| {
        let (offset, off) = between(dial_end);
        Zero {
            at: time(accept) - offset,
            uncertainty_ns: off + ACCEPT_OFF_NS,
            note: "times aligned by the target's first accept(2) after the generator's start"
                .into(),
        }
    });
    let seen_any = by_connect.is_some() || by_accept.is_some();
    if let Some(zero) = [by_connect, by_accept].into_iter().flatten().find(|zero| allowed(zero.at))
    {
        return Ok(zero);
    }

    let (Some(lower), Some((least, most))) = (lower, sink.zero_after_spawn_ns) else {
        return Err(IngestError::NoAnchor);
    };
    let contradicted =
        if seen_any { " (the observed connection was not the generator's first)" } else { "" };
    let low = lower + i128::from(least);
    // The bound by the exit may be tighter than what is typical.
    let high = (lower + i128::from(most)).min(upper.unwrap_or(i128::MAX)).max(low);
    let half = (high - low) / 2;
    let uncertainty_ns = u64::try_from(half).unwrap_or(most) + sink.precision_ns;
    Ok(Zero {
        at: low + half,
        uncertainty_ns,
        note: format!(
            "times aligned by the generator's process start plus {:.1} ms, which it typically \
             needs: the error may be {:.1} ms{contradicted}",
            (low + half - lower) as f64 / 1e6,
            uncertainty_ns as f64 / 1e6
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{ADAPTERS, Ingest, Ingested};
    use super::*;
    use crate::clock::Anchor;

    #[test]
    fn rows_on_the_clock_of_the_time_namespace_are_moved_and_those_on_the_kernels_are_not() {
        let window = Window { start: MonoNanos(5_000), end: MonoNanos(9_000) };
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
            }];
            let mut notes = Vec::new();
            let map = monotonic(&rows, window, offset_ns, &mut notes);
            assert_eq!(map.apply(start_ns), Some(MonoNanos(expected)));
            assert_eq!(notes.len(), usize::from(start_ns != expected), "{notes:?}");
        }
    }

    /// A row that says nothing of its host is as exact as the two hosts' clocks, which nobody knows
    /// better than the user.
    #[test]
    fn the_wall_clock_of_another_host_is_not_trusted() {
        let now = Anchor::take();
        let anchors = Anchors(vec![now]);
        let start = MonoNanos(now.monotonic_ns.0 - 1_000_000_000);
        let window = Window { start, end: MonoNanos(now.monotonic_ns.0 + 1_000_000_000) };
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
