//! In what the stalls of a cause waited, or for whom, during slow and during typical requests.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Evidence;
use super::aside::{Asides, without};
use super::asked::Asked;
use super::exposure::{Population, Served};
use super::handing::Handing;
use super::lines::{Line, Lines, clipped};
use super::siblings::{Woken, within};
use super::timeline::{Span, Timeline, Timelines};
use crate::clock::MonoNanos;
use crate::model::{Cause, Extra, OutgoingRequest, Peer, Stall, Tid};

/// Objects of a cause that are looked at: those whose stalls are the longest together.
const MEASURED: usize = 32;
/// Objects of a cause in the result.
const SHOWN: usize = 5;
/// One with a smaller part of its cause's time is not shown.
const LEAST_PART: f64 = 0.01;
/// Objects whose stalls are summed up, of all causes together.
const SUMMED: usize = 1 << 16;

/// A part of a cause's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectTime {
    /// As [`Stall::object`].
    pub object: u32,
    /// The service whose reply it waited for, where that is known and the object does not say it.
    pub peer: Option<Peer>,
    /// Of a lock, the thread that had it for the largest part of the waits, and so ended them.
    pub had_by: Option<Tid>,
    /// Mean nanoseconds of a slow request.
    pub slow_ns: u64,
    /// Mean nanoseconds of a typical request.
    pub typical_ns: u64,
}

/// Of each cause the objects with the most time in slow requests, the largest first. What these do not
/// have of the cause's time is that of others, or not known.
pub(super) fn find(
    evidence: &Evidence<'_>,
    population: &Population,
    timelines: &Timelines,
    handing: &Handing<'_>,
    asked: &Asked<'_>,
) -> BTreeMap<Cause, Vec<ObjectTime>> {
    let (lines, siblings) = (&population.lines, &handing.siblings);
    // Most threads sleep most of the time, so that together they say nothing.
    let has_account = population.has_account();
    let mut threads: HashSet<u32> = HashSet::new();
    for line in lines {
        match *line {
            Line::Outside => {}
            Line::Thread(tid) | Line::Aside(tid) => threads.extend([tid]),
            Line::Both { reader, sender } => threads.extend([reader, sender]),
            Line::Siblings => threads.extend(siblings.stalls().iter().map(|stall| stall.tid)),
        }
    }
    let counts = |stall: &&Stall| {
        (stall.cause.is_stall() || has_account)
            && (lines.is_empty() || threads.contains(&stall.tid.0))
    };
    let stalls = || evidence.stalls.iter().filter(counts);
    let of_any: HashSet<u32> = stalls()
        .filter(|stall| matches!(stall.extra, Extra::AnyOf(_)))
        .filter_map(Stall::object)
        .collect();

    // What a thread did while it waited at a futex may turn out to be a wait for a lock at that place.
    let waits = || {
        stalls().flat_map(|stall| {
            let own = stall.object().map(|object| (stall, stall.cause, object));
            let of_lock = match stall.extra {
                Extra::OfThread(place) if stall.cause != Cause::LOCK_WAIT => {
                    Some((stall, Cause::LOCK_WAIT, place))
                }
                _ => None,
            };
            own.into_iter().chain(of_lock)
        })
    };
    let mut sums: HashMap<(Cause, u32), u64> = HashMap::new();
    let mut had: HashMap<(u32, Tid), u64> = HashMap::new();
    for (stall, cause, object) in waits() {
        if let Some(holder) = stall.holder.filter(|_| cause == Cause::LOCK_WAIT)
            && (had.len() < SUMMED || had.contains_key(&(object, holder.tid)))
        {
            *had.entry((object, holder.tid)).or_default() += stall.duration_ns();
        }
        if sums.len() < SUMMED || sums.contains_key(&(cause, object)) {
            *sums.entry((cause, object)).or_default() += stall.duration_ns();
        }
    }
    let mut by_cause: BTreeMap<Cause, Vec<(Reverse<u64>, u32)>> = BTreeMap::new();
    for ((cause, object), sum_ns) in sums {
        by_cause.entry(cause).or_default().push((Reverse(sum_ns), object));
    }
    let had_by = |cause: Cause, object: u32| {
        let of_it = had.iter().filter(|((of, _), _)| cause == Cause::LOCK_WAIT && *of == object);
        of_it.max_by_key(|((_, tid), ns)| (**ns, *tid)).map(|((_, tid), _)| *tid)
    };
    let window = evidence.window;
    let mut found = BTreeMap::new();
    for (cause, mut objects) in by_cause {
        objects.sort_unstable();
        objects.truncate(MEASURED);
        let ranks: HashMap<u32, usize> =
            objects.iter().enumerate().map(|(rank, (_, object))| (*object, rank)).collect();
        // With the rank in front, the intervals of an object lie beside each other.
        let mut spans: Vec<(usize, u32, Span)> = Vec::new();
        for (stall, _, object) in waits().filter(|(_, of, _)| *of == cause) {
            let Some(rank) = ranks.get(&object) else { continue };
            let span = inside(stall, window);
            let tid = stall.tid.0;
            match timelines.pieces(cause) {
                // The parts in which its thread had no stall within it.
                Some(pieces) => {
                    let own = within(pieces.of_thread(tid), span);
                    spans.extend(own.map(|part| (*rank, tid, part)));
                }
                None => spans.push((*rank, tid, span)),
            }
        }
        spans.sort_unstable();
        let mut of_siblings: Vec<(u32, Span)> = Vec::new();
        if lines.contains(&Line::Siblings) {
            let of_cause = siblings.stalls().iter().filter(|stall| stall.cause == cause);
            of_siblings.extend(of_cause.map(|Woken { tid, span, .. }| (*tid, *span)));
            of_siblings.sort_unstable();
        }
        let length_ns = window.1.since(window.0);
        let mut times: Vec<ObjectTime> = spans
            .chunk_by(|one, other| one.0 == other.0)
            .flat_map(|spans| {
                let covered = on_lines(spans, lines, length_ns, &of_siblings, &handing.asides);
                let object = objects[spans[0].0].1;
                let asked = Some(asked).filter(|_| of_any.contains(&object));
                let slow = means(&population.slow, &covered, asked, window);
                let typical = means(&population.typical, &covered, asked, window);
                let peers: BTreeSet<Option<Peer>> =
                    slow.keys().chain(typical.keys()).copied().collect();
                peers.into_iter().map(move |peer| {
                    let of = |means: &BTreeMap<_, f64>| {
                        means.get(&peer).copied().unwrap_or(0.0).max(0.0).round() as u64
                    };
                    let (slow_ns, typical_ns) = (of(&slow), of(&typical));
                    ObjectTime { object, peer, had_by: None, slow_ns, typical_ns }
                })
            })
            .collect();
        times.sort_by_key(|time| Reverse(time.slow_ns));
        let all_ns: u64 = times.iter().map(|time| time.slow_ns).sum();
        times.retain(|time| time.slow_ns as f64 > all_ns as f64 * LEAST_PART);
        times.truncate(SHOWN);
        times.iter_mut().for_each(|time| time.had_by = had_by(cause, time.object));
        if !times.is_empty() {
            found.insert(cause, times);
        }
    }
    found
}

