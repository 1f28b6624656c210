//! Limits of memory on cgroups, and what the kernel counts about them, from the files of the `memory`
//! controller.

use std::path::Path;

use super::cgroups::{Cgroups, Hierarchy};
use super::read_start;
use crate::model::Tgid;

/// Most bytes that are read of a file of a cgroup. The kernel's have a few hundred.
const FILE_BYTES: u64 = 4_096;
/// Version 1 shows no limit as the largest number of pages, in bytes.
const NO_LIMIT_BYTES: u64 = 1 << 62;
/// Most bytes that are read of `/proc/vmstat`, which has fewer than 10,000.
const VMSTAT_BYTES: u64 = 1 << 16;

/// The cgroups whose memory can be limited.
#[derive(Clone, Debug)]
pub struct MemoryCgroups(Hierarchy);

/// The limits of a cgroup itself; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// `memory.max`, in version 1 `memory.limit_in_bytes`.
    pub max_bytes: Option<u64>,
    /// `memory.high`, which version 1 does not have.
    pub high_bytes: Option<u64>,
}

/// What the kernel has counted about a cgroup since it was made; `None` what it does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    /// Which cgroup: one that was removed and made again has another id, and new counts.
    pub cgroup_id: u64,
    /// Memory in use, with all cgroups below.
    pub usage_bytes: Option<u64>,
    /// The most that was in use (version 2: since Linux 5.19).
    pub peak_bytes: Option<u64>,
    /// Times that memory was asked for beyond the limit of this cgroup itself.
    pub limit_hits: Option<u64>,
    /// Times that threads were held because `memory.high` was exceeded.
    pub high_hits: Option<u64>,
    /// Processes that the out-of-memory killer ended: in version 2 of this cgroup and of those below, in
    /// version 1 of this cgroup itself.
    pub oom_kills: Option<u64>,
}

impl MemoryCgroups {
    /// Those of this host; `None` where no cgroup file system is mounted.
    #[must_use]
    pub fn of(cgroups: &Cgroups) -> Option<Self> {
        cgroups.memory().cloned().map(Self)
    }

    /// Version of the hierarchy, 1 or 2.
    #[must_use]
    pub const fn version(&self) -> u32 {
        if self.0.unified { 2 } else { 1 }
    }

    /// The cgroup of a process, as [`Hierarchy::live_cgroup_of`].
    #[must_use]
    pub fn cgroup_of(&self, tgid: Tgid) -> Option<String> {
        self.0.live_cgroup_of(tgid, "memory")
    }

    /// The limits of a cgroup itself; `None` where it is gone, or its memory cannot be limited.
    #[must_use]
    pub fn limits(&self, cgroup: &str) -> Option<MemoryLimits> {
        let directory = self.0.directory(cgroup)?;
        let read = |name: &str| start_of(&directory.join(name));
        // No limit is "max" or a huge number.
        let limit = |text: String| number(&text).filter(|bytes| *bytes < NO_LIMIT_BYTES);
        let (max, high) = match self.0.unified {
            true => (read("memory.max")?, read("memory.high")),
            false => (read("memory.limit_in_bytes")?, None),
        };
        Some(MemoryLimits { max_bytes: limit(max), high_bytes: high.and_then(limit) })
    }

    /// What the kernel has counted about a cgroup; `None` where its memory cannot be limited, or it is gone.
    #[must_use]
    pub fn counts(&self, cgroup: &str) -> Option<MemoryCounts> {
        let directory = self.0.directory(cgroup)?;
        let read = |name: &str| start_of(&directory.join(name));
        let read_number = |name: &str| number(&read(name)?);
        let counts = if self.0.unified {
            let events = read("memory.events")?;
            // Those of cgroups below are about their limits.
            let own = read("memory.events.local");
            let own = own.as_deref().unwrap_or(&events);
            MemoryCounts {
                usage_bytes: read_number("memory.current"),
                peak_bytes: read_number("memory.peak"),
                limit_hits: keyed(own, "max"),
                high_hits: keyed(own, "high"),
                oom_kills: keyed(&events, "oom_kill"),
                ..MemoryCounts::default()
            }
        } else {
            MemoryCounts {
                usage_bytes: Some(read_number("memory.usage_in_bytes")?),
                peak_bytes: read_number("memory.max_usage_in_bytes"),
                limit_hits: read_number("memory.failcnt"),
                oom_kills: read("memory.oom_control").and_then(|text| keyed(&text, "oom_kill")),
                ..MemoryCounts::default()
            }
        };
        // The last, so that the cgroup was there while all of it was read.
        Some(MemoryCounts { cgroup_id: self.0.id_of(cgroup)?, ..counts })
    }
}

/// Processes that the out-of-memory killer ended on this host since it was started; `None` before
/// Linux 4.13.
#[must_use]
pub fn host_oom_kills() -> Option<u64> {
    let vmstat = read_start("/proc/vmstat", VMSTAT_BYTES).ok()?;
    keyed(&String::from_utf8_lossy(&vmstat), "oom_kill")
}

