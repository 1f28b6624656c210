//! What the command line names as the target, and the processes that match it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::builder::NonEmptyStringValueParser;

use super::TargetError;
use crate::host::network::Listeners;
use crate::host::{Cgroups, Process, cgroups, process};
use crate::model::{Joining, Tgid};

/// Bytes of a command name the kernel keeps, without the final NUL.
const COMM_BYTES: usize = observer_ebpf::wire::COMM_LEN - 1;

/// The ways to name the target.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(id = "target", multiple = false)]
struct Which {
    /// Process to watch, with its children (repeat for several)
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=0x40_0000))]
    pid: Vec<u32>,
    /// Every process with this command name, as `ps -e -o comm` prints it
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    comm: Option<String>,
    /// Every process that runs this program file
    #[arg(long, value_name = "PATH")]
    exe: Option<PathBuf>,
    /// Every process in this cgroup or below: a directory, or a name as in /proc/PID/cgroup
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Every process that listens on this port (TCP, else UDP), in any network namespace
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

/// TARGET on the command line, to be flattened into a subcommand's arguments. The argument group is
/// called `target`; a subcommand that needs a target makes it required with `mut_group`.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Target (one of; children and new threads are included)")]
pub struct TargetArgs {
    #[command(flatten)]
    which: Which,
    /// Wait for the target if it does not run yet, and for its next process when all have exited (a
    /// run that neither COMMAND nor --duration ends is over then)
    #[arg(long, requires = "target", conflicts_with = "pid")]
    pub wait: bool,
}

impl TargetArgs {
    /// What was named; `None` when nothing was.
    #[must_use]
    pub fn spec(&self) -> Option<TargetSpec> {
        let Which { pid, comm, exe, cgroup, port } = &self.which;
        if !pid.is_empty() {
            return Some(TargetSpec::Pids(pid.iter().copied().map(Tgid).collect()));
        }
        let comm = comm.clone().map(TargetSpec::Comm);
        let exe = exe.clone().map(TargetSpec::Exe);
        let cgroup = cgroup.clone().map(TargetSpec::Cgroup);
        comm.or(exe).or(cgroup).or(port.map(TargetSpec::Port))
    }
}

/// The target as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetSpec {
    /// These processes.
    Pids(BTreeSet<Tgid>),
    /// Processes with this command name.
    Comm(String),
    /// Processes that run this program.
    Exe(PathBuf),
    /// Processes in this cgroup or below.
    Cgroup(PathBuf),
    /// Processes that listen on this port.
    Port(u16),
}

impl fmt::Display for TargetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pids(pids) => {
                let options: Vec<String> =
                    pids.iter().map(|pid| format!("--pid {}", pid.0)).collect();
                f.write_str(&options.join(" "))
            }
            Self::Comm(name) => write!(f, "--comm {name}"),
            Self::Exe(path) => write!(f, "--exe {}", path.display()),
            Self::Cgroup(path) => write!(f, "--cgroup {}", path.display()),
            Self::Port(port) => write!(f, "--port {port}"),
        }
    }
}

impl TargetSpec {
    /// The port that it was named by.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Port(port) => Some(*port),
            _ => None,
        }
    }

    /// The processes that match now, oldest first; their children are not among them unless they
    /// match too. observer itself and kernel threads never match.
    ///
    /// # Errors
    /// When nothing matches, with the reason.
    pub fn resolve(&self) -> Result<Vec<Process>, TargetError> {
        self.resolve_with(&mut Listeners::default())
    }

    /// The same, for one that resolves it again and again: what it learned is in `listeners`.
    pub(super) fn resolve_with(
        &self,
        listeners: &mut Listeners,
    ) -> Result<Vec<Process>, TargetError> {
        let mut found = match self {
            Self::Pids(pids) => pids.iter().map(|&pid| by_id(pid)).collect::<Result<_, _>>()?,
            Self::Comm(name) => by_comm(name)?,
            Self::Exe(path) => by_program(path)?,
            Self::Cgroup(path) => by_cgroup(path)?,
            Self::Port(port) => by_port(*port, listeners)?,
        };
        found.sort_by_key(|process| (process.start_ticks, process.tgid));
        Ok(found)
    }

    /// What the kernel side can recognise a new process of the target by; `None` where only a look
    /// at `/proc` shows it.
    #[must_use]
    pub fn joining(&self) -> Option<Joining> {
        match self {
            Self::Comm(name) => {
                let mut comm = [0; observer_ebpf::wire::COMM_LEN];
                let bytes = &name.as_bytes()[..name.len().min(COMM_BYTES)];
                comm[..bytes.len()].copy_from_slice(bytes);
                Some(Joining::Comm(comm))
            }
            Self::Exe(path) => {
                let file = fs::metadata(path).ok()?;
                // `MKDEV` of include/linux/kdev_t.h.
                let device = u64::from(rustix::fs::major(file.dev())) << 20
                    | u64::from(rustix::fs::minor(file.dev()));
                Some(Joining::Executable { inode: file.ino(), device })
            }
            Self::Pids(_) | Self::Cgroup(_) | Self::Port(_) => None,
        }
    }
}

