//! The observers that are compared: how each is started, when it is attached, and whether it saw
//! anything.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::Operation;

/// The one this project makes; all others are peers.
pub(crate) const OURS: &str = "observer";

/// One observer, on the operations that it answers for.
pub(crate) struct Session {
    pub(crate) observer: &'static str,
    pub(crate) operations: Vec<Operation>,
    command: Vec<String>,
    /// It is attached, or about to be, once its output has this.
    ready: &'static str,
    /// It saw something if its output has this in the end.
    seen: &'static str,
}

impl Session {
    pub(crate) fn title(&self) -> String {
        let names: Vec<_> = self.operations.iter().map(|one| one.name()).collect();
        format!("{} ({})", self.observer, names.join(", "))
    }
}

/// The session of a peer for one operation, if it answers for that one.
type PeerSession = fn(Operation) -> Option<Session>;

/// A process that does nothing, for observer to watch: not this one, since the workloads are its
/// children and would be watched with it.
pub(crate) struct Bystander(Child);

impl Bystander {
    pub(crate) fn start() -> Result<Self, String> {
        let child = Command::new("sleep").arg("infinity").stdin(Stdio::null()).spawn();
        child.map(Self).map_err(|error| format!("could not start sleep: {error}"))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All sessions of a round. Peers answer the question of one row at a time: the least that each can
/// be asked, while observer answers for all rows at once.
pub(crate) fn sessions(
    observer: &Path,
    bystander: &Bystander,
    operations: &[Operation],
    peers: Option<&[String]>,
) -> Result<Vec<Session>, String> {
    let mut sessions = vec![ours(observer, bystander, operations)];
    let known: [(&str, PeerSession); 3] =
        [("runqlat", runqlat), ("bpftrace", bpftrace), ("perf", perf)];
    for name in peers.into_iter().flatten() {
        if !known.iter().any(|(one, _)| one == name) {
            return Err(format!("unknown peer {name}; there are runqlat, bpftrace and perf"));
        }
    }
    for (name, session) in known {
        match peers {
            Some(wanted) if !wanted.iter().any(|one| one == name) => continue,
            _ if in_path(name) => {}
            _ => {
                eprintln!("{name} is not installed: its column is left out");
                continue;
            }
        }
        sessions.extend(operations.iter().filter_map(|operation| session(*operation)));
    }
    Ok(sessions)
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The daemon with every probe on: this is what the rest of the host pays.
fn ours(observer: &Path, bystander: &Bystander, operations: &[Operation]) -> Session {
    let program = observer.to_string_lossy();
    let target = bystander.0.id().to_string();
    Session {
        observer: OURS,
        operations: operations.to_vec(),
        command: words(&[&program, "daemon", "--listen", "127.0.0.1:0", "--pid", &target]),
        ready: "http://",
        seen: "http://",
    }
}

fn runqlat(operation: Operation) -> Option<Session> {
    (operation == Operation::Switch).then(|| Session {
        observer: "runqlat",
        operations: vec![operation],
        command: words(&["stdbuf", "-oL", "runqlat"]),
        ready: "Tracing",
        seen: " -> ",
    })
}

/// Latency histograms over all tasks, as short as a person would write them.
fn bpftrace(operation: Operation) -> Option<Session> {
    let script = match operation {
        Operation::Switch => {
            "tracepoint:sched:sched_wakeup, tracepoint:sched:sched_wakeup_new { @start[args->pid] = nsecs; } \
             tracepoint:sched:sched_switch { \
               if (args->prev_state == 0) { @start[args->prev_pid] = nsecs; } \
               $start = @start[args->next_pid]; \
               if ($start) { @ns = hist(nsecs - $start); delete(@start[args->next_pid]); } } \
             END { clear(@start); }"
        }
        Operation::Fault => {
            "tracepoint:exceptions:page_fault_user, tracepoint:exceptions:page_fault_kernel { @start[tid] = nsecs; } \
             software:minor-faults:1, software:major-faults:1 /@start[tid]/ { \
               @ns = hist(nsecs - @start[tid]); delete(@start[tid]); } \
             END { clear(@start); }"
        }
        Operation::Mmap => {
            "tracepoint:syscalls:sys_enter_mmap, tracepoint:syscalls:sys_enter_munmap { @start[tid] = nsecs; } \
             tracepoint:syscalls:sys_exit_mmap, tracepoint:syscalls:sys_exit_munmap /@start[tid]/ { \
               @ns = hist(nsecs - @start[tid]); delete(@start[tid]); } \
             END { clear(@start); }"
        }
        Operation::Madvise => {
            "tracepoint:syscalls:sys_enter_madvise { @start[tid] = nsecs; } \
             tracepoint:syscalls:sys_exit_madvise /@start[tid]/ { \
               @ns = hist(nsecs - @start[tid]); delete(@start[tid]); } \
             END { clear(@start); }"
        }
        // Creation by result, and lifetime by descriptor.
        Operation::Socket => {
            "tracepoint:syscalls:sys_exit_socket { \
               if (args->ret >= 0) { @born[pid, args->ret] = nsecs; } else { @failed[args->ret] = count(); } } \
             tracepoint:syscalls:sys_enter_close /@born[pid, args->fd]/ { \
               @ns = hist(nsecs - @born[pid, args->fd]); delete(@born[pid, args->fd]); } \
             END { clear(@born); }"
        }
    };
    Some(Session {
        observer: "bpftrace",
        operations: vec![operation],
        command: words(&["bpftrace", "-B", "line", "-e", script]),
        ready: "Attaching",
        seen: "|@",
    })
}

fn perf(operation: Operation) -> Option<Session> {
    let events = match operation {
        Operation::Switch => "sched:sched_switch,sched:sched_wakeup",
        Operation::Fault => "exceptions:page_fault_user,minor-faults",
        Operation::Mmap => {
            "syscalls:sys_enter_mmap,syscalls:sys_exit_mmap,syscalls:sys_enter_munmap,syscalls:sys_exit_munmap"
        }
        Operation::Madvise => "syscalls:sys_enter_madvise,syscalls:sys_exit_madvise",
        Operation::Socket => "syscalls:sys_exit_socket,syscalls:sys_enter_close",
    };
    Some(Session {
        observer: "perf",
        operations: vec![operation],
        // A megabyte a CPU, so that its reader is woken as seldom as can be asked for.
        command: words(&[
            "perf",
            "record",
            "-a",
            "-c",
            "1",
            "-m",
            "1M",
            "-o",
            "perf.data",
            "-e",
            events,
        ]),
        ready: "",
        seen: "wrote",
    })
}

/// A started observer; killed when dropped.
pub(crate) struct Running {
    child: Child,
    directory: PathBuf,
}

/// How long attaching and stopping may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Running {
    /// Starts it in a directory of its own, and waits for its word that it is attached.
    pub(crate) fn start(session: &Session) -> Result<Self, String> {
        let directory = env::temp_dir().join(format!("observer-bench-{}", std::process::id()));
        let failed = |error| format!("{}: {error}", directory.display());
        // Its name may be guessed: one that another user put there is refused, not used.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).map_err(failed)?;
        let output = File::create_new(directory.join("output")).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let child = Command::new(&session.command[0])
            .args(&session.command[1..])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("could not start {}: {error}", session.command[0]))?;
        let mut running = Self { child, directory };
        let started = Instant::now();
        while !running.output().contains(session.ready) {
            if let Ok(Some(status)) = running.child.try_wait() {
                return Err(format!("ended with {status}: {}", running.last_line()));
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("not attached after {} s", PATIENCE.as_secs()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }

    /// Stops it as ^C does, and looks whether it saw anything.
    pub(crate) fn stop(mut self, session: &Session) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("ended with {status} while measured: {}", self.last_line()));
        }
        let id = libc::pid_t::try_from(self.child.id()).map_err(|error| error.to_string())?;
        // SAFETY: kill takes plain numbers; the child was not waited for, so the id is its own.
        unsafe { libc::kill(id, libc::SIGINT) };
        let started = Instant::now();
        while self.child.try_wait().map_err(|error| error.to_string())?.is_none() {
            if started.elapsed() > PATIENCE {
                return Err(format!("did not stop within {} s of SIGINT", PATIENCE.as_secs()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        if self.output().contains(session.seen) {
            Ok(())
        } else {
            Err(format!("it saw nothing: {}", self.last_line()))
        }
    }

    fn output(&self) -> String {
        fs::read(self.directory.join("output"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn last_line(&self) -> String {
        self.output()
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("no output")
            .to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a child that has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
