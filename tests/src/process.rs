//! Child processes that never outlive the process that started them, and ^C.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Result;
use crate::cgroup::{CpuCgroup, MemoryCgroup, UnifiedCgroup};

/// Names the directory of the programs where it is not the one cargo built into.
pub const BIN_DIR: &str = "OBSERVER_BIN_DIR";

/// The programs of this workspace, all built into one directory.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `observer`.
    pub observer: PathBuf,
    /// `observer-service`.
    pub service: PathBuf,
    /// `observer-work`.
    pub work: PathBuf,
}

impl Programs {
    /// The programs beside `sibling`, or where [`BIN_DIR`] says: on a host that did not build
    /// them.
    #[must_use]
    pub fn beside(sibling: &Path) -> Self {
        let named = std::env::var_os(BIN_DIR).map(PathBuf::from);
        let directory = named.as_deref().or(sibling.parent()).unwrap_or(Path::new("."));
        Self {
            observer: directory.join("observer"),
            service: directory.join("observer-service"),
            work: directory.join("observer-work"),
        }
    }
}

/// Where a child is put before it begins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement<'a> {
    /// Its memory cgroup.
    pub cgroup: Option<&'a MemoryCgroup>,
    /// Its cgroup of version 2; where that hierarchy has the memory controller, one of the two.
    pub unified: Option<&'a UnifiedCgroup>,
    /// The cgroup that limits its processor time.
    pub throttled: Option<&'a CpuCgroup>,
    /// The only CPU it may use.
    pub cpu: Option<u32>,
    /// Its nice value, from -20 (first) to 19 (last).
    pub nice: Option<i32>,
}

/// A running child, killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    name: String,
}

impl Running {
    /// Starts a child in a process group of its own, so that ^C at the terminal reaches it only
    /// through the process that started it.
    ///
    /// # Errors
    /// When it cannot be started or placed.
    pub fn start(command: &mut Command, placement: Placement<'_>) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let memory: Option<File> = placement.cgroup.map(MemoryCgroup::entrance).transpose()?;
        let unified: Option<File> = placement.unified.map(UnifiedCgroup::entrance).transpose()?;
        let throttled: Option<Vec<File>> =
            placement.throttled.map(CpuCgroup::entrances).transpose()?;
        let cpus = placement.cpu.map(|cpu| {
            let mut set = CpuSet::new();
            set.set(cpu as usize);
            set
        });
        let nice = placement.nice;
        command.process_group(0);
        let place = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if let Some(cpus) = &cpus {
                sched_setaffinity(None, cpus)?;
            }
            if let Some(nice) = nice {
                rustix::process::setpriority_process(None, nice)?;
            }
            for entrance in memory.iter().chain(&unified).chain(throttled.iter().flatten()) {
                // "0" is the writing process itself.
                rustix::io::write(entrance, b"0")?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        unsafe { command.pre_exec(place) };
        let child = command.spawn().map_err(|error| {
            format!("cannot start {name}: {error} (is it installed, or built?)")
        })?;
        Ok(Self { child, name })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once, when it was piped.
    #[must_use]
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The child itself.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|error| format!("cannot wait for {}: {error}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `timeout`; it is left running.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("{} still runs after {timeout:?}", self.name));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal; a child that has ended meanwhile is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `observer-service`.
#[derive(Debug)]
pub struct Service {
    /// The process.
    pub process: Running,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// PORT.
    pub port: u16,
}

impl Service {
    /// Starts the service and waits until it listens.
    ///
    /// # Errors
    /// When it does not get that far.
    pub fn start(program: &Path, arguments: &[&OsStr], place: Placement<'_>) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command, place)?;
        let line = first_line(process.stdout())
            .map_err(|error| format!("{} does not speak: {error}", program.display()))?;
        let url = line.trim().rsplit(' ').next().unwrap_or_default().to_owned();
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        match port {
            Some(port) => Ok(Self { process, url, port }),
            None => Err(format!("{} did not start listening: {line:?}", program.display())),
        }
    }
}

fn first_line(stdout: Option<ChildStdout>) -> io::Result<String> {
    let mut line = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    Ok(line)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on ^C and SIGTERM are noted instead of ending the program.
pub fn note_interrupts() {
    let handler = on_interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether ^C or SIGTERM came since [`note_interrupts`].
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Command lines of all processes that contain `needle`; between the words of one is a NUL.
///
/// # Panics
/// Without /proc.
#[must_use]
pub fn command_lines_with(needle: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    processes
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .filter(|line| line.contains(needle))
        .collect()
}
