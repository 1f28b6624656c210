//! The kernel's own books on a process, read independently of observer's readers.

use std::collections::BTreeMap;
use std::fs;

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

/// Run delay of each thread so far, nanoseconds: time runnable and not running.
///
/// # Errors
/// When the process is gone.
pub fn run_delay_ns(pid: u32) -> Result<BTreeMap<u32, u64>> {
    let mut delays = BTreeMap::new();
    for tid in threads(pid)? {
        let path = format!("/proc/{pid}/task/{tid}/schedstat");
        let text = read(&path)?;
        let delay = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok());
        delays.insert(tid, delay.ok_or_else(|| format!("{path} has no run delay: {text:?}"))?);
    }
    Ok(delays)
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
}

impl Faults {
    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            minor: self.minor - earlier.minor,
            minor_children: self.minor_children - earlier.minor_children,
            major: self.major - earlier.major,
        }
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
    Ok(Faults { minor: field(10)?, minor_children: field(11)?, major: field(12)? })
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

/// Calls per system call, from what `strace -c` prints.
///
/// # Errors
/// When it is no such table.
pub fn strace_counts(table: &str) -> Result<BTreeMap<String, u64>> {
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
        if *name != "total" {
            counts.insert((*name).to_owned(), calls);
        }
    }
    if counts.is_empty() {
        return Err(format!("strace printed no counts: {table:?}"));
    }
    Ok(counts)
}

/// Asserts that two numbers agree within a part of the second.
///
/// # Errors
/// When they do not, or when there is nothing to compare.
pub fn agree(what: &str, observer: u64, kernel: u64, tolerance: f64) -> Result<()> {
    if kernel == 0 {
        return Err(format!("{what}: the kernel's books show nothing, so nothing was tested"));
    }
    let off = observer as f64 / kernel as f64 - 1.0;
    println!("{what}: observer {observer}, kernel {kernel} ({:+.2} %)", off * 100.0);
    if off.abs() <= tolerance {
        return Ok(());
    }
    Err(format!(
        "{what}: observer has {observer}, the kernel's books {kernel}: {:+.2} %, allowed are {:.0} %",
        off * 100.0,
        tolerance * 100.0
    ))
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
        assert_eq!((counts["madvise"], counts["mmap"]), (2000, 1001));
        assert!(
            strace_counts("strace: attach: ptrace(PTRACE_SEIZE, 12): No such process").is_err()
        );
    }

    #[test]
    fn nothing_agrees_with_empty_books() {
        assert!(agree("x", 0, 0, 0.5).is_err());
        assert!(agree("x", 98, 100, 0.021).is_ok());
        assert!(agree("x", 97, 100, 0.021).is_err());
    }
}
