//! The kernel and the machine.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

/// Trimmed text of a small file of `/proc` or `/sys`.
#[must_use]
pub fn read_trimmed(path: impl AsRef<Path>) -> Option<String> {
    Some(str::from_utf8(&super::read_small(path).ok()?).ok()?.trim().to_owned())
}

fn read_number(path: &str) -> Option<u64> {
    read_trimmed(path)?.parse().ok()
}

/// uname(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uname {
    /// `uname -r`.
    pub release: String,
    /// `uname -m`.
    pub machine: String,
    /// Name of the host.
    pub nodename: String,
}

/// uname(2) of this host.
#[must_use]
pub fn uname() -> Uname {
    let uname = rustix::system::uname();
    Uname {
        release: uname.release().to_string_lossy().into_owned(),
        machine: uname.machine().to_string_lossy().into_owned(),
        nodename: uname.nodename().to_string_lossy().into_owned(),
    }
}

/// Major and minor of a release (`6.1.0-51-cloud-amd64` is `(6, 1)`).
#[must_use]
pub fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Ids of a kernel CPU list (`0-3,8,10-11`).
#[must_use]
pub fn parse_cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // No kernel has more (CONFIG_NR_CPUS is at most 8192).
        if last < first || last >= 8192 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn cpus(which: &str) -> Vec<u32> {
    read_trimmed(format!("/sys/devices/system/cpu/{which}"))
        .and_then(|text| parse_cpu_list(&text))
        .filter(|cpus| !cpus.is_empty())
        .unwrap_or_else(|| {
            let count = std::thread::available_parallelism().map_or(1, usize::from);
            (0..u32::try_from(count).unwrap_or(1)).collect()
        })
}

/// CPUs that are online now.
#[must_use]
pub fn online_cpus() -> Vec<u32> {
    cpus("online")
}

/// CPUs that can ever be online: the size of per-CPU maps.
#[must_use]
pub fn possible_cpus() -> Vec<u32> {
    cpus("possible")
}

/// CPU time that all CPUs have used since the boot; 0 when it cannot be read.
#[must_use]
pub fn busy_seconds() -> f64 {
    // The first line is enough. What follows can be long, and has no end that one read would show.
    let mut stat = [0; 256];
    let read = fs::File::open("/proc/stat").and_then(|mut file| file.read(&mut stat));
    let ticks = busy_ticks(&String::from_utf8_lossy(&stat[..read.unwrap_or(0)]));
    ticks as f64 / rustix::param::clock_ticks_per_second().max(1) as f64
}

/// The fields user, nice, system, irq and softirq of the first line of `/proc/stat`; the time of guests
/// is in user already.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let ticks = fields.enumerate().filter(|(nth, _)| matches!(nth, 0..=2 | 5..=6));
    ticks.map(|(_, field)| field.parse::<u64>().unwrap_or(0)).sum()
}

/// `kernel.pid_max`: ids are below it. The kernel's own upper limit when it cannot be read.
#[must_use]
pub fn pid_max() -> u32 {
    read_number("/proc/sys/kernel/pid_max")
        .and_then(|max| u32::try_from(max).ok())
        .unwrap_or(observer_ebpf::wire::PID_MAX_LIMIT)
}

/// `kernel.threads-max`: so many threads there can be. The largest `pid_max` when it cannot be read.
#[must_use]
pub fn threads_max() -> u32 {
    read_number("/proc/sys/kernel/threads-max")
        .and_then(|max| u32::try_from(max).ok())
        .unwrap_or(observer_ebpf::wire::PID_MAX_LIMIT)
}

/// Id of the task (process or thread) that was born last on this host: the last field of
/// `/proc/loadavg`.
#[must_use]
pub fn youngest_task() -> Option<u32> {
    read_trimmed("/proc/loadavg")?.rsplit(' ').next()?.parse().ok()
}

/// Changes at every boot, and so shows whether monotonic times of two runs can be compared.
#[must_use]
pub fn boot_id() -> Option<String> {
    read_trimmed("/proc/sys/kernel/random/boot_id")
}

/// What the kernel's lockdown forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lockdown {
    /// Nothing, or the kernel has none.
    None,
    /// Changing the running kernel: kprobes with a BPF program that overrides returns, writing
    /// user memory.
    Integrity,
    /// Reading the running kernel's memory as well: BPF cannot read kernel structures.
    Confidentiality,
    /// securityfs is not mounted: not known.
    Unknown,
}

impl Lockdown {
    /// Parses `/sys/kernel/security/lockdown`: `none [integrity] confidentiality`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match bracketed(text) {
            Some("none") => Self::None,
            Some("integrity") => Self::Integrity,
            Some("confidentiality") => Self::Confidentiality,
            _ => Self::Unknown,
        }
    }

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
            Self::Unknown => "unknown",
        }
    }
}

