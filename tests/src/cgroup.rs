//! A memory cgroup of one's own, in whichever hierarchy limits memory on this host.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::host::cgroups::Cgroups;

use crate::Result;

/// A memory cgroup, removed when dropped (its processes must be gone by then).
#[derive(Debug)]
pub struct MemoryCgroup {
    directory: PathBuf,
    unified: bool,
}

/// How long the use of the cgroup is watched before it is squeezed: a whole round of the service's
/// arena, and how often it is read.
const USAGE_WATCH: Duration = Duration::from_millis(450);
const USAGE_PAUSE: Duration = Duration::from_millis(1);

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
        if hierarchy.unified {
            let control = hierarchy.mount_point.join("cgroup.subtree_control");
            fs::write(&control, "+memory").map_err(|error| {
                format!("cannot give cgroups a memory controller: {}: {error}", control.display())
            })?;
        }
        let directory = hierarchy.mount_point.join(name);
        fs::create_dir(&directory)
            .map_err(|error| format!("cannot make cgroup {}: {error}", directory.display()))?;
        let made = Self { directory, unified: hierarchy.unified };
        if !made.unified {
            // A squeeze that goes too far makes the service wait instead of killing it; the
            // schedule ends each squeeze.
            made.write("memory.oom_control", "1")?;
        }
        Ok(made)
    }

    /// Where it is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Version of its hierarchy, 1 or 2.
    #[must_use]
    pub const fn version(&self) -> u32 {
        if self.unified { 2 } else { 1 }
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

    /// The file through which a process that writes `0` to it enters.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn entrance(&self) -> Result<File> {
        let path = self.directory.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| format!("cannot open {}: {error}", path.display()))
    }

    /// Bytes charged to it.
    ///
    /// # Errors
    /// When the kernel's file is unreadable.
    pub fn usage_bytes(&self) -> Result<u64> {
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        let text = self.read(file)?;
        text.trim().parse().map_err(|_| format!("{file} of the cgroup holds no number: {text:?}"))
    }

    /// Sets the limit; `None` lifts it.
    ///
    /// # Errors
    /// When the kernel refuses (version 1 does when it cannot reclaim down to it).
    pub fn limit(&self, bytes: Option<u64>) -> Result<()> {
        match (self.unified, bytes) {
            (true, Some(bytes)) => self.write("memory.max", &bytes.to_string()),
            (true, None) => self.write("memory.max", "max"),
            (false, Some(bytes)) => self.write("memory.limit_in_bytes", &bytes.to_string()),
            (false, None) => self.write("memory.limit_in_bytes", "-1"),
        }
    }

    /// Sets the limit to what is in use, at a moment when that is little: whoever asks for more
    /// later has to reclaim, and not the one who writes the limit. Returns the instant before it
    /// was written.
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
        let text = self.read(file)?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill "))
            .and_then(|count| count.trim().parse().ok())
            .ok_or_else(|| format!("{file} of the cgroup counts no oom_kill"))
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A process that was just waited for may still be listed for an instant.
        for _ in 0..100 {
            match fs::remove_dir(&self.directory) {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::NotFound => return,
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        eprintln!("cgroup {} is still in use and was left behind", self.directory.display());
    }
}
