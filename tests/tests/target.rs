//! Finding and following targets where it takes root: cgroups, network and pid namespaces, other
//! users' sockets.

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::host::cgroups::{CgroupNames, Cgroups};
use observer::host::{ip_sockets_of, network, process};
use observer::model::{EndReason, RunInfo, Summary, Tgid};
use observer::target::{Membership, TargetSpec};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::daemon::Daemon;
use observer_tests::http::ReservedPort;
use observer_tests::process::{Placement, Programs, Running, Service};
use observer_tests::trial::{self, directory, number, programs, scaled_text, unique};
use observer_tests::watch::{Watch, Work, lost_by_target, read_run};
use observer_tests::{passing, privileged};
use rustix::process::Signal;

fn sleeper(placement: Placement<'_>) -> Running {
    Running::start(Command::new("sleep").arg("600"), placement).expect("sleep starts")
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    // The larger the host (or the slower: a guest), the longer the pause between two scans of all
    // processes.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cgroup_is_followed_with_what_is_moved_into_it() {
    let Some(_guard) = privileged::ready("followed cgroup") else { return };
    let cgroup = MemoryCgroup::create(&unique("cgroup")).expect("cgroup");
    let spec = TargetSpec::Cgroup(cgroup.directory().to_path_buf());
    assert!(Membership::new(&spec).is_err(), "it is still empty");

    let inside = sleeper(Placement { cgroup: Some(&cgroup), ..Placement::default() });
    let outside = sleeper(Placement::default());
    let mut target = Membership::new(&spec).expect("target");
    assert_eq!(target.tgids(), [Tgid(inside.id())].into());

    std::fs::write(cgroup.directory().join("cgroup.procs"), outside.id().to_string())
        .expect("moved");
    eventually("the moved process joins", || {
        target.poll();
        target.contains(Tgid(outside.id()))
    });

    // By name instead of by directory, as users copy it from /proc/PID/cgroup.
    let cgroups = Cgroups::read();
    let name = cgroups.memory_cgroup_of(Tgid(inside.id())).expect("cgroup of the process");
    let by_name = Membership::new(&TargetSpec::Cgroup(PathBuf::from(&name))).expect("by name");
    assert_eq!(by_name.tgids(), target.tgids());

    drop((inside, outside));
    eventually("the target is gone", || {
        target.poll();
        target.all_gone()
    });
}

#[test]
fn a_cgroup_id_is_named_while_it_exists_and_afterwards() {
    let Some(_guard) = privileged::ready("cgroup names") else { return };
    let cgroups = Cgroups::read();
    let hierarchy = cgroups.memory().expect("memory hierarchy").clone();
    let cgroup = MemoryCgroup::create(&unique("names")).expect("cgroup");
    let path = format!("/{}", unique("names"));
    let id = hierarchy.id_of(&path).expect("id");
    let mut names = CgroupNames::new(hierarchy);
    assert_eq!(names.name(id), Some(path.as_str()));
    drop(cgroup);
    assert_eq!(names.name(id), Some(path.as_str()));
    assert_eq!(names.name(u64::MAX), None);
}

#[test]
fn a_listener_in_another_network_namespace_is_found() {
    let Some(_guard) = privileged::ready("network namespace") else { return };
    let service = programs().service;
    let script = format!("ip link set lo up && exec {}", service.display());
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running::start(&mut command, Placement::default()).expect("unshare starts");
    let mut line = String::new();
    BufReader::new(running.stdout().expect("piped")).read_line(&mut line).expect("first line");
    let port: u16 =
        line.trim().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");

    let mut target = Membership::new(&TargetSpec::Port(port)).expect("listener");
    assert!(target.contains(Tgid(running.id())), "{}", target.describe());
    drop(running);
    eventually("the listener is gone", || {
        target.poll();
        target.all_gone()
    });
}