/// Lockdown state of this kernel.
#[must_use]
pub fn lockdown() -> Lockdown {
    read_trimmed("/sys/kernel/security/lockdown")
        .map_or(Lockdown::Unknown, |text| Lockdown::parse(&text))
}

/// The clock source behind `CLOCK_MONOTONIC` (`tsc`, `kvm-clock`, `hpet`, ...).
#[must_use]
pub fn clock_source() -> Option<String> {
    read_trimmed("/sys/devices/system/clocksource/clocksource0/current_clocksource")
}

/// Where tracefs is mounted, if it is.
#[must_use]
pub fn tracefs() -> Option<&'static Path> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.join("events").is_dir())
}

/// `kernel.perf_event_paranoid`.
#[must_use]
pub fn perf_event_paranoid() -> Option<i64> {
    read_trimmed("/proc/sys/kernel/perf_event_paranoid")?.parse().ok()
}

/// Whether `kernel.task_delayacct` is on; `None` when delay accounting is not compiled in.
#[must_use]
pub fn delay_accounting() -> Option<bool> {
    read_number("/proc/sys/kernel/task_delayacct").map(|value| value != 0)
}

/// Memory in total, from `/proc/meminfo`.
#[must_use]
pub fn memory_total_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    meminfo_bytes(&text, "MemTotal")
}

/// Swap in total, from `/proc/meminfo`.
#[must_use]
pub fn swap_total_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    meminfo_bytes(&text, "SwapTotal")
}

fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name == key).then(|| value.split_ascii_whitespace().next()?.parse::<u64>().ok())?
        })
        .map(|kilobytes| kilobytes * 1024)
}

/// The chosen word of a file like `always [madvise] never`.
#[must_use]
pub fn bracketed(text: &str) -> Option<&str> {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen)
}

/// Transparent huge pages: `always`, `madvise` or `never`; `None` without them.
#[must_use]
pub fn transparent_hugepages() -> Option<String> {
    let text = read_trimmed("/sys/kernel/mm/transparent_hugepage/enabled")?;
    bracketed(&text).map(str::to_owned)
}

/// Pressure stall information is on.
#[must_use]
pub fn has_pressure_stall_information() -> bool {
    // The file exists with `psi=0` too, and reading it fails then.
    read_trimmed("/proc/pressure/memory").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_task_changes_with_a_birth() {
        let before = youngest_task().unwrap();
        // Other tasks may be born too; the same id can only come again after all other ids were
        // used.
        std::thread::spawn(|| {}).join().unwrap();
        assert_ne!(youngest_task(), Some(before));
    }

    #[test]
    fn releases_of_many_makes_give_their_version() {
        assert_eq!(version_of("6.1.0-51-cloud-amd64"), Some((6, 1)));
        assert_eq!(version_of("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(version_of("6.18-rc1"), Some((6, 18)));
        assert_eq!(version_of("4.18.0-553.el8_10.x86_64"), Some((4, 18)));
        assert_eq!(version_of("strange"), None);
    }

    #[test]
    fn a_busy_cpu_is_neither_idle_nor_waiting_nor_stolen() {
        let stat =
            "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), 7_600_321);
        assert_eq!(busy_ticks(""), 0);
        assert!(busy_seconds() > 0.0);
    }

    #[test]
    fn cpu_lists_are_expanded() {
        assert_eq!(parse_cpu_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_cpu_list("0"), Some(vec![0]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
        for text in ["a", "3-1", "0-99999999", "1-2-3", "-"] {
            assert_eq!(parse_cpu_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_bracketed_word_is_the_chosen_one() {
        assert_eq!(Lockdown::parse("none [integrity] confidentiality"), Lockdown::Integrity);
        assert_eq!(Lockdown::parse("[none] integrity confidentiality"), Lockdown::None);
        assert_eq!(Lockdown::parse(""), Lockdown::Unknown);
        assert_eq!(bracketed("always [madvise] never"), Some("madvise"));
        assert_eq!(bracketed("always"), None);
    }

    #[test]
    fn meminfo_is_in_kilobytes() {
        let text = "MemTotal:       16 kB\nSwapTotal:       2048 kB\nSwapFree: x\n";
        assert_eq!(meminfo_bytes(text, "SwapTotal"), Some(2 << 20));
        assert_eq!(meminfo_bytes(text, "SwapFree"), None);
        assert_eq!(meminfo_bytes(text, "Swap"), None);
    }

    #[test]
    fn this_host_answers() {
        assert!(version_of(&uname().release).is_some());
        assert!(!online_cpus().is_empty());
        assert!(possible_cpus().len() >= online_cpus().len());
        assert!(pid_max() > std::process::id());
        assert_eq!(boot_id(), boot_id());
    }
}
