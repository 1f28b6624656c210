//! Follows the difference of two clocks through a run.
//!
//! The samples of a short time agree on a difference of the clocks: of the trips that they may have made, the
//! true ones have it in common. From one time to the next it moves little, so it is followed from
//! where it is clearest. The shortest ways there and back then say within which bounds it lies.

use super::agreement::{Cell, Counts};
use super::segments::{Bound, Line, constant, lines, scatter_ns};
use super::trips::{Requests, Trip, middle};
use super::usual::median;
use crate::model::Sample;

/// Times in which the difference is looked for, at most, and samples in each.
const CLUSTERS: usize = 256;
const LEAST: usize = 8;
const MOST: usize = 256;
/// Of them, so many are enough to see where it is clearest.
const FEW: usize = 64;
/// Differences, and lengths of both ways together, are told apart in steps of one of these lengths: the one
/// with which samples agree most. Both ways take so many steps at most.
const GIVE_NS: [i64; 5] = [100_000, 400_000, 1_600_000, 6_400_000, 25_600_000];
const LONGEST: i64 = 16;
/// Within a cluster, the clocks drift by this part at most.
const SMEAR: f64 = 0.000_3;
/// A clock may step by so much, and from one cluster to the next it may drift by this part, and be found.
const STEP_NS: i64 = 10_000_000;
const WANDER: f64 = 0.000_5;
/// Agreement counts if so large a part of a cluster's samples have it, and it is so many deviations above coincidence.
const AGREE: f64 = 0.5;
/// If so many have it, longer ways are not looked at.
const ENOUGH: f64 = 0.9;
const CLEAR: f64 = 6.0;
/// The difference is looked for in so many steps to each side at least, as long as a sample is compared with at
/// most so many requests.
const COINCIDENCE: i64 = 4;
const MOST_TRIPS: usize = 200;
/// Of several differences that fit about as well, the nearest is taken.
const ABOUT: f64 = 0.8;
/// The ways that only so many of a cluster are shorter than, are the shortest.
const SHORTEST: usize = 10;
/// The shortest ways may differ by so much between parts of a run, without a drift.
const TOLERANCE_NS: f64 = 50_000.0;
/// And by so many times their scatter.
const DEVIATIONS: f64 = 4.0;
/// Samples that say when the clock stepped.
const AROUND_STEP: usize = 4_096;

/// The difference of the clocks as it was found to move.
#[derive(Clone, Debug)]
pub(super) struct Course {
    /// In order of time.
    lines: Vec<Line>,
    /// First and last instant at which it was seen.
    pub(super) seen: (i64, i64),
    /// Of it, in which a line was seen, in the same order.
    spans_ns: Vec<f64>,
    /// What both ways together take at least.
    pub(super) both_ns: f64,
    /// How far the lines may be from the bounds.
    pub(super) tolerance_ns: f64,
}

impl Course {
    /// The kernel's clock minus that of the samples.
    pub(super) fn at(&self, time: i64) -> f64 {
        let next = self.lines.partition_point(|line| line.until <= time);
        self.lines.get(next).or(self.lines.last()).map_or(0.0, |line| line.at(time))
    }

    /// The mean slope of the lines: what remains of the movement without steps.
    pub(super) fn slope(&self) -> f64 {
        let all_ns: f64 = self.spans_ns.iter().sum();
        let moved =
            self.lines.iter().zip(&self.spans_ns).map(|(line, span_ns)| line.slope * span_ns);
        moved.sum::<f64>() / all_ns.max(1.0)
    }

    /// By how much the clock stepped where it did.
    pub(super) fn steps_ns(&self) -> impl Iterator<Item = f64> + '_ {
        let step = |pair: &[Line]| pair[1].at(pair[0].until) - pair[0].at(pair[0].until);
        self.lines.windows(2).map(step).filter(|step_ns| step_ns.abs() > 2.0 * self.tolerance_ns)
    }
}

