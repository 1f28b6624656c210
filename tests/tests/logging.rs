//! Log lines: levels, forms, and where they go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use observer::error::Exit;
use observer::model::Summary;
use observer_tests::command::{Finished, run};
use observer_tests::daemon::Daemon;
use observer_tests::http::ReservedPort;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{FLOODED, directory, programs, watched};
use rustix::process::Signal;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// For a guest without hardware support for virtualisation; elsewhere a second is enough.
const TIMEOUT: Duration = Duration::from_secs(300);

fn observer(arguments: &[&str]) -> Finished {
    run(Command::new(programs().observer).args(arguments), TIMEOUT)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn a_failure_is_one_line_in_every_form() {
    let directory = directory();
    let missing = directory.path().join("missing");
    let missing = missing.to_str().expect("UTF-8");
    for flags in [&[][..], &["-q"], &["-v"], &["-vv"]] {
        let finished = observer(&[flags, &["report", missing]].concat());
        finished.assert_code(Exit::RunUnreadable as u8);
        assert!(finished.stderr.starts_with("observer: error: "), "{finished:#?}");
    }
    for flags in [&["--log-format", "json"][..], &["-q", "--log-format=json"]] {
        let finished = observer(&[&["report", missing], flags].concat());
        assert_eq!(finished.code, Some(i32::from(Exit::RunUnreadable as u8)), "{finished:#?}");
        let line = json(finished.stderr.trim_end());
        assert_eq!(line["level"], "ERROR", "{line}");
        assert!(line["message"].as_str().is_some_and(|text| text.contains(missing)), "{line}");
    }
    assert_eq!(observer(&["-q", "-v", "doctor"]).code, Some(Exit::Usage as i32));
    let usage = observer(&["report"]).stderr;
    assert!(usage.starts_with("observer: error: "), "one style of errors: {usage}");
}

#[test]
fn journald_gets_priorities_instead_of_times() {
    let directory = directory();
    let log = directory.path().join("journal");
    let file = File::create_new(&log).expect("a file");
    let stream = |inode: u64| {
        let device = file.metadata().expect("metadata").dev();
        format!("{device}:{inode}")
    };
    let inode = file.metadata().expect("metadata").ino();
    for (stream, prefix) in [(stream(inode), "<3>"), (stream(inode + 1), "observer: error: ")] {
        fs::write(&log, "").expect("a write");
        let mut command = Command::new(programs().observer);
        command.args(["report", "/no/such/run"]).env("JOURNAL_STREAM", stream);
        let output = File::options().append(true).open(&log).expect("a file");
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output).status();
        assert_eq!(status.expect("it starts").code(), Some(i32::from(Exit::RunUnreadable as u8)));
        let text = fs::read_to_string(&log).expect("a log");
        assert!(text.starts_with(prefix), "{prefix}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

/// Starts a daemon with these options, ends it, and returns what it logged.
fn logged(options: &[&str]) -> String {
    let directory = directory();
    let log = directory.path().join("log");
    let port = ReservedPort::new().expect("a port");
    let address = format!("127.0.0.1:{}", port.number());
    let mut command = Command::new(programs().observer);
    command.args(options).args(["daemon", "--listen", &address]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create_new(&log).expect("a file"));
    let mut process = Running::start(&mut command, Placement::default()).expect("it starts");
    Daemon::wait_until_healthy(&mut process, port.number());
    process.signal(Signal::TERM);
    assert!(process.wait(TIMEOUT).expect("it ends").success());
    fs::read_to_string(&log).expect("a log")
}

#[test]
fn the_daemon_says_where_it_serves_and_more_only_when_asked() {
    let Some(_guard) = privileged::ready("log lines of the daemon") else { return };
    let serving = "serving http://127.0.0.1:";
    let attached = "probe runqueue: attached";
    let default = logged(&[]);
    assert!(default.contains(serving) && !default.contains(attached), "{default}");
    for line in default.lines() {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(OffsetDateTime::parse(time, &Rfc3339).is_ok(), "{line}");
        assert!(rest.starts_with("observer: "), "{line}");
    }
    let verbose = logged(&["-v"]);
    assert!(verbose.contains(serving) && verbose.contains(attached), "{verbose}");
    let quiet = logged(&["-q"]);
    assert_eq!(quiet, "", "nothing failed");
    let lines: Vec<Value> = logged(&["-v", "--log-format", "json"]).lines().map(json).collect();
    let message = |text: &str| {
        let is_it = |line: &&Value| line["message"].as_str().is_some_and(|it| it.contains(text));
        lines.iter().find(is_it).unwrap_or_else(|| panic!("{text}: {lines:#?}"))
    };
    assert_eq!(message(serving)["level"], "INFO");
    assert_eq!(message(attached)["level"], "INFO");
}

/// What the BPF programs said: lines written, and those counted instead.
#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    suppressed: BTreeMap<String, u64>,
    dropped: u64,
}

impl Said {
    /// Sorts the messages of a log.
    fn of(messages: impl Iterator<Item = String>) -> Self {
        let mut said = Self::default();
        let number = |text: &str| -> u64 {
            text.split(' ').find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("{text}"))
        };
        for text in messages {
            let dropped = "messages of the BPF programs were dropped so far";
            let is_loss = text.contains("; thread ") || text.contains("; noticed while thread ");
            match text.split_once("suppressed ") {
                // Each number contains the ones before.
                _ if text.contains(dropped) => {
                    let text = text.split("last one: ").last().unwrap_or_default();
                    let text = text.split("debug: ").last().unwrap_or_default();
                    said.dropped = said.dropped.max(number(text));
                }
                Some((_, rest)) if is_loss => {
                    let loss = rest.split("last one: ").nth(1).unwrap_or_else(|| panic!("{rest}"));
                    let loss = loss.split(':').next().unwrap_or_default().to_owned();
                    *said.suppressed.entry(loss).or_default() += number(rest);
                }
                None if is_loss => {
                    said.lines.push(text.split("debug: ").last().unwrap_or_default().to_owned());
                }
                _ => {}
            }
        }
        said
    }

    /// Messages about one loss that were not dropped.
    fn about(&self, loss: &str) -> u64 {
        let lines = self.lines.iter().filter(|line| line.starts_with(&format!("{loss}: ")));
        lines.count() as u64 + self.suppressed.get(loss).copied().unwrap_or_default()
    }

    /// All messages.
    fn all(&self) -> u64 {
        self.lines.len() as u64 + self.suppressed.values().sum::<u64>() + self.dropped
    }
}

/// A run that loses records for sure, since observer is stopped while the target works; what it
/// logged, and its numbers.
fn run_with_loss(options: &[&str]) -> (u32, String, Summary) {
    let directory = directory();
    let options = [&FLOODED[..], options].concat();
    let (mut work, watch) =
        watched(&["minor-faults", "--pages", "20000"], &options, directory.path());
    watch.process.signal(Signal::STOP);
    work.go().expect("the workload works");
    watch.process.signal(Signal::CONT);
    let log = watch.log.clone();
    let (summary, _) = watch.finish_with_loss().unwrap_or_else(|error| panic!("{error}"));
    let pid = work.id();
    work.end().expect("the workload ends");
    (pid, fs::read_to_string(log).expect("a log"), summary)
}

/// The numbers of a run are complete, and records were lost; how many.
#[track_caller]
fn lost_faults(summary: &Summary) -> u64 {
    let records = summary.records["fault"];
    assert_eq!(summary.probes["fault"].count, records.delivered + records.lost, "{summary:#?}");
    assert!(records.lost > 10_000, "{records:?}");
    records.lost
}

/// The messages are those of this run's losses.
#[track_caller]
fn each_loss_was_said(said: &Said, pid: u32, summary: &Summary) {
    let lost = lost_faults(summary);
    let process = format!("fault: the ring buffer was full; thread {pid} of process {pid}");
    let shown = said.lines.iter().filter(|line| **line == process).count();
    assert_eq!(shown, 10, "as many as the limit shows: {said:#?}");
    assert!(said.about("fault") <= lost, "{lost} lost: {said:#?}");
    // Which messages were dropped is not known. Those of others, and from before the run began,
    // may be among them.
    let of_target = summary.loss.of_target();
    let logged = of_target.iter().filter(|(kind, _)| *kind != "program_missed");
    let logged: u64 = logged.map(|(_, count)| count).sum();
    assert!(said.dropped > 0 && said.all() >= logged, "{logged} losses, {said:#?}");
}

#[test]
fn programs_say_at_debug_why_they_gave_up() {
    let Some(_guard) = privileged::ready("messages of the programs") else { return };
    let (_, log, summary) = run_with_loss(&["-v"]);
    lost_faults(&summary);
    let said = Said::of(log.lines().map(str::to_owned));
    assert_eq!(said.all(), 0, "{said:#?}");

    let (pid, log, summary) = run_with_loss(&["-vv"]);
    each_loss_was_said(&Said::of(log.lines().map(str::to_owned)), pid, &summary);

    let (pid, log, summary) = run_with_loss(&["-vv", "--log-format", "json"]);
    let lines = log.lines().filter(|line| line.starts_with('{')).map(json);
    let messages = lines.map(|line| {
        let text = line["message"].as_str().expect("a message").to_owned();
        if text.starts_with("fault: ") {
            assert_eq!(
                (&line["level"], &line["target"]),
                (&"DEBUG".into(), &"observer::bpf".into())
            );
        }
        text
    });
    each_loss_was_said(&Said::of(messages), pid, &summary);
}

#[test]
fn programs_with_messages_are_attached_as_those_without() {
    let Some(_guard) = privileged::ready("programs with messages") else { return };
    let of = |flags: &[&str]| {
        let finished = observer(&[&["doctor", "--json"], flags].concat());
        serde_json::from_str::<Value>(&finished.stdout).unwrap_or_else(|_| panic!("{finished:#?}"))
    };
    let (without, with) = (of(&[]), of(&["-vv"]));
    assert_eq!(with["probes"], without["probes"], "the same tiers, attached");
    let sizes = |doctor: &Value| -> BTreeMap<String, u64> {
        serde_json::from_value(doctor["programs"].clone()).expect("programs")
    };
    let (without, with) = (sizes(&without), sizes(&with));
    assert_eq!(without.keys().collect::<Vec<_>>(), with.keys().collect::<Vec<_>>());
    println!("instructions without and with messages:");
    for (name, size) in &without {
        println!("{name}: {size}, {}", with[name]);
        assert!(with[name] >= *size, "{name}");
    }
    let message = 200;
    assert!(with["sched_switch"] > without["sched_switch"] + message, "{with:#?}");
}
