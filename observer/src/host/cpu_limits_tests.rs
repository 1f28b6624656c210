//! Trees of files like those of the kernel.

use std::fs;

use tempfile::TempDir;

use super::*;

/// Hierarchies in a temporary directory.
pub(crate) struct Tree {
    top: TempDir,
    version: u32,
}

/// Which hierarchies there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mounts {
    /// `cpu,cpuacct` in one hierarchy.
    V1,
    V2,
    /// `cpu` and `cpuacct` in hierarchies of their own, and version 2 without them.
    Hybrid,
}

impl Tree {
    pub(crate) fn new(mounts: Mounts) -> (Self, CpuCgroups) {
        let top = tempfile::tempdir().unwrap();
        let line = |fs_type: &str, name: &str, options: &str| {
            let mount_point = top.path().join(name);
            fs::create_dir(&mount_point).unwrap();
            format!("1 2 0:3 / {} rw - {fs_type} none {options}\n", mount_point.display())
        };
        let mountinfo = match mounts {
            Mounts::V1 => line("cgroup", "cpu", "rw,cpu,cpuacct"),
            Mounts::V2 => line("cgroup2", "unified", "rw"),
            Mounts::Hybrid => {
                let unified = line("cgroup2", "unified", "rw");
                unified
                    + &line("cgroup", "cpu", "rw,cpu")
                    + &line("cgroup", "cpuacct", "rw,cpuacct")
            }
        };
        let cgroups = CpuCgroups::of(&Cgroups::parse(&mountinfo)).unwrap();
        (Self { top, version: cgroups.version() }, cgroups)
    }

    fn directory(&self, hierarchy: &str, cgroup: &str) -> PathBuf {
        self.top.path().join(hierarchy).join(cgroup.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, hierarchy: &str, cgroup: &str, file: &str, text: &str) {
        let directory = self.directory(hierarchy, cgroup);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(file), text).unwrap();
    }

    /// Sets a limit in each 100 ms, or lifts it.
    pub(crate) fn limit(&self, cgroup: &str, quota_us: Option<u64>) {
        let quota = |none: &str| quota_us.map_or_else(|| none.to_owned(), |us| us.to_string());
        if self.version == 2 {
            self.write("unified", cgroup, "cpu.max", &format!("{} 100000\n", quota("max")));
            self.write("unified", cgroup, "cpu.max.burst", "0\n");
        } else {
            self.write("cpu", cgroup, "cpu.cfs_quota_us", &format!("{}\n", quota("-1")));
            self.write("cpu", cgroup, "cpu.cfs_period_us", "100000\n");
        }
    }

    /// Sets the counters: periods, of these throttled, milliseconds of that, and of CPU time.
    pub(crate) fn count(&self, cgroup: &str, counters: [u64; 4]) {
        let [periods, throttled, throttled_ms, usage_ms] = counters;
        let both = format!("nr_periods {periods}\nnr_throttled {throttled}\n");
        if self.version == 2 {
            let text = format!(
                "usage_usec {}\nuser_usec 1\n{both}throttled_usec {}\nnr_bursts 0\n",
                usage_ms * 1_000,
                throttled_ms * 1_000
            );
            self.write("unified", cgroup, "cpu.stat", &text);
        } else {
            let text = format!("{both}throttled_time {}\n", throttled_ms * 1_000_000);
            self.write("cpu", cgroup, "cpu.stat", &text);
            let apart = self.directory("cpuacct", "/").exists();
            let usage = format!("{}\n", usage_ms * 1_000_000);
            self.write(if apart { "cpuacct" } else { "cpu" }, cgroup, "cpuacct.usage", &usage);
        }
    }

    /// Takes a cgroup of version 2 out of the tree.
    pub(crate) fn move_to(&self, cgroup: &str, place: &Path) {
        fs::rename(self.directory("unified", cgroup), place).unwrap();
    }
}

pub(crate) const MS: u64 = 1_000_000;

