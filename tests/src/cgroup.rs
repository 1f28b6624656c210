//! Cgroups for tests, in the hierarchy that limits memory or processor time on this host.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::host::cgroups::Cgroups;

use crate::Result;
use crate::kernel_counters::{Flat, Pressure};

/// A memory cgroup, removed when dropped (its processes must be gone by then).
#[derive(Debug)]
pub struct MemoryCgroup {
    group: Group,
    unified: bool,
}

/// How long the use of the cgroup is watched before it is squeezed: a whole round of the service's
/// arena, and how often it is read.
const USAGE_WATCH: Duration = Duration::from_millis(450);
const USAGE_PAUSE: Duration = Duration::from_millis(1);

/// How long a cgroup may stay in use after its last process has ended.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What counts as the least use again, and the room that is left above it.
const USAGE_NEAR_BYTES: u64 = 1 << 20;
const SQUEEZE_ROOM_BYTES: u64 = 128 << 10;

impl MemoryCgroup {
    /// Makes `NAME` at the top of the hierarchy.
    ///
    /// # Errors
    /// When there is no memory controller, or the cgroup cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        let cgroups = Cgroups::read();
        let Some(hierarchy) = cgroups.memory() else {
            return Err("no cgroup file system is mounted: mount one and try again".into());
        };
        let unified = hierarchy.unified;
        let group = Group::controlled(&hierarchy.mount_point, unified, "memory", name)?;
        let made = Self { group, unified };
        if !made.unified {
            // A squeeze that goes too far makes the service wait instead of killing it; the
            // schedule ends each squeeze.
            made.group.write("memory.oom_control", "1")?;
        }
        Ok(made)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.group.directory
    }

    /// Version of its hierarchy, 1 or 2.
    #[must_use]
    pub const fn version(&self) -> u32 {
        if self.unified { 2 } else { 1 }
    }

    /// From now on, the kernel kills a process when the limit is reached, and moves nothing to swap before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn allow_kills(&self) -> Result<()> {
        if !self.unified {
            self.group.write("memory.swappiness", "0")?;
            return self.group.write("memory.oom_control", "0");
        }
        // A kernel without swap has no such file.
        match self.group.directory.join("memory.swap.max").exists() {
            true => self.group.write("memory.swap.max", "0"),
            false => Ok(()),
        }
    }

    /// Times that memory was asked for beyond its limit.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn limit_hits(&self) -> Result<u64> {
        if self.unified {
            let events = self.group.flat("memory.events.local")?;
            return events.get("max").ok_or_else(|| "memory.events.local counts no max".into());
        }
        let text = self.group.read("memory.failcnt")?;
        text.trim().parse().map_err(|_| format!("memory.failcnt holds no number: {text:?}"))
    }

    /// The file through which a process that writes `0` to it enters.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn entrance(&self) -> Result<File> {
        self.group.entrance()
    }

    /// `memory.stat`. What the kernel adds up lazily may be late by [`Self::late_events`].
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn stat(&self) -> Result<Flat> {
        self.group.flat("memory.stat")
    }

    /// Events that `memory.stat` may not show yet: `MEMCG_CHARGE_BATCH` per CPU
    /// (`memcg_vmstats_needs_flush`, mm/memcontrol.c).
    #[must_use]
    pub fn late_events() -> u64 {
        64 * std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64)
    }

    /// Bytes charged to it.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn usage_bytes(&self) -> Result<u64> {
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        let text = self.group.read(file)?;
        text.trim().parse().map_err(|_| format!("{file} of the cgroup holds no number: {text:?}"))
    }

    /// Sets the limit; `None` lifts it.
    ///
    /// # Errors
    /// When the kernel refuses (version 1 does when it cannot reclaim down to it).
    pub fn limit(&self, bytes: Option<u64>) -> Result<()> {
        match (self.unified, bytes) {
            (true, Some(bytes)) => self.group.write("memory.max", &bytes.to_string()),
            (true, None) => self.group.write("memory.max", "max"),
            (false, Some(bytes)) => self.group.write("memory.limit_in_bytes", &bytes.to_string()),
            (false, None) => self.group.write("memory.limit_in_bytes", "-1"),
        }
    }

    /// Sets the limit to what is in use, at a moment when that is little: processes that ask for
    /// more later have to reclaim, and not the one that writes the limit. Returns the instant
    /// before it was written.
    ///
    /// # Errors
    /// As for [`Self::usage_bytes`] and [`Self::limit`].
    pub fn squeeze(&self) -> Result<MonoNanos> {
        let begin = Instant::now();
        let mut least = u64::MAX;
        loop {
            let usage = self.usage_bytes()?;
            least = least.min(usage);
            let watched = begin.elapsed();
            let near = watched > USAGE_WATCH && usage <= least + USAGE_NEAR_BYTES;
            if near || watched > 3 * USAGE_WATCH {
                let begin = MonoNanos::now();
                self.limit(Some(usage + SQUEEZE_ROOM_BYTES))?;
                return Ok(begin);
            }
            std::thread::sleep(USAGE_PAUSE);
        }
    }

    /// Processes that the out-of-memory killer took in it.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = self.group.read(file)?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok())
            .ok_or_else(|| format!("{file} of the cgroup counts no oom_kill"))
    }
}

