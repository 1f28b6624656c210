//! Processes, from `/proc/PID`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::system;
use crate::model::{Tgid, Tid};

/// `PF_KTHREAD` (include/linux/sched.h): the task is a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;

/// The fields of `/proc/PID/stat` that are used here, see proc_pid_stat(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process (or thread) id.
    pub pid: u32,
    /// Command name: at most 15 bytes, may hold spaces, parentheses and line feeds.
    pub comm: String,
    /// State letter (`R`, `S`, `D`, `Z`, `T`, ...).
    pub state: char,
    /// Parent process.
    pub ppid: u32,
    /// Process group; 0 of a kernel thread, and of a task that is being released.
    pub group: u32,
    /// Kernel flags of the task.
    pub flags: u32,
    /// Minor faults so far.
    pub minor_faults: u64,
    /// Major faults so far.
    pub major_faults: u64,
    /// User time, clock ticks.
    pub user_ticks: u64,
    /// System time, clock ticks.
    pub system_ticks: u64,
    /// Threads.
    pub threads: u64,
    /// When it started: clock ticks since boot. With the id, the identity of a process.
    pub start_ticks: u64,
    /// Resident pages.
    pub rss_pages: u64,
}

impl Stat {
    /// Parses the one line of `/proc/PID/stat`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses and may hold any byte, parentheses too: only the last
        // closing one ends it.
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let comm = text.get(open + 1..close)?.to_owned();
        let rest: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        // `rest[0]` is field 3 of the manual page.
        let number = |field: usize| rest.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid: text.get(..open)?.trim().parse().ok()?,
            comm,
            state: rest.first()?.chars().next()?,
            ppid: u32::try_from(number(4)?).ok()?,
            // -1 of a task that is being released.
            group: number(5).and_then(|group| u32::try_from(group).ok()).unwrap_or(0),
            flags: u32::try_from(number(9)?).ok()?,
            minor_faults: number(10)?,
            major_faults: number(12)?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
            rss_pages: number(24)?,
        })
    }

    /// A kernel thread: it has no user memory and serves no requests.
    #[must_use]
    pub const fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Nothing of the process runs any more (a leader that exited before its threads is a zombie
    /// too, with threads left).
    #[must_use]
    pub const fn is_dead(&self) -> bool {
        self.has_ended() && self.threads <= 1
    }

    /// This thread has exited: it has neither program nor descriptors any more.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The fields of `/proc/PID/status` that are used here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Process the task belongs to.
    pub tgid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Ids of the process in each pid namespace, outermost first.
    pub namespace_pids: Vec<u32>,
    /// Effective capabilities.
    pub effective_capabilities: u64,
    /// Signals with a handler: signal 1 is bit 0.
    pub caught_signals: u64,
    /// Resident set.
    pub rss_bytes: u64,
    /// Peak resident set.
    pub peak_rss_bytes: u64,
    /// CPUs that it may run on, by its affinity and its cpuset.
    pub allowed_cpus: Vec<u32>,
}

impl Status {
    /// Parses `/proc/PID/status`. Lines that are missing (a kernel thread has no `VmRSS`) give 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut status = Self::default();
        let mut tgid = None;
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let mut words = value.split_ascii_whitespace();
            match key {
                "Tgid" => tgid = words.next()?.parse().ok(),
                "Uid" => status.euid = words.nth(1)?.parse().ok()?,
                "NSpid" => status.namespace_pids = words.filter_map(|w| w.parse().ok()).collect(),
                "CapEff" => {
                    status.effective_capabilities = u64::from_str_radix(words.next()?, 16).ok()?;
                }
                "SigCgt" => {
                    status.caught_signals = u64::from_str_radix(words.next()?, 16).ok()?;
                }
                "Cpus_allowed_list" => {
                    status.allowed_cpus = system::parse_cpu_list(words.next()?)?;
                }
                "VmRSS" => status.rss_bytes = words.next()?.parse::<u64>().ok()? * 1024,
                "VmHWM" => status.peak_rss_bytes = words.next()?.parse::<u64>().ok()? * 1024,
                _ => {}
            }
        }
        status.tgid = tgid?;
        Some(status)
    }
}

