//! Whether a number grew all the time, from readings of it that are not independent of each other.
//!
//! The number of a service's connections follows its load up and down, and a straight line through its
//! readings, which takes them for independent, has an interval far too narrow. So the time is cut into ten
//! parts, and only how much the mean rises from one part to the next counts. The growth is the median
//! of these nine, and its interval lies between the second and the eighth of them in order of size (that of
//! the sign test, 96 % for rises that are independent). It excludes 0 only if the number rose at least eight
//! times of nine. A number that wanders without a direction seems to grow in 3 % of all cases, and one that
//! returns to where it was more rarely (in 0.1 % if a tenth of the distance is gone at each reading).

use crate::model::DescriptorGrowth;

/// Means that are kept.
const CELLS: usize = 120;
/// Parts of the time.
const PARTS: usize = 10;
/// With fewer parts, no interval has 95 %.
const LEAST_PARTS: usize = 7;

/// The readings so far, in a bounded number of means.
#[derive(Debug)]
pub(super) struct Trend {
    cells: Vec<Cell>,
    /// Readings that make a mean.
    in_cell: u32,
}

/// The sums of some readings that follow each other.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    readings: u32,
    seconds: f64,
    number: f64,
}

impl Cell {
    fn add(&mut self, other: Self) {
        self.readings += other.readings;
        self.seconds += other.seconds;
        self.number += other.number;
    }

    /// Its place in time, and its number.
    fn mean(self) -> (f64, f64) {
        let readings = f64::from(self.readings);
        (self.seconds / readings, self.number / readings)
    }
}

impl Trend {
    pub(super) fn new() -> Self {
        Self { cells: Vec::new(), in_cell: 1 }
    }

    /// Takes in a reading, so many seconds after the first one.
    pub(super) fn add(&mut self, seconds: f64, number: u64) {
        let one = Cell { readings: 1, seconds, number: number as f64 };
        let soon = self.comes_soon(seconds);
        match self.cells.last_mut() {
            Some(last) if last.readings < self.in_cell || soon => last.add(one),
            _ => {
                if self.cells.len() == CELLS {
                    self.halve();
                }
                self.cells.push(one);
            }
        }
    }

    /// Whether a reading follows the last one much sooner than others do, as that at the end of a run. Over so
    /// short a time, chance decides how much the number grew.
    fn comes_soon(&self, seconds: f64) -> bool {
        let [first, .., last] = self.cells[..] else { return false };
        let (first, last) = (first.mean().0, last.mean().0);
        seconds - last < (last - first) / (self.cells.len() - 1) as f64 / 2.0
    }

    /// Pairs of means become one, of twice as many readings.
    fn halve(&mut self) {
        let pairs = self.cells.chunks(2).map(|pair| {
            let mut both = pair[0];
            pair[1..].iter().for_each(|other| both.add(*other));
            both
        });
        self.cells = pairs.collect();
        self.in_cell = self.in_cell.saturating_mul(2);
    }

    /// `None` as long as there are too few readings, or they have no time between them.
    pub(super) fn growth(&self) -> Option<DescriptorGrowth> {
        let cells = self.cells.len();
        let parts = cells.min(PARTS);
        if parts < LEAST_PARTS {
            return None;
        }
        let means: Vec<(f64, f64)> = (0..parts)
            .map(|part| {
                let mut sum = Cell::default();
                let of_part = part * cells / parts..(part + 1) * cells / parts;
                self.cells[of_part].iter().for_each(|cell| sum.add(*cell));
                sum.mean()
            })
            .collect();
        let rate = |pair: &[(f64, f64)]| {
            let seconds = pair[1].0 - pair[0].0;
            (seconds > 0.0).then(|| (pair[1].1 - pair[0].1) / seconds)
        };
        let mut rates: Vec<f64> = means.windows(2).map(rate).collect::<Option<_>>()?;
        rates.sort_unstable_by(f64::total_cmp);
        let middle = (rates.len() - 1) as f64 / 2.0;
        let median = f64::midpoint(rates[middle.floor() as usize], rates[middle.ceil() as usize]);
        // Of nine, the outermost are left out; of fewer, that would be less than 95 %.
        let outer = usize::from(rates.len() >= PARTS - 1);
        let ci95_per_s = [rates[outer], rates[rates.len() - 1 - outer]];
        let (last, before) = means.split_last()?;
        let highest_at_end = before.iter().all(|(_, number)| *number < last.1);
        Some(DescriptorGrowth { per_s: median, ci95_per_s, highest_at_end })
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn trend(seconds: u32, number: impl FnMut(f64) -> f64) -> Trend {
        let mut number = number;
        let mut trend = Trend::new();
        for second in 0..seconds {
            let second = f64::from(second);
            trend.add(second, number(second).max(0.0) as u64);
        }
        trend
    }

    fn grows(trend: &Trend) -> bool {
        trend.growth().is_some_and(|growth| growth.ci95_per_s[0] > 0.0 && growth.highest_at_end)
    }

    #[test]
    fn a_leak_is_measured_at_any_length() {
        for seconds in [10, 60, 119, 120, 121, 500, 100_000] {
            let trend = trend(seconds, |second| 20.0 + 3.0 * second);
            let growth = trend.growth().unwrap();
            assert!((growth.per_s - 3.0).abs() < 1e-6, "{seconds}: {growth:?}");
            assert!(growth.ci95_per_s.iter().all(|bound| (bound - 3.0).abs() < 1e-6), "{growth:?}");
            assert!(grows(&trend) && trend.cells.len() <= CELLS, "{seconds}");
        }
    }

    #[test]
    fn a_leak_below_a_load_is_found_and_its_slope_is_in_the_interval() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        let (mut found, mut covered) = (0, 0);
        for _ in 0..200 {
            let trend = trend(60, |second| 100.0 + 2.0 * second + rng.random_range(0.0..30.0));
            let growth = trend.growth().unwrap();
            found += usize::from(grows(&trend));
            covered += usize::from((growth.ci95_per_s[0]..growth.ci95_per_s[1]).contains(&2.0));
        }
        assert!(found >= 190 && covered >= 190, "{found} {covered}");
    }