/// Whether a process can be a target without being named by its id.
fn is_candidate(process: &Process) -> bool {
    !process.kernel_thread && process.tgid.0 != std::process::id()
}

fn by_id(tgid: Tgid) -> Result<Process, TargetError> {
    // `/proc/TID` exists for every thread, though it is not listed.
    let status = process::status(tgid).ok_or(TargetError::NoSuchProcess(tgid))?;
    if status.tgid != tgid.0 {
        return Err(TargetError::IsThread { tid: tgid, process: Tgid(status.tgid) });
    }
    if tgid.0 == std::process::id() {
        return Err(TargetError::Itself(tgid));
    }
    match Process::read(tgid) {
        None => Err(TargetError::NoSuchProcess(tgid)),
        Some(process) if process.kernel_thread => {
            Err(TargetError::KernelThread(tgid, process.comm))
        }
        Some(process) => Ok(process),
    }
}

/// The name as it is read back: cut by the kernel to 15 bytes, perhaps inside a character.
fn kernel_comm(name: &str) -> String {
    let bytes = &name.as_bytes()[..name.len().min(COMM_BYTES)];
    String::from_utf8_lossy(bytes).into_owned()
}

fn by_comm(name: &str) -> Result<Vec<Process>, TargetError> {
    let matcher = Matcher::Comm(kernel_comm(name));
    let found: Vec<Process> =
        process::all().into_iter().filter(|process| matcher.matches(process)).collect();
    if found.is_empty() { Err(TargetError::NoCommand(name.to_owned())) } else { Ok(found) }
}

fn by_program(path: &Path) -> Result<Vec<Process>, TargetError> {
    let program = Program::new(path);
    let exists = program.file.is_some();
    let matcher = Matcher::Program(program);
    let found: Vec<Process> =
        process::all().into_iter().filter(|process| matcher.matches(process)).collect();
    match (found.is_empty(), exists) {
        (false, _) => Ok(found),
        (true, true) => Err(TargetError::NotRunning(path.to_path_buf())),
        (true, false) => Err(TargetError::NoProgram(path.to_path_buf())),
    }
}

fn by_cgroup(path: &Path) -> Result<Vec<Process>, TargetError> {
    let directory =
        Cgroups::read().find(path).ok_or_else(|| TargetError::NoCgroup(path.to_path_buf()))?;
    let found = candidates(cgroups::processes_below(&directory));
    if found.is_empty() { Err(TargetError::EmptyCgroup(path.to_path_buf())) } else { Ok(found) }
}

fn by_port(port: u16, listeners: &mut Listeners) -> Result<Vec<Process>, TargetError> {
    let found = candidates(listeners.find(port));
    match found.as_slice() {
        [] => Err(TargetError::NoListener(port)),
        [only] if only.tgid == Tgid(1) && only.comm == "systemd" => {
            Err(TargetError::SocketActivated(port))
        }
        _ => Ok(found),
    }
}

fn candidates(tgids: impl IntoIterator<Item = Tgid>) -> Vec<Process> {
    tgids.into_iter().filter_map(Process::read).filter(is_candidate).collect()
}

/// A program file, identified by device and inode, and by its name.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Device and inode, where the file exists in this mount namespace.
    file: Option<(u64, u64)>,
    /// A file that an upgrade replaced keeps its name; a file in a container has its name only
    /// there.
    paths: Vec<PathBuf>,
}

impl Program {
    fn new(path: &Path) -> Self {
        let file = fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let mut paths = vec![path.to_path_buf()];
        paths.extend(std::path::absolute(path));
        paths.extend(fs::canonicalize(path));
        Self { file, paths }
    }

    fn is(&self, found: &process::Executable) -> bool {
        self.file == Some(found.file) || self.paths.contains(&found.path)
    }
}

/// What can be decided by looking at one process.
#[derive(Clone, Debug)]
pub(super) enum Matcher {
    Comm(String),
    Program(Program),
}

impl Matcher {
    /// `None` for the specs that are not decided process by process.
    pub(super) fn new(spec: &TargetSpec) -> Option<Self> {
        match spec {
            TargetSpec::Comm(name) => Some(Self::Comm(kernel_comm(name))),
            TargetSpec::Exe(path) => Some(Self::Program(Program::new(path))),
            TargetSpec::Pids(_) | TargetSpec::Cgroup(_) | TargetSpec::Port(_) => None,
        }
    }

