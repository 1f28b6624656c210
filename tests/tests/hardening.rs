//! observer runs as root next to processes of others: what they can and cannot make it do.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use observer::call_filter::{self, Threads};
use observer::error::Exit;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES, RunTimeStatistics};
use observer::privileges::{MEASURING, following, keep_only};
use observer::probe::{PROBES, ProbeOptions};
use observer::session::memory;
use observer_tests::cgroup::{self, MemoryCgroup};
use observer_tests::command::{Finished, give_to_nobody, run};
use observer_tests::daemon::{Daemon, Metrics};
use observer_tests::http;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running, Service};
use observer_tests::trial::{self, directory, programs};

const TIMEOUT: Duration = Duration::from_secs(240);
const NOBODY: u32 = 65_534;

fn observer(arguments: &[&str]) -> Finished {
    let mut command = Command::new(programs().observer);
    run(command.args(arguments), TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn nobodys(path: &Path) {
    lchown(path, Some(NOBODY), Some(NOBODY)).expect("another owner");
}

/// Ways to `mine` and elsewhere that another user can change.
fn bad_ways(base: &Path, mine: &Path) -> Vec<PathBuf> {
    let (theirs, sticky) = (base.join("theirs"), base.join("sticky"));
    fs::create_dir_all(theirs.join("roots")).expect("directories");
    fs::create_dir(&sticky).expect("a directory");
    mode(&sticky, 0o1777);
    nobodys(&theirs);
    let link = sticky.join("link");
    symlink(mine, &link).expect("a link");
    nobodys(&link);
    let group = base.join("group");
    fs::create_dir(&group).expect("a directory");
    lchown(&group, Some(0), Some(NOBODY)).expect("another group");
    mode(&group, 0o775);
    vec![theirs.clone(), theirs.join("roots"), link, group, sticky.join("link/..")]
}

#[test]
fn no_other_user_can_lead_the_output_elsewhere() {
    let Some(_guard) = privileged::ready("output of root") else { return };
    let directory = directory();
    let base = directory.path();
    let mine = base.join("mine");
    fs::create_dir(&mine).expect("a directory");
    let service =
        Service::start(&programs().service, &[], Placement::default()).expect("a service");
    let pid = service.process.id().to_string();
    let first = mine.join("run");
    let watch =
        |out: &Path| observer(&["run", "--pid", &pid, "--duration", "300ms", "--out", text(out)]);
    watch(&first).assert_code(0);
    let url = format!("{}/", service.url);
    let load =
        |out: &str| observer(&["load", &url, "--rate", "50", "--duration", "200ms", "--out", out]);
    for way in bad_ways(base, &mine) {
        let refused = |finished: Finished| {
            finished.assert_code(Exit::Output as u8);
            assert!(finished.stderr.contains("not safe to use"), "{way:?}: {finished:#?}");
        };
        refused(watch(&way.join("out")));
        refused(observer(&["report", text(&first), "--html", text(&way.join("out"))]));
        refused(load(text(&way.join("out"))));
        let socket = way.join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        refused(load(&format!("unix:{}", socket.display())));
        fs::remove_file(socket).expect("the socket");
        let listen = ["--pid", &pid, "--listen", "127.0.0.1:0", "--trace", text(&way)];
        let trace = text(&way).to_owned() + "/out";
        refused(observer(&[
            "daemon", listen[0], listen[1], listen[2], listen[3], listen[4], &trace,
        ]));
        assert!(!way.join("out").exists() && !mine.join("out").exists(), "{way:?}");
    }
    // Links of root, and a sticky directory without a link, are as good as they were.
    let good = base.join("sticky/good");
    symlink(&mine, &good).expect("a link");
    watch(&good.join("out")).assert_code(0);
    load(text(&base.join("sticky/rows"))).assert_code(0);
}

#[test]
fn a_limit_that_is_too_low_is_named() {
    let Some(_guard) = privileged::ready("resource limits") else { return };
    let directory = directory();
    let service =
        Service::start(&programs().service, &[], Placement::default()).expect("a service");
    let pid = service.process.id().to_string();
    let limited = |limit: &str, arguments: &[&str]| {
        let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).arg(programs().observer).args(arguments);
        run(&mut command, TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
    };
    let out = directory.path().join("run");
    let watch = ["run", "--pid", &pid, "--duration", "300ms", "--out", text(&out)];
    for (limit, said) in [
        ("-n 5", "open files"),
        ("-n 6", "open files"),
        ("-n 10", "open files"),
        ("-n 23", "open files"),
        ("-s 128", "stack"),
        ("-v 100000", "address space"),
    ] {
        let url = format!("{}/", service.url);
        let load = ["load", &url, "--rate", "50", "--duration", "200ms"];
        for arguments in [&watch[..], &["daemon", "--listen", "127.0.0.1:0"], &["doctor"], &load] {
            let finished = limited(limit, arguments);
            finished.assert_code(Exit::Limit as u8);
            assert!(finished.stderr.contains(said), "{limit} {arguments:?}: {finished:#?}");
        }
    }
    let finished = limited("-n 26", &watch);
    finished.assert_code(Exit::Limit as u8);
    assert!(finished.stderr.contains("open files"), "{finished:#?}");
    assert!(!out.exists());
    // A soft limit is raised.
    limited("-S -n 24", &watch).assert_code(0);
    // In blocks of 1 KiB. The trace ends, and the run does not.
    let out = directory.path().join("small");
    let watch = ["run", "--pid", &pid, "--duration", "300ms", "--out", text(&out)];
    let finished = limited("-f 2", &watch);
    finished.assert_code(Exit::DiskFull as u8);
}

/// Names of the threads of a process, each with its capabilities and whether it can get more.
fn rights(pid: u32) -> Vec<(String, u64, bool)> {
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a line of the status").trim().to_owned()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|status| {
            let hex = |name| u64::from_str_radix(&field(&status, name), 16).expect("a number");
            let held = hex("CapPrm:") | hex("CapEff:") | hex("CapBnd:") | hex("CapAmb:");
            (field(&status, "Name:"), held, field(&status, "NoNewPrivs:") == "0")
        })
        .collect()
}

