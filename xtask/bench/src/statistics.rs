//! Medians and their confidence intervals.

use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The middle value; the mean of the middle two of an even number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

/// The median with the interval between the order statistics that enclose it with a probability of
/// 95 %, whatever the distribution; fewer than six values have none, and give their whole range.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let value = median(&sorted);
    let outside = values_outside(sorted.len());
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    Estimate { value, low: at(outside), high: at(sorted.len().saturating_sub(1 + outside)) }
}

/// How many values may be cut off at either end: as many as the median lies beyond with at most
/// 2.5 % (the binomial distribution of tossing a coin `count` times).
fn values_outside(count: usize) -> usize {
    let mut probability = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let mut beyond = probability;
    let mut outside = 0;
    while beyond <= 0.025 && outside < count / 2 {
        outside += 1;
        probability *= (count - outside + 1) as f64 / outside as f64;
        beyond += probability;
    }
    outside.saturating_sub(1)
}

const RESAMPLES: usize = 4000;

/// The ratio of two medians, with the interval that drawing both sets again gives. `None` when the
/// divisor's own interval reaches zero: a ratio to noise means nothing.
pub(crate) fn ratio(over: &[f64], under: &[f64]) -> Option<Estimate> {
    if over.is_empty() || under.is_empty() || estimate(under).low <= 0.0 {
        return None;
    }
    // The same intervals from the same rows, always.
    let mut random = SmallRng::seed_from_u64(1);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| redrawn_median(over, &mut random) / redrawn_median(under, &mut random))
        .collect();
    ratios.sort_by(f64::total_cmp);
    Some(Estimate {
        value: median(over) / median(under),
        low: ratios[RESAMPLES / 40],
        high: ratios[RESAMPLES - 1 - RESAMPLES / 40],
    })
}

fn redrawn_median(values: &[f64], random: &mut impl Rng) -> f64 {
    let drawn: Vec<f64> =
        (0..values.len()).map(|_| values[random.random_range(0..values.len())]).collect();
    median(&drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn intervals_are_those_of_the_sign_test() {
        // Tables of the sign test: n, values cut off at each end.
        for (count, outside) in [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (15, 3), (25, 7)] {
            assert_eq!(values_outside(count), outside, "{count}");
        }
        let values: Vec<f64> = (1..=15).map(f64::from).collect();
        assert_eq!(estimate(&values), Estimate { value: 8.0, low: 4.0, high: 12.0 });
        assert_eq!(estimate(&[2.0, 1.0]), Estimate { value: 1.5, low: 1.0, high: 2.0 });
    }

    #[test]
    fn ratios_enclose_the_truth_and_refuse_noise() {
        let over: Vec<f64> = (0..21).map(|step| 100.0 + f64::from(step)).collect();
        let under: Vec<f64> = (0..21).map(|step| 400.0 + f64::from(step)).collect();
        let found = ratio(&over, &under).unwrap();
        assert!(found.low < found.value && found.value < found.high, "{found:?}");
        assert!(found.low > 0.2 && found.high < 0.3, "{found:?}");
        assert_eq!(ratio(&over, &[-1.0, 2.0]), None);
        assert_eq!(ratio(&over, &[]), None);
    }
}