/// A directory of a hierarchy, removed when dropped.
#[derive(Debug)]
struct Group {
    directory: PathBuf,
}

impl Group {
    fn create(mount_point: &Path, name: &str) -> Result<Self> {
        let directory = mount_point.join(name);
        fs::create_dir(&directory)
            .map_err(|error| format!("cannot make cgroup {}: {error}", directory.display()))?;
        Ok(Self { directory })
    }

    /// As [`Self::create`], where a controller of version 2 has to be handed down first.
    fn controlled(mount_point: &Path, unified: bool, controller: &str, name: &str) -> Result<Self> {
        if unified {
            let control = mount_point.join("cgroup.subtree_control");
            fs::write(&control, format!("+{controller}")).map_err(|error| {
                format!(
                    "cannot give cgroups the {controller} controller: {}: {error}",
                    control.display()
                )
            })?;
        }
        Self::create(mount_point, name)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.directory.join(file);
        fs::write(&path, text)
            .map_err(|error| format!("cannot write {text} to {}: {error}", path.display()))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.directory.join(file);
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))
    }

    fn flat(&self, file: &str) -> Result<Flat> {
        Flat::read(&self.directory.join(file))
    }

    fn entrance(&self) -> Result<File> {
        let path = self.directory.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| format!("cannot open {}: {error}", path.display()))
    }
}

/// Removes a cgroup whose processes have ended. One that was just waited for may still be listed for an
/// instant.
///
/// # Errors
/// When it stays in use.
pub fn remove(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + REMOVE_TIMEOUT;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(format!("cgroup {}: {error}", directory.display())),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("left behind: {error}");
        }
    }
}

/// A cgroup of version 2, for kernel counters that need no controller: `cpu.stat` and pressure.
/// Removed when dropped.
#[derive(Debug)]
pub struct UnifiedCgroup {
    group: Group,
}

impl UnifiedCgroup {
    /// Makes `NAME` at the top of the hierarchy.
    ///
    /// # Errors
    /// When version 2 is not mounted, or the cgroup cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        let cgroups = Cgroups::read();
        let Some(mount_point) = cgroups.unified_mount_point() else {
            return Err("cgroup version 2 is not mounted".into());
        };
        Ok(Self { group: Group::create(mount_point, name)? })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.group.directory
    }

    /// The file through which a process that writes `0` to it enters.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn entrance(&self) -> Result<File> {
        self.group.entrance()
    }

    /// `cpu.stat`.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn cpu_stat(&self) -> Result<Flat> {
        self.group.flat("cpu.stat")
    }

    /// `cpu.pressure` or `memory.pressure`.
    ///
    /// # Errors
    /// When the kernel keeps none.
    pub fn pressure(&self, resource: &str) -> Result<Pressure> {
        Pressure::read(&self.group.directory.join(format!("{resource}.pressure")))
    }
}