/// The number of a line `KEY NUMBER`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    number(text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?)
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The beginning of a file, as text.
fn start_of(path: &Path) -> Option<String> {
    String::from_utf8(read_start(path, FILE_BYTES).ok()?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A hierarchy in a temporary directory.
    pub(crate) struct Tree(TempDir);

    impl Tree {
        pub(crate) fn new(version: u32) -> (Self, MemoryCgroups) {
            let top = tempfile::tempdir().unwrap();
            let (fs_type, options) = match version {
                1 => ("cgroup", "rw,memory"),
                _ => ("cgroup2", "rw"),
            };
            let line =
                format!("1 2 0:3 / {} rw - {fs_type} none {options}\n", top.path().display());
            let cgroups = MemoryCgroups::of(&Cgroups::parse(&line)).unwrap();
            assert_eq!(cgroups.version(), version);
            (Self(top), cgroups)
        }

        pub(crate) fn write(&self, cgroup: &str, file: &str, text: &str) {
            let directory = self.0.path().join(cgroup.trim_start_matches('/'));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), text).unwrap();
        }
    }

    #[test]
    fn version_2_is_read_with_the_events_of_the_cgroup_itself() {
        let (tree, cgroups) = Tree::new(2);
        tree.write("/a", "memory.max", "268435456\n");
        tree.write("/a", "memory.high", "max\n");
        tree.write("/a", "memory.current", "1000\n");
        tree.write(
            "/a",
            "memory.events",
            "low 0\nhigh 9\nmax 8\noom 2\noom_kill 3\noom_group_kill 0\n",
        );
        let limits = MemoryLimits { max_bytes: Some(1 << 28), high_bytes: None };
        assert_eq!(cgroups.limits("/a"), Some(limits));
        let counts = cgroups.counts("/a").unwrap();
        assert_eq!(
            (counts.limit_hits, counts.high_hits, counts.oom_kills),
            (Some(8), Some(9), Some(3))
        );
        assert_eq!(
            (counts.usage_bytes, counts.peak_bytes),
            (Some(1_000), None),
            "missing, and not 0"
        );
        tree.write("/a", "memory.events.local", "high 4\nmax 5\noom_kill 0\n");
        tree.write("/a", "memory.peak", "2000\n");
        let counts = cgroups.counts("/a").unwrap();
        assert_eq!(
            (counts.limit_hits, counts.high_hits, counts.oom_kills),
            (Some(5), Some(4), Some(3))
        );
        assert_eq!(counts.peak_bytes, Some(2_000));
        // The root has none of these files.
        tree.write("/", "cgroup.procs", "");
        assert_eq!((cgroups.limits("/"), cgroups.counts("/")), (None, None));
    }

    #[test]
    fn version_1_is_read_and_its_largest_number_is_no_limit() {
        let (tree, cgroups) = Tree::new(1);
        tree.write("/a", "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(cgroups.limits("/a"), Some(MemoryLimits::default()));
        tree.write("/a", "memory.limit_in_bytes", "4096\n");
        assert_eq!(cgroups.limits("/a").unwrap().max_bytes, Some(4_096));
        assert_eq!(cgroups.counts("/a"), None);
        tree.write("/a", "memory.usage_in_bytes", "7\n");
        assert_eq!(cgroups.counts("/a").unwrap().limit_hits, None);
        tree.write("/a", "memory.max_usage_in_bytes", "8\n");
        tree.write("/a", "memory.failcnt", "9\n");
        tree.write("/a", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n");
        let counts = cgroups.counts("/a").unwrap();
        assert_eq!(
            (counts.peak_bytes, counts.limit_hits, counts.oom_kills),
            (Some(8), Some(9), None)
        );
        tree.write("/a", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        assert_eq!(cgroups.counts("/a").unwrap().oom_kills, Some(2));
    }

    #[test]
    fn garbage_is_no_limit_and_no_count() {
        let endless = "9".repeat(1 << 20);
        for garbage in ["", "x", "-5", "1 2", "maximum", "\0", &endless] {
            for version in [1, 2] {
                let (tree, cgroups) = Tree::new(version);
                for file in ["memory.max", "memory.high", "memory.limit_in_bytes", "memory.current"]
                {
                    tree.write("/a", file, garbage);
                }
                tree.write("/a", "memory.events", garbage);
                let limits = cgroups.limits("/a").unwrap();
                assert_eq!(limits, MemoryLimits::default(), "{garbage:.20}");
                let counts = cgroups.counts("/a");
                let known = counts.and_then(|counts| counts.usage_bytes.or(counts.limit_hits));
                assert_eq!(known, None, "{garbage:.20}");
                assert_eq!(cgroups.limits("/a/../../a"), None);
            }
        }
    }

    #[test]
    fn this_process_has_a_cgroup_whose_memory_is_counted() {
        let Some(cgroups) = MemoryCgroups::of(&Cgroups::read()) else { return };
        let Some(cgroup) = cgroups.cgroup_of(Tgid(std::process::id())) else { return };
        // The root of version 2 has no files.
        if let Some(counts) = cgroups.counts(&cgroup) {
            assert!(counts.usage_bytes.is_some_and(|bytes| bytes > 0), "{counts:?}");
            assert!(cgroups.limits(&cgroup).is_some());
        }
    }
}
