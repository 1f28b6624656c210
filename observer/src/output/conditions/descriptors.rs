//! The open descriptors of the target's processes, in words.

use crate::model::{DescriptorSample, DescriptorSummary, HostFilesSummary, Summary};
use crate::output::text::{clean, count, duration, percent};

/// Characters of the name of a process.
const NAME_CHARACTERS: usize = 40;
/// Processes that are shown.
const SHOWN: usize = 4;
/// From this part of a limit on, it is said how near it is.
const NEAR: f64 = 0.8;
/// A growth that reaches its limit later is not worth a word after a run of minutes.
const SOON_S: f64 = 24.0 * 3_600.0;
/// What helps a service that needs more descriptors.
const RAISE: &str = "raise the limit (ulimit -n, LimitNOFILE of systemd)";
/// From this part on, the sockets are named as the kind of descriptor.
const MOSTLY: f64 = 0.5;

/// A paragraph for each process that reached its limit, is near to it, or grows towards it, and one for the
/// host; empty where there is nothing to say.
pub(super) fn paragraphs(summary: &Summary) -> Vec<String> {
    let conditions = &summary.conditions;
    let mut told: Vec<(&DescriptorSummary, String)> = conditions
        .descriptors
        .iter()
        .filter_map(|process| Some((process, of_process(process)?)))
        .collect();
    // Those that reached their limit first, then those that will reach it sooner.
    told.sort_by(|(one, _), (other, _)| {
        let key = |process: &DescriptorSummary| {
            let soonest = process.seconds_to_limit().map_or(f64::INFINITY, |(seconds, _)| seconds);
            (!process.limit_reached, soonest)
        };
        let ((one, sooner), (other, later)) = (key(one), key(other));
        one.cmp(&other).then(sooner.total_cmp(&later))
    });
    let more = told.len().saturating_sub(SHOWN);
    let mut paragraphs: Vec<String> =
        told.into_iter().take(SHOWN).map(|(_, paragraph)| paragraph).collect();
    if more > 0 {
        paragraphs
            .push(format!("{more} other processes of the target are near to their limit too."));
    }
    paragraphs.extend(failures(summary));
    paragraphs.extend(conditions.host_files.as_ref().and_then(of_host));
    paragraphs
}

/// `None` where there is nothing to say.
fn of_process(process: &DescriptorSummary) -> Option<String> {
    let limit = process.limit?;
    let soon = process.seconds_to_limit().filter(|(seconds, _)| *seconds <= SOON_S);
    if !process.limit_reached && process.highest_share() < NEAR && soon.is_none() {
        return None;
    }
    let name = format!("{} ({})", process.tgid, clean(&process.name, NAME_CHARACTERS));
    let mut text = if process.limit_reached {
        format!(
            "Process {name} reached its limit of {} open descriptors (ulimit -n): accept, open and socket fail \
             with EMFILE then. The last reading was {}.",
            count(limit),
            count(process.last),
        )
    } else {
        let most = match process.last == process.highest {
            true => format!("has {}", count(process.last)),
            false => format!("had up to {}", count(process.highest)),
        };
        format!("Process {name} {most} of {} descriptors open (ulimit -n).", count(limit))
    };
    let sockets = process.sample.as_ref().map(of_sample).unwrap_or_default();
    let Some((seconds, [earliest, latest])) = soon else {
        let advice = match process.growth {
            _ if process.limit_reached => format!(
                " If the number falls when the load does, {RAISE}. If it stays, the process does not close what \
                 it opens: `ls -l /proc/{}/fd` shows what.",
                process.tgid
            ),
            Some(growth) if process.steady_growth().is_some() => format!(
                " It opened {} more each second than it closed, which takes more than a day to reach the limit.",
                rate(growth.per_s)
            ),
            Some(_) => format!(
                " The number did not grow all the time, as that of a leak does. For a higher load, {RAISE}."
            ),
            None => " The time was too short to say whether the number grows.".to_owned(),
        };
        return Some(text + &sockets + &advice);
    };
    let growth = process.steady_growth()?;
    let [low, high] = growth.ci95_per_s.map(rate);
    text += &format!(
        " It opened {} more each second than it closed (95 %: {low} to {high}).",
        rate(growth.per_s)
    );
    if !process.limit_reached {
        text += &format!(
            " If that goes on, it reaches the limit in {} ({} to {}); accept, open and socket fail with EMFILE \
             then.",
            time(seconds),
            time(earliest),
            time(latest)
        );
    }
    Some(
        text + &sockets
            + &format!(
                " The number rose in nearly every part of the run. If the load did not rise as well, the process \
             does not close what it opens: `ls -l /proc/{}/fd` shows what. A higher limit only delays the end.",
                process.tgid
            ),
    )
}

