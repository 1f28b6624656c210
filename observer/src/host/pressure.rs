//! Pressure stall information (PSI) of the host and of cgroups of version 2: for how long threads waited
//! for a resource.

use std::path::Path;

use super::cgroups::Hierarchy;
use super::read_start;

/// What threads wait for, as in the names of the kernel's files.
pub const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];
/// Most bytes that are read of a file. The kernel's have fewer than 200.
const FILE_BYTES: u64 = 4_096;

/// The sums of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Time in which at least one thread waited, microseconds.
    pub some_us: u64,
    /// Time in which all threads that were not idle waited, microseconds; `None` for CPUs before
    /// Linux 5.13.
    pub full_us: Option<u64>,
}

impl Pressure {
    /// Parses a file.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let total = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
            line.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
        };
        Some(Self { some_us: total("some")?, full_us: total("full") })
    }

    /// That of the whole host; `None` where the kernel keeps none.
    #[must_use]
    pub fn of_host(resource: &str) -> Option<Self> {
        Self::read(&Path::new("/proc/pressure").join(resource))
    }

    /// That of a cgroup of version 2 with all below it; `None` where the kernel keeps none, or it is gone.
    #[must_use]
    pub fn of_cgroup(hierarchy: &Hierarchy, cgroup: &str, resource: &str) -> Option<Self> {
        Self::read(&hierarchy.directory(cgroup)?.join(format!("{resource}.pressure")))
    }

    fn read(path: &Path) -> Option<Self> {
        Self::parse(&String::from_utf8_lossy(&read_start(path, FILE_BYTES).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_read_and_garbage_is_none() {
        let some = "some avg10=11.77 avg60=47.49 avg300=54.89 total=2495099472\n";
        let both = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=12\n");
        let wanted = Pressure { some_us: 2_495_099_472, full_us: Some(12) };
        assert_eq!(Pressure::parse(&both), Some(wanted));
        assert_eq!(Pressure::parse(some), Some(Pressure { full_us: None, ..wanted }));
        for garbage in
            ["", "some", "some total=", "some total=-1", "full total=3", "something total=1", "\0"]
        {
            assert_eq!(Pressure::parse(garbage), None, "{garbage:?}");
        }
    }
}
