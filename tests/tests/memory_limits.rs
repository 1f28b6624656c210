//! The limits of memory on the target's cgroups, the pressure, and the disks, compared with the kernel's counters.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use observer::model::{DiskSummary, MemoryLimitSummary, PressureSummary, Summary};
use observer_tests::cgroup::{MemoryCgroup, UnifiedCgroup};
use observer_tests::kernel_counters::Flat;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{self, directory, programs, unique};
use observer_tests::watch::Watch;

const LIMIT_BYTES: u64 = 24 << 20;

/// A cgroup with this limit; `None` where there is no memory controller.
fn limited(name: &str) -> Option<MemoryCgroup> {
    match MemoryCgroup::create(&unique(name)) {
        Ok(cgroup) => {
            cgroup.limit(Some(LIMIT_BYTES)).expect("the kernel takes the limit");
            Some(cgroup)
        }
        Err(reason) => {
            println!("{reason}");
            None
        }
    }
}

/// The limit of this cgroup itself. Those above may have some too.
fn of<'a>(summary: &'a Summary, cgroup: &MemoryCgroup) -> &'a MemoryLimitSummary {
    let name = cgroup.directory().file_name().expect("a name").to_string_lossy();
    let limits = &summary.conditions.memory_limits;
    let found = limits.iter().find(|limit| limit.cgroup == format!("/{name}"));
    found.unwrap_or_else(|| panic!("no /{name} in {limits:?}"))
}

fn report(watch: &std::path::Path) -> String {
    let report = Command::new(programs().observer).arg("report").arg(watch).output();
    let report = String::from_utf8(report.expect("a report").stdout).expect("UTF-8");
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_limit_that_is_hit_is_counted_as_the_kernel_does() {
    let Some(_guard) = privileged::ready("memory limits") else { return };
    let Some(cgroup) = limited("hit") else { return };
    let unified = match cgroup.version() {
        1 => UnifiedCgroup::create(&unique("pressure")).ok(),
        _ => None,
    };
    let files = directory();
    let file = files.path().join("sparse");
    let file = file.to_str().expect("a path in UTF-8");
    let place =
        Placement { cgroup: Some(&cgroup), unified: unified.as_ref(), ..Placement::default() };
    let mut work = trial::start(&["reclaim", "--file", file, "--rounds", "2"], place);
    let read = || {
        let directory = unified.as_ref().map_or(cgroup.directory(), UnifiedCgroup::directory);
        let pressure = std::fs::read_to_string(directory.join("memory.pressure")).ok();
        let some_us = pressure.and_then(|text| {
            text.split_ascii_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
        });
        (cgroup.limit_hits().expect("a count"), some_us.unwrap_or(0_u64))
    };
    let before = read();
    let target = ["--pid".to_owned(), work.id().to_string()];
    let target: Vec<&str> = target.iter().map(String::as_str).collect();
    let watch = Watch::start(&programs(), &target, files.path()).expect("it attaches");
    let begun = read();
    work.go().expect("it works");
    let ending = read();
    let run = watch.run.clone();
    let (summary, info) = watch.finish().expect("a run");
    let after = read();

    let limit = of(&summary, &cgroup);
    println!("{limit:?}");
    assert_eq!((limit.version, limit.max_bytes), (cgroup.version(), Some(LIMIT_BYTES)));
    assert!(!limit.changed && limit.oom_kills == Some(0), "{limit:?}");
    // Nothing is asked for while the workload waits, so that these are the same on the way there and back.
    let hits = limit.limit_hits.expect("the kernel counts it");
    assert!(ending.0 > begun.0, "the workload came to its limit");
    assert!(
        (ending.0 - begun.0..=after.0 - before.0).contains(&hits),
        "{hits}: {before:?} {after:?}"
    );
    let highest = limit.highest_bytes.expect("the kernel says it");
    assert!(highest > LIMIT_BYTES / 2 && highest <= LIMIT_BYTES + (1 << 20), "{highest}");
    assert_eq!(info.conditions, summary.conditions);

    let memory = |pressure: &&PressureSummary| pressure.resource == "memory";
    let found = summary.conditions.pressure.iter().filter(memory);
    let (of_cgroup, of_host): (Vec<_>, Vec<_>) = found.partition(|one| one.cgroup.is_some());
    println!("{of_cgroup:?} {of_host:?}");
    let shown = std::path::Path::new("/proc/pressure/memory").exists();
    assert_eq!(of_host.len(), usize::from(shown), "{:?}", summary.conditions.pressure);
    if let [found] = of_cgroup[..] {
        let (least, most) = (ending.1 - begun.1, after.1 - before.1);
        assert!((least..=most).contains(&found.some_us), "{least} to {most} us: {found:?}");
        assert!(found.full_us.is_some_and(|full_us| full_us <= found.some_us), "{found:?}");
    }
    let report = report(&run);
    let wanted = format!("Cgroup {} may use 24 MiB of memory", limit.cgroup);
    assert!(report.contains(&wanted) && report.contains("It came to the limit"), "{report}");
    work.end().expect("it ends");
}

#[test]
fn a_process_of_the_target_that_is_killed_for_want_of_memory_is_told() {
    let Some(_guard) = privileged::ready("memory limits, a kill") else { return };
    let Some(cgroup) = limited("kill") else { return };
    cgroup.allow_kills().expect("the kernel takes it");
    let files = directory();
    // The child begins when the first line comes, and fills its memory after the second.
    let mut command = Command::new("sh");
    let script = "read line; \"$0\" fill --mib 64 >&2; echo \"ended $?\"; read line";
    command.args(["-c", script]).arg(programs().work);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut target = Running::start(&mut command, place).expect("it starts");
    let mut stdin = target.child().stdin.take().expect("a pipe");
    let mut stdout = BufReader::new(target.stdout().expect("a pipe"));
    let host_kills = || Flat::vmstat().expect("/proc/vmstat").get("oom_kill");
    let before = (cgroup.oom_kills().expect("a count"), host_kills());
    let id = target.id().to_string();
    let watch = Watch::start(&programs(), &["--pid", &id], files.path()).expect("it attaches");
    stdin.write_all(b"\n\n").expect("it reads");
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert_eq!(line, "ended 137\n", "the child was killed");
    let run = watch.run.clone();
    let (summary, _) = watch.finish().expect("a run");
    let after = (cgroup.oom_kills().expect("a count"), host_kills());

    let limit = of(&summary, &cgroup);
    println!("{limit:?} {:?}", summary.conditions.host_oom_kills);
    assert_eq!(after.0 - before.0, 1);
    assert_eq!(limit.oom_kills, Some(1));
    if let (Some(before), Some(after)) = (before.1, after.1) {
        let kills = summary.conditions.host_oom_kills.expect("the kernel counts it");
        assert!((1..=after - before).contains(&kills), "{kills}");
    }
    let report = report(&run);
    assert!(
        report.contains("The kernel killed 1 process of it because no memory was left (OOM)"),
        "{report}"
    );
    drop(stdin);
    target.wait(Duration::from_secs(120)).expect("it ends");
}

/// Bytes that a process has read from disks and written for them, and its children for whose end it has waited.
fn disk_bytes(process: u32) -> [u64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).expect("it is there");
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
        line.trim().parse().expect("a number")
    };
    ["read_bytes:", "write_bytes:"].map(of)
}

