//! A function of time that is a line, or a few of them, through what is known of the difference of two clocks.

/// In a part of the run, what the trips say about the difference of the clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bound {
    /// The middle of the part.
    pub(super) at: i64,
    /// The difference, nanoseconds.
    pub(super) middle_ns: f64,
    /// It may be larger or smaller by so much, because both ways took longer than the shortest ones.
    pub(super) half_ns: f64,
}

/// So many parts one after the other are no outliers, for a constant and for one of several lines.
const TOGETHER_CONSTANT: usize = 3;
const TOGETHER: usize = 2;
/// And a line has at most this share of outliers.
const MOST_OUTLIERS: f64 = 0.1;
/// A line that nothing fits has so many parts at least, and there are at most so many lines.
const LEAST_PARTS: usize = 2 * TOGETHER;
const MOST_LINES: usize = 32;

/// A line, valid up to an instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Line {
    /// The first instant of the next one.
    pub(super) until: i64,
    from: i64,
    value_ns: f64,
    /// Nanoseconds for each nanosecond.
    pub(super) slope: f64,
}

impl Line {
    pub(super) fn at(&self, time: i64) -> f64 {
        self.value_ns + self.slope * (time - self.from) as f64
    }

    pub(super) const fn constant(value_ns: f64) -> Self {
        Self { until: i64::MAX, from: 0, value_ns, slope: 0.0 }
    }

    /// From one to the next, and valid up to it.
    pub(super) fn between(one: &Bound, next: &Bound) -> Self {
        let slope = (next.middle_ns - one.middle_ns) / ((next.at - one.at) as f64).max(1.0);
        Self { until: next.at, from: one.at, value_ns: one.middle_ns, slope }
    }

    /// By least squares, where what is better known has more weight.
    fn through(bounds: &[Bound], tolerance_ns: f64) -> Self {
        let from = bounds.first().map_or(0, |bound| bound.at);
        let mut line = Self { from, ..Self::constant(0.0) };
        let mut sums = [0.0; 5];
        for bound in bounds {
            let weight = (tolerance_ns + bound.half_ns).powi(-2);
            let (x, y) = ((bound.at - from) as f64, bound.middle_ns);
            let terms = [1.0, x, y, x * x, x * y];
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += weight * term;
            }
        }
        let [all, x, y, xx, xy] = sums;
        let spread = all * xx - x * x;
        if spread > 0.0 {
            line.slope = (all * xy - x * y) / spread;
        }
        if all > 0.0 {
            line.value_ns = (y - line.slope * x) / all;
        }
        line
    }

    fn misses(&self, bound: &Bound, tolerance_ns: f64) -> bool {
        (self.at(bound.at) - bound.middle_ns).abs() > bound.half_ns + tolerance_ns
    }

    /// Whether the line is as near to the bounds as can be expected.
    fn fits(&self, bounds: &[Bound], tolerance_ns: f64, most_together: usize) -> bool {
        let (mut all, mut together) = (0, 0);
        for bound in bounds {
            together = if self.misses(bound, tolerance_ns) { together + 1 } else { 0 };
            all += usize::from(together > 0);
            if together >= most_together {
                return false;
            }
        }
        all as f64 <= (bounds.len() as f64 * MOST_OUTLIERS).max(1.0)
    }

    /// The same line again without the outliers.
    fn polished(self, bounds: &[Bound], tolerance_ns: f64) -> Self {
        let is_near = |bound: &&Bound| !self.misses(bound, tolerance_ns);
        let near: Vec<Bound> = bounds.iter().filter(is_near).copied().collect();
        let polished = Self::through(&near, tolerance_ns);
        let is_fit = near.len() >= TOGETHER && polished.fits(bounds, tolerance_ns, TOGETHER);
        if is_fit { polished } else { self }
    }
}

