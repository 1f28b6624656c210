//! The executable mappings of processes, and the files behind them.
//!
//! A process may be gone when its functions are looked up, and its files may be deleted. So the mappings are read
//! when the first stack of the process comes, and its files stay open. They are opened through
//! `/proc/PID/map_files`, which leads to the mapped file itself, whatever mount namespace it is in and
//! whatever has its name now.
//!
//! A process decides itself what it maps and what its files are called. Nothing in here trusts either.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{self, FileType, Mode, OFlags};

use crate::host::{process, read_start};
use crate::model::Tgid;
use crate::text;

/// Files that are kept open.
pub const FILES_MAX: usize = 512;
/// Processes whose mappings are kept at a time.
pub const PROCESSES_MAX: usize = 4_096;
/// Executable mappings that are kept of all processes together.
const MAPPINGS_MAX: usize = 200_000;
/// Names of files that are kept, of those too that cannot be opened.
const MODULES_MAX: usize = 2_048;
/// No more than this is read of the list of mappings of a process.
const LIST_BYTES: u64 = 8 << 20;
/// Characters of a name.
const NAME_CHARACTERS: usize = 160;

/// Pause between two looks at the mappings of a process for an address that lies in none. It doubles up
/// to [`LONGEST_PAUSE`] when a look finds none of the addresses: a program without frame pointers has
/// stacks with numbers that are no addresses.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Addresses that can belong to a process: neither the first page nor the kernel's half.
const USER_SPACE: std::ops::Range<u64> = 0x1000..1 << 56;

/// The module of addresses that lie in no mapping.
pub const UNKNOWN: u32 = 0;
/// The module of memory without a file: code that was made while the program ran.
pub const ANONYMOUS: u32 = 1;
const VDSO: u32 = 2;
const VSYSCALL: u32 = 3;
/// The names of these.
const WITHOUT_FILE: [&str; 4] = ["[unknown]", "[anonymous]", "[vdso]", "[vsyscall]"];

/// Something that addresses lie in.
#[derive(Debug)]
pub struct Module {
    /// As in `/proc/PID/maps`, without control characters.
    pub name: String,
    /// The file; `None` where there is none, or where it could not be opened.
    pub file: Option<File>,
}

/// What an address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Number of the [`Module`].
    pub module: u32,
    /// Bytes behind the begin of the file or of the mapping; in [`UNKNOWN`] and [`ANONYMOUS`] the address.
    pub offset: u64,
}

/// Counts of what is not known, by kind.
pub type NotKnown = BTreeMap<&'static str, u64>;

/// An executable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    module: u32,
    /// The offset of its first byte.
    offset: u64,
}

/// The mappings of a process, as they were at one moment.
#[derive(Clone)]
struct Snapshot {
    mappings: Vec<Mapping>,
    taken: Instant,
    /// Until when it is not taken again.
    pause: Duration,
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    start: u64,
    end: u64,
    is_executable: bool,
    offset: u64,
    /// 0 where there is no file.
    inode: u64,
    name: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
        let is_executable = fields.next()?.contains('x');
        let offset = hexadecimal(fields.next()?)?;
        let _device = fields.next()?;
        let inode = fields.next()?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim_start_matches(' ');
        (start < end).then_some(Self { start, end, is_executable, offset, inode, name })
    }
}

/// The list of mappings of a process.
struct List {
    text: String,
    /// Where the links to the mapped files are.
    links: PathBuf,
    /// The list is longer.
    is_cut: bool,
}

impl List {
    /// Reads the list; `None` when the process is gone or may not be looked at.
    fn read(tgid: Tgid) -> Option<Self> {
        let of = |task: Tgid| {
            let directory = PathBuf::from(format!("/proc/{}", task.0));
            let text = read_start(directory.join("maps"), LIST_BYTES).ok()?;
            let is_cut = text.len() as u64 == LIST_BYTES;
            let text = String::from_utf8_lossy(&text).into_owned();
            (!text.is_empty()).then(|| Self { text, links: directory.join("map_files"), is_cut })
        };
        of(tgid).or_else(|| of(process::heir(tgid)?))
    }
}

/// The mappings of all processes that had stacks.
pub struct Mappings {
    processes: BTreeMap<Tgid, Snapshot>,
    modules: Vec<Module>,
    /// The modules of open files, by device and inode.
    by_file: BTreeMap<(u64, u64), u32>,
    /// The modules of files that could not be opened.
    by_name: BTreeMap<String, u32>,
    /// Mappings of all snapshots.
    kept: usize,
    files_max: usize,
    not_known: NotKnown,
}