#[test]
fn limits_and_counters_are_read_in_every_layout() {
    for mounts in [Mounts::V1, Mounts::V2, Mounts::Hybrid] {
        let (tree, cgroups) = Tree::new(mounts);
        assert_eq!(cgroups.version(), if mounts == Mounts::V2 { 2 } else { 1 }, "{mounts:?}");
        tree.limit("/a/b", Some(20_000));
        tree.count("/a/b", [50, 49, 3_900, 1_000]);
        tree.limit("/a", None);
        let burst_us = (mounts == Mounts::V2).then_some(0);
        let wanted = CpuLimit { quota_us: 20_000, period_us: 100_000, burst_us };
        assert_eq!(cgroups.limit("/a/b"), Some(wanted), "{mounts:?}");
        assert_eq!(cgroups.limit("/a"), None, "{mounts:?}");
        assert_eq!((cgroups.limit("/c"), cgroups.counts("/c")), (None, None), "{mounts:?}");
        let counts = cgroups.counts("/a/b").unwrap();
        let wanted = CpuCounts {
            cgroup_id: cgroups.cpu.id_of("/a/b").unwrap(),
            periods: 50,
            throttled_periods: 49,
            throttled_ns: 3_900 * MS,
            usage_ns: Some(1_000 * MS),
        };
        assert_eq!(counts, wanted, "{mounts:?}");
        assert!(cgroups.limit_file("/a/b").unwrap().is_file(), "{mounts:?}");
    }
}

#[test]
fn a_burst_of_version_1_is_read_and_cpu_time_that_is_not_counted_is_unknown() {
    let (tree, cgroups) = Tree::new(Mounts::Hybrid);
    tree.limit("/a", Some(50_000));
    tree.write("cpu", "/a", "cpu.cfs_burst_us", "7000\n");
    tree.write("cpu", "/a", "cpu.stat", "nr_periods 1\nnr_throttled 0\nthrottled_time 0\n");
    assert_eq!(cgroups.limit("/a").unwrap().burst_us, Some(7_000));
    assert_eq!(cgroups.counts("/a").unwrap().usage_ns, None);
}

#[test]
fn garbage_is_no_limit_and_no_count() {
    let endless = "9".repeat(1 << 20);
    for garbage in ["", "x", "-5 100000", "20000", "20000 0", "0 100000", "max max", &endless] {
        let (tree, cgroups) = Tree::new(Mounts::V2);
        tree.write("unified", "/a", "cpu.max", garbage);
        tree.write("unified", "/a", "cpu.stat", garbage);
        assert_eq!((cgroups.limit("/a"), cgroups.counts("/a")), (None, None), "{garbage:.20}");
    }
    let (tree, cgroups) = Tree::new(Mounts::V1);
    tree.limit("/a", Some(1));
    for stat in ["nr_periods 1\nnr_throttled x\nthrottled_time 2\n", "nr_periods1\n\0\u{ff}"] {
        tree.write("cpu", "/a", "cpu.stat", stat);
        assert_eq!(cgroups.counts("/a"), None, "{stat:?}");
    }
    // Not text at all.
    fs::write(tree.directory("cpu", "/a").join("cpu.cfs_quota_us"), [0xff, 0xfe]).unwrap();
    assert_eq!(cgroups.limit("/a"), None);
    assert_eq!(cgroups.limit("/a/../../a"), None);
}

#[test]
fn this_process_has_a_cgroup_whose_limits_can_be_read() {
    let Some(cgroups) = CpuCgroups::of(&Cgroups::read()) else { return };
    let own = Tgid(std::process::id());
    // In a container the cgroup may lie outside of what is mounted.
    let Some(cgroup) = cgroups.cgroup_of(own) else { return };
    let limits: Vec<CpuLimit> =
        with_those_above(&cgroup).filter_map(|cgroup| cgroups.limit(cgroup)).collect();
    let tightest = cgroups.tightest(own);
    assert_eq!(tightest.is_some(), !limits.is_empty());
    if let Some((_, tightest)) = tightest {
        assert!(limits.iter().all(|limit| tightest.cpus() <= limit.cpus()), "{limits:?}");
    }
}