#[test]
fn a_daemon_keeps_only_the_rights_that_it_needs() {
    let Some(_guard) = privileged::ready("rights of the daemon") else { return };
    const BPF_PERFMON_PTRACE_READ: u64 = 1 << 39 | 1 << 38 | 1 << 19 | 1 << 2;
    const ADMIN: u64 = 1 << 21;
    for (budget, at_budget) in
        [("none", BPF_PERFMON_PTRACE_READ), ("10%", BPF_PERFMON_PTRACE_READ | ADMIN)]
    {
        let service =
            Service::start(&programs().service, &[], Placement::default()).expect("a service");
        let port = service.port.to_string();
        let directory = directory();
        let trace = directory.path().join("trace");
        let mut daemon =
            Daemon::start(&["--port", &port, "--budget", budget, "--trace", text(&trace)]);
        let rights = rights(daemon.process().id());
        assert!(rights.len() >= 4, "{rights:?}");
        for (name, held, may_get_more) in &rights {
            // The thread that waits for signals has none from its beginning.
            let allowed =
                if name == "observer-budget" { at_budget } else { BPF_PERFMON_PTRACE_READ };
            assert_eq!(held & !allowed, 0, "{name} {held:x}");
            assert!(!may_get_more, "{name}");
        }
        let before = daemon.scrape();
        http::get(service.port, "/", "").expect("an answer");
        // Of the service: a cgroup of the host that is removed takes its numbers with it.
        let waits = |metrics: &Metrics| {
            metrics.count("observer_runqueue_latency_seconds_count", &["target=\"true\""])
        };
        assert!(waits(&daemon.scrape()) > waits(&before));
        daemon.end();
    }
}

