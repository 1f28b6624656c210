//! The limits that the process was started with (setrlimit(2), the pids and the memory of its cgroup). One that is
//! too low is reported before anything begins, because later it would look like something else: like a
//! process that does not exist, a kernel that lacks a feature, or a crash.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Error, Exit, Result};
use crate::host::MemoryRoom;
use crate::kernel::{RING_BYTES, stacks_bytes};
use crate::session::memory;
use crate::stacks::mappings::FILES_MAX;
use crate::text;

/// The command line is parsed on the first thread's stack; all others are as large as they must be.
const STACK_BYTES: u64 = 512 << 10;
/// Threads that observer has at most.
const THREADS: usize = 12;

/// Open files of observer: programs, maps, links, and events on each CPU.
const FILES: u64 = 256;
/// Handles on processes of the target, and what else is open for a while.
const SPARE_FILES: u64 = 640;
/// Open files of the counters: each thread that is there at the begin takes up to 14 (4 where the processor has
/// none), of the size of a few pages in the kernel.
const COUNTER_FILES: u64 = 8_192;
/// With fewer, not even the processes can be looked at. In between, programs that there is no descriptor
/// for are reported in the coverage.
const FEWEST_FILES: u64 = 24;
/// Address space of observer without anything that grows with a run.
const ADDRESS_SPACE: u64 = 512 << 20;

/// Memory of processes that have ended is given up on after so many pauses in which none of it was
/// freed: a second.
const FREED_PAUSES: u32 = 20;
const FREED_PAUSE: Duration = Duration::from_millis(50);

/// What a command needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Open files.
    pub files: u64,
    /// Bytes of address space.
    pub address_space: u64,
    /// Bytes of memory in the cgroup of observer, including its maps in the kernel.
    pub memory: u64,
}

impl Needs {
    /// What `observer load` takes with one connection.
    pub const LOAD: Self = Self { files: 64, address_space: 128 << 20, memory: 0 };

    /// What the daemon takes.
    #[must_use]
    pub fn of_daemon() -> Self {
        let memory = memory::daemon_needs_bytes();
        Self { files: FILES, address_space: ADDRESS_SPACE, memory }
    }

    /// The same with counters of the target's threads, for which as many files are allowed as the hard limit
    /// permits.
    #[must_use]
    pub const fn with_counters(self, counters: bool) -> Self {
        let files = if counters { FILES + SPARE_FILES + COUNTER_FILES } else { self.files };
        Self { files, ..self }
    }

    /// The same with the table of stacks, and with the files that the target executes, which stay open for the
    /// names of functions.
    #[must_use]
    pub fn with_stacks(self, stacks: bool) -> Self {
        if !stacks {
            return self;
        }
        Self {
            files: self.files.max(FILES + SPARE_FILES) + FILES_MAX as u64,
            address_space: self.address_space + memory::STACKS_BYTES,
            memory: self.memory + stacks_bytes(),
        }
    }

    /// What the doctor takes: it refuses where a run would.
    #[must_use]
    pub fn of_doctor() -> Self {
        let memory = memory::run_needs_bytes(RING_BYTES);
        Self { files: FILES, address_space: ADDRESS_SPACE, memory }
    }

    /// What a run takes: address space at most, and memory at least.
    #[must_use]
    pub fn of_run(ring_bytes: u32) -> Self {
        let address_space = memory::Memory::of_run(ring_bytes, false).resident_bound_bytes;
        Self { files: FILES, address_space, memory: memory::run_needs_bytes(ring_bytes) }
    }
}

/// How many open files of this limit are for counters.
#[must_use]
pub fn for_counters(limit: Option<u64>) -> u64 {
    limit
        .map_or(COUNTER_FILES, |limit| limit.saturating_sub(FILES + SPARE_FILES))
        .min(COUNTER_FILES)
}

/// How many open files of this limit are for those that the target executes.
#[must_use]
pub fn for_stacks(limit: Option<u64>) -> usize {
    let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(FILES + SPARE_FILES));
    usize::try_from(left).map_or(FILES_MAX, |left| left.min(FILES_MAX))
}

fn too_low(
    what: &str,
    limit: impl std::fmt::Display,
    need: impl std::fmt::Display,
    how: &str,
) -> Error {
    let text = format!("{what} is limited to {limit}, and observer needs {need}: raise it ({how})");
    Error::new(Exit::Limit, text)
}

/// Checks the stack of the first thread, before anything uses much of it.
///
/// # Errors
/// [`Exit::Limit`].
pub fn check_stack() -> Result<()> {
    match getrlimit(Resource::Stack).current {
        Some(limit) if limit < STACK_BYTES => {
            let (limit, need) = (text::bytes(limit), text::bytes(STACK_BYTES));
            Err(too_low("the stack", limit, need, "ulimit -s, LimitSTACK="))
        }
        _ => Ok(()),
    }
}

/// Checks everything else.
///
/// # Errors
/// [`Exit::Limit`].
pub fn check(needs: Needs) -> Result<()> {
    let files = getrlimit(Resource::Nofile);
    if files.current.is_some_and(|limit| limit < needs.files) {
        let raised_to = files.maximum.unwrap_or(needs.files).min(needs.files);
        let raised = Rlimit { current: Some(raised_to), ..files };
        if raised_to < FEWEST_FILES || setrlimit(Resource::Nofile, raised).is_err() {
            let how = "ulimit -n, LimitNOFILE=";
            return Err(too_low("the number of open files", raised_to, needs.files, how));
        }
    }
    for (resource, what, how) in [
        (Resource::As, "the address space", "ulimit -v, LimitAS="),
        (Resource::Data, "the data segment", "ulimit -d, LimitDATA="),
    ] {
        if let Some(limit) =
            getrlimit(resource).current.filter(|limit| *limit < needs.address_space)
        {
            let (limit, need) = (text::bytes(limit), text::bytes(needs.address_space));
            return Err(too_low(what, limit, need, how));
        }
    }
    check_memory(needs.memory)?;
    check_threads()
}