/// How long both ways together usually take, give or take a time in which differences are told apart.
#[derive(Clone, Copy, Debug)]
struct Ways {
    both_ns: i64,
    give_ns: i64,
}

/// What the samples of a cluster agree on.
#[derive(Clone, Copy, Debug)]
struct Peak {
    at: i64,
    difference_ns: i64,
    ways: Ways,
    /// How far it is above coincidence, in deviations.
    clear: f64,
    /// No other difference is about as good.
    is_alone: bool,
}

/// Samples in order of their middle, and the requests that they may be.
pub(super) struct Tracker<'a> {
    samples: Vec<&'a Sample>,
    requests: Requests<'a>,
    uncertainty_ns: i64,
}

impl<'a> Tracker<'a> {
    pub(super) fn new(
        mut samples: Vec<&'a Sample>,
        requests: Requests<'a>,
        uncertainty_ns: i64,
    ) -> Self {
        samples.sort_by_key(|sample| middle(sample));
        Self { samples, requests, uncertainty_ns }
    }

    /// How the difference moves, or that nothing says that it does; `None` where it is not found.
    pub(super) fn course(&self) -> Option<Option<Course>> {
        let clusters = self.clusters();
        let peaks = self.follow(&clusters)?;
        Some(self.course_of(&clusters, &peaks))
    }

    fn course_of(&self, clusters: &[&[&Sample]], peaks: &[(&[&Sample], Peak)]) -> Option<Course> {
        let usual_of = |value: fn(&Ways) -> i64| {
            let mut values: Vec<i64> = peaks.iter().map(|(_, peak)| value(&peak.ways)).collect();
            median(&mut values).unwrap_or(0)
        };
        let usual =
            Ways { both_ns: usual_of(|ways| ways.both_ns), give_ns: usual_of(|ways| ways.give_ns) };
        let precision_ns = self.samples.iter().map(|sample| sample.precision_ns).max()?;
        let mut course = Course {
            lines: between(peaks),
            seen: (peaks.first()?.1.at, peaks.last()?.1.at),
            spans_ns: Vec::new(),
            both_ns: 0.0,
            tolerance_ns: 0.0,
        };
        for round in 0..2 {
            let bound = |(cluster, peak): &(&[&Sample], Peak)| {
                let smear_ns = if round == 0 { smear_ns(cluster) } else { 0 };
                let give_ns = peak.ways.give_ns + smear_ns;
                self.bound(cluster, &course, Ways { give_ns, ..peak.ways })
            };
            let mut bounds: Vec<Bound> = peaks.iter().filter_map(bound).collect();
            if bounds.len() < LEAST {
                return None;
            }
            // So far, what both ways took in the part.
            let mut both: Vec<f64> = bounds.iter().map(|bound| bound.half_ns * 2.0).collect();
            both.sort_unstable_by(f64::total_cmp);
            course.both_ns = both[both.len() / 10];
            for bound in &mut bounds {
                bound.half_ns = (bound.half_ns - course.both_ns / 2.0).max(0.0);
            }
            course.tolerance_ns =
                TOLERANCE_NS + precision_ns as f64 + DEVIATIONS * scatter_ns(&bounds);
            if constant(&bounds, course.tolerance_ns).is_some() {
                return None;
            }
            let parts = lines(&bounds, course.tolerance_ns)?;
            let span_ns = |first: usize, last: usize| (bounds[last].at - bounds[first].at) as f64;
            course.spans_ns = parts.iter().map(|(_, first, last)| span_ns(*first, *last)).collect();
            course.seen = (bounds[0].at, bounds[bounds.len() - 1].at);
            course.lines = self.joined(&parts, &bounds, course.tolerance_ns, usual);
        }
        // Where requests at regular distances fit the samples of other ones, a step may be any of several.
        let alone = peaks.iter().filter(|(_, peak)| peak.is_alone).count();
        let is_slow = |line: &Line| line.slope.abs() <= SMEAR;
        let is_steady = course.lines.iter().all(is_slow) && course.steps_ns().next().is_none();
        let is_sure = alone * 2 > peaks.len() || is_steady;
        (is_sure && self.is_better(clusters, &course, usual)).then_some(course)
    }