#[test]
fn what_is_kept_is_enough_to_attach_every_probe_again() {
    let Some(_guard) = privileged::ready("probes attached again") else { return };
    let again = |probe: &'static str, tier: &'static str| {
        let probes = ProbeOptions {
            selection: probe.parse().expect("a probe"),
            tiers: [format!("{probe}={tier}").parse().expect("a tier")].into_iter().collect(),
            ..ProbeOptions::default()
        };
        let has_target = true;
        let options = LoadOptions { has_target, ring_bytes: RING_BYTES, probes, by_cgroup: true };
        let Ok(mut kernel) = Kernel::attach(&options) else { return false };
        keep_only(MEASURING).expect("fewer rights");
        assert!(RunTimeStatistics::start().is_some(), "the budget needs them");
        keep_only(following(kernel.has_perf_events())).expect("fewer rights");
        call_filter::apply(Threads::Own).expect("a filter");
        if !kernel.is_attached(probe) {
            return false;
        }
        kernel.detach(probe, "a test").expect("it was attached");
        kernel.attach_again(probe).unwrap_or_else(|error| panic!("{probe} by {tier}: {error}"));
        assert!(kernel.is_attached(probe), "{probe} by {tier}");
        true
    };
    let mut attached = Vec::new();
    for probe in PROBES.into_iter().filter(|probe| probe.name != "task") {
        for tier in probe.tiers {
            // Rights belong to a thread.
            let tried = std::thread::spawn(move || again(probe.name, tier.name)).join();
            if tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                attached.push((probe.name, tier.name));
            }
        }
    }
    println!("{attached:?}");
    assert!(attached.len() >= 5, "{attached:?}");
}

#[test]
fn fewer_probes_need_fewer_rights() {
    let Some(_guard) = privileged::ready("rights of the chosen probes") else { return };
    let with_rights = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        let few = "-all,+bpf,+perfmon,+sys_ptrace,+dac_read_search";
        command.args(["--bounding-set", few, "--inh-caps", few]).arg(programs().observer);
        run(command.args(arguments), TIMEOUT).unwrap_or_else(|error| panic!("{error}"))
    };
    let service =
        Service::start(&programs().service, &[], Placement::default()).expect("a service");
    let (pid, directory) = (service.process.id().to_string(), directory());
    let out = directory.path().join("run");
    let watch = ["run", "--pid", &pid, "--duration", "300ms", "--out", text(&out)];
    let refused = with_rights(&watch);
    refused.assert_code(Exit::Permission as u8);
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused:#?}");
    let some = [&watch[..], &["--probes", "runqueue"]].concat();
    with_rights(&some).assert_code(0);
}

#[test]
fn samples_are_not_read_through_the_link_of_another_user() {
    let Some(_guard) = privileged::ready("samples of root") else { return };
    let directory = directory();
    let secret = directory.path().join("secret");
    fs::write(&secret, "for root alone\n").expect("a file");
    let link = directory.path().join("samples");
    symlink(&secret, &link).expect("a link");
    nobodys(&link);
    let service =
        Service::start(&programs().service, &[], Placement::default()).expect("a service");
    let (pid, out) = (service.process.id().to_string(), directory.path().join("run"));
    let samples = format!("hey:{}", link.display());
    let finished = observer(&[
        "run",
        "--pid",
        &pid,
        "--samples",
        &samples,
        "--duration",
        "300ms",
        "--out",
        text(&out),
    ]);
    finished.assert_code(Exit::SamplesUnreadable as u8);
    assert!(finished.stderr.contains("symbolic link"), "{finished:#?}");
}

#[test]
fn the_report_of_a_run_that_changed_hands_says_so() {
    let Some(_guard) = privileged::ready("run of another user") else { return };
    let directory = directory();
    let service =
        Service::start(&programs().service, &[], Placement::default()).expect("a service");
    let (pid, out) = (service.process.id().to_string(), directory.path().join("run"));
    observer(&["run", "--pid", &pid, "--duration", "300ms", "--out", text(&out)]).assert_code(0);
    let report = |more: &[&str]| {
        let finished = observer(&[&["report", text(&out)][..], more].concat());
        finished.assert_code(0);
        // The lines of the report are broken.
        format!("{} {}", finished.stdout.replace("\n    ", " "), finished.stderr)
    };
    let another = "another user may have changed";
    assert!(!report(&[]).contains(another) && !report(&["--json"]).contains(another));
    nobodys(&out.join("summary.json"));
    let said = report(&[]);
    assert!(said.contains("summary.json in the run directory") && said.contains(another), "{said}");
    assert!(report(&["--json"]).contains(another));
    give_to_nobody(&out).expect("another owner");
    let said = report(&[]);
    assert!(said.contains("the run directory belongs to user 65534"), "{said}");
}