/// ` 124 of 128 that were looked at are sockets.`
fn of_sample(sample: &DescriptorSample) -> String {
    let DescriptorSample { looked_at, sockets } = *sample;
    if (sockets as f64) < MOSTLY * looked_at as f64 {
        return format!(
            " Only {} of {} that were looked at are sockets.",
            count(sockets),
            count(looked_at)
        );
    }
    format!(" {} of {} that were looked at are sockets.", count(sockets), count(looked_at))
}

/// The calls of the target that failed because no descriptor was left, which the probe of sockets counts.
fn failures(summary: &Summary) -> Option<String> {
    let counters = &summary.probes.get("socket")?.counters;
    let failed = |errno: &str| -> Vec<String> {
        let of_errno =
            counters.iter().filter(|(_, count)| **count > 0).filter_map(|(name, failed)| {
                let call = name.strip_prefix("failed_")?.strip_suffix(errno)?.strip_suffix('_')?;
                Some(format!("{call} {} times", count(failed.unsigned_abs())))
            });
        of_errno.collect()
    };
    let all: Vec<String> = ["EMFILE", "ENFILE"]
        .into_iter()
        .filter_map(|errno| {
            let failed = failed(errno);
            (!failed.is_empty()).then(|| format!("with {errno}: {}", failed.join(", ")))
        })
        .collect();
    (!all.is_empty()).then(|| {
        format!(
            "Calls of the target failed because no descriptor was left, {}. Clients of such a service wait until a \
             descriptor is free, or are refused.",
            all.join("; ")
        )
    })
}

fn of_host(files: &HostFilesSummary) -> Option<String> {
    let share = files.highest as f64 / files.limit.max(1) as f64;
    (share >= NEAR).then(|| {
        format!(
            "All processes of the host together had up to {} of {} files open ({}). At the limit, accept, open \
             and socket fail with ENFILE in every process without CAP_SYS_ADMIN: raise fs.file-max, or find \
             the process that has most of them.",
            count(files.highest),
            count(files.limit),
            percent(share)
        )
    })
}

/// Descriptors a second with two digits that count: `3.1`, `120`, `0.012`.
fn rate(per_s: f64) -> String {
    let digits = match per_s.abs() {
        above if above >= 9.95 => 0,
        above if above >= 0.095 => 1,
        above if above >= 0.0095 => 2,
        _ => 3,
    };
    format!("{per_s:.digits$}")
}

