//! One guest from power-on to power-off: QEMU, its two serial ports, and the report of its tests.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask_common::counts::Counts;

use crate::protocol::{self, End, Message};

const QEMU: &str = "qemu-system-x86_64";

/// The console from warnings on; a panic ends the guest. An emulated time-stamp counter does not
/// say that it is steady, but it is: without it clocks are read from a device, which takes
/// microseconds, and the scheduler's clock jumps by ticks. Mitigations only slow the guest down, and
/// Debian's kernels leave pressure stall information off.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 tsc=reliable mitigations=off psi=1";

/// How long power-off may take after the last message.
const POWER_OFF: Duration = Duration::from_secs(20);

/// Lines of the console that are shown of a guest that stopped in the middle.
const CONSOLE_LINES: usize = 15;

/// The parts of a guest.
pub(crate) struct Machine<'a> {
    /// Its name in progress lines and of its files.
    pub(crate) name: &'a str,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) disk: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// CPUs that it could have; `None` for the same.
    pub(crate) possible_cpus: Option<u32>,
    /// Its clocks count instructions.
    pub(crate) counted: bool,
    /// It is killed after this time.
    pub(crate) limit: Duration,
    /// Show the output of its programs as it comes.
    pub(crate) verbose: bool,
    /// Directory of its logs.
    pub(crate) directory: &'a Path,
}

/// What a guest reported.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Facts about the guest's system; null when it did not boot.
    pub(crate) system: Value,
    /// Tests that passed and failed.
    pub(crate) counts: Counts,
    /// The lines of its tests, as they wrote them.
    pub(crate) results: Vec<Value>,
    /// Why the report is incomplete; empty when the guest did everything.
    pub(crate) faults: Vec<String>,
    pub(crate) seconds: f64,
}

impl Report {
    /// Release of the kernel that ran.
    pub(crate) fn release(&self) -> Option<&str> {
        self.system["kernel"].as_str()
    }
}

/// Whether guests can be started on this host.
pub(crate) fn check() -> Result<(), String> {
    let output = Command::new(QEMU).arg("--version").output();
    output.map(|_| ()).map_err(|error| not_there(&error))
}

fn not_there(error: &io::Error) -> String {
    format!("could not start {QEMU}: {error}; `cargo xtask setup --with-tests` installs it")
}

/// Runs a guest to its end. An error means that it did not start; what goes wrong in it is in its
/// report.
pub(crate) fn run(machine: &Machine<'_>) -> Result<Report, String> {
    let console_path = machine.directory.join(format!("{}.console.log", machine.name));
    let log_path = machine.directory.join(format!("{}.log", machine.name));
    let made = |path: &Path| {
        File::create(path).map_err(|error| format!("cannot make {}: {error}", path.display()))
    };
    made(&console_path)?;
    let mut log = made(&log_path)?;
    let begin = Instant::now();
    let mut child = start(machine, &console_path)?;
    let lines = lines_of(child.stdout.take());
    let mut listener = Listener::new(machine, begin);
    let ending = listen(&mut listener, &lines, &mut log, begin + machine.limit);
    let status = end(&mut child);
    let mut report = listener.report;
    report.seconds = begin.elapsed().as_secs_f64();
    let console = fs::read(&console_path).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    if let Some(line) = protocol::complaint(&console) {
        report.faults.push(format!("the kernel reports: {line}"));
    }
    if let Some(reason) = unfinished(&ending, status, machine.limit) {
        let last: Vec<&str> = console.lines().rev().take(CONSOLE_LINES).collect();
        for line in last.into_iter().rev() {
            println!("    {} | {}", machine.name, line.trim_end());
        }
        report.faults.push(format!("{reason}; {} has the console", console_path.display()));
    }
    Ok(report)
}

/// Frequency of the time-stamp counter of this CPU, kHz: the median of some measurements.
fn tsc_khz() -> u64 {
    const MEASUREMENTS: usize = 5;
    let measure = |_| {
        // SAFETY: every x86-64 CPU has the instruction, which only reads a counter.
        let counter = || unsafe { std::arch::x86_64::_rdtsc() };
        let (begun, before) = (Instant::now(), counter());
        thread::sleep(Duration::from_millis(20));
        let (after, elapsed) = (counter(), begun.elapsed());
        (u128::from(after - before) * 1_000_000 / elapsed.as_nanos().max(1)) as u64
    };
    let mut found: Vec<u64> = (0..MEASUREMENTS).map(measure).collect();
    found.sort_unstable();
    found[MEASUREMENTS / 2]
}