#[test]
fn a_new_listener_on_the_port_joins() {
    let Some(_guard) = privileged::ready("new listener") else { return };
    let spec_of = |port| TargetSpec::Port(port);
    let first = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let mut target = Membership::new(&spec_of(first.port)).expect("listener");
    assert_eq!(target.tgids(), [Tgid(first.process.id())].into());
    assert_eq!(network::Listeners::default().find(first.port), target.tgids());
    let port = first.port;
    drop(first);
    eventually("the first is gone", || {
        target.poll();
        target.all_gone()
    });
    // This process takes the port over, and hands the socket to a child.
    let mut listener = None;
    eventually("the port is free", || {
        listener = std::net::TcpListener::bind(("127.0.0.1", port)).ok();
        listener.is_some()
    });
    let listener = listener.expect("bound");
    let mut command = Command::new("sleep");
    command.arg("600").stdin(std::os::fd::OwnedFd::from(listener));
    let heir = Running::start(&mut command, Placement::default()).expect("sleep starts");
    drop(command);
    eventually("the heir joins", || {
        target.poll();
        target.contains(Tgid(heir.id()))
    });
    assert!(!target.contains(Tgid(std::process::id())), "observer is never its own target");
}

#[test]
fn a_process_that_begins_to_listen_joins_though_nothing_is_born() {
    let Some(_guard) = privileged::ready("old process, new listener") else { return };
    let first = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let port = first.port.to_string();
    let mut second = trial::start(&["listen", "--port", &port], Placement::default());
    let mut target = Membership::new(&TargetSpec::Port(first.port)).expect("listener");
    assert_eq!(target.tgids(), [Tgid(first.process.id())].into());
    drop(first);
    eventually("the first is gone", || {
        target.poll();
        target.all_gone()
    });
    target.rescan();
    assert_eq!(second.go().expect("it listens")["listeners"], 1);
    eventually("the second joins", || {
        target.poll();
        target.contains(Tgid(second.id()))
    });
    second.end().expect("it ends");
}

#[test]
fn a_process_in_a_pid_namespace_is_known_by_its_outer_id() {
    let Some(_guard) = privileged::ready("pid namespace") else { return };
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "sleep", "600"]);
    let running = Running::start(&mut command, Placement::default()).expect("unshare starts");
    let mut target =
        Membership::new(&TargetSpec::Pids([Tgid(running.id())].into())).expect("target");
    eventually("the inner process joins", || {
        target.poll();
        target.tgids().len() == 2
    });
    let inner = target.tgids().into_iter().find(|tgid| tgid.0 != running.id()).expect("inner");
    let ids = process::status(inner).expect("status").namespace_pids;
    assert_eq!(ids.last(), Some(&1), "it is the first of its namespace: {ids:?}");
    assert!(ids.contains(&inner.0));
}

#[test]
fn sockets_of_another_process_are_counted_exactly() {
    let Some(_guard) = privileged::ready("sockets of another process") else { return };
    let service = Service::start(&programs().service, &[], Placement::default()).expect("service");
    let tgid = Tgid(service.process.id());
    let at_rest = ip_sockets_of([tgid]);
    assert!(at_rest.is_exact(), "{at_rest:?}");
    assert_eq!(at_rest.sockets.len(), 1, "the listener");

    let connections: Vec<_> = (0..5)
        .map(|_| std::net::TcpStream::connect(("127.0.0.1", service.port)).expect("connects"))
        .collect();
    eventually("all are accepted", || ip_sockets_of([tgid]).sockets.len() == 6);
    drop(connections);
    eventually("all are closed", || ip_sockets_of([tgid]) == at_rest);
}

/// A copy of the workload under a name that no other process has.
fn named_copy(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::copy(programs().work, &path).expect("a copy");
    path
}

/// A process whose first thread has exited, and another one listens on this port.
fn leaderless(programs: &Programs) -> (Work, ReservedPort) {
    let port = ReservedPort::new().expect("a port");
    let arguments = ["leaderless", "--port", &port.number().to_string()];
    let work = Work::start(programs, &arguments, Placement::default()).expect("it starts");
    eventually("the first thread is gone", || {
        process::stat(Tgid(work.id())).is_some_and(|stat| stat.has_ended())
    });
    (work, port)
}