/// What the kernel has counted of each disk: reads, their sectors and milliseconds, the same of writes, and busy and
/// queued milliseconds.
fn disks() -> BTreeMap<String, [u64; 8]> {
    let text = std::fs::read_to_string("/proc/diskstats").expect("it is there");
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |index: usize| words[index].parse().expect("a number");
        (words[2].to_owned(), [3, 5, 6, 7, 9, 10, 12, 13].map(number))
    };
    text.lines().map(of_line).collect()
}

#[test]
fn what_the_target_and_its_children_do_with_a_disk_is_what_the_kernel_counts() {
    let Some(_guard) = privileged::ready("disks") else { return };
    let files = directory();
    if !trial::on_disk(files.path()) {
        return println!("no directory on a disk: name one in OBSERVER_TEST_DIR");
    }
    // Twice, so that the second time nothing has to be read for the programs themselves.
    let script = "while read line; do \"$1\" direct --file \"$0\"; echo \"ended $?\"; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(files.path().join("data")).arg(programs().work);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = Running::start(&mut command, Placement::default()).expect("it starts");
    let mut stdin = target.child().stdin.take().expect("a pipe");
    let mut lines = BufReader::new(target.stdout().expect("a pipe")).lines();
    let mut once = || {
        stdin.write_all(b"go\n").expect("it reads");
        lines.next().expect("it answers").expect("text")
    };
    assert_eq!(once(), "ended 0", "the file system takes direct I/O");
    let id = target.id();
    let arguments = ["--pid", &id.to_string()];
    let before = disks();
    let watch = Watch::start(&programs(), &arguments, files.path()).expect("it attaches");
    let (begun, bytes_before) = (disks(), disk_bytes(id));
    assert_eq!(once(), "ended 0");
    // Long enough for a reading while a child is there, and for one after it.
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(once(), "ended 0");
    let (ending, bytes_after) = (disks(), disk_bytes(id));
    let (summary, info) = watch.finish().expect("a run");
    let after = disks();

    let conditions = &summary.conditions;
    println!("{:?} {:?}", conditions.disks, conditions.disk_bytes);
    assert_eq!(info.conditions, *conditions);
    let own = conditions.disk_bytes.expect("root may read it");
    let counted = [bytes_after[0] - bytes_before[0], bytes_after[1] - bytes_before[1]];
    assert_eq!([own.read, own.written], counted);
    assert!(counted.iter().all(|bytes| *bytes >= 8 << 20), "{counted:?}");
    assert!(!conditions.disks.is_empty(), "a disk was used");
    for disk in &conditions.disks {
        let (reads, writes) = (disk.reads, disk.writes);
        let found = [
            [reads.count, reads.bytes / 512, reads.time_ms],
            [writes.count, writes.bytes / 512, writes.time_ms],
        ];
        let found = [&found.concat()[..], &[disk.busy_ms, disk.queued_ms]].concat();
        for (index, found) in found.into_iter().enumerate() {
            let of = |all: &BTreeMap<String, [u64; 8]>| all[&disk.disk][index];
            let (least, most) = (of(&ending) - of(&begun), of(&after) - of(&before));
            assert!((least..=most).contains(&found), "{index}: {least} to {most}: {disk:?}");
        }
    }
    let moved = |of: fn(&DiskSummary) -> u64| conditions.disks.iter().map(of).sum::<u64>();
    assert!(moved(|disk| disk.reads.count) >= 2 * 256 && moved(|disk| disk.writes.count) >= 2 * 64);
}
