//! The cgroup of the throwaway service, in the hierarchies that limit memory and CPU time.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::cgroups::Cgroups;

/// How long a cgroup may stay in use after its last process has ended.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the use of memory is watched before the limit is lowered to it, and how often it is read.
const WATCH: Duration = Duration::from_millis(450);
const WATCH_PAUSE: Duration = Duration::from_millis(1);
/// What counts as the least use again, and the room that is left above it.
const NEAR_BYTES: u64 = 1 << 20;
const ROOM_BYTES: u64 = 128 << 10;

/// CPU time in each period while the quota is small.
const QUOTA_US: u64 = 5_000;
const PERIOD_US: u64 = 100_000;

/// A controller of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    /// Of version 1; in version 2 every cgroup can be frozen.
    Freezer,
}

impl Controller {
    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Freezer => "freezer",
        }
    }

    /// Where it is mounted, and whether that is version 2.
    fn hierarchy(self) -> Option<(PathBuf, bool)> {
        let cgroups = Cgroups::read();
        if let Some(mount_point) = cgroups.unified_mount_point()
            && fs::read_to_string(mount_point.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == self.name()))
        {
            return Some((mount_point.to_owned(), true));
        }
        cgroups.version_1(self.name()).map(|hierarchy| (hierarchy.mount_point.clone(), false))
    }
}

/// A cgroup in one hierarchy, removed when dropped. Its processes must have ended by then.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    unified: bool,
}

impl Directory {
    fn make(controller: Option<Controller>, name: &str) -> Result<Self, String> {
        let (mount_point, unified) = match controller {
            Some(controller) => controller
                .hierarchy()
                .ok_or_else(|| format!("no {} controller of cgroups", controller.name()))?,
            None => {
                let cgroups = Cgroups::read();
                let mounted = cgroups.unified_mount_point().ok_or("no cgroup file system")?;
                (mounted.to_owned(), true)
            }
        };
        if let (true, Some(controller)) = (unified, controller) {
            let file = mount_point.join("cgroup.subtree_control");
            fs::write(&file, format!("+{}", controller.name())).map_err(|error| {
                format!("cannot write +{} to {}: {error}", controller.name(), file.display())
            })?;
        }
        let path = mount_point.join(name);
        fs::create_dir(&path)
            .map_err(|error| format!("cannot make cgroup {}: {error}", path.display()))?;
        Ok(Self { path, unified })
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        let path = self.path.join(file);
        fs::write(&path, text)
            .map_err(|error| format!("cannot write {text} to {}: {error}", path.display()))
    }

    fn number(&self, file: &str, key: Option<&str>) -> Result<u64, String> {
        let path = self.path.join(file);
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let number = match key {
            None => text.trim().parse().ok(),
            Some(key) => text
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
                .and_then(|number| number.trim().parse().ok()),
        };
        number.ok_or_else(|| format!("{} has no number", path.display()))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let deadline = Instant::now() + REMOVE_TIMEOUT;
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::NotFound => return,
                Err(_) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    tracing::warn!("cannot remove cgroup {}: {error}", self.path.display());
                    return;
                }
            }
        }
    }
}

/// The cgroup of the service: in one hierarchy, and where version 1 separates controllers, in two.
#[derive(Debug)]
pub(super) struct Cgroup {
    memory: Option<Directory>,
    cpu: Option<Directory>,
    plain: Option<Directory>,
}

impl Cgroup {
    /// Makes it with the controller that the drill needs.
    ///
    /// # Errors
    /// When this host does not have that controller, or does not allow to make cgroups.
    pub(super) fn make(name: &str, needed: Option<Controller>) -> Result<Self, String> {
        let mut made = Self { memory: None, cpu: None, plain: None };
        match needed {
            Some(Controller::Memory) => {
                let memory = Directory::make(needed, name)?;
                if !memory.unified {
                    // A squeeze that goes too far makes the service wait instead of ending it.
                    memory.write("memory.oom_control", "1")?;
                }
                made.memory = Some(memory);
            }
            Some(Controller::Cpu) => {
                let cpu = Directory::make(needed, name)?;
                let file = if cpu.unified { "cpu.max" } else { "cpu.cfs_quota_us" };
                if !cpu.path.join(file).exists() {
                    return Err(format!("the cpu controller of this kernel has no {file}"));
                }
                made.cpu = Some(cpu);
            }
            Some(Controller::Freezer) => {
                let in_version_2 = Directory::make(None, name).ok();
                let plain = in_version_2.filter(|at| at.path.join("cgroup.freeze").exists());
                made.plain = Some(plain.map_or_else(|| Directory::make(needed, name), Ok)?);
            }
            None => match Directory::make(None, name) {
                Ok(directory) => made.plain = Some(directory),
                Err(_) => made.plain = Some(Directory::make(Some(Controller::Memory), name)?),
            },
        }
        Ok(made)
    }

