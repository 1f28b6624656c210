//! Parses durations and thresholds.

use std::time::Duration;

use crate::model::SlowSpec;

/// Nanoseconds of each unit, longest name first so that `ms` is not read as `m`.
const UNITS: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The longest: a month. Sums of two stay far from every overflow.
const MAX_NS: u64 = 30 * 24 * 3_600_000_000_000;

/// Parses `500ms`, `30s`, `1.5s`, `2m`, `1m30s`. A number without a unit is rejected, because tools
/// disagree about its meaning.
///
/// # Errors
/// With what is wrong, for clap to print.
pub fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total_ns: u64 = 0;
    let too_long = || format!("{text:?} is longer than 30 days");
    if text.is_empty() {
        return Err("a duration is a number and a unit, like 30s".into());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(format!("{text:?} is not a duration like 500ms, 30s, 2m or 1m30s"));
        }
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() {
            return Err(format!("{text:?} has no unit: write {number}s for seconds"));
        }
        let Some((_, unit_ns)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("{unit:?} is not a unit of time: use us, ms, s, m or h"));
        };
        let part = decimal(number, *unit_ns)
            .ok_or_else(|| format!("{number:?} is not a number, or is too large for a duration"))?;
        total_ns = total_ns.checked_add(part).filter(|ns| *ns <= MAX_NS).ok_or_else(too_long)?;
        rest = after;
    }
    Ok(Duration::from_nanos(total_ns))
}

/// `number * unit_ns`, exact for as many decimals as there are nanoseconds.
fn decimal(number: &str, unit_ns: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) || fraction.len() > 18 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(unit_ns)?;
    if !fraction.is_empty() {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = fraction.parse::<u128>().ok()? * u128::from(unit_ns) / scale;
        total = total.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(total)
}

/// Parses a duration that is longer than zero.
///
/// # Errors
/// With what is wrong, for clap to print.
pub fn parse_positive(text: &str) -> Result<Duration, String> {
    match parse(text) {
        Ok(duration) if duration.is_zero() => Err("must be longer than zero".into()),
        parsed => parsed,
    }
}

/// Parses a difference of clocks: a duration, or `0`. Nanoseconds.
///
/// # Errors
/// With what is wrong, for clap to print.
pub fn parse_clock_error(text: &str) -> Result<u64, String> {
    if text == "0" {
        return Ok(0);
    }
    let ns = parse(text)?.as_nanos();
    u64::try_from(ns).map_err(|_| format!("{text:?} is too long"))
}

/// Parses `p99`, `p99.9` (a percentile of response time) or `50ms` (a threshold).
///
/// # Errors
/// With what is wrong, for clap to print.
pub fn parse_slow(text: &str) -> Result<SlowSpec, String> {
    if let Some(percentile) = text.strip_prefix('p') {
        let valid = |p: &f64| *p > 0.0 && *p < 100.0;
        return match percentile.parse::<f64>().ok().filter(valid) {
            Some(percentile) => Ok(SlowSpec::Quantile(percentile / 100.0)),
            None => Err(format!("{text:?} is not a percentile between p0 and p100, like p99.9")),
        };
    }
    match parse(text) {
        Ok(threshold) if threshold.is_zero() => Err("the threshold must be above zero".into()),
        Ok(threshold) => u64::try_from(threshold.as_nanos())
            .map(SlowSpec::Threshold)
            .map_err(|_| format!("{text:?} is too long")),
        Err(why) => Err(format!("{why} (or a percentile like p99)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_exactly() {
        for (text, ns) in [
            ("500ms", 500_000_000),
            ("30s", 30_000_000_000),
            ("2m", 120_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5s", 1_500_000_000),
            ("1.5m", 90_000_000_000),
            (".25ms", 250_000),
            ("0.000000001s", 1),
            ("1h", 3_600_000_000_000),
            ("720h", MAX_NS),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_a_hint() {
        assert!(parse("30").unwrap_err().contains("write 30s"));
        assert!(parse("1m30").unwrap_err().contains("write 30s"));
        assert!(parse("5min").unwrap_err().contains("\"min\""));
        for text in [
            "",
            "s",
            "-1s",
            "1..5s",
            ".s",
            " 1s",
            "1e3s",
            "NaNs",
            "infs",
            "1d",
            "1e300h",
            "99999999999999999999s",
            "721h",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse_positive("0ms").is_err());
        assert!(parse_positive("1ns").is_ok());
    }

    #[test]
    fn slow_is_a_percentile_or_a_threshold() {
        assert_eq!(parse_slow("p99"), Ok(SlowSpec::Quantile(0.99)));
        assert_eq!(parse_slow("p99.9").unwrap().to_string(), "p99.9");
        assert_eq!(parse_slow("50ms"), Ok(SlowSpec::Threshold(50_000_000)));
        for text in ["p0", "p100", "p", "pNaN", "p-1", "0ms", "50", "fast"] {
            assert!(parse_slow(text).is_err(), "{text:?}");
        }
    }
}