#[test]
fn a_process_is_found_though_its_first_thread_has_exited() {
    let Some(_guard) = privileged::ready("first thread exited") else { return };
    let directory = directory();
    let name = format!("headless-{}", std::process::id() % 100_000);
    let work = named_copy(directory.path(), &name);
    let (running, port) = leaderless(&Programs { work: work.clone(), ..programs() });
    let tgid = Tgid(running.id());
    for spec in [TargetSpec::Exe(work), TargetSpec::Port(port.number()), TargetSpec::Comm(name)] {
        let found = Membership::new(&spec).map(|target| target.tgids());
        assert_eq!(found, Ok([tgid].into()), "{spec}");
    }
}

#[test]
fn a_program_is_found_though_the_dynamic_loader_was_executed() {
    let Some(_guard) = privileged::ready("dynamic loader") else { return };
    let usual = sleeper(Placement::default());
    let mapped = || process::mapped_executables(Tgid(usual.id()));
    let loaders = |file: &process::Executable| {
        file.is_shared_object() && file.path.to_string_lossy().contains("/ld")
    };
    eventually("the program is mapped", || mapped().len() > 1);
    let Some(loader) = mapped().into_iter().find(loaders) else {
        println!("not applicable: sleep(1) is linked statically");
        return;
    };
    let program = process::executable(Tgid(usual.id())).expect("a program").path;
    let mut command = Command::new(&loader.path);
    command.arg(&program).arg("600");
    let unusual = Running::start(&mut command, Placement::default()).expect("the loader starts");
    let target = || Membership::new(&TargetSpec::Exe(program.clone())).expect("the usual one");
    eventually("it is found by its program", || target().contains(Tgid(unusual.id())));
    let by_loader = Membership::new(&TargetSpec::Exe(loader.path.clone())).expect("a process");
    assert!(by_loader.contains(Tgid(unusual.id())) && !by_loader.contains(Tgid(usual.id())));
}

/// `observer run --wait` on processes that each live for an instant: every fault since they got the
/// name or executed the program is counted, and no fault of another process.
fn short_lived(target: &[&str], worker: &Path, name: Option<&str>, directory: &Path) {
    let (out, log) = (directory.join("run"), directory.join("log"));
    let output = std::fs::File::create_new(&log).expect("a file");
    let mut command = Command::new(programs().observer);
    command.args(["run", "-v", "--wait", "--budget", "none", "--duration", "1h", "--out"]);
    command.arg(&out).args(target).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    let printed = || std::fs::read_to_string(&log).expect("a log");
    eventually("the probes are attached", || printed().contains("probe task: attached"));

    let (count, pages) = (scaled_text(50), "50");
    let stranger = programs().work;
    let paths = [worker, &stranger].map(|path| path.to_str().expect("UTF-8"));
    let mut arguments = vec!["workers", "--count", &count, "--pages", pages];
    arguments.extend(["--program", paths[0], "--stranger", paths[1]]);
    arguments.extend(name.iter().flat_map(|name| ["--name", name]));
    let mut work = trial::start(&arguments, Placement::default());
    let counts = work.go().expect("it works");
    eventually("the run has begun", || printed().contains("observer: target"));
    assert_eq!(observer.ended().expect("a status"), None, "it waits for the next one");
    observer.signal(Signal::INT);
    let status = observer.wait(Duration::from_secs(120)).expect("it ends");
    work.end().expect("it ends");
    assert!(status.success(), "{status}: {}", printed());
    let (summary, info) = read_run(&out).expect("a run");
    assert_eq!(info.end_reason, EndReason::Interrupted);
    // Others on the host may lose something.
    assert!(lost_by_target(&summary.loss).is_empty(), "{:?}", summary.loss);
    let first = u32::try_from(number(&counts, "first")).expect("a process");
    // On a slow host another one may live when the run begins.
    assert!(info.target_processes.contains_key(&first), "{first}: {info:#?}");
    let found = summary.probes["fault"].parts.get("minor").map_or(0, |part| part.count);
    let (own, charged) = (number(&counts, "own"), number(&counts, "charged"));
    println!("{own} faults by the workers' own count, {found} found, {charged} charged");
    assert!(own <= found && found <= charged, "{own} {found} {charged}");
}