/// A process: its id, its name and its start time. The start time distinguishes it from a later
/// process with the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Process id in the initial pid namespace.
    pub tgid: Tgid,
    /// Start time, clock ticks since boot.
    pub start_ticks: u64,
    /// Parent process.
    pub parent: Tgid,
    /// Command name of its leader.
    pub comm: String,
    /// It is a kernel thread.
    pub kernel_thread: bool,
}

impl Process {
    /// The live process with this id; `None` when there is none (a zombie does not count).
    #[must_use]
    pub fn read(tgid: Tgid) -> Option<Self> {
        let stat = stat(tgid)?;
        if stat.is_dead() { None } else { Some(Self::from_stat(&stat)) }
    }

    /// From the parsed line.
    #[must_use]
    pub fn from_stat(stat: &Stat) -> Self {
        Self {
            tgid: Tgid(stat.pid),
            start_ticks: stat.start_ticks,
            parent: Tgid(stat.ppid),
            comm: stat.comm.clone(),
            kernel_thread: stat.is_kernel_thread(),
        }
    }

    /// When it started: time since boot, on the clock `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn started(&self) -> Duration {
        let ticks_hz = rustix::param::clock_ticks_per_second().max(1);
        let (seconds, ticks) = (self.start_ticks / ticks_hz, self.start_ticks % ticks_hz);
        Duration::from_secs(seconds) + Duration::from_secs(ticks) / ticks_hz as u32
    }

    /// Whether this very process (not a later one with its id) is still alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::read(self.tgid).is_some_and(|now| now.start_ticks == self.start_ticks)
    }
}

/// Time since boot, as start times of processes count it.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn entry(tgid: Tgid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", tgid.0))
}

