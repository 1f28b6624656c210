//! Cgroup layout, and names for cgroup ids.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{process, read_small};
use crate::model::Tgid;

/// How the host mounts its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One hierarchy per controller.
    V1,
    /// One hierarchy.
    V2,
    /// Controllers on version 1, and a version 2 hierarchy beside them.
    Hybrid,
    /// No cgroup file system is mounted.
    Unmounted,
}

impl Layout {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
            Self::Unmounted => "unmounted",
        }
    }
}

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Version 2 (the unified hierarchy).
    pub unified: bool,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which of its cgroups is the root of the mount (`/`, another one inside a container).
    pub root: String,
    /// Version 1: the controllers it was mounted with.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// Directory of a cgroup, named as in `/proc/PID/cgroup`. `None` when it lies outside what is
    /// mounted here.
    #[must_use]
    pub fn directory(&self, cgroup: &str) -> Option<PathBuf> {
        let inside = if self.root == "/" {
            cgroup
        } else {
            let rest = cgroup.strip_prefix(&self.root)?;
            if !rest.is_empty() && !rest.starts_with('/') {
                return None;
            }
            rest
        };
        if inside.split('/').any(|part| part == "..") {
            return None;
        }
        Some(self.mount_point.join(inside.trim_start_matches('/')))
    }

    /// A process's cgroup in this hierarchy, which has the controller, as in `/proc/PID/cgroup`; works
    /// for thread ids too.
    #[must_use]
    pub fn cgroup_of(&self, tgid: Tgid, controller: &str) -> Option<String> {
        let text = read_small(format!("/proc/{}/cgroup", tgid.0)).ok()?;
        let controller = if self.unified { "" } else { controller };
        cgroup_with(&String::from_utf8_lossy(&text), controller)
    }

    /// The cgroup of a process (of its first thread, or of another one if that has exited). `None` for one
    /// that is gone, or whose cgroup lies outside of what is mounted here.
    #[must_use]
    pub fn live_cgroup_of(&self, tgid: Tgid, controller: &str) -> Option<String> {
        let cgroup = self.cgroup_of(tgid, controller)?;
        // Version 1 shows a thread that has exited in the root.
        let heir = if cgroup == "/" { process::heir(tgid) } else { None };
        let cgroup = match heir {
            Some(heir) => self.cgroup_of(heir, controller)?,
            None => cgroup,
        };
        self.directory(&cgroup).is_some().then_some(cgroup)
    }

    /// The root of the hierarchy, and so all of it, is mounted.
    fn shows_root(&self) -> bool {
        self.root == "/"
    }

    /// The cgroup id of this hierarchy's directory: its inode number (the kernfs id, which is
    /// what `bpf_get_current_cgroup_id` and `cgroup->kn->id` give on 64-bit kernels).
    #[must_use]
    pub fn id_of(&self, cgroup: &str) -> Option<u64> {
        fs::metadata(self.directory(cgroup)?).ok().map(|metadata| metadata.ino())
    }
}

/// The mounted hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    /// The version 2 hierarchy, if mounted.
    pub unified: Option<Hierarchy>,
    /// All mounts of version 1 hierarchies.
    version_1: Vec<Hierarchy>,
}

/// Undoes the octal escapes of mountinfo (space, tab, line feed, backslash).
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let octal = rest.get(at + 1..at + 4).and_then(|o| u8::from_str_radix(o, 8).ok());
        if let Some(byte) = octal {
            out.push(char::from(byte));
            rest = &rest[at + 4..];
        } else {
            out.push('\\');
            rest = &rest[at + 1..];
        }
    }
    out + rest
}

