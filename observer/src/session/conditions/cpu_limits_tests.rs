use super::super::cgroup_search::{LIMITS_MAX, WATCHED_MAX};
use super::*;
use crate::host::cpu_limits::tests::{MS, Mounts, Tree};

fn watch(cgroups: CpuCgroups, found: &[&str]) -> CpuLimitWatch {
    let mut watch = CpuLimitWatch::of(Some(cgroups));
    add(&mut watch, found);
    watch
}

fn add(watch: &mut CpuLimitWatch, found: &[&str]) {
    watch.add(&found.iter().map(|&cgroup| cgroup.to_owned()).collect());
}

/// The limits now: cgroup, periods, of these throttled, and milliseconds of that and of CPU time.
fn read(watch: &mut CpuLimitWatch) -> Vec<(String, [u64; 4])> {
    watch.read();
    let counters = |limit: &CpuLimitSummary| {
        let CpuLimitSummary { periods, throttled_periods, throttled_ns, usage_ns, .. } = *limit;
        [periods, throttled_periods, throttled_ns / MS, usage_ns.unwrap() / MS]
    };
    let (limits, _) = watch.limits();
    limits.iter().map(|limit| (limit.cgroup.clone(), counters(limit))).collect()
}

#[test]
fn what_was_counted_before_does_not_count_and_limits_above_do() {
    for mounts in [Mounts::V1, Mounts::V2, Mounts::Hybrid] {
        let (tree, cgroups) = Tree::new(mounts);
        for (cgroup, quota_us) in [("/a", Some(50_000)), ("/a/b", None), ("/a/b/c", Some(20_000))] {
            tree.limit(cgroup, quota_us);
            tree.count(cgroup, [10, 5, 100, 1_000]);
        }
        let mut watch = watch(cgroups, &["/a/b/c"]);
        tree.count("/a", [40, 6, 130, 1_500]);
        tree.count("/a/b/c", [60, 54, 4_100, 2_000]);
        let wanted =
            [("/a".to_owned(), [30, 1, 30, 500]), ("/a/b/c".into(), [50, 49, 4_000, 1_000])];
        assert_eq!(read(&mut watch), wanted, "{mounts:?}");
        let (limits, beyond) = watch.limits();
        assert!(limits.iter().all(|limit| !limit.changed && limit.observed_ns > 0), "{limits:?}");
        assert_eq!(beyond, 0);
    }
}

#[test]
fn the_last_reading_counts_of_a_cgroup_that_was_removed_and_one_made_again_counts_from_0() {
    let (tree, cgroups) = Tree::new(Mounts::V2);
    tree.limit("/a", Some(20_000));
    tree.count("/a", [10, 5, 100, 1_000]);
    let mut watch = watch(cgroups, &["/a"]);
    tree.count("/a", [20, 10, 150, 1_100]);
    let before = [("/a".to_owned(), [10, 5, 50, 100])];
    assert_eq!(read(&mut watch), before);
    // Its files stay, so that its number cannot be used again.
    let top = tempfile::tempdir().unwrap();
    tree.move_to("/a", &top.path().join("removed"));
    assert_eq!(read(&mut watch), before);
    assert!(!watch.limits().0[0].changed, "it is gone, and its limit was not lifted");

    tree.limit("/a", Some(20_000));
    tree.count("/a", [30, 2, 7, 70]);
    assert_eq!(read(&mut watch), [("/a".to_owned(), [40, 7, 57, 170])]);
    assert!(!watch.limits().0[0].changed);
}

#[test]
fn a_limit_that_is_set_changed_or_lifted_is_said_to_have_changed() {
    let (tree, cgroups) = Tree::new(Mounts::V1);
    tree.limit("/a", None);
    tree.count("/a", [0, 0, 0, 10]);
    let mut watch = watch(cgroups, &["/a"]);
    assert!(read(&mut watch).is_empty(), "no limit");
    tree.limit("/a", Some(20_000));
    tree.count("/a", [3, 2, 40, 20]);
    assert_eq!(read(&mut watch), [("/a".to_owned(), [3, 2, 40, 10])]);
    assert!(watch.limits().0[0].changed);
    tree.limit("/a", None);
    tree.count("/a", [4, 3, 50, 30]);
    assert_eq!(read(&mut watch), [("/a".to_owned(), [4, 3, 50, 20])]);
    assert_eq!(watch.limits().0[0].limit.quota_us, 20_000, "the last one");
}

#[test]
fn cgroups_that_come_later_are_watched_and_those_beyond_the_bounds_are_counted() {
    let (tree, cgroups) = Tree::new(Mounts::V2);
    tree.limit("/a", Some(20_000));
    tree.count("/a", [0; 4]);
    let mut watch = watch(cgroups, &["/a"]);
    let names: Vec<String> = (0..2 * WATCHED_MAX).map(|nth| format!("/a/{nth}")).collect();
    for name in &names {
        tree.limit(name, Some(10_000));
        tree.count(name, [7; 4]);
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    add(&mut watch, &names[..5]);
    assert_eq!(read(&mut watch).len(), 6);
    assert_eq!(read(&mut watch)[1], ("/a/0".to_owned(), [0; 4]), "it was there before");
    add(&mut watch, &names);
    assert_eq!(read(&mut watch).len(), LIMITS_MAX);
    let beyond = 1 + 2 * WATCHED_MAX - LIMITS_MAX;
    assert_eq!(watch.limits().1, beyond as u64);
    add(&mut watch, &names);
    assert_eq!(watch.limits().1, beyond as u64, "counted once");
}

#[test]
fn counters_that_go_back_or_are_huge_are_no_panic() {
    let (tree, cgroups) = Tree::new(Mounts::V2);
    tree.limit("/a", Some(20_000));
    tree.count("/a", [5; 4]);
    let mut watch = watch(cgroups, &["/a"]);
    for periods in [u64::MAX, 3, u64::MAX] {
        let text = format!(
            "usage_usec {periods}\nnr_periods {periods}\nnr_throttled 0\nthrottled_usec 9\n"
        );
        tree.write("unified", "/a", "cpu.stat", &text);
        watch.read();
    }
    assert_eq!(watch.limits().0[0].periods, u64::MAX);
}