/// Reads a file of `/proc` as text; bytes that are not UTF-8 (command names may hold any) are
/// replaced.
fn read_lossy(path: &Path) -> io::Result<String> {
    super::read_small(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Numeric entries of a directory of `/proc`, ascending.
fn numeric_entries(path: &Path) -> io::Result<Vec<u32>> {
    let mut ids: Vec<u32> = fs::read_dir(path)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Ids of all processes, ascending. Empty when `/proc` cannot be read.
#[must_use]
pub fn all_ids() -> Vec<Tgid> {
    numeric_entries(Path::new("/proc")).unwrap_or_default().into_iter().map(Tgid).collect()
}

/// All live processes.
#[must_use]
pub fn all() -> Vec<Process> {
    all_ids().into_iter().filter_map(Process::read).collect()
}

/// `/proc/PID/stat`; works for thread ids too.
#[must_use]
pub fn stat(tgid: Tgid) -> Option<Stat> {
    Stat::parse(&read_lossy(&entry(tgid, "stat")).ok()?)
}

/// `/proc/PID/status`; works for thread ids too.
#[must_use]
pub fn status(tgid: Tgid) -> Option<Status> {
    Status::parse(&read_lossy(&entry(tgid, "status")).ok()?)
}

/// Command name of the process's leader.
#[must_use]
pub fn comm(tgid: Tgid) -> Option<String> {
    let text = read_lossy(&entry(tgid, "comm")).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// Command name of one thread, by thread id alone.
#[must_use]
pub fn thread_comm(tid: Tid) -> Option<String> {
    comm(Tgid(tid.0))
}

/// Threads of a process, ascending. Empty when it is gone.
#[must_use]
pub fn threads(tgid: Tgid) -> Vec<Tid> {
    numeric_entries(&entry(tgid, "task")).unwrap_or_default().into_iter().map(Tid).collect()
}

/// If the first thread of a process has exited, another one that has not: only its directory in
/// `/proc` still shows the program, the descriptors and the namespaces. (Every thread has one under
/// its own id, which is not listed.)
#[must_use]
pub fn heir(tgid: Tgid) -> Option<Tgid> {
    if !stat(tgid)?.has_ended() {
        return None;
    }
    let others = threads(tgid).into_iter().map(|tid| Tgid(tid.0)).filter(|tid| *tid != tgid);
    others.into_iter().find(|tid| stat(*tid).is_some_and(|stat| !stat.has_ended()))
}

/// Threads of a process that have different tables of descriptors, one for each table. Usually that
/// is the first thread, whose table all others share. On a kernel without kcmp(2), one thread that
/// has not exited.
#[must_use]
pub fn descriptor_tables(tgid: Tgid) -> Vec<Tgid> {
    let mut tables: Vec<Tgid> = Vec::new();
    for tid in threads(tgid).into_iter().map(|tid| Tgid(tid.0)) {
        let mut known = false;
        for table in &tables {
            match share_descriptors(*table, tid) {
                Ok(shared) => known |= shared,
                Err(rustix::io::Errno::NOSYS) => return vec![heir(tgid).unwrap_or(tgid)],
                // One of them has exited.
                Err(_) => {}
            }
        }
        if !known {
            tables.push(tid);
        }
    }
    tables
}

/// Whether two threads have the same table of descriptors.
fn share_descriptors(one: Tgid, other: Tgid) -> rustix::io::Result<bool> {
    // include/uapi/linux/kcmp.h
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: takes no pointer.
    match unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, KCMP_FILES, 0, 0) } {
        -1 => {
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
            Err(rustix::io::Errno::from_raw_os_error(errno))
        }
        order => Ok(order == 0),
    }
}

/// A file that a process executes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Path as the process's mount namespace shows it, without the kernel's ` (deleted)`.
    pub path: PathBuf,
    /// Device and inode: the file itself, whatever it is called.
    pub file: (u64, u64),
}

impl Executable {
    fn at(link: &Path) -> Option<Self> {
        let path = fs::read_link(link).ok()?;
        let metadata = fs::metadata(link).ok()?;
        let path = match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
            Some(text) => PathBuf::from(text),
            None => path,
        };
        Some(Self { path, file: (metadata.dev(), metadata.ino()) })
    }

    /// Whether it has the name of a shared object: the dynamic loader, which executes the program
    /// that its arguments name (`ld-linux-x86-64.so.2 PROGRAM`).
    #[must_use]
    pub fn is_shared_object(&self) -> bool {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".so") || name.contains(".so.")
    }
}

/// The program a process runs; `None` for kernel threads, for processes that are gone, and for
/// those that observer may not inspect.
#[must_use]
pub fn executable(tgid: Tgid) -> Option<Executable> {
    let of = |tgid| Executable::at(&entry(tgid, "exe"));
    of(tgid).or_else(|| of(heir(tgid)?))
}

