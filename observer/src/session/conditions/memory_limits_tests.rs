use super::super::cgroup_search::{LIMITS_MAX, WATCHED_MAX};
use super::*;
use crate::host::memory_limits::tests::Tree;

fn watch(cgroups: MemoryCgroups, found: &[&str]) -> MemoryLimitWatch {
    let mut watch = MemoryLimitWatch::of(Some(cgroups));
    watch.add(&found.iter().map(|&cgroup| cgroup.to_owned()).collect());
    watch
}

/// A cgroup of version 2: its limit, and use, peak, hits of the limit and kills.
fn set(tree: &Tree, cgroup: &str, max: &str, [usage, peak, hits, kills]: [u64; 4]) {
    tree.write(cgroup, "memory.max", max);
    tree.write(cgroup, "memory.high", "max");
    tree.write(cgroup, "memory.current", &usage.to_string());
    tree.write(cgroup, "memory.peak", &peak.to_string());
    tree.write(cgroup, "memory.events", &format!("high 0\nmax {hits}\noom_kill {kills}\n"));
}

fn only(watch: &mut MemoryLimitWatch) -> MemoryLimitSummary {
    watch.read();
    let (mut limits, beyond) = watch.limits();
    assert_eq!((limits.len(), beyond), (1, 0), "{limits:?}");
    limits.remove(0)
}

#[test]
fn what_was_counted_before_does_not_count_and_limits_above_do() {
    let (tree, cgroups) = Tree::new(2);
    set(&tree, "/a", "1000", [500, 900, 7, 1]);
    set(&tree, "/a/b", "max", [400, 800, 0, 0]);
    let mut watch = watch(cgroups, &["/a/b"]);
    let found = only(&mut watch);
    assert_eq!((&*found.cgroup, found.max_bytes, found.high_bytes), ("/a", Some(1_000), None));
    assert_eq!((found.limit_hits, found.oom_kills), (Some(0), Some(0)));
    assert_eq!((found.usage_bytes, found.highest_bytes), (Some(500), Some(500)), "an earlier peak");
    set(&tree, "/a", "1000", [600, 900, 10, 3]);
    let found = only(&mut watch);
    assert_eq!((found.limit_hits, found.high_hits, found.oom_kills), (Some(3), Some(0), Some(2)));
    assert_eq!((found.usage_bytes, found.highest_bytes), (Some(600), Some(600)));
    set(&tree, "/a", "1000", [550, 950, 10, 3]);
    assert_eq!(only(&mut watch).highest_bytes, Some(950), "the kernel saw more than was read");
    assert!(!found.changed && found.observed_ns > 0);
    // A process that was killed in a cgroup without a limit.
    set(&tree, "/a/b", "max", [1, 800, 0, 1]);
    watch.read();
    assert_eq!(watch.limits().0.len(), 2);
}

#[test]
fn a_limit_that_changes_is_said_to_and_a_cgroup_that_is_gone_keeps_what_was_read() {
    let (tree, cgroups) = Tree::new(1);
    let set = |limit: u64, hits: u64| {
        tree.write("/a", "memory.limit_in_bytes", &limit.to_string());
        tree.write("/a", "memory.usage_in_bytes", "5");
        tree.write("/a", "memory.failcnt", &hits.to_string());
    };
    set(i64::MAX as u64 - 4_095, 4);
    let mut watch = watch(cgroups, &["/a", "/gone"]);
    watch.read();
    assert!(watch.limits().0.is_empty(), "no limit");
    set(4_096, 6);
    let found = only(&mut watch);
    assert_eq!((found.version, found.max_bytes, found.changed), (1, Some(4_096), true));
    assert_eq!((found.limit_hits, found.high_hits, found.oom_kills), (Some(2), None, None));
    set(i64::MAX as u64 - 4_095, 7);
    let found = only(&mut watch);
    assert_eq!((found.max_bytes, found.limit_hits), (Some(4_096), Some(3)), "the last limit");
    tree.write("/a", "memory.usage_in_bytes", "garbage");
    assert_eq!(only(&mut watch), found);
    // Counters that go back are no panic.
    set(4_096, 0);
    assert_eq!(only(&mut watch).limit_hits, Some(3));
}

#[test]
fn cgroups_beyond_the_bounds_are_counted() {
    let (tree, cgroups) = Tree::new(2);
    let names: Vec<String> = (0..2 * WATCHED_MAX).map(|nth| format!("/{nth:03}")).collect();
    names.iter().for_each(|name| set(&tree, name, "4096", [1, 1, 0, 0]));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut watch = watch(cgroups, &names);
    set(&tree, names[60], "4096", [1, 1, 5, 0]);
    watch.read();
    let (limits, beyond) = watch.limits();
    assert_eq!((limits.len(), beyond), (LIMITS_MAX, (2 * WATCHED_MAX - LIMITS_MAX) as u64));
    assert_eq!(limits[0].cgroup, names[60], "the one with the most hits");
}