/// A time that may be hours.
fn time(seconds: f64) -> String {
    match seconds {
        short if short < 300.0 => duration(short * 1e9),
        minutes if minutes < 300.0 * 60.0 => format!("{:.0} min", minutes / 60.0),
        hours => format!("{:.0} h", hours / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DescriptorGrowth;
    use crate::output::example;

    fn leak() -> DescriptorSummary {
        let mut process = example::attributed().conditions.descriptors.remove(0);
        process.name = "service".into();
        process
    }

    fn told(process: &DescriptorSummary) -> String {
        of_process(process).expect("there is something to say")
    }

    #[test]
    fn a_leak_is_told_with_the_time_that_is_left() {
        assert_eq!(
            told(&leak()),
            "Process 100 (service) has 1,012 of 1,024 descriptors open (ulimit -n). It opened 3.1 more each \
             second than it closed (95 %: 2.9 to 3.3). If that goes on, it reaches the limit in 3.87 s (3.64 s \
             to 4.14 s); accept, open and socket fail with EMFILE then. 124 of 128 that were looked at are \
             sockets. The number rose in nearly every part of the run. If the load did not rise as well, the \
             process does not close what it opens: `ls -l /proc/100/fd` shows what. A higher limit only delays \
             the end."
        );
        let reached =
            DescriptorSummary { limit_reached: true, last: 1_024, highest: 1_024, ..leak() };
        let text = told(&reached);
        assert!(
            text.starts_with("Process 100 (service) reached its limit of 1,024 open"),
            "{text}"
        );
        assert!(
            !text.contains("If that goes on") && text.contains("3.1 more each second"),
            "{text}"
        );
        // The number stays at the limit then.
        let text = told(&DescriptorSummary { growth: None, ..reached });
        assert!(text.contains("If it stays, the process does not close"), "{text}");
        let hostile = DescriptorSummary { name: example::HOSTILE.into(), ..leak() };
        assert!(told(&hostile).starts_with("Process 100 (</b><i>?[31m) has"), "{}", told(&hostile));
    }

    #[test]
    fn a_number_that_follows_the_load_is_no_leak_and_far_from_the_limit_no_word() {
        let wanders =
            DescriptorGrowth { per_s: 3.1, ci95_per_s: [-0.5, 9.0], highest_at_end: true };
        let falls = DescriptorGrowth { per_s: 3.1, ci95_per_s: [2.9, 3.3], highest_at_end: false };
        for growth in [Some(wanders), Some(falls), None] {
            let near = DescriptorSummary { growth, last: 300, ..leak() };
            let text = told(&near);
            assert!(text.starts_with("Process 100 (service) had up to 1,012 of 1,024"), "{text}");
            assert_eq!(text.contains("did not grow all the time"), growth.is_some(), "{text}");
            assert_eq!(text.contains("too short"), growth.is_none(), "{text}");
            assert!(!text.contains("more each second"), "{text}");
            let far = DescriptorSummary { highest: 800, ..near };
            assert_eq!(of_process(&far), None);
        }
        let unlimited = DescriptorSummary { limit: None, ..leak() };
        assert_eq!(of_process(&unlimited), None);
        let slow =
            DescriptorGrowth { per_s: 0.01, ci95_per_s: [0.009, 0.011], highest_at_end: true };
        let slow = DescriptorSummary { growth: Some(slow), limit: Some(100_000), ..leak() };
        assert_eq!(of_process(&slow), None, "a limit that is months away");
        let near = DescriptorSummary { highest: 90_000, last: 90_000, ..slow };
        assert!(told(&near).ends_with("which takes more than a day to reach the limit."));
    }

    #[test]
    fn few_paragraphs_are_shown_and_failed_calls_and_the_host_are_told() {
        let mut summary = example::attributed();
        summary.conditions.descriptors.clear();
        summary.probes.clear();
        assert_eq!(paragraphs(&summary), [""; 0]);
        summary.conditions.descriptors = (1..=6)
            .map(|tgid| DescriptorSummary { tgid, last: 100 * u64::from(tgid), ..leak() })
            .collect();
        summary.conditions.descriptors[2].limit_reached = true;
        summary.conditions.host_files =
            Some(HostFilesSummary { limit: 1_000, first: 10, last: 20, highest: 990 });
        let of_example = example::attributed().probes;
        summary.probes.insert("socket".into(), of_example["socket"].clone());
        let shown = paragraphs(&summary);
        assert_eq!(shown.len(), SHOWN + 3);
        assert!(
            shown[0].starts_with("Process 3 ") && shown[1].starts_with("Process 6 "),
            "{shown:?}"
        );
        assert_eq!(shown[SHOWN], "2 other processes of the target are near to their limit too.");
        assert_eq!(
            shown[SHOWN + 1],
            "Calls of the target failed because no descriptor was left, with EMFILE: accept 2 times. Clients of such \
             a service wait until a descriptor is free, or are refused."
        );
        assert!(shown[SHOWN + 2].contains("up to 990 of 1,000 files open (99 %)"), "{shown:?}");
    }

    #[test]
    fn rates_and_times_have_digits_that_count() {
        assert_eq!(
            [120.4, 3.12, 0.13, 0.0123, 0.0012].map(rate),
            ["120", "3.1", "0.1", "0.01", "0.001"]
        );
        assert_eq!([4.0, 600.0, 20_000.0].map(time), ["4.00 s", "10 min", "6 h"]);
    }
}
