//! The limits of CPU time on the cgroups of the target, in words.

use crate::model::{Conditions, CpuLimit, CpuLimitSummary};
use crate::output::text::{clean, count, duration, percent};

/// Characters of the name of a cgroup.
const NAME_CHARACTERS: usize = 120;
/// Limits that are shown.
const SHOWN: usize = 4;
/// A cgroup that uses less of its limit on average is short of CPU time in bursts only.
const CLEARLY_BELOW: f64 = 0.8;

/// A paragraph for each limit, those first that held threads for longest; empty where there is none.
pub(super) fn paragraphs(conditions: &Conditions) -> Vec<String> {
    let mut limits: Vec<&CpuLimitSummary> = conditions.cpu_limits.iter().collect();
    limits.sort_by_key(|limit| std::cmp::Reverse(limit.throttled_ns));
    let mut paragraphs: Vec<String> =
        limits.iter().take(SHOWN).map(|limit| paragraph(limit)).collect();
    let more = limits.len().saturating_sub(SHOWN);
    if more > 0 {
        paragraphs.push(format!("{more} other limits held threads no longer than these."));
    }
    if conditions.cpu_limits_beyond > 0 {
        let beyond = count(conditions.cpu_limits_beyond);
        paragraphs.push(format!("{beyond} further cgroups of the target may have limits."));
    }
    paragraphs
}

fn paragraph(summary: &CpuLimitSummary) -> String {
    let CpuLimitSummary { limit: CpuLimit { quota_us, period_us, .. }, .. } = summary;
    let microseconds = |us: u64| duration(us as f64 * 1e3);
    let mut text = format!(
        "Cgroup {} may use {} of CPU time in each {} ({:.2} CPUs).",
        clean(&summary.cgroup, NAME_CHARACTERS),
        microseconds(*quota_us),
        microseconds(*period_us),
        summary.limit.cpus(),
    );
    if summary.changed {
        text += " The limit was changed during the run; this is the last one.";
    }
    if summary.throttled_periods == 0 {
        return text + " The limit was never used up.";
    }
    text += &format!(
        " The limit was used up in {} of {} periods, and its threads were held for {} (of all CPUs \
         together).",
        count(summary.throttled_periods),
        count(summary.periods),
        duration(summary.throttled_ns as f64),
    );
    match summary.used_share() {
        Some(share) => text + &advice(summary, share),
        None if summary.usage_ns.is_none() => {
            text + " How much of the limit it used on average is not known, because no cgroup of this name \
                    counts CPU time (controller cpuacct)."
        }
        None => text,
    }
}

/// What to do about a limit that was used up although the cgroup used only this share of it, or nearly all.
fn advice(summary: &CpuLimitSummary, share: f64) -> String {
    let (limit_file, burst_file) = match summary.version {
        1 => ("cpu.cfs_quota_us", "cpu.cfs_burst_us"),
        _ => ("cpu.max", "cpu.max.burst"),
    };
    let used = format!(" On average it used {} of the limit", percent(share));
    if share >= CLEARLY_BELOW {
        return format!("{used}. Raise the limit ({limit_file}), or give the threads less work.");
    }
    let bursts = match summary.limit.burst_us {
        None => String::new(),
        Some(0) => format!(" allow bursts ({burst_file}),"),
        Some(_) => format!(" allow larger bursts ({burst_file}),"),
    };
    format!(
        "{used}: short bursts use up the limit of a period. Raise the limit ({limit_file}),{bursts} or let \
         fewer threads work at a time."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    fn limit(cgroup: &str, throttled_ns: u64) -> CpuLimitSummary {
        CpuLimitSummary {
            cgroup: cgroup.into(),
            version: 2,
            limit: CpuLimit { quota_us: 20_000, period_us: 100_000, burst_us: Some(0) },
            periods: 50,
            throttled_periods: 49,
            throttled_ns,
            usage_ns: Some(310_000_000),
            observed_ns: 5_000_000_000,
            changed: false,
        }
    }

    #[test]
    fn bursts_are_told_from_a_lack_of_cpu_time() {
        let bursts = limit("/foo", 3_900_000_000);
        assert_eq!(
            paragraph(&bursts),
            "Cgroup /foo may use 20.0 ms of CPU time in each 100 ms (0.20 CPUs). The limit was used up in \
             49 of 50 periods, and its threads were held for 3.90 s (of all CPUs together). On average it \
             used 31 % of the limit: short bursts use up the limit of a period. Raise the limit (cpu.max), \
             allow bursts (cpu.max.burst), or let fewer threads work at a time."
        );
        let of_version_1 = CpuLimitSummary { version: 1, ..bursts.clone() };
        assert!(
            paragraph(&of_version_1)
                .contains("(cpu.cfs_quota_us), allow bursts (cpu.cfs_burst_us)")
        );
        let larger = CpuLimit { burst_us: Some(1_000), ..bursts.limit };
        let larger = CpuLimitSummary { limit: larger, ..bursts.clone() };
        assert!(paragraph(&larger).contains("allow larger bursts"));
        let older = CpuLimit { burst_us: None, ..bursts.limit };
        let older = CpuLimitSummary { limit: older, ..bursts.clone() };
        assert!(paragraph(&older).contains("Raise the limit (cpu.max), or let fewer"));

        let busy = CpuLimitSummary { usage_ns: Some(990_000_000), ..bursts.clone() };
        let busy = paragraph(&busy);
        assert!(
            busy.contains("it used 99 % of the limit. Raise the limit (cpu.max), or give"),
            "{busy}"
        );
        let unknown = CpuLimitSummary { usage_ns: None, ..bursts.clone() };
        assert!(paragraph(&unknown).contains("used on average is not known"));
        let changed = paragraph(&CpuLimitSummary { changed: true, ..bursts.clone() });
        assert!(changed.contains("was changed") && !changed.contains("On average"), "{changed}");
        let idle = CpuLimitSummary { throttled_periods: 0, throttled_ns: 0, ..bursts };
        assert!(paragraph(&idle).ends_with("(0.20 CPUs). The limit was never used up."));
    }

    #[test]
    fn the_limits_that_held_threads_for_longest_are_shown_and_the_others_counted() {
        let mut conditions = example::attributed().conditions;
        conditions.cpu_limits.clear();
        assert_eq!(paragraphs(&conditions), [""; 0]);
        conditions.cpu_limits = (1..=6).map(|nth| limit(&format!("/{nth}"), nth)).collect();
        conditions.cpu_limits[4].cgroup = example::HOSTILE.into();
        conditions.cpu_limits_beyond = 3;
        let shown = paragraphs(&conditions);
        assert_eq!(shown.len(), SHOWN + 2);
        assert!(shown[0].starts_with("Cgroup /6 may"), "{shown:?}");
        assert!(shown[1].starts_with("Cgroup </b><i>?[31m may"), "{shown:?}");
        assert_eq!(shown[4], "2 other limits held threads no longer than these.");
        assert_eq!(shown[5], "3 further cgroups of the target may have limits.");
    }
}