#[test]
fn every_fault_of_short_lived_processes_counts_from_their_execution_by_name() {
    let Some(_guard) = privileged::ready("short-lived, by name") else { return };
    let directory = directory();
    let name = format!("short-{}", std::process::id() % 100_000);
    let worker = named_copy(directory.path(), &name);
    short_lived(&["--comm", &name], &worker, None, directory.path());
}

#[test]
fn every_fault_of_short_lived_processes_counts_from_their_execution_by_program() {
    let Some(_guard) = privileged::ready("short-lived, by program") else { return };
    let directory = directory();
    let worker = named_copy(directory.path(), "worker");
    let program = worker.to_str().expect("UTF-8");
    short_lived(&["--exe", program], &worker, None, directory.path());
}

#[test]
fn every_fault_of_short_lived_processes_counts_from_their_change_of_name() {
    let Some(_guard) = privileged::ready("short-lived, by change of name") else { return };
    let directory = directory();
    let name = format!("named-{}", std::process::id() % 100_000);
    short_lived(&["--comm", &name], &programs().work, Some(&name), directory.path());
}

#[test]
fn a_command_with_the_name_of_the_target_is_no_target() {
    let Some(_guard) = privileged::ready("COMMAND with the target's name") else { return };
    let directory = directory();
    let name = format!("same-{}", std::process::id() % 100_000);
    let same = Programs { work: named_copy(directory.path(), &name), ..programs() };
    let target = Work::start(&same, &["minor-faults"], Placement::default()).expect("it starts");
    trial::settle(target.id());
    // COMMAND has the target's name as well; as it starts, it has faults.
    let watch = Watch::start(&same, &["--comm", &name], directory.path()).expect("it starts");
    let (summary, _) = watch.finish().expect("a run");
    assert_eq!(summary.probes["fault"].count, 0, "{:?}", summary.probes["fault"]);
    assert_eq!(summary.records["task"].sent, 0, "nobody joined: {:?}", summary.records);
    target.end().expect("it ends");
}

/// The live sockets of a target, by a run from before the work to after it and by a daemon.
fn live_sockets(work: &mut Work, directory: &Path, go: impl FnOnce(&mut Work) -> u64) {
    let pid = work.id().to_string();
    let watch = Watch::start(&programs(), &["--pid", &pid], directory).expect("it attaches");
    let daemon = Daemon::start(&["--pid", &pid]);
    let live = go(work);
    let gauge = || daemon.scrape().sum("observer_target_live_sockets", &[]);
    eventually("the daemon shows how many there are", || gauge() == live as f64);
    daemon.end();
    let (summary, _) = watch.finish().expect("a run");
    assert_eq!(summary.probes["socket"].counters["live"].unsigned_abs(), live);
}

#[test]
fn sockets_that_are_passed_to_other_processes_and_by_them_are_live_where_they_are() {
    let Some(_guard) = privileged::ready("passed sockets") else { return };
    let directory = directory();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let arguments = ["passed", "--socket", path.to_str().expect("UTF-8")];
    let mut work = trial::start(&arguments, Placement::default());
    let (stream, _) = listener.accept().expect("it connected");
    live_sockets(&mut work, directory.path(), |work| {
        // No process of the target has made these.
        let made: Vec<_> =
            (0..20).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bound")).collect();
        let made: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        passing::send(&stream, &made).expect("sent");
        let live = number(&work.go().expect("it works"), "live");
        // And these are closed by a stranger.
        drop(passing::receive(&stream).expect("received"));
        live
    });
    work.end().expect("it ends");
}

#[test]
fn sockets_of_a_process_are_counted_though_its_first_thread_has_exited() {
    let Some(_guard) = privileged::ready("sockets, first thread exited") else { return };
    let directory = directory();
    let (mut work, _) = leaderless(&programs());
    live_sockets(&mut work, directory.path(), |work| number(&work.go().expect("it works"), "live"));
    work.end().expect("it ends");
}