impl Cgroups {
    /// Parses `/proc/self/mountinfo`.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut found = Self { unified: None, version_1: Vec::new() };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ');
            let (Some(root), Some(mount_point)) = (left.nth(3), left.next()) else { continue };
            let mut right = right.split(' ');
            let (Some(fs_type), Some(options)) = (right.next(), right.nth(1)) else { continue };
            let unified = match fs_type {
                "cgroup2" => true,
                "cgroup" => false,
                _ => continue,
            };
            let controllers: Vec<String> =
                if unified { Vec::new() } else { options.split(',').map(str::to_owned).collect() };
            let hierarchy = Hierarchy {
                unified,
                mount_point: PathBuf::from(unescape(mount_point)),
                root: unescape(root),
                controllers,
            };
            if !unified {
                found.version_1.push(hierarchy);
            } else if found
                .unified
                .as_ref()
                .is_none_or(|kept| !kept.shows_root() && hierarchy.shows_root())
            {
                found.unified = Some(hierarchy);
            }
        }
        found
    }

    /// The layout of this host, as this process's mount namespace shows it.
    #[must_use]
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
    }

    /// Layout in one word.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        match (!self.version_1.is_empty(), self.unified.is_some()) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, true) => Layout::V2,
            (false, false) => Layout::Unmounted,
        }
    }

    /// The version 1 hierarchy with this controller, if mounted. Of several mounts the first that shows
    /// the most (its root).
    #[must_use]
    pub fn version_1(&self, controller: &str) -> Option<&Hierarchy> {
        let has =
            |hierarchy: &&Hierarchy| hierarchy.controllers.iter().any(|has| has == controller);
        self.version_1.iter().filter(has).min_by_key(|hierarchy| !hierarchy.shows_root())
    }

    /// The hierarchy whose cgroups this controller limits: that of version 1 where it is mounted (a
    /// controller can be bound to one hierarchy only), version 2 otherwise.
    #[must_use]
    pub fn with_controller(&self, controller: &str) -> Option<&Hierarchy> {
        self.version_1(controller).or(self.unified.as_ref())
    }

    /// The hierarchy that limits memory, and by which everything is counted.
    #[must_use]
    pub fn memory(&self) -> Option<&Hierarchy> {
        self.with_controller("memory")
    }

    /// Where version 2 is mounted (cgroup BPF programs attach there).
    #[must_use]
    pub fn unified_mount_point(&self) -> Option<&Path> {
        self.unified.as_ref().map(|hierarchy| hierarchy.mount_point.as_path())
    }

    /// A process's cgroup in [`Self::memory`]'s hierarchy, as in `/proc/PID/cgroup`.
    #[must_use]
    pub fn memory_cgroup_of(&self, tgid: Tgid) -> Option<String> {
        self.memory()?.cgroup_of(tgid, "memory")
    }

    /// The directory that a user means by `path`: a directory as it is, or a cgroup name as
    /// `/proc/PID/cgroup` and systemd print it, looked up in the memory hierarchy, then in
    /// version 2. `None` when it is no cgroup.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<PathBuf> {
        let is_cgroup = |directory: &Path| directory.join("cgroup.procs").is_file();
        if path.is_absolute() && is_cgroup(path) {
            return Some(path.to_path_buf());
        }
        let name = format!("/{}", path.to_str()?.trim_matches('/'));
        [self.memory(), self.unified.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|hierarchy| hierarchy.directory(&name))
            .find(|directory| is_cgroup(directory))
    }
}

/// `4:memory:/path` (version 1) or `0::/path` (version 2, controller `""`).
fn cgroup_with(text: &str, controller: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then(|| path.to_owned())
    })
}

/// A cgroup and all those above it, whose limits apply to it as well.
pub fn with_those_above(cgroup: &str) -> impl Iterator<Item = &str> {
    Path::new(cgroup).ancestors().filter_map(Path::to_str)
}

/// Most directories visited in one walk.
const WALK_MAX: usize = 65_536;

/// Directories of a hierarchy from `top` down, depth first; `false` when [`WALK_MAX`] cut it.
fn walk(top: &Path, mut visit: impl FnMut(&Path)) -> bool {
    let mut pending = vec![top.to_path_buf()];
    let mut visited = 0;
    while let Some(directory) = pending.pop() {
        if visited == WALK_MAX {
            return false;
        }
        visited += 1;
        visit(&directory);
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        pending.extend(entries.flatten().filter_map(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()).then(|| entry.path())
        }));
    }
    true
}

/// Processes in the cgroup `directory` and all below it.
#[must_use]
pub fn processes_below(directory: &Path) -> Vec<Tgid> {
    let mut tgids = Vec::new();
    walk(directory, |directory| {
        if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
            // 0 means a process outside of this pid namespace.
            tgids.extend(
                text.lines().filter_map(|line| line.parse().ok()).filter(|&id| id != 0).map(Tgid),
            );
        }
    });
    tgids
}

/// Names for cgroup ids of one hierarchy. Ids are unique within a hierarchy only: version 1's and
/// version 2's roots both have the id 1.
#[derive(Debug)]
pub struct CgroupNames {
    hierarchy: Hierarchy,
    names: HashMap<u64, String>,
    /// When the last walk began.
    walked: Option<Instant>,
    truncated: bool,
    /// Ids without a name, and when each was first looked up.
    unnamed: HashMap<u64, Instant>,
}

