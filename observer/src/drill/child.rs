//! Child processes that never outlive the drill.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

/// What ends a drill that was interrupted.
pub(super) const INTERRUPTED: &str = "interrupted";

/// How often a wait looks at what it waits for.
const PAUSE: Duration = Duration::from_millis(20);

/// What a child may take to end its own processes before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Nice value of everything in a drill, also of what disturbs the service on purpose: whatever else this
/// host does must not be the reason why requests are slow. (With autogroups, the kernel's default on desktops,
/// it counts among the processes of the same session only.)
pub(super) const NICE: i32 = -10;

/// A running child, killed when dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    name: &'static str,
    has_children: bool,
}

/// Where a child begins.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The only CPU it may use; otherwise it has those of the drill.
    pub(super) cpu: Option<u32>,
    /// Files of cgroups through which it enters them.
    pub(super) entrances: Vec<File>,
    /// Whether it starts processes of its own, which it ends when it gets SIGTERM.
    pub(super) has_children: bool,
}

impl Running {
    /// Starts a child in a process group of its own: ^C at the terminal reaches it only through the
    /// drill.
    ///
    /// # Errors
    /// When it cannot be started or placed.
    pub(super) fn start(
        name: &'static str,
        command: &mut Command,
        place: Place,
    ) -> Result<Self, String> {
        let cpus = place.cpu.map(|cpu| {
            let mut set = CpuSet::new();
            set.set(cpu as usize);
            set
        });
        let entrances = place.entrances;
        let has_children = place.has_children;
        let last_signal = if has_children { Signal::TERM } else { Signal::KILL };
        command.process_group(0);
        let begin = move || {
            set_parent_process_death_signal(Some(last_signal))?;
            if let Some(cpus) = &cpus {
                sched_setaffinity(None, cpus)?;
            }
            // Not allowed everywhere, and then the host has to be quiet.
            let _ = rustix::process::setpriority_process(None, NICE);
            for entrance in &entrances {
                // "0" is the writing process itself.
                rustix::io::write(entrance, b"0")?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        unsafe { command.pre_exec(begin) };
        let child = command.spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        Ok(Self { child, name, has_children })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, line by line, when it was piped.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn lines(&mut self) -> Result<Receiver<String>, String> {
        let (said, lines) = channel();
        if let Some(stdout) = self.child.stdout.take() {
            let read = move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if said.send(line).is_err() {
                        return;
                    }
                }
            };
            let thread = std::thread::Builder::new().name("drill-lines".into()).spawn(read);
            thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        Ok(lines)
    }

    /// Closes its standard input.
    pub(super) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Asks it to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| format!("cannot wait for {}: {error}", self.name))
    }

    /// Makes sure that it runs.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn is_alive(&mut self) -> Result<(), String> {
        let name = self.name;
        let ended = self.ended()?;
        ended.map_or(Ok(()), |status| Err(format!("{name} ended before the load: {status}")))
    }

    /// Waits for its end, at most until `deadline`. Interrupted, it gets SIGINT and some seconds.
    ///
    /// # Errors
    /// When it fails, still runs, or was interrupted.
    pub(super) fn wait(&mut self, mut deadline: Instant, stop: &AtomicBool) -> Result<(), String> {
        let mut told = false;
        loop {
            if let Some(status) = self.ended()? {
                return match (told, status.success()) {
                    (true, _) => Err(INTERRUPTED.into()),
                    (false, true) => Ok(()),
                    (false, false) => Err(format!("{} failed: {status}", self.name)),
                };
            }
            if stop.load(Ordering::Relaxed) && !told {
                self.signal(Signal::INT);
                told = true;
                deadline = Instant::now() + Duration::from_secs(5);
            }
            if Instant::now() > deadline {
                let why = if told { INTERRUPTED.into() } else { format!("{} hangs", self.name) };
                return Err(why);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.has_children && matches!(self.ended(), Ok(None)) {
            self.terminate();
            let deadline = Instant::now() + END_TIMEOUT;
            while matches!(self.ended(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(PAUSE);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line that begins with `start`; what follows.
///
/// # Errors
/// When it does not come in time, or `alive` says that it never will.
pub(super) fn await_line(
    lines: &Receiver<String>,
    start: &str,
    timeout: Duration,
    stop: &AtomicBool,
    alive: impl FnMut() -> Result<(), String>,
) -> Result<String, String> {
    let next = || {
        let line = lines.recv_timeout(PAUSE).ok()?;
        line.strip_prefix(start).map(|rest| rest.trim().to_owned())
    };
    await_some(next, timeout, stop, alive)
}

/// What `find` finds, which must not take long, and is called again until then.
///
/// # Errors
/// As [`await_line`].
pub(super) fn await_some<T>(
    mut find: impl FnMut() -> Option<T>,
    timeout: Duration,
    stop: &AtomicBool,
    mut alive: impl FnMut() -> Result<(), String>,
) -> Result<T, String> {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if stop.load(Ordering::Relaxed) {
            return Err(INTERRUPTED.into());
        }
        if let Some(found) = find() {
            return Ok(found);
        }
        alive()?;
    }
    Err(format!("nothing happened within {timeout:?}"))
}

/// As [`await_some`] for what takes no time to find: it is looked for some times a second.
///
/// # Errors
/// As [`await_line`].
pub(super) fn await_at_times<T>(
    mut find: impl FnMut() -> Option<T>,
    timeout: Duration,
    stop: &AtomicBool,
    alive: impl FnMut() -> Result<(), String>,
) -> Result<T, String> {
    let look = || {
        let found = find();
        if found.is_none() {
            std::thread::sleep(PAUSE);
        }
        found
    };
    await_some(look, timeout, stop, alive)
}
