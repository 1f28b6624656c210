//! The memory that the cgroups of this process leave to it.

use std::fs;
use std::path::{Path, PathBuf};

use super::cgroups::{Cgroups, Hierarchy, with_those_above};
use super::{system, usage};
use crate::model::Tgid;

/// The tightest limit of memory that applies to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRoom {
    /// What this process may have before it has to wait for memory, or is killed: the limit without
    /// what the other processes of that cgroup hold and cannot give back.
    pub bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
    /// The kernel's file with the limit.
    pub file: PathBuf,
}

/// Files with limits, and the file with the present use.
const fn files(hierarchy: &Hierarchy) -> (&'static [&'static str], &'static str) {
    if hierarchy.unified {
        (&["memory.max", "memory.high"], "memory.current")
    } else {
        (&["memory.limit_in_bytes"], "memory.usage_in_bytes")
    }
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Page cache and the like in `memory.stat`, which the kernel takes back when memory is needed: of the
/// cgroup with all below it, in both versions.
fn cache_bytes(stat: &str, unified: bool) -> u64 {
    let keys: &[&str] = if unified {
        &["inactive_file", "active_file", "slab_reclaimable"]
    } else {
        &["total_inactive_file", "total_active_file"]
    };
    stat.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| keys.contains(key))
        .filter_map(|(_, value)| number(value))
        .sum()
}

impl MemoryRoom {
    /// The tightest of the cgroup of this process and of those above it, as far as they are mounted
    /// here; `None` where none limits more than the memory of the host does.
    #[must_use]
    pub fn read() -> Option<Self> {
        let cgroups = Cgroups::read();
        let hierarchy = cgroups.memory()?;
        let cgroup = cgroups.memory_cgroup_of(Tgid(std::process::id()))?;
        let total = system::memory_total_bytes().unwrap_or(u64::MAX);
        with_those_above(&cgroup)
            .filter_map(|path| hierarchy.directory(path))
            .filter_map(|directory| Self::of(&directory, hierarchy))
            .filter(|room| room.limit_bytes < total)
            .min_by_key(|room| room.bytes)
    }

    fn of(directory: &Path, hierarchy: &Hierarchy) -> Option<Self> {
        let (limits, current) = files(hierarchy);
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        let limit = |name: &&str| Some((number(&read(name)?)?, directory.join(name)));
        let (limit_bytes, file) = limits.iter().filter_map(limit).min()?;
        let used = read(current).and_then(|text| number(&text)).unwrap_or(0);
        let cache = read("memory.stat").map_or(0, |stat| cache_bytes(&stat, hierarchy.unified));
        // The limit counts what this process has already.
        let others = used.saturating_sub(cache).saturating_sub(usage::anonymous_bytes());
        Some(Self { bytes: limit_bytes.saturating_sub(others), limit_bytes, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_is_that_of_the_cgroup_and_of_all_below() {
        let v1 = "cache 10\ninactive_file 1\ntotal_cache 9\ntotal_inactive_file 30\n\
                  total_active_file 4\n";
        assert_eq!(cache_bytes(v1, false), 34);
        assert_eq!(cache_bytes("anon 9\ninactive_file 20\nslab_reclaimable 5\n", true), 25);
        assert_eq!(number("max\n"), None);
    }
}