/// Without this check, the kernel would kill observer in the middle of its work.
fn check_memory(needed: u64) -> Result<()> {
    let Some(room) = room_below(needed, MemoryRoom::read, std::thread::sleep) else {
        return Ok(());
    };
    let others = room.limit_bytes.saturating_sub(room.bytes);
    let held = match others >> 20 {
        0 => String::new(),
        _ => format!(", of which others hold {}", text::bytes(others)),
    };
    let limit = format!("{}{held}", text::bytes(room.limit_bytes));
    let how = format!("{}, MemoryMax=", room.file.display());
    Err(too_low("the memory of observer's cgroup", limit, text::bytes(needed), &how))
}

/// The room, if it is too small and stays so. The kernel still holds the maps and the pages of an
/// observer that has just ended, until no CPU can use them any more (a grace period of RCU), so the room
/// is read again for as long as it grows.
fn room_below(
    needed: u64,
    read: impl Fn() -> Option<MemoryRoom>,
    pause: impl Fn(Duration),
) -> Option<MemoryRoom> {
    let is_too_small = |room: &MemoryRoom| room.bytes < needed;
    let mut most = read().filter(is_too_small)?;
    // Nothing that others give back would be enough.
    let mut left = if most.limit_bytes < needed { 0 } else { FREED_PAUSES };
    while left > 0 {
        pause(FREED_PAUSE);
        left -= 1;
        let room = read().filter(is_too_small)?;
        if room.bytes > most.bytes {
            (most, left) = (room, FREED_PAUSES);
        }
    }
    Some(most)
}

/// Whether as many threads can be started as will be. The limit counts those of other processes too, so
/// it is tried.
fn check_threads() -> Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    let start = |_| {
        let gate = Arc::clone(&gate);
        std::thread::Builder::new().spawn(move || drop(gate.lock()))
    };
    let (mut threads, mut failed) = (Vec::new(), None);
    for started in (0..THREADS).map(start) {
        match started {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(closed);
    for thread in threads {
        let _ = thread.join();
    }
    failed.map_or(Ok(()), |error| {
        let text = format!(
            "observer needs {THREADS} threads, and not all can be started: {error}; raise the limit \
             (ulimit -u, TasksMax=, pids.max, or that of the address space)"
        );
        Err(Error::new(Exit::Limit, text))
    })
}

/// Makes a write beyond the limit of a file's size fail with an error, where it would kill the process.
/// Programs that observer starts have the default again, because exec(2) resets handlers.
pub fn survive_file_size_limit() {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing, which is allowed at any moment; no other code handles SIGXFSZ.
    unsafe { libc::signal(libc::SIGXFSZ, handler as libc::sighandler_t) };
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What becomes of these rooms, one after the other, of which the last one stays; and how often it
    /// was waited.
    fn found(limit_bytes: u64, rooms: &[u64], needed: u64) -> (Option<u64>, u32) {
        let (reads, pauses) = (Cell::new(0), Cell::new(0));
        let read = || {
            let bytes = rooms[reads.get().min(rooms.len() - 1)];
            reads.set(reads.get() + 1);
            Some(MemoryRoom { bytes, limit_bytes, file: "memory.max".into() })
        };
        let room = room_below(needed, read, |_| pauses.set(pauses.get() + 1));
        (room.map(|room| room.bytes), pauses.get())
    }

    #[test]
    fn counters_leave_the_files_that_everything_else_needs() {
        assert_eq!(for_counters(Some(64)), 0);
        assert_eq!(for_counters(Some(1_024)), 1_024 - FILES - SPARE_FILES);
        assert_eq!(for_counters(Some(1 << 20)), COUNTER_FILES);
        assert_eq!(for_counters(None), COUNTER_FILES);
        let needs = Needs::LOAD.with_counters(true);
        assert_eq!(for_counters(Some(needs.files)), COUNTER_FILES);
        assert_eq!(Needs::LOAD.with_counters(false).files, Needs::LOAD.files);
    }

    #[test]
    fn files_of_stacks_leave_the_others() {
        assert_eq!(for_stacks(Some(64)), 0);
        assert_eq!(for_stacks(Some(1_024)), 1_024 - (FILES + SPARE_FILES) as usize);
        assert_eq!((for_stacks(Some(1 << 20)), for_stacks(None)), (FILES_MAX, FILES_MAX));
        let needs = Needs::LOAD.with_stacks(true);
        assert_eq!(for_stacks(Some(needs.files)), FILES_MAX);
        let needs = Needs::LOAD.with_counters(true).with_stacks(true);
        assert_eq!(for_counters(Some(needs.files - FILES_MAX as u64)), COUNTER_FILES);
        assert_eq!(Needs::LOAD.with_stacks(false).files, Needs::LOAD.files);
    }

    #[test]
    fn memory_that_is_being_freed_is_waited_for_and_no_other() {
        assert_eq!(found(100, &[90], 90), (None, 0));
        assert_eq!(found(100, &[10, 10, 50, 90], 90), (None, 3));
        assert_eq!(found(80, &[10, 90], 90), (Some(10), 0), "the limit itself is too low");
        assert_eq!(found(100, &[10], 90), (Some(10), FREED_PAUSES));
        assert_eq!(found(100, &[10, 20, 15], 90), (Some(20), FREED_PAUSES + 1));
        let none = room_below(90, || None, |_| panic!("there is no limit"));
        assert_eq!(none, None);
    }
}
