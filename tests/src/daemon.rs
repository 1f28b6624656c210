//! `observer daemon`, and the numbers it serves.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::http::{self, Answer, ReservedPort};
use crate::process::{Placement, Running};
use crate::trial;

/// A running daemon, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Running,
    port: ReservedPort,
}

impl Daemon {
    /// Starts it with these arguments, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |_| {})
    }

    /// The same, with more that its command needs.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start_with(arguments: &[&str], with: impl FnOnce(&mut Command)) -> Self {
        let port = ReservedPort::new().expect("a port");
        let address = format!("127.0.0.1:{}", port.number());
        let mut command = Command::new(trial::programs().observer);
        command.args(["daemon", "--listen", &address]).args(arguments);
        if !arguments.contains(&"--budget") {
            // Every count is compared, whatever the workload costs to watch.
            command.args(["--budget", "none"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        with(&mut command);
        let mut process = Running::start(&mut command, Placement::default()).expect("it starts");
        Self::wait_until_healthy(&mut process, port.number());
        Self { process, port }
    }

    /// Waits until a daemon answers on this port.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_until_healthy(process: &mut Running, port: u16) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while http::get(port, "/healthz", "").map(|answer| answer.status) != Ok(200) {
            assert_eq!(process.ended().expect("a status"), None, "the daemon stays");
            assert!(Instant::now() < deadline, "the daemon is healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// GETs a page of it, with these header lines.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn get(&self, path: &str, headers: &str) -> Answer {
        http::get(self.port.number(), path, headers).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Everything it serves: each page is made of what the kernel has counted at that moment.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn scrape(&self) -> Metrics {
        Metrics::of(self.get("/metrics", ""))
    }

    /// Where it listens, for another program that scrapes it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// Its process, for tests that disturb it.
    pub const fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Ends it.
    ///
    /// # Panics
    /// When it does not end, or not well.
    pub fn end(mut self) {
        self.process.signal(Signal::TERM);
        // Each program that is detached waits for the kernel, which is long on a busy host.
        let status = self.process.wait(Duration::from_secs(120)).expect("it ends");
        assert!(status.success(), "{status}");
    }
}

/// A scrape.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// What came for a scrape.
    ///
    /// # Panics
    /// When it was not served.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        assert_eq!(answer.status, 200, "{answer:?}");
        Self(answer.body)
    }

    /// All of it, unchanged.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Sum of a metric over the lines whose labels contain all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.0
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// [`Self::sum`] of a metric that counts.
    #[must_use]
    pub fn count(&self, name: &str, labels: &[&str]) -> u64 {
        self.sum(name, labels) as u64
    }

    /// The tier a probe is attached by.
    #[must_use]
    pub fn tier(&self, probe: &str) -> String {
        let label = format!("probe=\"{probe}\"");
        self.0
            .lines()
            .filter(|line| line.starts_with("observer_probe_attached{") && line.contains(&label))
            .find_map(|line| line.split_once("tier=\"")?.1.split('"').next().map(str::to_owned))
            .unwrap_or_default()
    }
}