    #[test]
    fn a_number_that_goes_up_and_down_with_the_load_does_not_grow() {
        // Whatever the period is, from a few readings to a whole run, and wherever it begins.
        for period in [7.0, 13.0, 20.0, 33.0, 47.0, 60.0] {
            for begin in 0..24 {
                let begin = f64::from(begin) / 24.0;
                let wave = |second: f64| 500.0 + 400.0 * (TAU * (second / period + begin)).sin();
                assert!(!grows(&trend(60, wave)), "{period} {begin}");
            }
        }
        // A load that rises for a part of the run and then stays, falls, or begins late.
        for part in [0.1, 0.3, 0.5, 0.7] {
            let risen = |second: f64| (second / (60.0 * part)).min(1.0);
            assert!(!grows(&trend(60, |second| 50.0 + 900.0 * risen(second))), "{part}");
            let fallen = |second: f64| risen(second) - 0.5 * (second / 60.0 - part).max(0.0);
            assert!(!grows(&trend(60, |second| 50.0 + 900.0 * fallen(second))), "{part}");
            let late = |second: f64| ((second / 60.0 - part) / (1.0 - part)).max(0.0);
            assert!(
                !grows(&trend(60, |second| 50.0 + 900.0 * late(second))) || part <= 0.1,
                "{part}"
            );
        }
    }

    #[test]
    fn a_number_that_wanders_grows_by_chance_only_as_often_as_the_interval_says() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        // How much of the distance from its middle is left after a reading: nothing, most, all.
        for left in [0.0, 0.5, 0.9, 0.98, 1.0] {
            let cases = 2_000;
            let alarms = (0..cases)
                .filter(|_| {
                    let mut distance = 0.0;
                    grows(&trend(120, |_| {
                        distance = distance * left + rng.random_range(-10.0..10.0);
                        1_000.0 + distance
                    }))
                })
                .count();
            // 2.5 % are above the interval.
            assert!(alarms as f64 <= 0.035 * f64::from(cases), "{left}: {alarms} of {cases}");
        }
    }

    #[test]
    fn a_last_reading_that_comes_soon_changes_nothing() {
        let mut trend = trend(9, |second| 3.0 * second);
        trend.add(8.05, 24);
        assert!(grows(&trend), "{:?}", trend.growth());
        trend.add(9.0, 27);
        assert_eq!(trend.cells.len(), 10);
    }

    #[test]
    fn few_readings_or_none_at_different_times_are_no_panic() {
        assert_eq!(trend(6, |second| second).growth(), None);
        assert!(grows(&trend(7, |second| second)));
        assert!(!grows(&trend(60, |_| 12.0)));
        let mut at_once = Trend::new();
        (0..50).for_each(|number| at_once.add(0.0, number));
        assert_eq!(at_once.growth(), None);
        let mut huge = Trend::new();
        (0..1_000).for_each(|second| huge.add(f64::from(second), u64::MAX));
        assert!(!grows(&huge));
    }
}