/// A cgroup with so much memory, where the kernel kills what does not fit.
fn tight_cgroup(limit: u64) -> MemoryCgroup {
    let cgroup = MemoryCgroup::create(&trial::unique("room")).expect("a cgroup");
    if cgroup.version() == 1 {
        let control = cgroup.directory().join("memory.oom_control");
        fs::write(control, "0").expect("it is allowed");
    }
    cgroup.limit(Some(limit)).expect("a limit");
    cgroup
}

/// Runs a script with observer and these arguments (`"$0" "$@"`) in a cgroup below this one, in which
/// nothing is killed.
fn run_in(cgroup: &MemoryCgroup, script: &str, arguments: &[&str]) -> Finished {
    let inside = cgroup.directory().join("inside");
    fs::create_dir(&inside).expect("a cgroup below");
    let enter = format!("echo $$ > {}/cgroup.procs && {script}", text(&inside));
    let mut command = Command::new("sh");
    command.args(["-c", &enter]).arg(programs().observer).args(arguments);
    let finished = run(&mut command, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(cgroup.oom_kills().expect("a count"), 0, "{finished:#?}");
    cgroup::remove(&inside).expect("nobody is there any more");
    finished
}

fn observer_in(cgroup: &MemoryCgroup, arguments: &[&str]) -> Finished {
    run_in(cgroup, r#"exec "$0" "$@""#, arguments)
}

#[test]
fn observer_fits_into_the_memory_of_its_cgroup_or_says_what_it_needs() {
    let Some(_guard) = privileged::ready("memory of observer's cgroup") else { return };
    let directory = directory();
    let mut work = trial::start(&["storm", "--rounds", "100000000"], Placement::default());
    work.begin().expect("it works");
    let pid = work.id().to_string();
    let out = directory.path().join("run");
    // Every fault is a record: far more than fit.
    let floors = ["--floor", "fault=0ns", "--budget", "none"];
    let a_run =
        [&["run", "--pid", &pid, "--duration", "3s", "--out", text(&out)], &floors[..]].concat();

    for arguments in [&["doctor"][..], &["daemon", "--listen", "127.0.0.1:0"], &a_run] {
        let cgroup = tight_cgroup(64 << 20);
        let finished = observer_in(&cgroup, arguments);
        assert_eq!(finished.code, Some(Exit::Limit as i32), "{finished:#?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
        let line = "is limited to 64 MiB, and observer needs ";
        assert!(finished.stderr.contains(line), "{finished:#?}");
        assert!(finished.stderr.contains(text(cgroup.directory())), "{finished:#?}");
    }
    // The shell is replaced by observer, and the kernel charges in batches.
    let needed = memory::run_needs_bytes(RING_BYTES) + (2 << 20);
    for arguments in [&["doctor"][..], &a_run] {
        let finished = observer_in(&tight_cgroup(needed), arguments);
        assert_eq!(finished.code, Some(0), "{finished:#?}");
        let said = [finished.stdout.as_str(), &finished.stderr].concat();
        assert!(said.contains("it keeps at most "), "{said}");
    }
    drop(work);
}

/// The kernel frees the maps of an observer that has ended a moment later.
#[test]
fn an_observer_can_follow_another_one_in_a_tight_cgroup() {
    let Some(_guard) = privileged::ready("one observer after the other") else { return };
    let directory = directory();
    let work = trial::start(&["minor-faults"], Placement::default());
    let pid = work.id().to_string();
    // Less than the maps take, which are not yet freed when the second one begins.
    let cgroup = tight_cgroup(memory::run_needs_bytes(RING_BYTES) + (4 << 20));
    for round in 0..10 {
        let out = directory.path().join(round.to_string());
        let out = text(&out);
        let twice = format!(r#""$0" "$@" --out {out}-1 && exec "$0" "$@" --out {out}-2"#);
        run_in(&cgroup, &twice, &["run", "--pid", &pid, "--duration", "50ms"]).assert_code(0);
    }
    work.end().expect("it ends");
}

/// A line of the status of each thread.
fn of_threads(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .filter_map(|status| Some(status.split_once(name)?.1.lines().next()?.trim().into()))
        .collect()
}

/// The calls of a process that fail, as strace sees them.
struct FailedCalls {
    strace: Running,
    lines: PathBuf,
}

impl FailedCalls {
    /// From now on, of all threads. `None` where there is no strace.
    fn of(pid: u32, directory: &Path) -> Option<Self> {
        let lines = directory.join("strace");
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "status=failed", "-o"]).arg(&lines);
        command.args(["-p", &pid.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
        let strace = Running::start(&mut command, Placement::default()).ok()?;
        let deadline = Instant::now() + TIMEOUT;
        while of_threads(pid, "TracerPid:").iter().any(|tracer| tracer == "0") {
            assert!(Instant::now() < deadline, "strace attaches");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { strace, lines })
    }

    /// Those that were refused, once the process has ended.
    fn refused(mut self) -> Vec<String> {
        self.strace.wait(TIMEOUT).expect("strace ends with the process");
        let lines = fs::read_to_string(self.lines).expect("what strace saw");
        assert!(lines.contains(" = -1 "), "some calls fail: {lines}");
        lines.lines().filter(|line| line.contains("EPERM")).map(str::to_owned).collect()
    }
}

/// With every call that it still needs: scrapes, a trace whose segments turn over, probes that are
/// detached, a log for journald, a target that ends, and the end. Attaching probes again has a test of
/// its own.
#[test]
fn a_daemon_filters_its_system_calls() {
    let Some(_guard) = privileged::ready("system calls of the daemon") else { return };
    let directory = directory();
    let trace = directory.path().join("trace");
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do /bin/true; done"]);
    let busy = Running::start(&mut busy, Placement::default()).expect("it starts");
    let pid = busy.id().to_string();
    let arguments = ["--pid", &pid, "--trace", text(&trace), "--trace-bytes", "1M"];
    let (mut journal, stderr) = UnixStream::pair().expect("sockets");
    let stderr = fs::File::from(OwnedFd::from(stderr));
    let stat = stderr.metadata().expect("a socket");
    let stream = format!("{}:{}", stat.dev(), stat.ino());
    let arguments = [&arguments[..], &["--budget", "0.01%"]].concat();
    let mut daemon = Daemon::start_with(&arguments, |command| {
        command.env("JOURNAL_STREAM", stream).stderr(stderr);
    });
    let failed = FailedCalls::of(daemon.process().id(), directory.path());
    let assert_filtered = |daemon: &mut Daemon| {
        let filters = of_threads(daemon.process().id(), "Seccomp:");
        assert!(filters.len() >= 4 && filters.iter().all(|filter| filter == "2"), "{filters:?}");
    };
    assert_filtered(&mut daemon);
    let has_turned_over = || {
        let names = fs::read_dir(&trace)
            .expect("the trace")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let segments = |name: String| name.split('.').nth(1)?.parse::<u64>().ok();
        names.filter_map(segments).any(|segment| segment > 2)
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    let shed = |daemon: &Daemon| daemon.scrape().sum("observer_probe_detached_seconds_total", &[]);
    while !has_turned_over() || shed(&daemon) == 0.0 {
        assert!(Instant::now() < deadline, "{} {}", has_turned_over(), shed(&daemon));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_filtered(&mut daemon);
    drop(busy);
    // The daemon looks for its target a few times meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    let _ = daemon.scrape();
    daemon.end();
    let mut said = String::new();
    journal.read_to_string(&mut said).expect("text");
    assert!(
        said.contains("serving http://") && said.lines().all(|line| line.starts_with('<')),
        "{said}"
    );
    let refused = failed.map(FailedCalls::refused).unwrap_or_default();
    assert!(refused.is_empty(), "{refused:#?}");
}
