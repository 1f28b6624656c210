//! The open descriptors of the target, compared with what `/proc` shows of the same process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use observer::model::{DescriptorSummary, EndReason};
use observer::output::rundir::RunDir;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{directory, programs};
use observer_tests::watch::Watch;

/// For a guest without hardware support for virtualisation.
const TIMEOUT: Duration = Duration::from_secs(240);
/// A limit that no test reaches.
const FAR: u64 = 4_096;
/// Tests that run beside these fill the table of sockets, in which some of the process then have no place. Nothing
/// that is compared here comes from it.
const CROWDED: [&str; 1] = ["socket_slot"];

/// A process that opens and closes descriptors when it is told to.
struct Holder {
    process: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Holder {
    /// With this limit, soft and hard.
    fn start(limit: u64) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit}; exec \"$0\" hold-descriptors");
        command.args(["-c", &script]).arg(programs().work);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Running::start(&mut command, Placement::default()).expect("it starts");
        let stdin = process.child().stdin.take().expect("a pipe");
        let stdout = BufReader::new(process.stdout().expect("a pipe"));
        let mut holder = Self { process, stdin, stdout };
        assert_eq!(holder.line(), "ready");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Lets it have so many more than at first; returns how many these are.
    fn hold(&mut self, more: usize) -> usize {
        writeln!(self.stdin, "{more}").expect("it reads");
        self.line().parse().expect("a number")
    }

    /// What the kernel lists.
    fn open(&self) -> u64 {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.process.id()));
        entries.expect("its descriptors").count() as u64
    }

    fn watch(&self, directory: &Path) -> Watch {
        let id = self.process.id().to_string();
        Watch::start(&programs(), &["--pid", &id], directory).expect("it attaches")
    }
}

/// Waits until observer has written what fits of the process; `turn` is called again and again meanwhile.
fn until(
    watch: &Watch,
    mut turn: impl FnMut(),
    fits: impl Fn(&DescriptorSummary) -> bool,
) -> DescriptorSummary {
    let run = RunDir::open(&watch.run).expect("a directory");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let info = run.read_run().expect("run.json");
        match info.conditions.descriptors.first() {
            Some(found) if fits(found) => return found.clone(),
            found => assert!(Instant::now() < deadline, "no such reading: {found:?}"),
        }
        turn();
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn report(run: &Path) -> String {
    let report = Command::new(programs().observer).arg("report").arg(run).output();
    String::from_utf8(report.expect("a report").stdout).expect("UTF-8")
}

#[test]
fn a_leak_is_found_and_its_numbers_are_those_of_the_kernel() {
    let Some(_guard) = privileged::ready("descriptors, a leak") else { return };
    let files = directory();
    let mut holder = Holder::start(FAR);
    let first = holder.open();
    let watch = holder.watch(files.path());
    // A leak at any speed that the host allows, until it is known to be one.
    let mut held = 0;
    let leaking = until(
        &watch,
        || {
            held += 1;
            assert_eq!(holder.hold(held), held);
        },
        |found| found.seconds_to_limit().is_some(),
    );
    let last = holder.open();
    let (summary, info) = watch.finish_losing(&CROWDED).expect("a run");
    let [found] = &summary.conditions.descriptors[..] else {
        panic!("{:?}", summary.conditions.descriptors)
    };
    println!("{leaking:?}\n{found:?}");
    assert_eq!((found.tgid, &*found.name), (holder.process.id(), "observer-work"));
    assert_eq!(last, first + held as u64, "the process does what the test thinks");
    assert_eq!((found.first, found.last, found.highest), (first, last, last));
    assert_eq!((found.limit, found.limit_reached, found.ended), (Some(FAR), false, false));
    // Of all if they are few.
    let sample = found.sample.expect("it may be looked at");
    if last <= 128 {
        assert_eq!((sample.looked_at, sample.sockets), (last, held as u64));
    }
    assert_eq!(summary.conditions.descriptors_beyond, 0);
    let growth = leaking.steady_growth().expect("it was one");
    assert!(growth.ci95_per_s[0] <= growth.per_s && growth.per_s <= growth.ci95_per_s[1]);
    let host = summary.conditions.host_files.expect("the host has files");
    assert!(host.highest >= host.first.max(host.last) && host.last >= last, "{host:?}");
    assert_eq!(info.conditions, summary.conditions);
}

#[test]
fn a_number_that_goes_up_and_down_is_no_leak_and_a_process_that_ended_keeps_what_was_read() {
    let Some(_guard) = privileged::ready("descriptors, up and down") else { return };
    let files = directory();
    let mut holder = Holder::start(FAR);
    let first = holder.open();
    let mut watch = holder.watch(files.path());
    // Each number until observer has read it. The last quarter of the time, the number is low.
    for more in [90, 5, 100, 10, 95, 0, 100, 0] {
        assert_eq!(holder.hold(more), more);
        let open = holder.open();
        until(&watch, || (), |found| found.last == open);
    }
    let begun = until(&watch, || (), |found| found.last == first).observed_ns;
    let found =
        until(&watch, || (), |found| found.observed_ns > begun / 3 * 4 && found.growth.is_some());
    assert_eq!((found.first, found.last, found.highest), (first, first, first + 100));
    assert!(found.steady_growth().is_none(), "{found:?}");
    assert!(!found.limit_reached);
    let run = watch.run.clone();
    drop(holder);
    watch.process.wait(TIMEOUT).expect("it ends with its target");
    let (summary, info) = watch.finish_losing(&CROWDED).expect("a run");
    assert_eq!(info.end_reason, EndReason::TargetExit);
    let [ended] = &summary.conditions.descriptors[..] else {
        panic!("{:?}", summary.conditions.descriptors)
    };
    assert_eq!((ended.first, ended.last, ended.highest), (first, first, first + 100));
    assert!(ended.ended && ended.steady_growth().is_none(), "{ended:?}");
    let report = report(&run);
    assert!(!report.contains("Open descriptors"), "{report}");
}

#[test]
fn a_limit_that_is_reached_is_told() {
    let Some(_guard) = privileged::ready("descriptors, the limit") else { return };
    let files = directory();
    let mut holder = Holder::start(64);
    let first = holder.open();
    let watch = holder.watch(files.path());
    let held = holder.hold(100);
    // Those that it inherited may have higher numbers than the limit allows.
    let open = holder.open();
    assert!(open >= 64 && held < 100 && open == first + held as u64, "{open}, {held}");
    let run = watch.run.clone();
    let (summary, _) = watch.finish_losing(&CROWDED).expect("a run");
    let [found] = &summary.conditions.descriptors[..] else {
        panic!("{:?}", summary.conditions.descriptors)
    };
    assert_eq!((found.first, found.last, found.highest), (first, open, open));
    assert_eq!((found.limit, found.limit_reached), (Some(64), true));
    let sample = found.sample.expect("it may be looked at");
    assert_eq!((sample.looked_at, sample.sockets), (open, held as u64));
    let report = report(&run);
    assert!(report.contains("\nOpen descriptors\n"), "{report}");
    let words = report.split_whitespace().collect::<Vec<_>>().join(" ");
    let wanted = format!(
        "Process {} (observer-work) reached its limit of 64 open descriptors (ulimit -n)",
        found.tgid
    );
    assert!(words.contains(&wanted), "{report}");
    assert!(words.contains("with EMFILE: socket 1 times"), "{report}");
}