impl Mappings {
    /// Without any process, for at most so many open files.
    #[must_use]
    pub fn new(files_max: usize) -> Self {
        let without_file = WITHOUT_FILE.map(|name| Module { name: name.to_owned(), file: None });
        Self {
            processes: BTreeMap::new(),
            modules: without_file.into(),
            by_file: BTreeMap::new(),
            by_name: BTreeMap::new(),
            kept: 0,
            files_max: files_max.min(FILES_MAX),
            not_known: NotKnown::new(),
        }
    }

    /// The process executes another program, or another process has its id.
    pub fn forget(&mut self, tgid: Tgid) {
        if let Some(snapshot) = self.processes.remove(&tgid) {
            self.kept -= snapshot.mappings.len();
        }
    }

    /// What the addresses of a process stand for.
    pub fn places(&mut self, tgid: Tgid, addresses: &[u64]) -> Vec<Place> {
        self.places_at(tgid, addresses, Instant::now(), List::read)
    }

    /// Reads the mappings of a process that is there now, and may be gone when its first stack comes.
    pub fn look_at(&mut self, tgid: Tgid) {
        self.refresh(tgid, &[], Instant::now(), List::read);
    }

    /// Gives a new process the mappings of the one that forked it, which are its own until it executes a program: it
    /// may be gone when its first stack comes.
    pub fn inherit(&mut self, child: Tgid, parent: Tgid) {
        self.forget(child);
        let Some(parent) = self.processes.get(&parent) else { return };
        let snapshot = parent.clone();
        if self.kept + snapshot.mappings.len() <= MAPPINGS_MAX {
            self.make_room(child);
            self.kept += snapshot.mappings.len();
            self.processes.insert(child, snapshot);
        }
    }

    fn places_at(
        &mut self,
        tgid: Tgid,
        addresses: &[u64],
        now: Instant,
        read: impl FnOnce(Tgid) -> Option<List>,
    ) -> Vec<Place> {
        self.refresh(tgid, addresses, now, read);
        self.found(tgid, addresses)
    }