fn start(machine: &Machine<'_>, console: &Path) -> Result<Child, String> {
    let mut command = Command::new(QEMU);
    command.args([
        "-accel",
        "tcg,thread=single",
        "-cpu",
        "max",
        "-no-reboot",
        "-nodefaults",
        "-no-user-config",
    ]);
    command.args(["-display", "none", "-smp", &machine.cpus.to_string()]);
    command.args(["-m", &machine.memory_mib.to_string()]);
    command.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.initramfs);
    let mut command_line = COMMAND_LINE.to_owned();
    if let Some(possible) = machine.possible_cpus {
        // The kernel sizes everything that it has for each CPU by it.
        command_line += &format!(" possible_cpus={possible}");
    }
    if machine.counted {
        // Each instruction takes a nanosecond of the guest's time, whatever else the host does.
        command.args(["-icount", "shift=0,sleep=off"]);
    } else {
        // An emulated CPU has the time-stamp counter of this one. The kernel would measure its frequency
        // against a device, and was wrong by a factor of seven when the host was busy meanwhile.
        command_line += &format!(" tsc_early_khz={}", tsc_khz());
    }
    command.args(["-append", &command_line]);
    let disk = format!("file={},if=virtio,format=raw,cache=unsafe", machine.disk.display());
    command.args(["-drive", &disk]);
    command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().map_err(|error| not_there(&error))
}

fn lines_of(stdout: Option<ChildStdout>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = stdout {
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// How the guest's messages ended.
#[derive(Debug, PartialEq)]
enum Ending {
    Done,
    Failed(String),
    /// The messages stopped in the middle.
    Stopped,
    TimedOut,
}

fn listen(
    listener: &mut Listener,
    lines: &Receiver<String>,
    log: &mut File,
    deadline: Instant,
) -> Ending {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => return Ending::TimedOut,
            Err(RecvTimeoutError::Disconnected) => return Ending::Stopped,
            Ok(line) => {
                if let Some(message) = Message::parse(&line) {
                    // A full disk must not end the guest; the lines are shown when they matter.
                    let _ = log.write_all(logged(&message).as_bytes());
                    if let Some(ending) = listener.hear(message) {
                        return ending;
                    }
                }
            }
        }
    }
}

fn logged(message: &Message) -> String {
    match message {
        Message::Output { text, .. } => format!("{text}\n"),
        Message::Started(name) => format!("\n==> {name}\n"),
        Message::Ended(end) => format!("    {:.1} s\n", end.seconds),
        Message::Booted(system) => format!("{system}\n"),
        Message::Result(result) => format!("result: {result}\n"),
        Message::Done => "done\n".to_owned(),
        Message::Failed(reason) => format!("failed: {reason}\n"),
    }
}