/// Mean nanoseconds of a sample that are covered, and of them those in which it waited for the reply of
/// which service; the rest is that of `None`.
fn means(
    samples: &[Served],
    covered: &Lines,
    asked: Option<&Asked<'_>>,
    window: (MonoNanos, MonoNanos),
) -> BTreeMap<Option<Peer>, f64> {
    let mut means = BTreeMap::from([(None, 0.0)]);
    let count = samples.len().max(1) as f64;
    for sample in samples {
        let mut rest_ns = covered.exposure(&sample.parts);
        let request = sample.request.filter(|_| rest_ns > 0.0);
        let services = asked.zip(request).map(|(asked, place)| asked.services(place as usize));
        for OutgoingRequest { sent, replied, peer, .. } in services.into_iter().flatten() {
            let span = Span { start: sent.since(window.0), end: replied.since(window.0) };
            let part_ns = covered.exposure(&clipped(&sample.parts, span));
            *means.entry(Some(*peer)).or_default() += part_ns / count;
            rest_ns -= part_ns;
        }
        *means.entry(None).or_default() += rest_ns / count;
    }
    means
}

fn inside(stall: &Stall, window: (MonoNanos, MonoNanos)) -> Span {
    let since = |time: MonoNanos| time.min(window.1).since(window.0);
    Span { start: since(stall.start), end: since(stall.end) }
}

/// The intervals of one object, in order of thread, by line. `siblings` are the stalls of its cause, in the
/// same order.
fn on_lines(
    spans: &[(usize, u32, Span)],
    lines: &[Line],
    length_ns: u64,
    siblings: &[(u32, Span)],
    asides: &Asides,
) -> Lines {
    let timeline = |spans: Vec<Span>| Timeline::union(spans, length_ns);
    let all = |spans: &[(usize, u32, Span)]| spans.iter().map(|(_, _, span)| *span).collect();
    if lines.is_empty() {
        return Lines::united(timeline(all(spans)));
    }
    let of_thread = |tid: u32| {
        let from = spans.partition_point(|(_, other, _)| *other < tid);
        let until = spans.partition_point(|(_, other, _)| *other <= tid);
        all(&spans[from..until])
    };
    let of_woken = || {
        let mut parts: Vec<Span> = Vec::new();
        for woken in siblings.chunk_by(|one, other| one.0 == other.0) {
            let own: Vec<Span> = of_thread(woken[0].0);
            woken.iter().for_each(|(_, span)| parts.extend(within(&own, *span)));
        }
        parts
    };
    let of_line = |line: &Line| {
        timeline(match *line {
            Line::Outside => Vec::new(),
            Line::Thread(tid) => of_thread(tid),
            Line::Aside(tid) => without(&of_thread(tid), asides.of_thread(tid)),
            Line::Both { reader, sender } => [of_thread(reader), of_thread(sender)].concat(),
            Line::Siblings => of_woken(),
        })
    };
    Lines::by_thread(lines.iter().map(of_line).collect(), lines)
}