    /// Reads the mappings of a process if it is new, or if addresses are in none of those that are known.
    fn refresh(
        &mut self,
        tgid: Tgid,
        addresses: &[u64],
        now: Instant,
        read: impl FnOnce(Tgid) -> Option<List>,
    ) {
        let missing = |snapshot: &Snapshot| {
            let unmapped = |address: &&u64| {
                USER_SPACE.contains(*address) && snapshot.place(**address).is_none()
            };
            addresses.iter().filter(unmapped).count()
        };
        let due = match self.processes.get(&tgid) {
            Some(known) => {
                let missing = missing(known);
                let is_over = now.saturating_duration_since(known.taken) >= known.pause;
                (missing > 0 && is_over).then_some((missing, known.pause))
            }
            None => Some((usize::MAX, PAUSE)),
        };
        if let Some((missed, pause)) = due {
            self.make_room(tgid);
            let list = read(tgid);
            if let Some(list) = &list {
                self.forget(tgid);
                let mappings = self.take(list);
                self.kept += mappings.len();
                self.processes.insert(tgid, Snapshot { mappings, taken: now, pause });
            }
            let gone = || Snapshot { mappings: Vec::new(), taken: now, pause };
            // Of a process that is gone, the last mappings stay.
            let snapshot = self.processes.entry(tgid).or_insert_with(gone);
            snapshot.taken = now;
            let is_of_use = missing(snapshot) < missed;
            snapshot.pause = if is_of_use { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }

    /// Lets go of the process that was looked at longest ago, where there are as many as may be. Should
    /// it have another stack, it is looked at again.
    fn make_room(&mut self, tgid: Tgid) {
        if self.processes.len() < PROCESSES_MAX || self.processes.contains_key(&tgid) {
            return;
        }
        let oldest = self.processes.iter().min_by_key(|(_, snapshot)| snapshot.taken);
        if let Some(oldest) = oldest.map(|(tgid, _)| *tgid) {
            self.forget(oldest);
        }
    }

    fn found(&mut self, tgid: Tgid, addresses: &[u64]) -> Vec<Place> {
        let unknown = |address: &u64| Place { module: UNKNOWN, offset: *address };
        let known = self.processes.get(&tgid).filter(|snapshot| !snapshot.mappings.is_empty());
        let Some(snapshot) = known else {
            self.count("process_gone");
            return addresses.iter().map(unknown).collect();
        };
        let mut unmapped = 0;
        let place = |address: &u64| {
            snapshot.place(*address).unwrap_or_else(|| {
                unmapped += 1;
                unknown(address)
            })
        };
        let places = addresses.iter().map(place).collect();
        if unmapped > 0 {
            *self.not_known.entry("address_in_no_mapping").or_default() += unmapped;
        }
        places
    }

    /// Whether there is anything about the process.
    #[cfg(test)]
    pub(crate) fn knows(&self, tgid: Tgid) -> bool {
        self.processes.contains_key(&tgid)
    }

    /// The modules, and what is not known.
    #[must_use]
    pub fn finish(self) -> (Vec<Module>, NotKnown) {
        (self.modules, self.not_known)
    }

    fn count(&mut self, kind: &'static str) {
        *self.not_known.entry(kind).or_default() += 1;
    }

    /// The executable mappings of a list, in the order of their addresses.
    fn take(&mut self, list: &List) -> Vec<Mapping> {
        let mut lines = list.text.lines();
        if list.is_cut {
            // The last line may be half of one.
            lines.next_back();
            self.count("mappings_beyond");
        }
        let mut mappings = Vec::new();
        for line in lines.filter_map(Line::parse).filter(|line| line.is_executable) {
            if self.kept + mappings.len() >= MAPPINGS_MAX {
                self.count("mappings_beyond");
                continue;
            }
            let found = match (line.inode, line.name) {
                (0, "[vdso]") => Some((VDSO, 0)),
                (0, "[vsyscall]") => Some((VSYSCALL, 0)),
                (0, _) => Some((ANONYMOUS, line.start)),
                _ => self.file(&line, &list.links).map(|module| (module, line.offset)),
            };
            if let Some((module, offset)) = found {
                mappings.push(Mapping { start: line.start, end: line.end, module, offset });
            }
        }
        mappings.sort_unstable_by_key(|mapping| mapping.start);
        mappings
    }

    /// The module of a mapped file; `None` where there is no room for its name.
    fn file(&mut self, line: &Line<'_>, links: &Path) -> Option<u32> {
        let link = links.join(format!("{:x}-{:x}", line.start, line.end));
        let Ok((handle, id)) = look_at(&link) else {
            self.count("file_not_opened");
            return self.without_file(line.name);
        };
        if let Some(module) = self.by_file.get(&id) {
            return Some(*module);
        }
        if self.by_file.len() >= self.files_max || self.modules.len() >= MODULES_MAX {
            self.count("files_beyond");
            return self.without_file(line.name);
        }
        let Ok(file) = open(&handle) else {
            self.count("file_not_opened");
            return self.without_file(line.name);
        };
        let module = self.add(line.name, Some(file));
        self.by_file.insert(id, module);
        Some(module)
    }

    fn without_file(&mut self, name: &str) -> Option<u32> {
        let name = text::clean(name, NAME_CHARACTERS);
        if let Some(module) = self.by_name.get(&name) {
            return Some(*module);
        }
        if self.modules.len() >= MODULES_MAX {
            return None;
        }
        let module = self.add(&name, None);
        self.by_name.insert(name, module);
        Some(module)
    }

    fn add(&mut self, name: &str, file: Option<File>) -> u32 {
        let module = self.modules.len() as u32;
        self.modules.push(Module { name: text::clean(name, NAME_CHARACTERS), file });
        module
    }
}

impl Snapshot {
    fn place(&self, address: u64) -> Option<Place> {
        let behind = self.mappings.partition_point(|mapping| mapping.start <= address);
        let mapping = self.mappings.get(behind.checked_sub(1)?)?;
        let offset = mapping.offset.saturating_add(address - mapping.start);
        (address < mapping.end).then_some(Place { module: mapping.module, offset })
    }
}

/// A handle of a regular file, which does not open it, and its device and inode.
fn look_at(link: &Path) -> io::Result<(OwnedFd, (u64, u64))> {
    let handle = fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fs::fstat(&handle)?;
    // Opening a device or a FIFO may have effects.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((handle, (stat.st_dev, stat.st_ino)))
}

/// Opens the file of a handle, without waiting for a process that holds a lease on it.
fn open(handle: &OwnedFd) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
#[path = "mappings_tests.rs"]
mod tests;