/// The constant that the bounds allow, if there is one.
pub(super) fn constant(bounds: &[Bound], tolerance_ns: f64) -> Option<f64> {
    let sorted = |value: fn(&Bound) -> f64| {
        let mut values: Vec<f64> = bounds.iter().map(value).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let lows = sorted(|bound| bound.middle_ns - bound.half_ns);
    let highs = sorted(|bound| bound.middle_ns + bound.half_ns);
    let middles = sorted(|bound| bound.middle_ns);
    let few = bounds.len() / 20;
    let between = (lows.get(lows.len().checked_sub(1 + few)?)? + highs.get(few)?) / 2.0;
    let candidates = [between, middles[middles.len() / 2]];
    let fits = |value: &f64| Line::constant(*value).fits(bounds, tolerance_ns, TOGETHER_CONSTANT);
    candidates.into_iter().find(fits)
}

/// As few lines as fit, with the places of their first and last bounds; `None` where a few lines do not describe
/// it, so that it is not the difference of two clocks.
pub(super) fn lines(bounds: &[Bound], tolerance_ns: f64) -> Option<Vec<(Line, usize, usize)>> {
    let mut open = vec![(0, bounds.len())];
    let mut found = Vec::new();
    let mut unfit = 0;
    while let Some((from, until)) = open.pop() {
        let part = &bounds[from..until];
        let line = Line::through(part, tolerance_ns);
        let line = line.polished(part, tolerance_ns);
        let fits = line.fits(part, tolerance_ns, TOGETHER);
        if fits || part.len() < LEAST_PARTS {
            unfit += if fits { 0 } else { part.len() };
            found.push((line, from, until.saturating_sub(1)));
            continue;
        }
        if found.len() + open.len() + 2 > MOST_LINES {
            return None;
        }
        let split = from + split(part, tolerance_ns);
        open.extend([(split, until), (from, split)]);
    }
    (!found.is_empty() && unfit * 10 <= bounds.len()).then_some(found)
}

/// Where two lines fit best.
fn split(bounds: &[Bound], tolerance_ns: f64) -> usize {
    let error = |bounds: &[Bound]| -> f64 {
        let line = Line::through(bounds, tolerance_ns);
        let of = |bound: &Bound| {
            let away = line.at(bound.at) - bound.middle_ns;
            (away / (tolerance_ns + bound.half_ns)).powi(2)
        };
        bounds.iter().map(of).sum()
    };
    let places = TOGETHER..=bounds.len() - TOGETHER;
    let both = |place: &usize| error(&bounds[..*place]) + error(&bounds[*place..]);
    places.min_by(|one, other| both(one).total_cmp(&both(other))).unwrap_or(bounds.len() / 2)
}

/// How much the middles scatter around a line through their neighbours, as a standard deviation.
pub(super) fn scatter_ns(bounds: &[Bound]) -> f64 {
    let away = |three: &[Bound]| {
        let [before, here, after] = three else { return 0.0 };
        let part = (here.at - before.at) as f64 / ((after.at - before.at) as f64).max(1.0);
        let expected = before.middle_ns + (after.middle_ns - before.middle_ns) * part;
        (here.middle_ns - expected).abs()
    };
    let mut all: Vec<f64> = bounds.windows(3).map(away).collect();
    all.sort_unstable_by(f64::total_cmp);
    // The median of the absolute deviation from the mean of two others.
    all.get(all.len() / 2).map_or(0.0, |median| median * 1.21)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE_NS: f64 = 10.0;

    /// A bound a second, with an error of up to 5 ns.
    fn bounds(count: i64, value: impl Fn(i64) -> f64) -> Vec<Bound> {
        let bound = |number: i64| {
            let error_ns = (number * number * 31 % 11 - 5) as f64;
            Bound { at: number * 1_000_000_000, middle_ns: value(number) + error_ns, half_ns: 1.0 }
        };
        (0..count).map(bound).collect()
    }

    #[test]
    fn a_constant_fits_unless_several_bounds_together_exclude_it() {
        let level = bounds(50, |_| 500.0);
        let found = constant(&level, TOLERANCE_NS).expect("it is one");
        assert!((found - 500.0).abs() < 5.0, "{found}");
        let outliers = bounds(50, |number| if number % 20 == 7 { 900.0 } else { 500.0 });
        assert!(constant(&outliers, TOLERANCE_NS).is_some());
        let moved = bounds(50, |number| if (20..23).contains(&number) { 900.0 } else { 500.0 });
        assert_eq!(constant(&moved, TOLERANCE_NS), None);
        let wide = moved.iter().map(|bound| Bound { half_ns: 450.0, ..*bound });
        assert!(constant(&wide.collect::<Vec<_>>(), TOLERANCE_NS).is_some());
        assert_eq!(constant(&[], TOLERANCE_NS), None);
    }

    #[test]
    fn as_few_lines_as_fit_are_found() {
        let line = bounds(100, |number| 20.0 * number as f64);
        let found = lines(&line, TOLERANCE_NS).expect("it is one line");
        assert_eq!(found.len(), 1);
        assert!((found[0].0.slope * 1e9 - 20.0).abs() < 0.2, "{found:?}");
        let step = bounds(100, |number| if number < 40 { 0.0 } else { 5_000.0 + number as f64 });
        let found = lines(&step, TOLERANCE_NS).expect("it is two lines");
        let places: Vec<_> = found.iter().map(|(_, first, last)| (*first, *last)).collect();
        assert_eq!(places, [(0, 39), (40, 99)]);
        let wild = bounds(200, |number| (number * number * 7_919 % 10_007) as f64);
        assert!(lines(&wild, TOLERANCE_NS).is_none());
    }

    #[test]
    fn the_scatter_is_that_around_any_line() {
        let level = scatter_ns(&bounds(100, |_| 0.0));
        assert!((1.0..8.0).contains(&level), "{level}");
        let line = scatter_ns(&bounds(100, |number| 1e6 * number as f64));
        assert!((line - level).abs() < 0.1, "{line}");
        assert_eq!(scatter_ns(&[]), 0.0);
    }
}