/// All files of which a process has executable memory: its program and its libraries.
#[must_use]
pub fn mapped_executables(tgid: Tgid) -> Vec<Executable> {
    let of = |tgid: Tgid| {
        let text = read_lossy(&entry(tgid, "maps")).ok().filter(|text| !text.is_empty())?;
        let executable = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (range, permissions) = (words.next()?, words.next()?);
            let (from, to) = range.split_once('-')?;
            // The names of the links have no leading zeros.
            let range = format!("{}-{}", from.trim_start_matches('0'), to.trim_start_matches('0'));
            permissions.contains('x').then(|| entry(tgid, "map_files").join(range))
        });
        Some(executable.filter_map(|link| Executable::at(&link)).collect())
    };
    of(tgid).or_else(|| of(heir(tgid)?)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 1 10 10 0 -1 4194560 1201 34 5 0 7 8 0 0 20 0 3 0 4242 12345678 321 \
        18446744073709551615 1 1 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0";

    #[test]
    fn a_stat_line_gives_its_fields() {
        let stat = Stat::parse(&format!("10 (nginx) {TAIL}\n")).unwrap();
        assert_eq!(
            stat,
            Stat {
                pid: 10,
                comm: "nginx".into(),
                state: 'S',
                ppid: 1,
                group: 10,
                flags: 4_194_560,
                minor_faults: 1201,
                major_faults: 5,
                user_ticks: 7,
                system_ticks: 8,
                threads: 3,
                start_ticks: 4242,
                rss_pages: 321,
            }
        );
        assert!(!stat.is_kernel_thread());
        assert!(!stat.is_dead());
    }

    #[test]
    fn a_command_name_may_hold_spaces_parentheses_and_fake_fields() {
        for comm in ["tmux: server", "a) R 1 (b", "((", "))", "x\ny", "", "(sd-pam)"] {
            let stat = Stat::parse(&format!("10 ({comm}) {TAIL}")).unwrap();
            assert_eq!(stat.comm, comm);
            assert_eq!((stat.state, stat.ppid, stat.start_ticks), ('S', 1, 4242), "{comm:?}");
        }
    }

    #[test]
    fn cut_or_foreign_lines_are_refused() {
        for text in ["", "10", "10 (a", "10 a) S 1", "(a) S 1 2", "10 (a) S 1 2 3", "x (a) S 1 1"] {
            assert_eq!(Stat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_leader_that_left_its_threads_behind_is_not_dead() {
        let zombie = |threads: u32| {
            let tail = TAIL.replacen('S', "Z", 1).replacen(" 3 0 4242", " N 0 4242", 1);
            Stat::parse(&format!("10 (x) {}", tail.replacen('N', &threads.to_string(), 1))).unwrap()
        };
        assert!(zombie(1).is_dead());
        assert!(!zombie(2).is_dead());
    }

    #[test]
    fn status_is_read_by_key() {
        let text = "Name:\tx\nTgid:\t12\nPid:\t13\nUid:\t0\t33\t0\t0\nNSpid:\t13\t2\n\
            Cpus_allowed_list:\t0-1,4\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nSigCgt:\t0000000180004002\n\
            CapEff:\t000001fffeffffff\n";
        let status = Status::parse(text).unwrap();
        assert_eq!(status.tgid, 12);
        assert_eq!(status.euid, 33);
        assert_eq!(status.allowed_cpus, [0, 1, 4]);
        assert_eq!(status.namespace_pids, [13, 2]);
        assert_eq!(status.effective_capabilities, 0x01ff_feff_ffff);
        assert_eq!(status.caught_signals, 0x1_8000_4002);
        assert_eq!((status.rss_bytes, status.peak_rss_bytes), (1 << 20, 2 << 20));
        assert_eq!(Status::parse("Name:\tx\n"), None);
    }

    #[test]
    fn this_process_is_found_with_its_threads_and_program() {
        let me = Tgid(std::process::id());
        assert!(all_ids().contains(&me));
        let process = Process::read(me).unwrap();
        assert!(process.is_alive());
        assert!(!process.kernel_thread);
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let age_seconds = now.tv_sec - process.started().as_secs() as i64;
        assert!((0..7200).contains(&age_seconds), "{age_seconds}");
        assert!(threads(me).contains(&Tid(me.0)));
        assert_eq!(comm(me).unwrap(), process.comm);
        let program = std::env::current_exe().unwrap();
        let metadata = fs::metadata(&program).unwrap();
        assert_eq!(executable(me).unwrap().file, (metadata.dev(), metadata.ino()));
        let later = Process { start_ticks: process.start_ticks + 1, ..process };
        assert!(!later.is_alive());
    }

    #[test]
    fn a_zombie_is_no_process() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let tgid = Tgid(child.id());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while Process::read(tgid).is_some() {
            assert!(std::time::Instant::now() < deadline, "never became a zombie");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(stat(tgid).unwrap().is_dead());
        child.wait().unwrap();
        assert_eq!(stat(tgid), None);
    }
}
