//! Instants of a run, as a user writes them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::duration;
use crate::clock::{MonoNanos, WallNanos};
use crate::error::{Error, Exit, Result};
use crate::model::RunInfo;
use crate::output::text::utc;
use crate::text;

const SECOND_NS: u64 = 1_000_000_000;
const DAY_NS: u64 = 24 * 3_600 * SECOND_NS;

/// A time on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// As it was written.
    text: String,
    meaning: Meaning,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// `2026-01-31T12:00:09.5Z`.
    Wall(WallNanos),
    /// `12:00:09.5`: nanoseconds since midnight, UTC.
    OfDay(u64),
    /// `9.5s`: nanoseconds since the begin of the run.
    IntoRun(u64),
}

/// Parses an instant.
///
/// # Errors
/// With what is wrong, for clap to print.
pub(super) fn parse(text: &str) -> std::result::Result<At, String> {
    let meaning = if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        u64::try_from(time.unix_timestamp_nanos()).ok().map(|ns| Meaning::Wall(WallNanos(ns)))
    } else if text.contains(':') {
        of_day(text).map(Meaning::OfDay)
    } else {
        let ns = duration::parse(text).ok().map(|time| time.as_nanos());
        ns.and_then(|ns| u64::try_from(ns).ok()).map(Meaning::IntoRun)
    };
    let meaning = meaning.ok_or_else(|| {
        format!(
            "{text:?} is not a time: write 2026-01-31T12:00:09.5Z, 12:00:09.5 (UTC, on the day of the \
             run), or 9.5s (since the begin of the run)"
        )
    })?;
    Ok(At { text: text.to_owned(), meaning })
}

/// Nanoseconds since midnight of `HH:MM:SS` with up to nine decimals.
fn of_day(text: &str) -> Option<u64> {
    let mut fields = text.split(':');
    let (hours, minutes, seconds) = (fields.next()?, fields.next()?, fields.next()?);
    let (seconds, decimals) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let number = |field: &str, below: u64| {
        let is_number = field.len() == 2 && field.bytes().all(|byte| byte.is_ascii_digit());
        field.parse().ok().filter(|number: &u64| is_number && *number < below)
    };
    let is_decimals = (1..=9).contains(&decimals.len())
        && decimals.bytes().all(|byte| byte.is_ascii_digit())
        && fields.next().is_none();
    let nanos: u64 = format!("{decimals:0<9}").parse().ok().filter(|_| is_decimals)?;
    let minutes = number(hours, 24)? * 60 + number(minutes, 60)?;
    Some((minutes * 60 + number(seconds, 60)?) * SECOND_NS + nanos)
}

impl At {
    /// The instant on the kernel's clock.
    ///
    /// # Errors
    /// [`Exit::Usage`] when it is not within the run.
    pub(super) fn within(&self, run: &RunInfo) -> Result<MonoNanos> {
        let begin = run.anchors.to_wall(run.start_ns);
        let time = match self.meaning {
            Meaning::IntoRun(ns) => run.start_ns.0.checked_add(ns).map(MonoNanos),
            Meaning::Wall(wall) => run.anchors.to_monotonic(wall),
            Meaning::OfDay(ns) => begin.and_then(|WallNanos(begin)| {
                let today = begin / DAY_NS * DAY_NS + ns;
                // The run went on after midnight.
                let wall = if today < begin { today + DAY_NS } else { today };
                run.anchors.to_monotonic(WallNanos(wall))
            }),
        };
        if let Some(time) = time.filter(|time| (run.start_ns..=run.end_ns).contains(time)) {
            return Ok(time);
        }
        let length = text::duration(run.end_ns.since(run.start_ns) as f64);
        let since = begin.map_or_else(String::new, |begin| format!(" from {}", utc(begin)));
        let given = text::clean(&self.text, 60);
        let problem = format!(
            "--at {given} is not within the run, which lasted {length}{since}: choose another"
        );
        Err(Error::new(Exit::Usage, problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Anchor, Anchors};
    use crate::output::example;

    /// A run of 30 s that begins at this time of the wall clock.
    fn run(begin: &str) -> RunInfo {
        let begin = OffsetDateTime::parse(begin, &Rfc3339).expect("a time").unix_timestamp_nanos();
        let mut run = example::run();
        run.anchors = Anchors(vec![Anchor {
            monotonic_ns: run.start_ns,
            wall_ns: WallNanos(u64::try_from(begin).expect("after 1970")),
            uncertainty_ns: 1,
        }]);
        run
    }

    /// Nanoseconds into the run.
    fn at(text: &str, run: &RunInfo) -> u64 {
        let at = parse(text).unwrap_or_else(|error| panic!("{error}"));
        at.within(run).unwrap_or_else(|error| panic!("{error}")).since(run.start_ns)
    }

    #[test]
    fn an_instant_is_written_in_three_ways() {
        let run = run("2026-01-31T12:00:00.25Z");
        for text in
            ["2026-01-31T12:00:09.750Z", "2026-01-31T13:00:09.75+01:00", "12:00:09.75", "9.5s"]
        {
            assert_eq!(at(text, &run), 9_500_000_000, "{text}");
        }
        assert_eq!(at("12:00:00.250000001", &run), 1);
        assert_eq!((at("0s", &run), at("30s", &run)), (0, 30_000_000_000));
        for text in [
            "",
            "9.5",
            "12:00",
            "24:00:00",
            "12:60:00",
            "12:00:60",
            "1:00:00",
            "12:00:00.",
            "12:00:00:00",
            "12:00:00.0000000001",
            "+2:00:00",
            "2026-01-31",
            "1960-01-31T12:00:09Z",
            "yesterday",
            "-1s",
        ] {
            assert!(parse(text).is_err_and(|why| why.contains("is not a time")), "{text}");
        }
    }

    #[test]
    fn a_time_of_day_after_midnight_is_of_the_next_day() {
        let run = run("2026-01-31T23:59:50Z");
        assert_eq!(at("23:59:55", &run), 5_000_000_000);
        assert_eq!(at("00:00:05.5", &run), 15_500_000_000);
    }

    #[test]
    fn an_instant_outside_the_run_is_refused_in_one_line() {
        let run = run("2026-01-31T12:00:00Z");
        for text in ["31s", "11:59:59", "12:00:31", "2026-02-01T12:00:00Z", "2025-01-31T12:00:00Z"]
        {
            let error = parse(text).expect("a time").within(&run).expect_err("outside");
            assert_eq!(error.exit, Exit::Usage);
            let wanted = format!(
                "--at {text} is not within the run, which lasted 30.0 s from 2026-01-31 \
                 12:00:00.000000 UTC: choose another"
            );
            assert_eq!(error.to_string(), wanted);
        }
        let without = RunInfo { anchors: Anchors::default(), ..run };
        assert!(parse("12:00:01").expect("a time").within(&without).is_err());
        assert_eq!(at("1s", &without), SECOND_NS);
    }
}