    /// The files through which a process that writes `0` to them enters.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn entrances(&self) -> Result<Vec<fs::File>, String> {
        let all = [&self.memory, &self.cpu, &self.plain];
        let open = |directory: &Directory| {
            let path = directory.path.join("cgroup.procs");
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.map_err(|error| format!("cannot open {}: {error}", path.display()))
        };
        all.into_iter().flatten().map(open).collect()
    }

    /// Lowers the limit of memory to what is in use, at a moment when that is little: who asks for more
    /// later has to reclaim, and not the one who writes the limit.
    ///
    /// # Errors
    /// When the kernel's files cannot be read or written.
    pub(super) fn squeeze(&self) -> Result<(), String> {
        let memory = self.memory.as_ref().ok_or("the cgroup has no memory controller")?;
        let usage = if memory.unified { "memory.current" } else { "memory.usage_in_bytes" };
        let begin = Instant::now();
        let mut least = u64::MAX;
        loop {
            let used = memory.number(usage, None)?;
            least = least.min(used);
            let watched = begin.elapsed();
            if watched > 3 * WATCH || watched > WATCH && used <= least + NEAR_BYTES {
                return self.limit_memory(memory, &(used + ROOM_BYTES).to_string());
            }
            std::thread::sleep(WATCH_PAUSE);
        }
    }

    fn limit_memory(&self, memory: &Directory, bytes: &str) -> Result<(), String> {
        memory.write(if memory.unified { "memory.max" } else { "memory.limit_in_bytes" }, bytes)
    }

    /// Lifts the limit of memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn release(&self) -> Result<(), String> {
        let Some(memory) = &self.memory else { return Ok(()) };
        self.limit_memory(memory, if memory.unified { "max" } else { "-1" })
    }

    /// Gives the service less CPU time than it needs, or as much as there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn set_quota(&self, small: bool) -> Result<(), String> {
        let cpu = self.cpu.as_ref().ok_or("the cgroup has no cpu controller")?;
        match (cpu.unified, small) {
            (true, true) => cpu.write("cpu.max", &format!("{QUOTA_US} {PERIOD_US}")),
            (true, false) => cpu.write("cpu.max", &format!("max {PERIOD_US}")),
            (false, true) => {
                cpu.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
                cpu.write("cpu.cfs_quota_us", &QUOTA_US.to_string())
            }
            (false, false) => cpu.write("cpu.cfs_quota_us", "-1"),
        }
    }

    /// Freezes the service, or lets it go on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), String> {
        let plain = self.plain.as_ref().ok_or("the cgroup cannot be frozen")?;
        match plain.unified {
            true => plain.write("cgroup.freeze", if frozen { "1" } else { "0" }),
            false => plain.write("freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
        }
    }

    /// Processes that the out-of-memory killer took in it.
    ///
    /// # Errors
    /// When the kernel's file cannot be read.
    pub(super) fn oom_kills(&self) -> Result<u64, String> {
        let Some(memory) = &self.memory else { return Ok(0) };
        let file = if memory.unified { "memory.events" } else { "memory.oom_control" };
        memory.number(file, Some("oom_kill"))
    }
}

/// Where a file of the service may be made whose pages can be reclaimed: not on a tmpfs.
pub(super) fn has_page_cache(directory: &Path) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    rustix::fs::statfs(directory).is_ok_and(|system| {
        #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
        let kind = i64::from(system.f_type);
        kind != TMPFS_MAGIC && kind != RAMFS_MAGIC
    })
}