impl CgroupNames {
    /// Pause between two walks, because an id of a cgroup that was removed before it had a name is
    /// looked up again and again.
    const WALK_INTERVAL: Duration = Duration::from_secs(1);

    /// Most names kept; ids are never reused, so this bounds memory only.
    const NAMES_MAX: usize = 4 * WALK_MAX;

    /// Names for the ids of `hierarchy`. Nothing is read before the first look-up.
    #[must_use]
    pub fn new(hierarchy: Hierarchy) -> Self {
        Self {
            hierarchy,
            names: HashMap::new(),
            walked: None,
            truncated: false,
            unnamed: HashMap::new(),
        }
    }

    /// The cgroup's path within its hierarchy (`/`, `/system.slice/nginx.service`). Names of
    /// cgroups removed since are kept. `None` for a cgroup that was created and removed between two
    /// walks.
    pub fn name(&mut self, id: u64) -> Option<&str> {
        if !self.names.contains_key(&id)
            && self.walked.is_none_or(|at| at.elapsed() >= Self::WALK_INTERVAL)
        {
            self.refresh();
        }
        self.names.get(&id).map(String::as_str)
    }

    /// Whether the cgroup with this id has been removed. Where only a part of the hierarchy is
    /// mounted here, an id that has no name may belong to the rest of it: it counts as there.
    pub fn is_gone(&mut self, id: u64) -> bool {
        if let Some(name) = self.name(id).map(str::to_owned) {
            self.unnamed.remove(&id);
            return self.hierarchy.id_of(&name) != Some(id);
        }
        let asked = *self.unnamed.entry(id).or_insert_with(Instant::now);
        let walked_since = self.walked.is_some_and(|walked| walked > asked);
        let gone = walked_since && !self.truncated && self.is_whole();
        if gone {
            self.unnamed.remove(&id);
        }
        gone
    }

    /// The root of the whole hierarchy is mounted: its id is always 1 (`cgroup_setup_root`,
    /// kernel/cgroup/cgroup.c). In a cgroup namespace the root that is shown is another one.
    fn is_whole(&self) -> bool {
        self.hierarchy.id_of(&self.hierarchy.root) == Some(1)
    }

    /// Walks the hierarchy now.
    pub fn refresh(&mut self) {
        let begin = Instant::now();
        if self.names.len() >= Self::NAMES_MAX {
            self.names.clear();
        }
        let Self { hierarchy, names, .. } = self;
        let top = hierarchy.mount_point.clone();
        let prefix = hierarchy.root.trim_end_matches('/');
        let complete = walk(&top, |directory| {
            let Ok(metadata) = fs::metadata(directory) else { return };
            let Ok(below) = directory.strip_prefix(&top) else { return };
            let name = if below.as_os_str().is_empty() && !prefix.is_empty() {
                prefix.to_owned()
            } else {
                format!("{prefix}/{}", below.display())
            };
            names.insert(metadata.ino(), name);
        });
        self.truncated = !complete;
        self.walked = Some(begin);
    }

    /// The last walk stopped early: the hierarchy has more cgroups than are looked at.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        self.truncated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";
    const V2: &str = "\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
";
    const CONTAINER: &str = "\
812 800 0:32 /docker/ab\\040c /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory
";