/// A cgroup whose processor time can be limited. Removed when dropped.
#[derive(Debug)]
pub struct CpuCgroup {
    group: Group,
    /// Version 1 counts processor time in a hierarchy of its own, unless both controllers share one.
    accounting: Option<Group>,
    unified: bool,
}

impl CpuCgroup {
    /// Makes `NAME` at the top of the hierarchy that has the `cpu` controller.
    ///
    /// # Errors
    /// When none has it, or the cgroup cannot be made.
    pub fn create(name: &str) -> Result<Self> {
        let cgroups = Cgroups::read();
        let cpu = cgroups.with_controller("cpu").ok_or("no cpu controller")?;
        let cpuacct = cgroups.version_1("cpuacct").filter(|cpuacct| *cpuacct != cpu);
        let group = Group::controlled(&cpu.mount_point, cpu.unified, "cpu", name)?;
        let accounting = cpuacct.map(|cpuacct| Group::create(&cpuacct.mount_point, name));
        Ok(Self { group, accounting: accounting.transpose()?, unified: cpu.unified })
    }

    /// Makes `NAME` in this one, which must be dropped later.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create_below(&self, name: &str) -> Result<Self> {
        let group = Group::controlled(&self.group.directory, self.unified, "cpu", name)?;
        let accounting = self.accounting.as_ref();
        let accounting =
            accounting.map(|above| Group::create(&above.directory, name)).transpose()?;
        Ok(Self { group, accounting, unified: self.unified })
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.group.directory
    }

    /// Version of its hierarchy, 1 or 2.
    #[must_use]
    pub const fn version(&self) -> u32 {
        if self.unified { 2 } else { 1 }
    }

    /// The files through which a process that writes `0` to them enters.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn entrances(&self) -> Result<Vec<File>> {
        [Some(&self.group), self.accounting.as_ref()]
            .into_iter()
            .flatten()
            .map(Group::entrance)
            .collect()
    }

    /// Limits the processor time in each period, for all processes together.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn limit(&self, quota_us: u64, period_us: u64) -> Result<()> {
        if self.unified {
            return self.group.write("cpu.max", &format!("{quota_us} {period_us}"));
        }
        self.group.write("cpu.cfs_period_us", &period_us.to_string())?;
        self.group.write("cpu.cfs_quota_us", &quota_us.to_string())
    }

    /// `cpu.stat`.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn stat(&self) -> Result<Flat> {
        self.group.flat("cpu.stat")
    }

    /// Time its run queues were throttled, summed over CPUs, nanoseconds.
    ///
    /// # Errors
    /// When the kernel's file is unreadable or does not say.
    pub fn throttled_ns(&self) -> Result<u64> {
        let stat = self.stat()?;
        let microseconds = stat.get("throttled_usec").map(|us| us * 1000);
        microseconds.or_else(|| stat.get("throttled_time")).ok_or_else(|| {
            format!("cpu.stat of {} reports no throttling", self.group.directory.display())
        })
    }

    /// Processor time that it used, nanoseconds.
    ///
    /// # Errors
    /// When the kernel does not count it.
    pub fn usage_ns(&self) -> Result<u64> {
        if self.unified {
            let usage_us = self.stat()?.get("usage_usec").ok_or("cpu.stat has no usage_usec")?;
            return Ok(usage_us * 1000);
        }
        let text = self.accounting.as_ref().unwrap_or(&self.group).read("cpuacct.usage")?;
        text.trim().parse().map_err(|_| format!("cpuacct.usage holds no number: {text:?}"))
    }
}
