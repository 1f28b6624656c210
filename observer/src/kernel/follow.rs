//! Which binaries the target executes: places are attached when the first process with a binary
//! appears, and detached when the last one is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Kernel;
use super::binary::{Binary, BinaryId, FileId};
use super::uprobe::{Place, UprobeError};
use crate::host::Process;
use crate::model::Tgid;

/// Binaries that are followed at a time. Each takes a file descriptor.
const BINARIES_MAX: usize = 32;
/// Pause between two looks at what the processes execute.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks take at most one part in this many of a processor's time.
const SHARE: u32 = 100;

/// Looks for places in a binary. It is called once for each binary that the target executes.
pub type FindPlaces = Box<dyn FnMut(&Binary) -> Vec<Place> + Send>;

/// What a process executed at the last look.
struct Execution {
    start_ticks: u64,
    /// Device and inode number, as the process sees them.
    seen: (u64, u64),
    /// Its binary, or why it is not followed.
    file: Result<FileId, &'static str>,
}

/// A binary that a process of the target executes.
struct Followed {
    /// It stays open, so that its inode number is not given to another file.
    binary: Binary,
    /// The places that are attached.
    places: Vec<Place>,
}

/// The binaries of the target.
#[derive(Default)]
pub(super) struct Binaries {
    find: Option<FindPlaces>,
    executions: BTreeMap<Tgid, Execution>,
    followed: BTreeMap<FileId, Followed>,
    /// Binaries whose places are being detached.
    leaving: BTreeMap<FileId, JoinHandle<()>>,
    failures: BTreeMap<&'static str, u64>,
    next: Option<Instant>,
}

impl Binaries {
    fn fail(&mut self, process: &Process, error: &UprobeError) {
        *self.failures.entry(error.kind()).or_default() += 1;
        // A process that exits is part of normal operation.
        if error.kind() != "process_gone" {
            tracing::warn!("process {} ({}): {error}", process.tgid.0, process.comm);
        }
    }

    /// Forgets the processes that are not among these, and returns the binaries that no process
    /// executes any more.
    fn leave(&mut self, present: &BTreeSet<Tgid>) -> Vec<(FileId, Followed)> {
        self.executions.retain(|process, _| present.contains(process));
        let executed: BTreeSet<&FileId> =
            self.executions.values().filter_map(|execution| execution.file.as_ref().ok()).collect();
        let left: Vec<_> =
            self.followed.extract_if(.., |file, _| !executed.contains(file)).collect();
        if !left.is_empty() {
            // There is room for other binaries again.
            let full = UprobeError::TooManyBinaries(BINARIES_MAX).kind();
            self.executions.retain(|_, execution| execution.file != Err(full));
        }
        left
    }
}

impl Kernel {
    /// Attaches to the places that `find` returns for the binaries that the target executes, from the
    /// next [`Self::follow_binaries`] on.
    pub fn watch_binaries(&mut self, find: FindPlaces) {
        self.binaries.find = Some(find);
    }

    /// Attaches to the binaries that these processes have begun to execute, and detaches from those
    /// that none of them executes any more. To be called often with all processes of the target. It
    /// does nothing unless someone watches binaries, and most of the time not then either.
    ///
    /// In a binary that is executed already, a new process is watched from its first instruction on.
    /// A binary that the target executes for the first time is noticed after about 0.1 s.
    pub fn follow_binaries<'a>(&mut self, processes: impl Iterator<Item = &'a Process>) {
        let started = Instant::now();
        if self.binaries.find.is_none() || self.binaries.next.is_some_and(|next| started < next) {
            return;
        }
        self.binaries.leaving.retain(|_, thread| !thread.is_finished());
        let mut present = BTreeSet::new();
        for process in processes {
            if self.look_at(process) {
                present.insert(process.tgid);
            }
        }
        for (file, followed) in self.binaries.leave(&present) {
            let links: Vec<_> = followed
                .places
                .iter()
                .filter_map(|place| self.uprobes.take(&file, *place))
                .collect();
            // The kernel takes about 0.1 s for each, which is too long to wait for here. If there can
            // be no thread, the links are dropped at once.
            let detach = move || drop((links, followed.binary));
            let thread = std::thread::Builder::new().name("observer-detach".into()).spawn(detach);
            if let Ok(thread) = thread {
                self.binaries.leaving.insert(file, thread);
            }
        }
        self.binaries.next = Some(Instant::now() + PAUSE.max(started.elapsed() * SHARE));
    }

    /// Attaches to what a process executes, if it is new. Returns whether the process executes
    /// anything.
    fn look_at(&mut self, process: &Process) -> bool {
        let exe = format!("/proc/{}/exe", process.tgid.0);
        let Ok(metadata) = std::fs::metadata(exe) else { return false };
        let start_ticks = process.start_ticks;
        let seen = (metadata.dev(), metadata.ino());
        let known = self.binaries.executions.get(&process.tgid);
        if known.is_some_and(|known| (known.start_ticks, known.seen) == (start_ticks, seen)) {
            return true;
        }
        let file = match self.enter(process) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => {
                self.binaries.executions.remove(&process.tgid);
                return true;
            }
            Err(error) => {
                self.binaries.fail(process, &error);
                Err(error.kind())
            }
        };
        self.binaries.executions.insert(process.tgid, Execution { start_ticks, seen, file });
        true
    }

    /// Attaches to the places in the binary of a process, if no other process executes it. `None`
    /// while its places are still being detached: their programs would run twice.
    fn enter(&mut self, process: &Process) -> Result<Option<FileId>, UprobeError> {
        let binary = Binary::of_process(process)?;
        let file = binary.id().file.clone();
        if self.binaries.followed.contains_key(&file) {
            return Ok(Some(file));
        }
        if self.binaries.leaving.contains_key(&file) {
            return Ok(None);
        }
        if self.binaries.followed.len() >= BINARIES_MAX {
            return Err(UprobeError::TooManyBinaries(BINARIES_MAX));
        }
        let places = self.binaries.find.as_mut().map(|find| find(&binary)).unwrap_or_default();
        let mut attached = Vec::new();
        for place in places {
            match self.uprobes.attach(&mut self.ebpf, &binary, place) {
                Ok(()) => attached.push(place),
                Err(error) => self.binaries.fail(process, &error),
            }
        }
        self.binaries.followed.insert(file.clone(), Followed { binary, places: attached });
        Ok(Some(file))
    }

    /// The binaries that the target executes, as last seen.
    pub fn binaries(&self) -> impl Iterator<Item = &BinaryId> {
        self.binaries.followed.values().map(|followed| followed.binary.id())
    }

    /// How many processes and places could not be watched so far, by the kind of failure
    /// ([`UprobeError::kind`]).
    #[must_use]
    pub const fn unwatched(&self) -> &BTreeMap<&'static str, u64> {
        &self.binaries.failures
    }
}
