//! Every example in the help texts, run as printed, except for names of another host and long
//! times.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use observer_tests::cgroup::MemoryCgroup;
use observer_tests::command::run;
use observer_tests::http;
use observer_tests::privileged;
use observer_tests::process::{Placement, Service};
use observer_tests::trial::{self, programs};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const TIMEOUT: Duration = Duration::from_secs(120);

/// Instead of the 30 s or 1 m of an example.
const SHORT: &str = "2s";

/// The examples of a help text. A comment stands after two or more spaces.
fn examples(arguments: &[&str]) -> Vec<String> {
    let finished = run(Command::new(programs().observer).args(arguments), TIMEOUT)
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);
    finished
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| line.starts_with("observer "))
        .map(|line| line.split("  ").next().unwrap_or(line).trim().to_owned())
        .collect()
}

/// The host of the examples: a service where they expect nginx.
struct Host {
    service: Service,
    comm: String,
    program: PathBuf,
    cgroup: MemoryCgroup,
    run: PathBuf,
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = trial::directory();
        let comm = format!("svc-{}", std::process::id());
        let program = directory.path().join(&comm);
        fs::copy(programs().service, &program).expect("a copy");
        let cgroup =
            MemoryCgroup::create(&trial::unique("examples")).expect("a cgroup can be made");
        let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
        let service =
            Service::start(&program, &[], place).unwrap_or_else(|error| panic!("{error}"));
        let run = directory.path().join("observer-run-of-the-examples");
        Self { service, comm, program, cgroup, run, directory }
    }

    /// A run for `observer report` to read.
    fn leave_a_run(&self) {
        let mut command = Command::new(programs().observer);
        command.args(["run", "--comm", &self.comm, "--duration", "300ms", "--out"]);
        run(command.arg(&self.run), TIMEOUT).expect("it ends").assert_code(0);
    }

    /// An example as a user would type it on this host.
    fn localise(&self, example: &str) -> String {
        let cgroup = self.cgroup.directory().file_name().expect("a name").to_string_lossy();
        let mut line = example
            .replace("http://127.0.0.1:8080", &self.service.url)
            .replace("http://127.0.0.1/", &format!("{}/", self.service.url))
            .replace("tcp://127.0.0.1:6379", &self.service.url.replace("http:", "tcp:"))
            .replace(r"'PING\r\n'", r"'GET / HTTP/1.1\r\nHost: a\r\n\r\n'")
            .replace(r"--reply-until '\r\n'", r"--reply-until 'ok\n'")
            .replace("--port 8080", &format!("--port {}", self.service.port))
            .replace("--comm nginx", &format!("--comm {}", self.comm))
            .replace("/system.slice/nginx.service", &format!("/{cgroup}"))
            // Another program may have these ports.
            .replace("observer daemon", "observer daemon --listen 127.0.0.1:0")
            .replace("--listen 127.0.0.1:0 --listen [::1]:9900", "--listen [::1]:0")
            .replace("/usr/sbin/nginx", &self.program.to_string_lossy())
            .replace("observer-run-20260131-120000", &self.run.to_string_lossy());
        for flag in ["--duration ", "-z "] {
            if let Some((before, after)) = line.split_once(flag) {
                let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
                line = format!("{before}{flag}{SHORT} {rest}");
            }
        }
        if line.contains("observer load ") && !line.contains("--duration") {
            line = line.replace("--rate ", &format!("--duration {SHORT} --rate "));
        }
        if line.starts_with("observer daemon") {
            // Ended as a service manager does it; its own exit code counts.
            line = format!("timeout --preserve-status --signal=TERM 4 {line}");
        }
        line
    }

    fn try_out(&self, example: &str, index: usize) {
        let line = self.localise(example);
        println!("{example}\n    as: {line}");
        let directory = self.directory.path().join(format!("example-{index}"));
        fs::create_dir(&directory).expect("a directory");
        let programs = programs();
        let path = format!(
            "{}:{}",
            programs.observer.parent().expect("a directory").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let _vegeta = Vegeta::write(&directory.join("load.json"), self.service.port);
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(&directory).env("PATH", path);
        let begin = Instant::now();
        let finished = run(&mut command, TIMEOUT).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(finished.code, Some(0), "{line}: {finished:#?}");
        if line.contains("--preserve-status") {
            assert!(begin.elapsed() >= Duration::from_secs(4), "the daemon stayed: {finished:#?}");
        }
        if line.starts_with("observer run ") {
            let left = fs::read_dir(&directory).expect("a directory").flatten().any(|entry| {
                entry.file_name().to_string_lossy().starts_with("observer-run-")
                    && entry.path().join("summary.json").is_file()
            });
            assert!(left, "{line}: a run directory is left: {finished:#?}");
        }
    }
}

/// What vegeta writes (`vegeta attack | vegeta encode`), while it runs: requests to the service.
struct Vegeta {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Vegeta {
    fn write(path: &Path, port: u16) -> Self {
        let mut file = File::create_new(path).expect("a file");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for seq in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).expect("a time");
                let begin = Instant::now();
                let code = http::get(port, "/", "").map_or(0, |answer| answer.status);
                let latency = begin.elapsed().as_nanos();
                let line = format!(
                    "{{\"attack\":\"\",\"seq\":{seq},\"code\":{code},\"timestamp\":\"{timestamp}\",\
                     \"latency\":{latency},\"bytes_out\":0,\"bytes_in\":3,\"error\":\"\",\
                     \"body\":\"b2sK\",\"method\":\"GET\",\"url\":\"http://127.0.0.1:{port}/\",\
                     \"headers\":{{}}}}\n"
                );
                file.write_all(line.as_bytes()).expect("a write");
                thread::sleep(Duration::from_millis(10));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Vegeta {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn examples_of_every_help_text_work() {
    let Some(_guard) = privileged::ready("examples") else { return };
    let host = Host::new();
    host.leave_a_run();
    let mut tried = Vec::new();
    for command in [
        &["--help"][..],
        &["run", "--help"],
        &["load", "--help"],
        &["report", "--help"],
        &["daemon", "--help"],
        &["doctor", "--help"],
    ] {
        let found = examples(command);
        assert!(!found.is_empty(), "observer {} has examples", command.join(" "));
        for example in found {
            if !tried.contains(&example) {
                host.try_out(&example, tried.len());
                tried.push(example);
            }
        }
    }
    for command in ["run", "load", "report", "daemon", "doctor"] {
        let prefix = format!("observer {command}");
        assert!(tried.iter().any(|example| example.starts_with(&prefix)), "{prefix}: {tried:?}");
    }
}