/// Waits for power-off, and kills a guest that does not power off.
fn end(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + POWER_OFF;
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn unfinished(ending: &Ending, status: Option<ExitStatus>, limit: Duration) -> Option<String> {
    match ending {
        Ending::Done if status.is_some_and(|status| status.success()) => None,
        Ending::Done => Some("the guest did not power off by itself".to_owned()),
        Ending::Failed(reason) => Some(format!("the guest gave up: {reason}")),
        Ending::TimedOut => Some(format!("the guest still ran after {} s", limit.as_secs())),
        Ending::Stopped => Some("the guest stopped in the middle".to_owned()),
    }
}

/// Makes a report of the guest's messages, and prints progress.
struct Listener {
    name: String,
    verbose: bool,
    begin: Instant,
    report: Report,
    /// Of the test program that runs.
    current: Counts,
    output: Vec<String>,
}

impl Listener {
    fn new(machine: &Machine<'_>, begin: Instant) -> Self {
        Self {
            name: machine.name.to_owned(),
            verbose: machine.verbose,
            begin,
            report: Report::default(),
            current: Counts::default(),
            output: Vec::new(),
        }
    }

    /// Returns the ending with the last message.
    fn hear(&mut self, message: Message) -> Option<Ending> {
        match message {
            Message::Booted(system) => {
                let kernel = system["kernel"].as_str().unwrap_or("?");
                let seconds = self.begin.elapsed().as_secs_f64();
                println!("    {}: {kernel} booted in {seconds:.1} s", self.name);
                self.report.system = system;
            }
            Message::Started(_) => {
                self.current = Counts::default();
                self.output.clear();
            }
            Message::Output { text, .. } => {
                self.current.add_line(&text);
                if self.verbose {
                    println!("    {} | {text}", self.name);
                } else {
                    self.output.push(text);
                }
            }
            Message::Result(result) => self.report.results.push(result),
            Message::Ended(end) => self.ended(&end),
            Message::Done => return Some(Ending::Done),
            Message::Failed(reason) => return Some(Ending::Failed(reason)),
        }
        None
    }

    fn ended(&mut self, end: &End) {
        let Counts { passed, failed } = std::mem::take(&mut self.current);
        self.report.counts.passed += passed;
        self.report.counts.failed += failed;
        println!(
            "    {}: {}: {passed} passed, {failed} failed, {:.1} s",
            self.name, end.name, end.seconds
        );
        let fault = match end.code {
            Some(0) => None,
            _ if end.timed_out => {
                Some(format!("{} was killed: it exceeded its time limit", end.name))
            }
            // The failed tests are counted already.
            Some(_) if failed > 0 => Some(String::new()),
            Some(code) => Some(format!("{} ended with code {code}", end.name)),
            None => Some(format!("{} was killed by a signal, or did not start", end.name)),
        };
        if let Some(fault) = fault {
            for line in self.output.drain(..) {
                println!("    {} | {line}", self.name);
            }
            if !fault.is_empty() {
                self.report.faults.push(fault);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hear_all(messages: Vec<Message>) -> (Report, Option<Ending>) {
        let machine = Machine {
            name: "test",
            kernel: Path::new(""),
            initramfs: Path::new(""),
            disk: Path::new(""),
            memory_mib: 0,
            cpus: 1,
            possible_cpus: None,
            counted: false,
            limit: Duration::ZERO,
            verbose: false,
            directory: Path::new(""),
        };
        let mut listener = Listener::new(&machine, Instant::now());
        let mut ending = None;
        for message in messages {
            ending = ending.or(listener.hear(message));
        }
        (listener.report, ending)
    }

    fn output(text: &str) -> Message {
        Message::Output { name: "run".into(), text: text.into() }
    }

    fn ended(code: Option<i64>, timed_out: bool) -> Message {
        Message::Ended(End { name: "run".into(), code, timed_out, seconds: 1.0 })
    }

    #[test]
    fn a_guest_that_does_all_has_counts_results_and_no_fault() {
        let (report, ending) = hear_all(vec![
            Message::Booted(json!({"kernel": "6.1.0"})),
            Message::Started("run".into()),
            output("test a ... ok"),
            output("test result: ok. 3 passed; 0 failed; 0 ignored"),
            Message::Result(json!({"probe": "fault"})),
            ended(Some(0), false),
            Message::Done,
        ]);
        assert_eq!(ending, Some(Ending::Done));
        assert_eq!(report.counts, Counts { passed: 3, failed: 0 });
        assert_eq!((report.release(), report.results.len()), (Some("6.1.0"), 1));
    }

    #[test]
    fn what_goes_wrong_is_counted_once() {
        let failing = || output("test result: FAILED. 2 passed; 1 failed; 0 ignored");
        let run = |messages: Vec<Message>| {
            let mut all = vec![Message::Started("run".into())];
            all.extend(messages);
            hear_all(all).0
        };
        let failed = run(vec![failing(), ended(Some(101), false)]);
        assert_eq!(failed.counts, Counts { passed: 2, failed: 1 });
        let crashed = run(vec![ended(None, false)]);
        assert_eq!((crashed.counts, crashed.faults.len()), (Counts::default(), 1));
        let hung = run(vec![output("test a ... ok"), ended(None, true)]);
        assert_eq!((hung.counts, hung.faults.len()), (Counts::default(), 1));
        assert!(hung.faults[0].contains("time limit"), "{:?}", hung.faults);
    }

    #[test]
    fn a_guest_that_stops_is_reported() {
        let limit = Duration::from_secs(5);
        for (ending, word) in [
            (Ending::Stopped, "stopped"),
            (Ending::TimedOut, "after 5 s"),
            (Ending::Failed("no disk".into()), "no disk"),
            (Ending::Done, "power off"),
        ] {
            let reason = unfinished(&ending, None, limit).expect("a reason");
            assert!(reason.contains(word), "{reason}");
        }
    }
}