/// Listens on this port, with these further arguments of the workload.
fn listener(port: &str, more: &[&str], place: Placement<'_>) -> Work {
    let arguments = [&["listen-as", "--port", port], more].concat();
    Work::start(&programs(), &arguments, place).expect("it listens")
}

/// A run whose target is whoever listens on this port.
fn watch_port(port: &str, directory: &Path) -> Watch {
    Watch::start(&programs(), &["--port", port], directory).expect("attached")
}

/// Ends a run; what it left, with its report.
fn finished(watch: Watch) -> (Summary, RunInfo, String) {
    let report = watch.run.join("report.html");
    let (summary, info) = watch.finish().expect("a run");
    (summary, info, std::fs::read_to_string(report).expect("a report"))
}

#[test]
fn everybody_who_listens_on_the_port_is_said_by_name_user_and_network() {
    let Some(_guard) = privileged::ready("owners of a port") else { return };
    const UID: u32 = 4_000_000;
    let directory = directory();
    let reserved = ReservedPort::new().expect("a port");
    let port = reserved.number().to_string();
    let listen = |more: &[&str]| listener(&port, more, Placement::default());
    let own = listen(&[]);
    let stranger = listen(&["--stranger", &UID.to_string()]);
    let watch = watch_port(&port, directory.path());
    // One who comes later is said too.
    let late = listen(&["--stranger", &(UID + 1).to_string()]);
    let said = || std::fs::read_to_string(&watch.log).expect("what observer says");
    let is_said = |work: &Work, user: &str, network: &str| {
        let process = format!("{} observer-work", work.id());
        let owner = format!("(user {user}, {network}");
        said().lines().any(|line| {
            let rest = line.split_once(&process).map(|(_, rest)| rest);
            line.contains(&format!("target --port {port}: "))
                && rest
                    .and_then(|rest| rest.split(';').next())
                    .is_some_and(|rest| rest.contains(&owner))
        })
    };
    let link = |id: u32| {
        let link = std::fs::read_link(format!("/proc/{id}/ns/net")).expect("a namespace");
        link.to_str().expect("UTF-8").to_owned()
    };
    let other = |work: &Work| format!("in another network than the host's, {}", link(work.id()));
    // A guest has no file with the names of users.
    let root = if Path::new("/etc/passwd").exists() { "root" } else { "0" };
    assert!(is_said(&own, root, "in the host's network"), "{}", said());
    assert!(is_said(&stranger, &UID.to_string(), &other(&stranger)), "{}", said());
    eventually("the one who came later is said", || {
        is_said(&late, &(UID + 1).to_string(), &other(&late))
    });
    let (strange_id, strange_network) = (stranger.id(), link(stranger.id()));
    let own_id = own.id();
    let (_, info, page) = finished(watch);
    assert_eq!(info.target_cpus, Some(info.cpus), "they may run anywhere");
    let owner = |id: u32| info.target_owners.get(&id).cloned().expect("it was there at the start");
    assert_eq!((owner(own_id).user.as_str(), owner(own_id).network.as_str()), (root, "host"));
    assert_eq!(owner(strange_id).user, UID.to_string());
    assert_eq!(owner(strange_id).network, strange_network);
    let line = format!("user {UID}, in another network");
    assert!(page.contains(&line), "the report says who was taken");
    for work in [own, stranger, late] {
        work.end().expect("it ends");
    }
}

#[test]
fn what_observer_takes_is_compared_with_the_cpus_that_the_target_can_use() {
    let Some(_guard) = privileged::ready("CPUs of the target") else { return };
    let directory = directory();
    let reserved = ReservedPort::new().expect("a port");
    let port = reserved.number().to_string();
    let place = Placement { cpu: Some(0), ..Placement::default() };
    let work = listener(&port, &[], place);
    let (summary, info, page) = finished(watch_port(&port, directory.path()));
    assert_eq!(info.target_cpus, Some(1), "of {} CPUs", info.cpus);
    assert!(page.contains("of the CPU that the target can use"), "{:?}", summary.observer);
    work.end().expect("it ends");
}
