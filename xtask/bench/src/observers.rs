//! The observers that are compared: how each is started, when it is attached, and whether it saw
//! anything.

use std::{
    env, fs,
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::workload::{OPERATIONS, Operation};

/// One observer, with the operations that it measures.
pub(crate) struct Session {
    pub(crate) observer: String,
    pub(crate) operations: Vec<Operation>,
    command: Vec<String>,
    /// It is attached, or about to be, once its output has this.
    ready: &'static str,
    /// It saw something if its output has this in the end.
    seen: &'static str,
    /// Time between its message and the first measurement.
    settle: Duration,
}

impl Session {
    pub(crate) fn title(&self) -> String {
        let names: Vec<_> = self.operations.iter().map(|one| one.name()).collect();
        format!("{} ({})", self.observer, names.join(", "))
    }
}

/// Of observer itself: it is attached when it says so.
const OWN_SETTLE: Duration = Duration::from_millis(400);
/// Of the peers: bpftrace prints that it is about to attach, not that it has attached.
const PEER_SETTLE: Duration = Duration::from_millis(1800);

/// The session of a peer for one operation, if it measures that operation.
type PeerSession = fn(Operation) -> Option<Session>;

/// The name of the threads of the workload.
const WORKLOAD: &str = "bench-work";

/// The peers there are.
pub(crate) const PEERS: [&str; 3] = ["runqlat", "bpftrace", "perf"];

/// A process that does nothing, for observer to watch: not this one, since the workloads are its
/// children and would be watched with it.
pub(crate) struct Bystander(Child);

impl Bystander {
    pub(crate) fn start() -> Result<Self, String> {
        let child = Command::new("sleep").arg("infinity").stdin(Stdio::null()).spawn();
        child.map(Self).map_err(|error| format!("could not start sleep: {error}"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Names of the peers that are installed and wanted (all without a wish).
pub(crate) fn peers(wanted: Option<&[String]>) -> Result<Vec<&'static str>, String> {
    if let Some(name) = wanted.into_iter().flatten().find(|name| !PEERS.contains(&name.as_str())) {
        return Err(format!("unknown peer {name}; there are {}", PEERS.join(", ")));
    }
    let mut peers = Vec::new();
    for name in PEERS {
        match wanted {
            Some(wanted) if !wanted.iter().any(|one| one == name) => {}
            _ if in_path(name) => peers.push(name),
            _ => eprintln!("{name} is not installed: its column is left out"),
        }
    }
    Ok(peers)
}

/// The sessions of the peers. Each measures what one row needs, which is the least that it can do,
/// while observer measures for all rows at once.
pub(crate) fn peer_sessions(peers: &[&str], operations: &[Operation]) -> Vec<Session> {
    let known: [(&str, PeerSession); 3] =
        [("runqlat", runqlat), ("bpftrace", bpftrace), ("perf", perf)];
    known
        .into_iter()
        .filter(|(name, _)| peers.contains(name))
        .flat_map(|(_, session)| operations.iter().filter_map(move |one| session(*one)))
        .collect()
}

pub(crate) fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The daemon, with these arguments more.
pub(crate) fn daemon(
    observer: &Path,
    name: &str,
    arguments: &[&str],
    operations: &[Operation],
) -> Session {
    let program = observer.to_string_lossy();
    let mut command = words(&[&program, "daemon", "--listen", "127.0.0.1:0"]);
    command.extend(words(arguments));
    Session {
        observer: name.to_owned(),
        operations: operations.to_vec(),
        command,
        ready: "http://",
        seen: "http://",
        settle: OWN_SETTLE,
    }
}

/// `observer run` on a process, which also sends records and writes a trace.
pub(crate) fn run(observer: &Path, name: &str, target: u32, arguments: &[&str]) -> Session {
    let program = observer.to_string_lossy();
    let target = target.to_string();
    let mut command = words(&[&program, "-v", "run", "--pid", &target, "--out", "run"]);
    command.extend(words(arguments));
    Session {
        observer: name.to_owned(),
        operations: Vec::new(),
        command,
        ready: "observer: target",
        seen: "Kernel events of the target",
        settle: OWN_SETTLE,
    }
}

/// `observer run` with its own load generator, which sends so many requests a second.
pub(crate) fn run_with_load(observer: &Path, target: u32, url: &str, rate_hz: u32) -> Session {
    let (program, rate) = (observer.to_string_lossy(), rate_hz.to_string());
    let mut session = run(observer, &format!("run, {rate_hz} requests a second"), target, &[]);
    session.command.extend(words(&["--samples", "observer", "--", &program, "load", url]));
    session.command.extend(words(&["--rate", &rate, "--duration", "600s"]));
    session
}

/// `observer run` with the stacks of the workload: of every absence, since none of it is long.
pub(crate) fn stacks(observer: &Path, operations: &[Operation]) -> Option<Session> {
    let program = observer.to_string_lossy();
    let command =
        ["-v", "run", "--comm", WORKLOAD, "--probes", "stack", "--budget", "none", "--out", "run"];
    operations.contains(&Operation::Switch).then(|| Session {
        observer: "stack, of the workload".to_owned(),
        operations: vec![Operation::Switch],
        command: [&words(&[&program]), &words(&command)[..]].concat(),
        ready: "observer: target",
        seen: "Kernel events of the target",
        settle: OWN_SETTLE,
    })
}

/// The same question, as a user of bpftrace would ask it.
pub(crate) fn bpftrace_stacks(operations: &[Operation]) -> Option<Session> {
    let script = format!(
        "tracepoint:sched:sched_switch /comm == \"{WORKLOAD}\"/ {{ \
           @start[args->prev_pid] = nsecs; @k[args->prev_pid] = kstack; @u[args->prev_pid] = ustack; }} \
         tracepoint:sched:sched_switch /@start[args->next_pid]/ {{ \
           @ns[@k[args->next_pid], @u[args->next_pid]] = sum(nsecs - @start[args->next_pid]); \
           delete(@start[args->next_pid]); }} \
         END {{ clear(@start); clear(@k); clear(@u); }}"
    );
    operations.contains(&Operation::Switch).then(|| Session {
        observer: "bpftrace, stacks of the workload".to_owned(),
        operations: vec![Operation::Switch],
        settle: PEER_SETTLE,
        command: words(&["bpftrace", "-B", "line", "-e", &script]),
        ready: "Attaching",
        seen: "@ns[",
    })
}

/// An empty program on a raw tracepoint: what the hook costs before anything is done there.
pub(crate) fn empty(program: &Path, hook: &str, operations: &[Operation]) -> Session {
    let program = program.to_string_lossy();
    Session {
        observer: format!("empty {hook}"),
        operations: operations.to_vec(),
        command: words(&[&program, "--empty", hook]),
        ready: "attached",
        seen: "runs",
        settle: OWN_SETTLE,
    }
}

/// The names of observer's probes, as its doctor lists them.
pub(crate) fn probe_names(observer: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(observer)
        .args(["doctor", "--json"])
        .output()
        .map_err(|error| format!("{}: {error}", observer.display()))?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{} doctor --json: {error}", observer.display()))?;
    let probes = report["probes"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(probes.iter().filter_map(|probe| Some(probe["probe"].as_str()?.to_owned())).collect())
}

fn runqlat(operation: Operation) -> Option<Session> {
    (operation == Operation::Switch).then(|| Session {
        observer: "runqlat".to_owned(),
        operations: vec![operation],
        settle: PEER_SETTLE,
        command: words(&["stdbuf", "-oL", "runqlat"]),
        ready: "Tracing",
        seen: " -> ",
    })
}

fn bpftrace(operation: Operation) -> Option<Session> {
    let script = bpftrace_script(operation)?;
    Some(Session {
        observer: "bpftrace".to_owned(),
        operations: vec![operation],
        settle: PEER_SETTLE,
        command: words(&["bpftrace", "-B", "line", "-e", script]),
        ready: "Attaching",
        seen: "|@",
    })
}

/// Latency histograms over all tasks, as short as a user would write them.
const fn bpftrace_script(operation: Operation) -> Option<&'static str> {
    Some(match operation {
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
        // Creation by result, and lifetime by descriptor. No observer measures this.
        Operation::Exchange | Operation::Getppid => return None,
        Operation::Socket => {
            "tracepoint:syscalls:sys_exit_socket { \
               if (args->ret >= 0) { @born[pid, args->ret] = nsecs; } else { @failed[args->ret] = count(); } } \
             tracepoint:syscalls:sys_enter_close /@born[pid, args->fd]/ { \
               @ns = hist(nsecs - @born[pid, args->fd]); delete(@born[pid, args->fd]); } \
             END { clear(@born); }"
        }
    })
}

/// All of its measurements at once, as observer does.
pub(crate) fn bpftrace_all() -> Session {
    let (mut scripts, mut ends) = (String::new(), String::new());
    for (index, script) in OPERATIONS.into_iter().filter_map(bpftrace_script).enumerate() {
        // Maps are known to a whole program, and it has one end.
        let script =
            ["start", "ns", "born", "failed"].iter().fold(script.to_owned(), |text, map| {
                text.replace(&format!("@{map}"), &format!("@{map}{index}"))
            });
        let (script, end) = script.split_once("END {").unwrap_or((&script, ""));
        scripts.push_str(script);
        ends.push_str(end.trim_end_matches([' ', '}']));
    }
    let script = format!("{scripts} END {{{ends} }}");
    Session {
        observer: "bpftrace, the same questions".to_owned(),
        operations: Vec::new(),
        command: words(&["bpftrace", "-B", "line", "-e", &script]),
        ready: "Attaching",
        seen: "|@",
        settle: PEER_SETTLE,
    }
}

fn perf(operation: Operation) -> Option<Session> {
    let events = match operation {
        Operation::Switch => "sched:sched_switch,sched:sched_wakeup",
        Operation::Fault => "exceptions:page_fault_user,minor-faults",
        Operation::Mmap => {
            "syscalls:sys_enter_mmap,syscalls:sys_exit_mmap,syscalls:sys_enter_munmap,syscalls:sys_exit_munmap"
        }
        Operation::Madvise => "syscalls:sys_enter_madvise,syscalls:sys_exit_madvise",
        Operation::Exchange | Operation::Getppid => return None,
        Operation::Socket => "syscalls:sys_exit_socket,syscalls:sys_enter_close",
    };
    Some(Session {
        observer: "perf".to_owned(),
        operations: vec![operation],
        settle: PEER_SETTLE,
        // A megabyte a CPU, so that its reader is woken as seldom as possible.
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
    /// With `cpus`, on these processors; otherwise on those that this process runs on.
    pub(crate) fn start(session: &Session, cpus: Option<&str>) -> Result<Self, String> {
        // Several may run at once.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let (id, number) = (std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let directory = env::temp_dir().join(format!("observer-bench-{id}-{number}"));
        let failed = |error| format!("{}: {error}", directory.display());
        // Its name may be guessed: one that another user put there is refused, not used.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).map_err(failed)?;
        let output = File::create_new(directory.join("output")).map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let mut words = vec![];
        if let Some(cpus) = cpus {
            words.extend(["taskset", "--cpu-list", cpus]);
        }
        words.extend(session.command.iter().map(String::as_str));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&directory);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        // SAFETY: signal is async-signal-safe, and no handler is installed.
        unsafe {
            command.pre_exec(|| {
                // A shell starts what runs in the background with SIGINT ignored, and that is
                // inherited; SIGINT is how an observer is stopped.
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let child = command
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
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(session.settle);
        Ok(running)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Stops it as ^C does, and looks whether it saw anything.
    pub(crate) fn stop(mut self, session: &Session) -> Result<(), String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Err(format!("ended with {status} while measured: {}", self.last_line()));
        }
        kill_process(Pid::from_child(&self.child), Signal::INT)
            .map_err(|error| format!("cannot stop it: {error}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_questions_make_one_script_with_one_end() {
        let script = bpftrace_all().command.pop().unwrap();
        assert_eq!(script.matches("END {").count(), 1, "{script}");
        assert_eq!(script.matches('{').count(), script.matches('}').count(), "{script}");
        for (index, _) in OPERATIONS.iter().enumerate() {
            assert!(script.contains(&format!("@ns{index} = hist(")), "{script}");
        }
    }
}
