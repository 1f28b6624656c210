//! What the hypervisor took of the target's CPUs, and their frequency, in words.

use crate::model::{Conditions, CpuTimeSummary};
use crate::output::text::{duration, percent};

/// From this part of a CPU's time on, steal is told: one request of a hundred may have waited for it then,
/// and that decides about the p99. The kernel counts it in ticks of 10 ms, so that it must be several.
const STOLEN: f64 = 0.01;
const STOLEN_NS: u64 = 100_000_000;
/// A CPU that was busy for this part of the time should have run faster than this part of its highest
/// frequency at least once.
const BUSY: f64 = 0.5;
const SLOW: f64 = 0.8;
/// CPUs that are named.
const NAMED: usize = 4;

/// A paragraph about steal and one about slow CPUs, if they matter.
pub(super) fn paragraphs(conditions: &Conditions) -> Vec<String> {
    [stolen(conditions), slow(conditions)].into_iter().flatten().collect()
}

fn stolen(conditions: &Conditions) -> Option<String> {
    let matters =
        |cpu: &&CpuTimeSummary| cpu.stolen_share() >= STOLEN && cpu.stolen_ns >= STOLEN_NS;
    let mut cpus: Vec<&CpuTimeSummary> = conditions.cpu_times.iter().filter(matters).collect();
    cpus.sort_by(|one, other| other.stolen_share().total_cmp(&one.stolen_share()));
    let worst = cpus.first()?;
    let mut text = format!(
        "The hypervisor took {} of the time of CPU {} ({})",
        percent(worst.stolen_share()),
        worst.cpu,
        duration(worst.stolen_ns as f64)
    );
    let others = cpus[1..].iter().take(NAMED - 1);
    others.for_each(|cpu| text += &format!(", {} of CPU {}", percent(cpu.stolen_share()), cpu.cpu));
    let more = cpus.len().saturating_sub(NAMED);
    if more > 0 {
        text += &format!(", and less of {more} others that the target may use");
    }
    text += ".";
    if let Some(host) = &conditions.host_cpu_time {
        text += &format!(" Of all CPUs of this machine it was {}.", percent(host.stolen_share()));
    }
    Some(
        text + " Requests on these CPUs waited meanwhile, although nothing here kept them waiting: other virtual \
                machines did, or a limit on this one (credits). Use a host with dedicated CPUs, or repeat the \
                test when its neighbours are quiet.",
    )
}

fn slow(conditions: &Conditions) -> Option<String> {
    let below = |cpu: &CpuTimeSummary| {
        let (highest, max) = (cpu.highest_khz?, cpu.max_khz?);
        Some(highest as f64 / max.max(1) as f64)
    };
    let slow = conditions
        .cpu_times
        .iter()
        .filter(|cpu| cpu.busy_share() >= BUSY)
        .filter_map(|cpu| Some((cpu, below(cpu)?)))
        .filter(|(_, part)| *part < SLOW);
    let slow: Vec<(&CpuTimeSummary, f64)> = slow.collect();
    let (slowest, _) = slow.iter().min_by(|(_, one), (_, other)| one.total_cmp(other))?;
    let also = match slow.len() - 1 {
        0 => String::new(),
        1 => " (and 1 other CPU like it)".to_owned(),
        others => format!(" (and {others} other CPUs like it)"),
    };
    Some(format!(
        "CPU {}{also} was busy for {} of the run, and never ran faster than {} of its {}. Set the governor \
         `performance`, and look whether its power or its temperature is limited.",
        slowest.cpu,
        percent(slowest.busy_share()),
        frequency(slowest.highest_khz?),
        frequency(slowest.max_khz?)
    ))
}

fn frequency(khz: u64) -> String {
    format!("{:.2} GHz", khz as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HostCpuTimeSummary;

    fn cpu(cpu: u32, stolen_ms: u64) -> CpuTimeSummary {
        CpuTimeSummary {
            cpu,
            total_ns: 30_000_000_000,
            busy_ns: 20_000_000_000,
            stolen_ns: stolen_ms * 1_000_000,
            ..CpuTimeSummary::default()
        }
    }

    fn told(cpu_times: Vec<CpuTimeSummary>) -> Vec<String> {
        let host = HostCpuTimeSummary { total_ns: 60_000_000_000, stolen_ns: 3_700_000_000 };
        paragraphs(&Conditions { cpu_times, host_cpu_time: Some(host), ..Conditions::default() })
    }

    #[test]
    fn steal_is_told_where_it_can_decide_about_the_p99() {
        assert_eq!(
            told(vec![cpu(0, 100), cpu(3, 3_600)]),
            [
                "The hypervisor took 12 % of the time of CPU 3 (3.60 s). Of all CPUs of this machine it was 6.2 %. \
              Requests on these CPUs waited meanwhile, although nothing here kept them waiting: other virtual \
              machines did, or a limit on this one (credits). Use a host with dedicated CPUs, or repeat the \
              test when its neighbours are quiet."
            ]
        );
        assert_eq!(told(vec![cpu(0, 0), cpu(1, 290)]), [""; 0]);
        let short = CpuTimeSummary { total_ns: 1_000_000_000, ..cpu(0, 90) };
        assert_eq!(told(vec![short]), [""; 0], "a few ticks");
        assert_eq!(told(vec![CpuTimeSummary::default()]), [""; 0]);
        let many = told((0..7).map(|nth| cpu(nth, 1_000 + u64::from(nth) * 300)).collect());
        assert!(
            many[0].contains("9.3 % of the time of CPU 6 (2.80 s), 8.3 % of CPU 5, 7.3 % of CPU 4, 6.3 % of CPU 3, \
                              and less of 3 others"),
            "{many:?}"
        );
    }

    #[test]
    fn a_busy_cpu_that_is_slow_is_told_and_an_idle_one_is_not() {
        let with = |highest, max, busy_ns| CpuTimeSummary {
            lowest_khz: highest,
            highest_khz: highest,
            max_khz: max,
            busy_ns,
            ..cpu(2, 0)
        };
        let slow = with(Some(1_200_000), Some(3_600_000), 27_000_000_000);
        assert_eq!(
            told(vec![slow]),
            [
                "CPU 2 was busy for 90 % of the run, and never ran faster than 1.20 GHz of its 3.60 GHz. Set the \
              governor `performance`, and look whether its power or its temperature is limited."
            ]
        );
        assert!(told(vec![slow; 3])[0].starts_with("CPU 2 (and 2 other CPUs like it) was"));
        for fine in [
            with(Some(1_200_000), Some(3_600_000), 3_000_000_000),
            with(Some(3_000_000), Some(3_600_000), 27_000_000_000),
            with(None, Some(3_600_000), 27_000_000_000),
            with(Some(1_200_000), None, 27_000_000_000),
        ] {
            assert_eq!(told(vec![fine]), [""; 0], "{fine:?}");
        }
    }
}
