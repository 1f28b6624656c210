//! CPU time by CPU, what the hypervisor took of it, and the frequency of CPUs.

use std::path::Path;

use super::read_start;

/// Where each CPU has a directory.
const CPUS: &str = "/sys/devices/system/cpu";
/// Most bytes that are read of `/proc/stat`: the lines of more than 1,000 CPUs come first.
const STAT_BYTES: u64 = 1 << 18;
/// Most bytes that are read of a file with one number.
const FILE_BYTES: u64 = 64;

/// CPU time since the host was started, clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTime {
    /// All of it.
    pub total_ticks: u64,
    /// In which something ran.
    pub busy_ticks: u64,
    /// That the hypervisor gave to others although something wanted to run.
    pub stolen_ticks: u64,
}

/// The times of all CPUs that are online, by number; `None` where `/proc/stat` cannot be read.
#[must_use]
pub fn cpu_times() -> Option<Vec<(u32, CpuTime)>> {
    let text = read_start("/proc/stat", STAT_BYTES).ok()?;
    Some(parse(&String::from_utf8_lossy(&text)))
}

/// `cpu0 423843 77093 107466 546839 1087 0 1286 247 0 0`: user, nice, system, idle, iowait, irq, softirq,
/// steal, and guest times that are in the first two.
fn parse(text: &str) -> Vec<(u32, CpuTime)> {
    let of_line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let cpu = words.next().filter(|_| !line.starts_with("cpu "))?.parse().ok()?;
        let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, stolen] = ticks[..] else {
            return None;
        };
        let add =
            |ticks: &[u64]| ticks.iter().fold(0, |sum: u64, ticks| sum.saturating_add(*ticks));
        let busy_ticks = add(&[user, nice, system, irq, softirq]);
        let total_ticks = add(&[busy_ticks, idle, iowait, stolen]);
        Some((cpu, CpuTime { total_ticks, busy_ticks, stolen_ticks: stolen }))
    };
    text.lines().filter_map(of_line).collect()
}

/// The frequency of a CPU now, kHz; `None` where the host does not say, as in most virtual machines.
#[must_use]
pub fn frequency_khz(cpu: u32) -> Option<u64> {
    frequency_in(Path::new(CPUS), cpu, "scaling_cur_freq")
}

/// The highest frequency that a CPU can have, kHz.
#[must_use]
pub fn highest_frequency_khz(cpu: u32) -> Option<u64> {
    frequency_in(Path::new(CPUS), cpu, "cpuinfo_max_freq")
}

fn frequency_in(cpus: &Path, cpu: u32, name: &str) -> Option<u64> {
    let bytes = read_start(cpus.join(format!("cpu{cpu}/cpufreq/{name}")), FILE_BYTES).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::system;

    #[test]
    fn the_line_of_each_cpu_is_read_and_garbage_is_left_out() {
        let text = "cpu  869835 165851 229967 1043622 4010 0 2973 503 0 0\n\
                    cpu0 100 20 30 400 5 6 7 80 0 0\n\
                    cpu3 1 2 3 4 5 6 7 8\n\
                    cpu4 1 2 3\n\
                    cpux 1 2 3 4 5 6 7 8\n\
                    cpu5 1 2 3 4 x 6 7 8\n\
                    intr 99 1 2 3\n";
        let zero = CpuTime { total_ticks: 648, busy_ticks: 163, stolen_ticks: 80 };
        let three = CpuTime { total_ticks: 36, busy_ticks: 19, stolen_ticks: 8 };
        assert_eq!(parse(text), [(0, zero), (3, three)]);
        assert_eq!(parse(""), []);
        let huge = format!("cpu0 {0} {0} {0} {0} {0} {0} {0} {0}\n", u64::MAX);
        assert_eq!(parse(&huge)[0].1.total_ticks, u64::MAX);
        let times = cpu_times().unwrap();
        let cpus: Vec<u32> = times.iter().map(|(cpu, _)| *cpu).collect();
        assert_eq!(cpus, system::online_cpus());
        assert!(
            times.iter().all(|(_, time)| time.busy_ticks + time.stolen_ticks <= time.total_ticks)
        );
    }

    #[test]
    fn frequencies_are_read_and_missing_ones_are_not_0() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("cpu2/cpufreq");
        std::fs::create_dir_all(&directory).unwrap();
        let of = |text: &str| {
            std::fs::write(directory.join("scaling_cur_freq"), text).unwrap();
            frequency_in(top.path(), 2, "scaling_cur_freq")
        };
        assert_eq!(of("3600000\n"), Some(3_600_000));
        for garbage in ["", "0\n", "<unknown>\n", "-1", "x"] {
            assert_eq!(of(garbage), None, "{garbage:?}");
        }
        assert_eq!(frequency_in(top.path(), 3, "scaling_cur_freq"), None);
        assert_eq!(frequency_khz(u32::MAX), None);
    }
}