    pub(super) fn matches(&self, process: &Process) -> bool {
        is_candidate(process)
            && match self {
                Self::Comm(name) => process.comm == *name,
                Self::Program(program) => process::executable(process.tgid).is_some_and(|found| {
                    program.is(&found)
                        || found.is_shared_object()
                            && process::mapped_executables(process.tgid)
                                .iter()
                                .any(|mapped| program.is(mapped))
                }),
            }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Optional {
        #[command(flatten)]
        target: TargetArgs,
    }

    #[derive(Parser)]
    #[command(mut_group("target", |group| group.required(true)))]
    struct Required {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn parse(args: &[&str]) -> Result<Option<TargetSpec>, clap::error::ErrorKind> {
        let args = ["x"].iter().chain(args);
        Optional::try_parse_from(args).map(|parsed| parsed.target.spec()).map_err(|e| e.kind())
    }

    #[test]
    fn exactly_one_way_to_name_the_target() {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument, ValueValidation};
        assert_eq!(parse(&[]), Ok(None));
        let pids = TargetSpec::Pids([Tgid(3), Tgid(4)].into());
        assert_eq!(pids.to_string(), "--pid 3 --pid 4");
        assert_eq!(parse(&["--pid", "4", "--pid", "3"]), Ok(Some(pids)));
        assert_eq!(parse(&["--port", "80", "--wait"]), Ok(Some(TargetSpec::Port(80))));
        assert_eq!(parse(&["--port", "80", "--comm", "x"]), Err(ArgumentConflict));
        assert_eq!(parse(&["--wait"]), Err(MissingRequiredArgument));
        assert_eq!(parse(&["--pid", "4", "--wait"]), Err(ArgumentConflict));
        for bad in [["--pid", "0"], ["--pid", "x"], ["--port", "0"], ["--port", "65536"]] {
            assert_eq!(parse(&bad), Err(ValueValidation), "{bad:?}");
        }
        assert!(parse(&["--comm", ""]).is_err());
        let missing = Required::try_parse_from(["x"]).err().unwrap();
        assert_eq!(missing.kind(), MissingRequiredArgument);
        assert!(Required::try_parse_from(["x", "--exe", "/a"]).unwrap().target.spec().is_some());
    }

    #[test]
    fn each_kind_of_absence_has_its_line() {
        let resolve = |spec: TargetSpec| spec.resolve().unwrap_err().to_string();
        let absent = Tgid(crate::host::system::pid_max());
        assert_eq!(
            resolve(TargetSpec::Pids([absent].into())),
            format!("no process with id {}; is it still running?", absent.0)
        );
        let me = Tgid(std::process::id());
        assert_eq!(TargetSpec::Pids([me].into()).resolve(), Err(TargetError::Itself(me)));
        assert!(resolve(TargetSpec::Comm("no such name".into())).contains("\"no such name\""));
        assert!(resolve(TargetSpec::Exe("/no/such/file".into())).starts_with("no program"));
        assert!(resolve(TargetSpec::Exe("/etc/passwd".into())).starts_with("no process runs"));
        assert!(resolve(TargetSpec::Cgroup("/no/such/cgroup".into())).contains("no cgroup"));
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        assert_eq!(TargetSpec::Port(port).resolve(), Err(TargetError::NoListener(port)));
    }

    #[test]
    fn a_thread_is_no_process() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let (tid_send, tid_receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tid_send.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = receive.recv();
        });
        let tid = Tgid(u32::try_from(tid_receive.recv().unwrap()).unwrap());
        let process = Tgid(std::process::id());
        assert_eq!(by_id(tid), Err(TargetError::IsThread { tid, process }));
        drop(send);
        thread.join().unwrap();
    }

    #[test]
    fn the_kernel_compares_the_name_that_it_keeps() {
        let joining = TargetSpec::Comm("0123456789abcdefgh".into()).joining();
        assert_eq!(joining, Some(Joining::Comm(*b"0123456789abcde\0")));
        assert_eq!(TargetSpec::Port(80).joining(), None);
        assert_eq!(TargetSpec::Exe("/no/such/file".into()).joining(), None);
        let file = fs::metadata("/proc/self/exe").unwrap();
        let Some(Joining::Executable { inode, device }) =
            TargetSpec::Exe("/proc/self/exe".into()).joining()
        else {
            panic!("the file is there");
        };
        assert_eq!(inode, file.ino());
        let device_of = |path: &str| {
            // `MAJOR:MINOR` of the file system, as the kernel has it.
            fs::read_to_string(path).unwrap().lines().any(|line| {
                let number = line.split(' ').nth(2).unwrap();
                let (major, minor) = number.split_once(':').unwrap();
                (major.parse::<u64>().unwrap() << 20 | minor.parse::<u64>().unwrap()) == device
            })
        };
        assert!(device_of("/proc/self/mountinfo"), "{device:#x}");
    }

    #[test]
    fn long_names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(kernel_comm("nginx"), "nginx");
        assert_eq!(kernel_comm("0123456789abcdefgh"), "0123456789abcde");
        assert_eq!(kernel_comm("0123456789abcdéf"), "0123456789abcd\u{fffd}");
    }
}