    #[test]
    fn each_layout_is_recognised() {
        let hybrid = Cgroups::parse(HYBRID);
        assert_eq!(hybrid.layout(), Layout::Hybrid);
        assert_eq!(hybrid.memory().unwrap().mount_point, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(hybrid.unified_mount_point(), Some(Path::new("/sys/fs/cgroup/unified")));
        let cpu = Path::new("/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(hybrid.with_controller("cpu").unwrap().mount_point, cpu);
        assert_eq!(hybrid.version_1("cpuacct").unwrap().mount_point, cpu);
        assert_eq!(hybrid.version_1("io"), None);
        assert!(hybrid.with_controller("io").unwrap().unified);
        let both = Cgroups::parse(&format!("{CONTAINER}{HYBRID}"));
        assert_eq!(both.memory().unwrap().root, "/", "the mount that shows all of it");

        let v2 = Cgroups::parse(V2);
        assert_eq!(v2.layout(), Layout::V2);
        assert!(v2.memory().unwrap().unified);
        assert_eq!(v2.version_1("cpu"), None);
        assert_eq!(v2.memory().unwrap().mount_point, Path::new("/sys/fs/cgroup"));

        let v1 = Cgroups::parse(CONTAINER);
        assert_eq!(v1.layout(), Layout::V1);
        assert_eq!(v1.unified_mount_point(), None);
        assert_eq!(v1.version_1("cpu"), None);

        assert_eq!(Cgroups::parse("").layout(), Layout::Unmounted);
        assert_eq!(Cgroups::parse("").version_1("cpu"), None);
        assert_eq!(Cgroups::parse("1 2 3\n - cgroup2\nx - y z").layout(), Layout::Unmounted);
    }

    #[test]
    fn a_directory_follows_the_root_of_the_mount() {
        let container = Cgroups::parse(CONTAINER);
        let memory = container.memory().unwrap();
        assert_eq!(memory.root, "/docker/ab c");
        let directory = |cgroup| memory.directory(cgroup);
        let mount = Path::new("/sys/fs/cgroup/memory");
        assert_eq!(directory("/docker/ab c").as_deref(), Some(mount));
        assert_eq!(directory("/docker/ab c/x"), Some(mount.join("x")));
        assert_eq!(directory("/docker/ab cd"), None);
        assert_eq!(directory("/elsewhere"), None);
        assert_eq!(directory("/docker/ab c/../../etc"), None);
    }

    #[test]
    fn a_process_has_a_cgroup_per_hierarchy() {
        let text = "9:name=systemd:/a\n4:memory,hugetlb:/b:c\n0::/d\n";
        assert_eq!(cgroup_with(text, "memory").as_deref(), Some("/b:c"));
        assert_eq!(cgroup_with(text, "").as_deref(), Some("/d"));
        assert_eq!(cgroup_with(text, "cpu"), None);
    }

    #[test]
    fn ids_are_inodes_and_names_follow_new_directories() {
        // A plain directory tree: ids are inode numbers there too.
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a.slice/b.service")).unwrap();
        let hierarchy = Hierarchy {
            unified: true,
            mount_point: top.path().to_path_buf(),
            root: "/".into(),
            controllers: Vec::new(),
        };
        let id = hierarchy.id_of("/a.slice/b.service").unwrap();
        let mut names = CgroupNames::new(hierarchy.clone());
        assert_eq!(names.name(id), Some("/a.slice/b.service"));
        assert_eq!(names.name(hierarchy.id_of("/").unwrap()), Some("/"));

        fs::create_dir(top.path().join("late")).unwrap();
        let late = hierarchy.id_of("/late").unwrap();
        assert_eq!(names.name(late), None, "walked again within a second");
        names.walked = Instant::now().checked_sub(CgroupNames::WALK_INTERVAL);
        assert_eq!(names.name(late), Some("/late"));

        assert!(!names.is_gone(late));

        fs::remove_dir(top.path().join("late")).unwrap();
        names.refresh();
        assert_eq!(names.name(late), Some("/late"), "a removed cgroup keeps its name");
        assert!(names.is_gone(late));
        let (unknown, long_ago) = (u64::MAX, Instant::now());
        assert!(!names.is_gone(unknown), "not looked for since it was first asked for");
        names.unnamed.insert(unknown, long_ago);
        names.refresh();
        // Ids of a part of a hierarchy are not all visible, and the root's id says that it is one.
        assert!(!names.is_gone(unknown), "it may be where nothing is mounted");
    }

    #[test]
    fn processes_are_gathered_from_the_whole_subtree() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        fs::write(top.path().join("cgroup.procs"), "1\n0\n").unwrap();
        fs::write(top.path().join("a/b/cgroup.procs"), "7\n8\n").unwrap();
        let mut tgids = processes_below(top.path());
        tgids.sort_unstable();
        assert_eq!(tgids, [Tgid(1), Tgid(7), Tgid(8)]);
    }

    #[test]
    fn this_process_is_in_a_cgroup_of_this_host() {
        let cgroups = Cgroups::read();
        let Some(hierarchy) = cgroups.memory() else { return };
        let name = cgroups.memory_cgroup_of(Tgid(std::process::id())).unwrap();
        // In a container the name may lie outside of what is mounted.
        let Some(directory) = hierarchy.directory(&name).filter(|path| path.is_dir()) else {
            return;
        };
        assert!(processes_below(&directory).contains(&Tgid(std::process::id())));
        let id = hierarchy.id_of(&name).unwrap();
        assert_eq!(CgroupNames::new(hierarchy.clone()).name(id), Some(name.as_str()));
        assert_eq!(cgroups.find(Path::new(&name)), Some(directory));
    }
}