    /// Short times with enough samples, spread over the run.
    fn clusters(&self) -> Vec<&[&'a Sample]> {
        let size = (self.samples.len() / CLUSTERS).clamp(LEAST, MOST);
        let count = (self.samples.len() / size).clamp(1, CLUSTERS);
        let from = |number: usize| number * (self.samples.len() / count);
        (0..count)
            .filter_map(|number| self.samples.get(from(number)..from(number) + size))
            .collect()
    }

    /// The peaks of the clusters that have one, from the clearest on in both directions.
    fn follow<'b>(&self, clusters: &[&'b [&'a Sample]]) -> Option<Vec<(&'b [&'a Sample], Peak)>> {
        let any = |place: usize| {
            let few = &clusters[place][..clusters[place].len().min(FEW)];
            Some((place, self.peak(few, 0, self.uncertainty_ns)?))
        };
        let clear = |peak: &Peak| peak.clear;
        let first = (0..clusters.len()).filter_map(any);
        let (first, peak) = first.max_by(|one, other| clear(&one.1).total_cmp(&clear(&other.1)))?;
        let step = |last: &mut Peak, place: usize| {
            let away = (middle(clusters[place][0]) - last.at).abs() as f64 * WANDER;
            let most_ns = self.uncertainty_ns.max(STEP_NS) + away as i64;
            let found = self.peak(clusters[place], last.difference_ns, most_ns);
            if let Some(peak) = found {
                *last = peak;
            }
            Some(found.map(|peak| (clusters[place], peak)))
        };
        let before = (0..first).rev().scan(peak, step).flatten();
        let mut peaks: Vec<_> = before.collect();
        peaks.reverse();
        peaks.push((clusters[first], peak));
        peaks.extend((first + 1..clusters.len()).scan(peak, step).flatten());
        let seen_ns = peaks.last()?.1.at - peaks.first()?.1.at;
        let all_ns = middle(self.samples.last()?) - middle(self.samples.first()?);
        (peaks.len() >= LEAST && seen_ns >= all_ns / 2).then_some(peaks)
    }

    /// What the samples of a cluster agree on, if it is not further than `most_ns` from `about_ns`.
    fn peak(&self, cluster: &[&Sample], about_ns: i64, most_ns: i64) -> Option<Peak> {
        let smear_ns = smear_ns(cluster);
        let mut trips: Vec<Vec<Trip>> = Vec::new();
        let mut wide_ns = 0;
        let mut best: Option<Peak> = None;
        for give_ns in GIVE_NS {
            let step_ns = give_ns + smear_ns;
            // Coincidence has to be seen as well, and one way may be longer than the other one.
            let reach_ns = most_ns + give_ns * LONGEST / 2;
            let needed_ns = reach_ns.max(COINCIDENCE * step_ns);
            if needed_ns > wide_ns {
                wide_ns = needed_ns;
                let of =
                    |sample: &&Sample| self.requests.trips(sample, about_ns, wide_ns).collect();
                trips = cluster.iter().map(of).collect();
                if trips.iter().map(Vec::len).sum::<usize>() > MOST_TRIPS * cluster.len() {
                    break;
                }
            }
            let cell = |trip: &Trip| Cell {
                row: trip.both_ns.div_euclid(give_ns),
                step: (trip.difference_ns - about_ns).div_euclid(step_ns),
            };
            let counts = Counts::new(&trips, 2 * wide_ns / step_ns, |trip| {
                (trip.both_ns <= give_ns * LONGEST).then(|| cell(trip))
            });
            let is_near = |at: &Cell| ((at.step + 1) * step_ns).abs() <= reach_ns + step_ns;
            let Some((highest, clear)) = counts.clearest(is_near) else { continue };
            // Of several that are about as good, the nearest.
            let enough = (counts.around(highest) as f64 * ABOUT) as usize;
            let rivals: Vec<Cell> =
                counts.in_row(highest.row).filter(|at| counts.around(*at) >= enough).collect();
            let rank = |at: &&Cell| ((at.step + 1).abs(), usize::MAX - counts.around(**at));
            let at = *rivals.iter().filter(|at| is_near(at)).min_by_key(rank)?;
            let is_alone = rivals.iter().all(|other| (other.step - at.step).abs() <= 1);
            let agree = counts.above_chance(at) / cluster.len() as f64;
            let needed = CLEAR.min(0.7 * cluster.len() as f64);
            let is_best = best.is_none_or(|best| clear > best.clear * 1.1);
            if clear < needed || agree < AGREE || !is_best {
                continue;
            }
            let is_in = |trip: &&Trip| cell(trip).is_around(at);
            let middle_of = |value: fn(&Trip) -> i64| {
                let mut values: Vec<i64> =
                    trips.iter().flatten().filter(is_in).map(value).collect();
                median(&mut values).unwrap_or(0)
            };
            best = Some(Peak {
                at: middle(cluster[cluster.len() / 2]),
                difference_ns: middle_of(|trip| trip.difference_ns),
                ways: Ways { both_ns: middle_of(|trip| trip.both_ns), give_ns },
                clear,
                is_alone,
            });
            if agree > ENOUGH {
                break;
            }
        }
        best
    }

    /// What the trips of a cluster near the course say. `half_ns` is what both ways took.
    fn bound(&self, cluster: &[&Sample], course: &Course, ways: Ways) -> Option<Bound> {
        let mut there = Vec::with_capacity(cluster.len());
        let mut back = Vec::with_capacity(cluster.len());
        let mut times = Vec::with_capacity(cluster.len());
        for sample in cluster {
            let time = middle(sample);
            let expected_ns = course.at(time);
            if let Some(trip) = self.nearest(sample, expected_ns, ways) {
                there.push(trip.there_ns(expected_ns));
                back.push(trip.back_ns(expected_ns));
                times.push(time);
            }
        }
        let shortest = |ways: &mut [f64]| {
            let place = ways.len() / SHORTEST;
            *ways.select_nth_unstable_by(place, f64::total_cmp).1
        };
        if times.len() < LEAST / 2 || times.len() * 10 < cluster.len() * 3 {
            return None;
        }
        let all: i128 = times.iter().map(|time| i128::from(*time)).sum();
        let at = (all / times.len() as i128) as i64;
        let (there_ns, back_ns) = (shortest(&mut there), shortest(&mut back));
        let middle_ns = course.at(at) + (there_ns - back_ns) / 2.0;
        Some(Bound { at, middle_ns, half_ns: (there_ns + back_ns) / 2.0 })
    }

    /// The trip of a sample that is nearest to a difference, and to what both ways usually take.
    fn nearest(&self, sample: &Sample, expected_ns: f64, ways: Ways) -> Option<Trip> {
        let expected_ns = expected_ns as i64;
        let trips = self.requests.trips(sample, expected_ns, ways.give_ns);
        let of_both = |trip: &Trip| (trip.both_ns - ways.both_ns).abs();
        trips
            .filter(|trip| of_both(trip) <= 2 * ways.give_ns)
            .min_by_key(|trip| (trip.difference_ns - expected_ns).abs() + of_both(trip) / 2)
    }

    /// The lines, each valid up to the next one: to where both meet, or to where the clock stepped.
    fn joined(
        &self,
        parts: &[(Line, usize, usize)],
        bounds: &[Bound],
        tolerance_ns: f64,
        ways: Ways,
    ) -> Vec<Line> {
        let mut joined: Vec<Line> = parts.iter().map(|(line, _, _)| *line).collect();
        for (place, pair) in parts.windows(2).enumerate() {
            let ((before, _, last), (after, first, _)) = (pair[0], pair[1]);
            let (last, first) = (bounds[last].at, bounds[first].at);
            let between = last + (first - last) / 2;
            let step_ns = after.at(between) - before.at(between);
            let until = if step_ns.abs() > 2.0 * tolerance_ns {
                let give_ns = ways.give_ns.max(step_ns.abs() as i64 / 2);
                self.step((before, after), (last, first), Ways { give_ns, ..ways })
            } else {
                let meet = between as f64 - step_ns / (after.slope - before.slope);
                if (last as f64..=first as f64).contains(&meet) { meet as i64 } else { between }
            };
            // In order, whatever the samples around a step say.
            let earlier = place.checked_sub(1).map_or(i64::MIN, |place| joined[place].until);
            joined[place].until = until.max(earlier);
        }
        joined
    }

    /// When the clock stepped: before, samples are nearer to one line, and then to the other.
    fn step(&self, (before, after): (Line, Line), (from, until): (i64, i64), ways: Ways) -> i64 {
        // A cluster at the border may contain the step.
        let wide = until - from;
        let most_ns = ways.give_ns as f64;
        let place = |time: i64| self.samples.partition_point(|sample| middle(sample) < time);
        let around = &self.samples[place(from - wide)..place(until + wide)];
        let mut best = (0.0, from + wide / 2);
        let mut sum = 0.0;
        for sample in around.iter().step_by(around.len() / AROUND_STEP + 1) {
            let time = middle(sample);
            let away = |line: Line| {
                let expected_ns = line.at(time);
                let trip = self.nearest(sample, expected_ns, ways);
                let away = trip.map(|trip| (trip.difference_ns as f64 - expected_ns).abs());
                away.unwrap_or(most_ns).min(most_ns)
            };
            sum += away(after) - away(before);
            if sum > best.0 {
                best = (sum, time + 1);
            }
        }
        best.1
    }

    /// Whether the course explains samples that no constant difference explains: at regular intervals,
    /// requests fit the samples of other ones.
    fn is_better(&self, clusters: &[&[&Sample]], course: &Course, ways: Ways) -> bool {
        let near = Ways { give_ns: ways.give_ns / 2, ..ways };
        let mut places: Vec<f64> = clusters
            .iter()
            .filter_map(|cluster| Some(course.at(middle(cluster.first()?))))
            .collect();
        places.sort_unstable_by(f64::total_cmp);
        let Some(usual_ns) = places.get(places.len() / 2).copied() else { return false };
        let (mut explained, mut anyway) = (0, 0);
        for sample in clusters.iter().flat_map(|cluster| cluster.iter()) {
            let expected_ns = course.at(middle(sample));
            if (expected_ns - usual_ns).abs() > 2.0 * ways.give_ns as f64 {
                let is_near = |value_ns: f64| self.nearest(sample, value_ns, near).is_some();
                explained += usize::from(is_near(expected_ns));
                anyway += usize::from(is_near(usual_ns));
            }
        }
        anyway as f64 <= explained as f64 * ABOUT
    }
}

/// By how much a drift spreads the differences in a cluster.
fn smear_ns(cluster: &[&Sample]) -> i64 {
    let (Some(first), Some(last)) = (cluster.first(), cluster.last()) else { return 0 };
    ((middle(last) - middle(first)) as f64 * SMEAR) as i64
}

/// Lines from peak to peak; one that is far from both its neighbours is none.
fn between<T>(peaks: &[(T, Peak)]) -> Vec<Line> {
    let differences: Vec<i64> = peaks.iter().map(|(_, peak)| peak.difference_ns).collect();
    let smooth = |place: usize| {
        let from = place.saturating_sub(1);
        let mut near = differences[from..(place + 2).min(differences.len())].to_vec();
        near.sort_unstable();
        if near.len() < 3 { differences[place] } else { near[1] }
    };
    let point = |place: usize| Bound {
        at: peaks[place].1.at,
        middle_ns: smooth(place) as f64,
        half_ns: 0.0,
    };
    let line = |place: usize| Line::between(&point(place), &point(place + 1));
    (0..peaks.len().saturating_sub(1)).map(line).collect()
}
