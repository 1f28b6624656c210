//! Computes intended starts for generators that number their requests but do not write when each was
//! due.

use super::RawRow;

/// Fewer rows do not show whether a rate was constant.
const MIN_ROWS: usize = 20;

/// A request this close to its slot was sent on schedule: timer and scheduling noise of a healthy
/// generator, which sends within 0.3 ms.
const ON_TIME_NS: f64 = 2_000_000.0;

/// This share of the requests must have been on schedule. The rest may be the burst after the
/// generator itself was stopped, which is what the schedule is needed for.
const ON_TIME_SHARE: f64 = 0.75;

/// Slots are laid at the early edge of what was sent: a request cannot be sent before it is due,
/// so lateness is never negative. The earliest 2 % are left out as noise.
const EARLY_EDGE: f64 = 0.02;

/// Rates given per minute are below ten a second.
const MAX_PER_MINUTE: f64 = 600.0;

/// A constant rate: a number of requests in a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    requests: f64,
    per_seconds: f64,
}

impl Rate {
    pub(super) const fn unit(self) -> &'static str {
        if self.per_seconds > 1.0 { "minute" } else { "second" }
    }

    fn period_ns(self) -> f64 {
        self.per_seconds * 1e9 / self.requests
    }

    /// The whole number of requests per second (or per minute) that this period means, if one lies
    /// within what the period may be off. Generators are given such rates; a period that is none
    /// was made by waiting for answers.
    fn near(period_ns: f64, off_ns: f64) -> Option<Self> {
        [1.0, 60.0].into_iter().find_map(|per_seconds| {
            let requests = (per_seconds * 1e9 / period_ns).round();
            let rate = Self { requests, per_seconds };
            // Whole numbers per minute lie so close at high rates that every period is one.
            let telling = per_seconds == 1.0 || requests < MAX_PER_MINUTE;
            let fits = requests >= 1.0 && (rate.period_ns() - period_ns).abs() <= off_ns;
            (telling && fits).then_some(rate)
        })
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.requests)
    }
}

/// Sets the intended start of every row if the numbers and starts of the rows show a constant rate.
/// Otherwise it changes no row and returns the reason.
pub(super) fn derive_constant(rows: &mut [RawRow]) -> Result<Rate, &'static str> {
    let mut points: Vec<(u64, u64)> =
        rows.iter().filter_map(|row| Some((row.seq?, row.start_ns))).collect();
    if points.len() < rows.len() {
        return Err("requests are not numbered");
    }
    if points.len() < MIN_ROWS {
        return Err("too few requests");
    }
    points.sort_unstable();
    if points.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err("request numbers repeat: there are several attacks in one stream");
    }
    let (first_seq, origin_ns) = points[0];
    let relative: Vec<(f64, f64)> = points
        .iter()
        .map(|(seq, start)| {
            ((seq - first_seq) as f64, (i128::from(*start) - i128::from(origin_ns)) as f64)
        })
        .collect();

    // Points half a run apart: a stall and the burst after it do not change the median slope.
    let half = relative.len() / 2;
    let mut slopes: Vec<f64> = relative[..relative.len() - half]
        .iter()
        .zip(&relative[half..])
        .map(|(early, late)| (late.1 - early.1) / (late.0 - early.0))
        .collect();
    let period = quantile(&mut slopes, 0.5);
    if !(period.is_finite() && period > 0.0) {
        return Err("requests were not sent in order of their numbers");
    }
    let span = relative[relative.len() - 1].0;
    let rate = Rate::near(period, ON_TIME_NS / span).ok_or("the rate was not constant")?;
    let period = rate.period_ns();

    let residual = |point: &(f64, f64)| point.1 - point.0 * period;
    let mut residuals: Vec<f64> = relative.iter().map(residual).collect();
    let edge = quantile(&mut residuals, EARLY_EDGE);
    let on_time = residuals.iter().filter(|off| (**off - edge).abs() <= ON_TIME_NS).count();
    if (on_time as f64) < ON_TIME_SHARE * residuals.len() as f64 {
        return Err("the rate was not constant");
    }

    for row in rows {
        let slots = (row.seq.unwrap_or(first_seq) - first_seq) as f64;
        let due = i128::from(origin_ns) + (edge + slots * period).round() as i128;
        row.intended_start_ns = u64::try_from(due).ok().map(|due| due.min(row.start_ns));
    }
    Ok(rate)
}

/// Reorders `values`.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    let at = ((values.len() - 1) as f64 * q).round() as usize;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: u64 = 1_795_241_606_000_000_000;

    fn rows(starts: impl Iterator<Item = u64>) -> Vec<RawRow> {
        starts
            .enumerate()
            .map(|(seq, start)| RawRow {
                intended_start_ns: None,
                start_ns: T0 + start,
                latency_ns: 1,
                status: Some(200),
                error: None,
                seq: Some(seq as u64),
                local_port: None,
                ok: true,
            })
            .collect()
    }

    /// Noise of a few hundred microseconds, the same every time.
    fn jitter(k: u64) -> u64 {
        (k * 7_919) % 311 * 1_000
    }

    #[test]
    fn a_stopped_generator_is_late_by_the_schedule() {
        // 100 requests per second; frozen from 1 s to 1.3 s, then a burst.
        let mut rows = rows((0..300).map(|k| {
            let due = k * 10_000_000 + jitter(k);
            if (1_000_000_000..1_300_000_000).contains(&due) { 1_300_000_000 } else { due }
        }));
        let rate = derive_constant(&mut rows).unwrap();
        assert_eq!((rate.to_string().as_str(), rate.unit()), ("100", "second"));
        let lateness = |row: &RawRow| row.start_ns - row.intended_start_ns.unwrap();
        assert!(rows.iter().map(lateness).max().unwrap() > 299_000_000);
        assert_eq!(rows.iter().filter(|row| lateness(row) > 2_000_000).count(), 30);
    }

    #[test]
    fn a_rate_per_minute_is_found() {
        let mut rows = rows((0..40).map(|k| k * 1_500_000_000 + jitter(k)));
        let rate = derive_constant(&mut rows).unwrap();
        assert_eq!((rate.to_string().as_str(), rate.unit()), ("40", "minute"));
    }

    #[test]
    fn what_is_no_constant_rate_is_left_alone() {
        // A ramp, a closed loop behind answers of 10.7 ms, and a rate that changes half way.
        let ramp = rows((0..300).map(|k| k * 10_000_000 - k * k * 10_000));
        let closed = rows((0..300).map(|k| k * 10_700_000 + jitter(k)));
        let step = rows(
            (0..300).map(|k| if k < 150 { k * 10_000_000 } else { k * 5_000_000 + 750_000_000 }),
        );
        for mut rows in [ramp, closed, step] {
            assert!(derive_constant(&mut rows).is_err());
            assert!(rows.iter().all(|row| row.intended_start_ns.is_none()));
        }
    }

    #[test]
    fn repeated_and_few_numbers_are_refused() {
        let mut twice = rows((0..30).map(|k| k * 10_000_000));
        twice[3].seq = Some(4);
        assert!(derive_constant(&mut twice).is_err());
        assert!(derive_constant(&mut rows((0..19).map(|k| k * 10_000_000))).is_err());
    }
}
