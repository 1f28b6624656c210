//! The kernel's own counters of a process, read independently of observer's readers.

mod flat;
mod pressure;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use observer::host::process::Stat;
use observer::host::system::{uname, version_of};

pub use flat::Flat;
pub use pressure::Pressure;

use crate::Result;

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

/// Threads of a process.
///
/// # Errors
/// When the process is gone.
pub fn threads(pid: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The scheduler's counters of a thread, or the sum over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    /// Time on a CPU.
    pub ran_ns: u64,
    /// Time runnable and not running.
    pub delay_ns: u64,
    /// Times it got a CPU after having waited.
    pub arrivals: u64,
}

/// Version of the running kernel: the first two numbers of its release.
///
/// # Panics
/// When the release does not begin with them.
#[must_use]
pub fn kernel_version() -> (u32, u32) {
    let release = uname().release;
    version_of(&release).unwrap_or_else(|| panic!("a kernel release without a version: {release}"))
}

/// Processor time of this host that its hypervisor gave to others so far (`steal` of `/proc/stat`, in
/// ticks of 10 ms).
///
/// # Panics
/// When `/proc/stat` is not what proc_stat(5) says.
#[must_use]
pub fn stolen() -> Duration {
    let text = read("/proc/stat").unwrap_or_else(|error| panic!("{error}"));
    let ticks = text.split_whitespace().nth(8).and_then(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(10 * ticks.expect("eight figures behind `cpu`"))
}

/// State of each thread, as in `/proc/PID/task/TID/stat` behind the name: `R` runs or waits to,
/// `S` sleeps.
///
/// # Errors
/// When the process is gone.
pub fn thread_states(pid: u32) -> Result<Vec<char>> {
    let mut states = Vec::new();
    for tid in threads(pid)? {
        let path = format!("/proc/{pid}/task/{tid}/stat");
        let stat = Stat::parse(&read(&path)?).ok_or_else(|| format!("{path} is no stat line"))?;
        states.push(stat.state);
    }
    Ok(states)
}

/// Each thread's `/proc/PID/task/TID/schedstat`.
///
/// # Errors
/// When the process is gone.
pub fn schedstat(pid: u32) -> Result<BTreeMap<u32, SchedStat>> {
    let mut threads_stat = BTreeMap::new();
    for tid in threads(pid)? {
        threads_stat.insert(tid, schedstat_at(&format!("/proc/{pid}/task/{tid}/schedstat"))?);
    }
    Ok(threads_stat)
}

/// `/proc/thread-self/schedstat`: of the calling thread.
///
/// # Errors
/// When the kernel keeps none.
pub fn own_schedstat() -> Result<SchedStat> {
    schedstat_at("/proc/thread-self/schedstat")
}

fn schedstat_at(path: &str) -> Result<SchedStat> {
    let text = read(path)?;
    let fields: Vec<u64> =
        text.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
    let &[ran_ns, delay_ns, arrivals] = fields.as_slice() else {
        return Err(format!("{path} has no three numbers: {text:?}"));
    };
    Ok(SchedStat { ran_ns, delay_ns, arrivals })
}

/// The difference between `after` and `before`, over all threads. Threads that ended are missing.
#[must_use]
pub fn schedstat_since(
    after: &BTreeMap<u32, SchedStat>,
    before: &BTreeMap<u32, SchedStat>,
) -> SchedStat {
    let mut sum = SchedStat::default();
    for (tid, now) in after {
        let then = before.get(tid).copied().unwrap_or_default();
        sum.ran_ns += now.ran_ns - then.ran_ns;
        sum.delay_ns += now.delay_ns - then.delay_ns;
        sum.arrivals += now.arrivals - then.arrivals;
    }
    sum
}

/// Run delay of each thread so far, nanoseconds.
///
/// # Errors
/// When the process is gone.
pub fn run_delay_ns(pid: u32) -> Result<BTreeMap<u32, u64>> {
    Ok(schedstat(pid)?.into_iter().map(|(tid, stat)| (tid, stat.delay_ns)).collect())
}

/// Faults of a process so far, from `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// `minflt`.
    pub minor: u64,
    /// `cminflt`: of children that were waited for.
    pub minor_children: u64,
    /// `majflt`.
    pub major: u64,
    /// `cmajflt`: of children that were waited for.
    pub major_children: u64,
}

impl Faults {
    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            minor: self.minor - earlier.minor,
            minor_children: self.minor_children - earlier.minor_children,
            major: self.major - earlier.major,
            major_children: self.major_children - earlier.major_children,
        }
    }

    /// Minor and major faults, without those of children.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.minor + self.major
    }
}

/// Reads [`Faults`].
///
/// # Errors
/// When the process is gone.
pub fn faults(pid: u32) -> Result<Faults> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    // The command name may hold anything; what follows its last parenthesis is field 3 on.
    let fields: Vec<&str> = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().collect())
        .unwrap_or_default();
    let field = |number: usize| {
        fields
            .get(number - 3)
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| format!("{path} has no field {number}: {text:?}"))
    };
    Ok(Faults {
        minor: field(10)?,
        minor_children: field(11)?,
        major: field(12)?,
        major_children: field(13)?,
    })
}

/// Sockets among the descriptors of a process.
///
/// # Errors
/// When the process is gone.
pub fn socket_descriptors(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("socket:"))
        .count())
}

/// What `strace -c` counted of one system call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Calls.
    pub calls: u64,
    /// Of these, calls that failed.
    pub errors: u64,
}

/// Counts per system call, from what `strace -c` prints.
///
/// # Errors
/// When it is no such table.
pub fn strace_counts(table: &str) -> Result<BTreeMap<String, Calls>> {
    let mut counts = BTreeMap::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // % time, seconds, usecs/call, calls, [errors,] name
        let (Some(Ok(_)), true) = (fields.first().map(|f| f.parse::<f64>()), fields.len() >= 5)
        else {
            continue;
        };
        let (Some(Ok(calls)), Some(name)) = (fields.get(3).map(|f| f.parse()), fields.last())
        else {
            return Err(format!("strace printed a line that is no count: {line:?}"));
        };
        let errors = if fields.len() > 5 { fields[4].parse().unwrap_or_default() } else { 0 };
        if *name != "total" {
            counts.insert((*name).to_owned(), Calls { calls, errors });
        }
    }
    if counts.is_empty() {
        return Err(format!("strace printed no counts: {table:?}"));
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_strace_is_read() {
        let table = "\
strace: Process 12 attached
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000123           1      2000      1000 madvise
 40.00    0.000100           1      1001           mmap
------ ----------- ----------- --------- --------- ----------------
100.00    0.000223           1      3001      1000 total
";
        let counts = strace_counts(table).expect("a table");
        assert_eq!(counts.len(), 2);
        assert_eq!(counts["madvise"], Calls { calls: 2000, errors: 1000 });
        assert_eq!(counts["mmap"], Calls { calls: 1001, errors: 0 });
        assert!(
            strace_counts("strace: attach: ptrace(PTRACE_SEIZE, 12): No such process").is_err()
        );
    }
}
